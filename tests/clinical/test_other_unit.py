"""Every case again in the other unit: what was mg/dL comes in mmol/L, what was moles comes in mass; nothing may change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from functools import cache
from typing import Any

import pytest

from fhir_server.automation import cases as played
from fhir_server.automation import content
from fhir_server.automation.cases import Case
from fhir_server.automation.definitions import Definitions
from fhir_server.automation.rulebook import Rulebook
from fhir_server.terminology import analytes

OTHER = {
    "mg/dL": "mmol/L",
    "mmol/L": "mg/dL",
    "umol/L": "mg/dL",
    "%": "mmol/mol",
    "mmol/mol": "%",
    "g/L": "g/dL",
    "cm": "m",
    "kg": "g",
}
_QUANTITY = re.compile(r"(-?\d+(?:\.\d+)?) (\S+)")


def turned(step: Mapping[str, Any]) -> dict[str, Any]:
    """The step with its result in the other unit, or as it is."""
    observation = step.get("observation")
    found = _QUANTITY.fullmatch(str(observation.get("value", ""))) if isinstance(observation, dict) else None
    if found is None or found[2] not in OTHER:
        return dict(step)
    code = str(observation["code"]).rpartition("|")[2]
    value = analytes.convert(Decimal(found[1]), found[2], OTHER[found[2]], code)
    if value is None:
        return dict(step)
    return {**step, "observation": {**observation, "value": f"{value:f} {OTHER[found[2]]}"}}


def in_other_unit(case: Case) -> Case | None:
    body = {name: [turned(step) for step in case.body.get(name, ())] for name in ("given", "when") if name in case.body}
    if all(body[name] == list(case.body[name]) for name in body):
        return None
    return replace(case, body={**case.body, **body})


@cache
def definitions() -> Definitions:
    return content.definitions()


@cache
def book(rules: tuple[str, ...], parameters: tuple[tuple[str, Any], ...]) -> Rulebook:
    return content.book_of(definitions(), rules, parameters)


CASES = [
    other for path in content.case_files() for case in played.cases(path) if (other := in_other_unit(case)) is not None
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.path.stem}-{case.name}")
def test_the_same_patient_in_the_other_unit(case: Case) -> None:
    assert played.run(case, book(case.rules, case.parameters)).problems == []


def test_both_directions_are_tried() -> None:
    units = {unit for case in CASES for unit in OTHER.values() if f" {unit}'" in str(case.body)}
    assert units >= {"mmol/L", "mg/dL", "mmol/mol", "%", "g/dL"}

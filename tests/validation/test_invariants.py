"""Rules written by hand say what their FHIRPath expressions say; all others can be compiled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from fhir_server.model import fhirpath, resource
from fhir_server.model.definitions import Invariant, type_definition, type_names
from fhir_server.validation.invariants import ELSEWHERE, NATIVE
from fhir_server.validation.problems import Scope
from tests.validation.validation_tables import SMALLEST, table

# Where a rule by hand differs from its expression on purpose.
DIFFERENT = {
    "con-3": "the expression compares a CodeableConcept with a text",
    "que-7": "the expression asks for FHIRPath's Boolean instead of FHIR's",
    "eld-19": "the engine refuses the expression's pattern, which repeats a repeat",
    "eld-20": "the engine refuses the expression's pattern, which repeats a repeat",
    "ctm-1": "the expression resolves the member; the rule reads the reference's own text",
}


def every_invariant() -> dict[tuple[str, str], tuple[Invariant, str]]:
    found: dict[tuple[str, str], tuple[Invariant, str]] = {}
    for name in type_names():
        definition = type_definition(name)
        for invariant in definition.invariants:
            found.setdefault((invariant.key, invariant.expression), (invariant, name))
        for element in definition.elements.values():
            for invariant in element.invariants:
                found.setdefault((invariant.key, invariant.expression), (invariant, element.type))
    return found


def test_the_package_has_its_invariants() -> None:
    assert len(every_invariant()) == 240


def test_those_by_hand_exist() -> None:
    keys = {key for key, _ in every_invariant()}
    assert NATIVE.keys() | ELSEWHERE <= keys
    assert not NATIVE.keys() & ELSEWHERE


def test_every_other_expression_compiles() -> None:
    failed = {}
    for (key, expression), (_, type_name) in every_invariant().items():
        if key not in NATIVE and key not in ELSEWHERE:
            try:
                fhirpath.compile(expression, type_name)
            except fhirpath.FhirPathError as error:
                failed[key] = str(error)
    assert failed == {}


def nodes(value: Any, type_name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of a resource with the name of its type."""
    yield type_name, value
    elements = type_definition(type_name).elements
    for key, item in value.items():
        if key in elements and not elements[key].type[0].islower() and elements[key].type != "Resource":
            for one in item if isinstance(item, list) else [item]:
                yield from nodes(one, elements[key].type)


ROWS = [(row, side) for row in table("invariants") for side in ("right", "wrong")]


@pytest.mark.parametrize(("row", "side"), ROWS, ids=lambda x: x if isinstance(x, str) else f"{x['key']} {x['type']}")
def test_by_hand_as_by_expression(row: dict[str, Any], side: str) -> None:
    value = resource.load(
        json.dumps({"resourceType": row["type"], **SMALLEST.get(row["type"], {}), **row[side]}).encode()
    )
    scope = Scope(value)
    for type_name, node in nodes(value, row["type"]):
        for invariant in type_definition(type_name).invariants:
            if invariant.key in NATIVE and invariant.key not in DIFFERENT:
                expression = fhirpath.compile(invariant.expression, type_name)
                expected = expression.holds(node, resource=value, rootResource=value) is not False
                assert NATIVE[invariant.key](node, scope) is expected, f"{invariant.key} on {node}"

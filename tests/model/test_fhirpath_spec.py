"""HL7's own FHIRPath cases, from the folder FHIR_SPEC_DATA names; what differs is listed with its reason."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from fhir_server.model.fhirpath import FhirPathError, Host, compile
from fhir_server.model.resource import load
from fhir_server.model.xml import from_xml
from fhir_server.terminology.units import canonical

DIFFERENCES: dict[str, str] = yaml.safe_load((Path(__file__).parent / "fhirpath_differences.yaml").read_text())
HOST = Host(canonical=canonical)
FOLDER = os.environ.get("FHIR_SPEC_DATA")


def _cases() -> Iterator[Any]:
    if FOLDER is None:
        yield pytest.param({}, marks=pytest.mark.skip(reason="FHIR_SPEC_DATA names no folder with the official cases"))
        return
    for case in json.loads((Path(FOLDER) / "spec" / "fhirpath-r4-cases.json").read_text()):
        reason = DIFFERENCES.get(case["name"])
        marks = [pytest.mark.xfail(reason=reason)] if reason else []
        yield pytest.param(case, id=case["name"], marks=marks)


def _resource(name: str | None) -> dict[str, Any]:
    if not name:
        return {"resourceType": "Basic"}
    assert FOLDER is not None
    path = Path(FOLDER) / "spec" / "fhirpath-inputs" / name
    return from_xml(path.read_bytes()) if path.suffix == ".xml" else load(path.read_bytes())


def _shown(kind: str, value: Any) -> tuple[str, str]:
    short = kind.removeprefix("System.")
    short = short[0].lower() + short[1:]
    if isinstance(value, bool):
        return "boolean", str(value).lower()
    if short in ("date", "dateTime", "time"):
        return short, f"@{'T' if short == 'time' else ''}{value}"
    if short == "quantity":
        return short, f"{value['value']:f} '{value['code']}'"
    return short, f"{value:f}" if isinstance(value, Decimal) else str(value)


@pytest.mark.parametrize("case", list(_cases()))
def test_case(case: dict[str, Any]) -> None:
    resource = _resource(case["inputfile"])
    strict = case["mode"] == "strict" or case["invalid"] == "semantic"

    def run() -> list[tuple[str, Any]]:
        expression = compile(case["expression"], resource["resourceType"], strict=strict)
        return [(kind, value) for kind, value in expression.typed(resource, host=HOST)]

    if case["invalid"]:
        with pytest.raises(FhirPathError):
            run()
        return
    found = [_shown(kind, value) for kind, value in run()]
    if case["predicate"] == "true":
        found = [("boolean", str(bool(found) and found[0][1] != "false").lower())]
    wanted = [(output["type"], output["value"]) for output in case["outputs"]]
    if all(kind for kind, _ in wanted):
        assert found == wanted
    else:
        assert [value for _, value in found] == [value for _, value in wanted]

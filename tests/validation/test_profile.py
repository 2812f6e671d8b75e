"""Resources against R4's own profiles and small ones of the tests' own."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from yaml import safe_load

from fhir_server.model import resource
from fhir_server.model.definitions import profile
from fhir_server.validation import Validator
from fhir_server.validation.profile import Profiles, check_profile
from tests.validation.validation_tables import CASES

TABLE: dict[str, Any] = safe_load((CASES / "profiles.yaml").read_text(encoding="utf-8"))
STRUCTURE = "http://hl7.org/fhir/StructureDefinition/"


def blood_pressure(change: dict[str, Any]) -> dict[str, Any]:
    value = {key: item for key, item in {**TABLE["base"], **change}.items() if item is not None}
    loaded = resource.load(json.dumps(value).encode())
    assert [issue for issue in Validator().check(loaded) if issue.is_error] == []
    return loaded


@pytest.mark.parametrize("row", TABLE["rows"], ids=lambda row: row["name"])
def test_row(row: dict[str, Any]) -> None:
    issues = Profiles().check(blood_pressure(row.get("change", {})), STRUCTURE + row["profile"])
    found = Counter((issue.code, issue.expression[0]) for issue in issues)
    if "issues" in row:
        assert found == Counter((code, at) for code, at in row["issues"])
    for at, code in row.get("issues_at", {}).items():
        assert found[(code, at)]
    if "says" in row:
        assert any(row["says"] in issue.diagnostics for issue in issues)


@pytest.mark.parametrize("part", ["snapshot", "differential"])
@pytest.mark.parametrize("row", TABLE["custom"], ids=lambda row: row["name"])
def test_custom_row(row: dict[str, Any], part: str) -> None:
    own = {
        "resourceType": "StructureDefinition",
        "url": "http://example.org/p",
        "name": "Own",
        "type": "Observation",
        "baseDefinition": STRUCTURE + "Observation",
        part: {"element": [{"path": "Observation"}, *row["elements"]]},
    }
    issues = Profiles({"http://example.org/p": own}.get).check(blood_pressure({}), "http://example.org/p")
    found = Counter((issue.code, issue.expression[0]) for issue in issues if issue.is_error)
    assert found == Counter((code, at) for code, at in row["issues"])


def test_one_structure_definition_at_hand() -> None:
    own = {
        "url": "http://example.org/p",
        "name": "Own",
        "type": "Observation",
        "baseDefinition": STRUCTURE + "bp",
        "differential": {"element": [{"path": "Observation.note", "min": 1}]},
    }
    issues = check_profile(blood_pressure({"subject": {"reference": "Group/1"}}), own)
    assert Counter(issue.code for issue in issues) == Counter(["required", "value"])


def test_a_profile_based_on_itself_ends() -> None:
    own = {"url": "http://example.org/p", "type": "Observation", "baseDefinition": "http://example.org/p"}
    assert Profiles({"http://example.org/p": own}.get).check(blood_pressure({}), "http://example.org/p") == []


def test_the_vital_signs_are_known() -> None:
    names = "vitalsigns bp bodyweight bodyheight bmi heartrate resprate bodytemp oxygensat headcircum vitalspanel"
    assert all(profile(STRUCTURE + name) for name in names.split())

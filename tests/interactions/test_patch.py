"""JSON Patch and FHIRPath Patch: our tables, the official cases, and what holds for every patch."""

from __future__ import annotations

import json
import os
from copy import deepcopy
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from fhir_server.errors import FhirError, TooLarge
from fhir_server.interactions.json_patch import patched
from fhir_server.interactions.json_tree import same
from fhir_server.interactions.patch import apply_fhirpath_patch, apply_json_patch
from fhir_server.model.fhirpath import compile
from fhir_server.model.xml import from_xml

HERE = Path(__file__).parent
JSON_CASES = yaml.safe_load((HERE / "json_patch_cases.yaml").read_text())
PATH_TABLE = yaml.safe_load((HERE / "fhirpath_patch_cases.yaml").read_text())
FOLDER = os.environ.get("FHIR_SPEC_DATA")
NO_FOLDER = pytest.mark.skip(reason="FHIR_SPEC_DATA names no folder with the official cases")

PATIENT = {
    "resourceType": "Patient",
    "id": "p",
    "name": [{"family": "陈", "given": ["小红", "Xiaohong"]}],
    "active": True,
}


def _refused(case: dict[str, Any], run: Any) -> None:
    with pytest.raises(FhirError) as caught:
        run()
    assert caught.value.status == case["status"]
    assert case["message"] in caught.value.diagnostics


@pytest.mark.parametrize("case", JSON_CASES, ids=lambda case: case["name"])
def test_json_patch(case: dict[str, Any]) -> None:
    before = deepcopy(PATIENT)
    if "status" in case:
        _refused(case, lambda: apply_json_patch(before, case["patch"]))
    else:
        assert apply_json_patch(before, case["patch"]) == case["gives"]
    assert before == PATIENT


def test_numbers_are_equal_by_value() -> None:
    resource = {"resourceType": "Observation", "valueQuantity": {"value": Decimal("1.00")}}
    assert apply_json_patch(resource, [{"op": "test", "path": "/valueQuantity/value", "value": 1}]) == resource


def test_what_is_added_is_not_shared_with_the_patch() -> None:
    name = {"text": "x"}
    patch = [{"op": "add", "path": "/name/-", "value": name}, {"op": "replace", "path": "/name/1/text", "value": "y"}]
    assert apply_json_patch(PATIENT, patch)["name"][1] == {"text": "y"}
    assert name == {"text": "x"}


@pytest.mark.parametrize("path", ["/name/-", "/name/0/x"])
def test_copies_of_copies_end(path: str) -> None:
    doubling = [{"op": "copy", "from": "/name", "path": path}] * 60
    with pytest.raises(TooLarge):
        apply_json_patch(PATIENT, doubling)


def _json_official() -> list[Any]:
    if FOLDER is None:
        return [pytest.param({}, marks=NO_FOLDER)]
    cases = json.loads((Path(FOLDER) / "spec" / "json-patch-tests.json").read_text())
    return [pytest.param(case, id=case["comment"]) for case in cases]


@pytest.mark.parametrize("case", _json_official())
def test_official_json_patch(case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(FhirError) as caught:
            patched(deepcopy(case["doc"]), case["patch"])
        assert caught.value.status == 422
    else:
        assert patched(deepcopy(case["doc"]), case["patch"]) == case["expected"]


def _part(name: str, content: Any) -> dict[str, Any]:
    if name in ("index", "source", "destination"):
        return {"name": name, "valueInteger": content}
    if name == "name":
        return {"name": name, "valueString": content}
    if all(key.lstrip("_").startswith("value") and len(key.lstrip("_")) > 5 for key in content):
        return {"name": name, **content}
    return {
        "name": name,
        "part": [_part(key, value) if key != "name" else {"name": key, **value} for key, value in content.items()],
    }


def _parameters(operations: list[Any]) -> dict[str, Any]:
    return {
        "resourceType": "Parameters",
        "parameter": [
            {
                "name": "operation",
                "part": [
                    {"name": "type", "valueCode": kind},
                    {"name": "path", "valueString": path},
                    *(_part(name, content) for name, content in parts.items()),
                ],
            }
            for kind, path, parts in operations
        ],
    }


@pytest.mark.parametrize("case", PATH_TABLE["cases"], ids=lambda case: case["name"])
def test_fhirpath_patch(case: dict[str, Any]) -> None:
    resource = PATH_TABLE["resources"][case["to"]]
    before, parameters = deepcopy(resource), _parameters(case["patch"])
    unchanged = deepcopy(parameters)
    if "status" in case:
        _refused(case, lambda: apply_fhirpath_patch(resource, parameters))
    else:
        assert compile(case["then"])(apply_fhirpath_patch(resource, parameters)) == case["is"]
    assert resource == before
    assert parameters == unchanged


@pytest.mark.parametrize(
    "parameters",
    [
        {"resourceType": "Patient"},
        {"resourceType": "Parameters", "parameter": [{"name": "op"}]},
        {"resourceType": "Parameters", "parameter": [{"name": "operation"}]},
        {"resourceType": "Parameters", "parameter": [{"name": "operation", "part": ["type"]}]},
        {"resourceType": "Parameters", "parameter": ["operation"]},
        {"resourceType": "Parameters", "parameter": {"name": "operation"}},
    ],
)
def test_parameters_that_are_no_patch(parameters: dict[str, Any]) -> None:
    with pytest.raises(FhirError) as caught:
        apply_fhirpath_patch(PATIENT, parameters)
    assert caught.value.status == 400


def _fhirpath_official() -> list[Any]:
    if FOLDER is None:
        return [pytest.param(None, marks=NO_FOLDER)]
    tree = etree.parse(Path(FOLDER) / "spec" / "fhir-patch-tests.xml")
    return [pytest.param(case, id=case.get("name")) for case in tree.getroot().iter("case")]


def _inside(case: Any, name: str) -> dict[str, Any]:
    (element,) = case.find(name)
    return from_xml(etree.tostring(element, with_tail=False))


@pytest.mark.parametrize("case", _fhirpath_official())
def test_official_fhirpath_patch(case: Any) -> None:
    resource, parameters = _inside(case, "input"), _inside(case, "diff")
    if case.find("error") is not None:
        with pytest.raises(FhirError) as caught:
            apply_fhirpath_patch(resource, parameters)
        assert caught.value.status == 422
    else:
        assert same(apply_fhirpath_patch(resource, parameters), _inside(case, "output"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab/~", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab/~", max_size=2), inner, max_size=3),
    max_leaves=12,
)


def _difference(one: Any, other: Any, pointer: str = "") -> list[dict[str, Any]]:
    """Operations that make `other` of `one`."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = []
        for key in one.keys() | other.keys():
            path = pointer + "/" + key.replace("~", "~0").replace("/", "~1")
            if key not in other:
                found.append({"op": "remove", "path": path})
            elif key not in one:
                found.append({"op": "add", "path": path, "value": other[key]})
            else:
                found += _difference(one[key], other[key], path)
        return found
    if isinstance(one, list) and isinstance(other, list):
        found = [{"op": "remove", "path": f"{pointer}/0"} for _ in one]
        return found + [{"op": "add", "path": f"{pointer}/-", "value": value} for value in other]
    return [] if same(one, other) else [{"op": "replace", "path": pointer, "value": other}]


@given(json_values, json_values)
def test_a_difference_applied_gives_the_other_and_its_inverse_gives_it_back(one: Any, other: Any) -> None:
    forwards = patched(deepcopy(one), _difference(one, other))
    assert same(forwards, other)
    assert same(patched(forwards, _difference(other, one)), one)

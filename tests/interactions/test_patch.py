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
from hypothesis import given, settings
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


@pytest.mark.parametrize("text", ["1" + " + 1" * 5000, "Patient.name" + " | Patient.name" * 500])
def test_a_long_row_of_operators_is_the_senders_fault(text: str) -> None:
    parts = [{"name": "type", "valueCode": "delete"}, {"name": "path", "valueString": text}]
    with pytest.raises(FhirError) as caught:
        apply_fhirpath_patch(
            PATIENT, {"resourceType": "Parameters", "parameter": [{"name": "operation", "part": parts}]}
        )
    assert caught.value.status == 400


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


pointers = st.sampled_from(
    ["", "/", "/name", "/name/0", "/name/0/given", "/name/0/given/-", "/name/9", "/id", "/x/y", "name", "/~"]
)
json_operations = st.fixed_dictionaries(
    {
        "op": st.sampled_from(["add", "remove", "replace", "move", "copy", "test", "x", 1, None]),
        "path": pointers | json_values,
    },
    optional={"value": json_values, "from": pointers},
)


@given(st.lists(json_operations | json_values, max_size=4))
def test_any_json_patch_gives_a_patient_or_a_failure_of_its_own(patch: list[Any]) -> None:
    before = deepcopy(PATIENT)
    try:
        after = apply_json_patch(before, patch)
    except FhirError:
        pass
    else:
        assert (after["resourceType"], after["id"]) == ("Patient", "p")
    assert before == PATIENT


paths = st.sampled_from(
    [
        "Patient",
        "Patient.name",
        "Patient.name[0]",
        "Patient.name[0].given",
        "Patient.name.given[1]",
        "Patient.birthDate",
        "Patient.id",
        "Patient.birthDate.extension",
        "Patient.birthDate.extension[0].value",
        "Patient.active",
        "Patient.gender",
        "Patient.deceased",
        "Patient.name.first().given.last()",
        "Patient.descendants()",
        "Patient.children().first()",
        "%resource",
        "1",
        "{}",
        "Observation",
        "Patient.name.where(use = 'official').given.first()",
        "Patient.meta",
        "Patient.name[1].text.id",
    ]
)
parts = st.fixed_dictionaries(
    {"name": st.sampled_from(["type", "path", "name", "value", "index", "source", "destination", "gender", 7])},
    optional={
        "valueString": paths | json_values,
        "valueCode": st.sampled_from(["add", "insert", "delete", "replace", "move"]),
        "valueInteger": st.integers(-1, 3) | json_values,
        "valueHumanName": st.just({"text": "N"}),
        "_valueDate": st.just({"id": "x"}) | json_values,
        "resource": json_values,
        "part": json_values,
    },
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "insert", "delete", "replace", "move"]),
            paths,
            st.lists(parts | json_values, max_size=4),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_fhirpath_patch_gives_a_patient_or_a_failure_of_its_own(operations: list[Any]) -> None:
    patient = PATH_TABLE["resources"]["patient"]
    before = deepcopy(patient)
    parameters = {
        "resourceType": "Parameters",
        "parameter": [
            {
                "name": "operation",
                "part": [{"name": "type", "valueCode": kind}, {"name": "path", "valueString": path}, *more],
            }
            for kind, path, more in operations
        ],
    }
    try:
        after = apply_fhirpath_patch(patient, parameters)
    except FhirError:
        pass
    else:
        assert (after["resourceType"], after["id"]) == ("Patient", "p")
    assert patient == before


PLACES = [
    "Patient.active",
    "Patient.birthDate",
    "Patient.name[0]",
    "Patient.name[1]",
    "Patient.name[0].given[0]",
    "Patient.name[0].given[1]",
    "Patient.name[1].text",
    "Patient.birthDate.extension[0]",
    "Patient.birthDate.extension[0].value",
    "Patient.name[0].family",
]


@pytest.mark.parametrize("path", PLACES)
def test_a_deleted_place_is_one_less(path: str) -> None:
    patient = PATH_TABLE["resources"]["patient"]
    base = path.removesuffix("]").rsplit("[", 1)[0] if path.endswith("]") else path
    count = compile(f"{base}.count()", "Patient")
    after = apply_fhirpath_patch(patient, _parameters([["delete", path, {}]]))
    assert count(after) == [count(patient)[0] - 1]


@pytest.mark.parametrize("source", [0, 1, 2, 3])
@pytest.mark.parametrize("destination", [0, 1, 2, 3])
def test_a_move_and_its_inverse_leave_the_list_as_it_was(source: int, destination: int) -> None:
    patient = {"resourceType": "Patient", "id": "p", "telecom": [{"value": str(number)} for number in range(4)]}
    there = {"source": source, "destination": destination}
    back = {"source": destination, "destination": source}
    moved = apply_fhirpath_patch(patient, _parameters([["move", "Patient.telecom", there]]))
    assert moved["telecom"][destination] == {"value": str(source)}
    assert apply_fhirpath_patch(moved, _parameters([["move", "Patient.telecom", back]])) == patient

"""The tables in cases/: resource → the errors it has, by code and FHIRPath expression."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import pytest

from fhir_server.validation import Validator
from fhir_server.validation.primitives import ACCEPTS
from tests.validation.validation_tables import SMALLEST, Row, check, errors, table


def compare(row: Row) -> None:
    found = errors(row["resource"])
    if "issues" in row:
        assert found == Counter((code, expression) for code, expression in row["issues"])
    else:
        for expression, code in row["issues_at"].items():
            assert found[(code, expression)]
    if "says" in row:
        assert any(row["says"] in i.diagnostics for i in check(row["resource"]) if i.is_error)


TABLES = ("elements", "choices", "siblings", "bindings", "contained", "extensions")


@pytest.mark.parametrize("row", [pytest.param(r, id=f"{t}: {r['name']}") for t in TABLES for r in table(t)])
def test_row(row: Row) -> None:
    compare(row)


@pytest.mark.parametrize(
    "row",
    [
        {"resource": {"resourceType": "Patient", "gender": "x"}, "issues": []},
        {"resource": {"resourceType": "Patient"}, "issues": [["value", "Patient.gender"]]},
        {"resource": {"resourceType": "Patient", "gender": "x"}, "issues": [["code-invalid", "Patient"]]},
        {"resource": {"resourceType": "Patient", "gender": "x"}, "issues_at": {"Patient.gender": "value"}},
        {
            "resource": {"resourceType": "Patient", "gender": "x"},
            "issues": [["code-invalid", "Patient.gender"]],
            "says": "nonsense",
        },
    ],
)
def test_a_wrong_row_fails(row: Row) -> None:
    with pytest.raises(AssertionError):
        compare(row)


def extended(type_name: str, value: Any) -> Row:
    key = "value" + type_name[0].upper() + type_name[1:]
    return {"resourceType": "Patient", "extension": [{"url": "http://x", key: value}]}


PRIMITIVES = table("primitives")
RIGHT = [(row["type"], value) for row in PRIMITIVES for value in row["right"]]
WRONG = [(row["type"], value) for row in PRIMITIVES for value in row["wrong"]]


@pytest.mark.parametrize(("type_name", "value"), RIGHT)
def test_right_primitive(type_name: str, value: Any) -> None:
    assert errors(extended(type_name, value)) == Counter()


@pytest.mark.parametrize(("type_name", "value"), WRONG)
def test_wrong_primitive(type_name: str, value: Any) -> None:
    found = errors(extended(type_name, value))
    assert found in (
        Counter([("value", "Patient.extension[0].value")]),
        Counter([("structure", "Patient.extension[0].value")]),
    )


def test_every_primitive_type_has_rows() -> None:
    assert {row["type"] for row in PRIMITIVES} == ACCEPTS.keys() - {"xhtml"}


def test_a_long_text_is_refused_by_its_length() -> None:
    assert errors(extended("string", "a" * 1024 * 1024)) == Counter()
    assert errors(extended("string", "a" * (1024 * 1024 + 1))) == Counter([("too-long", "Patient.extension[0].value")])


@pytest.mark.parametrize("row", table("references"), ids=lambda row: json.dumps(row["reference"]))
def test_reference(row: Row) -> None:
    value = {"resourceType": "Observation", "status": "final", "code": {"text": "a"}, "subject": row["reference"]}
    compare({**row, "resource": value})


@pytest.mark.parametrize("row", table("narrative"), ids=lambda row: row.get("inside") or row.get("div") or "empty")
def test_narrative(row: Row) -> None:
    div = row.get("div") or f'<div xmlns="http://www.w3.org/1999/xhtml">{row["inside"]}</div>'
    found = check({"resourceType": "Patient", "text": {"status": "generated", "div": div}})
    assert [(i.code, i.expression[0]) for i in found] == [("invariant", "Patient.text.div")] * row["issues"]
    assert row.get("says", "") in " ".join(i.diagnostics for i in found)


@pytest.mark.parametrize("row", table("invariants"), ids=lambda row: f"{row['key']} {row['type']}")
def test_invariant(row: Row) -> None:
    severity, smallest = row.get("severity", "error"), SMALLEST.get(row["type"], {})
    right = check({"resourceType": row["type"], **smallest, **row["right"]})
    wrong = check({"resourceType": row["type"], **smallest, **row["wrong"]})
    assert [i.diagnostics for i in right if i.is_error or f"({row['key']})" in i.diagnostics] == []
    broken = [i for i in wrong if f"({row['key']})" in i.diagnostics]
    assert [(i.severity, i.code, i.expression[0]) for i in broken] == [
        (severity, "invariant", row.get("at", row["type"]))
    ]
    assert [i for i in wrong if i.is_error and i not in broken] == [] or row["key"] == "ait-1"


def test_another_type_than_the_url_names() -> None:
    issues = Validator().check({"resourceType": "Patient"}, resource_type="Observation")
    assert [(i.severity, i.code) for i in issues] == [("error", "invalid")]


def test_a_deletion_is_not_looked_at() -> None:
    assert Validator().check({"resourceType": "Nonsense"}, mode="delete") == []


@pytest.mark.parametrize("value", [[], "Patient", None, 7, {}])
def test_no_resource_at_all(value: Any) -> None:
    assert [i.severity for i in Validator().check(value)] == ["error"]


def test_a_flood_of_issues_is_cut() -> None:
    issues = check({"resourceType": "Patient", "name": [{f"x{i}": 1} for i in range(2000)]})
    assert len(issues) == 1001
    assert issues[-1].severity == "information"
    assert sum("did you mean" in issue.diagnostics for issue in issues) <= 50


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": [0] * 300_000},
        {"name": [{}] * 300_000},
        {"name": [{"given": [0] * 300_000}]},
        {"name": [{"given": ["a"] * 100_000, "_given": [{"id": ""}] * 100_000}]},
        {f"x{number}": 1 for number in range(100_000)},
    ],
    ids=["numbers", "empty objects", "primitives", "siblings", "unknown elements"],
)
def test_a_flood_of_wrong_items_costs_little(wrong: dict[str, Any]) -> None:
    """Judging each took some 8 µs: a body of 64 MB, four minutes in which nobody else was answered."""
    started = time.process_time()
    issues = check({"resourceType": "Patient", **wrong})
    assert len(issues) == 1001 and issues[0].is_error
    assert time.process_time() - started < 0.4


def test_nulls_in_any_number_hide_no_error() -> None:
    name = {
        "given": [*[None] * 3000, 7],
        "_given": [*[{"extension": [{"url": "http://x/y", "valueCode": "a"}]}] * 3000, None],
    }
    issues = check({"resourceType": "Patient", "name": [name]})
    assert [issue.expression for issue in issues if issue.is_error] == [("Patient.name[0].given[3000]",)]


def test_warnings_push_no_error_out() -> None:
    entries = [{"resource": {"resourceType": "Basic", "code": {"text": "a"}}} for _ in range(1500)]
    entries.append({"resource": {"resourceType": "Basic"}})
    issues = check({"resourceType": "Bundle", "type": "collection", "entry": entries})
    assert [issue.expression for issue in issues if issue.is_error] == [("Bundle.entry[1500].resource",)]

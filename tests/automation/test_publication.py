"""What may be published as a rule, and what is only said about a draft."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from fhir_server.automation import content
from fhir_server.automation.definitions import Definitions
from fhir_server.automation.publication import check
from fhir_server.automation.rulebook import Rulebook
from fhir_server.model.resource import Resource

CQL: dict[str, Any] = {
    "resourceType": "PlanDefinition",
    "id": "cql",
    "url": "https://example.org/PlanDefinition/cql",
    "version": "1",
    "status": "active",
    "type": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/plan-definition-type", "code": "eca-rule"}]},
    "action": [
        {
            "trigger": [{"type": "data-added", "data": [{"type": "Observation"}]}],
            "condition": [{"kind": "applicability", "expression": {"language": "text/cql", "expression": "x"}}],
        }
    ],
}


def test_an_active_rule_that_does_not_compile_is_refused_and_a_draft_is_only_told() -> None:
    refused = check(CQL, Definitions())
    assert any(issue.is_error for issue in refused)
    told = check({**CQL, "status": "draft"}, Definitions())
    assert [issue.diagnostics for issue in told] == [issue.diagnostics for issue in refused]
    assert not any(issue.is_error for issue in told)


def test_a_version_never_says_two_things() -> None:
    known = Definitions([{**CQL, "status": "draft"}])
    assert not any(issue.is_error for issue in check({**CQL, "status": "retired"}, known))
    changed = check({**CQL, "status": "draft", "title": "Another"}, known)
    assert [issue.code for issue in changed if issue.is_error] == ["business-rule"]


def test_other_resources_are_none_of_its_business() -> None:
    assert check({"resourceType": "Patient"}, Definitions()) == []


KNOWN = content.definitions()
CRITICAL = "https://fhir-server.org/fhir/Library/critical-limits"
FIB_4 = "https://fhir-server.org/fhir/Library/fib-4"


def published(url: str, version: str) -> Resource:
    found = KNOWN.find(url)
    assert found is not None
    return {**deepcopy(found), "version": version}


def errors(resource: Resource) -> list[str]:
    return [issue.diagnostics for issue in check(resource, KNOWN) if issue.is_error]


def test_a_laboratory_sets_its_own_critical_limits_without_touching_the_rule() -> None:
    limits = published(CRITICAL, "1.1.0")
    high = next(one for one in limits["extension"] if one["extension"][0]["valueCode"] == "k_high")
    high["extension"][1]["valueDecimal"] = 7
    assert errors(limits) == []
    book = Rulebook(KNOWN.with_(limits))
    assert book.broken == {}
    rule = book.by_url["https://fhir-server.org/fhir/PlanDefinition/critical-values"]
    assert rule.parameters["k_high"] == 7


def test_only_the_same_first_number_stands_in_and_nothing_older() -> None:
    assert Definitions([published(CRITICAL, "2.0.0")]).find(f"{CRITICAL}|1.0.0") is None
    assert Definitions([published(CRITICAL, "1.0.0")]).find(f"{CRITICAL}|1.1.0") is None
    both = Definitions([published(CRITICAL, "1.2.0"), published(CRITICAL, "1.10.0")])
    for asked, given in (("1.2.0", "1.2.0"), ("1.3.0", "1.10.0"), ("1.0.0", "1.10.0")):
        assert (both.find(f"{CRITICAL}|{asked}") or {})["version"] == given


def test_what_would_stop_a_running_rule_is_refused_and_the_rule_is_named() -> None:
    for version, change in (("2.0.0", {}), ("1.1.0", {"extension": []})):
        refused = errors({**published(CRITICAL, version), **change})
        assert any("it would stop the rule" in why and "critical-values" in why for why in refused)
    fact: Resource = {"url": "https://fhir-server.org/fhir/StructureDefinition/fact", "extension": [
        {"url": "name", "valueCode": "ast"}, {"url": "aggregate", "valueCode": "median"}]}  # fmt: skip
    library = {**published(FIB_4, "1.1.0"), "dataRequirement": [{"type": "Observation", "extension": [fact]}]}
    (why,) = errors(library)
    assert why.startswith("Library.dataRequirement[0]: the aggregate 'median' is none of")


def test_a_library_that_cannot_be_read_is_refused_and_stops_no_server() -> None:
    library = published(FIB_4, "1.1.0")
    score = next(one for one in library["extension"] if one["url"].endswith("/score"))
    score["extension"] = [one for one in score["extension"] if one["url"] != "unit"]
    assert any("cannot be read: KeyError 'unit'" in why for why in errors(library))
    book = Rulebook(KNOWN.with_(library))
    assert set(book.broken) == {FIB_4, "https://fhir-server.org/fhir/PlanDefinition/assess-fib-4"}
    assert "pce-2013" in book.scores


@pytest.mark.parametrize(
    "action",
    [
        {"extension": [{"url": "https://fhir-server.org/fhir/StructureDefinition/tag", "valueString": "x"}]},
        {"extension": [{"url": "https://fhir-server.org/fhir/StructureDefinition/recency", "valueString": "a week"}]},
        {"extension": [{"url": "https://fhir-server.org/fhir/StructureDefinition/anchor", "valueInteger": 1}]},
        {"extension": [{"url": "https://fhir-server.org/fhir/StructureDefinition/assess", "valueCode": "pce-2013"}]},
        {"input": [{"type": "Observation", "codeFilter": [{"path": "code", "code": [{"system": "x"}]}],
            "extension": [{"url": "https://fhir-server.org/fhir/StructureDefinition/fact", "extension": [
                {"url": "name", "valueCode": "x"}]}]}]},
        {"input": [{"type": "Observation", "extension": [
            {"url": "https://fhir-server.org/fhir/StructureDefinition/fact", "valueString": "x"}]}]},
        {"condition": [{"kind": "applicability"}]},
        {"timingDuration": {"unit": "d"}},
        {"relatedAction": [{"actionId": "nobody", "relationship": "after-start", "offsetRange": {}}]},
    ],
)  # fmt: skip
def test_any_extension_that_is_not_as_it_should_be_is_a_reason_not_an_exception(action: dict[str, Any]) -> None:
    whole = {**CQL["action"][0], "condition": [], **action}
    assert any(issue.is_error for issue in check({**CQL, "action": [whole]}, Definitions()))

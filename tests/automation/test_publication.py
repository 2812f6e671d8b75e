"""What may be published as a rule, and what is only said about a draft."""

from __future__ import annotations

from typing import Any

from fhir_server.automation.definitions import Definitions
from fhir_server.automation.publication import check

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

"""The checks of a write, one after the other."""

from __future__ import annotations

from typing import Any

from fhir_server.errors import Issue
from fhir_server.validation import CHECKS, Validator


def test_a_check_of_ones_own_sees_only_what_has_the_right_structure() -> None:
    """It may rely on `action` being a list of objects: a resource that is broken is told so, and is not a failure of ours."""
    seen: list[str] = []

    def titles(resource: dict[str, Any], mode: str) -> list[Issue]:
        seen.extend(action.get("title", "") for action in resource.get("action", ()))
        return [Issue("error", "business-rule", "No.")]

    validator = Validator((*CHECKS, ("titles", titles), ("again", titles)))
    plan: dict[str, Any] = {"resourceType": "PlanDefinition", "status": "draft"}
    broken = validator.check({**plan, "action": ["x"]})
    assert seen == []
    assert [issue.expression for issue in broken if issue.is_error] == [("PlanDefinition.action[0]",)]
    refused = validator.check({**plan, "action": [{"title": "a"}]})
    assert seen == ["a", "a"]  # what one of them says does not keep the next from being asked
    assert sum(issue.code == "business-rule" for issue in refused) == 2

"""Is it right? Every check walks a resource in memory and returns all the issues it finds. https://hl7.org/fhir/R4/validation.html"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fhir_server.errors import Issue
from fhir_server.validation import structure
from fhir_server.validation.problems import Scope

Resource = dict[str, Any]
Checker = Callable[[Resource, str], list[Issue]]


def _structure(resource: Resource, _mode: str) -> list[Issue]:
    problems = structure.resource(resource, Scope(resource))
    if problems is None:
        return []
    root = str(resource.get("resourceType", "")) if isinstance(resource, dict) else ""
    return [problem.issue(root) for problem in problems]


# In order: (name, resource and mode → issues). One row for each kind of check that runs on every write. The first judges
# the structure; the others are asked only where that is right.
CHECKS: Final[tuple[tuple[str, Checker], ...]] = (("structure", _structure),)


MOST_ISSUES: Final = 1000  # in one answer; whoever sent a million of them reads no further


class Validator:
    """What every write asks. Profiles are judged on request only: `validation.profile`."""

    def __init__(self, checks: tuple[tuple[str, Checker], ...] = CHECKS) -> None:
        self.checks = checks

    def check(self, resource: Resource, *, resource_type: str | None = None, mode: str = "create") -> list[Issue]:
        """All issues; empty when nothing is to be said. Issues below "error" do not stop a write.

        `resource_type`: what the URL names. `mode`: create | update | delete, as in $validate; a deletion is not looked at.
        """
        if mode == "delete":
            return []
        found = resource.get("resourceType") if isinstance(resource, dict) else None
        if resource_type is not None and isinstance(found, str) and found != resource_type:
            text = f"The resource is a {found}, but this place takes {resource_type}"
            return [Issue("error", "invalid", text, ("resourceType",))]
        (_, structural), *others = self.checks
        issues = structural(resource, mode)
        if not any(issue.is_error for issue in issues):  # the others read a resource whose structure is right
            for _name, check in others:
                issues += check(resource, mode)
        if len(issues) > MOST_ISSUES:
            more = len(issues) - MOST_ISSUES
            issues.sort(key=lambda issue: not issue.is_error)  # no warning may push an error out
            return [*issues[:MOST_ISSUES], Issue("information", "informational", f"And {more} issues more")]
        return issues


__all__ = ["CHECKS", "Checker", "Validator"]

"""What may be published as a rule: it compiles, and no version ever says two things.

An old version is never overwritten, because what it did still names it (hooks: versions).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fhir_server.automation.definitions import Definitions, Wrong, version_key
from fhir_server.automation.plans import UNREADABLE
from fhir_server.automation.plans import check as check_plan
from fhir_server.automation.risk.specification import specification
from fhir_server.automation.vocabulary import canonical, extension
from fhir_server.errors import Issue
from fhir_server.model.resource import Resource

DEFINITIONS = ("PlanDefinition", "ActivityDefinition", "Library", "ValueSet")


def check(resource: Resource, definitions: Definitions) -> list[Issue]:
    """For the validator. A draft is not run, so that what keeps it from running is only a warning."""
    if resource.get("resourceType") not in DEFINITIONS:
        return []
    if resource["resourceType"] != "PlanDefinition":
        return [
            *_overwritten(resource, definitions),
            *_unreadable(resource, definitions),
            *_stopped(resource, definitions),
        ]
    reasons = check_plan(resource, definitions)
    if resource.get("status") != "active":
        reasons = [replace(issue, severity="warning") if issue.is_error else issue for issue in reasons]
    return [*_overwritten(resource, definitions), *reasons]


def _unreadable(resource: Resource, definitions: Definitions) -> list[Issue]:
    """Why a Library cannot be read for its facts or as a score: then no rule could, and no server would start with it."""
    if resource["resourceType"] != "Library":
        return []
    try:
        definitions.parameters(resource)
        definitions.facts(resource.get("dataRequirement", ()), "Library.dataRequirement")
        if extension(resource, "score") is not None:
            specification(resource)
    except Wrong as wrong:
        return [Issue("error", "processing", str(wrong), (wrong.where,))]
    except UNREADABLE as error:
        text = f"this Library cannot be read: {type(error).__name__} {error}"
        return [Issue("error", "processing", text, ("Library",))]
    return []


def _stopped(resource: Resource, definitions: Definitions) -> list[Issue]:
    """The rules that run now and would not with this: they are content in use, and nobody would notice until it matters."""
    url = str(resource.get("url", ""))
    after = definitions.with_(resource)
    issues = []
    for plan in definitions.all("PlanDefinition"):
        if plan.get("status") != "active" or not _uses(plan, url, definitions) or check_plan(plan, definitions):
            continue
        for issue in check_plan(plan, after)[:1]:  # the others mostly follow from it
            text = f"it would stop the rule {canonical(plan)}: {issue.diagnostics}"
            issues.append(Issue("error", "business-rule", text, (str(resource["resourceType"]),)))
    return issues


def _uses(plan: Resource, url: str, definitions: Definitions) -> bool:
    """Whether the rule names `url`, or a Library of its does, or it may be the Library of a score."""
    libraries = (definitions.find(str(one)) for one in plan.get("library", ()))
    texts = [str(plan), *(str(library) for library in libraries if library is not None)]
    return any(url in text for text in texts) or url.rpartition("/")[2] in texts[0]


def _overwritten(resource: Resource, definitions: Definitions) -> list[Issue]:
    """A version says the same for ever: what it did still names it. Only its status and metadata may change."""
    if "url" not in resource or "version" not in resource:
        return []
    url, version = str(resource["url"]), str(resource["version"])
    known = definitions.find(url, str(resource["resourceType"]))
    if known is not None and known.get("id") == resource.get("id"):
        newest = str(known.get("version", ""))
        if version_key(version) < version_key(newest):
            text = f"{url} is at version {newest}; {version} would go back. Publish what you want to have again as a new version"
            return [Issue("error", "business-rule", text, (f"{resource['resourceType']}.version",))]
    known = definitions.exactly(url, version)
    if known is None or known.get("id") != resource.get("id") or _substance(known) == _substance(resource):
        return []
    text = f"{url} version {version} exists and says something else; give what you changed a new version"
    return [Issue("error", "business-rule", text, (f"{resource['resourceType']}.version",))]


def _substance(resource: Resource) -> dict[str, Any]:
    apart = ("meta", "text", "status", "date", "publisher", "contact", "approvalDate", "lastReviewDate", "experimental")
    return {key: value for key, value in resource.items() if key not in apart}

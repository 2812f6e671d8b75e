"""$validate: would this be taken? https://hl7.org/fhir/R4/resource-operation-validate.html"""

from __future__ import annotations

from collections.abc import Iterator

from fhir_server.errors import BadRequest, FhirError, Issue
from fhir_server.interactions import read, write
from fhir_server.interactions.call import Answer, Call
from fhir_server.interactions.context import Context, Server
from fhir_server.interactions.search import find_matches
from fhir_server.model import definitions
from fhir_server.model.resource import Resource, load

R4 = "http://hl7.org/fhir/StructureDefinition/"
MOST_PROFILES = 50  # looked up for one judgement
MODES = ("create", "update", "delete", "profile")


async def validate(server: Server, context: Context, call: Call) -> Answer:
    """A resource as the body (or in Parameters), or a stored instance. The answer is 200 whatever the verdict.

    `mode`: create | update | delete | profile; `profile`: canonicals to judge by. Errors in the outcome mean no.
    """
    before = call.path[: call.path.index("$validate")]
    resource, mode, profiles = _asked(call)
    if mode is not None and mode not in MODES:
        raise BadRequest(f"mode must be one of {', '.join(MODES)}, not {mode[:40]!r}")
    current: Resource | None = None
    if len(before) == 2:
        stored = await read.read(server, context, before[0], before[1])
        current = load(stored.raw)
    if resource is None:
        if mode == "delete" and current is not None:
            return Answer(200, issues=[Issue("information", "informational", "The resource can be deleted")])
        if current is None:
            raise BadRequest("$validate needs a resource, or the id of a stored one")
        resource = current
    issues = [] if mode == "delete" else server.validator.check(resource, mode=mode or "create")
    if resource.get("resourceType") != before[0]:
        issues.append(Issue("error", "invalid", f"The resource is not a {before[0]}", ("resourceType",)))
    if mode == "profile" and not profiles:
        raise BadRequest("mode=profile needs a profile to judge by")
    if mode == "update":
        try:
            write.check_body_id(resource, before[1] if len(before) > 1 else str(resource.get("id", "")))
        except FhirError as error:
            issues.extend(error.issues)
    if mode == "create" and current is None and "id" in resource:
        issues.append(
            Issue("information", "informational", "A create gives the resource a new id", (f"{before[0]}.id",))
        )
    if not any(issue.is_error for issue in issues):
        for profile in profiles:
            if (name := profile.partition("|")[0].removeprefix(R4)) in definitions.RESOURCE_TYPES:
                if name != resource.get("resourceType"):
                    issues.append(Issue("error", "structure", f"The resource is not a {name}", ("resourceType",)))
                continue
            issues.extend(_judged(resource, profile, await _known(server, context, profile)))
    return Answer(200, issues=issues)


def _asked(call: Call) -> tuple[Resource | None, str | None, list[str]]:
    mode, profiles = call.first("mode"), [value for name, value in call.query if name == "profile"]
    resource = call.resource
    if resource is not None and resource.get("resourceType") == "Parameters" and call.path[0] != "Parameters":
        parts = [part for part in resource.get("parameter", ()) if isinstance(part, dict)]
        resource = None
        for part in parts:
            if part.get("name") == "resource":
                resource = part.get("resource")
            elif part.get("name") == "mode":
                mode = str(part.get("valueCode", part.get("valueString")))
            elif part.get("name") == "profile":
                profiles.append(str(part.get("valueUri", part.get("valueCanonical"))))
        if resource is not None and not isinstance(resource, dict):
            raise BadRequest("The parameter 'resource' must hold a resource", expression=["Parameters.parameter"])
    return resource, mode, profiles


def _judged(resource: Resource, profile: str, known: dict[str, Resource]) -> list[Issue]:
    from fhir_server.validation.profile import check_profile  # noqa: PLC0415

    try:
        return check_profile(resource, known[profile], lambda url: known.get(url) or known.get(url.partition("|")[0]))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        # Stored profiles are right in their elements, not in all that elements say (paths, numbers as texts).
        raise BadRequest(f"The profile {profile[:200]!r} cannot be read: {error}") from None


async def _known(server: Server, context: Context, profile: str) -> dict[str, Resource]:
    """The profile, and those stored here that it builds on or refers to, by canonical URL. Raises BadRequest."""
    found = await _definition(server, context, profile)
    if found is None:
        raise BadRequest(f"The profile {profile[:200]!r} is not known here; store its StructureDefinition first")
    known, wanted = {profile: found}, list(_canonicals(found))
    while wanted and len(known) < MOST_PROFILES:
        url = wanted.pop()
        if url not in known and (definition := await _definition(server, context, url)) is not None:
            known[url] = definition
            wanted.extend(_canonicals(definition))
    return known


def _canonicals(structure: Resource) -> Iterator[str]:
    """Of the base, and of the profiles that types of its elements name."""
    if isinstance(base := structure.get("baseDefinition"), str):
        yield base
    for view in ("snapshot", "differential"):
        for element in structure.get(view, {}).get("element", ()):
            for kind in element.get("type", ()):
                yield from kind.get("profile", ())


async def _definition(server: Server, context: Context, profile: str) -> Resource | None:
    """A StructureDefinition that is stored here, or one that R4 brings."""
    url, _, version = profile.partition("|")
    if url.removeprefix(R4) in definitions.RESOURCE_TYPES:
        return None  # what R4 itself says is judged already
    criteria = [("url", url), *([("version", version)] if version else [])]
    found = await find_matches(server, context, "search", "StructureDefinition", criteria, 1)
    return load(found[0].raw) if found else definitions.profile(profile)

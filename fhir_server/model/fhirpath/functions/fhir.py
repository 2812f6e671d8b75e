"""What FHIR adds to FHIRPath. https://hl7.org/fhir/R4/fhirpath.html#functions"""

from __future__ import annotations

import re
from typing import Any, Final

from fhir_server.model.definitions import RESOURCE_TYPES
from fhir_server.model.fhirpath.compiled import Compiled, Invocation, decided
from fhir_server.model.fhirpath.failure import FhirPathError
from fhir_server.model.fhirpath.functions.table import Table
from fhir_server.model.fhirpath.steps import is_a, member
from fhir_server.model.fhirpath.values import (
    NOTHING,
    Frame,
    Item,
    Items,
    Run,
    item,
    plain,
    single,
    system,
    text,
)

FHIR = Table()
_TYPE_IN_URL: Final = re.compile(
    r"(?:^|/)([A-Z][A-Za-z]+)/[A-Za-z0-9.-]{1,64}(?:/_history/[A-Za-z0-9.-]{1,64})?(?:#.*)?$"
)
_STRUCTURE: Final = "http://hl7.org/fhir/StructureDefinition/"


@FHIR.compiled("extension", 1)
def extension(call: Invocation) -> Compiled:
    source = member(call.target, "extension", frozenset({"Extension"})).collect
    url = call.required(0).collect

    def collect(frame: Frame) -> Items:
        found = source(frame)
        if not found:
            return NOTHING
        wanted = text(url(frame), "The argument of extension()")
        return [entry for entry in found if entry[0].get("url") == wanted]

    return Compiled(collect, frozenset({"Extension"}))


@FHIR.compiled("hasExtension", 1)
def has_extension(call: Invocation) -> Compiled:
    """Not FHIRPath's own, but R4's search parameters use it."""
    source = extension(call).collect
    return decided(lambda frame: bool(source(frame)))


@FHIR.decision("htmlChecks")
def html_checks(found: Items, run: Run) -> bool | None:
    """The narrative's rules are the validator's; without a host that knows them, a div without scripts will do."""
    markup = text(found, "What htmlChecks() looks at")
    if markup is None:
        return None
    if run.host.html_checks is not None:
        return run.host.html_checks(markup)
    return markup.lstrip().startswith("<div") and "<script" not in markup.lower()


@FHIR.decision("hasValue")
def has_value(found: Items, run: Run) -> bool:
    return len(found) == 1 and found[0][0] is not None and type(found[0][0]) is not dict


@FHIR.eager("getValue")
def get_value(found: Items, run: Run) -> Items:
    return [system(found[0][0])] if has_value(found, run) else NOTHING


@FHIR.eager("resolve")
def resolve(found: Items, run: Run) -> Items:
    out: Items = []
    for entry in found:
        reference = reference_text(entry)
        resource = None if reference is None else _resolved(reference, run)
        if resource is not None:
            out.append(item(resource))
    return out


@FHIR.compiled("ofType", 1)
def of_type(call: Invocation) -> Compiled:
    return call.selected(call.call.arguments[0])


@FHIR.compiled("as", 1)
def as_(call: Invocation) -> Compiled:
    return call.selected(call.call.arguments[0])


@FHIR.compiled("is", 1)
def is_(call: Invocation) -> Compiled:
    kinds = call.compiler.types(call.call.arguments[0])
    return call.compiler.is_type(call.target, call.target_node, kinds, call.this)


@FHIR.decision("memberOf")
def member_of(found: Items, run: Run, value_set: Items) -> bool | None:
    entry, url = single(found, "What memberOf() looks at"), text(value_set, "The argument of memberOf()")
    if entry is None or url is None:
        return None
    if run.host.member_of is None:
        raise FhirPathError("memberOf() needs a terminology, which is not available here")
    return run.host.member_of(plain(entry), url)


@FHIR.decision("conformsTo")
def conforms_to(found: Items, run: Run, profile: Items) -> bool | None:
    entry, url = single(found, "What conformsTo() looks at"), text(profile, "The argument of conformsTo()")
    if entry is None or url is None:
        return None
    kind = url.removeprefix(_STRUCTURE).partition("|")[0]
    if url.startswith(_STRUCTURE) and kind in RESOURCE_TYPES | {"Resource", "DomainResource"}:
        return is_a(entry[1], kind)
    if run.host.conforms_to is None:
        raise FhirPathError(f"conformsTo() knows no profile {url!r} here")
    return run.host.conforms_to(plain(entry), url)


def reference_text(entry: Item) -> str | None:
    """The reference in a Reference, canonical or uri."""
    value = entry[0]
    if type(value) is dict:
        value = value.get("reference")
    return value if type(value) is str else None


def reference_type(entry: Item, run: Run) -> str | None:
    """The resource type a reference points at, by its own text, its `type` or the contained resource; None if unknown."""
    reference = reference_text(entry)
    if reference is not None:
        match = _TYPE_IN_URL.search(reference)
        if match is not None and match[1] in RESOURCE_TYPES:
            return match[1]
        if reference.startswith(("#", "urn:")):
            resource = _resolved(reference, run)
            if resource is not None:
                return str(resource.get("resourceType"))
    kind = entry[0].get("type") if type(entry[0]) is dict else None
    return kind if kind in RESOURCE_TYPES else None


def _resolved(reference: str, run: Run) -> dict[str, Any] | None:
    """A contained resource, an entry of the Bundle that is the root, or what the host finds."""
    for container, _, _ in (*run.resource, *run.root):
        if type(container) is not dict:
            continue
        if reference == "#":
            return container
        if reference[0:1] == "#":
            for contained in container.get("contained", ()):
                if contained.get("id") == reference[1:]:
                    return contained  # type: ignore[no-any-return]
        elif container.get("resourceType") == "Bundle":
            for entry in container.get("entry", ()):
                url = entry.get("fullUrl", "")
                if url == reference or (url.endswith("/" + reference) and "/" in reference):
                    return entry.get("resource")  # type: ignore[no-any-return]
    if reference[0:1] == "#" or run.host.resolve is None:
        return None
    found = run.host.resolve(reference)
    return found if isinstance(found, dict) else None

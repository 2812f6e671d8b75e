"""Literal references: their form, the type they name, and what `#…` points at. https://hl7.org/fhir/R4/references.html

Whether the target exists in the store is not asked here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fhir_server.model.definitions import RESOURCE_TYPES
from fhir_server.validation.problems import Problem, Problems, Scope, quote

_ID = r"[A-Za-z0-9\-.]{1,64}"
_RELATIVE = re.compile(rf"([A-Z][A-Za-z]+)/{_ID}(?:/_history/{_ID})?(?:#[^\x00-\x20]*)?").fullmatch
_ABSOLUTE_TYPE = re.compile(rf"https?://[^\x00-\x20]*?/([A-Z][A-Za-z]+)/{_ID}(?:/_history/{_ID})?").fullmatch
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:[^\x00-\x20]+").fullmatch
_URN_UUID = re.compile(r"urn:uuid:[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}").fullmatch
_URN_OID = re.compile(r"urn:oid:[0-2](?:\.(?:0|[1-9][0-9]*))+").fullmatch
_CONDITIONAL = re.compile(r"([A-Z][A-Za-z]+)\?[^\x00-\x20]+").fullmatch
_DEFINITION = "http://hl7.org/fhir/StructureDefinition/"


def check(value: dict[str, Any], targets: tuple[str, ...], scope: Scope) -> Problems | None:
    """`value` is a Reference whose elements are right; `targets` the resource types allowed (empty: any)."""
    text = value.get("reference")
    named = value.get("type")
    if text is None:
        if named is None:
            return None
        return _declared(named, None, targets)
    match = _RELATIVE(text)
    if match is not None:
        found: str | None = match[1]
        if found not in RESOURCE_TYPES:
            return [Problem(".reference", "value", f"{quote(text)} names no resource type of R4")]
    else:
        found, problem = _other(text, scope)
        if problem is not None:
            return [Problem(".reference", *problem)]
    if found is not None and targets and found not in targets:
        return [Problem(".reference", "value", f"May refer to {_either(targets)}, not to {found}")]
    return None if named is None else _declared(named, found, targets)


def _other(text: str, scope: Scope) -> tuple[str | None, tuple[str, str] | None]:
    """Anything but `Type/id` → the type named (None: not said), and what is wrong as (code, text)."""
    if text.startswith("#"):
        if text == "#":
            return scope.root.get("resourceType"), None
        found = scope.contained.get(text[1:])
        if found is None:
            return None, ("invariant", f"{quote(text)} names nothing in 'contained' (ref-1)")
        return found, None
    if text.startswith("urn:uuid:"):
        return None, None if _URN_UUID(text) else (
            "value",
            f"{quote(text)} is no UUID (urn:uuid:8-4-4-4-12 hex digits)",
        )
    if text.startswith("urn:oid:"):
        return None, None if _URN_OID(text) else ("value", f"{quote(text)} is no OID")
    absolute = _ABSOLUTE_TYPE(text)
    if absolute is not None:
        return absolute[1] if absolute[1] in RESOURCE_TYPES else None, None
    if _SCHEME(text):
        return None, None
    conditional = _CONDITIONAL(text)
    if conditional is not None and conditional[1] in RESOURCE_TYPES:
        if scope.bundled:
            return conditional[1], None
        return None, ("value", f"{quote(text)} is a conditional reference: only a transaction can resolve it")
    return None, (
        "value",
        f"{quote(text)} is no reference: must be Type/id, an absolute URL, urn:uuid:…, urn:oid:… or #id",
    )


def _declared(named: str, found: str | None, targets: tuple[str, ...]) -> Problems | None:
    name = named.removeprefix(_DEFINITION)
    if name not in RESOURCE_TYPES:
        # Types that are not resources' are URLs of logical models.
        return None if _SCHEME(named) else [Problem(".type", "value", f"{quote(named)} is no resource type")]
    if found is not None and name != found:
        return [Problem(".type", "value", f"Says {name}, but the reference is to {found}")]
    if targets and name not in targets:
        return [Problem(".type", "value", f"May refer to {_either(targets)}, not to {name}")]
    return None


def _either(targets: tuple[str, ...]) -> str:
    return targets[0] if len(targets) == 1 else f"{', '.join(targets[:-1])} or {targets[-1]}"


def unreferenced(resource: dict[str, Any]) -> Problems:
    """dom-3: a contained resource is named by something in its container, or names its container."""
    inner = resource.get("contained")
    if not isinstance(inner, list):
        return []
    texts = set(_fragments(resource))
    problems = []
    ids: set[str] = set()
    for index, item in enumerate(inner):
        name = item.get("id") if isinstance(item, dict) else None
        path = f".contained[{index}]"
        if not isinstance(name, str):
            problems.append(
                Problem(path, "required", "A contained resource needs an id, so that it can be referred to")
            )
        elif name in ids:
            problems.append(Problem(path + ".id", "value", f"The id {quote(name)} is used by two contained resources"))
        elif f"#{name}" not in texts and "#" not in set(_fragments(item)):
            text = f"Nothing in the resource refers to #{name}, and it does not refer to its container (dom-3)"
            problems.append(Problem(path, "invariant", text))
        ids.add(str(name))
    return problems


def _fragments(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _fragments(item)
    elif isinstance(value, list):
        for item in value:
            yield from _fragments(item)
    elif isinstance(value, str) and value.startswith("#"):
        yield value

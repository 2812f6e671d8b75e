"""References between the entries of a bundle, rewritten to what the entries became.

https://hl7.org/fhir/R4/http.html#trules: every link to an entry's fullUrl is replaced, in references, in elements of type
uri (and url, canonical, oid, uuid, which are uris), and in the links of the narrative; a text that happens to be the same,
such as the value of an identifier, stays. `Type?criteria` references become the one resource that matches.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fhir_server.model.definitions import is_type, type_definition

LINKS = frozenset({"uri", "url", "canonical", "oid", "uuid"})
_LINK = re.compile(r"""(\b(?:href|src)\s*=\s*["'])([^"']*)(["'])""")
_CONDITIONAL = re.compile(r"[A-Z][A-Za-z]+\?.+")


@dataclass(frozen=True, slots=True)
class Rewriting:
    """Old reference text → new one."""

    mapping: dict[str, str]

    def link(self, match: re.Match[str]) -> str:
        """A link of the narrative, its address rewritten."""
        return f"{match[1]}{_reference(match[2], self)}{match[3]}"


def conditional_references(value: Any) -> Iterator[str]:
    """Every `Type?criteria` that stands in a Reference.reference."""
    if type(value) is dict:
        for key, item in value.items():
            if key == "reference":
                if type(item) is str and "?" in item and _CONDITIONAL.fullmatch(item):
                    yield item
            elif type(item) is dict or type(item) is list:
                yield from conditional_references(item)
    elif type(value) is list:
        for item in value:
            yield from conditional_references(item)


def rewritten(resource: dict[str, Any], rewriting: Rewriting) -> dict[str, Any]:
    """A copy with the links replaced; the very same object where there was nothing to replace."""
    if not rewriting.mapping:
        return resource
    found: dict[str, Any] = _rewritten(resource, rewriting, "", str(resource.get("resourceType")))
    return found


def _rewritten(value: Any, rewriting: Rewriting, key: str, owner: str) -> Any:
    """`owner`: the type whose element `key` is; "" where the definitions do not know it."""
    kind = type(value)
    if kind is str:
        if key == "reference":
            return _reference(value, rewriting)
        if ":" in value:
            if value in rewriting.mapping and _type(owner, key) in LINKS:
                return rewriting.mapping[value]
            if key == "div":
                return _LINK.sub(rewriting.link, value)
        return value
    if kind is dict:
        inner = str(value["resourceType"]) if "resourceType" in value else _type(owner, key)
        changed: dict[str, Any] | None = None
        for name, item in value.items():
            if type(item) is str and ":" not in item and name != "reference":
                continue
            new = _rewritten(item, rewriting, name, inner)
            if new is not item:
                if changed is None:
                    changed = dict(value)
                changed[name] = new
        return value if changed is None else changed
    if kind is list:
        copy: list[Any] | None = None
        for position, item in enumerate(value):
            new = _rewritten(item, rewriting, key, owner)
            if new is not item:
                if copy is None:
                    copy = list(value)
                copy[position] = new
        return value if copy is None else copy
    return value


def _reference(value: str, rewriting: Rewriting) -> str:
    new = rewriting.mapping.get(value)
    if new is None and "#" in value:  # a fragment of an entry: Type/id#part
        head, mark, tail = value.partition("#")
        if head in rewriting.mapping:
            return f"{rewriting.mapping[head]}{mark}{tail}"
    return value if new is None else new


def _type(owner: str, key: str) -> str:
    """The type of an element, by its key in its owner's definition."""
    if key.startswith("_"):
        return "Element"
    if not is_type(owner):
        return ""
    element = type_definition(owner).elements.get(key)
    return element.type if element is not None else ""

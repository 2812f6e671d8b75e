"""References between the entries of a bundle, rewritten to what the entries became.

https://hl7.org/fhir/R4/http.html#trules: every link to an entry's fullUrl is replaced, in references, in elements of type
uri, url, oid and uuid, and in the narrative; `Type?criteria` references become the one resource that matches.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_CONDITIONAL = re.compile(r"[A-Z][A-Za-z]+\?.+")


class Rewriting:
    """Old reference text → new one. Only `urn:` names and whole URLs are looked for outside of references."""

    __slots__ = ("mapping", "narrative")

    def __init__(self, mapping: dict[str, str]) -> None:
        self.mapping = mapping
        links = [re.escape(old) for old in mapping if ":" in old]
        self.narrative = re.compile("|".join(sorted(links, key=len, reverse=True))) if links else None


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


def rewritten(value: Any, rewriting: Rewriting) -> Any:
    """A copy with the links replaced; the very same object where there was nothing to replace."""
    if not rewriting.mapping:
        return value
    return _rewritten(value, rewriting, "")


def _rewritten(value: Any, rewriting: Rewriting, key: str) -> Any:
    kind = type(value)
    if kind is str:
        if key == "reference" or ":" in value:
            new = rewriting.mapping.get(value)
            if new is not None:
                return new
            if key == "reference" and "#" in value:  # a fragment of an entry: Type/id#part
                head, mark, tail = value.partition("#")
                if head in rewriting.mapping:
                    return f"{rewriting.mapping[head]}{mark}{tail}"
        if key == "div" and rewriting.narrative is not None and ":" in value:
            return rewriting.narrative.sub(lambda match: rewriting.mapping[match.group()], value)
        return value
    if kind is dict:
        changed: dict[str, Any] | None = None
        for name, item in value.items():
            new = _rewritten(item, rewriting, name)
            if new is not item:
                if changed is None:
                    changed = dict(value)
                changed[name] = new
        return value if changed is None else changed
    if kind is list:
        copy: list[Any] | None = None
        for position, item in enumerate(value):
            new = _rewritten(item, rewriting, key)
            if new is not item:
                if copy is None:
                    copy = list(value)
                copy[position] = new
        return value if copy is None else copy
    return value

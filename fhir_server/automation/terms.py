"""Which codes a rule means: listed codes, or a ValueSet of the content. https://hl7.org/fhir/R4/valueset.html

Only what rules use: `compose.include` with concepts, whole systems, and `filter` on `code` (`=`, `regex`); `exclude` likewise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Code = tuple[str, str]  # (system, code); an empty system in a filter stands for any


@dataclass(frozen=True, slots=True)
class Codes:
    """A set of codes. `listed` can be looked up in an index; `patterns` (system, regex) only be tried."""

    listed: frozenset[Code] = frozenset()
    patterns: tuple[tuple[str, re.Pattern[str]], ...] = ()
    excluded: frozenset[Code] = frozenset()

    def has(self, code: Code) -> bool:
        if code in self.excluded:
            return False
        if code in self.listed or ("", code[1]) in self.listed:
            return True
        return any(system == code[0] and pattern.fullmatch(code[1]) for system, pattern in self.patterns)

    def union(self, other: Codes) -> Codes:
        return Codes(self.listed | other.listed, self.patterns + other.patterns, self.excluded | other.excluded)


def of_value_set(value_set: Mapping[str, Any], resolve: Callable[[str], Mapping[str, Any] | None]) -> Codes:
    """The codes of a ValueSet. Raises ValueError for a part that is not understood, and for an unknown canonical."""
    codes = Codes()
    compose = value_set.get("compose", {})
    for include in compose.get("include", ()):
        codes = codes.union(_included(include, resolve))
    for exclude in compose.get("exclude", ()):
        left_out = _included(exclude, resolve)
        if left_out.patterns:
            raise ValueError(f"{value_set.get('url')}: compose.exclude must list its concepts")
        codes = Codes(codes.listed - left_out.listed, codes.patterns, codes.excluded | left_out.listed)
    return codes


def _included(include: Mapping[str, Any], resolve: Callable[[str], Mapping[str, Any] | None]) -> Codes:
    system = str(include.get("system", ""))
    codes = Codes(frozenset((system, str(concept["code"])) for concept in include.get("concept", ())))
    for one in include.get("filter", ()):
        if one.get("property") not in ("code", "concept") or one.get("op") not in ("regex", "="):
            raise ValueError(
                f"a filter on {one.get('property')!r} with {one.get('op')!r} is not supported: use code regex"
            )
        text = str(one["value"])
        codes = codes.union(Codes(patterns=((system, re.compile(text if one["op"] == "regex" else re.escape(text))),)))
    for url in include.get("valueSet", ()):
        found = resolve(str(url))
        if found is None:
            raise ValueError(f"the value set {url} is not known")
        codes = codes.union(of_value_set(found, resolve))
    if system and not include.get("concept") and not include.get("filter"):
        codes = codes.union(Codes(patterns=((system, re.compile(".*")),)))
    return codes


def codes_of(element: Any) -> Iterator[Code]:
    """The codes in a CodeableConcept, Coding, code, canonical, or a list of them."""
    if isinstance(element, str):
        yield ("", element.partition("|")[0])
    elif isinstance(element, list):
        for item in element:
            yield from codes_of(item)
    elif isinstance(element, dict):
        if "code" in element and isinstance(element["code"], str):
            yield (str(element.get("system", "")), element["code"])
        for coding in element.get("coding", ()):
            if "code" in coding:
                yield (str(coding.get("system", "")), str(coding["code"]))

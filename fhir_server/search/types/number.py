"""Numbers: what was given, to as many digits as were given. https://hl7.org/fhir/R4/search.html#number

An entry is `{lo, hi}`, both included: equal for a plain number, apart for a range. `100` finds what is in [99.5, 100.5), `gt100`
what is more than exactly 100. Numbers are compared as doubles, each rounded once from its exact value: two that differ
only after the 15th digit count as equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from fhir_server.errors import BadRequest
from fhir_server.search.operands import PREFIXES, Operand, Prefix, Span

MODIFIERS = frozenset({"missing"})

_NUMBER = re.compile(r"[+-]?\d{1,40}(?:\.\d{1,40})?(?:[eE][+-]?\d{1,3})?", re.ASCII)

Entry = dict[str, Any]


def number(value: Any) -> list[Entry]:
    if type(value) is bool or not isinstance(value, int | Decimal | float):
        return []
    exact = float(value)
    return [{"lo": exact, "hi": exact}]


def span_of(low: Any, high: Any) -> tuple[float, float] | None:
    """Ends of a Range as numbers; an end that is missing is open."""
    if low is None and high is None:
        return None
    return float("-inf") if low is None else float(low), float("inf") if high is None else float(high)


def range_(value: Mapping[str, Any]) -> list[Entry]:
    span = span_of((value.get("low") or {}).get("value"), (value.get("high") or {}).get("value"))
    return [{"lo": span[0], "hi": span[1]}] if span else []


ENTRIES: dict[str, Callable[[Any], list[Entry]]] = {
    **dict.fromkeys(("integer", "decimal", "positiveInt", "unsignedInt"), number),
    "Range": range_,
}


def parse_exact(text: str) -> tuple[Prefix, Fraction, Fraction]:
    """`ge5.40` → (prefix, 5.4, half of what the last digit leaves open: 0.005)."""
    prefix: Prefix = "eq"
    for candidate in PREFIXES:
        if text.startswith(candidate):
            prefix, text = candidate, text[2:]
            break
    if not _NUMBER.fullmatch(text):
        raise BadRequest(f"is no number, or its prefix is none of {', '.join(PREFIXES)}")
    value = Decimal(text)
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)
    if abs(value.adjusted()) > 300:
        raise BadRequest("is a number beyond 1e300")
    return prefix, Fraction(value), Fraction(10) ** exponent / 2


def span(prefix: Prefix, value: Fraction, half: Fraction) -> Span:
    if prefix == "ap":
        half = abs(value) / 10
    return Span(prefix, float(value), float(value - half), float(value + half))


def parse(text: str, modifier: str) -> Operand:
    return span(*parse_exact(text))


# `x`: the number asked for, [a, b) what its digits leave open (for ap: ± 10 %, both ends included); [lo, hi]: the value.
MATCHES: dict[Prefix, Callable[[Span, float, float], bool]] = {
    "eq": lambda s, lo, hi: lo >= s.lo and hi < s.hi,
    "ne": lambda s, lo, hi: lo < s.lo or hi >= s.hi,
    "gt": lambda s, lo, hi: hi > s.value,
    "lt": lambda s, lo, hi: lo < s.value,
    "ge": lambda s, lo, hi: hi >= s.value,
    "le": lambda s, lo, hi: lo <= s.value,
    "sa": lambda s, lo, hi: lo > s.value,
    "eb": lambda s, lo, hi: hi < s.value,
    "ap": lambda s, lo, hi: lo <= s.hi and hi >= s.lo,
}


def matches(operand: Span, entry: Mapping[str, float]) -> bool:
    return MATCHES[operand.prefix](operand, entry["lo"], entry["hi"])


Bounds = dict[str, dict[str, float]]

CONDITION: dict[Prefix, Callable[[Span], list[Bounds]]] = {
    "eq": lambda s: [{"lo": {"$gte": s.lo, "$lt": s.hi}, "hi": {"$lt": s.hi}}],
    "ne": lambda s: [{"lo": {"$lt": s.lo}}, {"hi": {"$gte": s.hi}}],
    "gt": lambda s: [{"hi": {"$gt": s.value}}],
    "lt": lambda s: [{"lo": {"$lt": s.value}}],
    "ge": lambda s: [{"hi": {"$gte": s.value}}],
    "le": lambda s: [{"lo": {"$lte": s.value}}],
    "sa": lambda s: [{"lo": {"$gt": s.value}}],
    "eb": lambda s: [{"hi": {"$lt": s.value}}],
    "ap": lambda s: [{"lo": {"$lte": s.hi}, "hi": {"$gte": s.lo}}],
}


def bounds(operand: Span) -> list[Bounds]:
    return CONDITION[operand.prefix](operand)

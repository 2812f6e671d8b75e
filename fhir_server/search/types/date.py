"""Dates: every value is an interval, and so is the search. https://hl7.org/fhir/R4/search.html#date

An entry is `{lo, hi}`, half-open, in milliseconds: `1980-05` is all of May. An open end of a Period is the end of time. Several
times of a Timing count from the first to the last.

MATCHES and CONDITION say the same, once for values in memory and once for MongoDB; every row of the spec table asks both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from fhir_server.errors import BadRequest
from fhir_server.model.dates import DateError, interval
from fhir_server.search.operands import PREFIXES, Interval, Operand, Prefix

MODIFIERS = frozenset({"missing"})
BEGINNING: Final = -(2**53)  # before the year 1 and after 9999, and exact as a double
END: Final = 2**53

Entry = dict[str, int]


def moment(value: Any) -> list[Entry]:
    if type(value) is not str:
        return []
    try:
        lo, hi = interval(value)
    except DateError:
        return []
    return [{"lo": lo, "hi": hi}]


def period(value: Mapping[str, Any]) -> list[Entry]:
    start, end = moment(value.get("start")), moment(value.get("end"))
    if not start and not end:
        return []
    lo, hi = start[0]["lo"] if start else BEGINNING, end[0]["hi"] if end else END
    return [{"lo": lo, "hi": hi}] if lo < hi else []  # one that ends before it starts is none


def timing(value: Mapping[str, Any]) -> list[Entry]:
    found = [entry for event in value.get("event", ()) for entry in moment(event)]
    repeat = value.get("repeat")
    if type(repeat) is dict and type(repeat.get("boundsPeriod")) is dict:
        found += period(repeat["boundsPeriod"])
    if not found:
        return []
    return [{"lo": min(e["lo"] for e in found), "hi": max(e["hi"] for e in found)}]


ENTRIES: dict[str, Callable[[Any], list[Entry]]] = {
    "date": moment,
    "dateTime": moment,
    "instant": moment,
    "Period": period,
    "Timing": timing,
}
LONGEST: Final = 366 * 86_400_000  # of a value that is no Period or Timing: a year


def parse(text: str, modifier: str, now: int) -> Operand:
    """`ge2024-05` → its interval. `ap` widens it by a tenth of its distance from now, as the specification proposes."""
    prefix: Prefix = "eq"
    for candidate in PREFIXES:
        if text.startswith(candidate):
            prefix, text = candidate, text[2:]
            break
    if not text[:1].isdigit():
        raise BadRequest(f"is no date, or its prefix is none of {', '.join(PREFIXES)}")
    try:
        lo, hi = interval(text.replace(" ", "+"))  # a plus that was not escaped in a URL arrives as a space
    except DateError as error:
        raise BadRequest(f"is not a date: {error}") from None
    if prefix == "ap":
        slack = max(abs(now - lo), abs(now - hi)) // 10
        lo, hi = lo - slack, hi + slack
    return Interval(prefix, lo, hi)


# `a`, `b`: the search; `lo`, `hi`: the value.
MATCHES: dict[Prefix, Callable[[int, int, int, int], bool]] = {
    "eq": lambda a, b, lo, hi: lo >= a and hi <= b,
    "ne": lambda a, b, lo, hi: lo < a or hi > b,
    "gt": lambda a, b, lo, hi: hi > b,
    "lt": lambda a, b, lo, hi: lo < a,
    "ge": lambda a, b, lo, hi: hi > b or (lo >= a and hi <= b),
    "le": lambda a, b, lo, hi: lo < a or (lo >= a and hi <= b),
    "sa": lambda a, b, lo, hi: lo >= b,
    "eb": lambda a, b, lo, hi: hi <= a,
    "ap": lambda a, b, lo, hi: lo < b and hi > a,
}


def matches(operand: Interval, entry: Mapping[str, int]) -> bool:
    return MATCHES[operand.prefix](operand.lo, operand.hi, entry["lo"], entry["hi"])


Bounds = dict[str, Any]

# A conjunction of bounds on `lo` and `hi`. Where one follows from the others (a value is never empty), it is there as
# well, because it makes the range that an index has to read finite.
CONDITION: dict[Prefix, Callable[[int, int], Bounds]] = {
    "eq": lambda a, b: {"lo": {"$gte": a, "$lt": b}, "hi": {"$gt": a, "$lte": b}},
    "ne": lambda a, b: {"$or": [{"lo": {"$lt": a}}, {"hi": {"$gt": b}}]},
    "gt": lambda a, b: {"hi": {"$gt": b}},
    "lt": lambda a, b: {"lo": {"$lt": a}},
    "ge": lambda a, b: {"hi": {"$gt": a}, "$or": [{"hi": {"$gt": b}}, {"lo": {"$gte": a}}]},
    "le": lambda a, b: {"lo": {"$lt": b}, "$or": [{"lo": {"$lt": a}}, {"hi": {"$lte": b}}]},
    "sa": lambda a, b: {"lo": {"$gte": b}, "hi": {"$gt": b}},
    "eb": lambda a, b: {"lo": {"$lt": a}, "hi": {"$lte": a}},
    "ap": lambda a, b: {"lo": {"$lt": b}, "hi": {"$gt": a}},
}


def bounds(operand: Interval, *, short: bool) -> Bounds:
    """`short`: no value of this parameter is longer than a year, so a bound on `hi` is one on `lo` as well."""
    found = CONDITION[operand.prefix](operand.lo, operand.hi)
    if short:
        least = found.get("hi", {}).get("$gt")
        if least is not None and "$gte" not in found.get("lo", {}):
            found["lo"] = {**found.get("lo", {}), "$gte": least - LONGEST}
    return found

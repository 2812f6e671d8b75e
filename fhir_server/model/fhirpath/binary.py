"""Operators between two parts. https://hl7.org/fhirpath/N1/#operations"""

from __future__ import annotations

from collections.abc import Callable

from fhir_server.model.fhirpath.compiled import NOWHERE, Compiled, Truth, decided
from fhir_server.model.fhirpath.equality import distinct, equal, equivalent
from fhir_server.model.fhirpath.operators import ORDER, arithmetic, compare, joined
from fhir_server.model.fhirpath.values import (
    STRING,
    TEMPORAL_TYPES,
    Frame,
    Items,
    single,
    system,
    text,
)


def binary(symbol: str, left: Compiled, right: Compiled) -> Compiled:
    """One operator with its compiled sides."""
    if symbol in _LOGIC:
        return decided(_LOGIC[symbol](left.condition, right.condition))
    if symbol in ("=", "!="):
        return decided(_equality(left, right, symbol == "="))
    if symbol in ("~", "!~"):
        return decided(_equivalence(left, right, symbol == "~"))
    if symbol in ORDER:
        return decided(_ordering(left, right, symbol))
    if symbol == "in":
        return decided(_membership(left, right))
    if symbol == "contains":
        return decided(_membership(right, left))
    if symbol == "|":
        return _union(left, right)
    if symbol == "&":
        return _concatenation(left, right)
    one, other = left.collect, right.collect
    return Compiled(lambda frame: arithmetic(symbol, one(frame), other(frame)))


def _and(left: Truth, right: Truth) -> Truth:
    def decide(frame: Frame) -> bool | None:
        one = left(frame)
        if one is False:
            return False
        other = right(frame)
        return False if other is False else None if one is None or other is None else True

    return decide


def _or(left: Truth, right: Truth) -> Truth:
    def decide(frame: Frame) -> bool | None:
        one = left(frame)
        if one is True:
            return True
        other = right(frame)
        return True if other is True else None if one is None or other is None else False

    return decide


def _xor(left: Truth, right: Truth) -> Truth:
    def decide(frame: Frame) -> bool | None:
        one, other = left(frame), right(frame)
        return None if one is None or other is None else one is not other

    return decide


def _implies(left: Truth, right: Truth) -> Truth:
    def decide(frame: Frame) -> bool | None:
        one = left(frame)
        if one is False:
            return True
        other = right(frame)
        return True if other is True else None if one is None or other is None else False

    return decide


_LOGIC: dict[str, Callable[[Truth, Truth], Truth]] = {"and": _and, "or": _or, "xor": _xor, "implies": _implies}


def _equality(left: Compiled, right: Compiled, wanted: bool) -> Truth:
    one, other = left.collect, right.collect

    def decide(frame: Frame) -> bool | None:
        result = equal(one(frame), other(frame), frame.run.host.canonical)
        return None if result is None else result is wanted

    if right.types != frozenset({STRING}) or right.decide is not None:
        return decide

    def with_text(frame: Frame) -> bool | None:
        """The common case, `use = 'official'`, without the general rules."""
        found, texts = one(frame), other(frame)
        if len(found) == 1 and len(texts) == 1:
            value, kind, _ = found[0]
            if type(value) is str and kind not in TEMPORAL_TYPES:
                return (value == texts[0][0]) is wanted
        elif not found or not texts:
            return None
        result = equal(found, texts, frame.run.host.canonical)
        return None if result is None else result is wanted

    return with_text


def _equivalence(left: Compiled, right: Compiled, wanted: bool) -> Truth:
    one, other = left.collect, right.collect
    return lambda frame: equivalent(one(frame), other(frame), frame.run.host.canonical) is wanted


def _ordering(left: Compiled, right: Compiled, symbol: str) -> Truth:
    one, other, test = left.collect, right.collect, ORDER[symbol]

    def decide(frame: Frame) -> bool | None:
        order = compare(one(frame), other(frame), symbol, frame.run.host.canonical)
        return None if order is None else test(order)

    return decide


def _membership(element: Compiled, collection: Compiled) -> Truth:
    one, other = element.collect, collection.collect

    def decide(frame: Frame) -> bool | None:
        entry = single(one(frame), "What is looked for")
        if entry is None:
            return None
        canonical = frame.run.host.canonical
        return any(equal([entry], [candidate], canonical) is True for candidate in other(frame))

    return decide


def _union(left: Compiled, right: Compiled) -> Compiled:
    one, other = left.collect, right.collect
    if left is NOWHERE or right is NOWHERE:
        only = right if left is NOWHERE else left
        source = only.collect
        return only if only is NOWHERE else Compiled(lambda frame: distinct(source(frame)), only.types)
    types = left.types | right.types if left.types is not None and right.types is not None else None

    def collect(frame: Frame) -> Items:
        first, second = one(frame), other(frame)
        if not second:
            return distinct(first)
        return distinct(second) if not first else distinct(first + second)

    return Compiled(collect, types)


def _concatenation(left: Compiled, right: Compiled) -> Compiled:
    one, other = left.collect, right.collect

    def collect(frame: Frame) -> Items:
        first = text(one(frame), "The left side of &") or ""
        return [system(joined(first, text(other(frame), "The right side of &") or ""))]

    return Compiled(collect, frozenset({STRING}))

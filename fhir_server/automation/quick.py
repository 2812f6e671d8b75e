"""The short way for conditions such as `%sbp >= 140 or %dbp >= 90`: nine in ten are comparisons of variables.

Compiles a part of FHIRPath to closures over plain values, about ten times as fast as the general way; whatever it does not
understand, in the text or in the values, is left to that. tests/automation/test_quick.py holds the two against each other.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from fhir_server.model.fhirpath import ast

Lookup = Callable[[str], Any]
Decide = Callable[[Lookup], bool | None]
Value = Callable[[Lookup], Any]  # one plain value, None for nothing

ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


class Unsure(Exception):
    """The general way has to decide."""


def condition(node: ast.Node) -> Decide | None:
    """The closure for a condition: true, false or (None) unknown; it may raise Unsure. None where the text is too much."""
    match node:
        case ast.Binary(operator="and", left=left, right=right):
            return _both(condition(left), condition(right), _and)
        case ast.Binary(operator="or", left=left, right=right):
            return _both(condition(left), condition(right), _or)
        case ast.Binary(operator="in", left=left, right=ast.External(name=name)):
            return _member(value(left), name)
        case ast.Binary(operator=symbol, left=left, right=right) if symbol in ORDER:
            return _compared(value(left), value(right), ORDER[symbol])
        case ast.Binary(operator="=", left=left, right=right):
            return _equal(value(left), value(right), True)
        case ast.Binary(operator="!=", left=left, right=right):
            return _equal(value(left), value(right), False)
        case ast.Member(target=ast.External(name=name), step=ast.Call(name="exists", arguments=())):
            return lambda lookup: _present(lookup(name))
        case ast.Member(target=ast.External(name=name), step=ast.Call(name="empty", arguments=())):
            return lambda lookup: not _present(lookup(name))
        case ast.Member(target=target, step=ast.Call(name="not", arguments=())):
            return _not(condition(target))
    return None


def value(node: ast.Node) -> Value | None:
    """The closure for an operand."""
    match node:
        case ast.Number(value=constant) | ast.String(value=constant) | ast.Boolean(value=constant):
            return lambda lookup: constant
        case ast.External(name=name):
            return lambda lookup: _one(lookup(name))
        case ast.Indexed(target=ast.External(name=name), index=ast.Number(value=int(index))):
            return lambda lookup: _at(lookup(name), index)
        case ast.Member(target=ast.External(name=name), step=ast.Call(name="count", arguments=())):
            return lambda lookup: _count(lookup(name))
        case ast.Call(name="iif", arguments=(test, yes, no)):
            return _if(condition(test), value(yes), value(no))
        case ast.Binary(operator="+", left=left, right=right):
            return _sum(value(left), value(right))
    return None


def _both(left: Decide | None, right: Decide | None, join: Callable[[Decide, Decide], Decide]) -> Decide | None:
    return None if left is None or right is None else join(left, right)


def _and(left: Decide, right: Decide) -> Decide:
    def decide(lookup: Lookup) -> bool | None:
        one = left(lookup)
        if one is False:
            return False
        other = right(lookup)
        if other is False:
            return False
        return None if one is None or other is None else True

    return decide


def _or(left: Decide, right: Decide) -> Decide:
    def decide(lookup: Lookup) -> bool | None:
        one = left(lookup)
        if one is True:
            return True
        other = right(lookup)
        if other is True:
            return True
        return None if one is None or other is None else False

    return decide


def _not(decide: Decide | None) -> Decide | None:
    if decide is None:
        return None

    def negated(lookup: Lookup) -> bool | None:
        found = decide(lookup)
        return None if found is None else not found

    return negated


def _compared(left: Value | None, right: Value | None, order: Callable[[Any, Any], bool]) -> Decide | None:
    if left is None or right is None:
        return None

    def decide(lookup: Lookup) -> bool | None:
        one, other = left(lookup), right(lookup)
        if one is None or other is None:
            return None
        if type(one) not in _NUMBERS or type(other) not in _NUMBERS:
            raise Unsure
        return order(one, other)

    return decide


def _equal(left: Value | None, right: Value | None, wanted: bool) -> Decide | None:
    if left is None or right is None:
        return None

    def decide(lookup: Lookup) -> bool | None:
        one, other = left(lookup), right(lookup)
        if one is None or other is None:
            return None
        kind = type(one)
        if kind is not type(other) and not (kind in _NUMBERS and type(other) in _NUMBERS):
            raise Unsure
        if kind not in _PLAIN:
            raise Unsure
        return bool(one == other) is wanted

    return decide


def _member(left: Value | None, name: str) -> Decide | None:
    if left is None:
        return None

    def decide(lookup: Lookup) -> bool | None:
        one, others = left(lookup), lookup(name)
        if one is None:
            return None
        if type(one) is not str or type(others) is not list or any(type(other) is not str for other in others):
            raise Unsure
        return one in others

    return decide


def _if(test: Decide | None, yes: Value | None, no: Value | None) -> Value | None:
    if test is None or yes is None or no is None:
        return None
    return lambda lookup: yes(lookup) if test(lookup) is True else no(lookup)


def _sum(left: Value | None, right: Value | None) -> Value | None:
    if left is None or right is None:
        return None

    def added(lookup: Lookup) -> int | None:
        one, other = left(lookup), right(lookup)
        if one is None or other is None:
            return None
        if type(one) is not int or type(other) is not int:
            raise Unsure
        return one + other

    return added


_NUMBERS = frozenset({int, Decimal})
_PLAIN = frozenset({int, Decimal, str, bool})


def _one(found: Any) -> Any:
    if type(found) is list:
        if not found:
            return None
        if len(found) > 1:
            raise Unsure
        return found[0]
    return found


def _at(found: Any, index: int) -> Any:
    if type(found) is not list:
        raise Unsure
    return found[index] if index < len(found) else None


def _count(found: Any) -> int:
    return len(found) if type(found) is list else 0 if found is None else 1


def _present(found: Any) -> bool:
    return bool(found) if type(found) is list else found is not None

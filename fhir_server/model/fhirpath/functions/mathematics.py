"""Numbers, and sums over collections. https://hl7.org/fhirpath/N1/#math; sum, min, max and avg are ours"""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_DOWN, ROUND_FLOOR, ROUND_HALF_UP, Decimal, DecimalException, localcontext
from functools import cmp_to_key
from typing import Any

from fhir_server.model.fhirpath.ast import Unary
from fhir_server.model.fhirpath.compiled import Collect, Compiled, Invocation
from fhir_server.model.fhirpath.failure import FhirPathError
from fhir_server.model.fhirpath.functions.table import SAME, Table
from fhir_server.model.fhirpath.operators import arithmetic, order_of
from fhir_server.model.fhirpath.quantities import Quantity
from fhir_server.model.fhirpath.values import (
    MAX_INTEGER,
    NOTHING,
    Frame,
    Item,
    Items,
    Run,
    integer,
    native,
    shown,
    single,
    system,
)

MATHEMATICS = Table()
Number = int | Decimal


def _number(found: Items, what: str) -> Any:
    """int, Decimal or Quantity."""
    entry = single(found, what)
    if entry is None or entry[0] is None:
        return None
    value = native(entry)
    if isinstance(value, bool) or not isinstance(value, int | Decimal | Quantity):
        raise FhirPathError(f"{what} must be a number, not {shown(entry)}")
    return value


def _plain(found: Items, name: str, what: str = "input") -> Any:
    """int or Decimal."""
    value = _number(found, f"The {what} of {name}()")
    if isinstance(value, Quantity):
        raise FhirPathError(f"{name}() takes a number without a unit")
    return value


def _result(value: Any, calculate: Callable[[Decimal], Any]) -> Items:
    """Empty where there is no real result."""
    with localcontext() as context:
        context.prec = 28
        try:
            if isinstance(value, Quantity):
                return [system(Quantity(Decimal(calculate(value.value)), value.unit, value.calendar, value.system))]
            return [system(calculate(Decimal(value)))]
        except DecimalException:
            return NOTHING


def _function(name: str, calculate: Callable[[Decimal], Any], *, quantities: bool = False) -> None:
    @MATHEMATICS.eager(name)
    def applied(found: Items, run: Run) -> Items:
        value = _number(found, f"The input of {name}()") if quantities else _plain(found, name)
        return NOTHING if value is None else _result(value, calculate)


_function("ceiling", lambda x: int(x.to_integral_value(ROUND_CEILING)), quantities=True)
_function("floor", lambda x: int(x.to_integral_value(ROUND_FLOOR)), quantities=True)
_function("truncate", lambda x: int(x.to_integral_value(ROUND_DOWN)), quantities=True)
_function("exp", lambda x: x.exp())
_function("sqrt", lambda x: x.sqrt())


@MATHEMATICS.eager("ln")
def ln(found: Items, run: Run) -> Items:
    value = _plain(found, "ln")
    return NOTHING if value is None or value <= 0 else _result(value, lambda x: x.ln())


@MATHEMATICS.eager("log")
def log(found: Items, run: Run, base: Items) -> Items:
    value, base_value = _plain(found, "log"), _plain(base, "log", "base")
    if value is None or base_value is None or value <= 0 or base_value <= 0 or base_value == 1:
        return NOTHING
    # 28 digits of a quotient of logarithms are not exact: log(8, 2) is 3, not 2.999…
    return _result(value, lambda x: (x.ln() / Decimal(base_value).ln()).quantize(Decimal("1e-20")).normalize() + 0)


@MATHEMATICS.eager("abs", SAME)
def abs_(found: Items, run: Run) -> Items:
    value = _number(found, "The input of abs()")
    if value is None:
        return NOTHING
    return _result(value, abs) if isinstance(value, Quantity) else [system(abs(value))]


@MATHEMATICS.eager("power")
def power_(found: Items, run: Run, exponent: Items) -> Items:
    value, by = _plain(found, "power"), _plain(exponent, "power", "exponent")
    if value is None or by is None:
        return NOTHING
    if isinstance(value, int) and isinstance(by, int) and by >= 0:
        if abs(value) > 1 and by >= MAX_INTEGER.bit_length():
            return NOTHING
        power = pow(value, by) if abs(value) > 1 or by < 2 else value ** (2 - by % 2)
        return [system(power)] if abs(power) <= MAX_INTEGER else NOTHING
    return _result(value, lambda x: x ** Decimal(by))


@MATHEMATICS.eager("round")
def round_(found: Items, run: Run, precision: Items | None = None) -> Items:
    value = _number(found, "The input of round()")
    places = 0 if precision is None else integer(precision, "The precision of round()")
    if value is None or places is None:
        return NOTHING
    if places < 0:
        raise FhirPathError("The precision of round() cannot be negative")
    return _result(value, lambda x: x.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP))


@MATHEMATICS.eager("sum", SAME)
def sum_(found: Items, run: Run) -> Items:
    total = found[:1]
    for entry in found[1:]:
        total = arithmetic("+", total, [entry])
    return total


@MATHEMATICS.eager("avg")
def avg(found: Items, run: Run) -> Items:
    return arithmetic("/", sum_(found, run), [system(len(found))]) if found else NOTHING


@MATHEMATICS.eager("min", SAME)
def min_(found: Items, run: Run) -> Items:
    return _extreme(found, run, -1)


@MATHEMATICS.eager("max", SAME)
def max_(found: Items, run: Run) -> Items:
    return _extreme(found, run, 1)


def _extreme(found: Items, run: Run, sign: int) -> Items:
    """Empty when two items cannot be ordered."""
    best: Items = found[:1]
    for entry in found[1:]:
        order = _order(entry, best[0], run)
        if order is None:
            return NOTHING
        if order == sign:
            best = [entry]
    return best


def _order(one: Item, other: Item, run: Run) -> int | None:
    return order_of(native(one), native(other), run.host.canonical, f"{shown(one)} and {shown(other)}")


@MATHEMATICS.compiled("sort", 0, 9)
def sort(call: Invocation) -> Compiled:
    """By keys, each from the item; a minus sign before a key reverses it. Items without a key come first, reversed or not."""
    source = call.target.collect
    keys: list[tuple[Collect, int]] = []
    for argument in call.call.arguments:
        reverse = isinstance(argument, Unary) and argument.operator == "-"
        node = argument.operand if isinstance(argument, Unary) and reverse else argument
        keys.append((call.compiler.part(node, call.target.types).collect, -1 if reverse else 1))
    if not keys:
        keys.append((lambda frame: frame.this, 1))

    def collect(frame: Frame) -> Items:
        rows = [
            (entry, [single(key(Frame([entry], frame.run)), "A key of sort()") for key, _ in keys])
            for entry in source(frame)
        ]

        def compare(left: tuple[Item, list[Item | None]], right: tuple[Item, list[Item | None]]) -> int:
            for one, other, (_, sign) in zip(left[1], right[1], keys, strict=True):
                if one is None or other is None:
                    order = (one is not None) - (other is not None)
                else:
                    order = sign * (_order(one, other, frame.run) or 0)
                if order:
                    return order
            return 0

        return [entry for entry, _ in sorted(rows, key=cmp_to_key(compare))]

    return Compiled(collect, call.target.types)

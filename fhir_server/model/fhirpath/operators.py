"""Arithmetic and order. https://hl7.org/fhirpath/N1/#operations"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext
from typing import Any, Final

from fhir_server.model.dates import DateError
from fhir_server.model.fhirpath.ast import CALENDAR_UNITS
from fhir_server.model.fhirpath.equality import quantity, temporals
from fhir_server.model.fhirpath.failure import FhirPathError
from fhir_server.model.fhirpath.quantities import TIME_UNITS, Canonical, Quantity, multiply, same_dimension
from fhir_server.model.fhirpath.temporal import Temporal
from fhir_server.model.fhirpath.values import MAX_INTEGER, NOTHING, Items, native, shown, single, system

MAX_LENGTH: Final = 10_000_000  # characters of a text that is put together
ORDER: Final[dict[str, Callable[[int], bool]]] = {
    "<": lambda order: order < 0,
    "<=": lambda order: order <= 0,
    ">": lambda order: order > 0,
    ">=": lambda order: order >= 0,
}


def compare(left: Items, right: Items, symbol: str, canonical: Canonical) -> int | None:
    """-1, 0 or 1; None when a side is empty or the precision leaves it open. Raises FhirPathError for other types."""
    one, other = single(left, f"The left side of {symbol}"), single(right, f"The right side of {symbol}")
    if one is None or other is None or one[0] is None or other[0] is None:
        return None
    return order_of(native(one), native(other), canonical, f"{shown(one)} {symbol} {shown(other)}")


def order_of(a: Any, b: Any, canonical: Canonical, what: str) -> int | None:
    """-1, 0 or 1; `what` is the comparison in words, for the failure."""
    if isinstance(a, Temporal) or isinstance(b, Temporal):
        a, b = temporals(a, b)
        if isinstance(a, Temporal) and isinstance(b, Temporal) and (a.kind == "Time") == (b.kind == "Time"):
            return a.compare(b)
    elif isinstance(a, Quantity) or isinstance(b, Quantity):
        a, b = quantity(a), quantity(b)
        if a is not None and b is not None:
            values = same_dimension(a, b, canonical)
            return None if values is None else _sign(values[0], values[1])
    elif (isinstance(a, str) and isinstance(b, str)) or (_is_number(a) and _is_number(b)):
        return _sign(a, b)
    raise FhirPathError(f"{what} cannot be compared")


def arithmetic(symbol: str, left: Items, right: Items) -> Items:
    """`+ - * / div mod`; empty when a side is empty, for division by zero and for results out of range."""
    one, other = single(left, f"The left side of {symbol}"), single(right, f"The right side of {symbol}")
    if one is None or other is None or one[0] is None or other[0] is None:
        return NOTHING
    a, b = native(one), native(other)
    if isinstance(a, Temporal) and symbol in ("+", "-"):
        return [system(later(a, b, -1 if symbol == "-" else 1))]
    if isinstance(a, str) and isinstance(b, str) and symbol == "+":
        return [system(joined(a, b))]
    if isinstance(a, Quantity) or isinstance(b, Quantity):
        return _of_quantities(symbol, a, b, f"{shown(one)} {symbol} {shown(other)}")
    if _is_number(a) and _is_number(b):
        result = _of_numbers(symbol, a, b)
        if result is None or (type(result) is int and abs(result) > MAX_INTEGER):
            return NOTHING
        return [system(result)]
    raise FhirPathError(f"{shown(one)} {symbol} {shown(other)} is not possible")


def joined(one: str, other: str) -> str:
    """Raises FhirPathError when the text becomes too long."""
    if len(one) + len(other) > MAX_LENGTH:
        raise FhirPathError(f"A text of more than {MAX_LENGTH} characters")
    return one + other


def later(start: Temporal, amount: Any, sign: int) -> Temporal:
    """A date and a duration. UCUM's years and months are refused: their length is not the calendar's."""
    if not isinstance(amount, Quantity):
        raise FhirPathError(f"A date takes a duration such as 7 days, not {amount}")
    unit = amount.unit if amount.calendar else CALENDAR_UNITS.get(amount.unit, TIME_UNITS.get(amount.unit, ""))
    if not unit:
        raise FhirPathError(f"'{amount.unit}' is no duration that can be added to a date; write year(s) or month(s)")
    try:
        return start.plus(sign * amount.value, unit)
    except DateError as error:
        raise FhirPathError(error.diagnostics) from None


def _of_numbers(symbol: str, a: int | Decimal, b: int | Decimal) -> int | Decimal | None:
    with localcontext() as context:
        context.prec = 36
        try:
            match symbol:
                case "+":
                    return a + b
                case "-":
                    return a - b
                case "*":
                    return a * b
                case _ if b == 0:
                    return None
                case "/":
                    return Decimal(a) / Decimal(b)
                case "div":
                    return (
                        int(Decimal(a) / Decimal(b)) if isinstance(a, Decimal) or isinstance(b, Decimal) else _div(a, b)
                    )
            rest = Decimal(a) % Decimal(b)
            return rest if isinstance(a, Decimal) or isinstance(b, Decimal) else int(rest)
        except (InvalidOperation, Overflow, DivisionByZero):
            return None


def _div(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _of_quantities(symbol: str, a: Any, b: Any, what: str) -> Items:
    one, other = quantity(a), quantity(b)
    if one is None or other is None:
        raise FhirPathError(f"{what} is not possible")
    if symbol in ("*", "/"):
        with localcontext() as context:
            context.prec = 36
            product = multiply(one, other, symbol == "/")
        return NOTHING if product is None else [system(product)]
    if symbol not in ("+", "-"):
        raise FhirPathError(f"{what} is not possible")
    if one.unit != other.unit or one.calendar != other.calendar:
        return NOTHING
    value = one.value + other.value if symbol == "+" else one.value - other.value
    return [system(Quantity(value, one.unit, one.calendar, one.system))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def _sign(a: Any, b: Any) -> int:
    return 1 if a > b else -1 if a < b else 0

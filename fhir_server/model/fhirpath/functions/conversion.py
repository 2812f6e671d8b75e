"""Conversions, and whether they would succeed. https://hl7.org/fhirpath/N1/#conversion"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

from fhir_server.model.dates import DateError
from fhir_server.model.fhirpath.ast import CALENDAR_UNITS
from fhir_server.model.fhirpath.failure import FhirPathError
from fhir_server.model.fhirpath.functions.table import Table
from fhir_server.model.fhirpath.quantities import Quantity, in_unit, same_dimension
from fhir_server.model.fhirpath.temporal import Temporal
from fhir_server.model.fhirpath.values import (
    BOOLEAN,
    DECIMAL,
    INTEGER,
    NOTHING,
    QUANTITY,
    STRING,
    Items,
    Run,
    native,
    single,
    system,
    text,
)

CONVERSION = Table()
_TRUE: Final = {"true", "t", "yes", "y", "1", "1.0"}
_FALSE: Final = {"false", "f", "no", "n", "0", "0.0"}
_INTEGER: Final = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_DECIMAL: Final = re.compile(r"[+-]?\d+(?:\.\d+)?", re.ASCII)
_QUANTITY: Final = re.compile(r"(?P<value>[+-]?\d+(?:\.\d+)?)\s*(?:'(?P<unit>[^']+)'|(?P<time>[a-zA-Z]+))?", re.ASCII)


def to_boolean(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | Decimal):
        return True if value == 1 else False if value == 0 else None
    if isinstance(value, str):
        return True if value.lower() in _TRUE else False if value.lower() in _FALSE else None
    return None


def to_integer(value: Any) -> int | None:
    if isinstance(value, bool | int):
        return int(value)
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    return None


def to_decimal(value: Any) -> Decimal | None:
    if isinstance(value, bool | int | Decimal):
        return Decimal(value)
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        return Decimal(value)
    return None


def to_string(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return f"{value:f}"
    return None if isinstance(value, dict) else str(value)


def to_quantity(value: Any) -> Quantity | None:
    if isinstance(value, Quantity):
        return value
    if isinstance(value, bool | int | Decimal):
        return Quantity(Decimal(value))
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    if match["time"]:
        unit = CALENDAR_UNITS.get(match["time"])
        return None if unit is None else Quantity(Decimal(match["value"]), unit, calendar=True)
    return Quantity(Decimal(match["value"]), match["unit"] or "1")


def _to_moment(kind: str) -> Callable[[Any], Temporal | None]:
    def convert(value: Any) -> Temporal | None:
        if isinstance(value, Temporal):
            return value.as_kind(kind) if (value.kind == "Time") == (kind == "Time") else None
        if not isinstance(value, str) or value.startswith("T"):
            return None
        try:
            return Temporal.parse(value, kind)
        except DateError:
            return Temporal.parse(value, "DateTime").as_kind("Date") if kind == "Date" and _is_moment(value) else None

    return convert


def _is_moment(value: str) -> bool:
    try:
        Temporal.parse(value, "DateTime")
    except DateError:
        return False
    return True


_TARGETS: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "Boolean": (BOOLEAN, to_boolean),
    "Integer": (INTEGER, to_integer),
    "Decimal": (DECIMAL, to_decimal),
    "String": (STRING, to_string),
    "Date": ("System.Date", _to_moment("Date")),
    "DateTime": ("System.DateTime", _to_moment("DateTime")),
    "Time": ("System.Time", _to_moment("Time")),
}


def _declare(name: str, kind: str, convert: Callable[[Any], Any]) -> None:
    @CONVERSION.eager(f"to{name}", frozenset({kind}))
    def converted(found: Items, run: Run) -> Items:
        entry = single(found, f"The input of to{name}()")
        value = None if entry is None or entry[0] is None else convert(native(entry))
        return NOTHING if value is None else [system(value)]

    @CONVERSION.decision(f"convertsTo{name}")
    def convertible(found: Items, run: Run) -> bool | None:
        entry = single(found, f"The input of convertsTo{name}()")
        return None if entry is None or entry[0] is None else convert(native(entry)) is not None


for _name, (_kind, _convert) in _TARGETS.items():
    _declare(_name, _kind, _convert)


@CONVERSION.eager("toQuantity", frozenset({QUANTITY}))
def quantity_of(found: Items, run: Run, unit: Items | None = None) -> Items:
    amount = _in_unit(found, run, unit, "toQuantity")
    return NOTHING if amount is None else [system(amount)]


@CONVERSION.decision("convertsToQuantity")
def is_quantity(found: Items, run: Run, unit: Items | None = None) -> bool | None:
    return _in_unit(found, run, unit, "convertsToQuantity") is not None if found else None


def _in_unit(found: Items, run: Run, unit: Items | None, name: str) -> Quantity | None:
    entry = single(found, f"The input of {name}()")
    amount = None if entry is None or entry[0] is None else to_quantity(native(entry))
    wanted = None if not unit else text(unit, f"The unit of {name}()")
    if amount is None or wanted is None:
        return amount
    one = Quantity(Decimal(1), CALENDAR_UNITS.get(wanted, wanted), wanted in CALENDAR_UNITS)
    value = in_unit(amount, one, run.host.canonical)
    return None if value is None else Quantity(value, one.unit, one.calendar)


def comparable(one: Any, other: Any, run: Run) -> bool:
    """Whether two quantities have one dimension."""
    if not isinstance(one, Quantity) or not isinstance(other, Quantity):
        raise FhirPathError("comparable() takes quantities")
    return same_dimension(one, other, run.host.canonical) is not None


@CONVERSION.decision("comparable")
def comparable_(found: Items, run: Run, other: Items) -> bool | None:
    left, right = single(found, "The input of comparable()"), single(other, "The argument of comparable()")
    return None if left is None or right is None else comparable(native(left), native(right), run)

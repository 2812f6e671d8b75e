"""The least and greatest value a number or date may stand for, and its precision. https://hl7.org/fhirpath/#lowboundary"""

from __future__ import annotations

from calendar import monthrange
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext
from typing import Final

from fhir_server.model.fhirpath.functions.table import SAME, Table
from fhir_server.model.fhirpath.quantities import Quantity
from fhir_server.model.fhirpath.temporal import Temporal
from fhir_server.model.fhirpath.values import NOTHING, Items, Run, integer, native, single, system

BOUNDARIES = Table()
MAX_DIGITS: Final = 31  # after the point
_DEFAULT: Final = {"Date": 8, "DateTime": 17, "Time": 9}
_DIGITS: Final = (4, 6, 8, 10, 12, 14, 17)  # of a DateTime, by number of parts; a Time starts at the hour
_WEST, _EAST = -12 * 60, 14 * 60


@BOUNDARIES.eager("lowBoundary", SAME)
def low_boundary(found: Items, run: Run, precision: Items | None = None) -> Items:
    return _boundary(found, precision, high=False)


@BOUNDARIES.eager("highBoundary", SAME)
def high_boundary(found: Items, run: Run, precision: Items | None = None) -> Items:
    return _boundary(found, precision, high=True)


@BOUNDARIES.eager("precision")
def precision_(found: Items, run: Run) -> Items:
    entry = single(found, "The input of precision()")
    if entry is None or entry[0] is None:
        return NOTHING
    value = native(entry)
    if isinstance(value, Temporal):
        digits = _DIGITS[len(value.parts) - 1] if value.kind != "Time" else _DIGITS[len(value.parts) + 2] - 8
        return [system(digits)]
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return [system(_places(Decimal(value)))]
    return NOTHING


def _boundary(found: Items, precision: Items | None, *, high: bool) -> Items:
    entry = single(found, "The input of a boundary")
    digits = None if not precision else integer(precision, "The precision of a boundary")
    if entry is None or entry[0] is None:
        return NOTHING
    value = native(entry)
    if isinstance(value, Temporal):
        moment = _of_moment(value, _DEFAULT[value.kind] if digits is None else digits, high)
        return NOTHING if moment is None else [system(moment)]
    amount = value.value if isinstance(value, Quantity) else value
    if isinstance(amount, bool) or not isinstance(amount, int | Decimal):
        return NOTHING
    bound = _of_number(Decimal(amount), 8 if digits is None else digits, high)
    if bound is None:
        return NOTHING
    return [system(Quantity(bound, value.unit, value.calendar, value.system) if isinstance(value, Quantity) else bound)]


def _places(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _of_number(value: Decimal, digits: int, high: bool) -> Decimal | None:
    if not 0 <= digits <= MAX_DIGITS:
        return None
    with localcontext() as context:
        context.prec = 80
        half = Decimal(5).scaleb(-_places(value) - 1)
        bound = value + half if high else value - half
        return bound.quantize(Decimal(1).scaleb(-digits), ROUND_CEILING if high else ROUND_FLOOR)


def _of_moment(value: Temporal, digits: int, high: bool) -> Temporal | None:
    table = _DIGITS if value.kind != "Time" else tuple(number - 8 for number in _DIGITS[3:])
    if digits not in table or (value.kind == "Date" and digits > 8):
        return None
    length = table.index(digits) + 1
    parts = list(value.parts[:length])
    first = 0 if value.kind != "Time" else 3
    while len(parts) < length:
        parts.append(_limit(first + len(parts), parts, high))
    zone = value.zone
    if value.kind == "DateTime" and length > 3 and zone is None:
        zone = _WEST if high else _EAST
    return Temporal(value.kind, tuple(parts), zone if length > 3 else None, value.utc and length > 3)


def _limit(unit: int, parts: list[int], high: bool) -> int:
    if not high:
        return 1 if unit in (1, 2) else 0
    return (0, 12, monthrange(parts[0], parts[1])[1] if unit == 2 else 0, 23, 59, 59, 999)[unit]

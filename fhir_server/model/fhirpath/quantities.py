"""Amounts with a unit: comparing and calculating. https://hl7.org/fhirpath/N1/#quantity

Units are understood through a function from (value, UCUM code) to (value in base units, base units); the one here knows
the metric prefixes of grams, metres, litres, moles, seconds and the fixed units of time, enough without a terminology.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final

UCUM: Final = "http://unitsofmeasure.org"
Canonical = Callable[[Decimal, str], tuple[Fraction, str] | None]  # None: not a unit it knows

TIME_UNITS: Final = {"wk": "week", "d": "day", "h": "hour", "min": "minute", "s": "second", "ms": "millisecond"}
_CALENDAR: Final = {name: code for code, name in TIME_UNITS.items()} | {"year": "a", "month": "mo"}
_SECONDS: Final = {"wk": 604_800, "d": 86_400, "h": 3_600, "min": 60}
_PREFIXES: Final = {
    "": 0, "k": 3, "h": 2, "da": 1, "d": -1, "c": -2, "m": -3, "u": -6, "n": -9, "p": -12, "M": 6, "G": 9,
}  # fmt: skip
_METRIC: Final = {"g": ("g", 0), "m": ("m", 0), "mol": ("mol", 0), "L": ("m3", -3), "l": ("m3", -3), "s": ("s", 0)}


@dataclass(frozen=True, slots=True)
class Quantity:
    """`unit` is a UCUM code; if `calendar`, the singular name of a calendar duration. A FHIR unit of another system is
    kept with its system and compares with its equal only."""

    value: Decimal
    unit: str = "1"
    calendar: bool = False
    system: str = UCUM

    def as_fhir(self) -> dict[str, Any]:
        if self.calendar:
            return {"value": self.value, "unit": self.unit, "system": UCUM, "code": _CALENDAR[self.unit]}
        return {"value": self.value, "unit": self.unit, "system": self.system, "code": self.unit}

    def __str__(self) -> str:
        if self.calendar:
            return f"{self.value:f} {self.unit}" + ("s" if self.value != 1 else "")
        return f"{self.value:f} '{self.unit}'"

    def base(self, canonical: Canonical) -> tuple[Fraction, str] | None:
        """Value in the base unit of its dimension, and that dimension; None for a unit nobody knows.

        A calendar year or month has no fixed length: its dimension is its own.
        """
        if self.system != UCUM:
            return None
        if self.calendar and self.unit in ("year", "month"):
            return Fraction(self.value) * (12 if self.unit == "year" else 1), "calendar"
        return canonical(self.value, _CALENDAR[self.unit] if self.calendar else self.unit)


def of_fhir(value: dict[str, Any]) -> Quantity | None:
    """A FHIR Quantity without a comparator → Quantity; None if it has no number."""
    amount = value.get("value")
    if amount is None or "comparator" in value or isinstance(amount, bool | str):
        return None
    unit = value.get("code") or value.get("unit") or "1"
    return Quantity(Decimal(str(amount)) if isinstance(amount, float) else Decimal(amount), unit, False,
                    value.get("system") or UCUM)  # fmt: skip


def same_dimension(one: Quantity, other: Quantity, canonical: Canonical) -> tuple[Fraction, Fraction] | None:
    """Both values in one unit; None if they cannot be compared."""
    if one.unit == other.unit and one.calendar == other.calendar and one.system == other.system:
        return Fraction(one.value), Fraction(other.value)
    left, right = one.base(canonical), other.base(canonical)
    if left is None or right is None or left[1] != right[1]:
        return None
    return left[0], right[0]


def in_unit(amount: Quantity, unit: Quantity, canonical: Canonical) -> Decimal | None:
    """The value of `amount` in the unit of `unit`; a temperature's zero is taken into account."""
    values = same_dimension(amount, replace(unit, value=Decimal(0)), canonical)
    one = same_dimension(amount, replace(unit, value=Decimal(1)), canonical)
    if values is None or one is None or one[1] == values[1]:
        return None
    found = (values[0] - values[1]) / (one[1] - values[1])
    return Decimal(found.numerator) / Decimal(found.denominator)


def canonical(value: Decimal, unit: str) -> tuple[Fraction, str] | None:
    """(value in base units, dimension). Products and quotients of the units named above."""
    known = _unit(unit)
    return None if known is None else (Fraction(value) * known[0], known[1])


@lru_cache(maxsize=512)
def _unit(unit: str) -> tuple[Fraction, str] | None:
    factor, powers = Fraction(1), dict[str, int]()
    for index, group in enumerate(unit.split("/")):
        for part in group.split("."):
            symbol = part.rstrip("0123456789") or part
            power_text = part[len(symbol) :] or "1"
            found = _simple(symbol)
            if found is None or len(power_text) > 1:
                return None
            exponent = int(power_text) * (1 if index == 0 else -1)
            factor *= found[0] ** exponent
            for dimension, power in found[1].items():
                powers[dimension] = powers.get(dimension, 0) + power * exponent
    return factor, ".".join(f"{name}{power}" for name, power in sorted(powers.items()) if power)


def _simple(symbol: str) -> tuple[Fraction, dict[str, int]] | None:
    if symbol in ("1", ""):
        return Fraction(1), {}
    if symbol == "%":
        return Fraction(1, 100), {}
    if symbol in _SECONDS:
        return Fraction(_SECONDS[symbol]), {"s": 1}
    for length in range(3):
        prefix, rest = symbol[:length], symbol[length:]
        if rest in _METRIC and prefix in _PREFIXES:
            dimension, shift = _METRIC[rest]
            factor = Fraction(10) ** (_PREFIXES[prefix] + shift)
            return factor, {"m": 3} if dimension == "m3" else {dimension: 1}
    return None


def multiply(one: Quantity, other: Quantity, divide: bool) -> Quantity | None:
    """Product or quotient; units that are the same cancel. None for division by zero and for calendar durations."""
    if (divide and other.value == 0) or one.calendar or other.calendar:
        return None
    value = one.value / other.value if divide else one.value * other.value
    if other.unit == "1":
        return Quantity(value, one.unit)
    if divide:
        return Quantity(value, "1" if one.unit == other.unit else f"{'' if one.unit == '1' else one.unit}/{other.unit}")
    return Quantity(value, other.unit if one.unit == "1" else f"{one.unit}.{other.unit}")

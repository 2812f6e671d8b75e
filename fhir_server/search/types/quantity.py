"""Quantities: numbers with units, compared after conversion. https://hl7.org/fhir/R4/search.html#quantity

One array of `{k, lo, hi}` per parameter, `k` the unit in which the numbers are:

    ""             any unit: the number as it was written          |mg            the code or the unit's text
    ~g.m-3         UCUM base units, for units that UCUM knows      <hash>|code    code of a system that is not UCUM

A value that is no point (a Range, samples, "less than 5") has `^` before all that: the index on (k, lo) finds points above or
below a number by reading no others, and the few that are wide stand apart.

`5.4|http://unitsofmeasure.org|mg` is asked in base units and so finds 0.0054 g. Amounts of substance and mass meet only where
the code beside the value says what the substance is (terminology/analytes.py): then the entry is there in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from math import nextafter
from typing import Any

from fhir_server.errors import BadRequest
from fhir_server.search.escape import split_escaped
from fhir_server.search.operands import Amount, Operand, Span
from fhir_server.search.types import number
from fhir_server.search.types.number import Entry, parse_exact, span
from fhir_server.search.types.token import CANONICALS_OF_UNITS, system_key
from fhir_server.terminology import analytes, units

MODIFIERS = frozenset({"missing"})
UCUM = "http://unitsofmeasure.org"
WIDE = "^"
_INFINITY = float("inf")
# comparator → (is the low end open to infinity, the high end, is the end that is given excluded)
_COMPARATORS = {
    "<": (True, False, True),
    "<=": (True, False, False),
    ">": (False, True, True),
    ">=": (False, True, False),
}
_PLAIN = (False, False, False)


@lru_cache(maxsize=4_096)
def _linear(unit: str) -> tuple[Fraction, Fraction, str] | None:
    """(factor, offset, base units): base = value x factor + offset."""
    zero, one = units.canonical(Fraction(0), unit), units.canonical(Fraction(1), unit)
    if zero is None or one is None:
        return None
    return one[0] - zero[0], zero[0], one[1]


def _base(value: Decimal | int, unit: str, context: Any) -> tuple[Fraction, str] | None:
    linear = _linear(unit)
    if linear is None:
        return None
    factor, offset, base = linear
    return Fraction(value) * factor + offset, base


def _molar(value: Decimal | int, unit: str, context: Any) -> tuple[Fraction, str] | None:
    """The same amount in moles where it was given as mass, in mass where it was given in moles."""
    concept = context.get("code") if context is not None else None
    if type(concept) is not dict:
        return None
    known = analytes.analyte([c for c in concept.get("coding", ()) if type(c) is dict])
    if known is None or known.molar_mass is None:
        return None
    linear = _linear(unit)
    if linear is None:
        return None
    as_mass = units.canonical(Fraction(1), unit, known.molar_mass)
    if as_mass is not None and as_mass[1] != linear[2]:
        return Fraction(value) * as_mass[0], as_mass[1]
    for molar_unit in ("mol/L", "mol"):
        factor = _linear(molar_unit)
        assert factor is not None
        mass = units.canonical(Fraction(1), molar_unit, known.molar_mass)
        if mass is not None and mass[1] == linear[2]:
            base = Fraction(value) * linear[0] + linear[1]
            return base / mass[0] * factor[0], factor[2]
    return None


def quantity(value: Mapping[str, Any], context: Any = None) -> list[Entry]:
    exact = value.get("value")
    if type(exact) is bool or not isinstance(exact, int | Decimal):
        return []
    low, high, excluded = _COMPARATORS.get(value.get("comparator", ""), _PLAIN)
    found = _entries(
        None if low else exact,
        None if high else exact,
        value.get("system"),
        value.get("code"),
        value.get("unit"),
        context,
    )
    if excluded:
        for entry in found:
            if low:
                entry["hi"] = nextafter(entry["hi"], -_INFINITY)
            else:
                entry["lo"] = nextafter(entry["lo"], _INFINITY)
    return found


def _entries(low: Any, high: Any, system: Any, code: Any, unit: Any, context: Any) -> list[Entry]:
    """Of a value from `low` to `high`; None is an open end."""
    if low is None and high is None:
        return []
    lo = -_INFINITY if low is None else float(low)
    hi = _INFINITY if high is None else float(high)
    wide = "" if low == high else WIDE
    found = [{"k": wide, "lo": lo, "hi": hi}]
    if type(code) is str:
        found.append({"k": f"{wide}|{code}", "lo": lo, "hi": hi})
    if type(unit) is str and unit != code:
        found.append({"k": f"{wide}|{unit}", "lo": lo, "hi": hi})
    if type(code) is not str or type(system) is not str:
        return found
    if system != UCUM or _linear(code) is None:
        found.append({"k": f"{wide}{system_key(system)}|{code}", "lo": lo, "hi": hi})
        return found
    for convert in (_base, _molar):
        least = None if low is None else convert(low, code, context)
        most = least if high == low else None if high is None else convert(high, code, context)
        known = least or most
        if known is not None:
            found.append(
                {
                    "k": f"{wide}~{known[1]}",
                    "lo": float(least[0]) if least else -_INFINITY,
                    "hi": float(most[0]) if most else _INFINITY,
                }
            )
    return found


def range_(value: Mapping[str, Any], context: Any = None) -> list[Entry]:
    low, high = value.get("low") or {}, value.get("high") or {}
    unit = low or high
    if low.get("code") != high.get("code") and low and high:
        return []  # ends in two units are against the Range's own rules
    return _entries(
        low.get("value"), high.get("value"), unit.get("system"), unit.get("code"), unit.get("unit"), context
    )


def money(value: Mapping[str, Any], context: Any = None) -> list[Entry]:
    number, currency = value.get("value"), value.get("currency")
    if type(number) is bool or not isinstance(number, int | Decimal):
        return []
    return _entries(number, number, CANONICALS_OF_UNITS, currency, None, None)


def sampled(value: Mapping[str, Any], context: Any = None) -> list[Entry]:
    """From the lowest to the highest sample; `E`, `L` and `U` are no numbers."""
    origin = value.get("origin") or {}
    factor, zero = Decimal(value.get("factor") or 1), Decimal(origin.get("value") or 0)
    samples: list[Decimal] = []
    for text in str(value.get("data") or "").split():
        try:
            samples.append(Decimal(text) * factor + zero)
        except ArithmeticError:
            continue
    if not samples:
        return []
    return _entries(min(samples), max(samples), origin.get("system"), origin.get("code"), origin.get("unit"), context)


ENTRIES: dict[str, Callable[..., list[Entry]]] = {
    **dict.fromkeys(("Quantity", "Age", "Count", "Distance", "Duration", "SimpleQuantity", "MoneyQuantity"), quantity),
    "Range": range_,
    "Money": money,
    "SampledData": sampled,
}


def matches(operand: Amount, entry: Mapping[str, Any]) -> bool:
    return entry["k"] in (operand.key, WIDE + operand.key) and number.matches(operand.span, entry)


def conditions(operand: Amount) -> list[dict[str, Any]]:
    """Alternatives for one element: a point, which has no second end to ask for, or a wide value."""
    found: list[dict[str, Any]] = []
    for bounds in number.bounds(operand.span):
        point: dict[str, Any] = {}
        for limits in bounds.values():
            point.update(limits)
        found.append({"k": operand.key, "lo": point})
        found.append({"k": WIDE + operand.key, **bounds})
    return found


def parse(text: str, modifier: str) -> Operand:
    parts = split_escaped(text, "|")
    if len(parts) not in (1, 3):
        raise BadRequest("must be number, or number|system|code")
    prefix, value, half = parse_exact(parts[0])
    if len(parts) == 1 or not (parts[1] or parts[2]):
        return Amount("", span(prefix, value, half))
    _, system, code = parts
    if not code:
        raise BadRequest("names a system of units, but no unit")
    if not system:
        return Amount("|" + code, span(prefix, value, half))
    linear = _linear(code) if system == UCUM else None
    if linear is None:
        return Amount(f"{system_key(system)}|{code}", span(prefix, value, half))
    factor, offset, base = linear
    if prefix == "ap":
        half = abs(value) / 10
    low, high = (value - half) * factor + offset, (value + half) * factor + offset
    return Amount("~" + base, Span(prefix, float(value * factor + offset), float(low), float(high)))

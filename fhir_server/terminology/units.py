"""Units of measure, exact: UCUM expressions as fractions of base units. https://ucum.org/ucum

Factors come from `ucum.json` (made by `build_units.py`), everything is a `Fraction`, each unit string is
parsed once.

Differs from UCUM in two places, because clinical comparison needs it:
- `mol` is a dimension of its own, not the number 6.02e23: `mmol/L` of a substance and `10*9/L` of cells
  are not comparable.
- logarithmic and other non-linear units (`[pH]`, `B[W]`, `Np`, …) compare only with themselves; temperatures convert.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

SYSTEM = "http://unitsofmeasure.org"

MAX_LENGTH = 120  # characters of a unit; the longest in use are near 40
MAX_EXPONENT = 100  # 10*23 is in use, 10*999999999 is an attack

Dimension = tuple[tuple[str, int], ...]  # ((base unit, exponent), …) sorted by base unit, no zero exponents
Number = Decimal | Fraction | int


@dataclass(frozen=True, slots=True)
class Unit:
    """value in base units = value x factor + offset; only temperatures have an offset."""

    factor: Fraction
    dimension: Dimension
    offset: Fraction = Fraction(0)
    special: bool = False  # may stand only alone: a degree Celsius per minute has no meaning in UCUM

    def times(self, other: Unit, sign: int = 1) -> Unit:
        if self.special or other.special:
            raise ValueError("a special unit cannot be part of a product")
        return Unit(self.factor * other.factor**sign, _add(self.dimension, other.dimension, sign))


UNITY = Unit(Fraction(1), ())

# Temperatures: kelvin = (value + this) x factor. UCUM, section 22.
_AFFINE = {"Cel": Fraction("273.15"), "degF": Fraction("459.67"), "degRe": Fraction("218.52")}


def canonical(value: Number, unit: str, molar_mass: Number | None = None) -> tuple[Fraction, str] | None:
    """(value in base units, the base units as text such as `g.m-3`), None for a unit that UCUM does not know.

    With `molar_mass` (g/mol) an amount of substance becomes mass, so that mmol/L and mg/dL of glucose meet.
    """
    known = parse(unit)
    if known is None:
        return None
    amount = Fraction(value) * known.factor
    if known.offset:
        amount += known.offset
    if molar_mass is not None:
        moles = dict(known.dimension).get("mol", 0)
        if moles:
            massive = _add(known.dimension, (("g", 1), ("mol", -1)), moles)
            return amount * Fraction(molar_mass) ** moles, _text(massive)
    return amount, _text(known.dimension)


def convert(value: Number, from_unit: str, to_unit: str, *, molar_mass: Number | None = None) -> Decimal | None:
    """The value in `to_unit` (28 significant digits), None where the dimensions differ or a unit is unknown.

    `molar_mass` (g/mol) allows one step between mass and amount of substance (mg/dL ↔ mmol/L).
    """
    source, target = parse(from_unit), parse(to_unit)
    if source is None or target is None:
        return None
    amount = Fraction(value) * source.factor + source.offset
    if source.dimension != target.dimension:
        if molar_mass is None or not molar_mass:
            return None
        if _add(source.dimension, (("g", 1), ("mol", -1)), 1) == target.dimension:
            amount *= Fraction(molar_mass)
        elif _add(source.dimension, (("g", -1), ("mol", 1)), 1) == target.dimension:
            amount /= Fraction(molar_mass)
        else:
            return None
    return decimal((amount - target.offset) / target.factor)


def dimension(unit: str) -> str | None:
    """The base units of a unit as text (`mg/dL` → `g.m-3`, `{score}` → `1`), None for an unknown unit."""
    known = parse(unit)
    return None if known is None else _text(known.dimension)


def decimal(value: Fraction) -> Decimal:
    """A fraction as a decimal of at most 28 significant digits, in plain notation where it is a whole number."""
    with localcontext() as context:
        context.prec = 28
        quotient = Decimal(value.numerator) / Decimal(value.denominator)
        return quotient if value.denominator != 1 or abs(value) >= 10**28 else Decimal(value.numerator)


@lru_cache(maxsize=4096)
def parse(text: str) -> Unit | None:
    """A UCUM expression (case-sensitive codes) as a Unit; None if it is not one."""
    if not text or len(text) > MAX_LENGTH or not text.isascii():
        return None
    try:
        return _Parser(text).whole()
    except (ValueError, ZeroDivisionError):
        return None


def _add(left: Dimension, right: Dimension, sign: int) -> Dimension:
    exponents = dict(left)
    for base, exponent in right:
        exponents[base] = exponents.get(base, 0) + sign * exponent
    return tuple(sorted((base, exponent) for base, exponent in exponents.items() if exponent))


@lru_cache(maxsize=1024)
def _text(dimension: Dimension) -> str:
    return ".".join(base if exponent == 1 else f"{base}{exponent}" for base, exponent in dimension) or "1"


_TOKEN = re.compile(
    r"""(?P<annotation>\{[^{}]*\})
      | (?P<ten>10[*^])
      | (?P<number>\d+)
      | (?P<atom>(?:[^\[\](){}.+\-/\d\s"=] | \[[^\[\]\s]*\])+)
      | (?P<mark>[()./])
      | (?P<sign>[+-])""",
    re.VERBOSE,
)


class _Parser:
    """UCUM's grammar (section 2 of the specification), one method a production."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        position = 0
        while position < len(text):
            found = _TOKEN.match(text, position)
            if found is None:
                raise ValueError(f"no UCUM at {text[position:]!r}")
            self.tokens.append((found.lastgroup or "", found.group()))
            position = found.end()
        self.at = 0

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def take(self) -> tuple[str, str]:
        token = self.peek()
        self.at += 1
        return token

    def whole(self) -> Unit:
        unit = UNITY.times(self.term(), -1) if self.takes("/") else None
        unit = self.term() if unit is None else self.rest(unit)
        if self.peek()[0] != "end":
            raise ValueError("text after the unit")
        return unit

    def takes(self, mark: str) -> bool:
        if self.peek() == ("mark", mark):
            self.at += 1
            return True
        return False

    def term(self) -> Unit:
        return self.rest(self.component())

    def rest(self, unit: Unit) -> Unit:
        while self.peek() in (("mark", "."), ("mark", "/")):
            sign = 1 if self.take()[1] == "." else -1
            unit = unit.times(self.component(), sign)
        return unit

    def component(self) -> Unit:
        kind, text = self.take()
        if kind == "annotation":
            return UNITY
        if (kind, text) == ("mark", "("):
            unit = self.term()
            if not self.takes(")"):
                raise ValueError("a parenthesis is not closed")
        elif kind == "number":
            unit = Unit(Fraction(int(text)), ())
        elif kind in ("atom", "ten"):
            unit = self.power(_atom(text))
        else:
            raise ValueError(f"{text!r} cannot start a unit")
        if self.peek()[0] == "annotation":
            self.take()
        return unit

    def power(self, unit: Unit) -> Unit:
        sign = -1 if self.peek() == ("sign", "-") else 1
        signed = self.peek()[0] == "sign"
        if signed:
            self.take()
        if self.peek()[0] != "number":
            if signed:
                raise ValueError("a sign without an exponent")
            return unit
        exponent = sign * int(self.take()[1])
        if abs(exponent) > MAX_EXPONENT:
            raise ValueError("the exponent is too large")
        if unit.special:
            raise ValueError("a special unit has no powers")
        return Unit(unit.factor**exponent, tuple((base, n * exponent) for base, n in unit.dimension if exponent))


@cache
def _table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = json.loads(Path(__file__).with_name("ucum.json").read_text(encoding="utf-8"))
    return table


@cache
def _atom(text: str) -> Unit:
    """A unit atom, with or without a metric prefix. Raises ValueError."""
    plain = _plain(text)
    if plain is not None:
        return plain[0]
    for length in (1, 2):
        factor = _table()["prefixes"].get(text[:length])
        found = _plain(text[length:]) if factor and len(text) > length else None
        if found is not None and found[1]:
            unit, scale = found[0], Fraction(factor)
            return Unit(unit.factor * scale, unit.dimension, unit.offset, unit.special)
    raise ValueError(f"{text!r} is not a UCUM unit")


@cache
def _plain(code: str) -> tuple[Unit, bool] | None:
    """(the unit, whether it takes prefixes) of a code of the table."""
    if code in _table()["base"] or code == "mol":
        return Unit(Fraction(1), ((code, 1),)), True
    row = _table()["units"].get(code)
    if row is None:
        return None
    value, definition, flags, function = row
    metric = "m" in flags
    if function in _AFFINE:
        step = _Parser(definition).whole()
        factor = Fraction(value) * step.factor
        return Unit(factor, step.dimension, _AFFINE[function] * factor, special=True), metric
    if function or ("a" in flags and definition == "1"):
        return Unit(Fraction(1), ((code, 1),), special=bool(function)), metric
    defined = _Parser(definition).whole()
    return Unit(Fraction(value) * defined.factor, defined.dimension), metric

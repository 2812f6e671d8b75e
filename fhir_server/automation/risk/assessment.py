"""A score of given inputs: checked against its specification, computed, rounded, classed.

Missing is not false, and outside the validated range there is no number: both are errors that name the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any

from fhir_server.automation.risk import RISK_SCORES
from fhir_server.automation.risk.inputs import Inputs, Value
from fhir_server.automation.risk.specification import Band, Input, Specification
from fhir_server.terminology import units

DIGITS = 15  # before and after the decimal point: what is beyond costs time to convert, and nobody has measured it


class MissingInput(Exception):
    """`names`: every input that is needed and was not given."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(f"missing: {', '.join(names)}")
        self.names = names


class OutOfRange(Exception):
    """A value for which the score has not been validated. `low`, `high`: None where there is no limit."""

    def __init__(self, name: str, value: Decimal, low: Decimal | None, high: Decimal | None, unit: str = "") -> None:
        limits = f"{'' if low is None else low} to {'' if high is None else high}"
        super().__init__(f"{name} is {plain(value)}, outside the validated range {limits} {unit}".rstrip())
        self.name, self.value, self.low, self.high, self.unit = name, value, low, high, unit


class InvalidInput(Exception):
    """A value that is not one of this input's kind, unit or codes."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@dataclass(frozen=True, slots=True)
class Result:
    """`value` in `specification.unit`, rounded half up to its places; the band is that of the rounded value."""

    specification: Specification
    value: Decimal
    band: Band | None
    inputs: Inputs

    @property
    def unit(self) -> str:
        return self.specification.unit

    @property
    def outcome(self) -> str:
        return str(self.inputs.get("outcome", ""))


def compute(specification: Specification, given: Mapping[str, Any]) -> Result:
    """The score of `given` (input name → number, boolean, text or Quantity). Raises MissingInput, OutOfRange, InvalidInput."""
    inputs = checked(specification, given)
    raw = RISK_SCORES[specification.code](inputs)
    step = Decimal(1).scaleb(-specification.places)
    value = Decimal(str(raw)).quantize(step, ROUND_HALF_UP)
    band = next((band for band in specification.bands if band.holds(value, inputs)), None)
    return Result(specification, value, band, inputs)


def checked(specification: Specification, given: Mapping[str, Any]) -> dict[str, Value]:
    """Every input the formula will read, converted and in range. Raises MissingInput first, so that all names are known."""
    values: dict[str, Value] = {}
    for item in specification.inputs:
        if (raw := given.get(item.name)) is not None:
            values[item.name] = value_of(item, raw)
        elif item.default:
            values[item.name] = item.default
    wanted = [item for item in specification.inputs if item.wanted(values)]
    missing = tuple(item.name for item in wanted if not _given(specification, item, values))
    if missing:
        raise MissingInput(missing)
    for item in wanted:
        if item.name in values:
            _in_range(item, values[item.name])
    return values


def value_of(item: Input, raw: Any) -> Value:
    """A value of the input's kind; a Quantity is converted to the input's unit. Raises InvalidInput."""
    if item.kind == "boolean":
        return _boolean(item, raw)
    if item.kind == "code":
        code = str(raw).strip().lower()
        code = {"male": "m", "female": "f"}.get(code, code) if item.name == "sex" else code
        if code not in item.codes:
            raise InvalidInput(item.name, f"{raw!r} is not one of {', '.join(item.codes)}")
        return code
    if isinstance(raw, Mapping):
        return _quantity(item, raw)
    return _number(item, raw)


def plain(value: Decimal) -> str:
    """A number as people write it: no exponent, no trailing zeros."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _given(specification: Specification, item: Input, values: Mapping[str, Value]) -> bool:
    if item.name in values:
        return True
    if not item.alternative:
        return False
    return any(other.name in values for other in specification.inputs if other.alternative == item.alternative)


def _boolean(item: Input, raw: Any) -> bool:
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    value = known.get(str(raw).strip().lower())
    if value is None:
        raise InvalidInput(item.name, f"{raw!r} is neither true nor false")
    return value


def _number(item: Input, raw: Any) -> Decimal:
    try:
        value = Decimal(str(raw))
    except InvalidOperation:
        raise InvalidInput(item.name, f"{raw!r} is not a number") from None
    if isinstance(raw, bool) or not value.is_finite():
        raise InvalidInput(item.name, f"{raw!r} is not a number")
    if not -DIGITS <= value.adjusted() <= DIGITS:
        raise InvalidInput(item.name, f"{value} is not a number that anybody can have measured")
    if item.kind == "integer" and value != value.to_integral_value():
        raise InvalidInput(item.name, f"{raw!r} is not a whole number")
    return value if item.places is None else value.quantize(Decimal(1).scaleb(-item.places), "ROUND_DOWN")


def _quantity(item: Input, quantity: Mapping[str, Any]) -> Decimal:
    value, unit = _number(item, quantity.get("value")), str(quantity.get("code") or quantity.get("unit") or "")
    if not unit:
        return value
    converted = units.convert(value, unit, item.unit, molar_mass=item.molar_mass)
    if converted is None:
        raise InvalidInput(item.name, f"a value in {unit!r} cannot be read as {item.unit!r}")
    return converted


def _in_range(item: Input, value: Value) -> None:
    if not isinstance(value, Decimal):
        return
    # Converted values keep 28 digits: at the limit itself the last ones must not decide.
    near = value.quantize(Decimal("1e-9")) if abs(value) < 10**12 else value
    if (item.low is not None and near < item.low) or (item.high is not None and near > item.high):
        raise OutOfRange(item.name, value, item.low, item.high, item.unit)

"""What a formula is given: validated values by name, and the three small questions every formula asks of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from decimal import Decimal

Value = Decimal | bool | str
Inputs = Mapping[str, Value]  # names and units as the score's Library declares them


def number(inputs: Inputs, name: str) -> float:
    """A quantity, as the float that logarithms need."""
    return float(inputs[name])


def flag(inputs: Inputs, name: str) -> int:
    """A yes/no input as 1 or 0."""
    return 1 if inputs[name] else 0


def steps(value: Value, bounds: Sequence[str], points: Sequence[int]) -> int:
    """Points of a step table: `points[i]` applies from `bounds[i - 1]` (included) up to `bounds[i]` (not included).

    Bounds are text, so that they are the printed decimals and 24.0 is on the side the table puts it.
    """
    assert isinstance(value, Decimal)
    return points[bisect_right([Decimal(bound) for bound in bounds], value)]

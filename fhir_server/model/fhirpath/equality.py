"""Equal, equivalent, and what is the same when duplicates are removed. https://hl7.org/fhirpath/N1/#equality"""

from __future__ import annotations

from collections.abc import Hashable
from decimal import Decimal
from typing import Any

from fhir_server.model.fhirpath.quantities import Canonical, Quantity, in_unit, same_dimension
from fhir_server.model.fhirpath.temporal import Temporal
from fhir_server.model.fhirpath.values import Item, Items, native

Key = Hashable


def equal(left: Items, right: Items, canonical: Canonical) -> bool | None:
    """`=`: same items in the same order; None when either is empty or a date's precision leaves it open."""
    if not left or not right:
        return None
    if len(left) != len(right):
        return False
    verdict: bool | None = True
    for one, other in zip(left, right, strict=True):
        result = _equal(one, other, canonical)
        if result is False:
            return False
        if result is None:
            verdict = None
    return verdict


def _equal(one: Item, other: Item, canonical: Canonical) -> bool | None:
    left, right = native(one), native(other)
    if isinstance(left, Temporal) or isinstance(right, Temporal):
        left, right = temporals(left, right)
        if not isinstance(left, Temporal) or not isinstance(right, Temporal):
            return str(left) == str(right) if isinstance(left, str) or isinstance(right, str) else False
        if (left.kind == "Time") != (right.kind == "Time"):
            return False
        order = left.compare(right)
        return None if order is None else order == 0
    if isinstance(left, Quantity) or isinstance(right, Quantity):
        left, right = quantity(left), quantity(right)
        if left is None or right is None:
            return False
        if _inexact(left) != _inexact(right):
            return None
        values = same_dimension(left, right, canonical)
        if values is not None:
            return values[0] == values[1]
        return None if left.base(canonical) is None or right.base(canonical) is None else False
    return identity(one) == identity(other)


def _inexact(value: Quantity) -> bool:
    """A calendar year or month, whose length UCUM's `a` and `mo` do not share."""
    return value.calendar and value.unit in ("year", "month")


def equivalent(left: Items, right: Items, canonical: Canonical) -> bool:
    """`~`: same items in any order; text without case and spacing, numbers to the less exact of two."""
    if len(left) != len(right):
        return False
    rest = list(right)
    for one in left:
        for index, other in enumerate(rest):
            if _equivalent(one, other, canonical):
                del rest[index]
                break
        else:
            return False
    return True


def _equivalent(one: Item, other: Item, canonical: Canonical) -> bool:
    left, right = native(one), native(other)
    if isinstance(left, Temporal) or isinstance(right, Temporal):
        left, right = temporals(left, right)
        if not isinstance(left, Temporal) or not isinstance(right, Temporal):
            return False
        return (left.kind == "Time") == (right.kind == "Time") and left.compare(right) == 0
    if isinstance(left, Quantity) or isinstance(right, Quantity):
        left, right = quantity(left), quantity(right)
        return left is not None and right is not None and _equivalent_quantities(left, right, canonical)
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | Decimal) and isinstance(right, int | Decimal):
        return _rounded_equal(Decimal(left), Decimal(right))
    if isinstance(left, str) and isinstance(right, str):
        return " ".join(left.lower().split()) == " ".join(right.lower().split())
    if isinstance(left, dict) and isinstance(right, dict):
        return _equivalent_elements(left, right)
    return False


def _equivalent_quantities(left: Quantity, right: Quantity, canonical: Canonical) -> bool:
    units = {"year": "a", "month": "mo"}
    left = Quantity(left.value, units[left.unit]) if _inexact(left) else left
    right = Quantity(right.value, units[right.unit]) if _inexact(right) else right
    values = same_dimension(left, right, canonical)
    if values is None:
        return False
    if values[0] == values[1]:
        return True
    # In the left unit, to the digits of the less exact of the two.
    converted = in_unit(right, left, canonical)
    return converted is not None and _rounded_equal(left.value, converted)


def _rounded_equal(left: Decimal, right: Decimal) -> bool:
    places = min(_places(left), _places(right))
    quantum = Decimal(1).scaleb(-places)
    return left.quantize(quantum) == right.quantize(quantum)


def _places(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _equivalent_elements(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return _loose(left) == _loose(right)


def _loose(value: Any) -> Key:
    """Structure without ids, order, case and spacing."""
    if isinstance(value, dict):
        return frozenset((key, _loose(child)) for key, child in value.items() if key != "id")
    if isinstance(value, list):
        return ("list", tuple(sorted(map(repr, map(_loose, value)))))
    if isinstance(value, str):
        return " ".join(value.lower().split())
    return exact(value)


def identity(entry: Item) -> Key:
    """Equal keys: the same value. Types do not matter: the code `male` is the string `male`."""
    value = native(entry)
    if isinstance(value, Temporal):
        if value.zone is None:
            return ("moment", value.kind == "Time", value.precision, value.bounds()[0])
        return ("instant", value.precision, value.bounds()[0])
    return exact(value)


def exact(value: Any) -> Key:
    """A JSON value → hashable; numbers by value, so that 1 is 1.0; the keys of an object in any order."""
    if isinstance(value, dict):
        return frozenset((key, exact(child)) for key, child in value.items())
    if isinstance(value, list):
        return tuple(map(exact, value))
    if isinstance(value, bool):
        return ("boolean", value)
    hashable: Key = value
    return hashable


def distinct(collection: Items) -> Items:
    """The first of each."""
    if len(collection) < 2:
        return collection
    seen: set[Key] = set()
    out: Items = []
    for entry in collection:
        key = identity(entry)
        if key not in seen:
            seen.add(key)
            out.append(entry)
    return out


def temporals(left: Any, right: Any) -> tuple[Any, Any]:
    """A text beside a date is read as a date, as FHIR's dates are texts."""
    if isinstance(left, str) and isinstance(right, Temporal):
        return _read(left, right.kind), right
    if isinstance(right, str) and isinstance(left, Temporal):
        return left, _read(right, left.kind)
    return left, right


def _read(value: str, kind: str) -> Temporal | str:
    try:
        return Temporal.parse(value, "Time" if kind == "Time" else "DateTime")
    except ValueError:
        return value


def quantity(value: Any) -> Quantity | None:
    """A number is an amount of unit 1."""
    if isinstance(value, Quantity):
        return value
    return Quantity(Decimal(value)) if isinstance(value, int | Decimal) and not isinstance(value, bool) else None

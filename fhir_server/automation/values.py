"""What a fact's readings amount to: the value of each in the wanted unit, and one answer made of them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from fhir_server.automation.chart import Reading
from fhir_server.automation.formulas import Formula
from fhir_server.automation.requirements import FactDefinition
from fhir_server.automation.terms import Codes, codes_of
from fhir_server.model.dates import DAY
from fhir_server.terminology import analytes, units


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to one fact. `at`: time of the newest reading used (ms). `problems`: readings that could not be used, why."""

    values: tuple[Any, ...] = ()
    at: int | None = None
    sources: tuple[Reading, ...] = ()
    problems: tuple[str, ...] = ()


NOTHING = Found()


def no_variable(name: str) -> None:
    return None


def fits(where: Formula, reading: Reading) -> bool:
    known: bool | None = reading.memo.get(where.text)
    if known is None:
        known = reading.memo[where.text] = where.holds(reading.resource, no_variable)
    return known


def value(definition: FactDefinition, reading: Reading, problems: list[str]) -> Any:
    """One reading's value, None if it has none that can be used. Kept with the reading: charts outlive a pass."""
    known = reading.memo.get(definition.same, _UNKNOWN)
    if known is not _UNKNOWN:
        value, problem = known
    else:
        value, problem = _work_out(definition, reading)
        reading.memo[definition.same] = (value, problem)
    if problem:
        problems.append(problem)
    return value


_UNKNOWN: Any = object()


def _work_out(definition: FactDefinition, reading: Reading) -> tuple[Any, str]:
    resource = reading.resource
    code = ""
    found: Any
    if definition.value is not None:
        found = definition.value.one(resource, no_variable)
    elif definition.component is not None:
        element = _component(resource, definition.component)
        found = _content(element) if element is not None else None
        code = _loinc(element)
    elif reading.key[0] == "Observation":
        found, code = _content(resource), _loinc(resource)
    else:
        return resource, ""
    if isinstance(found, dict) and "value" in found:
        found, problem = _number(definition, found, code)
        if problem:
            return None, f"{reading.reference}: {problem}"
    elif isinstance(found, dict):
        first = next(iter(codes_of(found)), None)
        found = first[1] if first else found
    elif definition.unit and isinstance(found, int) and not isinstance(found, bool):
        found = Decimal(found)
    if found is not None and definition.formula is not None:
        found = definition.formula.one(found, no_variable)
    return found, ""


def _component(resource: Mapping[str, Any], wanted: Codes) -> Mapping[str, Any] | None:
    for component in resource.get("component", ()):
        if any(wanted.has(code) for code in codes_of(component.get("code"))):
            return component  # type: ignore[no-any-return]
    if any(wanted.has(code) for code in codes_of(resource.get("code"))):
        return resource
    return None


_CONTENT = ("valueQuantity", "valueCodeableConcept", "valueBoolean", "valueInteger", "valueString", "valueDateTime")


def _content(element: Mapping[str, Any]) -> Any:
    return next((element[name] for name in _CONTENT if name in element), None)


def _loinc(element: Mapping[str, Any] | None) -> str:
    if element is None:
        return ""
    return next((code for system, code in codes_of(element.get("code")) if system == analytes.LOINC), "")


def _number(definition: FactDefinition, quantity: Mapping[str, Any], code: str) -> tuple[Decimal | None, str]:
    """A Quantity in the wanted unit; or why not."""
    value = quantity.get("value")
    if isinstance(value, int) and not isinstance(value, bool):
        value = Decimal(value)
    if not isinstance(value, Decimal):
        return None, "the quantity has no value"
    if not definition.unit:
        return value, ""
    unit = quantity.get("code") if quantity.get("system", units.SYSTEM) == units.SYSTEM else None
    unit = unit or quantity.get("unit")
    if unit == definition.unit:
        return value, ""
    if not unit:
        return None, f"{value} has no unit, {definition.unit} is needed"
    if definition.molar_mass is not None:
        converted = units.convert(value, str(unit), definition.unit, molar_mass=definition.molar_mass)
    else:
        converted = analytes.convert(value, str(unit), definition.unit, code)
    if converted is None:
        return None, f"{value} {unit} cannot be read as {definition.unit}"
    return converted, ""


def aggregate(definition: FactDefinition, newest_first: list[tuple[Reading, Any]], problems: tuple[str, ...]) -> Found:
    picked = newest_first[::-1]
    if definition.day_first_dropped and picked:
        first = picked[0][0].at // DAY
        picked = [one for one in picked if one[0].at // DAY != first]
    kind = definition.aggregate
    readings = tuple(reading for reading, _ in picked)
    newest = readings[-1].at if readings else None
    if kind in ("exists", "asserted"):
        present = bool(picked)
        return Found((present,) if present or kind == "exists" else (), newest, readings, problems)
    if kind == "count":
        return Found((len(picked),), newest, readings, problems)
    if len(picked) < max(1, definition.at_least):
        return Found(problems=problems)
    if definition.distinct_days > 1 and len({reading.at // DAY for reading in readings}) < definition.distinct_days:
        return Found(problems=problems)
    values = [value for _, value in picked]
    if kind == "last":
        return Found((values[-1],), newest, readings[-1:], problems)
    if kind == "first":
        return Found((values[0],), readings[0].at, readings[:1], problems)
    if kind == "all":
        return Found(tuple(values), newest, readings, problems)
    return Found(_numeric(kind, readings, values), newest, readings, problems)


def _numeric(kind: str, readings: Sequence[Reading], values: Sequence[Any]) -> tuple[Decimal, ...]:
    numbers = [value for value in values if isinstance(value, Decimal)]
    if len(numbers) != len(values) or not numbers:
        return ()
    if kind == "min":
        return (min(numbers),)
    if kind == "max":
        return (max(numbers),)
    mean = sum(numbers, Decimal(0)) / len(numbers)
    if kind == "mean":
        return (round(mean, 6).normalize() + 0,)
    days = [Decimal(reading.at) / DAY for reading in readings]
    middle = sum(days, Decimal(0)) / len(days)
    spread = sum(((day - middle) ** 2 for day in days), Decimal(0))
    if len(numbers) < 2 or spread == 0:
        return ()
    rise = sum(((day - middle) * (number - mean) for day, number in zip(days, numbers, strict=True)), Decimal(0))
    return (round(rise / spread, 6).normalize() + 0,)

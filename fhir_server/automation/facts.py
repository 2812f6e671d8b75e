"""Facts: named inputs of rules, found in a chart. https://hl7.org/fhir/R4/metadatatypes.html#DataRequirement

A FactDefinition is a DataRequirement with our `fact` extension (docs/hooks.md, Facts). A Moment is a chart looked at from
one instant: every rule that asks for the same fact shares the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, get_args

from fhir_server.automation.chart import Chart, Reading, codes
from fhir_server.automation.formulas import Formula
from fhir_server.automation.terms import Code, Codes, codes_of
from fhir_server.model.dates import DAY, instant
from fhir_server.model.fhirpath.temporal import Temporal
from fhir_server.terminology import analytes, units

Aggregate = Literal["last", "first", "all", "mean", "min", "max", "count", "slope", "exists", "asserted"]
AGGREGATES: frozenset[str] = frozenset(get_args(Aggregate))
NUMERIC = frozenset({"mean", "min", "max", "slope"})
AHEAD = DAY  # clocks of devices and zones left out: a reading of tomorrow is still a reading


@dataclass(frozen=True, slots=True)
class Filter:
    """One codeFilter: the element at `path` has one of `codes`."""

    path: str
    codes: Codes
    indexed: frozenset[Code] | None = field(init=False, default=None, compare=False)

    def __post_init__(self) -> None:
        if self.path == "code" and not self.codes.patterns and all(system for system, _ in self.codes.listed):
            object.__setattr__(self, "indexed", self.codes.listed)

    def matches(self, reading: Reading) -> bool:
        found = reading.codes if self.path == "code" else codes(reading.resource, self.path)
        return any(self.codes.has(code) for code in found)


def indexed(filters: Sequence[Filter]) -> frozenset[Code] | None:
    """The codes of the first filter, where the index of codes answers it; None where every resource must be looked at."""
    return filters[0].indexed if filters else None


@dataclass(frozen=True, slots=True, eq=False)
class FactDefinition:
    """What to look for and how to make one value of it. `within` in ms, 0 for any age; compared by identity."""

    name: str
    type: str
    filters: tuple[Filter, ...] = ()
    within: int = 0
    limit: int = 0
    aggregate: str = "last"
    component: Codes | None = None
    unit: str = ""
    molar_mass: Decimal | None = None
    value: Formula | None = None
    formula: Formula | None = None
    where: Formula | None = None
    at_least: int = 1
    distinct_days: int = 1
    day_first_dropped: bool = False

    def candidates(self, chart: Chart) -> list[Reading]:
        """Oldest first; by the index of codes where the first filter allows it."""
        listed = indexed(self.filters)
        if listed is None:
            return [reading for reading in chart.of_type(self.type) if all(f.matches(reading) for f in self.filters)]
        lists = [found for code in listed if (found := chart.coded(self.type, code))]
        if not lists:
            return []
        merged = lists[0] if len(lists) == 1 else sorted({id(r): r for one in lists for r in one}.values())
        others = self.filters[1:]
        return [r for r in merged if all(f.matches(r) for f in others)] if others else merged


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to one fact. `at`: time of the newest reading used (ms). `problems`: readings that could not be used, why."""

    values: tuple[Any, ...] = ()
    at: int | None = None
    sources: tuple[Reading, ...] = ()
    problems: tuple[str, ...] = ()


NOTHING = Found()


@dataclass(eq=False)
class Moment:
    """A chart as it was at `now` (ms): nothing later is seen. `tags` are codes, `variables` whatever else has a name."""

    chart: Chart
    now: int
    tags: frozenset[str] = frozenset()
    until: int | None = None  # readings after this are not seen (facts as of a focus)
    _found: dict[int, Found] = field(default_factory=dict)
    _age: int | None = None

    def __post_init__(self) -> None:
        self.today = instant(self.now)[:10]
        self._age = self._years()

    def find(self, definitions: Sequence[FactDefinition]) -> Found:
        """The first definition that gives a value; otherwise nothing, with every problem met on the way."""
        problems: tuple[str, ...] = ()
        for definition in definitions:
            found = self._found.get(id(definition))
            if found is None:
                found = self._found[id(definition)] = self._look(definition)
            if found.values:
                return found
            problems += found.problems
        return Found(problems=problems) if problems else NOTHING

    def _look(self, definition: FactDefinition) -> Found:
        if definition.type == "Patient":
            return self._of_patient(definition)
        latest = self.until if self.until is not None else self.now + AHEAD
        earliest = self.now - definition.within if definition.within else None
        picked: list[tuple[Reading, Any]] = []
        problems: list[str] = []
        enough = 1 if definition.aggregate in ("last", "exists", "asserted") else definition.limit
        for reading in reversed(definition.candidates(self.chart)):
            if reading.at > latest or not reading.usable:
                continue
            if earliest is not None and reading.at < earliest:
                break
            if definition.where is not None and not _fits(definition.where, reading):
                continue
            value = _value(definition, reading, problems)
            if value is None:
                continue
            picked.append((reading, value))
            if enough and len(picked) >= enough:
                break
        return _aggregate(definition, picked, tuple(problems))

    def _of_patient(self, definition: FactDefinition) -> Found:
        reading = self.chart.get(("Patient", self.chart.id))
        if reading is None:
            return NOTHING
        if definition.value is None:
            return Found((reading.resource,), None, (reading,))
        values = tuple(definition.value(reading.resource, _no_variable))
        if definition.aggregate == "exists":
            values = (bool(values),)
        return Found(values, None, (reading,) if values else ())

    def age(self) -> int | None:
        """Completed years, None without a birth date (a year alone gives the years between)."""
        return self._age

    def _years(self) -> int | None:
        patient = self.chart.patient
        birth = str(patient.get("birthDate", "")) if patient else ""
        if not birth:
            return None
        today = self.today
        years = int(today[:4]) - int(birth[:4])
        return years - 1 if birth[5:] and today[5:] < birth[5:] else years

    def builtin(self, name: str) -> Any:
        """The variables that are always there; None for any other name."""
        match name:
            case "patient":
                return self.chart.patient
            case "age":
                return self.age()
            case "sex":
                patient = self.chart.patient
                return patient.get("gender") if patient else None
            case "now":
                return temporal(self.now)
            case "today":
                return Temporal.parse(self.today, "Date")
            case "tags":
                return sorted(self.tags)
        return None


BUILTINS = frozenset(
    {
        "patient",
        "age",
        "sex",
        "now",
        "today",
        "tags",
        "focus",
        "missing",
        "missing_zh",
        "score",
        "band",
        "previous_status",
    }
)


class Facts:
    """The variables of one rule at one moment; what FHIRPath and Python rules ask."""

    __slots__ = ("definitions", "extra", "moment", "parameters", "used")

    def __init__(
        self,
        moment: Moment,
        definitions: Mapping[str, Sequence[FactDefinition]],
        parameters: Mapping[str, Any],
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.moment, self.definitions, self.parameters = moment, definitions, parameters
        self.extra: dict[str, Any] = dict(extra or {})
        self.used: dict[str, Found] = {}

    def find(self, name: str) -> Found:
        found = self.used.get(name)
        if found is None:
            found = self.used[name] = self.moment.find(self.definitions[name])
        return found

    def variable(self, name: str) -> Any:
        """What `%name` is in an expression."""
        if name in self.extra:
            return self.extra[name]
        if name in self.definitions:
            return list(self.find(name).values)
        base, _, what = name.rpartition("_")
        if base in self.definitions:
            found = self.find(base)
            if what == "at":
                return None if found.at is None else temporal(found.at)
            if what == "source":
                return [reading.resource for reading in found.sources]
            if what == "count":
                return len(found.sources)
        if name in self.parameters:
            return self.parameters[name]
        return self.moment.builtin(name)

    def number(self, name: str) -> Decimal | None:
        """One number, None if there is none."""
        found = self.find(name).values
        return found[-1] if found and isinstance(found[-1], Decimal) else None

    def value(self, name: str) -> Any:
        found = self.find(name).values
        return found[-1] if found else None

    def values(self, name: str) -> tuple[Any, ...]:
        return self.find(name).values

    @property
    def patient(self) -> Any:
        return self.moment.chart.patient

    @property
    def age(self) -> int | None:
        return self.moment.age()

    @property
    def now(self) -> int:
        return self.moment.now

    def sources(self) -> list[Reading]:
        """Every resource that was asked for and used, without repetition."""
        return list({id(r): r for found in self.used.values() for r in found.sources}.values())


def temporal(milliseconds: int) -> Temporal:
    return Temporal.parse(instant(milliseconds), "DateTime")


def _no_variable(name: str) -> None:
    return None


def _fits(where: Formula, reading: Reading) -> bool:
    known: bool | None = reading.memo.get(where.text)
    if known is None:
        known = reading.memo[where.text] = where.holds(reading.resource, _no_variable)
    return known


def _value(definition: FactDefinition, reading: Reading, problems: list[str]) -> Any:
    """One reading's value, None if it has none that can be used. Kept with the reading: charts outlive a pass."""
    known = reading.memo.get(id(definition), _UNKNOWN)
    if known is not _UNKNOWN:
        value, problem, _ = known
    else:
        value, problem = _work_out(definition, reading)
        reading.memo[id(definition)] = (value, problem, definition)  # the definition too, so that its id stays taken
    if problem:
        problems.append(problem)
    return value


_UNKNOWN: Any = object()


def _work_out(definition: FactDefinition, reading: Reading) -> tuple[Any, str]:
    resource = reading.resource
    code = ""
    found: Any
    if definition.value is not None:
        found = definition.value.one(resource, _no_variable)
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
        found = definition.formula.one(found, _no_variable)
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


def _aggregate(definition: FactDefinition, newest_first: list[tuple[Reading, Any]], problems: tuple[str, ...]) -> Found:
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


Resolve = Callable[[str], Mapping[str, Any] | None]

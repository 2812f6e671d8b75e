"""Facts: named inputs of rules, found in a chart. https://hl7.org/fhir/R4/metadatatypes.html#DataRequirement

A Moment is a chart looked at from one instant: every rule that asks for the same fact shares the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

from fhir_server.automation import values
from fhir_server.automation.chart import Chart, Reading
from fhir_server.automation.requirements import FactDefinition
from fhir_server.automation.values import NOTHING, Found
from fhir_server.model.dates import DAY, instant
from fhir_server.model.fhirpath.temporal import Temporal

AHEAD = DAY  # clocks of devices and zones left out: a reading of tomorrow is still a reading


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
            found = self._found.get(definition.same)
            if found is None:
                found = self._found[definition.same] = self._answer(definition)
            if found.values:
                return found
            problems += found.problems
        return Found(problems=problems) if problems else NOTHING

    def _answer(self, definition: FactDefinition) -> Found:
        """Kept with the chart for as long as neither a change nor time makes it another."""
        if self.until is not None:
            return self._look(definition)[0]
        known = self.chart.answers.get(definition.same, self.now)
        if known is None:
            known, good_until = self._look(definition)
            self.chart.answers.keep(definition.same, known, definition, self.now, good_until)
        found: Found = known
        return found

    def _look(self, definition: FactDefinition) -> tuple[Found, int | None]:
        """The answer, and until when (ms) it stays so if nothing changes; None: for good."""
        if definition.type == "Patient":
            return self._of_patient(definition), None
        latest = self.until if self.until is not None else self.now + AHEAD
        earliest = self.now - definition.within if definition.within else None
        picked: list[tuple[Reading, Any]] = []
        problems: list[str] = []
        good_until: int | None = None
        enough = 1 if definition.aggregate in ("last", "exists", "asserted") else definition.limit
        for reading in reversed(definition.candidates(self.chart)):
            if reading.at > latest:
                good_until = reading.at - AHEAD - 1
                continue
            if not reading.usable:
                continue
            if earliest is not None and reading.at < earliest:
                break
            if definition.where is not None and not values.fits(definition.where, reading):
                continue
            value = values.value(definition, reading, problems)
            if earliest is not None:
                leaves = reading.at + definition.within
                good_until = leaves if good_until is None or leaves < good_until else good_until
            if value is None:
                continue
            picked.append((reading, value))
            if enough and len(picked) >= enough:
                break
        if not picked and not problems and definition.aggregate not in ("exists", "count"):
            return NOTHING, good_until
        return values.aggregate(definition, picked, tuple(problems)), good_until

    def _of_patient(self, definition: FactDefinition) -> Found:
        reading = self.chart.get(("Patient", self.chart.id))
        if reading is None:
            return NOTHING
        if definition.value is None:
            return Found((reading.resource,), None, (reading,))
        found = tuple(definition.value(reading.resource, values.no_variable))
        if definition.aggregate == "exists":
            found = (bool(found),)
        return Found(found, None, (reading,) if found else ())

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
        "focus_name",
        "score",
        "band",
        "previous_status",
    }
)


class HasResource(Protocol):
    @property
    def resource(self) -> Any: ...


class Facts:
    """The variables of one rule at one moment; what FHIRPath and Python rules ask."""

    __slots__ = ("_focus", "_known", "definitions", "moment", "parameters", "used")

    def __init__(
        self,
        moment: Moment,
        definitions: Mapping[str, Sequence[FactDefinition]],
        parameters: Mapping[str, Any],
        focus: HasResource | None = None,
    ) -> None:
        """`focus`: what `%focus` is."""
        self.moment, self.definitions, self.parameters, self._focus = moment, definitions, parameters, focus
        self._known: dict[str, Any] = {}
        self.used: dict[str, Found] = {}

    def find(self, name: str) -> Found:
        found = self.used.get(name)
        if found is None:
            found = self.used[name] = self.moment.find(self.definitions[name])
        return found

    def tell(self, **variables: Any) -> None:
        """Variables that come up on the way, a score's result for one."""
        self._known.update(variables)

    def variable(self, name: str) -> Any:
        """What `%name` is in an expression."""
        known = self._known.get(name, self)
        if known is self:
            known = self._known[name] = self._variable(name)
        return known

    def _variable(self, name: str) -> Any:
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
        if name == "focus":
            return self._focus.resource if self._focus is not None else None
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
        return list({r.key: r for found in self.used.values() for r in found.sources}.values())


def temporal(milliseconds: int) -> Temporal:
    return Temporal.parse(instant(milliseconds), "DateTime")

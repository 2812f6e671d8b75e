"""What a fact asks for: a DataRequirement, compiled. https://hl7.org/fhir/R4/metadatatypes.html#DataRequirement

Our `fact` extension says the rest (docs/hooks.md, Facts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, get_args

from fhir_server.automation.chart import Chart, Reading, codes
from fhir_server.automation.formulas import Formula
from fhir_server.automation.terms import Code, Codes

Aggregate = Literal["last", "first", "all", "mean", "min", "max", "count", "slope", "exists", "asserted"]
AGGREGATES: frozenset[str] = frozenset(get_args(Aggregate))
NUMERIC = frozenset({"mean", "min", "max", "slope"})


@dataclass(frozen=True, slots=True)
class Filter:
    """One codeFilter: the element at `path` has one of `codes`."""

    path: str
    codes: Codes
    indexed: frozenset[Code] | None = field(init=False, default=None, compare=False)
    hash: int = field(init=False, default=0, compare=False)  # of sets and patterns, worked out once

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash", hash((self.path, self.codes)))
        if self.path == "code" and not self.codes.patterns and all(system for system, _ in self.codes.listed):
            object.__setattr__(self, "indexed", self.codes.listed)

    def matches(self, reading: Reading) -> bool:
        if self.path == "code":
            return any(self.codes.has(code) for code in reading.codes)
        known: bool | None = reading.memo.get(self)
        if known is None:
            known = reading.memo[self] = any(self.codes.has(code) for code in codes(reading.resource, self.path))
        return known

    def __hash__(self) -> int:
        return self.hash


_same: dict[Any, int] = {}  # grows with the variety of the content, not with patients


def number(question: Any) -> int:
    """The same for equal questions."""
    return _same.setdefault(question, len(_same))


def indexed(filters: Sequence[Filter]) -> frozenset[Code] | None:
    """The codes of the first filter, where the index of codes answers it; None where every resource must be looked at."""
    return filters[0].indexed if filters else None


@dataclass(frozen=True, slots=True, eq=False)
class FactDefinition:
    """What to look for and how to make one value of it. `within` in ms, 0 for any age.

    `display`, `zh`: what people call it, in English and in Chinese.

    `same` is one number for all definitions that ask for the same, whatever they call it: libraries overlap.
    """

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
    display: str = ""
    zh: str = ""
    same: int = field(init=False, default=0)
    indexed: frozenset[Code] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        texts = tuple(None if one is None else one.text for one in (self.value, self.formula, self.where))
        key = (self.type, self.filters, self.within, self.limit, self.aggregate, self.component, self.unit,
               self.molar_mass, texts, self.at_least, self.distinct_days, self.day_first_dropped)  # fmt: skip
        object.__setattr__(self, "same", number(key))
        object.__setattr__(self, "indexed", indexed(self.filters))

    def candidates(self, chart: Chart) -> list[Reading]:
        """Oldest first; by the index of codes where the first filter allows it."""
        listed = self.indexed
        if listed is None:
            return [reading for reading in chart.of_type(self.type) if all(f.matches(reading) for f in self.filters)]
        lists = [found for code in listed if (found := chart.coded(self.type, code))]
        if not lists:
            return []
        merged = lists[0] if len(lists) == 1 else sorted({id(r): r for one in lists for r in one}.values())
        others = self.filters[1:]
        return [r for r in merged if all(f.matches(r) for f in others)] if others else merged

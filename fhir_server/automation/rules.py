"""A rule as the engine runs it: branches of actions with what wakes them. Values only; docs/hooks.md says what they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import time
from typing import Any

from fhir_server.automation.chart import Reading
from fhir_server.automation.facts import Facts
from fhir_server.automation.follow_up import Activity, Dynamic
from fhir_server.automation.formulas import Formula
from fhir_server.automation.proposals import Proposal
from fhir_server.automation.requirements import FactDefinition, Filter, indexed, number
from fhir_server.automation.terms import Code


@dataclass(frozen=True, slots=True)
class Trigger:
    """A change of data: methods, type, codes."""

    methods: frozenset[str]
    type: str
    filters: tuple[Filter, ...]
    indexed: frozenset[Code] | None = field(init=False, default=None, compare=False)
    question: int = field(init=False, default=0, compare=False)  # the same number for all that look for the same

    def __post_init__(self) -> None:
        object.__setattr__(self, "indexed", indexed(self.filters))
        object.__setattr__(self, "question", number(("newest", self.type, self.filters)))

    def matches(self, reading: Reading) -> bool:
        return reading.key[0] == self.type and all(one.matches(reading) for one in self.filters)


@dataclass(frozen=True, slots=True)
class Periodic:
    every: int  # ms
    at: time | None = None


@dataclass(frozen=True, slots=True)
class Hysteresis:
    fact: str
    set: Formula
    clear: Formula


@dataclass(frozen=True, slots=True)
class Quiet:
    """Hours in which nobody is disturbed; may run over midnight. `zone` is an IANA name."""

    start: time
    end: time
    zone: str


@dataclass(frozen=True, slots=True)
class Assess:
    """A named score. `missing`: what is proposed when an input is missing or out of range."""

    code: str
    outcomes: tuple[str, ...]
    missing: Activity | None


@dataclass(frozen=True, slots=True)
class Action:
    """One action of the tree. Times in ms."""

    id: str
    title: str
    conditions: tuple[Formula, ...] = ()
    requires: tuple[str, ...] = ()
    missing: Activity | None = None
    hysteresis: Hysteresis | None = None
    anchor: Formula | None = None
    delay: int | None = None  # after the anchor
    after: tuple[str, int] | None = None  # action id, ms after it was raised
    quiet: Quiet | None = None
    recency: int | None = None
    only_first: bool = False
    tag: Mapping[str, Any] | None = None
    interpretation: Mapping[str, Any] | None = None
    assess: Assess | None = None
    activity: Activity | None = None
    dynamic: tuple[Dynamic, ...] = ()
    children: tuple[Action, ...] = ()

    def walk(self) -> Iterator[Action]:
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True, slots=True)
class Branch:
    """A top-level action with what wakes it. `by_focus`: evaluated for each triggering resource."""

    action: Action
    triggers: tuple[Trigger, ...]
    periodic: tuple[Periodic, ...]
    names: frozenset[str]
    by_focus: bool


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """A rule the engine can run: a compiled plan (`branches`) or a function of a package (`function`)."""

    id: str
    url: str
    version: str
    title: str
    branches: tuple[Branch, ...] = ()
    facts: Mapping[str, tuple[FactDefinition, ...]] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    names: frozenset[str] = frozenset()  # every variable its expressions read
    function: Callable[[Facts], Iterator[Proposal]] | None = None
    triggers: tuple[Trigger, ...] = ()  # of a function

    @property
    def canonical(self) -> str:
        return f"{self.url}|{self.version}" if self.version else self.url

    def called(self, names: Iterable[str]) -> tuple[list[str], list[str]]:
        """(English, Chinese) names of these facts, as their libraries say; what has none is called by its own name."""
        found = [(name, next((one for one in self.facts.get(name, ()) if one.display), None)) for name in names]
        return (
            [one.display if one is not None else name for name, one in found],
            [one.zh or one.display if one is not None else name for name, one in found],
        )

    def actions(self) -> Iterator[Action]:
        for branch in self.branches:
            yield from branch.action.walk()

    def all_triggers(self) -> Iterator[Trigger]:
        yield from self.triggers
        for branch in self.branches:
            yield from branch.triggers

    def used_facts(self) -> Iterator[FactDefinition]:
        """The facts its expressions can ask for."""
        for name in self.names:
            for candidate in (name, name.rpartition("_")[0]):
                yield from self.facts.get(candidate, ())

"""What a rule proposes: values. Only the worker turns them into resources."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from fhir_server.model.resource import Resource
from fhir_server.store.protocol import Key

# Types of which a person closes one and the next event opens another; the rest is superseded in place.
EPISODES = frozenset({"Task", "CommunicationRequest", "ServiceRequest", "CarePlan"})


class Seen(NamedTuple):
    """A condition with the values it saw, as one line of text: `✓ %age >= 35 ∵ age = 50`; `✗` where it did not hold."""

    expression: str
    saw: str
    result: bool

    def __str__(self) -> str:
        text = f"{'✓' if self.result else '✗'} {' '.join(self.expression.split())}"
        return f"{text} ∵ {' '.join(self.saw.split())}" if self.saw else text

    @classmethod
    def parse(cls, line: str) -> Seen:
        expression, _, saw = line[2:].partition(" ∵ ")
        return cls(expression, saw, line.startswith("✓"))


class Trail(Protocol):
    """How a rule came to a conclusion: worked out as text only if somebody writes it down."""

    def lines(self) -> Sequence[Seen]:
        """Each condition on the way."""

    def sources(self) -> Sequence[str]:
        """References of everything that was asked for and used on the way."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A label on the patient: `Patient?_tag=` finds the cohort."""

    system: str
    code: str
    display: str = ""

    def coding(self) -> dict[str, Any]:
        coding = {"system": self.system, "code": self.code}
        return {**coding, "display": self.display} if self.display else coding


@dataclass(frozen=True, slots=True)
class Interpretation:
    """How one Observation reads (H, HH, L, …)."""

    observation: Key
    coding: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Propose:
    """A resource that should be there. `resource` has no id, identifier or meta: those are the engine's.

    `action` names it within its rule; with `scope` (a reference, or empty) it is its identity for this patient.
    `focus` is what triggered it; `raises` is false where that is too old to start anything new. `within`: a Task is due
    so many ms after it was raised, whatever else arrives in between; `renewed` is false where another input alone makes
    it no other. `label`: the confidentiality that the inputs ask for.
    """

    action: str
    resource: Resource
    scope: str = ""
    focus: str = ""  # reference of the triggering resource
    focus_at: int = 0  # when that was true, ms
    raises: bool = True
    sources: tuple[str, ...] = ()  # references of every input
    trail: Trail | None = None
    within: int | None = None
    renewed: bool = True
    label: str = ""

    def used(self) -> Iterable[str]:
        """References of everything it rests on."""
        return (*self.sources, *(self.trail.sources() if self.trail is not None else ()))


Proposal = Tag | Interpretation | Propose


@dataclass(slots=True)
class Decision:
    """What one rule says about one patient at one moment."""

    rule: str  # url
    version: str
    tags: list[Tag] = field(default_factory=list)
    interpretations: list[Interpretation] = field(default_factory=list)
    proposals: list[Propose] = field(default_factory=list)
    foci: frozenset[str] | None = None  # triggering resources that were to be looked at one by one; None: every one
    looked: list[str] = field(default_factory=list)  # those of them that were there
    due: int | None = None  # when time alone may change the answer, ms
    trails: list[Trail] = field(default_factory=list)
    label: str = ""  # the confidentiality of what its tags rest on

    @property
    def sources(self) -> tuple[str, ...]:
        """References of every input, without repetition."""
        return tuple(dict.fromkeys(reference for trail in self.trails for reference in trail.sources()))

    @property
    def silent(self) -> bool:
        """It says nothing, and looked at no resource one by one."""
        return not (self.proposals or self.tags or self.interpretations or self.looked) and self.due is None

    @property
    def canonical(self) -> str:
        return f"{self.rule}|{self.version}" if self.version else self.rule

    def wait_until(self, instant: int) -> None:
        self.due = instant if self.due is None else min(self.due, instant)

"""A parsed search: what must hold, in which order, what comes along. https://hl7.org/fhir/R4/search.html

Conditions are plain values: plan.py compiles them for the database, match.py asks them of entries in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from fhir_server.search.operands import Interval, Operand
from fhir_server.search.registry import Parameter

Total = Literal["none", "estimate", "accurate"]
Summary = Literal["", "true", "text", "data", "count", "false"]
Contained = Literal["false", "true", "both"]


@dataclass(frozen=True, slots=True)
class Match:
    """Some value of the parameter meets one of the operands (none of them does, if `negated`)."""

    parameter: Parameter
    operands: tuple[Operand, ...]
    negated: bool = False
    suffix: str = ""  # of the entries' name: ":identifier", ":version"


@dataclass(frozen=True, slots=True)
class Missing:
    parameter: Parameter
    missing: bool


@dataclass(frozen=True, slots=True)
class Ids:
    """`_id`."""

    ids: tuple[str, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Updated:
    """`_lastUpdated`: one of the intervals."""

    intervals: tuple[Interval, ...]


@dataclass(frozen=True, slots=True)
class InCompartment:
    """`Patient/x/Observation`. For other compartments than the Patient's, by the references that make them."""

    code: str
    id: str
    parameters: tuple[Parameter, ...]
    itself: bool = False  # the type is the compartment's own: the resource with this id is in it


@dataclass(frozen=True, slots=True)
class Listed:
    """`_list`: the active entries of List/id."""

    resource_type: str
    id: str


@dataclass(frozen=True, slots=True)
class Chain:
    """The parameter refers to a resource of one of these types for which the condition holds."""

    parameter: Parameter
    targets: tuple[tuple[str, Condition], ...]


@dataclass(frozen=True, slots=True)
class Has:
    """`_has`: some `parameter.resource_type` refers to this resource by `parameter` and meets the condition."""

    resource_type: str  # of the resource that is referred to
    parameter: Parameter
    condition: Condition


@dataclass(frozen=True, slots=True)
class All:
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not:
    condition: Condition


Condition = Match | Missing | Ids | Updated | InCompartment | Listed | Chain | Has | All | AnyOf | Not


@dataclass(frozen=True, slots=True)
class Sort:
    """`parameter` None: `code` is `_id` or `_lastUpdated`."""

    code: str
    parameter: Parameter | None
    descending: bool


@dataclass(frozen=True, slots=True)
class Include:
    """`source:code:target`; source or code "*" for all, target "" for every type the reference allows."""

    source: str
    code: str
    target: str
    iterate: bool

    def __str__(self) -> str:
        return ":".join(part for part in (self.source, self.code, self.target) if part)


@dataclass(frozen=True, slots=True)
class Query:
    """`types`: what is searched (empty: every type the server has); `conditions` by type.

    `pairs` are the parameters as sent and applied, in order, without paging and format.
    """

    types: tuple[str, ...]
    conditions: Mapping[str, tuple[Condition, ...]]
    system: bool = False  # several types, or none named: matches carry their type in the order
    sort: tuple[str, ...] = ()  # as written, "-date"
    sorts: Mapping[str, tuple[Sort, ...]] = field(default_factory=dict)
    count: int = 50
    includes: tuple[Include, ...] = ()
    revincludes: tuple[Include, ...] = ()
    summary: Summary = ""
    elements: tuple[str, ...] = ()
    total: Total = "none"
    contained: Contained = "false"
    contained_type: Literal["container", "contained"] = "container"
    explain: bool = False
    cursor: str = ""
    pairs: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()  # unknown parameters that lenient handling dropped

    @property
    def only_count(self) -> bool:
        return self.count == 0 or self.summary == "count"

    def applied(self) -> tuple[tuple[str, str], ...]:
        """The pairs of the self link: what was sent and understood, and the page size that is in force."""
        return (*self.pairs, ("_count", str(self.count)))

    def __str__(self) -> str:
        return "&".join(f"{name}={value}" for name, value in self.applied())

    def with_cursor(self, cursor: str) -> Query:
        return replace(self, cursor=cursor)

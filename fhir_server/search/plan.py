"""Query → Plan: the finds it takes, earlier ones first. Pure; `str(plan)` is readable. https://hl7.org/fhir/R4/search.html

A chain, `_has`, `_list` or value set becomes a step whose result (references, ids, token keys) the filters that follow hold a
place for. Every find has the restriction of its own type inside its filter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fhir_server.errors import BadRequest
from fhir_server.model.definitions import RESOURCE_TYPES
from fhir_server.search.entries import CONTAINED
from fhir_server.search.filters import NEVER, Compiler, Deferred, Filter, both, live, restricted
from fhir_server.search.operands import Members
from fhir_server.search.order import Order, order_of
from fhir_server.search.query import All, Chain, Has, Listed, Query
from fhir_server.search.registry import Registry
from fhir_server.search.restrict import Restrict
from fhir_server.store.documents import ID, entry_path


@dataclass(frozen=True, slots=True)
class Lookup:
    """One find of a step."""

    resource_type: str
    filter: Filter


@dataclass(frozen=True, slots=True)
class Step:
    """An earlier find. `kind` says what becomes of what it finds:

    references: its matches, as references to them; ids: what `field` of its matches refers to, as ids of `resource_type`;
    codes: token keys, from the terminology.
    """

    kind: str
    lookups: tuple[Lookup, ...] = ()
    resource_type: str = ""
    field: str = ""
    canonical: bool = False
    members: Members | None = None

    def __str__(self) -> str:
        if self.members is not None:
            return f"codes {self.members.relation} {self.members.target}"
        finds = "; ".join(f"{lookup.resource_type} where {lookup.filter}" for lookup in self.lookups)
        what = f"the {self.resource_type} ids in {self.field} of" if self.kind == "ids" else "references to"
        return f"{what} {finds}"


@dataclass(frozen=True, slots=True)
class Source:
    """The main find on one collection. `contained`: its matches hold what is searched for, of this type, inside them."""

    resource_type: str
    filter: Filter
    order: Order
    contained: str = ""

    @property
    def name(self) -> str:
        """Tells it from the plan's other sources, also when there are others the next time."""
        return self.resource_type + ("#" if self.contained else "")

    def __str__(self) -> str:
        inside = f" for the {self.contained} they contain" if self.contained else ""
        by = ", ".join(f"{path} {'desc' if way < 0 else 'asc'}" for path, way in self.order.sort(0))
        return f"{self.resource_type}{inside} where {self.filter} by {by}"


@dataclass(frozen=True, slots=True)
class Plan:
    query: Query
    steps: tuple[Step, ...]
    sources: tuple[Source, ...]

    def __str__(self) -> str:
        lines = [f"{n + 1}. {step}" for n, step in enumerate(self.steps)]
        lines += [f"{len(self.steps) + 1}. {source}" for source in self.sources]
        return "\n".join(lines)


def outline(plan: Plan) -> str:
    """The plan without the values that were searched for, which may be about a patient: for logs."""
    lines = [
        f"{step.kind} {'; '.join(f'{found.resource_type} where {shape(found.filter)}' for found in step.lookups)}"
        for step in plan.steps
    ]
    lines += [
        f"{source.resource_type} where {shape(source.filter)} by {source.order.sort(0)}" for source in plan.sources
    ]
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def shape(filter: Any) -> Any:
    """A filter's paths and operators."""
    if isinstance(filter, dict):
        return {key: shape(value) for key, value in filter.items()}
    if isinstance(filter, list):
        return [shape(item) for item in filter] if filter and isinstance(filter[0], dict) else f"{len(filter)} values"
    return filter if isinstance(filter, (Deferred, bool)) else "…"


def compile(query: Query, registry: Registry, restrict: Restrict, present: frozenset[str] | None = None) -> Plan:
    """`present`: the types the store has resources of; others need no find. None: not known."""
    planner = _Planner(restrict)
    several = query.system
    sources: list[Source] = []
    if query.contained != "true":
        for resource_type in query.types or sorted(RESOURCE_TYPES):
            if several and present is not None and resource_type not in present:
                continue
            sources.append(planner.source(query, resource_type, several))
    if query.contained != "false":
        if several or query.sort:
            raise BadRequest("Parameter '_contained' needs one resource type, and takes no _sort")
        for container in sorted(present if present is not None else RESOURCE_TYPES):
            sources.append(planner.containers(query, container, query.types[0]))
    return Plan(query, tuple(planner.steps), tuple(sources))


class _Planner:
    def __init__(self, restrict: Restrict) -> None:
        self.restrict = restrict
        self.steps: list[Step] = []
        self._known: dict[Any, Deferred] = {}

    def source(self, query: Query, resource_type: str, several: bool) -> Source:
        order = order_of(query.sorts.get(resource_type, ()), several_types=several)
        return Source(resource_type, self._find(resource_type, All(query.conditions[resource_type])), order)

    def containers(self, query: Query, container: str, resource_type: str) -> Source:
        compiler = Compiler(resource_type, self.defer)
        inner = compiler.within(All(query.conditions[resource_type]))
        found = {entry_path(CONTAINED): {"$elemMatch": both([{"t": resource_type}, inner])}}
        narrowed = both([found, self._restriction(container)])
        return Source(container, live(narrowed), order_of(()), resource_type)

    def defer(self, asked: Chain | Has | Listed | Members, resource_type: str) -> Deferred:
        """A step for what must be looked up first; the same question is asked once."""
        key = (asked, "" if isinstance(asked, (Chain, Members)) else resource_type)
        known = self._known.get(key)
        if known is None:
            step = self._step(asked, resource_type)
            self.steps.append(step)
            known = self._known[key] = Deferred(len(self.steps) - 1)
        return known

    def _step(self, asked: Chain | Has | Listed | Members, resource_type: str) -> Step:
        if isinstance(asked, Members):
            return Step("codes", members=asked)
        if isinstance(asked, Listed):
            found = both([{ID: asked.id}, self._restriction("List")])
            return Step("ids", (Lookup("List", live(found)),), asked.resource_type, "item")
        if isinstance(asked, Has):
            source = asked.parameter.resource_type
            found = self._find(source, asked.condition)
            present = {entry_path(asked.parameter.field): {"$exists": True}}
            if entry_path(asked.parameter.field) not in found:
                found = both([found, present])
            return Step("ids", (Lookup(source, found),), asked.resource_type, asked.parameter.field)
        lookups = tuple(Lookup(target, self._find(target, condition)) for target, condition in asked.targets)
        return Step("references", lookups, canonical="Reference" not in asked.parameter.fhir_types)

    def _find(self, resource_type: str, condition: Any) -> Filter:
        restriction = self._restriction(resource_type)
        if restriction is NEVER:
            return NEVER
        return live(both([Compiler(resource_type, self.defer).filter(condition), restriction]))

    def _restriction(self, resource_type: str) -> Filter:
        return restricted(self.restrict(resource_type), Compiler(resource_type, self.defer))

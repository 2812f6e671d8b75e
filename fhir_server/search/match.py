"""The meaning of a search in memory, on search entries: for restrictions and subscriptions, and as the tests' oracle.

The database filters of filters.py say the same in another language; every row of the spec tables asks both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fhir_server.search.entries import CONTAINED, IDENTIFIER, PARTS, Indexed
from fhir_server.search.operands import (
    Amount,
    Containing,
    Ending,
    Interval,
    Keys,
    Members,
    Near,
    Operand,
    Parts,
    Prefixed,
    Span,
    Words,
)
from fhir_server.search.query import (
    All,
    AnyOf,
    Chain,
    Condition,
    Has,
    Ids,
    InCompartment,
    Match,
    Missing,
    Not,
    Query,
    Updated,
)
from fhir_server.search.registry import Parameter
from fhir_server.search.types import date, number, quantity, reference, special
from fhir_server.search.types.string import ENDING


@dataclass(frozen=True, slots=True)
class Candidate:
    """One resource as a search sees it."""

    resource_type: str
    id: str
    indexed: Indexed
    updated: int = 0  # ms


@dataclass(frozen=True, slots=True)
class World:
    """What chains and value sets may look at; empty where a condition stands alone."""

    candidates: Mapping[str, list[Candidate]] = field(default_factory=dict)  # by type
    keys: Callable[[Members], frozenset[str]] | None = None  # token keys of a value set


NOWHERE = World()
_ALONE = Candidate("", "", Indexed({}, ()))


def matches(query: Query, candidate: Candidate, world: World = NOWHERE) -> bool:
    """Whether the candidate is among what the query asks for, before paging."""
    return all(_holds(c, candidate, world) for c in query.conditions.get(candidate.resource_type, (AnyOf(()),)))


def holds(condition: Condition, entries: Mapping[str, Any]) -> bool:
    """A condition that looks at nothing but entries (no chain, no `_id`)."""
    return _holds(condition, Candidate("", "", Indexed(dict(entries), ())), NOWHERE)


def alone(condition: Condition) -> bool:
    """Whether it looks at one resource only: no chain, no value set."""
    if isinstance(condition, Match):
        return not any(
            isinstance(one, Members)
            or (isinstance(one, Parts) and any(isinstance(part, Members) for part in one.parts))
            for one in condition.operands
        )
    if isinstance(condition, All | AnyOf):
        return all(alone(one) for one in condition.conditions)
    if isinstance(condition, Not):
        return alone(condition.condition)
    return isinstance(condition, Missing | Ids | Updated)


def _holds(condition: Condition, candidate: Candidate, world: World) -> bool:
    if isinstance(condition, Match):
        return _match(condition, candidate, world) is not condition.negated
    if isinstance(condition, Missing):
        return _present(condition.parameter, candidate.indexed.entries) is not condition.missing
    if isinstance(condition, All):
        return all(_holds(c, candidate, world) for c in condition.conditions)
    if isinstance(condition, AnyOf):
        return any(_holds(c, candidate, world) for c in condition.conditions)
    if isinstance(condition, Not):
        return not _holds(condition.condition, candidate, world)
    if isinstance(condition, Ids):
        return (candidate.id in condition.ids) is not condition.negated
    if isinstance(condition, Updated):
        moment = {"lo": candidate.updated, "hi": candidate.updated + 1}
        return any(date.matches(interval, moment) for interval in condition.intervals)
    if isinstance(condition, InCompartment):
        return _in_compartment(condition, candidate)
    if isinstance(condition, Chain):
        return _chain(condition, candidate, world)
    if isinstance(condition, Has):
        me = f"{candidate.resource_type}/{candidate.id}"
        return any(
            me in _values(condition.parameter, source.indexed.entries) and _holds(condition.condition, source, world)
            for source in world.candidates.get(condition.parameter.resource_type, ())
        )
    return any(
        f"{candidate.resource_type}/{candidate.id}" in listing.indexed.entries.get("item", ())
        for listing in world.candidates.get("List", ())
        if listing.id == condition.id
    )


def _match(match: Match, candidate: Candidate, world: World) -> bool:
    parameter = match.parameter
    entries = candidate.indexed.entries
    if parameter.type == "composite" and not parameter.field:
        return any(
            isinstance(o, Parts)
            and all(
                _match(Match(component.parameter, (part,)), candidate, world)
                for component, part in zip(parameter.components, o.parts, strict=True)
            )
            for o in match.operands
        )
    if parameter.parts:
        return any(
            _match(Match(part, match.operands, suffix=match.suffix), candidate, world) for part in parameter.parts
        )
    found = entries.get(parameter.field + match.suffix)
    if found is None:
        return False
    values = [found] if parameter.single and not match.suffix else found
    if parameter.of_names and any(isinstance(operand, Containing) for operand in match.operands):
        # As they are written: their endings, the whole included, but not the pinyin.
        values = [value[1:] for value in values if value[0] == ENDING]
    return any(_meets(operand, values, world) for operand in match.operands)


def _meets(operand: Operand, values: Iterable[Any], world: World) -> bool:
    """Whether one of the entries is what the operand asks for."""
    if isinstance(operand, Keys):
        return not set(operand.keys).isdisjoint(values)
    if isinstance(operand, Prefixed):
        return any(value.startswith(operand.prefix) for value in values)
    if isinstance(operand, Containing):
        return any(operand.text in value for value in values if value < ENDING)
    if isinstance(operand, Ending):
        return any(value.endswith(operand.text) for value in values if value < ENDING)
    if isinstance(operand, Words):
        return set(operand.words) <= set(values)
    if isinstance(operand, Interval):
        return any(date.matches(operand, value) for value in values)
    if isinstance(operand, Span):
        return any(number.matches(operand, value) for value in values)
    if isinstance(operand, Amount):
        return any(quantity.matches(operand, value) for value in values)
    if isinstance(operand, Near):
        return any(special.matches(operand, value) for value in values)
    if isinstance(operand, Members):
        return world.keys is not None and not world.keys(operand).isdisjoint(values)
    return any(
        all(_meets(part, value[name], world) for name, part in zip(PARTS, operand.parts, strict=False))
        for value in values
    )


def _present(parameter: Parameter, entries: Mapping[str, Any]) -> bool:
    if parameter.parts:
        return any(_present(part, entries) for part in parameter.parts)
    if parameter.type == "composite" and not parameter.field:
        return all(_present(component.parameter, entries) for component in parameter.components)
    if parameter.type == "reference":
        return bool(_values(parameter, entries)) or parameter.field + IDENTIFIER in entries
    return parameter.field in entries


def _values(parameter: Parameter, entries: Mapping[str, Any]) -> list[str]:
    """The references of a parameter, those of another type than its own left out."""
    found = entries.get(parameter.field)
    values = [] if found is None else [found] if parameter.single else list(found)
    return [v for v in values if not parameter.resolves_to or reference.type_of(v) == parameter.resolves_to]


def _in_compartment(condition: InCompartment, candidate: Candidate) -> bool:
    if condition.code == "Patient":
        return condition.id in candidate.indexed.patients
    me = f"{condition.code}/{condition.id}"
    return (condition.itself and candidate.id == condition.id) or any(
        me in _values(parameter, candidate.indexed.entries) for parameter in condition.parameters
    )


def _chain(chain: Chain, candidate: Candidate, world: World) -> bool:
    entries = candidate.indexed.entries
    values = set(_values(chain.parameter, entries))
    for target, condition in chain.targets:
        for other in world.candidates.get(target, ()):
            if _refers(values, other) and _holds(condition, other, world):
                return True
        for inner in entries.get(CONTAINED, ()):
            if inner["t"] == target and chain.parameter.field in inner.get("p", ()):
                contained = Candidate(target, inner.get("i", ""), Indexed(inner["s"], ()))
                if _holds(condition, contained, world):
                    return True
    return False


def _refers(values: set[str], other: Candidate) -> bool:
    if f"{other.resource_type}/{other.id}" in values:
        return True
    urls = other.indexed.entries.get("url", ())
    versions = ["", *(key[1:] for key in other.indexed.entries.get("version", ()) if key.startswith("!"))]
    return any(f"{url}|{version}" in values for url in urls for version in versions)

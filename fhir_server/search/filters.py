"""Conditions → filters of the store. The only part of search that writes MongoDB's operators.

Every value a client sent ends up as an operand of `$eq`, `$in`, `$gte` and the like, or escaped inside a `$regex`: nothing a
client can write is read as an operator. https://www.mongodb.com/docs/manual/reference/operator/query/
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fhir_server.search.entries import CONTAINED, IDENTIFIER, PARTS
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
    Prefix,
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
    Listed,
    Match,
    Missing,
    Not,
    Updated,
)
from fhir_server.search.registry import Parameter
from fhir_server.search.restrict import Restriction
from fhir_server.search.types import date, number, quantity, special
from fhir_server.search.types.string import ENDING
from fhir_server.store.documents import DELETED, ENTRIES, ID, PATIENTS, UPDATED, entry_path

Filter = dict[str, Any]
NEVER: Filter = {ID: {"$in": []}}
LAST = "\U0010ffff"  # sorts after every continuation of a prefix


@dataclass(frozen=True, slots=True)
class Deferred:
    """Stands in a filter for the values that an earlier find will bring; `number` is its place in the plan."""

    number: int

    def __repr__(self) -> str:
        return f"<result of step {self.number + 1}>"


Defer = Callable[[Chain | Has | Listed | Members, str], Deferred]  # (what to look up, resource type it is asked of)


class Compiler:
    """Conditions of one resource type. `prefix` is where its entries stand ("s." in a document)."""

    def __init__(self, resource_type: str, defer: Defer, prefix: str = ENTRIES + ".") -> None:
        self.resource_type = resource_type
        self._defer = defer
        self._prefix = prefix

    def filter(self, condition: Condition) -> Filter:
        if isinstance(condition, Match):
            return self._match(condition)
        if isinstance(condition, Missing):
            return self._missing(condition)
        if isinstance(condition, All):
            return both(self.filter(c) for c in condition.conditions)
        if isinstance(condition, AnyOf):
            return either([self.filter(c) for c in condition.conditions])
        if isinstance(condition, Not):
            return {"$nor": [self.filter(condition.condition)]}
        if isinstance(condition, Ids):
            key = ID if self._prefix == ENTRIES + "." else "i"
            return {key: {"$nin": list(condition.ids)}} if condition.negated else {key: _among(condition.ids)}
        if isinstance(condition, Updated):
            return either([updated(interval) for interval in condition.intervals])
        if isinstance(condition, InCompartment):
            return self._compartment(condition)
        if isinstance(condition, Chain):
            return self._chain(condition)
        return {ID: {"$in": self._defer(condition, self.resource_type)}}

    def operand(self, path: str, operand: Operand, *, single: bool = False, short: bool = False) -> Filter:
        """One operand on the entries at `path`."""
        if isinstance(operand, Keys):
            return {path: _among(operand.keys)}
        if isinstance(operand, Prefixed):
            bounds = {"$gte": operand.prefix, "$lt": operand.prefix + LAST}
            return {path: bounds if single else {"$elemMatch": bounds}}
        if isinstance(operand, Containing):
            return {path: {"$elemMatch": {"$regex": re.escape(operand.text), "$lt": ENDING}}}
        if isinstance(operand, Ending):
            return {path: {"$elemMatch": {"$regex": re.escape(operand.text) + "$", "$lt": ENDING}}}
        if isinstance(operand, Words):
            return {path: {"$all": list(operand.words)}}
        if isinstance(operand, Members):
            return {path: {"$in": self._defer(operand, self.resource_type)}}
        if isinstance(operand, Interval):
            return _element(path, date.bounds(operand, short=short), single)
        if isinstance(operand, Span):
            return either([_element(path, bounds, single) for bounds in number.bounds(operand)])
        if isinstance(operand, Amount):
            return either([{path: {"$elemMatch": each}} for each in quantity.conditions(operand)])
        if isinstance(operand, Near):
            return _near(path, operand)
        parts = [self.operand(name, part) for name, part in zip(PARTS, operand.parts, strict=False)]
        return {path: {"$elemMatch": both(parts)}}

    def _match(self, match: Match) -> Filter:
        parameter = match.parameter
        if parameter.type == "composite":
            found = either([self._composite(parameter, o) for o in match.operands if isinstance(o, Parts)])
        elif parameter.parts:
            found = either([self._match(Match(part, match.operands, suffix=match.suffix)) for part in parameter.parts])
        else:
            path = self._prefix + parameter.field + match.suffix
            single = parameter.single and not match.suffix
            operands = [_by_ending(o) for o in match.operands] if parameter.of_names else match.operands
            found = either([self.operand(path, o, single=single, short=parameter.short) for o in operands])
        return {"$nor": [found]} if match.negated else found

    def _composite(self, parameter: Parameter, operand: Parts) -> Filter:
        """Both in one element; and, so that an index can serve it, each somewhere in the resource."""
        each = [
            self._match(Match(component.parameter, (part,)))
            for component, part in zip(parameter.components, operand.parts, strict=True)
        ]
        if parameter.field:
            each.append(self.operand(self._prefix + parameter.field, operand))
        return both(each)

    def _missing(self, condition: Missing) -> Filter:
        parameter = condition.parameter
        if parameter.type == "composite" and not parameter.field:
            present = both(self._present(component.parameter) for component in parameter.components)
        else:
            present = self._present(parameter)
        return {"$nor": [present]} if condition.missing else present

    def _present(self, parameter: Parameter) -> Filter:
        if parameter.parts:
            return either([self._present(part) for part in parameter.parts])
        path = self._prefix + parameter.field
        if parameter.resolves_to:
            here: Any = {"$regex": f"(^|/){parameter.resolves_to}/[^/]+$"}
            found = {path: here if parameter.single else {"$elemMatch": here}}
        else:
            found = {path: {"$exists": True}}
        if parameter.type == "reference":
            return either([found, {path + IDENTIFIER: {"$exists": True}}])
        return found

    def _compartment(self, condition: InCompartment) -> Filter:
        if condition.code == "Patient":
            return {PATIENTS: condition.id}
        found: list[Filter] = [
            self._match(Match(p, (Keys((f"{condition.code}/{condition.id}",)),))) for p in condition.parameters
        ]
        if condition.itself:
            found.append({ID: condition.id})
        return either(found)

    def _chain(self, chain: Chain) -> Filter:
        path = self._prefix + chain.parameter.field
        found: list[Filter] = [{path: {"$in": self._defer(chain, self.resource_type)}}]
        if self._prefix == ENTRIES + ".":
            found.extend(self._contained(chain.parameter, target, inner) for target, inner in chain.targets)
        return either(found)

    def _contained(self, parameter: Parameter, target: str, condition: Condition) -> Filter:
        """The resource that is referred to stands inside this one."""
        inner = Compiler(target, self._defer, "s.").within(condition)
        return {entry_path(CONTAINED): {"$elemMatch": both([{"p": parameter.field, "t": target}, inner])}}

    def within(self, condition: Condition) -> Filter:
        return _InContained(self.resource_type, self._defer).filter(condition)


class _InContained(Compiler):
    """Conditions on the entries of a contained resource, inside an `$elemMatch`: it has an id, but no life of its own."""

    def filter(self, condition: Condition) -> Filter:
        if isinstance(condition, Ids):
            return {"i": {"$nin": list(condition.ids)} if condition.negated else _among(condition.ids)}
        if isinstance(condition, (Updated, Has, Listed, InCompartment)):
            return {"i": {"$in": []}}  # nothing refers to it from outside, nothing has updated it on its own
        if isinstance(condition, Chain):
            path = self._prefix + condition.parameter.field
            return {path: {"$in": self._defer(condition, self.resource_type)}}
        return super().filter(condition)


def _by_ending(operand: Operand) -> Operand:
    """Names are there from each of their letters on: what is contained is the beginning of an ending."""
    return Prefixed(ENDING + operand.text) if isinstance(operand, Containing) else operand


def updated(interval: Interval) -> Filter:
    """`_lastUpdated` is an instant, `[t, t + 1)` in terms of dates: a bound on the end is one on `t`."""
    a, b = interval.lo, interval.hi
    bounds: dict[Prefix, Filter] = {
        "eq": {UPDATED: {"$gte": a, "$lt": b}},
        "ne": {"$or": [{UPDATED: {"$lt": a}}, {UPDATED: {"$gte": b}}]},
        "gt": {UPDATED: {"$gte": b}},
        "lt": {UPDATED: {"$lt": a}},
        "ge": {UPDATED: {"$gte": a}},
        "le": {UPDATED: {"$lt": b}},
        "sa": {UPDATED: {"$gte": b}},
        "eb": {UPDATED: {"$lt": a}},
        "ap": {UPDATED: {"$gte": a, "$lt": b}},
    }
    return bounds[interval.prefix]


def restricted(restriction: Restriction, compiler: Compiler) -> Filter:
    """What the restriction lets through; {} for everything."""
    if restriction.everything:
        return {}
    alternatives: list[Filter] = []
    for alternative in restriction.alternatives:
        found: list[Filter] = []
        if alternative.patients is not None:
            found.append({PATIENTS: _among(tuple(sorted(alternative.patients)))})
        if alternative.excluded:
            found.append({PATIENTS: {"$nin": sorted(alternative.excluded)}})
        if alternative.parameters:
            found.append(compiler.filter(alternative.condition))
        alternatives.append(both(found))
    return either(alternatives) if alternatives else NEVER


def both(filters: Any) -> Filter:
    """All of them; one flat document where no two speak of the same path."""
    flat: Filter = {}
    rest: list[Filter] = []
    for each in filters:
        if not each:
            continue
        parts = each["$and"] if list(each) == ["$and"] else [each]
        for part in parts:
            if part.keys() & flat.keys():
                rest.append(part)
            else:
                flat.update(part)
    if not rest:
        return flat
    return {"$and": [flat, *rest]}


def either(filters: Sequence[Filter]) -> Filter:
    if not filters:
        return NEVER
    return filters[0] if len(filters) == 1 else {"$or": list(filters)}


def live(found: Filter) -> Filter:
    """Without what is deleted. Deleted versions have no entries, so a filter that asks for one needs nothing more."""
    return found if _asks_for_entries(found) else both([found, {DELETED: None}])


def _asks_for_entries(found: Filter) -> bool:
    for key, value in found.items():
        if key == "$and" and any(_asks_for_entries(part) for part in value):
            return True
        if key == "$or" and all(_asks_for_entries(part) for part in value):
            return True
        if key.startswith(ENTRIES + "."):
            return True
    return False


def _among(keys: Sequence[str]) -> Any:
    return keys[0] if len(keys) == 1 else {"$in": list(keys)}


def _element(path: str, bounds: Mapping[str, Any], single: bool) -> Filter:
    if not single:
        return {path: {"$elemMatch": dict(bounds)}}
    return {
        key if key == "$or" else f"{path}.{key}": [_element(path, each, True) for each in value]
        if key == "$or"
        else value
        for key, value in bounds.items()
    }


def _near(path: str, near: Near) -> Filter:
    north = near.km / special.RADIUS_KM * 57.29577951308232 + 1e-9
    return {
        f"{path}.lat": {"$gte": near.latitude - north, "$lte": near.latitude + north},
        path: {"$geoWithin": {"$centerSphere": [[near.longitude, near.latitude], near.km / special.RADIUS_KM]}},
    }

"""The order of matches, and how a page goes on after the last one. https://hl7.org/fhir/R4/search.html#sort

Every order ends in the id, so it is total. Values that are missing come last in both directions. A parameter with several
values sorts by the lowest of them. Where an index has the order (a key that occurs once), the database reads it off; other
orders are computed over all matches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cmp_to_key
from typing import Any

from fhir_server.search.query import Sort
from fhir_server.search.registry import Parameter
from fhir_server.search.types.date import BEGINNING
from fhir_server.search.types.quantity import WIDE
from fhir_server.store.documents import ENTRIES, ID, UPDATED, entry_path
from fhir_server.store.protocol import Stored

Value = str | int | float | None
Position = tuple[Value, ...]  # a resource's sort values, then its id
ALL = 2

_LOWEST: dict[str, Any] = {"date": BEGINNING, "number": float("-inf"), "reference": ""}


@dataclass(frozen=True, slots=True)
class Key:
    """One sort value: at `path` in the document, or computed by `expression` into the entry `path` names."""

    path: str
    descending: bool
    field: str = ""  # the entry it comes from
    expression: Mapping[str, Any] | None = None
    lowest: Any = None  # what every present value is at least; None: the value is never missing


@dataclass(frozen=True, slots=True)
class Order:
    keys: tuple[Key, ...]
    id_descending: bool = False

    @property
    def stored(self) -> bool:
        """Every value stands in the document as it is."""
        return all(key.expression is None for key in self.keys)

    def phases(self, position: Position | None, *, narrow: bool) -> tuple[int, ...]:
        """The finds it takes from `position` on: 0 what has the first value, 1 what lacks it, ALL both at once.

        Descending, the database itself puts what lacks a value last. `narrow`: the filter leaves so little that it need not
        be read in order; then one find does, because the other one would only be there for the index's sake.
        """
        if not self._in_phases:
            return (ALL,)
        if position is not None:
            return (1,) if position[0] is None else (0, 1)
        return (ALL,) if narrow and self.keys[0].descending else (0, 1)

    @property
    def _in_phases(self) -> bool:
        return self.stored and bool(self.keys) and self.keys[0].lowest is not None

    @property
    def entries(self) -> tuple[str, ...]:
        """Entries a find must return for `position`."""
        return tuple(key.field for key in self.keys if key.field)

    def sort(self, phase: int) -> tuple[tuple[str, int], ...]:
        last = (ID, -1 if self.id_descending else 1)
        if phase == 1:
            return (last,)
        found: list[tuple[str, int]] = []
        for key in self.keys:
            if key.expression is not None:
                found.append((key.path + "_", 1))
            found.append((key.path, -1 if key.descending else 1))
        return (*found, last)

    def computed(self) -> dict[str, Any]:
        """Entries to be added before sorting: each value, and whether it is missing."""
        found: dict[str, Any] = {}
        for key in self.keys:
            if key.expression is not None:
                found[key.path] = {"$ifNull": [key.expression, None]}
                found[key.path + "_"] = {"$cond": [{"$eq": [{"$ifNull": [key.expression, None]}, None]}, 1, 0]}
        return found

    def within(self, phase: int) -> dict[str, Any]:
        """The filter of a phase."""
        if phase == ALL:
            return {}
        key = self.keys[0]
        if phase == 1:
            return {entry_path(key.field): {"$exists": False}}
        return {key.path: {"$gte": key.lowest}}

    def position(self, stored: Stored) -> Position:
        return (*(self._value(key, stored) for key in self.keys), stored.id)

    def _value(self, key: Key, stored: Stored) -> Value:
        if key.path == UPDATED:
            return int(stored.updated)
        if key.expression is not None:
            found = stored.entries.get(key.path.removeprefix(ENTRIES + "."))
        else:
            found = stored.entries.get(key.field)
            found = found.get("lo") if isinstance(found, dict) else found
        return int(found) if isinstance(found, int) else found  # the driver's integers are of a class of their own

    def after(self, position: Position, *, tie: int = 0) -> dict[str, Any]:
        """What comes after `position`. `tie`: how equal values count: 0 by id; 1 all after it; -1 none."""
        phase = 1 if self._in_phases and position[0] is None else 0
        steps: list[tuple[str, Value, bool]] = []  # path, value, descending
        if phase == 0:
            for key, value in zip(self.keys, position, strict=False):
                if key.expression is not None:
                    steps.append((key.path + "_", int(value is None), False))
                if value is not None:
                    steps.append((key.path, value, key.descending))
        alternatives: list[dict[str, Any]] = []
        equal: dict[str, Any] = {}
        for path, value, descending in steps:
            alternatives.append({**equal, path: {"$lt" if descending else "$gt": value}})
            equal[path] = value
        if tie == 1:
            alternatives.append(dict(equal))
        elif tie == 0:
            alternatives.append({**equal, ID: {"$lt" if self.id_descending else "$gt": position[-1]}})
        if len(alternatives) == 1:
            return alternatives[0]
        found: dict[str, Any] = {"$or": alternatives}
        first = steps[0]
        if first[0] in (UPDATED, self.keys[0].path):
            # Follows from the alternatives, and gives the index scan its start.
            found = {"$and": [{first[0]: {"$lte" if first[2] else "$gte": first[1]}}, found]}
        return found

    def compare(self, left: Position, right: Position) -> int:
        """The same order in memory, ids aside."""
        for key, a, b in zip(self.keys, left, right, strict=False):
            if a == b:
                continue
            if a is None or b is None:
                return 1 if a is None else -1
            return (1 if a > b else -1) * (-1 if key.descending else 1)  # type: ignore[operator]
        return 0


def order_of(sorts: Sequence[Sort], *, several_types: bool = False) -> Order:
    """The order a search asks for; by id where it asks for none, which is what every index ends in."""
    if not sorts:
        return Order(())
    if sorts[0].code == "_id":
        return Order((), sorts[0].descending)
    if len(sorts) == 1 or sorts[1].code == "_id":
        only = sorts[0]
        if only.parameter is None:
            # The store's index is (newest first, id ascending), read in either direction.
            return Order((Key(UPDATED, only.descending),), not only.descending)
        if only.parameter.single and not several_types:
            return Order((_plain(only.parameter, only.descending),), only.descending)
    keys: list[Key] = []
    for position, sort in enumerate(sorts):
        if sort.code == "_id":
            break
        if sort.parameter is None:
            keys.append(Key(UPDATED, sort.descending))
        else:
            keys.append(Key(entry_path(f"_k{position}"), sort.descending, f"_k{position}", _lowest(sort.parameter)))
    return Order(tuple(keys))


def _plain(parameter: Parameter, descending: bool) -> Key:
    path = entry_path(parameter.field)
    if parameter.type != "reference":
        path += ".lo"
    return Key(path, descending, parameter.field, None, _LOWEST[parameter.type])


def _lowest(parameter: Parameter) -> Mapping[str, Any]:
    """The lowest value of an entry, as an expression of the database."""
    if parameter.parts:
        return {"$min": [_lowest(part) for part in parameter.parts]}
    path = "$" + entry_path(parameter.field)
    if parameter.type == "quantity":
        written = {"$filter": {"input": {"$ifNull": [path, []]}, "as": "q", "cond": {"$in": ["$$q.k", ["", WIDE]]}}}
        return {"$min": {"$map": {"input": written, "as": "q", "in": "$$q.lo"}}}
    if parameter.type in ("date", "number"):
        return {"$min": path + ".lo"}
    return {"$min": path}


def merged(order: Order, found: Sequence[tuple[Position, str, Any]]) -> list[tuple[Position, str, Any]]:
    """Matches of several types in one order: by value, then type, then id. Items: (position, type, match)."""

    def compare(left: tuple[Position, str, Any], right: tuple[Position, str, Any]) -> int:
        by_value = order.compare(left[0], right[0])
        if by_value:
            return by_value
        a, b = (left[1], left[0][-1]), (right[1], right[0][-1])
        if a[0] == b[0] and order.id_descending:
            a, b = b, a
        return (a > b) - (a < b)

    return sorted(found, key=cmp_to_key(compare))

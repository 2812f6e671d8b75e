"""`_include` and `_revinclude`: what comes along with the matches. https://hl7.org/fhir/R4/search.html#include

Each resource once, none that is a match already, none the restriction hides. Bounded; what the bound cut is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fhir_server.errors import Issue
from fhir_server.model.definitions import RESOURCE_TYPES
from fhir_server.search.filters import Compiler, both, either, live, restricted
from fhir_server.search.query import Include, Query
from fhir_server.search.registry import Parameter, Registry
from fhir_server.search.restrict import Restrict
from fhir_server.search.types import reference
from fhir_server.store.documents import ID, entry_path
from fhir_server.store.protocol import Find, Key, Store, Stored

MOST_INCLUDED = 1_000
ROUNDS = 8  # of :iterate


class Includes:
    def __init__(self, store: Store, registry: Registry, restrict: Restrict, snapshot: Any) -> None:
        self.store = store
        self.registry = registry
        self.restrict = restrict
        self.snapshot = snapshot
        self.issues: list[Issue] = []

    @staticmethod
    def entries_needed(registry: Registry, query: Query, resource_type: str) -> tuple[str, ...]:
        """Names of the entries that including from resources of this type looks at."""
        found: dict[str, None] = {}
        for include in query.includes:
            for parameter in _parameters(registry, include, resource_type):
                found[parameter.field] = None
        if query.revincludes:
            found["url"] = None
        return tuple(found)

    async def of(self, query: Query, matches: Sequence[Stored]) -> list[Stored]:
        if not (query.includes or query.revincludes) or not matches:
            return []
        known: dict[Key, Stored] = {(m.resource_type, m.id): m for m in matches}
        included: list[Stored] = []
        fresh: Sequence[Stored] = matches
        for round in range(ROUNDS):
            forward = [i for i in query.includes if round == 0 or i.iterate]
            backward = [i for i in query.revincludes if round == 0 or i.iterate]
            found = await self._forward(query, forward, fresh, known)
            room = MOST_INCLUDED - len(included) - len(found)
            found += await self._backward(query, backward, fresh, known, room)
            included += found
            if len(included) > MOST_INCLUDED:
                included = included[:MOST_INCLUDED]
                self._cut()
                break
            if not found:
                break
            fresh = found
        else:
            self.issues.append(Issue("warning", "too-costly", f"Iterated includes stop after {ROUNDS} rounds"))
        return included

    def _cut(self) -> None:
        if not self.issues:
            self.issues.append(
                Issue(
                    "warning",
                    "too-costly",
                    f"More than {MOST_INCLUDED} resources would come along with this page; the rest was left out",
                )
            )

    async def _forward(
        self, query: Query, includes: Sequence[Include], sources: Sequence[Stored], known: dict[Key, Stored]
    ) -> list[Stored]:
        wanted: dict[str, dict[str, None]] = {}
        canonicals: dict[str, dict[str, None]] = {}
        for include in includes:
            for source in sources:
                for parameter in _parameters(self.registry, include, source.resource_type):
                    for text in _values(parameter, source):
                        self._want(include, parameter, text, wanted, canonicals)
        found: list[Stored] = []
        for resource_type, ids in wanted.items():
            missing = [id for id in ids if (resource_type, id) not in known]
            if missing:
                found += await self._find(query, resource_type, {ID: {"$in": missing[: MOST_INCLUDED + 1]}}, known)
        for resource_type, urls in canonicals.items():
            found += await self._find(query, resource_type, _canonical(urls), known)
        return found

    def _want(
        self,
        include: Include,
        parameter: Parameter,
        text: str,
        wanted: dict[str, dict[str, None]],
        canonicals: dict[str, dict[str, None]],
    ) -> None:
        kind = reference.type_of(text)
        if kind and "://" not in text:
            if not include.target or include.target == kind:
                wanted.setdefault(kind, {})[text.rpartition("/")[2]] = None
        elif "Reference" not in parameter.fhir_types and "|" in text and text[0] != reference.TREE:
            for target in parameter.targets or RESOURCE_TYPES:
                if not include.target or include.target == target:
                    canonicals.setdefault(target, {})[text] = None

    async def _backward(
        self,
        query: Query,
        includes: Sequence[Include],
        targets: Sequence[Stored],
        known: dict[Key, Stored],
        room: int,
    ) -> list[Stored]:
        found: list[Stored] = []
        for include in includes:
            kinds = [include.source] if include.source != "*" else await self.store.resource_types()
            for kind in kinds:
                conditions: list[dict[str, Any]] = []
                for parameter in _parameters(self.registry, include, kind):
                    texts = self._texts(parameter, include, targets)
                    if texts:
                        conditions.append({entry_path(parameter.field): {"$in": texts}})
                if conditions:
                    found += await self._find(query, kind, either(conditions), known, max(room - len(found), 0) + 1)
        return found

    def _texts(self, parameter: Parameter, include: Include, targets: Sequence[Stored]) -> list[str]:
        texts: list[str] = []
        for target in targets:
            kind = target.resource_type
            if (include.target and include.target != kind) or (parameter.targets and kind not in parameter.targets):
                continue
            if "Reference" in parameter.fhir_types:
                texts.append(f"{kind}/{target.id}")
            else:
                texts += [url for url in target.entries.get("url", ()) if url[0] != reference.TREE]
        return texts

    async def _find(
        self, query: Query, resource_type: str, wanted: dict[str, Any], known: dict[Key, Stored], limit: int = 0
    ) -> list[Stored]:
        restriction = self.restrict(resource_type)
        if restriction.nothing:
            return []
        narrowed = restricted(restriction, Compiler(resource_type, _nothing_deferred))
        find = Find(
            resource_type,
            live(both([wanted, narrowed])),
            ((ID, 1),) if limit else (),
            limit or MOST_INCLUDED + 1,
            entries=self.entries_needed(self.registry, query, resource_type),
            snapshot=self.snapshot,
        )
        found: list[Stored] = []
        for stored in await self.store.find(find):
            key = (resource_type, stored.id)
            if key not in known:
                known[key] = stored
                found.append(stored)
        return found


def _nothing_deferred(asked: Any, resource_type: str) -> Any:
    raise AssertionError("restrictions do not chain")


def _parameters(registry: Registry, include: Include, resource_type: str) -> list[Parameter]:
    if include.source not in ("*", resource_type):
        return []
    known = registry.parameters(resource_type)
    if include.code != "*":
        found = known.get(include.code)
        return [found] if found is not None else []
    return [p for p in known.values() if p.type == "reference" and p.state == "ready"]


def _values(parameter: Parameter, source: Stored) -> Iterable[str]:
    found = source.entries.get(parameter.field)
    values = () if found is None else (found,) if isinstance(found, str) else found
    return [v for v in values if not parameter.resolves_to or reference.type_of(v) == parameter.resolves_to]


def _canonical(urls: Iterable[str]) -> dict[str, Any]:
    """`url|` is any version, `url|1.0` that one."""
    conditions: list[dict[str, Any]] = []
    for text in urls:
        url, _, version = text.partition("|")
        condition: dict[str, Any] = {entry_path("url"): url}
        if version:
            condition[entry_path("version")] = "!" + version
        conditions.append(condition)
    return either(conditions)

"""Plan → Page: the finds in order, then what comes along. https://hl7.org/fhir/R4/search.html

A search is one database command unless it chains, includes or counts; several commands see one moment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from fhir_server.errors import BadRequest, Issue
from fhir_server.search import slow
from fhir_server.search.cursor import Cursor
from fhir_server.search.filters import Deferred, Filter, both
from fhir_server.search.includes import Includes
from fhir_server.search.operands import Members
from fhir_server.search.order import Position, merged
from fhir_server.search.plan import Plan, Source, Step, compile
from fhir_server.search.query import Query
from fhir_server.search.registry import Registry
from fhir_server.search.restrict import Restrict
from fhir_server.search.valuesets import Terminology
from fhir_server.store.documents import ID, PATIENTS, entry_path
from fhir_server.store.protocol import Find, SnapshotGone, Store, Stored

MOST_REFERENCES = 20_000  # that a chain, _has or _list may lead through
SNAPSHOTS = 4  # attempts to see one moment; the last one goes without
ESTIMATE = 10_000  # up to here an estimated total is counted


@dataclass(frozen=True, slots=True)
class Page:
    """`cursor` goes on after the last match, None on the last page; `issues` are said in an outcome entry."""

    matches: list[Stored]
    includes: list[Stored] = field(default_factory=list)
    cursor: str | None = None
    total: int | None = None
    issues: list[Issue] = field(default_factory=list)
    contained: list[str] = field(default_factory=list)  # per match: the contained type that matched, or ""
    explanation: Mapping[str, Any] | None = None


async def run(
    store: Store,
    registry: Registry,
    query: Query,
    restrict: Restrict,
    *,
    key: bytes,
    terminology: Terminology | None = None,
    slow_ms: int = 500,
) -> Page:
    """`key` seals cursors. Raises BadRequest for a cursor that is not ours and for what would cost too much."""
    started = time.perf_counter()
    present = frozenset(await store.resource_types()) if query.system or query.contained != "false" else None
    plan = compile(query, registry, restrict, present)
    execution = _Execution(store, registry, plan, restrict, key, terminology)
    page = await execution.page()
    elapsed = (time.perf_counter() - started) * 1000
    if elapsed > slow_ms:
        slow.tell(store, plan, execution.finds, elapsed)
    return page


async def every(
    store: Store,
    registry: Registry,
    query: Query,
    restrict: Restrict,
    *,
    entries: Sequence[str] = (),
    most: int,
    terminology: Terminology | None = None,
) -> list[Stored]:
    """All matches of one type in the order of the query, without paging: ids and entries only, no JSON.

    Raises BadRequest if there are more than `most`.
    """
    plan = compile(query, registry, restrict)
    found = await _Execution(store, registry, plan, restrict, b"", terminology).every(tuple(entries), most)
    if len(found) > most:
        text = f"There are more than {most} matches; narrow the search"
        raise BadRequest(text, issues=[Issue("error", "too-costly", text)])
    return found


async def resolved(
    store: Store,
    registry: Registry,
    query: Query,
    restrict: Restrict,
    *,
    terminology: Terminology | None = None,
) -> Filter:
    """The filter that finds the matches of a query of one type: its chains and value sets are looked up already."""
    plan = compile(query, registry, restrict)
    return await _Execution(store, registry, plan, restrict, b"", terminology).resolved()


class _Execution:
    def __init__(
        self,
        store: Store,
        registry: Registry,
        plan: Plan,
        restrict: Restrict,
        key: bytes,
        terminology: Terminology | None,
    ) -> None:
        self.store = store
        self.registry = registry
        self.plan = plan
        self.query = plan.query
        self.restrict = restrict
        self.key = key
        self.terminology = terminology
        self.results: list[list[str]] = []
        self.snapshot: Any = None
        self.finds: list[Find] = []

    async def page(self) -> Page:
        cursor = self._cursor()
        late = False
        for attempt in range(SNAPSHOTS):
            try:
                page = await self._page(cursor, attempt < SNAPSHOTS - 1)
            except SnapshotGone:
                self.results, self.finds, self.snapshot = [], [], None
                if cursor is not None and cursor.moment:
                    cursor, late = replace(cursor, moment=""), True
                else:
                    # A collection or index was made a moment ago and is not yet part of any moment.
                    await asyncio.sleep(0.02)
                continue
            if late:
                page.issues.append(
                    Issue(
                        "warning",
                        "informational",
                        "The first page is long ago: what was changed since may be missing here or be there twice",
                    )
                )
            return page
        raise AssertionError("without a snapshot none can be gone")

    def _cursor(self) -> Cursor | None:
        text = self.query.cursor
        return Cursor.open(text, self.key, identity(self.query)) if text else None

    async def _page(self, cursor: Cursor | None, one_moment: bool) -> Page:
        query = self.query
        issues = [
            Issue("warning", "not-supported", f"Parameter {name!r} is not known here and was ignored")
            for name in query.ignored
        ]
        # Pages by id need no common moment: ids do not change, so nothing moves from one page to another.
        moving = any(source.order.keys for source in self.plan.sources)
        several = self.plan.steps or query.includes or query.revincludes or query.total != "none"
        async with AsyncExitStack() as stack:
            if one_moment and (moving or several):
                at = cursor.moment if cursor is not None else ""
                self.snapshot = await stack.enter_async_context(self.store.snapshot(at))
            for step in self.plan.steps:
                self.results.append(await self._step(step))
            sources = [replace(s, filter=_filled(s.filter, self.results)) for s in self.plan.sources]
            total = await self._total(sources)
            if query.only_count:
                return Page([], total=total, issues=issues)
            found = await self._matches(sources, cursor)
            more = len(found) > query.count
            found = found[: query.count]
            following = None
            if more:
                number, position, _ = found[-1]
                moment = self.store.moment(self.snapshot) if moving and self.snapshot is not None else ""
                following = Cursor(sources[number].name, position, moment).seal(self.key, identity(query))
            includes = Includes(self.store, self.registry, self.restrict, self.snapshot)
            included = await includes.of(query, [m for (n, _, m) in found if not sources[n].contained])
            issues += includes.issues
            explanation = await self._explain() if query.explain else None
        matches = [stored for _, _, stored in found]
        contained = [sources[number].contained for number, _, _ in found]
        return Page(matches, included, following, total, issues, contained, explanation)

    async def every(self, entries: tuple[str, ...], most: int) -> list[Stored]:
        source = replace(self.plan.sources[0], filter=await self.resolved())
        return await self._from(source, None, most + 1, entries=entries)

    async def resolved(self) -> Filter:
        for step in self.plan.steps:
            self.results.append(await self._step(step))
        found: Filter = _filled(self.plan.sources[0].filter, self.results)
        return found

    # Earlier finds

    async def _step(self, step: Step) -> list[str]:
        if step.members is not None:
            return await self._codes(step.members)
        found: list[str] = []
        for lookup in step.lookups:
            condition = _filled(lookup.filter, self.results)
            if step.kind == "ids":
                values = await self.store.distinct(
                    lookup.resource_type, entry_path(step.field), condition, MOST_REFERENCES + 1, self.snapshot
                )
                prefix = step.resource_type + "/"
                found += [v[len(prefix) :] for v in values if isinstance(v, str) and v.startswith(prefix)]
            else:
                entries = ("url", "version") if step.canonical else ()
                find = Find(
                    lookup.resource_type,
                    condition,
                    limit=MOST_REFERENCES + 1,
                    raw=False,
                    entries=entries,
                    snapshot=self.snapshot,
                )
                self.finds.append(find)
                for stored in await self.store.find(find):
                    found.append(f"{lookup.resource_type}/{stored.id}")
                    if step.canonical:
                        found += _canonicals(stored)
            if len(found) > MOST_REFERENCES:
                raise BadRequest(
                    f"The search leads through more than {MOST_REFERENCES} {lookup.resource_type} resources; narrow it",
                    issues=[
                        Issue(
                            "error",
                            "too-costly",
                            f"A chain, _has or _list may lead through {MOST_REFERENCES} resources; "
                            f"this one leads through more {lookup.resource_type}. Narrow it.",
                        )
                    ],
                )
        return found

    async def _codes(self, members: Members) -> list[str]:
        if self.terminology is None:
            raise BadRequest(f"This server has no terminology to look up {members.target!r} in")
        return sorted(await self.terminology.keys(members, self.restrict))

    # The main finds

    async def _matches(self, sources: Sequence[Source], cursor: Cursor | None) -> list[tuple[int, Position, Stored]]:
        """One more than the page holds, if there are so many."""
        wanted = self.query.count + 1
        if len(sources) > 1 and any(source.order.keys for source in sources):
            return await self._merged(sources, cursor, wanted)
        found: list[tuple[int, Position, Stored]] = []
        start = 0
        if cursor is not None:
            names = [source.name for source in sources]
            if cursor.source not in names:
                raise BadRequest("Parameter '_cursor' goes on in a type that is not searched; start again")
            start = names.index(cursor.source)
        for number in range(start, len(sources)):
            position = cursor.position if cursor is not None and number == start else None
            for stored in await self._from(sources[number], position, wanted - len(found)):
                found.append((number, sources[number].order.position(stored), stored))
            if len(found) >= wanted:
                break
        return found

    async def _from(
        self,
        source: Source,
        position: Position | None,
        limit: int,
        tie: int = 0,
        entries: tuple[str, ...] | None = None,
    ) -> list[Stored]:
        """`entries`: those alone, without the JSON."""
        order = source.order
        wanted = self._include_entries(source.resource_type) if entries is None else entries
        needed = tuple(dict.fromkeys((*order.entries, *wanted)))
        found: list[Stored] = []
        phases = order.phases(position, narrow=_narrow(source.filter))
        for phase in phases:
            after = order.after(position, tie=tie) if position is not None and phase == phases[0] else {}
            if order.stored:
                condition, computed, later = both([source.filter, order.within(phase), after]), {}, {}
            else:
                condition, computed, later = source.filter, order.computed(), after
            find = Find(
                source.resource_type,
                condition,
                order.sort(phase),
                limit - len(found),
                raw=entries is None,
                entries=needed,
                snapshot=self.snapshot,
                computed=computed,
                after=later,
            )
            self.finds.append(find)
            found += await self.store.find(find)
            if len(found) >= limit:
                break
        return found

    async def _merged(
        self, sources: Sequence[Source], cursor: Cursor | None, wanted: int
    ) -> list[tuple[int, Position, Stored]]:
        """Sorted over several types: the first of each, then the first of all."""
        found: list[tuple[Position, str, tuple[int, Stored]]] = []
        order = sources[0].order
        for number, source in enumerate(sources):
            position, tie = None, 0
            if cursor is not None:
                position = cursor.position
                before = source.resource_type < cursor.source
                tie = 0 if source.resource_type == cursor.source else (-1 if before is not order.id_descending else 1)
            for stored in await self._from(source, position, wanted, tie):
                found.append((order.position(stored), source.resource_type, (number, stored)))
        return [(number, position, stored) for position, _, (number, stored) in merged(order, found)[:wanted]]

    def _include_entries(self, resource_type: str) -> tuple[str, ...]:
        return Includes.entries_needed(self.registry, self.query, resource_type)

    async def _total(self, sources: Sequence[Source]) -> int | None:
        if self.query.total == "none" and not self.query.only_count:
            return None
        limit = ESTIMATE if self.query.total == "estimate" and not self.query.only_count else 0
        return sum([await self.store.count(s.resource_type, s.filter, limit) for s in sources])

    async def _explain(self) -> Mapping[str, Any]:
        explained = [await self.store.explain(replace(find, snapshot=None)) for find in self.finds]
        return {"plan": str(self.plan), "finds": [slow.summary(e) for e in explained]}


def _narrow(filter: Mapping[str, Any]) -> bool:
    """Whether it asks for one patient's (or other subject's) data."""
    for key, value in filter.items():
        if key == "$and":
            if any(_narrow(part) for part in value):
                return True
        elif key in _NARROWING and isinstance(value, str):
            return True
    return False


_NARROWING = frozenset({ID, PATIENTS, entry_path("subject"), entry_path("patient")})


def _canonicals(stored: Stored) -> list[str]:
    versions = ["", *(key[1:] for key in stored.entries.get("version", ()) if key.startswith("!"))]
    return [
        f"{url}|{version}"
        for url in stored.entries.get("url", ())
        if not url.startswith("\U0010ffff")
        for version in versions
    ]


def _filled(filter: Any, results: Sequence[list[str]]) -> Any:
    """The filter with the results of earlier steps in their places."""
    if isinstance(filter, Deferred):
        return results[filter.number]
    if isinstance(filter, dict):
        return {key: _filled(value, results) for key, value in filter.items()}
    if isinstance(filter, list):
        return [_filled(item, results) for item in filter] if filter and isinstance(filter[0], (dict, list)) else filter
    return filter


def identity(query: Query) -> str:
    """What a cursor belongs to: the search, whatever the page size and presentation."""
    own = ("_count", "_total", "_summary", "_elements", "_include", "_revinclude", "_explain")
    kept = [(n, v) for n, v in query.pairs if n.partition(":")[0] not in own]
    within = [str(c) for cs in list(query.conditions.values())[:1] for c in cs[:1]] if query.conditions else []
    return repr((query.types, kept, within if within and within[0].startswith("InCompartment") else []))

"""Versions: current ∪ history, newest first. https://hl7.org/fhir/R4/http.html#history

The history collection holds what was superseded; the current collection holds the rest, tombstones included. A page is
ordered by (lastUpdated descending, type/id, version descending), and continues after the last triple it showed.
"""

from __future__ import annotations

import asyncio
from typing import Any

from pymongo.asynchronous.database import AsyncDatabase

from fhir_server.store import documents as d
from fhir_server.store.indexes import Collections
from fhir_server.store.protocol import HistoryPage, Stored

Document = dict[str, Any]


class History:
    def __init__(self, database: AsyncDatabase[Document], collections: Collections) -> None:
        self._database = database
        self._collections = collections

    async def version(self, resource_type: str, id: str, version: int) -> Stored | None:
        """Always two looks: that there was only one would tell whoever may not see it that it is there."""
        current = await self._database[resource_type].find_one({d.ID: id, d.VERSION: version}, {d.ENTRIES: 0})
        # Looked at second: a version that is superseded between the two looks is found here.
        superseded = await self._database[d.HISTORY].find_one({d.ID: f"{resource_type}/{id}/{version}"})
        if current is not None:
            return d.stored(resource_type, current)
        return d.from_history(superseded) if superseded is not None else None

    async def page(
        self,
        resource_type: str | None,
        id: str | None,
        *,
        since: int | None,
        until: int | None,
        before: tuple[int, str, int] | None,
        limit: int,
        patients: frozenset[str] | None,
    ) -> HistoryPage:
        """`since` and `until` in ms, both inclusive; `before`: (ms, "Type/id", version) of the last one shown."""
        condition: Document = {}
        if patients is not None:
            condition[d.PATIENTS] = {"$in": sorted(patients)}
        bounds: Document = {}
        if since is not None:
            bounds["$gte"] = since
        if until is not None:
            bounds["$lte"] = until
        if before is not None:
            bounds["$lte"] = min(before[0], until) if until is not None else before[0]
        if bounds:
            condition[d.UPDATED] = bounds
        types = [resource_type] if resource_type else await self._collections.types()
        found = await asyncio.gather(*(self._current(name, id, condition, before, limit) for name in types))
        # Looked at second, as in `version`: what is superseded between the two looks is found here.
        found.append(await self._superseded(resource_type, id, condition, before, limit))
        versions = {(one.resource_type, one.id, one.version): one for part in found for one in part}
        ordered = sorted(
            versions.values(), key=lambda one: (-one.updated, f"{one.resource_type}/{one.id}", -one.version)
        )
        return HistoryPage(ordered[:limit], len(ordered) > limit)

    async def _current(
        self, resource_type: str, id: str | None, condition: Document, before: tuple[int, str, int] | None, limit: int
    ) -> list[Stored]:
        wanted = dict(condition)
        if id is not None:
            wanted[d.ID] = id
        cursor = self._database[resource_type].find(wanted, {d.ENTRIES: 0}).sort([(d.UPDATED, -1), (d.ID, 1)])
        return await _take(cursor, before, limit, lambda document: d.stored(resource_type, document))

    async def _superseded(
        self,
        resource_type: str | None,
        id: str | None,
        condition: Document,
        before: tuple[int, str, int] | None,
        limit: int,
    ) -> list[Stored]:
        wanted: Document = {}
        if resource_type is not None:
            wanted["rt"] = resource_type
        if id is not None:
            wanted["id"] = id
        wanted.update(condition)
        order = [(d.UPDATED, -1), ("rt", 1), ("id", 1), (d.VERSION, -1)]
        return await _take(self._database[d.HISTORY].find(wanted).sort(order), before, limit, d.from_history)


async def _take(cursor: Any, before: tuple[int, str, int] | None, limit: int, make: Any) -> list[Stored]:
    """The first limit + 1 after `before`; only versions of that same millisecond are passed over."""
    taken: list[Stored] = []
    async for document in cursor.batch_size(limit + 2):
        one: Stored = make(document)
        if before is not None and (-one.updated, f"{one.resource_type}/{one.id}", -one.version) <= (
            -before[0],
            before[1],
            -before[2],
        ):
            continue
        taken.append(one)
        if len(taken) > limit:
            await cursor.close()
            break
    return taken

"""All matches of one type, one after the other, for what reads everything (exports). Memory is bounded by the store's replies.

What stands still while it is read comes exactly once: either in the order of ids, which no write changes; or patient by
patient, each few of them as of one moment. What is written meanwhile may or may not come.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection

from fhir_server.search.filters import NEVER, Filter, both
from fhir_server.store.documents import DELETED, ID, PATIENTS, UPDATED
from fhir_server.store.indexes import FEW, PATIENT_INDEX
from fhir_server.store.protocol import Find, SnapshotGone, Store, Stored

SNAPSHOTS = 4  # attempts to see one moment; the last one goes without


async def by_id(
    store: Store,
    resource_type: str,
    filter: Filter,
    *,
    after: str = "",
    of_patients: bool = False,
    entries: tuple[str, ...] = (),
) -> AsyncIterator[Stored]:
    """`after`: only ids above it. `of_patients`: only what is in some patient's compartment. `entries`: to come along."""
    if filter == NEVER:
        return
    more: list[Filter] = [{ID: {"$gt": after}}] if after else []
    if of_patients:
        more.append({PATIENTS: {"$exists": True}})
    find = Find(resource_type, both([filter, *more]), ((ID, 1),), entries=entries, hint="_id_")
    last = ""
    async for stored in store.stream(find):
        if stored.id != last:  # a replaced document may be met again under the same id
            yield stored
        last = stored.id


async def by_patient(
    store: Store, resource_type: str, filter: Filter, patients: Collection[str]
) -> AsyncIterator[Stored]:
    """Only what is in the compartments of these patients; what is in several of them comes with the first."""
    if filter == NEVER:
        return
    wanted = sorted(patients)
    known = frozenset(patients)
    for start in range(0, len(wanted), FEW):
        few = wanted[start : start + FEW]
        async for stored in _of(store, resource_type, filter, few):
            if min(known.intersection(stored.patients), default="") in few:
                yield stored


async def _of(store: Store, resource_type: str, filter: Filter, few: list[str]) -> AsyncIterator[Stored]:
    """As of one moment, because a write would move a resource in the index that is read."""
    find = Find(resource_type, both([filter, {PATIENTS: {"$in": few}}]), hint=PATIENT_INDEX)
    for attempt in range(SNAPSHOTS):
        begun = False
        try:
            if attempt == SNAPSHOTS - 1:
                async for stored in store.stream(find):
                    yield stored
                return
            async with store.snapshot() as token:
                at = Find(find.resource_type, find.filter, hint=find.hint, snapshot=token)
                async for stored in store.stream(at):
                    begun = True
                    yield stored
            return
        except SnapshotGone:
            if begun:
                raise
            await asyncio.sleep(0.02)  # a collection or index was made a moment ago and is not yet part of any moment


async def deleted(store: Store, resource_type: str, since: int) -> AsyncIterator[Stored]:
    """What was deleted after `since` (ms) and is still."""
    find = Find(resource_type, {UPDATED: {"$gt": since}, DELETED: True}, hint="_updated")
    async for stored in store.stream(find):
        yield stored

"""The outbox: every committed change, kept until the hooks have dealt with it.

Written by commit.py in the transaction of the change; deleted by `acknowledge` in the transaction of the effects. Besides the
changes there are events that only ask for attention (timers, backfill, retries): their type starts with `$`.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import BulkWriteError, PyMongoError
from pymongo.operations import DeleteOne, IndexModel, UpdateOne
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from fhir_server.store import documents as d
from fhir_server.store.protocol import Cause, Event, Extra

Document = dict[str, Any]
log = logging.getLogger(__name__)
QUICK = WriteConcern(w=1, j=False)  # where a loss in a crash only means doing something twice that changes nothing
DUPLICATE_KEY = 11000


class Taken(Exception):
    """Another worker was faster: nothing of this transaction may stand."""


@dataclass(frozen=True, slots=True)
class _Acknowledgement:
    collection: AsyncCollection[Document]
    events: tuple[tuple[Event, str], ...]

    async def __call__(self, session: Any) -> None:
        plain, shared = _parted(self.events)
        gone = 0
        if plain:
            gone += (await self.collection.delete_many({d.ID: {"$in": plain}}, session=session)).deleted_count
        if shared:
            result = await self.collection.bulk_write(shared, ordered=False, session=session)
            gone += result.deleted_count + result.modified_count
        if gone != len(self.events):
            raise Taken("another worker has dealt with these events")

    def beside(self, other: Extra) -> Extra | None:
        if not isinstance(other, _Acknowledgement):
            return None
        return _Acknowledgement(self.collection, (*self.events, *other.events))


class Outbox:
    def __init__(self, database: AsyncDatabase[Document]) -> None:
        self._events = database[d.OUTBOX]
        self._quick = self._events.with_options(write_concern=QUICK)
        self._last = 0
        self._process = secrets.token_hex(8)

    async def open(self) -> None:
        await self._events.create_indexes(
            [
                IndexModel([(d.PATIENTS, 1), (d.ID, 1)], name="patient"),
                IndexModel([("c.0", 1)], name="root", sparse=True),
            ]
        )

    async def pending(self, patients: Sequence[str], limit: int = 2000) -> list[Event]:
        """Events of these patients, oldest first. The empty text stands for events of no patient."""
        wanted: list[Any] = [patient for patient in patients if patient]
        condition: Document = {d.PATIENTS: {"$in": wanted}}
        if len(wanted) < len(patients):
            condition = {"$or": [condition, {d.PATIENTS: []}]}
        cursor = self._events.find(condition, sort=[(d.ID, 1)], limit=limit, batch_size=limit + 1)
        return [d.from_outbox(document) for document in await cursor.to_list()]

    async def waiting(self, limit: int = 5000) -> list[str]:
        """The patients of the oldest events, each once, in the order of their first event."""
        cursor = self._events.find({}, {d.PATIENTS: 1}, sort=[(d.ID, 1)], limit=limit, batch_size=limit + 1)
        found: dict[str, None] = {}
        for document in await cursor.to_list():
            found.update(dict.fromkeys(document[d.PATIENTS] or [""]))
        return list(found)

    def acknowledge(self, events: Sequence[tuple[Event, str]]) -> Extra:
        """For a commit: these (event, patient) are done. Aborts with Taken unless every one of them was still there.

        An event of several patients is done for one at a time.
        """
        return _Acknowledgement(self._events, tuple(events))

    async def done(self, events: Sequence[tuple[Event, str]]) -> None:
        """These events have no effect: they are dropped without ceremony."""
        plain, shared = _parted(events)
        if plain:
            await self._quick.delete_many({d.ID: {"$in": plain}})
        if shared:
            await self._quick.bulk_write(shared, ordered=False)

    def event(
        self, resource_type: str, resource_id: str, patients: tuple[str, ...], cause: Cause | None = None
    ) -> Event:
        """An event that asks for attention, with an id that sorts after those made before."""
        self._last = max(self._last + 1, time.time_ns() // 1_000_000 << 16)
        now = time.time_ns() // 1_000_000
        id = f"{self._last:016x}{self._process}"
        return Event(id, resource_type, resource_id, 0, "update", now, patients, cause or Cause())

    async def add(self, events: Sequence[Event], session: Any = None) -> None:
        if events:
            await self._events.insert_many([d.event(event) for event in events], ordered=False, session=session)

    async def newest(self) -> str:
        """The id of the newest event; empty if there is none."""
        found = await self._events.find_one({}, {d.ID: 1}, sort=[(d.ID, -1)])
        return str(found[d.ID]) if found else ""

    async def undone(self, until: str) -> int:
        """How many events up to `until`, and events caused by those, are still waiting."""
        return await self._events.count_documents(
            {"$or": [{d.ID: {"$lte": until}}, {"c.0": {"$lte": until}}]}, limit=1000
        )

    async def depth(self) -> tuple[int, int | None]:
        """(how many events wait, when the oldest of them was committed: ms)."""
        oldest = await self._events.find_one({}, {d.UPDATED: 1}, sort=[(d.ID, 1)])
        return await self._events.count_documents({}), oldest[d.UPDATED] if oldest else None

    async def watch(self, process: str) -> AsyncIterator[list[str]]:
        """Patients of events as other processes commit them (ids of ours end in `process`); ends when the stream is lost."""
        others = {"$not": {"$regex": f"{process}$"}}
        pipeline: list[Document] = [
            {"$match": {"operationType": "insert", f"documentKey.{d.ID}": others}},
            {"$project": {f"fullDocument.{d.PATIENTS}": 1}},
        ]
        try:
            # A change stream tells what a majority has; with the read concern of the other reads it is refused.
            events = self._events.with_options(read_concern=ReadConcern("majority"))
            async with await events.watch(pipeline, max_await_time_ms=1000) as stream:
                async for change in stream:
                    yield change["fullDocument"].get(d.PATIENTS) or [""]
        except PyMongoError as error:
            log.info("the outbox cannot be watched: %s", error)


def _parted(events: Sequence[tuple[Event, str]]) -> tuple[list[str], list[DeleteOne | UpdateOne]]:
    """Ids of the events that are over, and what becomes of those that wait for other patients, too."""
    plain: list[str] = []
    shared: list[DeleteOne | UpdateOne] = []
    for event, patient in events:
        if len(event.patients) <= 1:
            plain.append(event.id)
        elif patient:
            shared.append(UpdateOne({d.ID: event.id, d.PATIENTS: patient}, {"$pull": {d.PATIENTS: patient}}))
        else:
            shared.append(DeleteOne({d.ID: event.id}))
    return plain, shared


def is_duplicate(error: BulkWriteError) -> bool:
    return all(problem.get("code") == DUPLICATE_KEY for problem in error.details.get("writeErrors", []))

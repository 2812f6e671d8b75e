"""One small document a patient: who is working on them (a lease), and what automation keeps about them.

ledgers (one collection)
    _id  patient id      h  holder of the lease      u    until when it is held (ms)
    b    the ledger, opaque here                      due  the next instant at which time alone matters (ms), absent without
    f    how many dead letters it holds, absent without      e    counts the changes of holder

Leases make workers keep out of each other's way; that nothing is done twice does not depend on them (nor on clocks),
but on the check in `write`, which is part of the transaction of the effects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import BulkWriteError
from pymongo.operations import IndexModel, UpdateOne

from fhir_server.store import documents as d
from fhir_server.store.outbox import QUICK, Outbox, Taken, is_duplicate
from fhir_server.store.protocol import Extra

Document = dict[str, Any]
LEDGERS = "ledgers"
HOLDER, UNTIL, BODY, DUE, DEAD, EPOCH = "h", "u", "b", "due", "f", "e"


@dataclass(frozen=True, slots=True)
class Entry:
    """A ledger to be written."""

    patient: str
    body: bytes
    due: int | None
    dead: int


@dataclass(frozen=True, slots=True)
class _Writing:
    collection: AsyncCollection[Document]
    entries: tuple[Entry, ...]
    holder: str
    until: int

    async def __call__(self, session: AsyncClientSession) -> None:
        operations = [self._update(entry) for entry in self.entries]
        result = await self.collection.bulk_write(operations, ordered=False, session=session)
        if result.matched_count != len(operations):
            raise Taken("another worker holds one of these patients")

    def beside(self, other: Extra) -> Extra | None:
        if not isinstance(other, _Writing) or other.holder != self.holder:
            return None
        return replace(self, entries=(*self.entries, *other.entries), until=max(self.until, other.until))

    def _update(self, entry: Entry) -> UpdateOne:
        values: Document = {BODY: entry.body, UNTIL: self.until}
        absent: Document = {}
        for name, value in ((DUE, entry.due), (DEAD, entry.dead or None)):
            (values if value is not None else absent)[name] = value if value is not None else ""
        update: Document = {"$set": values}
        if absent:
            update["$unset"] = absent
        return UpdateOne({d.ID: entry.patient, HOLDER: self.holder}, update)


class Ledgers:
    def __init__(self, database: AsyncDatabase[Document]) -> None:
        self._ledgers = database[LEDGERS]
        self._quick = self._ledgers.with_options(write_concern=QUICK)
        self._client = database.client

    async def open(self) -> None:
        await self._ledgers.create_indexes(
            [
                IndexModel([(DUE, 1)], name="due", partialFilterExpression={DUE: {"$exists": True}}),
                IndexModel([(DEAD, 1)], name="dead", partialFilterExpression={DEAD: {"$exists": True}}),
            ]
        )

    async def lease(self, patients: Sequence[str], holder: str, now: int, until: int) -> dict[str, tuple[bytes, int]]:
        """Those of the patients that are now ours: (ledger, how often the holder changed). The others are somebody else's.

        The same number as last time means that nobody else has worked on the patient in between.
        """
        changed = {"$add": [{"$ifNull": [f"${EPOCH}", 0]}, 1]}
        epoch = {"$cond": [{"$eq": [f"${HOLDER}", holder]}, f"${EPOCH}", changed]}
        operations = [
            UpdateOne(
                {d.ID: patient, "$or": [{HOLDER: holder}, {UNTIL: {"$lt": now}}]},
                [{"$set": {EPOCH: epoch, HOLDER: {"$literal": holder}, UNTIL: until}}],
                upsert=True,
            )
            for patient in patients
        ]
        try:
            await self._quick.bulk_write(operations, ordered=False)
        except BulkWriteError as error:
            if not is_duplicate(error):
                raise
        cursor = self._ledgers.find(
            {d.ID: {"$in": list(patients)}, HOLDER: holder}, {BODY: 1, EPOCH: 1}, batch_size=1000
        )
        return {one[d.ID]: (one.get(BODY, b""), one.get(EPOCH, 0)) for one in await cursor.to_list()}

    async def release(self, holder: str) -> None:
        await self._quick.update_many({HOLDER: holder}, {"$set": {UNTIL: 0}})

    def write(self, entries: Sequence[Entry], holder: str, until: int) -> Extra:
        """For a commit: these ledgers, if every one is still held by `holder`. Aborts with Taken otherwise."""
        return _Writing(self._ledgers, tuple(entries), holder, until)

    async def read(self, patients: Sequence[str]) -> dict[str, bytes]:
        cursor = self._ledgers.find({d.ID: {"$in": list(patients)}}, {BODY: 1})
        return {document[d.ID]: document.get(BODY, b"") for document in await cursor.to_list()}

    async def next_due(self) -> int | None:
        found = await self._ledgers.find_one({DUE: {"$exists": True}}, {DUE: 1}, sort=[(DUE, 1)])
        return int(found[DUE]) if found else None

    async def fire(self, outbox: Outbox, now: int, event_type: str, limit: int = 500) -> list[str]:
        """Turns due times into events, each exactly once; the patients whose time has come."""
        due = await self._ledgers.find({DUE: {"$lte": now}}, {DUE: 1}, sort=[(DUE, 1)], limit=limit).to_list()
        if not due:
            return []
        events = [outbox.event(event_type, "", (str(document[d.ID]),)) for document in due]
        operations = [UpdateOne({d.ID: one[d.ID], DUE: one[DUE]}, {"$unset": {DUE: ""}}) for one in due]

        async def fire(session: AsyncClientSession) -> None:
            result = await self._ledgers.bulk_write(operations, ordered=False, session=session)
            if result.matched_count != len(operations):
                raise Taken("another worker fires these timers")
            await outbox.add(events, session)

        async with self._client.start_session() as session:
            try:
                await session.with_transaction(fire)
            except Taken:
                return []
        return [str(document[d.ID]) for document in due]

    async def dead(self, limit: int = 100) -> Mapping[str, bytes]:
        """Ledgers that hold dead letters."""
        cursor = self._ledgers.find({DEAD: {"$exists": True}}, {BODY: 1}, limit=limit)
        return {document[d.ID]: document.get(BODY, b"") for document in await cursor.to_list()}

    async def count_dead(self) -> int:
        found = await self._ledgers.aggregate(
            [{"$match": {DEAD: {"$exists": True}}}, {"$group": {d.ID: 0, "n": {"$sum": "$" + DEAD}}}]
        )
        return sum([int(document["n"]) async for document in found])

    async def count_held(self, now: int) -> int:
        return await self._ledgers.count_documents({UNTIL: {"$gte": now}})

"""Where AuditEvents end up: resources like others to a search, and a chain beside them that shows what is missing.

audit_chain     _id  number, from 1 without a gap     e  AuditEvent id     h  seal over this event and all before it
audit_state     _id "head"    n, h                    the last of the chain
                _id "start"   n, h, m                 the event before the first that is kept, sealed (retention)
                _id journal   o                       up to which byte a journal has been taken over
                              a, d                    the last flush of every process that its own has heard of, has done
                _id "wanted"  n                       how many such flushes were asked for

A batch, the head and the journal's position change in one transaction: each access is taken over exactly once, and
two processes cannot continue the chain from the same place. These events have no history and reach no hook.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pymongo import ReturnDocument, WriteConcern
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import BulkWriteError, DuplicateKeyError
from pymongo.read_concern import ReadConcern

from fhir_server.store import documents as d
from fhir_server.store.protocol import Stored

DURABLE = WriteConcern("majority", j=True)
TYPE = "AuditEvent"


@dataclass(frozen=True, slots=True)
class Link:
    """One place in the chain. `seal`: hexadecimal."""

    number: int
    seal: str
    id: str = ""
    raw: bytes | None = None  # None: the event itself is gone
    mark: str = ""  # only of the start: the seal over the place itself


class Overtaken(Exception):
    """Another process continued the chain first; read the head again."""


class AuditLog:
    """`ensure` makes the collection of AuditEvents with its search indexes."""

    def __init__(self, database: AsyncDatabase[dict[str, Any]], ensure: Callable[[str], Awaitable[None]]) -> None:
        self._ensure = ensure
        self._client = database.client
        self._events = database.get_collection(TYPE, write_concern=DURABLE)
        self._chain = database.get_collection("audit_chain", write_concern=DURABLE)
        self._state = database.get_collection("audit_state", write_concern=DURABLE)

    async def open(self) -> None:
        await self._ensure(TYPE)
        await self._state.update_one({"_id": "head"}, {"$setOnInsert": {"n": 0, "h": ""}}, upsert=True)

    async def head(self) -> Link:
        return _link(await self._state.find_one({"_id": "head"}))

    async def start(self) -> Link:
        return _link(await self._state.find_one({"_id": "start"}))

    async def position(self, journal: str) -> int:
        found = await self._state.find_one({"_id": journal})
        return int(found["o"]) if found else 0

    async def forget(self, journal: str) -> None:
        await self._state.delete_one({"_id": journal})

    async def present(self, journal: str) -> None:
        """A process has begun it."""
        await self._state.update_one({"_id": journal}, {"$setOnInsert": {"o": 0}}, upsert=True)

    async def want(self) -> int:
        """Asks every process to move what it holds; the number of this wish."""
        found = await self._state.find_one_and_update(
            {"_id": "wanted"}, {"$inc": {"n": 1}}, upsert=True, return_document=ReturnDocument.AFTER
        )
        return int(found["n"]) if found else 0

    async def wanted(self) -> int:
        found = await self._state.find_one({"_id": "wanted"})
        return int(found["n"]) if found else 0

    async def answer(self, journals: Sequence[str], number: int, *, done: bool = False) -> None:
        """Their process has heard of the wish, or has done it."""
        change = {"a": number, "d": number} if done else {"a": number}
        await self._state.update_many({"_id": {"$in": list(journals)}}, {"$max": change})

    async def unanswered(self, number: int) -> tuple[set[str], set[str]]:
        """Journals whose process has not heard of the wish; those whose has, and has not yet done it."""
        open_ones = {"o": {"$exists": True}, "d": {"$not": {"$gte": number}}}
        found = await self._state.find(open_ones, {"a": 1}).to_list()
        unheard = {one["_id"] for one in found if one.get("a", 0) < number}
        return unheard, {one["_id"] for one in found} - unheard

    async def append(self, head: Link, events: Sequence[tuple[Link, Stored]], journal: str, position: int) -> None:
        """Continues the chain from `head`. Raises Overtaken if it is not the head any more."""

        async def write(session: AsyncClientSession) -> None:
            last = events[-1][0] if events else head
            moved = await self._state.update_one(
                {"_id": "head", "n": head.number, "h": head.seal}, {"$set": {"n": last.number, "h": last.seal}},
                session=session,
            )  # fmt: skip
            if moved.matched_count != 1:
                raise Overtaken
            if events:
                await self._events.insert_many([d.current(stored) for _, stored in events], session=session)
                rows = [{"_id": link.number, "e": stored.id, "h": link.seal} for link, stored in events]
                await self._chain.insert_many(rows, session=session)
            await self._state.update_one({"_id": journal}, {"$set": {"o": position}}, upsert=True, session=session)

        async with self._client.start_session() as session:
            try:
                await session.with_transaction(write, ReadConcern("snapshot"), DURABLE)
            except (DuplicateKeyError, BulkWriteError):
                await asyncio.sleep(0.01 * random.random())
                raise Overtaken from None

    async def links(self, after: int) -> AsyncIterator[Link]:
        """The chain from there on, with the events as they are now."""
        while True:
            rows = await self._chain.find({"_id": {"$gt": after}}, sort=[("_id", 1)], limit=1000).to_list()
            if not rows:
                return
            ids = [row["e"] for row in rows]
            found = {
                doc["_id"]: doc async for doc in self._events.find({"_id": {"$in": ids}}, {d.RAW: 1, d.DELETED: 1})
            }
            for row in rows:
                document = found.get(row["e"])
                raw = document[d.RAW] if document and d.DELETED not in document else None
                yield Link(row["_id"], row["h"], row["e"], raw)
            after = rows[-1]["_id"]

    async def strays(self) -> tuple[int, str]:
        """How many AuditEvents are in no place of the chain; the id of one. Both sides are seen at one moment."""
        async with self._client.start_session(snapshot=True) as session:
            kept = await self._events.count_documents({d.DELETED: {"$exists": False}}, session=session)
            chained = await self._chain.count_documents({}, session=session)
            if kept == chained:
                return 0, ""
            rows = self._chain.find({}, {"e": 1}, sort=[("e", 1)], allow_disk_use=True, session=session)
            events = self._events.find({d.DELETED: {"$exists": False}}, {"_id": 1}, sort=[("_id", 1)], session=session)
            strays, first, place = 0, "", await anext(rows, None)
            async for event in events:
                while place is not None and place["e"] < event["_id"]:
                    place = await anext(rows, None)
                if place is None or place["e"] != event["_id"]:
                    strays, first = strays + 1, first or event["_id"]
            return strays, first

    async def older_than(self, updated: int, limit: int) -> list[Link]:
        """The oldest of the chain, as long as they were taken over before that moment (ms)."""
        start = (await self.start()).number
        found: list[Link] = []
        rows = await self._chain.find({"_id": {"$gt": start}}, sort=[("_id", 1)], limit=limit).to_list()
        old = self._events.find({"_id": {"$in": [row["e"] for row in rows]}, d.UPDATED: {"$gte": updated}}, {"_id": 1})
        young = {document["_id"] async for document in old}
        for row in rows:
            if row["e"] in young:
                break
            found.append(Link(row["_id"], row["h"], row["e"]))
        return found

    async def remove(self, links: Sequence[Link], mark: str) -> None:
        """Retention: takes away the beginning of the chain; `mark` seals where it begins now."""
        last = links[-1]

        async def write(session: AsyncClientSession) -> None:
            await self._state.update_one(
                {"_id": "start"}, {"$set": {"n": last.number, "h": last.seal, "m": mark}}, upsert=True, session=session
            )
            await self._events.delete_many({"_id": {"$in": [link.id for link in links]}}, session=session)
            await self._chain.delete_many({"_id": {"$lte": last.number}}, session=session)

        async with self._client.start_session() as session:
            await session.with_transaction(write, ReadConcern("snapshot"), DURABLE)


def _link(document: dict[str, Any] | None) -> Link:
    if document is None:
        return Link(0, "")
    return Link(int(document["n"]), str(document["h"]), mark=str(document.get("m", "")))

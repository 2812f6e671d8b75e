"""The one author of versions, history and outbox: what is committed together is one transaction, durable when it returns.

Small commits that wait at the same moment share a transaction of a few bulk commands (12 to 25 times the rate of single
ones). A precondition that fails spoils the group; its members are then committed one by one, so that each caller gets its
own answer. Large bundles go in a lane of their own, a few at a time, because WiredTiger's cache bounds them; so do commits
with extra work in their transaction, the effects of the hooks.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import BulkWriteError, ConnectionFailure, DuplicateKeyError, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from fhir_server.store import documents as d
from fhir_server.store.indexes import Collections
from fhir_server.store.lane import Lane, Waiting
from fhir_server.store.protocol import Changed, Claim, Event, Extra, Put
from fhir_server.store.refusals import in_words

Document = dict[str, Any]
Work = tuple[Sequence[Put], Sequence[Extra]]

log = logging.getLogger(__name__)

LARGE = 50  # Puts in one commit beyond which it does not share a transaction
LARGE_AT_ONCE = 4  # 24 bundles of 801 entries by 20 clients: 5 committed without this limit, 24 with it (hfs)
EFFECTS_BYTES = 400_000  # of what rules write in one transaction: about a hundred versions, 40 ms
MOST_REMOVED = 500  # documents in one delete command
CHUNK_BYTES = 12_000_000  # of one insert command; MongoDB takes 48 MB
TRY_FOR_SECONDS = 30.0  # a primary's step-down or mongod's restart is waited out
DURABLE = WriteConcern(w="majority", j=True)
DUPLICATE_KEY = 11000


class Committer:
    def __init__(
        self, client: AsyncMongoClient[Document], database: AsyncDatabase[Document], collections: Collections
    ) -> None:
        self._client = client
        self._database = database
        self._collections = collections
        self._small: Lane[Work, list[Event]] = Lane(self._together, width=2, most=64)
        self._large: Lane[Work, list[Event]] = Lane(self._together, width=LARGE_AT_ONCE, most=1, limit=64)
        self._effects: Lane[Work, list[Event]] = Lane(self._together, width=2, most=32, most_bytes=EFFECTS_BYTES)
        self._clock = itertools.count()
        self._last = 0
        self.process = secrets.token_hex(8)

    async def drain(self) -> None:
        await self._small.drain()
        await self._large.drain()
        await self._effects.drain()

    async def commit(self, puts: Sequence[Put], extras: Sequence[Extra]) -> list[Event]:
        for resource_type in {put.stored.resource_type for put in puts}:
            await self._collections.ensure(resource_type)
        size = sum(len(put.stored.raw) for put in puts) * 2
        conflicts: list[Any] = [(put.stored.resource_type, put.stored.id) for put in puts]
        conflicts += [put.claim.key for put in puts if put.claim is not None]
        lane = self._effects if extras else self._large if len(puts) > LARGE else self._small
        return await lane.call((puts, extras), size=size, conflicts=conflicts)

    async def _together(self, batch: list[Waiting[Work, list[Event]]]) -> None:
        if len(batch) > 1:
            try:
                events = await self._transaction([waiting.item for waiting in batch])
            except (Changed, OperationFailure):
                pass  # somebody's precondition failed, or the whole was too much: each gets an answer of its own
            except PyMongoError as error:
                for waiting in batch:
                    if not waiting.done.done():
                        waiting.done.set_exception(in_words(error, writing=True))
                return
            except Exception as error:
                log.warning("a commit failed with those that shared its transaction, which go on alone: %r", error)
            else:
                for waiting, own in zip(batch, events, strict=True):
                    if not waiting.done.done():
                        waiting.done.set_result(own)
                return
        for waiting in batch:
            try:
                (own,) = await self._transaction([waiting.item])
            except Exception as error:
                if not waiting.done.done():
                    waiting.done.set_exception(in_words(error, writing=True))
            else:
                if not waiting.done.done():
                    waiting.done.set_result(own)

    async def _transaction(self, works: list[Work]) -> list[list[Event]]:
        """One transaction, tried again while MongoDB says that trying again may help."""
        deadline = time.monotonic() + TRY_FOR_SECONDS
        events = [self.events(puts) for puts, _ in works]
        async with self._client.start_session() as session:
            for attempt in itertools.count():
                await session.start_transaction(ReadConcern("snapshot"), DURABLE)
                try:
                    await self._write(session, works, events)
                except BaseException as error:
                    if session.in_transaction:
                        await session.abort_transaction()
                    if not _again(error, deadline):
                        raise
                else:
                    if await self._commit(session, deadline):
                        return events
                await asyncio.sleep(min(0.5, 0.002 * 2**attempt) * (0.5 + random.random()))
        raise AssertionError("unreachable")

    async def _commit(self, session: AsyncClientSession, deadline: float) -> bool:
        """True if committed, False if the transaction has to be run again. An unknown result is asked for until known."""
        while True:
            try:
                await session.commit_transaction()
                return True
            except PyMongoError as error:
                if error.has_error_label("UnknownTransactionCommitResult") and time.monotonic() < deadline:
                    await asyncio.sleep(0.05)
                    continue
                if error.has_error_label("TransientTransactionError") and time.monotonic() < deadline:
                    return False
                raise

    async def _write(self, session: AsyncClientSession, works: list[Work], events: list[list[Event]]) -> None:
        inserts: dict[str, dict[str, Document]] = {}
        replaced: dict[str, list[Document]] = {}
        history: list[Document] = []
        claims: list[Claim] = []
        for puts, _ in works:
            for put in puts:
                stored, previous = put.stored, put.previous
                current = inserts.setdefault(stored.resource_type, {})
                if previous is not None:
                    history.append(d.superseded(previous))
                    if stored.id not in current:  # else the version before comes with this very commit
                        expected = {d.ID: stored.id, d.VERSION: previous.version}
                        replaced.setdefault(stored.resource_type, []).append(expected)
                elif stored.id in current:
                    raise Changed([(stored.resource_type, stored.id)])
                current[stored.id] = d.current(stored)
                if put.claim is not None:
                    claims.append(put.claim)
        for claim in claims:
            await self._claim(session, claim)
        for name, expected_ones in replaced.items():
            await self._remove(session, name, expected_ones)
        for name, documents in inserts.items():
            await self._insert(session, name, list(documents.values()))
        if history:
            await self._insert(session, d.HISTORY, history)
        outbox = [
            d.event(event)
            for (puts, _), own in zip(works, events, strict=True)
            for put, event in zip(puts, own, strict=True)
            if not put.quiet
        ]
        if outbox:
            await self._insert(session, d.OUTBOX, outbox)
        own = (extra for puts, _ in works for put in puts for extra in put.extras)
        for extra in _beside((*own, *(extra for _, extras in works for extra in extras))):
            await extra(session)

    async def _remove(self, session: AsyncClientSession, name: str, expected: list[Document]) -> None:
        """Takes the superseded versions out, to be followed by an insert in the same transaction.

        An update within a transaction costs MongoDB 6 2.6 ms with the 54 indexes of Observation, whatever it changes;
        a delete and an insert cost 0.3 ms (decision 0012).
        """
        for start in range(0, len(expected), MOST_REMOVED):
            some = expected[start : start + MOST_REMOVED]
            result = await self._database[name].delete_many(
                {"$or": some} if len(some) > 1 else some[0], session=session
            )
            if result.deleted_count != len(some):
                raise Changed([(name, str(one[d.ID])) for one in expected])

    async def _insert(self, session: AsyncClientSession, name: str, documents: list[Document]) -> None:
        collection = self._database[name]
        try:
            for chunk in _chunks(documents):
                await collection.insert_many(chunk, ordered=False, session=session)
        except BulkWriteError as error:
            problems = error.details.get("writeErrors", [])
            if any(problem.get("code") == DUPLICATE_KEY for problem in problems):
                taken = [str(problem["op"][d.ID]) for problem in problems if problem.get("code") == DUPLICATE_KEY]
                raise Changed([(name, id) for id in taken]) from None
            raise

    async def _claim(self, session: AsyncClientSession, claim: Claim) -> None:
        """Take the claim that nobody, or only the stale holder we saw, has."""
        claims = self._database[d.CLAIMS]
        document = {"h": secrets.token_hex(8), "at": datetime.now(UTC)}
        if claim.holder:
            result = await claims.replace_one({d.ID: claim.key, "h": claim.holder}, document, session=session)
            if result.matched_count == 1:
                return
            raise Changed([], [claim.key])
        try:
            await claims.insert_one({d.ID: claim.key, **document}, session=session)
        except DuplicateKeyError:
            raise Changed([], [claim.key]) from None

    def events(self, puts: Sequence[Put]) -> list[Event]:
        events = [self._event(put) for put in puts]
        return [replace(event, group=events[0].id) for event in events] if len(events) > 1 else events

    def _event(self, put: Put) -> Event:
        stored = put.stored
        self._last = max(self._last + 1, time.time_ns() // 1_000_000 << 16)
        return Event(
            f"{self._last:016x}{self.process}",
            stored.resource_type,
            stored.id,
            stored.version,
            stored.method,
            stored.updated,
            _concerned(put),
            put.cause,
        )


def _concerned(put: Put) -> tuple[str, ...]:
    """The patients an event is about: before and after, because a result that moves to another patient concerns both."""
    patients = put.stored.patients
    if put.previous is not None:
        patients = tuple(dict.fromkeys((*patients, *put.previous.patients)))
    return patients


def _beside(extras: Iterable[Extra]) -> list[Extra]:
    """As few as they can be."""
    found: list[Extra] = []
    for extra in extras:
        for position, known in enumerate(found):
            both = known.beside(extra)
            if both is not None:
                found[position] = both
                break
        else:
            found.append(extra)
    return found


def _chunks(documents: list[Document]) -> list[list[Document]]:
    chunks: list[list[Document]] = [[]]
    size = 0
    for document in documents:
        size += len(document.get(d.RAW, b"")) + 500
        if size > CHUNK_BYTES and chunks[-1]:
            chunks.append([])
            size = 0
        chunks[-1].append(document)
    return chunks


def _again(error: BaseException, deadline: float) -> bool:
    if isinstance(error, ConnectionFailure):
        return time.monotonic() < deadline
    return (
        isinstance(error, PyMongoError)
        and error.has_error_label("TransientTransactionError")
        and time.monotonic() < deadline
    )

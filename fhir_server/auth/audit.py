"""Every access leaves an AuditEvent: journalled before the answer, moved into MongoDB in batches, sealed into one chain.

A seal is an HMAC over the seal before it, the number and the event's bytes, with a key that is not in the database: who
can only write to the database can neither change, remove nor add an event unseen (`fhir-server audit verify`). Cutting off
the newest ones together with the head shows against a head noted elsewhere; the head is logged every hour for that.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fhir_server.auth.audit_event import Access, audit_event
from fhir_server.auth.journal import Journal
from fhir_server.errors import FhirError
from fhir_server.model.resource import dump
from fhir_server.search.index import index
from fhir_server.search.registry import Registry
from fhir_server.store.audit import TYPE, AuditLog, Link, Overtaken
from fhir_server.store.protocol import Stored

log = logging.getLogger("fhir_server.audit")

BATCH = 250
PAUSE = 0.25  # seconds between looks at the journal; also the longest that a loss of power can take
BREATH = 20  # events of 55 µs between two turns of the loop
SHARE = 12  # of the time, at most one part is spent on moving while there is little to move: requests come first
MUCH = 512 * 1024 * 1024  # bytes that wait, from which on half of the time goes to moving
LARGEST = 128 * 1024 * 1024  # a journal that has been moved and is larger than this is begun anew
HOUR = 3600.0


class Audit:
    """`record` before answering; `run` beside the requests; `close` at the end."""

    def __init__(
        self, log: AuditLog, registry: Registry, folder: Path, secret: bytes, *, days: int = 0, now: Callable[[], float]
    ) -> None:
        self._log = log
        self._registry = registry
        self._folder = folder
        self._key = chain_key(secret)
        self._days = days
        self._now = now
        self._journal: Journal
        self._position = 0
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Adopts what dead processes left, then begins a journal of its own."""
        await self._log.open()
        for journal in Journal.orphans(self._folder):
            await self._move_all(journal, await self._log.position(journal.name))
            await self._log.forget(journal.name)
            journal.remove()
        self._journal = Journal.create(self._folder)
        self._task = asyncio.create_task(self._run(), name="audit")

    def record(self, *accesses: Access) -> None:
        """A few microseconds. Raises Unavailable if it cannot be kept; then the access must not be answered."""
        self._journal.append(*accesses)

    async def flush(self) -> None:
        """Everything recorded so far is in MongoDB when this returns; for tests and the end."""
        end = self._journal.end
        while self._position < end:  # noqa: ASYNC110 - polled by tests only
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        try:
            await self._move_all(self._journal, await self._log.position(self._journal.name))
        except Exception:
            log.warning("the audit journal %s is left for the next start", self._journal.path, exc_info=True)
            self._journal.close()
        else:
            await self._log.forget(self._journal.name)
            self._journal.remove()

    async def _run(self) -> None:
        next_hour, unsure = 0.0, False
        while True:
            try:
                await asyncio.to_thread(self._journal.sync)
                if unsure:  # a transaction that failed may have been committed after all
                    self._position = await self._log.position(self._journal.name)
                    unsure = False
                busy = await self._step()
                if self._now() >= next_hour:
                    next_hour = self._now() + HOUR
                    await self._hourly()
            except Exception:
                log.exception("the audit is not being moved; it waits in %s", self._journal.path)
                busy, unsure = 1.0, True
            share = 2 if self._journal.end - self._position > MUCH else SHARE
            await asyncio.sleep(max(PAUSE, busy * (share - 1)))

    async def _step(self) -> float:
        """Moves one batch; seconds it took, 0 if there was nothing."""
        started = time.monotonic()
        if self._position >= self._journal.end:
            if self._journal.end > LARGEST:
                old, self._journal, self._position = self._journal, Journal.create(self._folder), 0
                await self._log.forget(old.name)
                old.remove()
            return 0.0
        while self._position < self._journal.end:
            self._position = await self._move(self._journal, self._position)
            if time.monotonic() - started > PAUSE / SHARE:
                break
        return time.monotonic() - started

    async def _move_all(self, journal: Journal, position: int) -> None:
        while position < journal.end:
            moved = await self._move(journal, position)
            if moved == position:
                return  # what is left is a torn line: its answer was never sent
            position = moved

    async def _move(self, journal: Journal, position: int) -> int:
        """One batch into MongoDB; the journal's position after it."""
        accesses, end = journal.read(position, BATCH)
        if end == position:
            return position
        while True:
            head = await self._log.head()
            updated = int(self._now() * 1000)
            events: list[tuple[Link, Stored]] = []
            last = head
            for number, access in enumerate(accesses):
                if number % BREATH == BREATH - 1:
                    await asyncio.sleep(0)
                stored = self._stored(access, updated)
                last = Link(last.number + 1, seal(self._key, last.seal, last.number + 1, stored.raw))
                events.append((last, stored))
            try:
                await self._log.append(head, events, journal.name, end)
            except Overtaken:
                continue
            return end

    def _stored(self, access: Access, updated: int) -> Stored:
        id = str(uuid.uuid4())
        resource = audit_event(access, id, updated)
        indexed = index(self._registry, resource)
        return Stored(TYPE, id, 1, updated, dump(resource), patients=indexed.patients, entries=indexed.entries)

    async def _hourly(self) -> None:
        head = await self._log.head()
        log.info("audit head: %d %s", head.number, head.seal)
        if self._days > 0:
            await remove_old(self._log, self._key, int((self._now() - self._days * 86400) * 1000))


def chain_key(secret: bytes) -> bytes:
    return hmac.digest(secret, b"fhir-server audit chain", hashlib.sha256)


def seal(key: bytes, before: str, number: int, raw: bytes) -> str:
    return hmac.new(key, f"{before}\n{number}\n".encode() + raw, hashlib.sha256).hexdigest()


def mark(key: bytes, link: Link) -> str:
    """Seals where the chain begins after retention."""
    return hmac.new(key, f"start\n{link.number}\n{link.seal}".encode(), hashlib.sha256).hexdigest()


async def remove_old(log: AuditLog, key: bytes, before: int) -> int:
    """Takes away events taken over before that moment (ms), oldest first; how many."""
    removed = 0
    while links := await log.older_than(before, 500):
        await log.remove(links, mark(key, links[-1]))
        removed += len(links)
    return removed


@dataclass(frozen=True, slots=True)
class Verdict:
    """`problem` is empty if the chain is whole."""

    checked: int
    head: Link
    problem: str = ""


async def verify(log: AuditLog, key: bytes, expected: tuple[int, str] | None = None) -> Verdict:
    """Walks the whole chain. `expected`: a head (number, seal) noted earlier that must be part of it."""
    start, head = await log.start(), await log.head()
    last, checked, met = start, 0, expected is None or expected == (start.number, start.seal)
    if start.number and not hmac.compare_digest(start.mark, mark(key, start)):
        return Verdict(0, head, f"the beginning of the chain (after {start.number}) was not set by this server")
    async for link in log.links(start.number):
        if link.number > head.number:
            break  # written while we read
        if link.number != last.number + 1:
            return Verdict(checked, head, f"events {last.number + 1} to {link.number - 1} were removed")
        if link.raw is None:
            return Verdict(checked, head, f"event {link.number} (AuditEvent/{link.id}) was removed")
        if not hmac.compare_digest(link.seal, seal(key, last.seal, link.number, link.raw)):
            return Verdict(checked, head, f"event {link.number} (AuditEvent/{link.id}) was changed")
        last, checked = link, checked + 1
        met = met or expected == (link.number, link.seal)
    if (last.number, last.seal) != (head.number, head.seal):
        return Verdict(checked, head, f"the chain ends at {last.number}, but its head is {head.number}")
    if not met:
        return Verdict(checked, head, "the head that was noted is not part of the chain: newer events were cut off")
    return Verdict(checked, head)


def expected_head(text: str) -> tuple[int, str] | None:
    """`12 ab34…`, as logged and printed."""
    if not text:
        return None
    number, _, value = text.replace(":", " ").partition(" ")
    if not number.isdigit() or not value:
        raise FhirError("An expected head is a number and a seal, as `audit verify` prints them")
    return int(number), value.strip()

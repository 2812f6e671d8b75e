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
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fhir_server.auth.audit_event import Access
from fhir_server.auth.audit_forms import Forms
from fhir_server.auth.journal import Journal
from fhir_server.errors import FhirError
from fhir_server.search.registry import Registry
from fhir_server.store.audit import AuditLog, Link, Overtaken
from fhir_server.store.protocol import Stored

log = logging.getLogger("fhir_server.audit")

BATCH = 250
PAUSE = 0.25  # seconds between looks at the journal; also the longest that a loss of power can take
BREATH = 20  # events between two turns of the loop
GLANCE = 0.02  # seconds between two batches, in which the requests' own use of the processor is measured
LEAST = 0.02  # of the time goes to moving however much there is to answer
MUCH = 256 * 1024 * 1024  # bytes that wait (1.4 million reads), from which on half of the time goes to moving
LARGEST = 128 * 1024 * 1024  # a journal that has been moved and is larger than this is begun anew
FLUSH_SECONDS = 10.0  # that a search of AuditEvents waits for what happened before it
HOUR = 3600.0
STATISTICS = Path("/proc/stat")


class Audit:
    """`record` before answering; `run` beside the requests; `close` at the end."""

    def __init__(
        self, log: AuditLog, registry: Registry, folder: Path, secret: bytes, *, days: int = 0, now: Callable[[], float]
    ) -> None:
        self._log = log
        self._forms = Forms(registry)
        self._folder = folder
        self._key = chain_key(secret)
        self._days = days
        self._now = now
        self._journal: Journal
        self._position = 0
        self._task: asyncio.Task[None] | None = None
        self._urgent = 0  # how many wait for everything to be moved
        self._waking = asyncio.Event()
        self._busy = 1.0  # the requests' share of this process's time, smoothed

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

    def record_lines(self, lines: bytes) -> None:
        """As `record`, of what audit_event.py has made lines of."""
        self._journal.write(lines)

    @property
    def waiting(self) -> int:
        """Bytes that are in the journal and not in MongoDB."""
        return self._journal.end - self._position

    async def flush(self, seconds: float = 60.0) -> bool:
        """Waits until what was recorded so far is in MongoDB, before all else but for so long; whether it is."""
        journal, end = self._journal, self._journal.end
        if self._position >= end:
            return True
        self._urgent += 1
        self._waking.set()
        try:
            async with asyncio.timeout(seconds):
                while self._journal is journal and self._position < end:  # noqa: ASYNC110 - moved meanwhile
                    await asyncio.sleep(0.005)
        except TimeoutError:
            return False
        finally:
            self._urgent -= 1
        return True

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
                took = await self._step(self._share())
                if self._now() >= next_hour:
                    next_hour = self._now() + HOUR
                    await self._hourly()
            except Exception:
                log.exception("the audit is not being moved; it waits in %s", self._journal.path)
                took, unsure = 1.0, True
            await self._rest(took)

    def _share(self) -> float:
        """Of the time, for moving: what the requests leave, until very much waits or somebody waits for it."""
        if self._urgent:
            return 1.0
        return max(LEAST, (1 - self._busy) ** 2, min(0.5, self.waiting / MUCH))

    async def _step(self, share: float) -> float:
        """Moves for that share of PAUSE, one batch at least; seconds it took, 0 if there was nothing."""
        if not self.waiting:
            if self._journal.end > LARGEST:
                old, self._journal, self._position = self._journal, Journal.create(self._folder), 0
                await self._log.forget(old.name)
                old.remove()
            return 0.0
        took, started, waiting = 0.0, time.monotonic(), self.waiting
        while self.waiting and took < share * PAUSE and (self._urgent or self.waiting <= waiting):
            self._position = await self._move(self._journal, self._position)
            took = time.monotonic() - started
        return took

    async def _rest(self, took: float) -> None:
        """Leaves the rest of the time to the requests, and measures how much of it they use: nothing else runs then."""
        rested = 0.0
        while not self._urgent:
            pause = max(GLANCE, took * (1 / self._share() - 1)) if self.waiting else PAUSE
            if rested >= pause:
                return
            self._waking.clear()
            began, used, machine = time.monotonic(), time.process_time(), _machine()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pause - rested, PAUSE)):
                    await self._waking.wait()
            passed = time.monotonic() - began
            busy = min(1.0, (time.process_time() - used) / max(passed, 0.001))
            if passed > PAUSE / 2:  # it counts in hundredths of a second
                busy = max(busy, _used(machine, _machine()))
            # More is believed at once, less only after a while: a pause between two requests is no quiet time.
            self._busy = max(busy, self._busy + (busy - self._busy) * min(1.0, passed / PAUSE) / 2)
            rested += passed
            await asyncio.to_thread(self._journal.sync)

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
                stored = self._forms.stored(access, timed_id(updated, number), updated)
                last = Link(last.number + 1, seal(self._key, last.seal, last.number + 1, stored.raw))
                events.append((last, stored))
            try:
                await self._log.append(head, events, journal.name, end)
            except Overtaken:
                continue
            return end

    async def _hourly(self) -> None:
        head = await self._log.head()
        log.info("audit head: %d %s", head.number, head.seal)
        if self._days > 0:
            await remove_old(self._log, self._key, int((self._now() - self._days * 86400) * 1000))


def _machine() -> tuple[int, int]:
    """The processors' time so far, and what of it was idle, in hundredths of a second; zeros where Linux is not.

    A process that has to wait for a processor uses little and is not quiet: mongod and the other workers count as well.
    """
    try:
        with STATISTICS.open("rb") as file:
            fields = [int(field) for field in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return sum(fields), fields[3] + fields[4]


def _used(before: tuple[int, int], after: tuple[int, int]) -> float:
    total = after[0] - before[0]
    return 1 - (after[1] - before[1]) / total if total > 0 else 0.0


def chain_key(secret: bytes) -> bytes:
    return hmac.digest(secret, b"fhir-server audit chain", hashlib.sha256)


def seal(key: bytes, before: str, number: int, raw: bytes) -> str:
    return hmac.digest(key, f"{before}\n{number}\n".encode() + raw, "sha256").hex()


def timed_id(moment: int, number: int) -> str:
    """A UUID of version 7 (https://www.rfc-editor.org/rfc/rfc9562#name-uuid-version-7): ms, a number, chance.

    The indexes of AuditEvent end in the id: what is appended at the end of each value costs MongoDB half of what it
    costs at places all over.
    """
    text = f"{moment:012x}7{number & 0xFFF:03x}{secrets.randbits(62) | 1 << 63:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


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

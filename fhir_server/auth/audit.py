"""Every access leaves an AuditEvent: journalled before the answer, moved into MongoDB in batches, sealed into one chain.

What dead processes left in their journals is adopted at the start and moved like one's own, oldest first. A search of
AuditEvents has every process move what it holds: it asks in the database, where each looks several times a second.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fhir_server.auth.audit_event import Access, storable
from fhir_server.auth.audit_forms import Forms
from fhir_server.auth.chain import chain_key, remove_old, seal
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
HEAR_SECONDS = 1.5  # that it waits for another process to say that it has heard of it
CLOSE_SECONDS = 5.0  # that the end of the process waits; what is not moved by then is adopted at the next start
HOUR = 3600.0
STATISTICS = Path("/proc/stat")


@dataclass(slots=True)
class _Source:
    """A journal, and up to which byte it is in MongoDB."""

    journal: Journal
    position: int

    @property
    def waiting(self) -> int:
        return self.journal.end - self.position


class Audit:
    """`record` before answering; `run` beside the requests; `close` at the end."""

    def __init__(
        self,
        log: AuditLog,
        registry: Registry,
        folder: Path,
        secret: bytes,
        *,
        base: str = "",
        days: int = 0,
        now: Callable[[], float],
    ) -> None:
        self._log = log
        self._forms = Forms(registry, base)
        self._folder = folder
        self._key = chain_key(secret)
        self._days = days
        self._now = now
        self._journal: Journal
        self._sources: list[_Source] = []  # what dead processes left, then our own
        self._task: asyncio.Task[None] | None = None
        self._looked = 0.0  # for the last time, whether there is a wish
        self._asked = 0  # the last flush of every process that this one knows of
        self._answering: set[asyncio.Task[None]] = set()
        self._silent: set[str] = set()  # journals whose process did not answer
        self._urgent = 0  # how many wait for everything to be moved
        self._waking = asyncio.Event()
        self._busy = 1.0  # the requests' share of this process's time, smoothed

    async def open(self) -> None:
        """Adopts what dead processes left, and begins a journal of its own."""
        await self._log.open()
        for journal in Journal.orphans(self._folder):
            self._sources.append(_Source(journal, await self._log.position(journal.name)))
        self._asked = await self._log.wanted()
        await self._begin()
        self._task = asyncio.create_task(self._run(), name="audit")

    async def _begin(self) -> None:
        journal = Journal.create(self._folder)
        await self._log.present(journal.name)
        self._journal = journal
        self._sources.append(_Source(journal, 0))

    def record(self, *accesses: Access) -> None:
        """A few microseconds. Raises Unavailable if it cannot be kept; then the access must not be answered."""
        self._journal.append(*accesses)

    def record_lines(self, lines: bytes) -> None:
        """As `record`, of what audit_event.py has made lines of."""
        self._journal.write(lines)

    @property
    def waiting(self) -> int:
        """Bytes that are in journals and not in MongoDB."""
        return sum(source.waiting for source in self._sources)

    async def flush(self, seconds: float = 60.0) -> bool:
        """Waits until what was recorded so far is in MongoDB, before all else but for so long; whether it is."""
        ends = [(source, source.journal.end) for source in self._sources if source.waiting]
        if not ends:
            return True
        self._urgent += 1
        self._waking.set()
        try:
            async with asyncio.timeout(seconds):
                while any(source.position < end for source, end in ends):  # noqa: ASYNC110 - moved meanwhile
                    await asyncio.sleep(0.005)
        except TimeoutError:
            return False
        finally:
            self._urgent -= 1
        return True

    async def flush_everywhere(self, seconds: float = FLUSH_SECONDS) -> bool:
        """As `flush`, of every process on this database that is alive and answers."""
        number = await self._log.want()
        self._asked = max(self._asked, number)
        here, began = await self.flush(seconds), time.monotonic()
        while True:
            own = {source.journal.name for source in self._sources}
            unheard, undone = await self._log.unanswered(number)
            passed = time.monotonic() - began
            if passed >= HEAR_SECONDS:
                self._silent |= unheard - own
            wait = (unheard | undone) - own - (self._silent & unheard)
            if not wait:
                return here
            if passed >= seconds:
                return False
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        for task in (self._task, *self._answering):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._reread()
                while self.waiting:
                    await self._move_next()
        except Exception:  # TimeoutError included
            log.warning(
                "the audit in %s (%d bytes) is left for the next start", self._folder, self.waiting, exc_info=True
            )
            for source in self._sources:
                source.journal.close()
        else:
            for source in self._sources:
                with suppress(FhirError):
                    await self._remove(source)

    async def _run(self) -> None:
        next_hour, unsure = 0.0, False
        while True:
            try:
                await asyncio.to_thread(self._journal.sync)
                if unsure:  # a transaction that failed may have been committed after all
                    await self._reread()
                    unsure = False
                await self._hear()
                took = await self._step(self._share())
                if self._now() >= next_hour:
                    next_hour = self._now() + HOUR
                    await self._hourly()
                await self._rest(took)
            except Exception:
                log.exception("the audit is not being moved; it waits in %s", self._journal.path)
                unsure = True
                await asyncio.sleep(1.0)

    async def _reread(self) -> None:
        for source in self._sources:
            source.position = await self._log.position(source.journal.name)

    async def _hear(self) -> None:
        """Whether somebody searches the audit, several times a second; then what is here is moved for it."""
        if time.monotonic() - self._looked < PAUSE:
            return
        self._looked = time.monotonic()
        number = await self._log.wanted()
        if number > self._asked:
            self._asked = number
            task = asyncio.create_task(self._answer(number))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _answer(self, number: int) -> None:
        names = [source.journal.name for source in self._sources]
        try:
            await self._log.answer(names, number)
            if await self.flush(FLUSH_SECONDS):
                await self._log.answer(names, number, done=True)
        except Exception:
            log.exception("a search of the audit goes without what is here")

    def _share(self) -> float:
        """Of the time, for moving: what the requests leave, until very much waits or somebody waits for it."""
        if self._urgent:
            return 1.0
        return max(LEAST, (1 - self._busy) ** 2, min(0.5, self.waiting / MUCH))

    async def _step(self, share: float) -> float:
        """Moves for that share of PAUSE, one batch at least; seconds it took, 0 if there was nothing."""
        await self._tidy()
        if not self.waiting:
            return 0.0
        took, started, waiting = 0.0, time.monotonic(), self.waiting
        while self.waiting and took < share * PAUSE and (self._urgent or self.waiting <= waiting):
            await self._move_next()
            took = time.monotonic() - started
        return took

    async def _tidy(self) -> None:
        """Removes journals that have been moved; one of our own that has become large is begun anew."""
        if self._journal.end > LARGEST and not self._sources[-1].waiting:
            await self._begin()
        for source in [one for one in self._sources[:-1] if not one.waiting]:
            self._sources.remove(source)
            await self._remove(source)

    async def _remove(self, source: _Source) -> None:
        """First the file: a file without a position would be taken over once more."""
        source.journal.remove()
        await self._log.forget(source.journal.name)

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
            await self._hear()

    async def _move_next(self) -> None:
        """A batch of the oldest journal that has something."""
        source = next(one for one in self._sources if one.waiting)
        moved = await self._move(source.journal, source.position)
        # What is left of a dead process's journal may be a torn line: its answer was never sent.
        source.position = moved if moved > source.position else source.journal.end

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
                stored = self._forms.stored(storable(access), timed_id(updated, number), updated)
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


def timed_id(moment: int, number: int) -> str:
    """A UUID of version 7 (https://www.rfc-editor.org/rfc/rfc9562#name-uuid-version-7): ms, a number, chance.

    The indexes of AuditEvent end in the id: what is appended at the end of each value costs MongoDB half of what it
    costs at places all over.
    """
    text = f"{moment:012x}7{number & 0xFFF:03x}{secrets.randbits(62) | 1 << 63:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

"""The worker: takes the events of patients, runs the rules they wake, commits effects and acknowledgement together.

Only this acts. Two lanes work at a time on different patients; each takes everything that is waiting, so that batches grow
with the load. Woken in process right after a commit; a worker apart from the servers hears of their commits by a change
stream; polling is the safety net. Several workers share the patients by leases; correctness rests on the transaction
(store/ledgers.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Sequence

from fhir_server.automation import publication
from fhir_server.automation.backfill import Backfills
from fhir_server.automation.batches import NO_PATIENT
from fhir_server.automation.definitions import Definitions
from fhir_server.automation.joined import Joining
from fhir_server.automation.publication import DEFINITIONS
from fhir_server.automation.rounds import TIMER_EVENT, Happening
from fhir_server.automation.rulebook import Rulebook
from fhir_server.automation.rules import Rule
from fhir_server.errors import FhirError, Issue
from fhir_server.interactions.context import Server
from fhir_server.model.resource import Resource, load
from fhir_server.store.outbox import Taken
from fhir_server.store.protocol import Changed, Event, Find, Put

LEASE = 4_000  # ms; renewed by every commit, so that a crash blocks a patient no longer than this
LANES = 2
BATCH = 64  # patients in one batch
POLL = 1.0  # seconds
AGAIN = 0.05  # seconds after which a patient is asked for again whom another worker had

log = logging.getLogger(__name__)


class Worker(Joining):
    """`rules`: rules in Python beside those in the store. `poll`: seconds between looks at the clock and the outbox."""

    def __init__(
        self, server: Server, *, rules: Iterable[Rule] = (), lanes: int = LANES, poll: float = POLL, lease: int = LEASE,
        shared: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(server, rules=rules, lease=lease, shared=shared)
        self.backfills = Backfills(server, self.outbox, self.notify)
        self._own_events = server.store.process  # type: ignore[attr-defined]
        self._lanes, self._poll = lanes, poll
        self._dirty: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stale = False
        self._seen = -1

    # Life

    async def open(self) -> None:
        """Indexes and rules; nothing runs yet."""
        self._loop = asyncio.get_running_loop()
        await self.outbox.open()
        await self.ledgers.open()
        await self.reload()

    def start(self, *, act: bool = True, listen: bool = False) -> None:
        """Runs until `stop`; hears of this process's commits at once. Without `act` it only keeps its rules up to date.

        `listen`: to what other processes commit, by a change stream. It costs mongod a tenth of a write to follow the
        log, so that only workers of their own do; where every server has a worker inside, there is nothing to hear.
        """
        self.server.written.append(self.written)
        if act:
            self.server.joins.append(self.join)
        loops = [self._keep_rules()]
        if act:
            loops += [*(self._lane() for _ in range(self._lanes)), self._sweep(), self._clock()]
            if listen:
                loops.append(self._watch())
            loops.append(self.backfills.resume())
        self._tasks = [asyncio.create_task(one) for one in loops]

    async def stop(self) -> None:
        if self.written in self.server.written:
            self.server.written.remove(self.written)
        if self.join in self.server.joins:
            self.server.joins.remove(self.join)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self.backfills.close()
        self._functions.close()
        with contextlib.suppress(Exception):
            await self.ledgers.release(self.name)

    async def reload(self) -> None:
        """The rules as they are in the store now."""
        self._stale = False
        newest = await self._newest_definition()
        found: list[Resource] = []
        for resource_type in DEFINITIONS:
            stored = await self.server.store.find(Find(resource_type, {"d": None}))
            found += [load(one.raw) for one in stored]
        self.book = Rulebook(Definitions(found), self._python)
        self._seen = newest
        self._charts.forget_all()
        for url, why in self.book.broken.items():
            log.error("the rule %s does not compile and is off: %s", url, why)

    async def _newest_definition(self) -> int:
        newest = -1
        for resource_type in DEFINITIONS:
            found = await self.server.store.find(Find(resource_type, {}, sort=(("t", -1),), limit=1, raw=False))
            newest = max([newest, *(one.updated for one in found)])
        return newest

    # What there is to do

    def written(self, puts: Sequence[Put], events: Sequence[Event]) -> None:
        """Called after every commit in this process: what happened need not be read back."""
        now = self._now()
        for put, event in zip(puts, events, strict=True):
            if event.resource_type in DEFINITIONS:
                self._stale = True
            if put.quiet:
                continue
            patients = event.patients or (NO_PATIENT,)
            for patient in patients:
                self._news.add(patient, Happening(event, put.stored, put.previous, now))
            self._mark(patients)

    def notify(self, events: Sequence[Event]) -> None:
        """These events are in the outbox."""
        for event in events:
            self._look(event.patients or (NO_PATIENT,))

    def _look(self, patients: Iterable[str]) -> None:
        """There may be more about these patients than we were told."""
        patients = list(patients)
        self._news.look(patients)
        self._mark(patients)

    def _mark(self, patients: Iterable[str]) -> None:
        self._dirty.update(dict.fromkeys(patients))
        self._wake.set()

    def _answered(self, patient: str) -> None:
        """A slow rule has finished, in a thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._mark, [patient])

    def _later(self, patients: Sequence[str]) -> None:
        asyncio.get_running_loop().call_later(AGAIN, self._look, list(patients))

    def _take(self) -> list[str]:
        taken = [patient for patient in self._dirty if patient not in self._busy][:BATCH]
        for patient in taken:
            del self._dirty[patient]
        self._busy.update(taken)
        return taken

    def _waits(self, patient: str) -> bool:
        return self._stale or patient in self._dirty

    def _free(self, patient: str) -> None:
        self._busy.discard(patient)
        if patient in self._dirty:
            self._wake.set()

    @property
    def idle(self) -> bool:
        return not self._dirty and not self._busy

    async def _lane(self) -> None:
        while True:
            patients = self._take()
            if not patients:
                self._wake.clear()
                if not any(patient not in self._busy for patient in self._dirty):
                    await self._wake.wait()
                continue
            try:
                await self.work(patients)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                self.forget(patients)
                expected = isinstance(error, (Changed, Taken, FhirError))
                log.log(
                    logging.INFO if expected else logging.ERROR,
                    "a batch is tried again: %s",
                    error,
                    exc_info=not expected,
                )
                await asyncio.sleep(0.05 if expected else 0.5)
                self._mark(patients)
            finally:
                self._busy.difference_update(patients)
                self._wake.set()

    async def _sweep(self) -> None:
        """The safety net: what nobody told us of."""
        while True:
            try:
                self._look(await self.outbox.waiting())
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.info("the outbox cannot be looked at: %s", error)
            await asyncio.sleep(self._poll)

    async def _keep_rules(self) -> None:
        """Rules that other processes changed."""
        while True:
            await asyncio.sleep(self._poll)
            try:
                await self.refresh()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.info("the rules cannot be looked at: %s", error)

    async def refresh(self) -> None:
        """Reads the rules again if somebody changed them."""
        if self._stale or await self._newest_definition() != self._seen:
            await self.reload()

    def check(self, resource: Resource, mode: str) -> list[Issue]:
        """For the validator: why this resource would not run as a rule; that a version would be overwritten."""
        return publication.check(resource, self.book.definitions)

    async def _watch(self) -> None:
        """Commits of other processes."""
        while True:
            async for patients in self.outbox.watch(self._own_events):
                self._look(patients)
            await asyncio.sleep(self._poll)

    async def _clock(self) -> None:
        """Due times become events."""
        while True:
            try:
                await self.tick()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.info("timers cannot be looked at: %s", error)
            await asyncio.sleep(self._poll / 2)

    async def tick(self) -> int:
        """Fires what is due now; how many patients that concerns."""
        patients = await self.ledgers.fire(self.outbox, self._now(), TIMER_EVENT)
        self._look(patients)
        return len(patients)

    async def settle(self) -> None:
        """Works until nothing is waiting, without the loops of `start`. For tests and the command line."""
        while patients := await self.outbox.waiting() or self._functions.busy:
            self._news.look(patients)
            for patient in patients:
                self._dirty.pop(patient, None)
            for start in range(0, len(patients), BATCH):
                await self.work(patients[start : start + BATCH])
            if self._functions.busy:
                await asyncio.sleep(0.01)

    async def work(self, patients: Sequence[str]) -> None:
        """By the rules as they are now."""
        if self._stale:
            await self.reload()
        await super().work(patients)

"""The worker: takes the events of patients, runs the rules they wake, commits effects and acknowledgement together.

Only this acts. Two lanes work at a time on different patients; each takes everything that is waiting, so that batches grow
with the load. Woken in process right after a commit, by a change stream for other processes' commits, and by polling if
both should fail. Several workers share the patients by leases; correctness rests on the transaction (store/ledgers.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

from fhir_server.automation import effects as made
from fhir_server.automation.backfill import Backfills
from fhir_server.automation.chart import Chart, patients_of
from fhir_server.automation.charts import Charts
from fhir_server.automation.definitions import Definitions, version_key
from fhir_server.automation.hooks import Functions
from fhir_server.automation.ledger import Account, Slot, dump
from fhir_server.automation.metrics import Metrics
from fhir_server.automation.plans import Rule
from fhir_server.automation.plans import check as check_plan
from fhir_server.automation.rounds import RULE_EVENT, TIMER_EVENT, Happening, Outcome, Woken, run, wake
from fhir_server.automation.rulebook import Rulebook
from fhir_server.automation.vocabulary import DEVICE
from fhir_server.errors import FhirError, Issue
from fhir_server.interactions.context import Server
from fhir_server.interactions.write import commit
from fhir_server.model.dates import milliseconds
from fhir_server.model.resource import Resource, load
from fhir_server.store.ledgers import Entry, Ledgers
from fhir_server.store.outbox import Outbox, Taken
from fhir_server.store.protocol import Changed, Event, Extra, Find, Key, Put, Stored
from fhir_server.store.records import fetch

LEASE = 4_000  # ms; renewed by every commit, so that a crash blocks a patient no longer than this
LANES = 2
BATCH = 64  # patients in one batch
POLL = 1.0  # seconds
HUSH = 0.05  # seconds between two looks at events of our own that concern no rule
DEFINITIONS = ("PlanDefinition", "ActivityDefinition", "Library", "ValueSet")
NO_PATIENT = ""  # stands for events of no patient

log = logging.getLogger(__name__)


def _overwritten(resource: Resource, definitions: Definitions) -> list[Issue]:
    """A version says the same for ever: what it did still names it. Only its status and metadata may change."""
    if "url" not in resource or "version" not in resource:
        return []
    url, version = str(resource["url"]), str(resource["version"])
    known = definitions.find(url, str(resource["resourceType"]))
    if known is not None and known.get("id") == resource.get("id"):
        newest = str(known.get("version", ""))
        if version_key(version) < version_key(newest):
            text = f"{url} is at version {newest}; {version} would go back. Publish what you want to have again as a new version"
            return [Issue("error", "business-rule", text, (f"{resource['resourceType']}.version",))]
    known = definitions.exactly(url, version)
    if known is None or known.get("id") != resource.get("id") or _substance(known) == _substance(resource):
        return []
    text = f"{url} version {version} exists and says something else; give what you changed a new version"
    return [Issue("error", "business-rule", text, (f"{resource['resourceType']}.version",))]


def _substance(resource: Resource) -> dict[str, Any]:
    apart = ("meta", "text", "status", "date", "publisher", "contact", "approvalDate", "lastReviewDate", "experimental")
    return {key: value for key, value in resource.items() if key not in apart}


class Worker:
    """`rules`: rules in Python beside those in the store. `poll`: seconds between looks at the clock and the outbox."""

    def __init__(
        self, server: Server, *, rules: Iterable[Rule] = (), lanes: int = LANES, poll: float = POLL, lease: int = LEASE
    ) -> None:
        database: Any = server.store.database  # type: ignore[attr-defined]
        self.server = server
        self.outbox = Outbox(database)
        self.ledgers = Ledgers(database)
        self.metrics = Metrics()
        self.backfills = Backfills(server, self.outbox, self.notify)
        self.book = Rulebook(Definitions())
        self.name = secrets.token_hex(6)
        self._database = database
        self._own_events = server.store.process  # type: ignore[attr-defined]
        self._charts = Charts(database, server.registry)
        self._functions = Functions(self._answered)
        self._python = tuple(rules)
        self._lanes, self._poll, self._lease = lanes, poll, lease
        self._dirty: dict[str, None] = {}
        self._busy: set[str] = set()
        self._held: dict[str, int] = {}  # patient → until when the lease is ours, ms
        self._accounts: dict[str, Account] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._quiet: list[Event] = []  # events of our own that concern no rule
        self._acts = False
        self._stale = False
        self._seen = -1

    # Life

    async def open(self) -> None:
        """Indexes and rules; nothing runs yet."""
        self._loop = asyncio.get_running_loop()
        await self.outbox.open()
        await self.ledgers.open()
        await self.reload()

    def start(self, *, act: bool = True) -> None:
        """Runs until `stop`; hears of this process's commits at once. Without `act` it only keeps its rules up to date."""
        self.server.committed.append(self.notify)
        loops = [self._keep_rules()]
        self._acts = act
        if act:
            loops += [*(self._lane() for _ in range(self._lanes)), self._sweep(), self._watch(), self._clock()]
            loops.append(self._hush())
            loops.append(self.backfills.resume())
        self._tasks = [asyncio.create_task(one) for one in loops]

    async def stop(self) -> None:
        if self.notify in self.server.committed:
            self.server.committed.remove(self.notify)
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

    def notify(self, events: Sequence[Event]) -> None:
        """Called after every commit in this process."""
        for event in events:
            if self._acts and event.cause.agent == DEVICE and self.book.deaf(event):
                self._quiet.append(event)
            else:
                self._mark(event.patients or (NO_PATIENT,))
            if event.resource_type in DEFINITIONS:
                self._stale = True

    def _mark(self, patients: Iterable[str]) -> None:
        self._dirty.update(dict.fromkeys(patients))
        self._wake.set()

    def _answered(self, patient: str) -> None:
        """A slow rule has finished, in a thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._mark, [patient])

    def _take(self) -> list[str]:
        taken = [patient for patient in self._dirty if patient not in self._busy][:BATCH]
        for patient in taken:
            del self._dirty[patient]
        self._busy.update(taken)
        return taken

    @property
    def idle(self) -> bool:
        return not self._dirty and not self._busy and not self._quiet

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
                self._mark(await self.outbox.waiting())
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
        if resource.get("resourceType") not in DEFINITIONS:
            return []
        return [*_overwritten(resource, self.book.definitions), *check_plan(resource, self.book.definitions)]

    async def _watch(self) -> None:
        """Commits of other processes. Where the process that commits has a worker of its own, that one is faster."""
        while True:
            async for patients in self.outbox.watch(self._own_events):
                self._mark(patient for patient in patients if patient not in self._busy)
            await asyncio.sleep(self._poll)

    async def _hush(self) -> None:
        """Drops what concerns no rule, many at a time."""
        while True:
            await asyncio.sleep(HUSH)
            quiet, self._quiet = self._quiet, []
            if not quiet:
                continue
            try:
                await self.outbox.done(
                    [(event, patient) for event in quiet for patient in event.patients or (NO_PATIENT,)]
                )
            except Exception as error:  # they are found again by the next sweep
                log.info("events that are done stay for a while: %s", error)

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
        self._mark(patients)
        return len(patients)

    async def settle(self) -> None:
        """Works until nothing is waiting, without the loops of `start`. For tests and the command line."""
        while patients := await self.outbox.waiting():
            if self._stale:
                await self.reload()
            for start in range(0, len(patients), BATCH):
                await self.work(patients[start : start + BATCH])

    def _now(self) -> int:
        return milliseconds(self.server.now())

    def forget(self, patients: Iterable[str]) -> None:
        """What is kept of these patients may be old."""
        gone = list(patients)
        self._charts.forget(gone)
        for patient in gone:
            self._accounts.pop(patient, None)
            self._held.pop(patient, None)

    # The work

    async def work(self, patients: Sequence[str]) -> None:
        """Everything that is waiting for these patients, as one batch; one by one if somebody else interferes."""
        if self._stale:
            await self.reload()
        try:
            await self._batch(patients)
        except (Changed, Taken):
            self.forget(patients)
            if len(patients) == 1:
                raise
            for patient in patients:
                try:
                    await self._batch([patient])
                except (Changed, Taken):
                    self.forget([patient])
                    self._mark([patient])

    async def _batch(self, patients: Sequence[str]) -> None:
        events = await self.outbox.pending(patients)
        deaf = [event for event in events if event.cause.agent == DEVICE and self.book.deaf(event)]
        if deaf:
            await self.outbox.done([(event, patient) for event in deaf for patient in event.patients or (NO_PATIENT,)])
            gone = {event.id for event in deaf}
            events = [event for event in events if event.id not in gone]
        by_patient: dict[str, list[Event]] = {patient: [] for patient in patients}
        for event in events:
            for patient in event.patients or (NO_PATIENT,):
                if patient in by_patient:
                    by_patient[patient].append(event)
        waiting = [one for one in patients if one and (by_patient[one] or self._functions.waiting(one))]
        if by_patient.get(NO_PATIENT):
            await self.outbox.done([(event, NO_PATIENT) for event in by_patient[NO_PATIENT]])
        if not waiting:
            return
        held = await self._hold(waiting)
        ours = [event for event in events if not held.isdisjoint(event.patients)]
        now = self._now()
        charts, happenings = await self._charts.open(self.book, sorted(held), ours, now)
        of: dict[str, list[Happening]] = {patient: [] for patient in held}
        for happening in happenings:
            for patient in happening.event.patients:
                if patient in of:
                    of[patient].append(happening)
        rounds = [self._round(charts[patient], of[patient], now) for patient in sorted(held)]
        await self._finish(rounds, charts, of, now)

    async def _hold(self, patients: Sequence[str]) -> set[str]:
        """Those of the patients whose lease is ours, with their ledgers in hand."""
        clock = time.time_ns() // 1_000_000
        wanted = [patient for patient in patients if self._held.get(patient, 0) < clock + self._lease // 4]
        if wanted:
            again = [patient for patient in wanted if self._held.get(patient, 0) < clock]
            self.forget(again)
            until = clock + self._lease
            found = await self.ledgers.lease(wanted, self.name, clock, until)
            for patient in wanted:
                if patient in found:
                    self._held[patient] = until
                    known = self._accounts.get(patient)
                    if known is None or known.body != found[patient]:
                        self._accounts[patient] = Account.opened(patient, found[patient])
                        self._charts.forget([patient])
                else:
                    self.forget([patient])
        if len(self._held) > 20_000:
            self._trim(clock)
        return {patient for patient in patients if patient in self._held and patient in self._accounts}

    def _trim(self, clock: int) -> None:
        self.forget([patient for patient, until in self._held.items() if until < clock and patient not in self._busy])

    def _round(
        self, chart: Chart, happenings: Sequence[Happening], now: int, failed: dict[str, str] | None = None
    ) -> Outcome:
        account = self._accounts[chart.id]
        woken = wake(self.book, chart, account.ledger, happenings, now)
        for url in self._functions.waiting(chart.id):
            if url in self.book.position:
                woken.setdefault(self.book.position[url], Woken(None)).foci = None
        retired = [one.event.resource_id for one in happenings
                   if one.event.resource_type == RULE_EVENT and one.event.resource_id not in self.book.position]  # fmt: skip
        times = [one.event.updated for one in happenings if not one.event.resource_type.startswith("$")]

        def call(rule: Rule, situation: Any, foci: Any) -> Any:
            if failed and rule.url in failed:
                raise ValueError(failed[rule.url])
            return self._functions.call(rule, situation, foci)

        arrived = min(times, default=now)
        return run(self.book, chart, account, woken, now, arrived=arrived, call=call, retired=retired)

    async def _finish(
        self, rounds: Sequence[Outcome], charts: dict[str, Chart], of: dict[str, list[Happening]], now: int
    ) -> None:
        keys = [key for outcome in rounds for key in made.keys(outcome)]
        current: dict[Key, Stored] = (await fetch(self._database, keys=keys))[1] if keys else {}
        puts: list[Put] = []
        quiet: list[tuple[Event, str]] = []
        loud: list[tuple[Event, str]] = []
        entries: list[Entry] = []
        written: list[tuple[str, str]] = []
        for first in rounds:
            patient = first.patient
            outcome, effects = await self._effects(first, charts, of[patient], current, now)
            account = self._accounts[patient]
            body = dump(account.ledger)
            events = [(one.event, patient) for one in of[patient]]
            for url, _ in outcome.failed:
                self.metrics.fail(url)
            if body == account.body and not effects.puts:
                quiet += events
                continue
            loud += events
            entries.append(Entry(patient, body, account.ledger.next_due, account.ledger.dead))
            puts += effects.puts
            written += effects.written
        if entries:
            until = time.time_ns() // 1_000_000 + self._lease
            extras: list[Extra] = [self.ledgers.write(entries, self.name, until)]
            if loud:
                extras.append(self.outbox.acknowledge(loud))
            await commit(self.server, puts, extras)
            for entry in entries:
                self._accounts[entry.patient].body = entry.body
                self._held[entry.patient] = until
        if quiet:
            await self.outbox.done(quiet)
        self._note(puts, charts, loud, quiet, written)

    async def _effects(
        self, outcome: Outcome, charts: dict[str, Chart], happenings: Sequence[Happening], current: dict[Key, Stored],
        now: int,
    ) -> tuple[Outcome, made.Effects]:  # fmt: skip
        """The Puts of one round; run again where a person closed what it builds on, or a rule's result is refused."""
        failed: dict[str, str] = {}
        closed: dict[str, Slot] = {}
        for _ in range(20):
            try:
                return outcome, made.effects(self.server, self.book, outcome, charts[outcome.patient], current, now)
            except made.Again as again:
                failed.update(again.failed)
                closed.update({slot.key: slot for slot in again.closed})
            patient = outcome.patient
            self._charts.forget([patient])
            account = self._accounts[patient] = self._accounts[patient].again()
            for key, slot in closed.items():
                known = account.ledger.slots.get(key)
                if known is None or known.n < slot.n:
                    account.ledger.slots[key] = slot
                else:
                    known.state, known.status = "closed", slot.status
            opened, _ = await self._charts.open(self.book, [patient], [], now)
            charts[patient] = opened[patient]
            outcome = self._round(charts[patient], happenings, now, failed)
            current.update((await fetch(self._database, keys=made.keys(outcome)))[1])
        raise RuntimeError(f"the rules of Patient/{outcome.patient} come to no conclusion")

    def _note(
        self, puts: Sequence[Put], charts: dict[str, Chart], loud: Sequence[tuple[Event, str]],
        quiet: Sequence[tuple[Event, str]], written: Sequence[tuple[str, str]],
    ) -> None:  # fmt: skip
        """Keeps the charts as the store now is; counts."""
        for put in puts:
            if put.stored.resource_type in self.book.needs or put.stored.resource_type == "Patient":
                for patient in patients_of(put.stored):
                    chart = charts.get(patient)
                    if chart is not None:
                        chart.put_stored(put.stored)
        for chart in charts.values():
            self._charts.keep(chart)
        now = self._now()
        self.metrics.events.inc(len(loud) + len(quiet))
        for event, _ in loud:
            if not event.resource_type.startswith("$"):
                self.metrics.effect(max(0, now - event.updated) / 1000)
        for url, resource_type in written:
            self.metrics.fire(url, resource_type)

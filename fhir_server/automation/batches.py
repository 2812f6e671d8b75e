"""One batch of patients: their events, the rules they wake, the difference to what is there, and one commit of it all.

Several workers share the patients by leases; correctness rests on the transaction (store/ledgers.py), not on the lease.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fhir_server.automation import effects as made
from fhir_server.automation.chart import Chart
from fhir_server.automation.charts import Charts, rewind
from fhir_server.automation.definitions import Definitions
from fhir_server.automation.hooks import Functions
from fhir_server.automation.ledger import Account, Slot, dump
from fhir_server.automation.metrics import Metrics
from fhir_server.automation.news import News
from fhir_server.automation.reconcile import WITHDRAWN
from fhir_server.automation.rounds import RULE_EVENT, Happening, Outcome, Woken, run, steps, tag, wake
from fhir_server.automation.rulebook import Rulebook
from fhir_server.automation.rules import Rule
from fhir_server.interactions.context import Server
from fhir_server.interactions.write import commit
from fhir_server.model.dates import milliseconds
from fhir_server.store.ledgers import Entry, Ledgers
from fhir_server.store.outbox import Outbox, Taken
from fhir_server.store.protocol import Changed, Event, Extra, Key, Put, Stored
from fhir_server.store.records import fetch

MOST_HELD = 1_000  # patients of whom is remembered what was written, and the chart: 60 kB each
REMEMBERED = frozenset({*WITHDRAWN, "Provenance"})
MOST_PUTS = 48  # versions in one transaction; large ones hold up everybody and strain WiredTiger's cache
NO_PATIENT = ""  # stands for events of no patient


@dataclass(frozen=True, slots=True)
class _Result:
    """What is to be committed for one patient."""

    entry: Entry
    effects: made.Effects
    happenings: list[Happening]

    @property
    def events(self) -> list[tuple[Event, str]]:
        return [(one.event, self.entry.patient) for one in self.happenings]


class Batches:
    """The work on batches of patients; `Worker` says when. Subclasses tell `_mark` what is to be looked at again."""

    def __init__(self, server: Server, *, rules: Iterable[Rule], lease: int, shared: bool = False) -> None:
        """`lease` (ms). `shared`: other workers want the same patients, so that none is held beyond the work on it."""
        database: Any = server.store.database  # type: ignore[attr-defined]
        self.server = server
        self.outbox = Outbox(database)
        self.ledgers = Ledgers(database)
        self.metrics = Metrics()
        self.book = Rulebook(Definitions())
        self.name = secrets.token_hex(6)
        self._database = database
        self._charts = Charts(database, server.registry)
        self._functions = Functions(self._answered)
        self._python = tuple(rules)
        self._lease, self._shared = lease, shared
        self._busy: set[str] = set()
        self._held: dict[str, int] = {}  # patient → until when the lease is ours, ms; who was worked on last is last
        self._accounts: dict[str, Account] = {}
        self._news = News()
        self._suspects: set[str] = set()  # patients of whom something else was found than their ledger says

    def _mark(self, patients: Iterable[str]) -> None:
        """There is something to do for these patients."""
        raise NotImplementedError

    def _answered(self, patient: str) -> None:
        """A slow rule has finished, in a thread."""
        raise NotImplementedError

    def _later(self, patients: Sequence[str]) -> None:
        """Somebody else is at work on these patients: they are looked at again shortly."""
        raise NotImplementedError

    def _now(self) -> int:
        return milliseconds(self.server.now())

    def forget(self, patients: Iterable[str]) -> None:
        """What is kept of these patients may be old."""
        gone = list(patients)
        self._charts.forget(gone)
        self._news.look(gone)
        for patient in gone:
            self._accounts.pop(patient, None)
            self._held.pop(patient, None)

    # The work

    async def work(self, patients: Sequence[str]) -> None:
        """Everything that is waiting for these patients, as one batch; one by one if somebody else interferes."""
        try:
            await self._batch(patients)
        except (Changed, Taken):
            self.forget(patients)
            self._suspects.update(patients)
            for patient in patients:
                try:
                    await self._batch([patient])
                except (Changed, Taken):
                    self.forget([patient])
                    self._suspects.add(patient)
                    if len(patients) == 1:
                        raise
                    self._mark([patient])

    async def _batch(self, patients: Sequence[str]) -> None:
        told = self._news.take(patients)
        unsure = [patient for patient in patients if told[patient] is None or not self._is_ours(patient)]
        events = await self._pending(unsure) if unsure else []
        by_patient: dict[str, list[Event]] = {patient: [] for patient in patients}
        for event in events:
            for patient in event.patients or (NO_PATIENT,):
                if patient in by_patient:
                    by_patient[patient].append(event)
        if by_patient.get(NO_PATIENT):
            await self.outbox.done([(event, NO_PATIENT) for event in by_patient[NO_PATIENT]])
        sure = {one: told[one] or [] for one in patients if one and one not in unsure}
        waiting = [
            one for one in patients if one and (by_patient[one] or sure.get(one) or self._functions.waiting(one))
        ]
        if not waiting:
            return
        held = await self._hold(waiting)
        if len(held) < len(waiting):
            self._later([patient for patient in waiting if patient not in held])
        now = self._now()
        cold = [patient for patient in sorted(held) if self._charts.kept(patient) is None]
        charts = await self._charts.open(self.book, sorted(held), now)
        if cold:  # asked again, after the record was read: what is in the record and not yet dealt with is known then
            events = [event for event in events if not held.difference(cold).isdisjoint(event.patients)]
            events += await self._pending(cold)
        of = {one: sure.get(one, []) if one not in cold else [] for one in held}
        untold = held.difference(one for one in sure if one not in cold)
        ours = list({event.id: event for event in events if not untold.isdisjoint(event.patients)}.values())
        if ours:
            for happening in await self._charts.happened(self.book, sorted(ours, key=lambda event: event.id)):
                for patient in untold.intersection(happening.event.patients):
                    of[patient].append(happening)
        for patient in cold:
            rewind(charts[patient], of[patient])
        rounds = [self._round(charts[patient], of[patient], now) for patient in sorted(held)]
        await self._finish(rounds, charts, of, now)

    def _is_ours(self, patient: str) -> bool:
        return self._held.get(patient, 0) > time.time_ns() // 1_000_000 + self._lease // 4

    async def _pending(self, patients: Sequence[str]) -> list[Event]:
        """What the outbox holds of these patients, but for what concerns no rule: that is dropped."""
        events = await self.outbox.pending(patients)
        self._news.seen(events)
        deaf = [event for event in events if self.book.deaf(event.resource_type, event.cause)]
        if deaf:
            await self.outbox.done([(event, one) for event in deaf for one in event.patients or (NO_PATIENT,)])
            gone = {event.id for event in deaf}
            events = [event for event in events if event.id not in gone]
        return events

    async def _hold(self, patients: Sequence[str]) -> set[str]:
        """Those of the patients whose lease is ours, with their ledgers in hand.

        What is known of a patient whose lease ran out stays true if nobody else has had the patient in between.
        """
        clock = time.time_ns() // 1_000_000
        wanted = [patient for patient in patients if self._held.get(patient, 0) < clock + self._lease // 4]
        if wanted:
            until = clock + self._lease
            found = await self.ledgers.lease(wanted, self.name, clock, until)
            for patient in wanted:
                if patient in found:
                    self._keep_lease(patient, until)
                    known = self._accounts.get(patient)
                    body, epoch = found[patient]
                    if known is None or known.epoch != epoch:
                        account = self._accounts[patient] = Account.opened(patient, body, epoch)
                        account.suspect = patient in self._suspects
                        self._suspects.discard(patient)
                        self._charts.forget([patient])
                else:
                    self.forget([patient])
        return {patient for patient in patients if patient in self._held and patient in self._accounts}

    def _keep_lease(self, patient: str, until: int) -> None:
        """What is remembered of the patient is remembered until `MOST_HELD` others have been worked on."""
        self._held.pop(patient, None)
        self._held[patient] = until
        if len(self._held) > MOST_HELD:
            oldest = next(iter(self._held))
            if oldest not in self._busy:
                self._charts.forget([oldest])
                self._accounts.pop(oldest, None)
                del self._held[oldest]

    def _round(
        self, chart: Chart, happenings: Sequence[Happening], now: int, failed: dict[str, str] | None = None
    ) -> Outcome:
        account = self._accounts[chart.id]
        for happening in happenings:  # somebody else wrote what we wrote before
            key = (happening.event.resource_type, happening.event.resource_id)
            known = account.written.get(key)
            if known is not None and happening.now is not None and happening.now.version > known.version:
                account.written[key] = happening.now
        outcome: Outcome | None = None
        for step in steps(happenings) or [[]]:
            one = self._step(chart, account, step, now, failed)
            if outcome is None:
                outcome = one
            else:
                outcome.follow(one)
        assert outcome is not None
        # Where no rule's tags changed, the Patient can only lack them because somebody wrote it.
        if outcome.retagged or account.suspect or any(one.event.resource_type == "Patient" for one in happenings):
            tag(self.book, chart, account.ledger, outcome)
        return outcome

    def _step(
        self, chart: Chart, account: Account, happenings: Sequence[Happening], now: int, failed: dict[str, str] | None
    ) -> Outcome:
        woken = wake(self.book, chart, account.ledger, happenings, now)
        for url in self._functions.waiting(chart.id):
            if url in self.book.position:
                woken.setdefault(self.book.position[url], Woken(None)).foci = None
            else:
                self._functions.drop(chart.id, url)
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
        keys: list[Key] = []
        current: dict[Key, Stored] = {}
        for outcome in rounds:
            account = self._accounts[outcome.patient]
            keys += made.keys(outcome, account)
            current.update(account.written)
        if keys:
            current.update((await fetch(self._database, keys=keys))[1])
        quiet: list[tuple[Event, str]] = []
        results: list[_Result] = []
        for first in rounds:
            patient = first.patient
            outcome, effects = await self._effects(first, charts, of[patient], current, now)
            account = self._accounts[patient]
            body = dump(account.ledger)
            for url, _ in outcome.failed:
                self.metrics.fail(url)
            # Nothing to do is as good as done only while the patient is surely ours; else the commit has to say so.
            if body == account.body and not effects.puts and self._held.get(patient, 0) > time.time_ns() // 1_000_000:
                quiet += [(one.event, patient) for one in of[patient]]
            else:
                entry = Entry(patient, body, account.ledger.next_due, account.ledger.dead)
                results.append(_Result(entry, effects, of[patient]))
        for portion in _portions(results):
            await self._commit(portion)
            for one in portion:
                self._note(one.effects, charts, one.happenings)
        if quiet:
            await self.outbox.done(quiet)
            self.metrics.events.inc(len(quiet))
        for chart in charts.values():
            self._charts.keep(chart)

    async def _commit(self, results: Sequence[_Result]) -> None:
        """Effects, ledgers and the end of the events: one transaction."""
        extras: list[Extra] = [self.ledgers.write([one.entry for one in results], self.name, self._until())]
        events = [event for one in results for event in one.events]
        if events:
            extras.append(self.outbox.acknowledge(events))
        await commit(self.server, [put for one in results for put in one.effects.puts], extras)
        for one in results:
            self._remember(self._accounts[one.entry.patient], one.entry.body, one.effects.puts)
            self._keep_lease(one.entry.patient, self._until())

    def _until(self) -> int:
        """Until when (ms) a lease is kept after the work."""
        return 0 if self._shared else time.time_ns() // 1_000_000 + self._lease

    def _remember(self, account: Account, body: bytes, puts: Iterable[Put]) -> None:
        """This is what the database holds now."""
        account.body, account.suspect = body, False
        for put in puts:
            if put.stored.resource_type in REMEMBERED:
                account.written[put.stored.resource_type, put.stored.id] = put.stored

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
            charts.update(await self._charts.open(self.book, [patient], now))
            rewind(charts[patient], happenings)
            outcome = self._round(charts[patient], happenings, now, failed)
            current.update((await fetch(self._database, keys=made.keys(outcome, account)))[1])
        raise RuntimeError(f"the rules of Patient/{outcome.patient} come to no conclusion")

    def _note(self, effects: made.Effects, charts: Mapping[str, Chart], happenings: Sequence[Happening]) -> None:
        """Brings the charts to what the store now has; counts."""
        now = self._now()
        for put in effects.puts:
            if put.stored.resource_type in self.book.needs or put.stored.resource_type == "Patient":
                for patient in put.stored.patients:
                    chart = charts.get(patient)
                    if chart is not None:
                        chart.put_stored(put.stored)
        self.metrics.events.inc(len(happenings))
        for one in happenings:
            if not one.event.resource_type.startswith("$"):
                self.metrics.effect(max(0, now - one.since) / 1000)
        for url, resource_type in effects.written:
            self.metrics.fire(url, resource_type)


def _portions(results: Sequence[_Result]) -> Iterator[list[_Result]]:
    """Patients together until there are enough versions for one transaction."""
    portion: list[_Result] = []
    count = 0
    for one in results:
        if portion and count + len(one.effects.puts) > MOST_PUTS:
            yield portion
            portion, count = [], 0
        portion.append(one)
        count += len(one.effects.puts)
    if portion:
        yield portion

"""Effects in the transaction of the change itself, where the patient's record is at hand: then there is nothing to wait for.

A commit about one patient whom this process has in memory is looked at before it is made. What follows from it is committed
with it: one transaction instead of two, no event in the outbox, and what was acknowledged has its consequences. Wherever that
cannot be (the patient is new here, is being worked on, or is somebody else's; a rule fails or may take its time), the change
goes alone and the worker deals with its event. Never the other way round: no rule can keep a client's write from being made.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fhir_server.automation import effects as made
from fhir_server.automation.batches import REMEMBERED, Batches
from fhir_server.automation.chart import Chart, Reading
from fhir_server.automation.ledger import Account, dump
from fhir_server.automation.rounds import Happening
from fhir_server.automation.vocabulary import DEVICE
from fhir_server.model.resource import load_stored as load
from fhir_server.store.ledgers import Entry
from fhir_server.store.protocol import Extra, Put
from fhir_server.store.records import fetch

MOST_TOGETHER = 50  # versions in a commit that is looked at before it is made

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Joined:
    """A commit and what follows from it: to be committed as `puts` with `extras`, and then told how that went."""

    puts: list[Put]
    extras: list[Extra]
    engine: Joining
    chart: Chart
    account: Account
    effects: made.Effects
    body: bytes
    happenings: list[Happening]

    def committed(self) -> None:
        self.engine.take_in(self)

    def failed(self) -> None:
        """What was decided is forgotten."""
        self.engine.give_up(self.chart.id)


class Joining(Batches):
    """`join` for `Server.joins`."""

    def _waits(self, patient: str) -> bool:
        """Whether there are events of the patient that come first."""
        raise NotImplementedError

    def _free(self, patient: str) -> None:
        """The patient can be worked on again."""
        raise NotImplementedError

    async def join(self, puts: Sequence[Put]) -> Joined | None:
        """None where the commit has to go alone. The patient is busy from here until the commit has succeeded or failed."""
        patient = _patient_of(puts)
        if patient is None or patient in self._busy or self._waits(patient):
            return None
        account, chart = self._accounts.get(patient), self._charts.kept(patient)
        if account is None or chart is None or account.suspect or account.ledger.failures or self._calls(puts):
            return None
        self._busy.add(patient)
        joined: Joined | None = None
        try:
            joined = await self._join(account, chart, puts)
        except made.Again:
            pass
        except Exception:
            log.exception("a change goes alone; the worker has to see to what follows from it")
        finally:
            if joined is None:  # the chart has seen what was not committed
                self.give_up(patient)
        return joined

    def _calls(self, puts: Sequence[Put]) -> bool:
        """Whether a rule in Python is woken: it may take its time, which is no client's to wait for."""
        called = self.book.functions
        return bool(called) and any(
            not called.isdisjoint(self.book.woken_by(Reading(load(one.raw))))
            for put in puts
            for one in (put.stored, put.previous)
            if one is not None and not one.deleted
        )

    async def _join(self, account: Account, chart: Chart, puts: Sequence[Put]) -> Joined | None:
        now = self._now()
        events = self.server.store.events(puts)
        happenings = [Happening(event, put.stored, put.previous) for event, put in zip(events, puts, strict=True)]
        outcome = self._round(chart, happenings, now)
        if outcome.failed or outcome.deferred:
            return None
        current = account.written
        missing = made.keys(outcome, account)
        if missing:
            current = {**current, **(await fetch(self._database, keys=missing))[1]}
        effects = made.effects(self.server, self.book, outcome, chart, current, now)
        body = dump(account.ledger)
        quiet = [replace(put, quiet=True) for put in puts]
        joined = Joined([*quiet, *effects.puts], [], self, chart, account, effects, body, happenings)
        # That nothing follows is known from the rules alone, or has to be as sure as what does: the patient is still ours.
        if outcome.woken or body != account.body or any(put.stored.resource_type in REMEMBERED for put in puts):
            entry = Entry(chart.id, body, account.ledger.next_due, account.ledger.dead)
            joined.extras.append(self.ledgers.write([entry], self.name, self._until()))
        return joined

    def take_in(self, joined: Joined) -> None:
        """It was committed."""
        self._remember(joined.account, joined.body, joined.effects.puts)
        if joined.extras:
            self._keep_lease(joined.chart.id, self._until())
        self._charts.keep(joined.chart)
        now = self._now()  # it is acknowledged now, with its effects
        self._note(
            joined.effects,
            {joined.chart.id: joined.chart},
            [replace(one, acknowledged=now) for one in joined.happenings],
        )
        self._free(joined.chart.id)

    def give_up(self, patient: str) -> None:
        self.forget([patient])
        self._free(patient)


def _patient_of(puts: Sequence[Put]) -> str | None:
    """The one patient that a client's commit is about; None where there are others, or the Patient itself changes."""
    if not puts or len(puts) > MOST_TOGETHER:
        return None
    patients: set[str] = set()
    for put in puts:
        stored, previous = put.stored, put.previous
        if put.quiet or put.cause.agent == DEVICE or stored.resource_type == "Patient" or not stored.patients:
            return None
        patients.update(stored.patients)
        if previous is not None:
            patients.update(previous.patients)
    return patients.pop() if len(patients) == 1 else None

"""A store in memory with the engine on top: what cases, dry runs and property tests let rules act on. No database, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fhir_server.automation.chart import Chart, Reading
from fhir_server.automation.ledger import Account
from fhir_server.automation.reconcile import closed_by_person, realize
from fhir_server.automation.rounds import RULE_EVENT, TIMER_EVENT, Happening, Outcome, run, steps, tag, wake
from fhir_server.automation.rulebook import Rulebook
from fhir_server.automation.vocabulary import DEVICE
from fhir_server.errors import Issue
from fhir_server.model.dates import instant
from fhir_server.model.resource import Resource, dump
from fhir_server.model.resource import load_stored as load
from fhir_server.store.protocol import Cause, Event, Key, Method, Stored
from fhir_server.validation import Validator

MOST_ROUNDS = 60


class World:
    """One patient's record, the rules of `book`, and a clock that is set by hand (ms)."""

    def __init__(self, book: Rulebook, patient: str, now: int, validator: Validator | None = None) -> None:
        self.book = book
        self.patient = patient
        self.now = now
        self.stored: dict[Key, Stored] = {}
        self.history: dict[tuple[str, str, int], Stored] = {}
        self.account = Account(patient)
        self.chart = Chart(patient)
        self.outbox: list[Event] = []
        self.outcomes: list[Outcome] = []
        self.derived: dict[Key, Resource] = {}  # what rules wrote, as it first was
        self.issues: list[Issue] = []  # what is wrong with derived resources
        self._validator = validator
        self._count = 0

    def resources(self, resource_type: str) -> list[Resource]:
        return [load(one.raw) for key, one in self.stored.items() if key[0] == resource_type and not one.deleted]

    def get(self, key: Key) -> Resource | None:
        found = self.stored.get(key)
        return None if found is None or found.deleted else load(found.raw)

    def write(self, resource: Resource, cause: Cause | None = None) -> Stored:
        """A create or update, as a client's write or one of ours."""
        key = (str(resource["resourceType"]), str(resource["id"]))
        previous = self.stored.get(key)
        version = previous.version + 1 if previous is not None else 1
        meta = {"versionId": str(version), "lastUpdated": instant(self.now)}
        meta.update((k, v) for k, v in resource.get("meta", {}).items() if k not in meta)
        body = {
            "resourceType": key[0],
            "id": key[1],
            "meta": meta,
            **{k: v for k, v in resource.items() if k not in ("resourceType", "id", "meta")},
        }
        method: Method = "create" if previous is None or previous.deleted else "update"
        stored = Stored(*key, version, self.now, dump(body), method=method, patients=(self.patient,))
        self._commit(stored, previous, cause)
        return stored

    def delete(self, key: Key) -> None:
        previous = self.stored[key]
        gone = Stored(*key, previous.version + 1, self.now, b"", True, "delete", (self.patient,))
        self._commit(gone, previous, None)

    def _commit(self, stored: Stored, previous: Stored | None, cause: Cause | None) -> None:
        key = (stored.resource_type, stored.id)
        if previous is not None:
            self.history[*key, previous.version] = previous
        self.stored[key] = stored
        self._event(stored.resource_type, stored.id, stored.version, stored.method, cause)

    def _event(
        self, resource_type: str, id: str, version: int = 0, method: Method = "update", cause: Cause | None = None
    ) -> None:
        self._count += 1
        event = Event(
            f"{self._count:032x}", resource_type, id, version, method, self.now, (self.patient,), cause or Cause()
        )
        self.outbox.append(event)

    def ask(self, rule: str) -> None:
        """Runs one rule (url) whatever happened, as `$backfill` does."""
        self._event(RULE_EVENT, rule)

    def settle(self, batch: int = 1_000_000) -> None:
        """Runs until the outbox is empty, `batch` events at a time."""
        for _ in range(MOST_ROUNDS):
            if not self.outbox:
                return
            taken, self.outbox = self.outbox[:batch], self.outbox[batch:]
            self._round(taken)
        raise RuntimeError("the rules do not come to rest")

    def advance(self, until: int) -> None:
        """Time passes; every due time fires when it is due."""
        for _ in range(10 * MOST_ROUNDS):
            due = self.account.ledger.next_due
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            self._event(TIMER_EVENT, "")
            self.settle()
        self.now = max(self.now, until)

    def restart(self) -> None:
        """Everything that is kept in memory is lost."""
        self.chart = Chart(self.patient)
        for stored in self.stored.values():
            if not stored.deleted:
                self.chart.put_stored(stored)

    def _round(self, events: Sequence[Event]) -> None:
        happenings = []
        for event in events:
            key = (event.resource_type, event.resource_id)
            now = self.stored.get(key)
            if now is not None and now.version != event.version:
                now = self.history.get((*key, event.version), now)
            happenings.append(Happening(event, now, self.history.get((*key, event.version - 1))))
        outcome: Outcome | None = None
        for step in steps(happenings):
            woken = wake(self.book, self.chart, self.account.ledger, step, self.now)
            asked = [one.event.resource_id for one in step if one.event.resource_type == RULE_EVENT]
            retired = [url for url in asked if url not in self.book.position]
            times = [one.event.updated for one in step if not one.event.resource_type.startswith("$")]
            arrived = min(times, default=self.now)
            one = run(self.book, self.chart, self.account, woken, self.now, arrived=arrived, retired=retired)
            if outcome is None:
                outcome = one
            else:
                outcome.follow(one)
        assert outcome is not None
        tag(self.book, self.chart, self.account.ledger, outcome)
        self.outcomes.append(outcome)
        self._apply(outcome)

    def _apply(self, outcome: Outcome) -> None:
        written: list[tuple[Resource, str, str]] = []
        made: dict[Key, tuple[Resource, str, str]] = {}
        for change in outcome.changes:
            existing = made[change.key][0] if change.key in made else self.get(change.key)
            if change.key in self.stored and change.key not in made and closed_by_person(change.slot, existing):
                raise RuntimeError(f"{change.key} was closed by a person, and nobody told the ledger")
            resource = realize(change, existing, self.now, self.patient)
            if resource is not None:
                made[change.key] = ({**resource, "id": change.key[1]}, change.slot.rule, change.rule)
        written += made.values()
        for key, rule in outcome.interpreted.items():
            reading = self.chart.get(key)
            if reading is not None:
                written.append((reading.resource, rule, ""))
        if outcome.tagged is not None:
            written.append((outcome.tagged, outcome.retagged[-1] if outcome.retagged else "", ""))
        for resource, rule, canonical in written:
            woken = outcome.woken.get(rule)
            event = woken.event if woken is not None else None
            chain = (*event.cause.chain, event.id) if event is not None else ()
            if canonical:
                self.derived.setdefault((resource["resourceType"], resource["id"]), resource)
            stored = self.write(resource, Cause(chain, canonical or rule, DEVICE))
            if self._validator is not None:
                self.issues += [issue for issue in self._validator.check(load(stored.raw)) if issue.is_error]
            self.chart.put_stored(stored)
            known = self.chart.get((stored.resource_type, stored.id))
            if known is None or known.stored is not stored:
                self.chart.put(Reading(load(stored.raw), stored))

    def failures(self) -> Iterable[tuple[str, Any]]:
        return self.account.ledger.failures.items()

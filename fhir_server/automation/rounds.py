"""One round for one patient: events in, what has to be written out. Pure; the worker, cases and dry runs all use it.

Rules run in the order in which they build on each other; what one derives, the later ones see in the same round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fhir_server.automation import tags
from fhir_server.automation.chart import Chart, Reading
from fhir_server.automation.evaluate import Situation, evaluate
from fhir_server.automation.ledger import Account, Failure, Ledger
from fhir_server.automation.ledger import dump as dump_ledger
from fhir_server.automation.ledger import load as load_ledger
from fhir_server.automation.proposals import Decision, Propose
from fhir_server.automation.reconcile import (
    CLOSED,
    Change,
    closed_by_person,
    interpreted,
    realize,
    reconcile,
    tags_label,
    tags_wanted,
    take_tags,
)
from fhir_server.automation.rulebook import Rulebook
from fhir_server.automation.rules import Rule
from fhir_server.automation.vocabulary import BASE, DEVICE, PATIENT_TAGS
from fhir_server.model.resource import Resource
from fhir_server.model.resource import load_stored as load
from fhir_server.store.protocol import Event, Key, Stored

MAX_CHAIN = 8  # causes; a longer chain is a loop
LOOPS = f"{BASE}/automation/loop"  # the "rule" of the tasks that say so
RULE_EVENT = "$rule"  # an event that asks for one rule: backfill, retry, named-event
TIMER_EVENT = "$timer"  # an event that says: time has come
PATIENCE = 5_000  # ms a rule that takes its time is waited for
ATTEMPTS = 6
BACKOFF = (1_000, 4_000, 15_000, 60_000, 300_000)  # ms before each new attempt

Run = Callable[[Rule, Situation, frozenset[str] | None], Decision]


@dataclass(frozen=True, slots=True)
class Happening:
    """An event with the versions it is about: what is there now, and what it replaced (None: nothing).

    `acknowledged` (ms): when whoever wrote it heard so; 0 where this process does not know.
    """

    event: Event
    now: Stored | None = None
    before: Stored | None = None
    acknowledged: int = 0

    @property
    def since(self) -> int:
        """What a lag is counted from (ms): not known, from when the change was prepared."""
        return self.acknowledged or self.event.updated


@dataclass(slots=True)
class Woken:
    """Why a rule runs. `foci` None: look at all of them."""

    event: Event | None
    foci: set[str] | None = field(default_factory=set)

    @property
    def frozen(self) -> frozenset[str] | None:
        return None if self.foci is None else frozenset(self.foci)


@dataclass(slots=True)
class Outcome:
    """What one round decided. Resources are as they shall be stored, but for id and version stamps."""

    patient: str
    decisions: dict[str, Decision] = field(default_factory=dict)  # by rule url
    changes: list[Change] = field(default_factory=list)
    tagged: Resource | None = None  # the Patient with its new tags
    retagged: list[str] = field(default_factory=list)  # the rules whose tags changed
    interpreted: dict[Key, str] = field(default_factory=dict)  # Observations that now read otherwise; rule url
    woken: dict[str, Woken] = field(default_factory=dict)  # by rule url
    failed: list[tuple[str, str]] = field(default_factory=list)  # (rule url, error)
    deferred: list[str] = field(default_factory=list)  # rules that are worked out elsewhere
    explained: bool = False  # there was a Provenance of the tags before
    label: str = ""  # of that Provenance

    def follow(self, other: Outcome) -> None:
        """Takes in what the next step of the same round decided."""
        self.decisions.update(other.decisions)
        self.changes += other.changes
        self.retagged = list(dict.fromkeys((*self.retagged, *other.retagged)))
        self.interpreted.update(other.interpreted)
        self.woken.update(other.woken)
        self.failed += other.failed
        self.deferred += other.deferred


class Deferred(Exception):
    """The rule takes its time: its decision will come in a later round."""


def steps(happenings: Sequence[Happening]) -> list[list[Happening]]:
    """What was committed together is looked at together, everything else one after the other: the result is the same
    whether a worker sees events one by one or many at once."""
    found: list[list[Happening]] = []
    for happening in happenings:
        group = happening.event.group
        if found and group and found[-1][-1].event.group == group:
            found[-1].append(happening)
        else:
            found.append([happening])
    return found


def wake(book: Rulebook, chart: Chart, ledger: Ledger, happenings: Iterable[Happening], now: int) -> dict[int, Woken]:
    """Which rules run and why; the chart and the ledger take note of what happened."""
    woken: dict[int, Woken] = {}
    for happening in happenings:
        event = happening.event
        for position, foci in _woken_by(book, chart, ledger, happening).items():
            known = woken.setdefault(position, Woken(event))
            known.event = event
            if foci is None or known.foci is None:
                known.foci = None
            else:
                known.foci |= foci
    for url, due in ledger.due.items():
        if due <= now and url in book.position:
            woken.setdefault(book.position[url], Woken(None)).foci = None
    for url, failure in ledger.failures.items():
        if failure.at and failure.at <= now and url in book.position:
            woken.setdefault(book.position[url], Woken(None)).foci = None
    return woken


def _woken_by(book: Rulebook, chart: Chart, ledger: Ledger, happening: Happening) -> dict[int, set[str] | None]:
    event = happening.event
    if event.resource_type == TIMER_EVENT:
        return {}
    if event.resource_type == RULE_EVENT:
        position = book.position.get(event.resource_id)
        if position is None:
            _retire(ledger, event.resource_id)
            return {}
        return {position: None}
    ours = event.cause.agent == DEVICE
    stored = happening.now
    mine = stored is not None and not stored.deleted and chart.id in stored.patients
    reference = f"{event.resource_type}/{event.resource_id}"
    slot = ledger.of_resource(chart.id, event.resource_type, event.resource_id)
    if stored is not None and mine:
        chart.put_stored(stored)
    elif stored is not None:
        chart.drop((event.resource_type, event.resource_id))
    if event.resource_type == "Patient":
        positions = set(book.woken_by_tags())
        if not ours:
            positions |= book.woken("Patient", ())
        return dict.fromkeys(_later_left_out(book, event, positions))
    found: dict[int, set[str] | None] = {}
    if slot is not None and not ours:
        resource = load(stored.raw) if mine and stored is not None else None
        if slot.state == "open" and closed_by_person(slot, resource):
            slot.state = "closed"
        slot.status = str(resource.get("status", "")) if resource is not None else "deleted"
        if slot.state == "closed" and slot.status not in CLOSED:
            slot.state = "open"  # a person opened it again
        if slot.rule in book.position:
            found[book.position[slot.rule]] = {slot.scope} if slot.scope else None
    if ours and slot is None and event.resource_type == "Observation":
        return found  # we only said how it reads
    versions = [chart.get((event.resource_type, event.resource_id)) if mine else None, _reading(happening.before)]
    readings = [reading for reading in versions if reading is not None]
    positions = {position for reading in readings for position in book.woken_by(reading)}
    for position in _later_left_out(book, event, positions):
        rule = book.rules[position]
        by_focus = [branch for branch in rule.branches if branch.by_focus]
        triggers = [trigger for branch in by_focus for trigger in branch.triggers]
        is_focus = any(trigger.matches(reading) for trigger in triggers for reading in readings)
        known = found.get(position, set())
        found[position] = (known | {reference}) if known is not None and (is_focus or not by_focus) else None
    return found


def _later_left_out(book: Rulebook, event: Event, positions: set[int]) -> set[int]:
    """What a rule of ours derived was seen by the rules after it in the round that derived it."""
    if not event.cause.rule:
        return positions
    url = event.cause.rule.partition("|")[0]
    position = book.position.get(url)
    return positions if position is None else {one for one in positions if one <= position}


def _reading(stored: Stored | None) -> Reading | None:
    return None if stored is None or stored.deleted or not stored.raw else Reading(load(stored.raw), stored)


def _retire(ledger: Ledger, url: str) -> None:
    """The rule is no longer in force and was asked to clean up: time and failures no longer matter."""
    ledger.due.pop(url, None)
    ledger.failures.pop(url, None)


def run(
    book: Rulebook,
    chart: Chart,
    account: Account,
    woken: Mapping[int, Woken],
    now: int,
    *,
    arrived: int | None = None,
    call: Run = evaluate,
    retired: Iterable[str] = (),
) -> Outcome:
    """Runs the woken rules and those that what they derive wakes. The account's ledger is brought to the state after it.

    The chart gets what is derived, so that it must be given up if the outcome is not committed.
    """
    ledger = account.ledger
    outcome = Outcome(chart.id, explained=ledger.explained)
    queue = dict(woken)

    def begun(rule: str, action: str) -> tuple[int, str] | None:
        slot = ledger.slots.get(f"{rule}#{action}")
        return (slot.begun, slot.status or "requested") if slot is not None and slot.state == "open" else None

    patient_tags = _tags(chart, ledger)
    situation = Situation(chart, now, book.scores, patient_tags, arrived, begun)
    known = {slot.rule for slot in ledger.slots.values()} | ledger.tags.keys() | ledger.due.keys()
    for url in retired:
        _conclude(book, chart, ledger, outcome, Decision(url, ""), situation)
    for position in range(len(book.rules)):
        if position not in queue:
            continue
        rule = book.rules[position]
        outcome.woken[rule.url] = queue[position]
        try:
            decision = call(rule, situation, queue[position].frozen)
        except Deferred:
            outcome.deferred.append(rule.url)
            ledger.due[rule.url] = now + PATIENCE  # in case this process does not live to hear the answer
            continue
        except Exception as error:
            _fail(ledger, rule.url, f"{type(error).__name__}: {error}", queue[position].event, now)
            outcome.failed.append((rule.url, ledger.failures[rule.url].error))
            continue
        ledger.failures.pop(rule.url, None)
        if chart.labelled:
            decision.proposals = [replace(one, label=chart.label(one.used())) for one in decision.proposals]
            decision.label = chart.label(decision.sources)
        event = queue[position].event
        if event is not None and len(event.cause.chain) >= MAX_CHAIN and _would_change(chart.id, decision, ledger, now):
            outcome.changes.extend(_cut(chart.id, ledger, rule, event, now))
            continue
        if decision.silent and rule.url not in known:
            outcome.decisions[rule.url] = decision
            continue
        for wakes in _conclude(book, chart, ledger, outcome, decision, situation):
            if wakes > position:
                queue.setdefault(wakes, Woken(queue[position].event)).foci = None
    return outcome


def tag(book: Rulebook, chart: Chart, ledger: Ledger, outcome: Outcome) -> None:
    """Once, after the last step of a round: the Patient with the tags that its rules want now."""
    patient = chart.get(("Patient", chart.id))
    if patient is not None:
        canonicals = {rule.url: rule.canonical for rule in book.rules}
        outcome.tagged = tags.tagged(patient.resource, tags_wanted(ledger), canonicals)
    outcome.label = tags_label(ledger)


def _conclude(
    book: Rulebook, chart: Chart, ledger: Ledger, outcome: Outcome, decision: Decision, situation: Situation
) -> set[int]:
    """Takes a decision; the positions of the rules that what it derived wakes."""
    outcome.decisions[decision.rule] = decision
    wakes: set[int] = set()
    changes = reconcile(chart.id, decision, ledger, situation.now)
    for change in changes:
        if change.key[0] in ("Observation", "RiskAssessment"):
            known = chart.get(change.key)
            resource = realize(change, known.resource if known is not None else None, situation.now, chart.id)
            if resource is not None:
                reading = Reading({**resource, "id": change.key[1]})
                wakes |= book.woken_by(reading)
                _overlay(chart, reading, known)
        else:
            wakes |= book.woken(change.key[0], ())
    outcome.changes.extend(changes)
    for key in {tuple(reference.split("/", 1)) for reference in decision.looked}:
        observation = chart.get((key[0], key[1]))
        if observation is None or key[0] != "Observation":
            continue
        codings = [one.coding for one in decision.interpretations if one.observation == observation.key]
        resource = interpreted(observation.resource, decision.canonical, codings)
        if resource is not None:
            outcome.interpreted[observation.key] = decision.rule
            _overlay(chart, Reading(resource), observation)
    if take_tags(decision, ledger):
        outcome.retagged.append(decision.rule)
        ledger.explained = True
        wakes |= book.woken_by_tags()
        situation.tagged(_tags(chart, ledger))
    if any(change.key[0] in ("Observation", "RiskAssessment") for change in changes):
        situation.derived()
    return wakes


def _overlay(chart: Chart, reading: Reading, known: Reading | None) -> None:
    reading.stored = known.stored if known is not None else None
    chart.put(reading)


def _tags(chart: Chart, ledger: Ledger) -> frozenset[str]:
    """The tags as they will be: a person's on the patient, and what the ledger wants."""
    patient = chart.patient
    people = {
        tag["code"]
        for tag in (patient or {}).get("meta", {}).get("tag", ())
        if tag.get("system") == PATIENT_TAGS and "code" in tag and not tags.set_by_rule(tag)
    }
    return frozenset(people | {code for system, code in tags_wanted(ledger) if system == PATIENT_TAGS})


def _fail(ledger: Ledger, url: str, error: str, event: Event | None, now: int) -> None:
    """Notes a failure: tried again with growing patience, then put aside as a dead letter."""
    known = ledger.failures.get(url)
    attempts = known.attempts + 1 if known is not None else 1
    at = 0 if attempts >= ATTEMPTS else now + BACKOFF[min(attempts, len(BACKOFF)) - 1]
    ledger.failures[url] = Failure(
        error[:500], attempts, at, event.id if event is not None else (known.event if known else ""),
        known.since if known is not None else now,
    )  # fmt: skip
    ledger.due.pop(url, None)


def _would_change(patient: str, decision: Decision, ledger: Ledger, now: int) -> bool:
    probe = load_ledger(dump_ledger(ledger))
    return bool(reconcile(patient, decision, probe, now)) or take_tags(decision, probe)


def _cut(patient: str, ledger: Ledger, rule: Rule, event: Event, now: int) -> list[Change]:
    """The Task that says that rules wake each other in a circle."""
    reference = f"{event.resource_type}/{event.resource_id}"
    resource: Resource = {
        "resourceType": "Task",
        "instantiatesCanonical": rule.canonical,
        "status": "requested",
        "intent": "order",
        "priority": "urgent",
        "code": {"coding": [{"system": f"{BASE}/CodeSystem/automation-problems", "code": "loop"}], "text": "Rule loop"},
        "description": (
            f"The rule {rule.title} was stopped: a chain of more than {MAX_CHAIN} changes led back to it. "
            f"The rules that wake each other have to be corrected."
        ),
        "focus": {"reference": reference},
        "for": {"reference": f"Patient/{patient}"},
        "requester": {"reference": DEVICE},
    }
    decision = Decision(LOOPS, "")
    decision.proposals.append(Propose(rule.id or rule.url, resource, focus=reference, focus_at=now))
    known = [slot for slot in ledger.of_rule(LOOPS) if slot.action != (rule.id or rule.url)]
    for slot in known:  # other loops of this patient stay as they are
        ledger.slots.pop(slot.key)
    changes = reconcile(patient, decision, ledger, now)
    ledger.slots.update((slot.key, slot) for slot in known)
    return changes

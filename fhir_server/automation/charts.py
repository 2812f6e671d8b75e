"""Charts from the store: what every rule may look at, for many patients by one command; kept while a patient is ours."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fhir_server.automation.chart import Chart
from fhir_server.automation.rounds import RULE_EVENT, TIMER_EVENT, Happening
from fhir_server.automation.rulebook import Rulebook
from fhir_server.automation.vocabulary import DEVICE
from fhir_server.model.dates import DAY
from fhir_server.search.registry import Registry
from fhir_server.search.types.token import system_key
from fhir_server.store import documents as d
from fhir_server.store.protocol import Event, Key, Stored
from fhir_server.store.records import Want, fetch

MOST_CHARTS = 1_000
MOST_READINGS = 2_000  # of one chart that is kept; a larger one is read again each time
SHORT = (
    120 * DAY
)  # series that are measured often are asked for within their own window, so that a year of them stays away
ASKING = frozenset({RULE_EVENT, TIMER_EVENT})  # events about no resource


class Charts:
    def __init__(self, database: Any, registry: Registry) -> None:
        self._database = database
        self._registry = registry
        self._kept: OrderedDict[str, Chart] = OrderedDict()

    def kept(self, patient: str) -> Chart | None:
        return self._kept.get(patient)

    def keep(self, chart: Chart) -> None:
        if sum(1 for _ in chart.readings()) > MOST_READINGS:
            self._kept.pop(chart.id, None)
            return
        self._kept[chart.id] = chart
        self._kept.move_to_end(chart.id)
        while len(self._kept) > MOST_CHARTS:
            self._kept.popitem(last=False)

    def forget(self, patients: Iterable[str]) -> None:
        for patient in patients:
            self._kept.pop(patient, None)

    def forget_all(self) -> None:
        self._kept.clear()

    async def open(self, book: Rulebook, patients: Sequence[str], now: int) -> dict[str, Chart]:
        """The charts of the patients; those that are not kept are read by one command."""
        charts = {patient: self._kept.get(patient) or Chart(patient) for patient in patients}
        fresh = [patient for patient in patients if patient not in self._kept]
        if fresh:
            found, _, _ = await fetch(self._database, self.wants(book, fresh, now))
            for stored in found:
                for patient in stored.patients:
                    chart = charts.get(patient)
                    if chart is not None:
                        chart.put_stored(stored)
        return charts

    async def happened(self, book: Rulebook, events: Sequence[Event]) -> list[Happening]:
        """What the events are about, each as it was then and before: one command."""
        about = [event for event in events if event.resource_type not in ASKING]
        keys: list[Key] = [(event.resource_type, event.resource_id) for event in about]
        versions = [
            (event.resource_type, event.resource_id, version)
            for event in about
            if event.resource_type in book.needs
            or event.resource_type in ("Patient", "Task")
            or event.method == "delete"
            for version in (event.version - 1, event.version)
            if version > 0
        ]
        _, current, superseded = await fetch(self._database, (), keys, versions)
        return [_happening(event, current, superseded) for event in events]

    def wants(self, book: Rulebook, patients: Sequence[str], now: int) -> list[Want]:
        """The finds for everything the rules may ask of these patients."""
        wants = [Want("Patient", {d.ID: {"$in": list(patients)}})]
        for resource_type, need in sorted(book.needs.items()):
            if resource_type == "Patient":
                continue
            code = self._registry.parameter(resource_type, "code")
            date = self._registry.parameter(resource_type, "date")
            subject = self._registry.parameter(resource_type, "subject")
            mine: dict[str, Any] = {d.PATIENTS: {"$in": list(patients)}}
            if resource_type in ("Observation", "Task") and subject is not None:
                mine = {d.entry_path(subject.field): {"$in": [f"Patient/{patient}" for patient in patients]}}
            if need.codes is None or code is None or date is None:
                wants.append(Want(resource_type, mine))
                continue
            groups: dict[int, list[str]] = {}
            for (system, value), within in need.codes.items():
                groups.setdefault(_rounded(within), []).append(f"{system_key(system)}|{value}")
            for within, tokens in sorted(groups.items()):
                condition = {**mine, d.entry_path(code.field): {"$in": sorted(tokens)}}
                if within:
                    since = {f"{d.entry_path(date.field)}.lo": {"$gte": now - within}}
                    condition.update(since)
                wants.append(Want(resource_type, condition))
        return wants


def _happening(
    event: Event, current: Mapping[Key, Stored], superseded: Mapping[tuple[str, str, int], Stored]
) -> Happening:
    key = (event.resource_type, event.resource_id)
    now = current.get(key)
    before = superseded.get((*key, event.version - 1))
    if now is not None and now.version != event.version:
        now = superseded.get((*key, event.version), now)
    return Happening(event, now, before)


def rewind(chart: Chart, happenings: Sequence[Happening]) -> None:
    """Back to the moment before these happened, so that what follows does not depend on how many are seen at once.

    What the rules wrote stays: it followed from what was dealt with before, and they saw it in the round that wrote it.
    """
    first: dict[Key, Happening] = {}
    for happening in happenings:
        key = (happening.event.resource_type, happening.event.resource_id)
        if happening.event.cause.agent == DEVICE:
            first.pop(key, None)
        elif happening.event.resource_type not in ASKING:
            first.setdefault(key, happening)
    for key, happening in first.items():
        chart.drop(key)
        if happening.before is not None and chart.id in happening.before.patients:
            chart.put_stored(happening.before)


def _rounded(within: int) -> int:
    """Few groups: weeks for what is measured often, years for the rest."""
    if within == 0:
        return 0
    return SHORT if within <= SHORT else -(-within // (366 * DAY)) * 366 * DAY

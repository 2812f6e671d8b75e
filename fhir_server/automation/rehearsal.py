"""What a rule would have done over history, patient by patient; nothing is written. docs/hooks.md (Operations, $dry-run)"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from fhir_server.automation.chart import Chart
from fhir_server.automation.charts import Charts
from fhir_server.automation.follow_up import shown
from fhir_server.automation.proposals import EPISODES
from fhir_server.automation.record import seen
from fhir_server.automation.rulebook import Rulebook
from fhir_server.automation.tags import codes
from fhir_server.automation.vocabulary import split_canonical
from fhir_server.automation.world import World
from fhir_server.interactions.context import Context, Server
from fhir_server.store.protocol import Find

CHUNK = 32  # patients fetched by one command
MOST_EXAMPLES = 20


@dataclass(slots=True)
class Rehearsal:
    """The sum over patients. `made` counts what would have been started: (type, what, priority)."""

    patients: int = 0
    matched: int = 0
    tags: Counter[str] = field(default_factory=Counter)  # patients who would have it now
    made: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)  # error → patients
    examples: list[str] = field(default_factory=list)

    def add(self, patient: str, world: World, before: frozenset[str]) -> None:
        self.patients += 1
        for _, failure in world.failures():
            self.failed[failure.error] += 1
        found = codes(world.get(("Patient", patient))) - before
        made: list[tuple[str, str, str]] = []
        for key, resource in world.derived.items():
            what = str(resource.get("instantiatesUri", "")) or _what(resource)
            priority = str(resource.get("priority", "")) if key[0] in EPISODES else ""
            made.append((key[0], split_canonical(what)[0].rpartition("/")[2], priority))
        self.tags.update(found)
        self.made.update(made)
        if found or made:
            self.matched += 1
            if len(self.examples) < MOST_EXAMPLES:
                self.examples.append(patient)


def _what(resource: dict[str, object]) -> str:
    for name in ("method", "code"):
        concept = resource.get(name)
        if isinstance(concept, dict):
            return str(next((c.get("code") for c in concept.get("coding", ())), shown(concept)))
    return ""


async def rehearse(
    server: Server, context: Context, charts: Charts, book: Rulebook, since: int, limit: int
) -> Rehearsal:
    """Replays the records of up to `limit` patients from `since` (ms) on, reading by reading, on the rules of `book`.

    As far as the principal may see them: neither who is hidden nor what is hidden counts.
    """
    rehearsal = Rehearsal()
    now = int(server.now().timestamp() * 1000)
    async for patients in chunks(server, limit):
        opened = await charts.open(book, patients, now)
        for patient in patients:
            chart = seen(server, context, opened[patient])
            if chart.patient is None:
                continue
            before = codes(chart.patient)
            rehearsal.add(patient, replay(book, chart, since, now), before)
    return rehearsal


def replay(book: Rulebook, chart: Chart, since: int, now: int) -> World:
    """The record of one patient, played again in the order of its own time."""
    readings = sorted(chart.readings(), key=lambda reading: (reading.key[0] != "Patient", reading.at))
    world = World(book, chart.id, since)
    for reading in readings:
        if reading.key[0] == "Patient" or reading.at < since:
            world.write(reading.resource)
    world.settle()
    for reading in readings:
        if reading.key[0] != "Patient" and reading.at >= since:
            world.advance(min(reading.at, now))
            world.write(reading.resource)
            world.settle()
    world.advance(now)
    for rule in book.rules:
        world.ask(rule.url)
    world.settle()
    return world


async def chunks(server: Server, limit: int, after: str = "") -> AsyncIterator[Sequence[str]]:
    """Ids of patients, in the order of their ids, a chunk at a time."""
    left = limit
    while left > 0:
        condition = {"_id": {"$gt": after}, "d": None}
        find = Find("Patient", condition, sort=(("_id", 1),), limit=min(CHUNK, left), raw=False)
        found = [stored.id for stored in await server.store.find(find)]
        if not found:
            return
        yield found
        after = found[-1]
        left -= len(found)

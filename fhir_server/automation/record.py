"""A patient's record as far as one score reads it: found through search, so that it is what the asker may see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from fhir_server.automation.chart import Chart, Reading
from fhir_server.automation.definitions import Definitions
from fhir_server.automation.facts import Moment
from fhir_server.automation.requirements import FactDefinition
from fhir_server.automation.risk.specification import specification
from fhir_server.automation.scores import Score
from fhir_server.automation.values import Found
from fhir_server.interactions import read
from fhir_server.interactions.context import Context, Server
from fhir_server.interactions.search import run
from fhir_server.model.content import files
from fhir_server.model.content import read as read_file
from fhir_server.model.dates import DAY
from fhir_server.model.resource import load
from fhir_server.search.parse import parse

NEWEST = 50  # of one kind of result; a fact that needs more is a series, which no score reads
MOST = 500  # Conditions, medications and the like of one patient


@dataclass(frozen=True, slots=True)
class Stale:
    """A value that would have answered, had it been newer: `at` in ms, `within` the days it may be old."""

    at: int
    within: int


def score_named(server: Server, code: str) -> Score | None:
    """The score as the engine has it (content can be changed at run time), else as the content files say."""
    engine = server.rooms.get("automation")
    book = getattr(engine, "book", None)
    known: Mapping[str, Score] = book.scores if book is not None and book.scores else {}
    return known.get(code) or _from_files().get(code)


@cache
def _from_files() -> Mapping[str, Score]:
    libraries = [read_file(path) for path in files("resources", "risk")]
    known = Definitions([*libraries, *(read_file(path) for path in files("terminology"))])
    scores = {}
    for library in libraries:
        facts = known.facts(library.get("dataRequirement", ()), f"{library['url']} dataRequirement")
        made = Score(specification(library), facts)
        scores[made.specification.code] = made
    return scores


async def chart_for(server: Server, context: Context, score: Score, patient: str) -> Chart:
    """The patient and what the score's facts name, any age. Raises NotFound, Forbidden."""
    chart = Chart(patient)
    stored = await read.read(server, context, "Patient", patient)
    chart.put(Reading(load(stored.raw), stored))
    asked: set[tuple[str, str]] = set()
    for definition in _definitions(score):
        criteria = _criteria(definition)
        if definition.type == "Patient" or (definition.type, criteria) in asked:
            continue
        asked.add((definition.type, criteria))
        count = NEWEST if criteria else MOST
        pairs = [("patient", patient), *([("code", criteria), ("_sort", "-date")] if criteria else [])]
        query = parse(
            definition.type, pairs, registry=server.registry, default_count=count, most_count=count, base=context.base
        )
        for found in (await run(server, context, query)).matches[:count]:
            chart.put(Reading(load(found.raw), found))
    return chart


def seen(server: Server, context: Context, chart: Chart) -> Chart:
    """The chart as far as a search would find what is in it."""
    if context.principal.everything:
        return chart
    found = Chart(chart.id)
    for reading in chart.readings():
        if reading.stored is not None and server.policy.sees(context.principal, "search", reading.stored):
            found.put(reading)
    return found


def stale(definitions: Iterable[FactDefinition], moment: Moment) -> Stale | None:
    """The newest value of these facts if only its age stands in the way."""
    for definition in definitions:
        if definition.within:
            found: Found = moment.find([replace(definition, within=0)])
            if found.values and found.at is not None:
                return Stale(found.at, definition.within // DAY)
    return None


def _definitions(score: Score) -> Iterable[FactDefinition]:
    for alternatives in score.facts.values():
        yield from alternatives


def _criteria(definition: FactDefinition) -> str:
    """Codes of an Observation fact as a token search; empty where everything of the type is wanted."""
    if definition.type != "Observation" or not definition.filters:
        return ""
    codes: Any = definition.filters[0].codes
    if definition.filters[0].path != "code" or codes.patterns:
        return ""
    return ",".join(sorted(f"{system}|{code}" for system, code in codes.listed))

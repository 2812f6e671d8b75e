"""What a search costs: indexes read, documents looked at, commands sent. And that a plan can be read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from fhir_server.interactions.context import Server
from fhir_server.model.definitions import RESOURCE_TYPES
from fhir_server.model.resource import dump
from fhir_server.search import execute, parse, plan, slow
from fhir_server.search.index import index
from fhir_server.search.registry import standard
from fhir_server.search.restrict import NOTHING, Alternative, Restriction, unrestricted
from fhir_server.store.protocol import Put, Stored

CODES = ["8480-6", "8462-4", "29463-7", "8302-2"]


def observation(number: int) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": f"o{number}",
        "status": "final",
        "category": [{"coding": [{"code": "vital-signs"}], "text": "Vital signs" if number % 3 else "Laboratory"}],
        "code": {"coding": [{"system": "http://loinc.org", "code": CODES[number % len(CODES)]}]},
        "subject": {"reference": f"Patient/p{number % 50}"},
        "effectiveDateTime": f"20{10 + number % 14}-{1 + number % 12:02}-01T10:00:00Z",
        "valueQuantity": {"value": number, "system": "http://unitsofmeasure.org", "code": "mg"},
    }


@pytest.fixture(scope="module")
async def filled(server: Server) -> AsyncIterator[Server]:
    """4,000 observations of 50 patients."""
    resources = [observation(number) for number in range(4000)]
    resources += [{"resourceType": "Patient", "id": f"p{n}", "name": [{"family": f"F{n}"}]} for n in range(50)]
    puts = []
    for resource in resources:
        indexed = index(standard(), resource)
        kind, id = resource["resourceType"], resource["id"]
        puts.append(Put(Stored(kind, id, 1, 1, dump(resource), patients=indexed.patients, entries=indexed.entries)))
    for start in range(0, len(puts), 500):
        await server.store.commit(puts[start : start + 500])
    yield server


async def explained(server: Server, text: str) -> list[dict[str, Any]]:
    kind, _, query = text.partition("?")
    pairs = list(httpx.QueryParams(query).multi_items())
    parsed = parse.parse(kind, [*pairs, ("_explain", "true")], registry=server.registry, default_count=20)
    page = await execute.run(server.store, server.registry, parsed, unrestricted, key=b"k")
    assert page.matches
    assert page.explanation is not None
    finds: list[dict[str, Any]] = page.explanation["finds"]
    return finds


@pytest.mark.anyio
@pytest.mark.parametrize(
    "query",
    [
        "Observation?patient=p3&code=http://loinc.org|8462-4&_sort=-date",
        "Observation?subject=Patient/p3&code=8462-4&_sort=-date",
        "Observation?subject=Patient/p3&code=8462-4&_sort=date",
        "Observation?patient=p3&category=vital-signs&_sort=-date",
        "Observation?patient=p3&_sort=-date",
        "Observation?patient=p3&code=8462-4&date=ge2012&_sort=-date",
        "Observation?_sort=-date",
        "Observation?_sort=-_lastUpdated",
        "Observation?code=8462-4",
        "Observation?",
    ],
)
async def test_first_page_is_read_off_an_index(filled: Server, query: str) -> None:
    finds = await explained(filled, query)
    assert len(finds) == 1
    assert "SORT" not in finds[0]["stages"]
    assert finds[0]["documentsExamined"] <= 25
    assert finds[0]["keysExamined"] <= 60


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("query", "most"),
    [
        ("Observation?value-quantity=100||mg", 5),
        ("Observation?value-quantity=100|http://unitsofmeasure.org|mg", 5),
        ("Observation?value-quantity=gt3990||mg", 40),
        ("Observation?date=2013-04-01", 50),
        ("Observation?combo-code-value-quantity=8480-6$100", 5),
        ("Observation?_id=o7,o8", 2),
        ("Patient?family=f17", 2),
        ("Patient?name:contains=17", 2),
        ("Observation?patient.family=f17&code=8462-4", 90),
        ("Observation?_content=laboratory&patient=p3", 90),
    ],
)
async def test_what_is_rare_is_not_searched_for_everywhere(filled: Server, query: str, most: int) -> None:
    assert sum(find["documentsExamined"] for find in await explained(filled, query)) <= most


class Counted:
    """The store, counting the commands of a search."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name in ("find", "count", "distinct"):
            self.calls.append(name)
        return getattr(self._store, name)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("query", "commands"),
    [
        ("Observation?patient=p3&code=8462-4&_sort=-date", 1),
        ("Observation?code=8462-4", 1),
        ("Observation?patient.family=f17", 2),
        ("Patient?_has:Observation:patient:code=8462-4", 2),
        ("Observation?code=8462-4&_include=Observation:subject", 2),
        ("Observation?code=8462-4&_total=accurate", 2),
        ("Observation?code=8462-4&_summary=count", 1),
    ],
)
async def test_commands(filled: Server, query: str, commands: int) -> None:
    kind, _, text = query.partition("?")
    parsed = parse.parse(kind, list(httpx.QueryParams(text).multi_items()), registry=filled.registry, default_count=20)
    store = Counted(filled.store)
    await execute.run(store, filled.registry, parsed, unrestricted, key=b"k")  # type: ignore[arg-type]
    assert len(store.calls) == commands, store.calls


@pytest.mark.anyio
async def test_explain_over_http(filled: Server, client: httpx.AsyncClient) -> None:
    bundle = (await client.get("Observation?patient.family=f17&_explain=true&_count=1")).json()
    outcome = bundle["entry"][-1]
    assert outcome["search"]["mode"] == "outcome"
    explanation = json.loads(outcome["resource"]["issue"][0]["diagnostics"])
    assert explanation["plan"].startswith("1. references to Patient where ")
    assert "2. Observation where " in explanation["plan"]
    assert explanation["finds"][1]["indexes"]


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner) if isinstance(inner, (dict, list)) else iter([(key, inner)])
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)


def test_every_find_of_a_plan_is_restricted() -> None:
    pairs = [
        ("patient.name", "x"),
        ("_has:Provenance:target:agent", "y"),
        ("patient._has:Encounter:patient:status", "z"),
    ]
    query = parse.parse("Observation", pairs, registry=standard())
    restriction = Restriction((Alternative(frozenset({"only"})),))
    made = plan.compile(query, standard(), lambda kind: restriction)
    finds = [lookup for step in made.steps for lookup in step.lookups] + list(made.sources)
    assert len(finds) == 5
    assert all(("p", "only") in set(leaves(find.filter)) for find in finds)
    nothing = plan.compile(query, standard(), lambda kind: NOTHING)
    for find in [lookup for step in nothing.steps for lookup in step.lookups] + list(nothing.sources):
        assert find.filter["_id"] == {"$in": []}


@pytest.mark.parametrize("kind", sorted(RESOURCE_TYPES))
def test_every_parameter_has_an_index_and_there_are_not_too_many(kind: str) -> None:
    registry = standard()
    indexes = registry.indexes(kind)
    assert len(indexes) + 3 <= 64  # the store's two and _id
    assert len({found.name for found in indexes}) == len(indexes)
    first = {found.keys[0][0] for found in indexes}
    for parameter in registry.parameters(kind).values():
        if parameter.type == "composite":
            assert all(c.parameter.code in registry.parameters(kind) for c in parameter.components)
        elif parameter.parts:
            assert all(f"s.{part.field}" in {path.removesuffix(".k") for path in first} for part in parameter.parts)
        else:
            path = f"s.{parameter.field}"
            assert first & {path, f"{path}.lo", f"{path}.k", f"{path}.lat"}, parameter.code


def test_what_is_not_served_says_why() -> None:
    registry = standard()
    served = {p.url for kind in RESOURCE_TYPES for p in registry.parameters(kind).values()}
    assert len(served) >= 1370
    assert registry.unserved("Patient").keys() == {"_query", "age", "birthOrderBoolean", "part-agree"}
    assert registry.parameter("Patient", "age") is None


@pytest.mark.anyio
async def test_slow_searches_are_logged_without_what_was_asked(
    filled: Server, caplog: pytest.LogCaptureFixture
) -> None:
    query = parse.parse("Observation", [("patient.family", "f17"), ("code", "8462-4")], registry=filled.registry)
    await execute.run(filled.store, filled.registry, query, unrestricted, key=b"k", slow_ms=-1)
    for task in list(slow.explaining):
        await task
    told = caplog.text
    assert "slow search" in told
    assert "s.family" in told
    assert "documentsExamined" in told
    assert "indexes" in told
    assert "f17" not in told
    assert "8462-4" not in told

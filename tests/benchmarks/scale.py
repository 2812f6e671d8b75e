"""Does a search get slower as the database grows? Twenty typical queries at 10,000 and at many more Observations.

`python -m tests.benchmarks.scale [--most 1000000]`. Observations are generated (a hundred a patient, so that a patient's
record does not grow with the database) and inserted with their entries through the store's own documents; queries go
through the whole application. Printed: p50 at each size, and the ratio, which ought to be below 1.3.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import uvloop

from fhir_server.app import build_server, mounted
from fhir_server.interactions.context import Server
from fhir_server.interactions.write import stamped
from fhir_server.model.resource import dump
from fhir_server.search.index import index
from fhir_server.settings import Settings
from fhir_server.store import documents
from fhir_server.store.embedded import EmbeddedMongo
from fhir_server.store.mongo import MongoStore
from fhir_server.store.protocol import Stored

PER_PATIENT = 100
CODES = (
    *("8480-6", "8462-4", "8867-4", "8302-2", "29463-7", "39156-5", "4548-4", "1558-6", "2093-3", "2085-9"),
    *("13457-7", "2571-8", "2160-0", "3084-1", "1742-6", "1920-8", "777-3", "718-7", "6298-4", "98979-8"),
)
START = datetime(2019, 1, 1, tzinfo=UTC)
UCUM = "http://unitsofmeasure.org"

# {p}: a patient; {d}: a day in the middle. What is limited to a patient, or to a page, does not grow with the database.
QUERIES = (
    "Observation/{o}",
    "Observation?_id={o}",
    "Observation?identifier=http://example.org/lab|{o}",
    "Observation?patient={p}&code=http://loinc.org|4548-4&_sort=-date&_count=20",
    "Observation?patient={p}&code=4548-4,1558-6&_sort=-date&_count=20",
    "Observation?patient={p}&category=laboratory&_sort=-date&_count=20",
    "Observation?patient={p}&_sort=-date&_count=20",
    "Observation?patient={p}&date=ge{d}&_count=50",
    "Observation?patient={p}&code=4548-4&date=ge{d}",
    "Observation?patient={p}&code=4548-4&value-quantity=gt6",
    "Observation?subject=Patient/{p}&status=final&_count=20",
    "Observation?patient.identifier=http://example.org/mrn|{p}&code=4548-4",
    "Observation?patient.name=family{p}&_count=20",
    "Observation?patient={p}&_include=Observation:subject&_count=20",
    "Observation?code=4548-4&_count=20",
    "Observation?code=4548-4&value-quantity=gt9.5&_count=20",
    "Observation?_lastUpdated=ge{d}&_count=20",
    "Patient?_id={p}&_revinclude=Observation:subject",
    "Patient?name=family{p}",
    "Patient?_has:Observation:patient:_id={o}",
)


def observation(number: int) -> dict[str, Any]:
    chance = random.Random(number)
    code = CODES[number % len(CODES)]
    taken = START + timedelta(minutes=chance.randrange(7 * 365 * 24 * 60))
    return {
        "resourceType": "Observation",
        "id": f"o{number}",
        "identifier": [{"system": "http://example.org/lab", "value": f"o{number}"}],
        "status": "final",
        "category": [
            {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "laboratory"}]}
        ],
        "code": {"coding": [{"system": "http://loinc.org", "code": code, "display": f"analyte {code}"}]},
        "subject": {"reference": f"Patient/{number // PER_PATIENT}"},
        "effectiveDateTime": taken.isoformat().replace("+00:00", "Z"),
        "valueQuantity": {"value": round(chance.uniform(3, 10), 1), "unit": "mmol/L", "system": UCUM, "code": "mmol/L"},
    }


def patient(number: int) -> dict[str, Any]:
    return {
        "resourceType": "Patient",
        "id": str(number),
        "identifier": [{"system": "http://example.org/mrn", "value": str(number)}],
        "name": [{"family": f"Family{number}", "given": ["Given"]}],
    }


async def fill(server: Server, make: Callable[[int], dict[str, Any]], numbers: range) -> None:
    store = server.store
    assert isinstance(store, MongoStore)
    batch: list[dict[str, Any]] = []
    name = ""
    now = int(time.time() * 1000)
    for number in numbers:
        resource = make(number)
        name = resource["resourceType"]
        found = index(server.registry, resource)
        updated = now - 10_000_000 + number
        raw = dump(stamped(resource, 1, updated))
        batch.append(
            documents.current(
                Stored(name, resource["id"], 1, updated, raw, patients=found.patients, entries=found.entries)
            )
        )
        if len(batch) == 2000 or number == numbers[-1]:
            await store.collections.ensure(name)
            await store.database[name].insert_many(batch, ordered=False)
            batch = []


async def times(client: httpx.AsyncClient, size: int, rounds: int) -> Iterator[tuple[str, float]]:
    chance = random.Random(size)
    found: list[tuple[str, float]] = []
    for query in QUERIES:
        spent = []
        for turn in range(rounds):
            number = chance.randrange(size)
            url = query.format(p=number // PER_PATIENT, o=f"o{number}", d="2022-06-01")
            started = time.perf_counter()
            response = await client.get(url)
            if turn >= rounds // 5:
                spent.append(time.perf_counter() - started)
            assert response.status_code == 200, (url, response.text)
        found.append((query, statistics.median(spent) * 1000))
    return iter(found)


async def run(url: str, sizes: list[int], rounds: int) -> None:
    server = build_server(Settings(open=True, automation=False, audit=False, database="scale"), url)
    await server.store.open()
    table: dict[str, list[float]] = {query: [] for query in QUERIES}
    async with (
        mounted(server) as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://scale/fhir/", timeout=60) as client,  # type: ignore[arg-type]
    ):
        done = 0
        for size in sizes:
            started = time.monotonic()
            await fill(server, patient, range(done // PER_PATIENT, size // PER_PATIENT))
            await fill(server, observation, range(done, size))
            print(f"{size:,} Observations after {time.monotonic() - started:.0f} s", flush=True)
            done = size
            await asyncio.sleep(3)
            for query, p50 in await times(client, size, rounds):
                table[query].append(p50)
    await server.store.close()
    print(f"{'p50, ms':90}" + "".join(f"{size:>12,}" for size in sizes) + "   ratio")
    for query, row in table.items():
        print(f"{query:90}" + "".join(f"{p50:12.2f}" for p50 in row) + f"{row[-1] / row[0]:8.2f}")
    worst = max(row[-1] / row[0] for row in table.values())
    print(f"worst ratio {worst:.2f}; wanted: below 1.3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mongo = EmbeddedMongo(Path(folder), cache_mb=2048)
        try:
            uvloop.run(run(mongo.start(), [10_000, args.most], args.rounds))
        finally:
            mongo.stop()


if __name__ == "__main__":
    main()

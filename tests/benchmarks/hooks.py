"""What the hooks cost: lag under a steady load, the rate at which a burst drains, database commands for an observation.

Patients have a pressure of their own, and readings vary around it. With the whole content on, or with the rules that the
engine was first built for: the grades of blood pressure, one risk score, the follow-up and the ladder of missed readings.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pymongo.monitoring

from fhir_server.app import build_server
from fhir_server.auth.principal import Principal
from fhir_server.automation import engage
from fhir_server.interactions import write
from fhir_server.interactions.context import Context
from fhir_server.settings import Settings
from fhir_server.store.embedded import EmbeddedMongo

PATIENTS = 400
WATCHED = 40  # patients of whom a client looks for the Task itself
SEED = frozenset({"bp-grade-cn", "assess-prevent-base-10y", "hypertension-follow-up", "bp-monitoring"})
LOINC = "http://loinc.org"
UCUM = "http://unitsofmeasure.org"


def people(count: int = PATIENTS + WATCHED) -> list[dict[str, Any]]:
    """Half of them with known hypertension."""
    found: list[dict[str, Any]] = []
    for number in range(count):
        id = f"bench-{number}"
        sex = "male" if number % 2 else "female"
        found.append({"resourceType": "Patient", "id": id, "gender": sex, "birthDate": f"{1945 + number % 45}-03-01"})
        if number % 2:
            code = {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10", "code": "I10"}]}
            condition = {"resourceType": "Condition", "id": f"{id}-htn", "code": code}
            found.append({**condition, "subject": {"reference": f"Patient/{id}"}})
    return found


def reading(number: int, chance: random.Random) -> dict[str, Any]:
    """A blood pressure of patient `number`, now."""
    values = (
        ("8480-6", 108 + number * 7 % 64 + chance.randrange(-6, 7)),
        ("8462-4", 66 + number * 3 % 34 + chance.randrange(-4, 5)),
    )
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": {"coding": [{"system": LOINC, "code": "85354-9"}]},
        "subject": {"reference": f"Patient/bench-{number}"},
        "effectiveDateTime": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "component": [
            {
                "code": {"coding": [{"system": LOINC, "code": code}]},
                "valueQuantity": {"value": value, "unit": "mmHg", "system": UCUM, "code": "mm[Hg]"},
            }
            for code, value in values
        ],
    }


def only_seed(base: str) -> None:
    """Switches off every other rule; returns when the server has noticed."""
    with httpx.Client(base_url=f"{base}/", timeout=60) as client:
        bundle = client.get("PlanDefinition?_count=500&status=active").json()
        for one in (entry["resource"] for entry in bundle["entry"]):
            if one["id"] not in SEED and any(coding["code"] == "eca-rule" for coding in one["type"]["coding"]):
                patch = [{"op": "replace", "path": "/status", "value": "draft"}]
                headers = {"Content-Type": "application/json-patch+json"}
                client.patch(f"PlanDefinition/{one['id']}", json=patch, headers=headers).raise_for_status()
        while figure(client.get("$hook-status").json(), "rules") != len(SEED):
            time.sleep(0.1)


def figure(status: dict[str, Any], name: str) -> float:
    one = next(one for one in status["parameter"] if one["name"] == name)
    return float(one["valueQuantity"]["value"] if "valueQuantity" in one else one["valueInteger"])


@dataclass(frozen=True, slots=True)
class Lag:
    """Milliseconds. `acknowledged`: from the request to its answer (p50, p99). `effect`: from the acknowledgement of a
    reading to the commit of its effects, of the latest thousand, as the server measured it (p50, p99); `task`: until a
    client that asks again and again has its Task in hand (p50, worst). `rate`: readings a second."""

    acknowledged: tuple[float, float]
    effect: tuple[float, float]
    task: tuple[float, float]
    rate: float


def steady(base: str, rate: int, seconds: float) -> Lag:
    return asyncio.run(_steady(base, rate, seconds))


async def _steady(base: str, rate: int, seconds: float) -> Lag:
    chance = random.Random(1)
    warm_up, count = rate * 4, int(rate * seconds)
    acknowledged: list[float] = []
    tasks: list[float] = []
    async with httpx.AsyncClient(base_url=base + "/", timeout=60) as client, Posts(base, 48) as posts:
        await _people(client)
        (await client.get("$await-hooks?timeout=50")).raise_for_status()

        async def one(number: int, patient: int) -> None:
            started = time.perf_counter()
            location = await posts.send(json.dumps(reading(patient, chance)).encode())
            answered = time.perf_counter()
            if number < warm_up:
                return
            acknowledged.append((answered - started) * 1000)
            if patient >= PATIENTS:
                url = f"Task?focus=Observation/{location.split('/')[-3]}&_count=1"
                while not (await client.get(url)).json().get("entry"):
                    pass
                tasks.append((time.perf_counter() - answered) * 1000)

        began = time.perf_counter()
        sent: set[asyncio.Task[None]] = set()
        watched = 0
        for number in range(warm_up + count):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            patient = chance.randrange(PATIENTS)
            if number % 20 == 0:
                patient, watched = PATIENTS + 1 + 2 * (watched % (WATCHED // 2)), watched + 1
            task = asyncio.create_task(one(number, patient))
            sent.add(task)
            task.add_done_callback(sent.discard)
        await asyncio.gather(*sent)
        took = time.perf_counter() - began
        (await client.get("$await-hooks?timeout=50")).raise_for_status()
        status = (await client.get("$hook-status")).json()
    lags = figure(status, "lagMedian") * 1000, figure(status, "lagP99") * 1000
    return Lag(_spread(acknowledged), lags, (_spread(tasks)[0], max(tasks)), (warm_up + count) / took)


def _spread(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]


def burst(base: str, count: int) -> float:
    """Creates, 64 at a time: how many a second."""
    return asyncio.run(_burst(base, count))


async def _burst(base: str, count: int) -> float:
    chance = random.Random(2)
    bodies = [json.dumps(reading(chance.randrange(PATIENTS), chance)).encode() for _ in range(count)]
    async with httpx.AsyncClient(base_url=base + "/", timeout=60) as client:
        await _people(client)
    async with Posts(base, 64) as posts:
        began = time.perf_counter()
        waiting = iter(bodies)

        async def lane() -> None:
            for body in waiting:
                await posts.send(body)

        await asyncio.gather(*(lane() for _ in range(64)))
        return count / (time.perf_counter() - began)


def burst_with_effects(base: str, count: int) -> tuple[float, float]:
    """(acknowledged a second, with all that follows from them a second) of a burst to a server with hooks."""
    burst(base, 1_000)
    drain(base, 1)
    began = time.perf_counter()
    created = burst(base, count)
    drain(base, count)
    return created, count / (time.perf_counter() - began)


class Posts:
    """POSTs of Observations over connections that stay open; a client that costs little, because it shares the machine."""

    def __init__(self, base: str, connections: int) -> None:
        self._url = urlsplit(base)
        self._count = connections
        self._free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def __aenter__(self) -> Posts:
        for _ in range(self._count):
            self._free.put_nowait(await asyncio.open_connection(self._url.hostname, self._url.port))
        return self

    async def __aexit__(self, *_: object) -> None:
        for _ in range(self._count):
            _, writer = await self._free.get()
            writer.close()
            await writer.wait_closed()

    async def send(self, body: bytes) -> str:
        """The Location of what was created."""
        reader, writer = await self._free.get()
        head = (
            f"POST {self._url.path}/Observation HTTP/1.1\r\nHost: {self._url.netloc}\r\nPrefer: return=minimal\r\n"
            f"Content-Type: application/fhir+json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            writer.write(head.encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next((int(line[15:]) for line in answer.split("\r\n") if line.startswith("content-length:")), 0)
            said = await reader.readexactly(length)
        finally:
            self._free.put_nowait((reader, writer))
        if " 201 " not in answer.split("\r\n", 1)[0]:
            raise RuntimeError(f"{answer}{said.decode()}")
        return next(line[10:].strip() for line in answer.split("\r\n") if line.startswith("location: "))


def drain(base: str, count: int) -> float:
    """Events a second until the queue is empty; the workers have been started just now."""
    began = time.perf_counter()
    while True:
        answer = httpx.get(f"{base}/$await-hooks?timeout=300", timeout=400)
        if answer.status_code == 200:
            return count / (time.perf_counter() - began)


async def _people(client: httpx.AsyncClient) -> None:
    everybody = people()
    for start in range(0, len(everybody), 200):
        entries = [
            {"resource": one, "request": {"method": "PUT", "url": f"{one['resourceType']}/{one['id']}"}}
            for one in everybody[start : start + 200]
        ]
        answer = await client.post("", json={"resourceType": "Bundle", "type": "transaction", "entry": entries})
        answer.raise_for_status()


class _Counter(pymongo.monitoring.CommandListener):
    """Commands sent to the database, by name."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.on = False

    def started(self, event: pymongo.monitoring.CommandStartedEvent) -> None:
        if self.on:
            self.seen[event.command_name] += 1

    def succeeded(self, event: pymongo.monitoring.CommandSucceededEvent) -> None:
        pass

    def failed(self, event: pymongo.monitoring.CommandFailedEvent) -> None:
        pass


def commands(folder: Path) -> dict[str, float]:
    """Commands beyond the create itself: for one reading of a patient seen before, and in a batch of 64 patients."""
    counter = _Counter()
    pymongo.monitoring.register(counter)
    mongo = EmbeddedMongo(folder, cache_mb=256)
    try:
        return asyncio.run(_commands(mongo.start(), counter))
    finally:
        mongo.stop()


async def _commands(url: str, counter: _Counter) -> dict[str, float]:
    server = build_server(Settings(open=True, database="commands"), url)
    await server.store.open()
    worker = await engage(server)
    context = Context(Principal.open(), "http://bench/fhir")
    chance = random.Random(3)
    for one in people(130):
        await write.update(server, context, one["resourceType"], one["id"], one)

    async def post(numbers: range) -> int:
        counter.seen.clear()
        await asyncio.gather(
            *(write.create(server, context, "Observation", _exact(number, chance)) for number in numbers)
        )
        return await _settled(server, worker, counter)

    await post(range(65))
    counter.on = True
    found = {"one": float(await post(range(1, 2))), "batch": await post(range(1, 65)) / 64}
    counter.on = False
    for close in list(server.closing):
        await close()
    await server.store.close()
    return found


async def _settled(server: Any, worker: Any, counter: _Counter) -> int:
    quiet = 0
    while quiet < 20:  # the loops that look every second or two are not part of it
        await asyncio.sleep(0.01)
        quiet = quiet + 1 if worker.idle else 0
    return sum(count for name, count in counter.seen.items() if name not in ("getMore", "ping"))


def _exact(number: int, chance: random.Random) -> dict[str, Any]:
    found = reading(number, chance)
    for component in found["component"]:
        component["valueQuantity"]["value"] = Decimal(component["valueQuantity"]["value"])
    return found

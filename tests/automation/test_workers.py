"""Several workers share the patients and come to the same result as one."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest

from fhir_server.app import build_server
from fhir_server.auth.principal import Principal
from fhir_server.automation import content
from fhir_server.automation.worker import Worker
from fhir_server.interactions import write
from fhir_server.interactions.context import Context, Server
from fhir_server.model.resource import load
from fhir_server.settings import Settings
from tests.automation.conftest import START
from tests.automation.test_properties import OPEN, observation

pytestmark = pytest.mark.anyio

PATIENTS = 6
EACH = 8
APART = ("meta", "authoredOn", "lastModified", "period", "recorded", "extension", "entity", "policy")
_databases = itertools.count()


async def server_on(url: str, database: str) -> Server:
    server = build_server(Settings(open=True, database=database, automation=False), url, now=lambda: START)
    await server.store.open()
    return server


async def result(server: Server) -> dict[str, Any]:
    """Everything that was derived, but for versions and times of writing."""
    found: dict[str, Any] = {}
    for kind in ("Task", "RiskAssessment", "Flag", "CommunicationRequest", "Observation", "Provenance", "Patient"):
        async for stored in server.store.scan(kind):
            resource = load(stored.raw)
            known = {name: value for name, value in resource.items() if name not in APART}
            known["tags"] = sorted(tag["code"] for tag in resource["meta"].get("tag", ()))
            found[f"{kind}/{stored.id}"] = known
    return found


async def run(url: str, workers: int) -> dict[str, Any]:
    database = f"workers{next(_databases)}"
    client = await server_on(url, database)
    await content.store(client)
    others = [await server_on(url, database) for _ in range(workers)]
    engines = [Worker(server, poll=0.2, lease=600) for server in others]
    for engine in engines:
        await engine.open()
        await engine.settle()
    for engine in engines:
        engine.start()
    context = Context(Principal.open(), "http://test/fhir")

    async def fill(number: int) -> None:
        patient = {"resourceType": "Patient", "id": f"p{number}", "gender": "male", "birthDate": "1961-03-01"}
        await write.update(client, context, "Patient", f"p{number}", patient)
        chance = random.Random(number)
        for index in range(EACH):
            kind = chance.choice(["bp", "bp", "glucose", "creatinine", "cholesterol"])
            one = observation(index, kind, chance.randrange(100), chance.randrange(20))
            one.update(id=f"p{number}-{index}", subject={"reference": f"Patient/p{number}"})
            await write.update(client, context, "Observation", one["id"], one)
            if chance.random() < 0.2:
                await write.update(client, context, "Observation", one["id"], {**one, "status": "entered-in-error"})

    try:
        await asyncio.gather(*(fill(number) for number in range(PATIENTS)))
        async with asyncio.timeout(60):
            while (await engines[0].outbox.depth())[0]:  # noqa: ASYNC110 - the queue is in the database
                await asyncio.sleep(0.02)
        return await result(client)
    finally:
        for engine in engines:
            await engine.stop()
        await client.store.client.drop_database(database)  # type: ignore[attr-defined]
        for server in (client, *others):
            await server.store.close()


async def test_two_and_four_workers_do_what_one_does(mongo_url: str) -> None:
    one = await run(mongo_url, 1)
    assert len([key for key in one if key.startswith("Task/")]) > PATIENTS
    assert any(value.get("status") in OPEN for value in one.values())
    for workers in (2, 4):
        many = await run(mongo_url, workers)
        assert many.keys() == one.keys()
        assert many == one

"""Several workers share the patients and come to the same result as one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Iterator, Sequence
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
from fhir_server.store.outbox import Taken
from fhir_server.store.protocol import Changed
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


def versions(number: int) -> Iterator[dict[str, Any]]:
    """What is written about one patient, in order: results, some of which are taken back."""
    yield {"resourceType": "Patient", "id": f"p{number}", "gender": "male", "birthDate": "1961-03-01"}
    chance = random.Random(number)
    for index in range(EACH):
        kind = chance.choice(["bp", "bp", "glucose", "creatinine", "cholesterol"])
        one = observation(index, kind, chance.randrange(100), chance.randrange(20))
        one.update(id=f"p{number}-{index}", subject={"reference": f"Patient/p{number}"})
        yield one
        if chance.random() < 0.2:
            yield {**one, "status": "entered-in-error"}


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
        for resource in versions(number):
            await write.update(client, context, resource["resourceType"], resource["id"], resource)

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


class Interrupted(Worker):
    """A worker that loses its memory now and then, and of whom others get ahead while it commits."""

    chance = random.Random(3)
    meanwhile: Any = None

    async def work(self, patients: Sequence[str]) -> None:
        if self.chance.random() < 0.7:
            self.forget(patients)
        with contextlib.suppress(Changed, Taken):  # overtaken twice: another time, as in `_lane`
            await super().work(patients)

    async def _commit(self, results: Any) -> None:
        for _ in range(self.chance.choice([0, 2, 4])):
            await self.meanwhile([one.entry.patient for one in results])
        await super()._commit(results)


async def stepped(url: str, kind: type[Worker], patients: int) -> dict[str, Any]:
    """One worker, stepped by hand: a batch after every few writes."""
    database = f"workers{next(_databases)}"
    client, server = await server_on(url, database), await server_on(url, database)
    await content.store(client)
    engine = kind(server, lease=4_000)
    await engine.open()
    await engine.settle()
    context = Context(Principal.open(), "http://test/fhir")
    waiting = {f"p{number}": list(versions(number)) for number in range(patients)}
    chance = random.Random(5)

    async def write_one(of: Sequence[str]) -> str:
        patient = chance.choice(of)
        if waiting[patient]:
            resource = waiting[patient].pop(0)
            await write.update(client, context, resource["resourceType"], resource["id"], resource)
        return patient

    engine.meanwhile = write_one  # type: ignore[attr-defined]
    try:
        while any(waiting.values()):
            patient = await write_one([patient for patient, left in waiting.items() if left])
            if kind is Interrupted and chance.random() < 0.4:
                await engine.work([patient])
        await engine.settle()
        return await result(client)
    finally:
        await engine.stop()
        await client.store.client.drop_database(database)  # type: ignore[attr-defined]
        await client.store.close()
        await server.store.close()


async def test_a_worker_that_is_interrupted_does_what_one_does_undisturbed(mongo_url: str) -> None:
    orderly = await stepped(mongo_url, Worker, 24)
    disturbed = await stepped(mongo_url, Interrupted, 24)
    assert disturbed.keys() == orderly.keys()
    assert disturbed == orderly

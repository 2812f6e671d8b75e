"""The engine on a real database, stepped by hand: nothing runs, and no time passes, until a test says so."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest

from fhir_server.app import build_server, mounted
from fhir_server.auth.principal import Principal
from fhir_server.automation import content, worker_of
from fhir_server.automation.tags import codes
from fhir_server.automation.worker import Worker
from fhir_server.interactions import write
from fhir_server.interactions.context import Context, Server
from fhir_server.model.resource import Resource, load
from fhir_server.settings import Settings

BASE = "http://test/fhir"
LOINC = "http://loinc.org"
START = datetime(2026, 6, 1, 2, 0, tzinfo=UTC)
_databases = itertools.count()


class Still:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.moment = START

    def __call__(self) -> datetime:
        return self.moment

    def advance(self, **span: float) -> None:
        self.moment += timedelta(**span)


class Hooks:
    """What a test does to the server and asks of it. Each test takes patients of its own."""

    def __init__(self, server: Server, http: httpx.AsyncClient, clock: Still) -> None:
        self.server, self.http, self.clock = server, http, clock
        self.context = Context(Principal.open(), BASE)
        self._ids = itertools.count(1)

    @property
    def worker(self) -> Worker:
        return worker_of(self.server)

    def now(self, **span: float) -> str:
        return (self.clock() + timedelta(**span)).isoformat()

    async def put(self, resource: Resource) -> Resource:
        written = await write.update(self.server, self.context, resource["resourceType"], resource["id"], resource)
        assert written.stored is not None
        return load(written.stored.raw)

    async def patient(self, *, sex: str = "male", birth: str = "1966-01-01", **more: Any) -> str:
        id = f"p{next(self._ids)}"
        await self.put({"resourceType": "Patient", "id": id, "gender": sex, "birthDate": birth, **more})
        return id

    async def bp(self, patient: str, text: str, *, id: str = "", at: str = "", **more: Any) -> str:
        systolic, diastolic = text.split("/")
        parts = (("8480-6", systolic), ("8462-4", diastolic))
        component = [{"code": coded(code), "valueQuantity": quantity(value, "mm[Hg]")} for code, value in parts]
        return await self.observe(patient, "85354-9", id=id, at=at, component=component, **more)

    async def lab(self, patient: str, code: str, value: str, unit: str, **more: Any) -> str:
        return await self.observe(patient, code, valueQuantity=quantity(value, unit), **more)

    async def observe(self, patient: str, code: str, *, id: str = "", at: str = "", **fields: Any) -> str:
        id = id or f"o{next(self._ids)}"
        await self.put(
            {
                "resourceType": "Observation",
                "id": id,
                "status": "final",
                "code": coded(code),
                "subject": {"reference": f"Patient/{patient}"},
                "effectiveDateTime": at or self.now(),
                **fields,
            }
        )
        return id

    async def condition(self, patient: str, code: str) -> str:
        id = f"c{next(self._ids)}"
        subject = {"reference": f"Patient/{patient}"}
        concept = {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10", "code": code}]}
        await self.put({"resourceType": "Condition", "id": id, "subject": subject, "code": concept})
        return id

    async def change(self, resource_type: str, id: str, **fields: Any) -> Resource:
        found = await self.get(resource_type, id)
        assert found is not None
        return await self.put({**found, **fields})

    async def delete(self, resource_type: str, id: str) -> None:
        await write.delete(self.server, self.context, resource_type, id)

    async def get(self, resource_type: str, id: str) -> Resource | None:
        stored = await self.server.store.read(resource_type, id)
        return None if stored is None or stored.deleted else load(stored.raw)

    async def settle(self) -> None:
        await self.worker.settle()

    async def pass_time(self, **span: float) -> None:
        """Time passes; what is due by then fires, and is dealt with."""
        self.clock.advance(**span)
        while await self.worker.tick():
            await self.settle()

    async def all(self, resource_type: str, patient: str) -> list[Resource]:
        mine = {"s.subject": f"Patient/{patient}"} if resource_type == "Task" else {"p": patient}
        return [load(stored.raw) async for stored in self.server.store.scan(resource_type, filter=mine)]

    async def provenance(self, reference: str) -> list[Resource]:
        """Of one derived resource."""
        return [
            load(stored.raw) async for stored in self.server.store.scan("Provenance", filter={"s.target": reference})
        ]

    async def tasks(self, patient: str, activity: str = "", *, open_only: bool = True) -> list[Resource]:
        found = await self.all("Task", patient)
        return [
            task
            for task in found
            if (not activity or f"/{activity}|" in task.get("instantiatesUri", ""))
            and (not open_only or task["status"] not in ("cancelled", "completed", "rejected", "failed"))
        ]

    async def tags(self, patient: str) -> frozenset[str]:
        return codes(await self.get("Patient", patient))

    async def operation(self, path: str, *, post: dict[str, Any] | None = None, expect: int = 200) -> Any:
        if post is None:
            answer = await self.http.get(path)
        else:
            parameter = [{"name": name, **value} for name, value in post.items()]
            answer = await self.http.post(path, json={"resourceType": "Parameters", "parameter": parameter})
        assert answer.status_code == expect, answer.text
        return answer.json(parse_float=Decimal)

    async def rule(self, plan: Resource) -> None:
        """Adds a rule over the API."""
        answer = await self.http.put(f"PlanDefinition/{plan['id']}", json=plan)
        assert answer.status_code in (200, 201), answer.text
        await self.settle()
        await self.worker.refresh()


def coded(code: str) -> dict[str, Any]:
    return {"coding": [{"system": LOINC, "code": code}]}


def quantity(value: str, unit: str) -> dict[str, Any]:
    return {"value": Decimal(value), "unit": unit, "system": "http://unitsofmeasure.org", "code": unit}


def parts(parameters: Any, name: str) -> list[Any]:
    """The values (or parts) of Parameters called `name`."""
    found = [one for one in parameters["parameter"] if one["name"] == name]
    return [one.get("part") or next(v for k, v in one.items() if k.startswith("value")) for one in found]


@pytest.fixture(scope="module")
async def hooks(mongo_url: str, anyio_backend: Any) -> AsyncIterator[Hooks]:
    clock = Still()
    settings = Settings(open=True, database=f"hooks{next(_databases)}", automation=False)
    server = build_server(settings, mongo_url, now=clock)
    await server.store.open()
    await content.store(server)
    async with (
        mounted(server) as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE + "/") as http,
    ):
        made = Hooks(server, http, clock)
        await made.settle()
        yield made
    await server.store.client.drop_database(settings.database)  # type: ignore[attr-defined]
    await server.store.close()


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}

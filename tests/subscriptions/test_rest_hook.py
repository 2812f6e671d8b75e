"""Subscriptions over HTTP: what is accepted, what is told to a real receiver, and what no longer may be."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from fhir_server.app import build_server, mounted
from fhir_server.automation import delivery
from fhir_server.interactions.context import Server
from fhir_server.settings import Settings

pytestmark = pytest.mark.anyio
_databases = itertools.count()


@dataclass
class Receiver:
    """A real HTTP server that writes down what it is told."""

    url: str = ""
    status: int = 200
    heard: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                method, path, _ = line.decode().split()
                headers: dict[str, str] = {}
                while (text := (await reader.readline()).decode().strip()):
                    name, _, value = text.partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.heard.append((method, path, headers, body))
                writer.write(f"HTTP/1.1 {self.status} x\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
        finally:
            writer.close()

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(15):
            while len(self.heard) < count:  # noqa: ASYNC110 - the other side is another task
                await asyncio.sleep(0.02)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    found = Receiver()
    listening = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/hear"
    yield found
    listening.close()


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="module")
async def http(mongo_url: str, anyio_backend: Any) -> AsyncIterator[httpx.AsyncClient]:
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(delivery, "ACTIVE_AFTER", 0.0)
    monkeypatch.setattr(delivery, "LOOK", 0.05)
    monkeypatch.setattr(delivery, "FIRST_PAUSE", 0.1)
    settings = Settings(open=True, database=f"subscriptions{next(_databases)}")
    server: Server = build_server(settings, mongo_url)
    await server.store.open()
    async with (
        mounted(server) as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test/fhir/") as client,
    ):
        yield client
    await server.store.client.drop_database(settings.database)  # type: ignore[attr-defined]
    await server.store.close()
    monkeypatch.undo()


def subscription(criteria: str, endpoint: str, **channel: Any) -> dict[str, Any]:
    return {
        "resourceType": "Subscription", "status": "requested", "reason": "test", "criteria": criteria,
        "channel": {"type": "rest-hook", "endpoint": endpoint} | channel,
    }  # fmt: skip


def pressure(patient: str, systolic: int) -> dict[str, Any]:
    def coded(code: str) -> dict[str, Any]:
        return {"coding": [{"system": "http://loinc.org", "code": code}]}

    def part(code: str, value: int) -> dict[str, Any]:
        quantity = {"value": value, "unit": "mm[Hg]", "system": "http://unitsofmeasure.org", "code": "mm[Hg]"}
        return {"code": coded(code), "valueQuantity": quantity}

    return {
        "resourceType": "Observation", "status": "final", "code": coded("85354-9"),
        "subject": {"reference": f"Patient/{patient}"}, "effectiveDateTime": delivery.instant(delivery.time.time_ns() // 1_000_000),
        "component": [part("8480-6", systolic), part("8462-4", 95)],
    }  # fmt: skip


async def active(http: httpx.AsyncClient, body: dict[str, Any]) -> str:
    answer = await http.post("Subscription", json=body)
    assert answer.status_code == 201, answer.text
    async with asyncio.timeout(10):
        while True:
            found = (await http.get(f"Subscription/{answer.json()['id']}")).json()
            if found["status"] != "requested":
                assert found["status"] == "active", found
                return str(found["id"])
            await asyncio.sleep(0.02)


REFUSED = [
    ("chain", "Observation?subject.name=ann", {}, "resource alone"),
    ("has", "Patient?_has:Observation:patient:code=x", {}, "resource alone"),
    ("include", "Observation?_include=Observation:subject", {}, "resource alone"),
    ("unknown", "Observation?colour=red", {}, "colour"),
    ("type", "Colour?x=y", {}, "resource type"),
    ("value set", "Observation?code:in=http://example.org/vs", {}, "more than the resource"),
    ("channel", "Observation", {"type": "email"}, "rest-hook"),
    ("endpoint", "Observation", {"endpoint": "file:///etc/passwd"}, "must be"),
    ("payload", "Observation", {"payload": "text/html"}, "payload"),
    ("header", "Observation", {"header": ["Host: other"]}, "header"),
    ("header line", "Observation", {"header": ["X: a\r\nY: b"]}, "header"),
]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row[0])
async def test_what_cannot_be_served_is_refused(http: httpx.AsyncClient, row: Any) -> None:
    _, criteria, channel, word = row
    answer = await http.post("Subscription", json={**subscription(criteria, "http://127.0.0.1/x"), "channel": {"type": "rest-hook", "endpoint": "http://127.0.0.1/x"} | channel})
    assert answer.status_code in (400, 422), answer.text
    assert word in answer.text


async def test_a_receiver_hears_of_what_matches_and_of_what_rules_made(
    http: httpx.AsyncClient, receiver: Receiver
) -> None:
    await http.put("Patient/p1", json={"resourceType": "Patient", "id": "p1", "gender": "male", "birthDate": "1960-01-01"})
    ping = await active(http, subscription("Observation?code=85354-9", receiver.url, header=["Authorization: Bearer x"]))
    await active(http, subscription("Task?patient=Patient/p1", receiver.url, payload="application/fhir+json"))
    shown = (await http.get(f"Subscription/{ping}")).json()
    assert shown["channel"]["header"] == ["Authorization: ***"]
    await http.post("Observation", json=pressure("p1", 185))
    async with asyncio.timeout(15):
        while not {"POST", "PUT"} <= {method for method, *_ in receiver.heard}:
            await asyncio.sleep(0.02)
    posts = [one for one in receiver.heard if one[0] == "POST"]
    assert [(path, headers["authorization"], body) for _, path, headers, body in posts] == [("/hear", "Bearer x", b"")]
    (_, path, headers, body) = next(one for one in receiver.heard if one[0] == "PUT")
    assert path.startswith("/hear/Task/") and b'"Task"' in body and headers["x-event-number"] == "1"


async def test_an_endpoint_that_fails_hears_it_again_under_the_same_number(
    http: httpx.AsyncClient, receiver: Receiver
) -> None:
    receiver.status = 500
    await active(http, subscription("Patient", receiver.url))
    for number in range(3):
        await http.put(f"Patient/q{number}", json={"resourceType": "Patient", "id": f"q{number}"})
    await receiver.wait(2)
    receiver.status = 200
    async with asyncio.timeout(15):
        while len({headers["x-event-id"] for _, _, headers, _ in receiver.heard}) < 3:
            await asyncio.sleep(0.02)
    numbers = [int(headers["x-event-number"]) for _, _, headers, _ in receiver.heard]
    assert numbers == sorted(numbers) and set(numbers) == {1, 2, 3} and numbers.count(1) > 1

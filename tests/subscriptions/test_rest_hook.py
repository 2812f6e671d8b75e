"""Subscriptions over HTTP: what is accepted, what is told to a real receiver, and what no longer may be."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from fhir_server.app import build_server, mounted
from fhir_server.automation import SUBSCRIBED, delivery
from fhir_server.interactions.context import Server
from fhir_server.settings import Settings
from tests.subscriptions.conftest import Receiver, active, subscription

pytestmark = pytest.mark.anyio
_databases = itertools.count()


@pytest.fixture(scope="module")
async def http(mongo_url: str, anyio_backend: Any, impatient: None) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(open=True, database=f"subscriptions{next(_databases)}")
    server: Server = build_server(settings, mongo_url)
    await server.store.open()
    async with (
        mounted(server) as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test/fhir/") as client,
    ):
        client.server = server  # type: ignore[attr-defined]
        yield client
    await server.store.client.drop_database(settings.database)  # type: ignore[attr-defined]
    await server.store.close()


def pressure(patient: str, systolic: int) -> dict[str, Any]:
    def coded(code: str) -> dict[str, Any]:
        return {"coding": [{"system": "http://loinc.org", "code": code}]}

    def part(code: str, value: int) -> dict[str, Any]:
        quantity = {"value": value, "unit": "mm[Hg]", "system": "http://unitsofmeasure.org", "code": "mm[Hg]"}
        return {"code": coded(code), "valueQuantity": quantity}

    return {
        "resourceType": "Observation", "status": "final", "code": coded("85354-9"),
        "subject": {"reference": f"Patient/{patient}"}, "effectiveDateTime": datetime.now(UTC).isoformat(),
        "component": [part("8480-6", systolic), part("8462-4", 95)],
    }  # fmt: skip


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
    answer = await http.post(
        "Subscription",
        json={
            **subscription(criteria, "http://127.0.0.1/x"),
            "channel": {"type": "rest-hook", "endpoint": "http://127.0.0.1/x"} | channel,
        },
    )
    assert answer.status_code in (400, 422), answer.text
    assert word in answer.text


async def test_a_receiver_hears_of_what_matches_and_of_what_rules_made(
    http: httpx.AsyncClient, receiver: Receiver
) -> None:
    await http.put(
        "Patient/p1", json={"resourceType": "Patient", "id": "p1", "gender": "male", "birthDate": "1960-01-01"}
    )
    ping = await active(
        http, subscription("Observation?code=85354-9", receiver.url, header=["Authorization: Bearer x"])
    )
    await active(http, subscription("Task?patient=Patient/p1", receiver.url, payload="application/fhir+json"))
    shown = (await http.get(f"Subscription/{ping}")).json()
    assert shown["channel"]["header"] == ["Authorization: ***"]
    await http.post("Observation", json=pressure("p1", 185))
    async with asyncio.timeout(15):
        while not {"POST", "PUT"} <= {method for method, *_ in receiver.heard}:  # noqa: ASYNC110 - the other side is another task
            await asyncio.sleep(0.02)
    posts = [one for one in receiver.heard if one[0] == "POST"]
    assert {(path, headers["authorization"], body) for _, path, headers, body in posts} == {("/hear", "Bearer x", b"")}
    ids = [headers["x-event-id"] for _, _, headers, _ in posts]
    assert len(ids) == len(set(ids)) <= 2, "the reading, and the version in which a rule says how to read it"
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
        while len({headers["x-event-id"] for _, _, headers, _ in receiver.heard}) < 3:  # noqa: ASYNC110 - the other side is another task
            await asyncio.sleep(0.02)
    numbers = [int(headers["x-event-number"]) for _, _, headers, _ in receiver.heard]
    assert numbers == sorted(numbers) and set(numbers) == {1, 2, 3} and numbers.count(1) > 1


async def test_a_slow_endpoint_is_told_once_though_others_could(
    http: httpx.AsyncClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is renewed while the endpoint takes its time: no other process takes it for left."""
    monkeypatch.setattr(delivery, "LEASE", 300)
    server: Server = http.server  # type: ignore[attr-defined]
    other = delivery.Deliveries(server, server.rooms[SUBSCRIBED], None, None)
    other.start()
    try:
        await active(http, subscription("Basic", receiver.url, payload="application/fhir+json"))
        receiver.pause = 1.5
        assert (
            await http.put("Basic/slow", json={"resourceType": "Basic", "id": "slow", "code": {"text": "x"}})
        ).is_success
        await receiver.wait(1)
        await asyncio.sleep(2.5)
        assert len(receiver.heard) == 1
    finally:
        await other.close()

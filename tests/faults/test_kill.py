"""What was answered 2xx survives kill -9 of the server or of mongod, and one data directory has one owner.

Writers of several kinds (creates, updates, transactions of two halves, conditional creates) run against a real server while
it, or its mongod, is killed; afterwards every acknowledged write is there, readable and searchable, and no half of a
transaction stands alone.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.serving import Serving, is_running, serving, wait_until_gone

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

SYSTEM = "http://example.org/kill"


def basic(number: str, text: str, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Basic",
        "code": {"text": text},
        "identifier": [{"system": SYSTEM, "value": number}],
        **more,
    }


class Writers:
    """Write until the server goes away; remember what was acknowledged."""

    def __init__(self) -> None:
        self.created: list[str] = []  # Basic/id
        self.counter = 0  # the last acknowledged state of Basic/counter
        self.sent = 0
        self.halves: list[str] = []
        self.conditional: dict[str, str] = {}
        self.stop = asyncio.Event()

    async def run(self, base: str, seed: int) -> None:
        async with httpx.AsyncClient(base_url=base + "/", timeout=10) as client:
            jobs = [self._creates(client), self._creates(client), self._counts(client)]
            jobs += [self._halves(client, seed), self._conditionals(client, seed)]
            await asyncio.gather(*jobs)

    async def _ask(self, client: httpx.AsyncClient, method: str, url: str, **options: Any) -> httpx.Response | None:
        """None where the server went away before it answered: the write may or may not have happened."""
        try:
            response = await client.request(method, url, **options)
        except httpx.TransportError:
            if not self.stop.is_set():
                await asyncio.sleep(0.05)
            return None
        assert response.status_code in (200, 201, 503), response.text
        return response if response.status_code != 503 else None

    async def _creates(self, client: httpx.AsyncClient) -> None:
        while not self.stop.is_set():
            response = await self._ask(client, "POST", "Basic", json=basic("create", "create"))
            if response is not None:
                self.created.append(response.json()["id"])

    async def _counts(self, client: httpx.AsyncClient) -> None:
        while not self.stop.is_set():
            self.sent += 1
            body = basic("counter", str(self.sent), id="counter")
            if await self._ask(client, "PUT", "Basic/counter", json=body) is not None:
                self.counter = self.sent

    async def _halves(self, client: httpx.AsyncClient, seed: int) -> None:
        number = 0
        while not self.stop.is_set():
            number += 1
            name = f"half-{seed}-{number}"
            entries = [
                {"resource": basic(name, str(side)), "request": {"method": "POST", "url": "Basic"}} for side in (1, 2)
            ]
            bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
            if await self._ask(client, "POST", "", json=bundle) is not None:
                self.halves.append(name)

    async def _conditionals(self, client: httpx.AsyncClient, seed: int) -> None:
        number = 0
        while not self.stop.is_set():
            number += 1
            name = f"conditional-{seed}-{number // 2}"  # each is asked for twice
            headers = {"if-none-exist": f"identifier={SYSTEM}|{name}"}
            response = await self._ask(client, "POST", "Basic", json=basic(name, name), headers=headers)
            if response is not None:
                id = response.json()["id"]
                assert self.conditional.setdefault(name, id) == id


async def total(client: httpx.AsyncClient, number: str) -> int:
    response = await client.get(f"Basic?identifier={SYSTEM}|{number}&_summary=count")
    found: int = response.json()["total"]
    return found


async def check(base: str, writers: Writers) -> None:
    async with httpx.AsyncClient(base_url=base + "/", timeout=30) as client:
        for id in writers.created[-200:]:
            assert (await client.get(f"Basic/{id}")).status_code == 200, f"Basic/{id} was acknowledged and is lost"
        assert await total(client, "create") >= len(writers.created)
        counter = await client.get("Basic/counter")
        assert writers.counter <= int(counter.json()["code"]["text"]) <= writers.sent
        for name in writers.halves[-50:]:
            assert await total(client, name) == 2
        bundle = (await client.get("Basic?_count=1000&_elements=identifier&_sort=-_lastUpdated")).json()
        names = [one["resource"]["identifier"][0]["value"] for one in bundle.get("entry", ())]
        for name in {name for name in names if name.startswith("half-")}:
            assert await total(client, name) == 2, f"{name}: half of a transaction is there without the other"
        for name, id in writers.conditional.items():
            assert await total(client, name) == 1
            assert (await client.get(f"Basic/{id}")).status_code == 200


async def one_round(data_dir: Path, seed: int, victim: str) -> None:
    chance = random.Random(seed)
    server = Serving(data_dir)
    writers = Writers()
    running = asyncio.create_task(writers.run(server.base, seed))
    try:
        await asyncio.sleep(0.5 + chance.random())
        if victim == "server":
            mongod = server.mongod()
            server.kill()
            await asyncio.sleep(0.05)
            writers.stop.set()
            await running
            server = Serving(data_dir)  # takes the directory over from the dead server, whatever its mongod does
            assert server.mongod() != mongod
            assert not is_running(mongod)
        else:
            os.kill(server.mongod(), signal.SIGKILL)
            before = len(writers.created)
            for _ in range(200):  # the server starts mongod again by itself, and writers go on
                await asyncio.sleep(0.05)
                if len(writers.created) > before + 20:
                    break
            assert len(writers.created) > before + 20, "the server did not come back after mongod was killed"
            writers.stop.set()
            await running
        assert writers.created
        assert writers.counter
        await check(server.base, writers)
    finally:
        writers.stop.set()
        mongod = server.mongod()
        assert server.stop() == 0
        wait_until_gone(mongod)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("victim", ["server", "mongod"])
async def test_acknowledged_writes_survive_a_kill(tmp_path: Path, victim: str) -> None:
    await one_round(tmp_path, 1, victim)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("victim", ["server", "mongod"])
async def test_acknowledged_writes_survive_twenty_kills(tmp_path: Path, victim: str) -> None:
    for seed in range(20):
        await one_round(tmp_path, seed, victim)


async def test_a_second_server_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        with pytest.raises(AssertionError, match="is in use by another fhir-server"):
            Serving(tmp_path)
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{server.base}/metadata")).status_code == 200


def test_workers_end_though_their_parent_and_the_database_are_gone(tmp_path: Path) -> None:
    """Nothing waits for a database that will not come back."""
    with serving(tmp_path, "--workers", "2") as server:
        workers, mongod = server.workers(), server.mongod()
        assert len(workers) == 2
        server.process.send_signal(signal.SIGKILL)
        os.kill(mongod, signal.SIGKILL)
        for worker in workers:
            wait_until_gone(worker, 25)

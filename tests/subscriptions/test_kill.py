"""At least once under kill -9: every version that matches is told, whatever is killed, and under one number."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import httpx
import pytest

from tests.faults.serving import Serving
from tests.subscriptions.conftest import Receiver, subscription

pytestmark = [pytest.mark.anyio, pytest.mark.faults]
ROUNDS, EACH = 2, 40


async def until_active(base: str, id: str) -> None:
    async with httpx.AsyncClient(timeout=10) as client, asyncio.timeout(30):
        while (await client.get(f"{base}/Subscription/{id}")).json()["status"] != "active":  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def put(server: list[Serving], number: int) -> None:
    """Repeated until it is acknowledged."""
    body = {"resourceType": "Basic", "id": f"b{number}", "code": {"text": "x"}}
    async with asyncio.timeout(60):
        while True:
            try:
                async with httpx.AsyncClient(timeout=10) as client:
                    answer = await client.put(f"{server[0].base}/Basic/b{number}", json=body)
            except (httpx.TransportError, AttributeError):  # anyio's, where a connection dies as it is made
                await asyncio.sleep(0.05)
                continue
            if answer.status_code in (200, 201):
                return
            assert answer.status_code in (409, 503), answer.text
            await asyncio.sleep(0.05)


@pytest.mark.timeout(150)
async def test_nothing_that_matches_is_missed_under_kills(tmp_path: Path, receiver: Receiver) -> None:
    server = [Serving(tmp_path)]
    chance = random.Random(3)
    try:
        async with httpx.AsyncClient(timeout=10) as client:
            made = {**subscription("Basic", receiver.url, payload="application/fhir+json"), "id": "s"}
            assert (await client.put(f"{server[0].base}/Subscription/s", json=made)).status_code == 201
        await until_active(server[0].base, "s")
        for turn in range(ROUNDS):
            writing = asyncio.gather(*(put(server, turn * EACH + number) for number in range(EACH)))
            await asyncio.sleep(chance.random() * 0.3)
            if turn % 2:
                os.kill(server[0].mongod(), signal.SIGKILL)  # the server starts it again
            else:
                await asyncio.to_thread(server[0].kill)
                server[0] = await asyncio.to_thread(Serving, tmp_path)
            await writing
        wanted = {f"b{number}" for number in range(ROUNDS * EACH)}
        async with asyncio.timeout(90):
            while {path.rpartition("/")[2] for _, path, *_ in receiver.heard} != wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    finally:
        server[0].stop()
    check_numbers(receiver, len(wanted))


@pytest.mark.timeout(120)
async def test_two_processes_tell_as_one_and_one_goes_on_for_the_other(tmp_path: Path, receiver: Receiver) -> None:
    """Each connection may reach either; one of them is killed while it tells."""
    server = [Serving(tmp_path, "--workers", "2")]
    try:
        async with httpx.AsyncClient(timeout=10) as client:
            made = {**subscription("Basic", receiver.url, payload="application/fhir+json"), "id": "s"}
            assert (await client.put(f"{server[0].base}/Subscription/s", json=made)).status_code == 201
        await until_active(server[0].base, "s")
        workers = server[0].workers()
        assert len(workers) == 2
        for turn, victim in enumerate([None, *workers]):
            writing = asyncio.gather(*(put(server, turn * EACH + number) for number in range(EACH)))
            await receiver.wait(turn * EACH + EACH // 4)
            if victim is not None:
                os.kill(victim, signal.SIGKILL)
            await writing
        wanted = {f"b{number}" for number in range(3 * EACH)}
        async with asyncio.timeout(60):
            while {path.rpartition("/")[2] for _, path, *_ in receiver.heard} != wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert set(server[0].workers()).isdisjoint(workers)
    finally:
        server[0].stop()
    check_numbers(receiver, len(wanted))


def check_numbers(receiver: Receiver, count: int) -> None:
    numbers: dict[str, set[str]] = {}
    for _, path, headers, _ in receiver.heard:
        numbers.setdefault(path, set()).add(headers["x-event-number"])
    assert all(len(found) == 1 for found in numbers.values()), "a repetition has the number it had"
    assert len({number for found in numbers.values() for number in found}) == count

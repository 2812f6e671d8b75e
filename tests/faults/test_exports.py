"""Every process answers for every export, and an export outlives the process that does it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.export.asking import kick_off
from tests.faults.serving import is_running, serving

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

COUNT = 3000


async def ask(method: str, url: str) -> httpx.Response:
    """On a connection of its own, which either worker may get."""
    while True:
        with contextlib.suppress(httpx.TransportError):
            async with httpx.AsyncClient(timeout=20) as client:
                return await client.request(method, url)
        await asyncio.sleep(0.1)


@pytest.mark.timeout(120)
async def test_a_job_is_done_though_its_process_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2") as server:
        async with httpx.AsyncClient(base_url=server.base + "/", timeout=60) as client:
            entries: list[dict[str, Any]] = [
                {
                    "resource": {"resourceType": "Basic", "id": f"b{number}", "code": {"text": f"{number}"}},
                    "request": {"method": "PUT", "url": f"Basic/b{number}"},
                }
                for number in range(COUNT)
            ]
            answer = await client.post("", json={"resourceType": "Bundle", "type": "transaction", "entry": entries})
            assert answer.status_code == 200, answer.text
            location = (await kick_off(client, "$export")).headers["content-location"]
        for _ in range(500):  # until one of them has it
            if "resources" in (await ask("GET", location)).headers.get("x-progress", ""):
                break
            await asyncio.sleep(0.02)
        workers = server.workers()
        assert len(workers) == 2
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        answer = await ask("GET", location)
        while answer.status_code == 202:
            await asyncio.sleep(0.2)
            answer = await ask("GET", location)
        assert answer.status_code == 200, answer.text
        (item,) = answer.json()["output"]
        assert item["count"] == COUNT
        assert "-1-" not in item["url"], "it was not done before the kill"
        for _ in range(8):
            file = await ask("GET", item["url"])
            assert len(set(file.text.splitlines())) == COUNT
        assert set(server.workers()).isdisjoint(workers)
        assert not any(is_running(pid) for pid in workers)
        assert (await ask("DELETE", location)).status_code == 202
        for _ in range(8):
            assert (await ask("GET", location)).status_code == 404

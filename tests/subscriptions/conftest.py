"""A real receiver of notifications."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from fhir_server.automation import delivery


@dataclass
class Receiver:
    """A real HTTP server that writes down what it is told."""

    url: str = ""
    status: int = 200
    pause: float = 0.0  # seconds until it answers
    heard: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                method, path, _ = line.decode().split()
                headers: dict[str, str] = {}
                while text := (await reader.readline()).decode().strip():
                    name, _, value = text.partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.heard.append((method, path, headers, body))
                await asyncio.sleep(self.pause)
                writer.write(f"HTTP/1.1 {self.status} x\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # who was speaking was killed
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


@pytest.fixture(scope="module")
def impatient() -> Iterator[None]:
    """Nothing waits longer than a test likes to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery, "ACTIVE_AFTER", 0.0)
        patch.setattr(delivery, "LOOK", 0.05)
        patch.setattr(delivery, "FIRST_PAUSE", 0.1)
        yield


def subscription(criteria: str, endpoint: str, **channel: Any) -> dict[str, Any]:
    return {
        "resourceType": "Subscription", "status": "requested", "reason": "test", "criteria": criteria,
        "channel": {"type": "rest-hook", "endpoint": endpoint} | channel,
    }  # fmt: skip


async def active(http: httpx.AsyncClient, body: dict[str, Any], headers: dict[str, str] | None = None) -> str:
    """Its id, once it is active."""
    answer = await http.post("Subscription", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    async with asyncio.timeout(10):
        while True:
            found = (await http.get(f"Subscription/{answer.json()['id']}", headers=headers)).json()
            if found["status"] != "requested":
                assert found["status"] == "active", found
                return str(found["id"])
            await asyncio.sleep(0.02)

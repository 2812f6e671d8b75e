"""What every test may ask for: a real MongoDB, a server with a fixed clock and counted ids, a client that speaks HTTP to it."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from fhir_server.app import build_server, mounted
from fhir_server.interactions.context import Server
from fhir_server.settings import Settings
from fhir_server.store.embedded import EmbeddedMongo

BASE = "http://test/fhir"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run what takes minutes: many rounds, large data")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        skip = pytest.mark.skip(reason="only with --long")
        for item in items:
            if "long" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def mongo_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One real mongod for the tests of this process."""
    mongo = EmbeddedMongo(tmp_path_factory.mktemp("mongo"), cache_mb=256)
    yield mongo.start()
    mongo.stop()


class Clock:
    """Starts at 2026-01-02T03:04:05Z and advances one second at each look, so that versions have an order."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        self.step = timedelta(seconds=1)

    def __call__(self) -> datetime:
        now = self.moment
        self.moment += self.step
        return now


_databases = itertools.count()


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
async def server(mongo_url: str, clock: Clock, anyio_backend: Any) -> AsyncIterator[Server]:
    """Collaborators on a database of this module's own; ids count from 1 (`id-1`, `id-2`, …)."""
    ids = itertools.count(1)
    settings = Settings(open=True, database=f"test{next(_databases)}", automation=False)
    built = build_server(settings, mongo_url, now=clock, new_id=lambda: f"id-{next(ids)}")
    await built.store.open()
    yield built
    await built.store.client.drop_database(settings.database)  # type: ignore[attr-defined]
    await built.store.close()


@pytest.fixture(scope="module")
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """HTTP to the whole application; the wire, the store and all between are the real ones."""
    async with (
        running(server) as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE + "/") as client,
    ):
        yield client


def running(server: Server, **settings: Any) -> Any:
    """The application on an opened server, as an async context manager."""
    return mounted(replace(server, settings=replace(server.settings, **settings)) if settings else server)


@pytest.fixture(scope="session")
def spec_data() -> Path:
    """The folder with official packages and cases that FHIR_SPEC_DATA names; without it such tests are skipped."""
    folder = os.environ.get("FHIR_SPEC_DATA")
    if not folder:
        pytest.skip("FHIR_SPEC_DATA is not set: the official packages and cases are not here")
    return Path(folder)

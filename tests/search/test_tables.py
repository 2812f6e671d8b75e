"""Every row of every spec table, asked in memory, of MongoDB and over HTTP: the three agree."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from fhir_server.errors import BadRequest
from fhir_server.interactions.context import Server
from fhir_server.search.registry import standard

from . import tables

TABLES = {name: tables.load(name) for name in tables.names()}
ROWS = [pytest.param(table, row, id=f"{name}: {row.query}") for name, table in TABLES.items() for row in table.rows]
LEAST = {"date": 100, "quantity": 100, "token": 60, "string": 60, "reference": 60, "composite": 40}


@pytest.mark.parametrize("name", LEAST)
def test_there_are_as_many_rows_as_promised(name: str) -> None:
    assert len(TABLES[name].rows) >= LEAST[name]


def test_no_two_tables_write_the_same_resource() -> None:
    written = [f"{r['resourceType']}/{r['id']}" for table in TABLES.values() for r in table.resources]
    assert len(written) == len(set(written))


_worlds: dict[str, tables.InMemory] = {}


@pytest.mark.parametrize(("table", "row"), ROWS)
def test_in_memory(table: tables.Table, row: tables.Row) -> None:
    world = _worlds.get(table.name) or _worlds.setdefault(table.name, tables.InMemory(standard(), table))
    if row.refused:
        with pytest.raises(BadRequest) as refusal:
            world.find(row.query)
        tables.check_refused(row, refusal.value)
    else:
        tables.check(row, world.find(row.query))


@pytest.fixture(scope="module")
async def loaded(client: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    for table in TABLES.values():
        await tables.put(client, table)
    yield client


@pytest.mark.anyio
@pytest.mark.parametrize(("table", "row"), [p for p in ROWS if not p.values[1].refused])
async def test_in_mongodb(server: Server, loaded: httpx.AsyncClient, table: tables.Table, row: tables.Row) -> None:
    tables.check(row, await tables.in_store(server, table, row.query))


@pytest.mark.anyio
@pytest.mark.parametrize(("table", "row"), ROWS)
async def test_over_http(loaded: httpx.AsyncClient, table: tables.Table, row: tables.Row) -> None:
    if row.refused:
        with pytest.raises(BadRequest) as refusal:
            await tables.over_http(loaded, table, row.query)
        tables.check_refused(row, refusal.value)
    else:
        tables.check(row, await tables.over_http(loaded, table, row.query))

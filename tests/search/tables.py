"""Reads the spec tables of tests/spec/search and asks each row in memory, of MongoDB and over HTTP.

A table is one small world: `resources` by type and id (with `defaults` for each type), and `rows`:
    {query: "Type?…", finds: [ids], includes: [ids], why: …}   the ids of matches (and of what comes along), in any order
    {query: "Type?…", refused: text, why: …}                   400, with the text in its diagnostics
A query may also start with a compartment (`Patient/x/Observation?…`) or be over types (`?_type=…`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import yaml

from fhir_server.errors import BadRequest
from fhir_server.interactions.context import Server
from fhir_server.search import execute, parse
from fhir_server.search.index import Indexed, index
from fhir_server.search.match import Candidate, World, matches
from fhir_server.search.operands import Members
from fhir_server.search.query import Query
from fhir_server.search.records import THROUGH, about
from fhir_server.search.registry import Registry
from fhir_server.search.restrict import unrestricted
from fhir_server.search.valuesets import Expansion, StoredTerminology

SPEC = Path(__file__).parent.parent / "spec" / "search"
TAG = "urn:table"
BASE = "http://test/fhir"  # of the test client


class _Loader(yaml.SafeLoader):
    """Decimals keep their digits; dates stay text."""


_Loader.yaml_implicit_resolvers = {
    key: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for key, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: Decimal(node.value))


@dataclass(frozen=True)
class Row:
    query: str
    why: str
    finds: tuple[str, ...] = ()
    includes: tuple[str, ...] | None = None
    refused: str = ""

    def __post_init__(self) -> None:
        if not self.why:
            raise ValueError(f"{self.query}: a row says why")


@dataclass(frozen=True)
class Table:
    name: str
    resources: tuple[dict[str, Any], ...]
    rows: tuple[Row, ...]


def read(path: Path) -> Table:
    content = yaml.load(path.read_text(), _Loader)
    resources = tuple(
        {"resourceType": kind, "id": id, **content.get("defaults", {}).get(kind, {}), **(fields or {})}
        for kind, found in content["resources"].items()
        for id, fields in found.items()
    )
    rows = []
    for row in content["rows"]:
        if ("finds" in row) == ("refused" in row):
            raise ValueError(f"{row['query']}: a row either finds or is refused")
        includes = tuple(row["includes"]) if "includes" in row else None
        rows.append(Row(row["query"], row["why"], tuple(row.get("finds", ())), includes, row.get("refused", "")))
    table = Table(path.stem, resources, tuple(rows))
    known = {resource["id"] for resource in resources}
    for one in table.rows:
        strangers = {*one.finds, *(one.includes or ())} - known
        if strangers:
            raise ValueError(f"{one.query}: {strangers} are no resources of the table")
    return table


def names() -> list[str]:
    return sorted(path.stem for path in SPEC.glob("*.yaml"))


def load(name: str) -> Table:
    return read(SPEC / f"{name}.yaml")


# One row, asked in each of the ways


def parsed(registry: Registry, text: str) -> Query:
    path, _, query = text.partition("?")
    segments = [segment for segment in path.split("/") if segment]
    within = (segments[0], segments[1]) if len(segments) == 3 else None
    kind = segments[-1] if segments and segments[-1] != "*" else None
    pairs = parse_qsl(query, keep_blank_values=True)
    return parse.parse(kind, pairs, registry=registry, compartment=within, default_count=1000, base=BASE)


class InMemory:
    """The matcher, on the entries of all resources of the table."""

    def __init__(self, registry: Registry, table: Table) -> None:
        self.registry = registry
        self.resources = table.resources
        self.world = World(_by_type(registry, table.resources), self._keys)

    def _keys(self, members: Members) -> frozenset[str]:
        async def resource(kind: str, url: str) -> dict[str, Any] | None:
            return next((r for r in self.resources if r["resourceType"] == kind and r.get("url") == url), None)

        return asyncio.run(Expansion(resource).keys(members))

    def find(self, text: str) -> list[str]:
        query = parsed(self.registry, text)
        kinds = query.types or tuple(self.world.candidates)
        return sorted(
            candidate.id
            for kind in kinds
            for candidate in self.world.candidates.get(kind, ())
            if matches(query, candidate, self.world)
        )


def _by_type(registry: Registry, resources: Iterable[dict[str, Any]]) -> dict[str, list[Candidate]]:
    """What is about others is in their patients' records, as writing it has it."""
    found: dict[str, list[Candidate]] = {}
    patients: dict[tuple[str, str], tuple[str, ...]] = {}
    for resource in sorted(resources, key=lambda one: one["resourceType"] in THROUGH):
        kind, id = resource["resourceType"], resource["id"]
        indexed = index(registry, resource, base=BASE)
        led = [patient for key in about(resource, BASE) for patient in patients.get(key, ())]
        indexed = Indexed(indexed.entries, tuple(dict.fromkeys((*indexed.patients, *led))))
        patients[kind, id] = indexed.patients
        found.setdefault(kind, []).append(Candidate(kind, id, indexed))
    return found


async def in_store(server: Server, table: Table, text: str) -> tuple[list[str], list[str]]:
    """Parse, plan and execute, without HTTP. Ids of matches and of what comes along."""
    query = parsed(server.registry, _tagged(table, text))
    page = await execute.run(
        server.store, server.registry, query, unrestricted, key=b"key", terminology=StoredTerminology(server.store)
    )
    return sorted(stored.id for stored in page.matches), sorted(stored.id for stored in page.includes)


async def over_http(client: httpx.AsyncClient, table: Table, text: str) -> tuple[list[str], list[str]]:
    response = await client.get(_tagged(table, text) + "&_count=1000")
    if response.status_code == 400:
        raise BadRequest(response.json()["issue"][0]["diagnostics"])
    assert response.status_code == 200, response.text
    found: dict[str, list[str]] = {"match": [], "include": [], "outcome": []}
    for entry in response.json().get("entry", ()):
        found[entry["search"]["mode"]].append(entry["resource"].get("id", ""))
    return sorted(found["match"]), sorted(found["include"])


async def put(client: httpx.AsyncClient, table: Table) -> None:
    """All resources of the table, with its tag, through the front door."""
    for resource in table.resources:
        meta = resource.get("meta", {})
        tag = {"system": TAG, "code": table.name}
        body = {**resource, "meta": {**meta, "tag": [*meta.get("tag", ()), tag]}}
        response = await client.put(
            f"{resource['resourceType']}/{resource['id']}",
            content=_json(body),
            headers={"content-type": "application/fhir+json"},
        )
        assert response.status_code in (200, 201), response.text


def _json(value: Any) -> str:
    """JSON with decimals as they are written."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_json, value)) + "]"
    return str(value) if isinstance(value, Decimal) else json.dumps(value)


def _tagged(table: Table, text: str) -> str:
    return f"{text}{'&' if '?' in text else '?'}_tag={TAG}|{table.name}"


def check(row: Row, found: Any) -> None:
    """`found`: ids, or (matches, what comes along)."""
    found, included = found if isinstance(found, tuple) else (found, None)
    assert found == sorted(row.finds), f"{row.query}\n  finds {found}\n  not   {sorted(row.finds)}\n  {row.why}"
    if row.includes is not None and included is not None:
        assert included == sorted(row.includes), f"{row.query}\n  includes {included}\n  not {sorted(row.includes)}"


def check_refused(row: Row, error: BadRequest) -> None:
    assert row.refused in error.diagnostics, f"{row.query}\n  says {error.diagnostics!r}\n  not  {row.refused!r}"

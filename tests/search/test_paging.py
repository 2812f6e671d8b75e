"""Pages while others write: what was there throughout is found exactly once. https://hl7.org/fhir/R4/search.html#count"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from fhir_server.interactions.context import Server
from fhir_server.search import execute, parse
from fhir_server.search.cursor import Cursor
from fhir_server.search.restrict import unrestricted

pytestmark = pytest.mark.anyio

TAG = "urn:paging"


async def put(client: httpx.AsyncClient, tag: str, number: int, rng: random.Random) -> None:
    """Patients with few different names and dates, so that there are many ties; some have neither."""
    body: dict[str, Any] = {
        "resourceType": "Patient",
        "id": f"{tag}-{number}",
        "meta": {"tag": [{"system": TAG, "code": tag}]},
        "active": rng.random() < 0.5,
    }
    if rng.random() < 0.8:
        body["birthDate"] = rng.choice(["1980", "1980-05", "1990-01-01", "2000-02-29"])
    if rng.random() < 0.8:
        body["name"] = [{"family": rng.choice(["Adams", "Brown", "Clark"]), "given": [rng.choice("abc")]}]
    response = await client.put(f"Patient/{body['id']}", json=body)
    assert response.status_code in (200, 201), response.text


async def follow(client: httpx.AsyncClient, bundle: dict[str, Any]) -> dict[str, Any] | None:
    url = next((link["url"] for link in bundle["link"] if link["relation"] == "next"), None)
    if url is None:
        return None
    response = await client.get(url)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def ids(bundle: dict[str, Any]) -> list[str]:
    return [e["resource"]["id"] for e in bundle.get("entry", ()) if e["search"]["mode"] == "match"]


ORDERS = ["", "_id", "-_id", "birthdate", "-birthdate", "_lastUpdated", "-_lastUpdated", "family", "-family,birthdate"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(2))
async def test_each_resource_that_existed_throughout_exactly_once(
    client: httpx.AsyncClient, order: str, seed: int
) -> None:
    rng = random.Random(f"{order}{seed}")
    tag = f"p{ORDERS.index(order)}s{seed}"
    for number in range(24):
        await put(client, tag, number, rng)
    throughout = {f"{tag}-{number}" for number in range(24)}
    fresh = 24
    url = f"Patient?_tag={TAG}|{tag}&_count={rng.choice([1, 4, 5, 7])}" + (f"&_sort={order}" if order else "")
    bundle: dict[str, Any] | None = (await client.get(url)).json()
    seen: list[str] = []
    while bundle is not None:
        seen += ids(bundle)
        for _ in range(rng.randrange(4)):
            what = rng.random()
            if what < 0.4:  # a new one
                await put(client, tag, fresh, rng)
                fresh += 1
            elif what < 0.8:  # another name, another date: it moves
                await put(client, tag, rng.randrange(24), rng)
            else:
                gone = f"{tag}-{rng.randrange(24)}"
                await client.delete(f"Patient/{gone}")
                throughout.discard(gone)
        bundle = await follow(client, bundle)
    assert len(seen) == len(set(seen)), "twice"
    assert throughout <= set(seen), "left out"


@pytest.mark.parametrize("order", [*ORDERS, "-family", "given,-_lastUpdated"])
async def test_pages_together_are_the_whole_in_its_order(client: httpx.AsyncClient, order: str) -> None:
    rng = random.Random(1)
    for number in range(20):
        await put(client, "order", number, rng)
    url = f"Patient?_tag={TAG}|order" + (f"&_sort={order}" if order else "")
    whole = ids((await client.get(url + "&_count=1000")).json())
    assert len(whole) == 20
    for size in (1, 3, 7, 19, 20, 21):
        pages = []
        bundle: dict[str, Any] | None = (await client.get(f"{url}&_count={size}")).json()
        while bundle is not None:
            pages.append(ids(bundle))
            bundle = await follow(client, bundle)
        assert [id for page in pages for id in page] == whole
        assert len(pages) == -(-20 // size), "next only where there is more"


async def test_missing_values_come_last_in_both_directions(client: httpx.AsyncClient) -> None:
    rng = random.Random(1)
    for number in range(20):
        await put(client, "order", number, rng)
    for order in ("birthdate", "-birthdate", "family", "-family"):
        bundle = (await client.get(f"Patient?_tag={TAG}|order&_sort={order}&_count=100")).json()
        field = "birthDate" if "birth" in order else "name"
        present = [field in e["resource"] for e in bundle["entry"]]
        assert present == sorted(present, reverse=True)
        assert False in present


async def test_sorted_by_value(client: httpx.AsyncClient) -> None:
    rng = random.Random(1)
    for number in range(20):
        await put(client, "order", number, rng)
    up = (await client.get(f"Patient?_tag={TAG}|order&_sort=family&_count=100")).json()
    names = [e["resource"]["name"][0]["family"] for e in up["entry"] if "name" in e["resource"]]
    assert names == sorted(names)
    assert len(set(names)) == 3
    down = (await client.get(f"Patient?_tag={TAG}|order&_sort=-birthdate,family&_count=100")).json()
    dates = [e["resource"]["birthDate"] for e in down["entry"] if "birthDate" in e["resource"]]
    starts = [d + "-01-01"[len(d) - 4 :] for d in dates]
    assert starts == sorted(starts, reverse=True)


async def test_sorting_over_types(client: httpx.AsyncClient) -> None:
    rng = random.Random(2)
    for number in range(6):
        await put(client, "types", number, rng)
        body = {
            "resourceType": "Basic",
            "id": f"types-b{number}",
            "meta": {"tag": [{"system": TAG, "code": "types"}]},
            "code": {"text": "x"},
        }
        await client.put(f"Basic/types-b{number}", json=body)
    for order in ("_lastUpdated", "-_lastUpdated", "", "_id"):
        url = f"?_type=Patient,Basic&_tag={TAG}|types" + (f"&_sort={order}" if order else "")
        whole = (await client.get(url)).json()
        assert len(ids(whole)) == 12
        stamps = [e["resource"]["meta"]["lastUpdated"] for e in whole["entry"]]
        if order:
            assert order == "_id" or stamps == sorted(stamps, reverse=order.startswith("-"))
        for size in (1, 5):
            seen: list[str] = []
            bundle: dict[str, Any] | None = (await client.get(f"{url}&_count={size}")).json()
            while bundle is not None:
                seen += ids(bundle)
                bundle = await follow(client, bundle)
            assert seen == ids(whole)


async def test_a_cursor_is_sealed(client: httpx.AsyncClient) -> None:
    rng = random.Random(1)
    for number in range(3):
        await put(client, "seal", number, rng)
    first = (await client.get(f"Patient?_tag={TAG}|seal&_count=1")).json()
    url = next(link["url"] for link in first["link"] if link["relation"] == "next")
    query = dict(httpx.QueryParams(urlsplit(url).query))
    cursor = query["_cursor"]
    changed = [("B" if cursor[at] == "A" else "A", at) for at in (0, 30, len(cursor) - 3)]
    forgeries = [cursor[:at] + letter + cursor[at + 1 :] for letter, at in changed]
    for forged in (*forgeries, cursor[4:], cursor + "AAAA", "x", "é", ""):
        response = await client.get("Patient", params={**query, "_cursor": forged})
        assert response.status_code == 400, forged
        assert "_cursor" in response.text
    other = await client.get("Patient", params={**query, "active": "true"})
    assert other.status_code == 400, "a cursor belongs to its search"
    same = await client.get("Patient", params={**query, "_count": "2"})
    assert same.status_code == 200, "another page size is the same search"
    assert len(same.json()["entry"]) == 2


async def test_a_moment_that_is_gone_is_said(client: httpx.AsyncClient, server: Server) -> None:
    """The store keeps moments for five minutes; a slower reader gets its page all the same, with a warning."""
    rng = random.Random(1)
    for number in range(3):
        await put(client, "slow", number, rng)
    pairs = [("_tag", f"{TAG}|slow"), ("_sort", "_lastUpdated")]
    query = parse.parse("Patient", pairs, registry=server.registry, default_count=1)
    key = server.rooms["cursor-key"]
    first = await execute.run(server.store, server.registry, query, unrestricted, key=key)
    assert first.cursor is not None
    identity = execute.identity(query)
    kept = Cursor.open(first.cursor, key, identity)
    assert kept.moment
    old = replace(kept, moment="1000000000.1").seal(key, identity)
    page = await execute.run(server.store, server.registry, query.with_cursor(old), unrestricted, key=key)
    assert [stored.id for stored in page.matches] == ["slow-1"]
    assert "long ago" in page.issues[0].diagnostics

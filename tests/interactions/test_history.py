"""History of an instance, a type and the system. https://hl7.org/fhir/R4/http.html#history"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio


def group(id: str, quantity: int) -> dict[str, Any]:
    return {"resourceType": "Group", "id": id, "type": "person", "actual": True, "quantity": quantity}


@pytest.fixture(scope="module", autouse=True)
async def versions(client: httpx.AsyncClient) -> list[str]:
    """a1 a2 b1 c1 a3(deleted) b2, one second apart; the moments are what lastUpdated says."""
    moments = []
    for id, quantity in (("a", 1), ("a", 2), ("b", 1), ("c", 1), ("a", 0), ("b", 2)):
        if quantity:
            response = await client.put(f"Group/{id}", json=group(id, quantity))
            moments.append(response.json()["meta"]["lastUpdated"])
        else:
            await client.delete(f"Group/{id}")
            moments.append("")
    return moments


def shown(bundle: dict[str, Any]) -> list[str]:
    assert bundle["type"] == "history"
    found = []
    for entry in bundle.get("entry", ()):
        version = entry["response"]["etag"].strip('W/"')
        found.append(entry["fullUrl"].rsplit("/", 1)[1] + version)
    return found


async def test_instance_newest_first_with_how_each_version_came_to_be(client: httpx.AsyncClient) -> None:
    bundle = (await client.get("Group/a/_history")).json()
    assert shown(bundle) == ["a3", "a2", "a1"]
    deleted, updated, created = bundle["entry"]
    assert deleted["request"] == {"method": "DELETE", "url": "Group/a"}
    assert "resource" not in deleted
    assert updated["request"]["method"] == "PUT"
    assert updated["resource"]["quantity"] == 2
    assert created["response"]["status"] == "201 Created"


async def test_type_and_system(client: httpx.AsyncClient) -> None:
    expected = ["b2", "a3", "c1", "b1", "a2", "a1"]
    assert shown((await client.get("Group/_history")).json()) == expected
    assert shown((await client.get("_history")).json()) == expected


async def test_pages_join_without_gap_or_repeat(client: httpx.AsyncClient) -> None:
    for url in ("Group/_history?_count=1", "_history?_count=2", "Group/a/_history?_count=2"):
        found: list[str] = []
        following: str | None = url
        while following:
            bundle = (await client.get(following)).json()
            assert len(shown(bundle)) <= 2
            found += shown(bundle)
            links = {link["relation"]: link["url"] for link in bundle["link"]}
            following = links.get("next")
        assert found == shown((await client.get(url.split("?", 1)[0])).json())


async def test_since_is_inclusive(client: httpx.AsyncClient, versions: list[str]) -> None:
    assert shown((await client.get("Group/_history", params={"_since": versions[2]})).json()) == [
        "b2",
        "a3",
        "c1",
        "b1",
    ]


async def test_at_gives_what_was_current_in_that_second(client: httpx.AsyncClient, versions: list[str]) -> None:
    at = versions[3][:19] + "Z"
    assert sorted(shown((await client.get("Group/_history", params={"_at": at})).json())) == ["a2", "b1", "c1"]


@pytest.mark.parametrize(
    "query", ["_count=-1", "_count=x", "_since=2024-13", "_since=soon", "_cursor=abc", "nme=x", "_at="]
)
async def test_bad_parameters_are_400(client: httpx.AsyncClient, query: str) -> None:
    response = await client.get(f"Group/_history?{query}")
    assert response.status_code == 400, response.text
    assert response.json()["resourceType"] == "OperationOutcome"


async def test_history_of_nothing_is_404(client: httpx.AsyncClient) -> None:
    assert (await client.get("Group/zzz/_history")).status_code == 404
    assert (await client.get("Fish/_history")).status_code == 404


async def test_summary_and_elements_shape_the_versions(client: httpx.AsyncClient) -> None:
    for query in ("_elements=quantity", "_summary=data", "_summary=true", "_summary=text"):
        bundle = (await client.get(f"Group/b/_history?{query}")).json()
        for entry in bundle["entry"]:
            assert entry["resource"]["meta"]["tag"][-1]["code"] == "SUBSETTED"
            assert ("quantity" in entry["resource"]) is (query != "_summary=text")
        assert query in bundle["link"][0]["url"]
    assert (await client.get("Group/b/_history?_summary=false")).json()["entry"][0]["resource"]["quantity"] == 2
    assert (await client.get("Group/b/_history?_summary=count")).status_code == 400


async def test_no_version_is_lost_or_shown_twice_while_others_write(client: httpx.AsyncClient) -> None:
    """Pages of two while a writer supersedes: all versions that were there when the first page was read, once each."""
    for quantity in range(1, 13):
        await client.put("Group/busy", json=group("busy", quantity))
    done = asyncio.Event()

    async def write() -> None:
        quantity = 13
        while not done.is_set():
            await client.put("Group/busy", json=group("busy", quantity))
            quantity += 1

    writer = asyncio.create_task(write())
    try:
        for url in ("Group/busy/_history?_count=2", "Group/_history?_count=3", "_history?_count=3") * 3:
            found: list[int] = []
            following: str | None = url
            while following:
                bundle = (await client.get(following)).json()
                found += [int(version[4:]) for version in shown(bundle) if version.startswith("busy")]
                following = {link["relation"]: link["url"] for link in bundle["link"]}.get("next")
            assert found == list(range(found[0], 0, -1))
    finally:
        done.set()
        await writer

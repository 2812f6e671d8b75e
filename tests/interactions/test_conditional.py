"""Conditional create, update, patch and delete, alone and in a crowd. https://hl7.org/fhir/R4/http.html#ccreate"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio

SYSTEM = "http://example.org/mrn"


def patient(number: str, **more: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "identifier": [{"system": SYSTEM, "value": number}], **more}


def criteria(number: str) -> str:
    return f"identifier={SYSTEM}|{number}"


async def count(client: httpx.AsyncClient, number: str) -> int:
    bundle = (await client.get(f"Patient?{criteria(number)}&_summary=count")).json()
    total: int = bundle["total"]
    return total


async def test_create_only_if_none_exists(client: httpx.AsyncClient) -> None:
    headers = {"if-none-exist": criteria("c1")}
    first = await client.post("Patient", json=patient("c1"), headers=headers)
    second = await client.post("Patient", json=patient("c1", active=True), headers=headers)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["id"] == second.json()["id"]
    assert "active" not in second.json()
    await client.post("Patient", json=patient("c1"))
    assert (await client.post("Patient", json=patient("c1"), headers=headers)).status_code == 412


async def test_create_again_after_the_match_is_gone(client: httpx.AsyncClient) -> None:
    headers = {"if-none-exist": criteria("c2")}
    first = await client.post("Patient", json=patient("c2"), headers=headers)
    await client.delete(f"Patient/{first.json()['id']}")
    again = await client.post("Patient", json=patient("c2"), headers=headers)
    assert again.status_code == 201
    assert again.json()["id"] != first.json()["id"]


@pytest.mark.parametrize("header", ["", "?", "colour=red", "identifier=", "_count=1"])
async def test_criteria_that_say_nothing_are_refused(client: httpx.AsyncClient, header: str) -> None:
    response = await client.post("Patient", json=patient("c3"), headers={"if-none-exist": header})
    assert response.status_code == 400, response.text


@pytest.mark.parametrize("round", range(3))
async def test_64_parallel_identical_creates_make_one(client: httpx.AsyncClient, round: int) -> None:
    number = f"race{round}"
    headers = {"if-none-exist": criteria(number)}
    answers = await asyncio.gather(*(client.post("Patient", json=patient(number), headers=headers) for _ in range(64)))
    assert sorted(answer.status_code for answer in answers) == [200] * 63 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert await count(client, number) == 1


async def test_parallel_conditional_updates_make_one(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(
        *(
            client.put(f"Patient?{criteria('race-u')}", json=patient("race-u", multipleBirthInteger=n))
            for n in range(32)
        )
    )
    assert {answer.status_code for answer in answers} <= {200, 201}
    assert [answer.status_code for answer in answers].count(201) == 1
    assert await count(client, "race-u") == 1
    versions = sorted(int(answer.json()["meta"]["versionId"]) for answer in answers)
    assert versions == list(range(1, 33))


async def test_no_update_is_lost_when_all_say_which_version_they_saw(client: httpx.AsyncClient) -> None:
    """Sixteen writers add one each, with If-Match, again on 412: the sum is sixteen."""
    await client.put("Basic/sum", json={"resourceType": "Basic", "id": "sum", "code": {"text": "0"}})

    async def add_one() -> None:
        while True:
            seen = await client.get("Basic/sum")
            body = seen.json()
            body["code"]["text"] = str(int(body["code"]["text"]) + 1)
            answer = await client.put("Basic/sum", json=body, headers={"if-match": seen.headers["etag"]})
            assert answer.status_code in (200, 412)
            if answer.status_code == 200:
                return

    await asyncio.gather(*(add_one() for _ in range(16)))
    final = (await client.get("Basic/sum")).json()
    assert final["code"]["text"] == "16"
    assert final["meta"]["versionId"] == "17"


async def test_conditional_update(client: httpx.AsyncClient) -> None:
    created = await client.put(f"Patient?{criteria('u1')}", json=patient("u1"))
    assert created.status_code == 201
    id = created.json()["id"]
    updated = await client.put(f"Patient?{criteria('u1')}", json=patient("u1", active=True))
    assert (updated.status_code, updated.json()["id"], updated.headers["etag"]) == (200, id, 'W/"2"')
    wrong = await client.put(f"Patient?{criteria('u1')}", json=patient("u1", id="other"))
    assert wrong.status_code == 400
    own = await client.put(f"Patient?{criteria('u2')}", json=patient("u2", id="u2-own"))
    assert (own.status_code, own.json()["id"]) == (201, "u2-own")
    taken = await client.put(f"Patient?{criteria('u3')}", json=patient("u3", id="u2-own"))
    assert taken.status_code == 409
    await client.post("Patient", json=patient("u1"))
    assert (await client.put(f"Patient?{criteria('u1')}", json=patient("u1"))).status_code == 412
    assert (await client.put("Patient", json=patient("u4"))).status_code == 400


async def test_conditional_patch(client: httpx.AsyncClient) -> None:
    patch = [{"op": "add", "path": "/active", "value": True}]
    headers = {"content-type": "application/json-patch+json"}
    url = f"Patient?{criteria('p1')}"
    assert (await client.patch(url, json=patch, headers=headers)).status_code == 404
    await client.post("Patient", json=patient("p1"))
    patched = await client.patch(url, json=patch, headers=headers)
    assert (patched.status_code, patched.json()["active"]) == (200, True)
    await client.post("Patient", json=patient("p1"))
    assert (await client.patch(url, json=patch, headers=headers)).status_code == 412


async def test_conditional_delete_is_single_unless_asked(client: httpx.AsyncClient) -> None:
    url = f"Patient?{criteria('d1')}"
    assert (await client.delete(url)).status_code == 204
    await client.post("Patient", json=patient("d1"))
    assert (await client.delete(url)).status_code == 204
    assert await count(client, "d1") == 0
    for _ in range(3):
        await client.post("Patient", json=patient("d1"))
    assert (await client.delete(url)).status_code == 412
    assert await count(client, "d1") == 3
    assert (await client.delete(url + "&_multiple=true")).status_code == 204
    assert await count(client, "d1") == 0
    assert (await client.delete("Patient")).status_code == 400

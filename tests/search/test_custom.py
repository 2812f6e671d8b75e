"""Parameters that clients post: refused until their resources are indexed, then like any other."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from fhir_server.interactions.context import Server
from fhir_server.search import reindex
from fhir_server.search.custom import CustomParameters
from fhir_server.search.registry import Registry

pytestmark = pytest.mark.anyio


def parameter(id: str, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "SearchParameter",
        "id": id,
        "url": f"http://example.org/SearchParameter/{id}",
        "name": id,
        "status": "active",
        "description": id,
        "code": id,
        "base": ["Patient"],
        "type": "token",
        "expression": "Patient.maritalStatus",
        **more,
    }


@pytest.fixture(scope="module", autouse=True)
async def world(client: httpx.AsyncClient) -> None:
    for number in range(7):
        body = {
            "resourceType": "Patient",
            "id": f"p{number}",
            "maritalStatus": {"coding": [{"code": "M" if number % 2 else "S"}]},
            "multipleBirthInteger": number,
            "extension": [{"url": "http://example.org/eye", "valueString": f"blue {number}"}],
            "contact": [{"name": {"family": f"Kin{number}"}, "organization": {"reference": f"Organization/o{number}"}}],
        }
        await client.put(f"Patient/p{number}", json=body)


async def post(client: httpx.AsyncClient, server: Server, *parameters: dict[str, Any]) -> None:
    for found in parameters:
        response = await client.put(f"SearchParameter/{found['id']}", json=found)
        assert response.status_code in (200, 201), response.text
    await server.rooms["search-parameters"].refresh()


async def ids(client: httpx.AsyncClient, query: str) -> list[str]:
    response = await client.get(query)
    assert response.status_code == 200, response.text
    return [entry["resource"]["id"] for entry in response.json().get("entry", ())]


async def test_refused_then_served(client: httpx.AsyncClient, server: Server) -> None:
    assert "'marital'" in (await client.get("Patient?marital=M")).text
    await post(client, server, parameter("marital"))
    response = await client.get("Patient?marital=M")
    assert response.status_code == 400
    assert "not indexed yet" in response.json()["issue"][0]["diagnostics"]
    steps = [step async for step in reindex.reindex(server.store, server.registry)]
    assert steps[-1].percent == 100
    assert await ids(client, "Patient?marital=M") == ["p1", "p3", "p5"]
    await client.put(
        "Patient/p9", json={"resourceType": "Patient", "id": "p9", "maritalStatus": {"coding": [{"code": "M"}]}}
    )
    assert await ids(client, "Patient?marital=M&_sort=-_id") == ["p9", "p5", "p3", "p1"]
    await client.delete("Patient/p9")


async def test_every_type_of_parameter(client: httpx.AsyncClient, server: Server) -> None:
    await post(
        client,
        server,
        parameter("births", type="number", expression="Patient.multipleBirth.as(integer)"),
        parameter("eye", type="string", expression="Patient.extension('http://example.org/eye').value"),
        parameter("kin", type="string", expression="Patient.contact.name.family"),
        parameter("kin-org", type="reference", expression="Patient.contact.organization", target=["Organization"]),
        parameter("many", type="token", expression="Patient.contact.exists()"),
    )
    async for _ in reindex.reindex(server.store, server.registry):
        pass
    assert await ids(client, "Patient?births=gt4") == ["p5", "p6"]
    assert await ids(client, "Patient?eye=blue 3") == ["p3"]
    assert await ids(client, "Patient?kin=kin2") == ["p2"]
    assert await ids(client, "Patient?kin-org=Organization/o4") == ["p4"]
    assert len(await ids(client, "Patient?many=true")) == 7
    assert await ids(client, "Patient?births=lt3&_sort=-births") == ["p2", "p1", "p0"]


async def test_a_reindex_goes_on_where_it_stopped(
    client: httpx.AsyncClient, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reindex, "BATCH", 2)
    await post(client, server, parameter("status2"))
    running = reindex.reindex(server.store, server.registry)
    first = await anext(running)
    assert (first.done, first.total) == (2, 7)
    await running.aclose()
    assert (await client.get("Patient?status2=M")).status_code == 400, "half an index answers nothing"
    seen = [step.done async for step in reindex.reindex(server.store, server.registry)]
    assert seen == [4, 6, 7, 7]
    assert await ids(client, "Patient?status2=M") == ["p1", "p3", "p5"]


async def test_another_process_learns_of_it(client: httpx.AsyncClient, server: Server) -> None:
    await post(client, server, parameter("shared"))
    async for _ in reindex.reindex(server.store, server.registry):
        pass
    other = Registry.standard()
    await CustomParameters(server.store, other).refresh()
    found = other.parameter("Patient", "shared")
    assert found is not None
    assert found.state == "ready"


async def test_a_changed_definition_waits_again_and_a_deleted_one_is_gone(
    client: httpx.AsyncClient, server: Server
) -> None:
    await post(client, server, parameter("change"))
    async for _ in reindex.reindex(server.store, server.registry):
        pass
    assert await ids(client, "Patient?change=M")
    await post(client, server, parameter("change", expression="Patient.gender"))
    assert (await client.get("Patient?change=M")).status_code == 400
    await client.delete("SearchParameter/change")
    await server.rooms["search-parameters"].refresh()
    assert "no search parameter 'change'" in (await client.get("Patient?change=M")).text


@pytest.mark.parametrize(
    "more",
    [{"code": "name"}, {"expression": "Patient.gender", "type": "quantity"}, {"type": "special"}, {"code": "_id"}],
)
async def test_what_cannot_be_served_changes_nothing(
    client: httpx.AsyncClient, server: Server, more: dict[str, Any]
) -> None:
    await post(client, server, parameter("bad", **more))
    assert await ids(client, "Patient?_id=p1&name:missing=true") == ["p1"]
    await client.delete("SearchParameter/bad")
    await server.rooms["search-parameters"].refresh()


async def told(client: httpx.AsyncClient, query: str = "") -> dict[str, Any]:
    response = await client.post(f"SearchParameter/$reindex{query}")
    assert response.status_code in (200, 202), response.text
    parts = response.json()["parameter"]
    return {part["name"]: next(value for key, value in part.items() if key != "name") for part in parts}


async def test_the_operation(client: httpx.AsyncClient, server: Server) -> None:
    await post(client, server, parameter("by-operation"))
    assert (await told(client, "?start=false"))["waiting"] == "http://example.org/SearchParameter/by-operation"
    assert (await told(client))["status"] == "running"
    await server.rooms["reindex"]
    assert await told(client) == {"status": "idle"}
    assert await ids(client, "Patient?by-operation=M")
    assert (await client.get("SearchParameter/$reindex")).status_code == 405
    assert (await client.post("SearchParameter/$reindex?colour=red")).status_code == 400

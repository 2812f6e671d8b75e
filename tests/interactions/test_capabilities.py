"""What the CapabilityStatement claims, done: every interaction, search parameter, include and operation of every type."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httpx
import pytest

from fhir_server.interactions.context import Server
from fhir_server.search.registry import Parameter

pytestmark = pytest.mark.anyio

VALUES = {
    "token": "x",
    "string": "x",
    "date": "2024",
    "number": "1",
    "quantity": "1",
    "uri": "http://example.org",
    "reference": "x",
    "special": "42.25|-71.5|10|km",
}
SPECIAL = {"_filter": "_id eq x", "_query": None, "_has": None, "_content": "x", "_text": "x"}
PATCH = {"resourceType": "Parameters", "parameter": []}


@pytest.fixture(scope="module")
async def rest(client: httpx.AsyncClient) -> dict[str, Any]:
    statement: dict[str, Any] = (await client.get("metadata")).json()
    rest: dict[str, Any] = statement["rest"][0]
    return rest


async def batch(client: httpx.AsyncClient, requests: Iterable[tuple[str, str, Any]]) -> list[tuple[str, str]]:
    """(status, all of its answer) for each (method, url, resource)."""
    entries = [
        {"request": {"method": method, "url": url}, **({"resource": resource} if resource else {})}
        for method, url, resource in requests
    ]
    response = await client.post("", json={"resourceType": "Bundle", "type": "batch", "entry": entries}, timeout=120)
    assert response.status_code == 200, response.text
    return [(one["response"]["status"][:3], str(one)) for one in response.json()["entry"]]


def value(parameter: Parameter) -> str:
    if parameter.type == "composite":
        return "$".join(value(component.parameter) for component in parameter.components)
    return VALUES[parameter.type]


async def test_every_search_parameter_can_be_searched_with(
    client: httpx.AsyncClient, server: Server, rest: dict[str, Any]
) -> None:
    asked = 0
    for claimed in rest["resource"]:
        known = server.registry.parameters(claimed["type"])
        pairs = [
            (row["name"], SPECIAL.get(row["name"], "") or value(known[row["name"]]))
            for row in claimed["searchParam"]
            if SPECIAL.get(row["name"], "") is not None
        ]
        urls = [f"{claimed['type']}?{name}={text}&_count=1" for name, text in pairs]
        for url, (status, told) in zip(urls, await batch(client, [("GET", url, None) for url in urls]), strict=True):
            assert status == "200", f"{url}: {told}"
            asked += 1
    assert asked > 2000


async def test_every_include_is_followed(client: httpx.AsyncClient, rest: dict[str, Any]) -> None:
    urls = [f"{one['type']}?_include={name}&_count=1" for one in rest["resource"] for name in one["searchInclude"]]
    for url, (status, told) in zip(urls, await batch(client, [("GET", url, None) for url in urls]), strict=True):
        assert status == "200", f"{url}: {told}"


async def test_every_interaction_of_every_type_is_there(client: httpx.AsyncClient, rest: dict[str, Any]) -> None:
    assert len(rest["resource"]) > 140
    for claimed in rest["resource"]:
        name = claimed["type"]
        body = {"resourceType": name, "id": "claimed"}
        # With a resource that has nothing but an id, a write is refused for what is missing, or done.
        requests: dict[str, tuple[str, str, Any, set[str], str]] = {
            "read": ("GET", f"{name}/none", None, {"404"}, "does not exist"),
            "vread": ("GET", f"{name}/none/_history/1", None, {"404"}, "has no version"),
            "update": ("PUT", f"{name}/claimed", body, {"201", "422"}, ""),
            "patch": ("PATCH", f"{name}/none", PATCH, {"404"}, "does not exist"),
            "delete": ("DELETE", f"{name}/none", None, {"204"}, ""),
            "history-instance": ("GET", f"{name}/none/_history", None, {"404"}, "does not exist"),
            "history-type": ("GET", f"{name}/_history", None, {"200"}, "'history'"),
            "create": ("POST", name, body, {"201", "422"}, ""),
            "search-type": ("GET", name, None, {"200"}, "'searchset'"),
        }
        codes = [one["code"] for one in claimed["interaction"]]
        answers = await batch(client, [requests[code][:3] for code in codes])
        for code, (status, told) in zip(codes, answers, strict=True):
            assert status in requests[code][3], f"{name} {code}: {told}"
            assert requests[code][4] in told, f"{name} {code}: {told}"
        assert claimed["conditionalCreate"] and claimed["conditionalUpdate"] and claimed["updateCreate"]


async def test_every_system_interaction_and_format_is_there(client: httpx.AsyncClient, rest: dict[str, Any]) -> None:
    assert {one["code"] for one in rest["interaction"]} == {"transaction", "batch", "history-system", "search-system"}
    for kind in ("batch", "transaction"):
        answer = await client.post("", json={"resourceType": "Bundle", "type": kind})
        assert answer.json()["type"] == f"{kind}-response"
    assert (await client.get("_history")).json()["type"] == "history"
    assert (await client.get("", params={"_type": "Patient,Group"})).json()["type"] == "searchset"
    statement = (await client.get("metadata")).json()
    for name in statement["format"]:
        assert (await client.get("metadata", params={"_format": name})).status_code == 200
    for name in statement["patchFormat"]:
        patched = await client.patch("Patient/none", content=b"[]", headers={"content-type": name})
        assert patched.status_code in (400, 404), name


async def test_every_operation_is_known_where_it_is_claimed(client: httpx.AsyncClient, rest: dict[str, Any]) -> None:
    places = [("", row["name"]) for row in rest["operation"]]
    places += [(one["type"], row["name"]) for one in rest["resource"] for row in one.get("operation", ())]
    parameters = {"resourceType": "Parameters", "parameter": [{"name": "timeout", "valueDecimal": 0}]}
    for place, name in places:
        urls = [f"{place}/${name}", f"{place}/none/${name}"] if place else [f"${name}"]
        told = [answer for url in urls for _, answer in await batch(client, [("POST", url, parameters)])]
        assert not all("is not known" in one or "405 " in one or "501 " in one for one in told), told

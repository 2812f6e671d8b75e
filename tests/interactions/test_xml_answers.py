"""Every kind of answer in XML says what it says in JSON; every kind of body may come in XML."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from fhir_server.model.resource import load
from fhir_server.model.xml import from_xml, to_xml

pytestmark = pytest.mark.anyio

XML, JSON = "application/fhir+xml", "application/fhir+json"
GROUP: dict[str, Any] = {"resourceType": "Group", "id": "x", "type": "person", "actual": True, "quantity": 3}
BATCH = {
    "resourceType": "Bundle",
    "type": "batch",
    "entry": [
        {"request": {"method": "GET", "url": "Group/x"}},
        {"request": {"method": "GET", "url": "Group/none"}},
        {"request": {"method": "GET", "url": "Group?_id=x"}},
        {"request": {"method": "DELETE", "url": "Group/none"}},
    ],
}
LABEL = {"resourceType": "Parameters", "parameter": [{"name": "meta", "valueMeta": {"tag": [{"code": "t"}]}}]}


@pytest.fixture(scope="module", autouse=True)
async def stored(client: httpx.AsyncClient) -> None:
    for quantity in (1, 2, 3):
        await client.put("Group/x", json={**GROUP, "quantity": quantity})


@pytest.mark.parametrize(
    ("method", "url", "body", "status"),
    [
        ("GET", "Group/x", None, 200),
        ("GET", "Group/x/_history/2", None, 200),
        ("GET", "Group/x?_summary=true", None, 200),
        ("GET", "Group?_id=x", None, 200),
        ("GET", "Group?_id=none", None, 200),
        ("GET", "Group?_summary=count", None, 200),
        ("GET", "Group?_id=x&_elements=quantity&_include=*", None, 200),
        ("GET", "Group/x/_history", None, 200),
        ("GET", "Group/_history?_count=1", None, 200),
        ("GET", "Group/none", None, 404),
        ("GET", "Group?colour=red", None, 400),
        ("POST", "Group", {"resourceType": "Group", "colour": "red"}, 422),
        ("GET", "metadata", None, 200),
        ("GET", "metadata?mode=terminology", None, 200),
        ("GET", "Group/x/$meta", None, 200),
        ("POST", "Group/$validate", GROUP, 200),
        ("POST", "", BATCH, 200),
        ("POST", "", {**BATCH, "type": "transaction", "entry": BATCH["entry"][:1]}, 200),
        ("POST", "", {"resourceType": "Bundle", "type": "collection"}, 400),
        ("PUT", "Group/x", GROUP, 200),
    ],
)
async def test_both_formats_say_the_same(
    client: httpx.AsyncClient, method: str, url: str, body: Any, status: int
) -> None:
    plain = {} if body is None else {"content": json.dumps(body), "headers": {"accept": JSON, "content-type": JSON}}
    marked = {"headers": {"accept": XML}}
    if body is not None and status != 422:  # an unknown element cannot be written as XML
        marked = {"content": to_xml(body), "headers": {"accept": XML, "content-type": XML}}
    elif body is not None:
        marked = {"content": json.dumps(body), "headers": {"accept": XML, "content-type": JSON}}
    in_json = await client.request(method, url, **plain)
    in_xml = await client.request(method, url, **marked)
    assert (in_json.status_code, in_xml.status_code) == (status, status), in_xml.text
    assert in_json.headers["content-type"] == f"{JSON}; charset=utf-8"
    assert in_xml.headers["content-type"] == f"{XML}; charset=utf-8"
    assert from_xml(in_xml.content) == load(in_json.content)


async def test_writes_of_every_kind_in_xml(client: httpx.AsyncClient) -> None:
    both = {"accept": XML, "content-type": XML}
    created = await client.post("Group", content=to_xml({**GROUP, "id": "y"}), headers=both)
    assert created.status_code == 201
    assert from_xml(created.content)["quantity"] == 3
    change = {
        "resourceType": "Parameters",
        "parameter": [
            {
                "name": "operation",
                "part": [
                    {"name": "type", "valueCode": "replace"},
                    {"name": "path", "valueString": "Group.quantity"},
                    {"name": "value", "valueInteger": 7},
                ],
            }
        ],
    }
    patched = await client.patch(f"Group/{from_xml(created.content)['id']}", content=to_xml(change), headers=both)
    assert (patched.status_code, from_xml(patched.content)["quantity"]) == (200, 7)
    labelled = await client.post("Group/x/$meta-add", content=to_xml(LABEL), headers=both)
    assert from_xml(labelled.content)["parameter"][0]["valueMeta"]["tag"] == [{"code": "t"}]
    told = await client.put("Group/x", content=to_xml(GROUP), headers={**both, "prefer": "return=OperationOutcome"})
    assert from_xml(told.content)["resourceType"] == "OperationOutcome"
    minimal = await client.put("Group/x", content=to_xml(GROUP), headers={**both, "prefer": "return=minimal"})
    assert (minimal.status_code, minimal.content) == (200, b"")


async def test_pretty_xml_has_lines_but_leaves_the_narrative_alone(client: httpx.AsyncClient) -> None:
    div = '<div xmlns="http://www.w3.org/1999/xhtml"><b>a</b> <i>b</i><p>c</p></div>'
    told = {**GROUP, "id": "told", "text": {"status": "generated", "div": div}, "name": "a\n\tb <王>"}
    await client.put("Group/told", json=told)
    plain = (await client.get("Group/told")).content
    pretty = await client.get("Group/told?_format=xml&_pretty=true")
    assert '\n  <id value="told"/>\n' in pretty.text
    assert '\n    <status value="generated"/>\n' in pretty.text
    assert f"\n    {div}\n" in pretty.text
    assert from_xml(pretty.content) == load(plain)

"""read, vread, create, update, delete and their headers. https://hl7.org/fhir/R4/http.html"""

from __future__ import annotations

from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio

ANN: dict[str, Any] = {
    "resourceType": "Patient",
    "name": [{"family": "Lee", "given": ["Ann"]}],
    "birthDate": "1980-05-01",
}


def issue(response: httpx.Response) -> dict[str, Any]:
    outcome = response.json()
    assert outcome["resourceType"] == "OperationOutcome"
    found: dict[str, Any] = outcome["issue"][0]
    return found


async def test_create_answers_where_the_resource_is_and_which_version(client: httpx.AsyncClient) -> None:
    response = await client.post("Patient", json=ANN)
    assert response.status_code == 201
    body = response.json()
    id = body["id"]
    assert response.headers["location"] == f"http://test/fhir/Patient/{id}/_history/1"
    assert response.headers["etag"] == 'W/"1"'
    assert body["meta"]["versionId"] == "1"
    assert response.headers["last-modified"].endswith("GMT")
    assert {**body, "id": None, "meta": None} == {**ANN, "id": None, "meta": None}
    again = await client.get(f"Patient/{id}")
    assert again.status_code == 200
    assert again.content == response.content


async def test_an_id_in_the_body_of_a_create_is_not_kept(client: httpx.AsyncClient) -> None:
    response = await client.post("Patient", json={**ANN, "id": "mine"})
    assert response.json()["id"] != "mine"


async def test_what_comes_out_is_what_went_in(client: httpx.AsyncClient) -> None:
    """Digits, order, `_element` siblings, contained resources, extensions and meta of the client's own survive."""
    sent = (
        '{"resourceType":"Observation","id":"exact","meta":{"profile":["http://example.org/p"],"tag":[{"code":"x"}]},'
        '"contained":[{"resourceType":"Patient","id":"c","name":[{"text":"王小明"}]}],"status":"final",'
        '"_status":{"extension":[{"url":"http://example.org/e","valueDecimal":1.10}]},'
        '"code":{"text":"é"},"subject":{"reference":"#c"},"valueQuantity":{"value":120.50,"unit":"mm"},'
        '"component":[{"code":{"text":"b"},"valueQuantity":{"value":1E-7}},{"code":{"text":"a"},"valueString":"\\u00a0x"}]}'
    )
    response = await client.put("Observation/exact", content=sent, headers={"content-type": "application/fhir+json"})
    assert response.status_code == 201, response.text
    stored = (await client.get("Observation/exact")).text
    assert '"value":120.50,' in stored
    assert '"valueDecimal":1.10}' in stored
    assert '"value":1E-7}' in stored
    assert '"profile":["http://example.org/p"]' in stored
    order = [
        stored.index(key)
        for key in ('"contained"', '"status"', '"_status"', '"code":{"text":"é', '"subject"', '"component"')
    ]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("Patient/u1", {**ANN, "id": "u1"}, 201, None),
        ("Patient/u2", {**ANN, "id": "other"}, 400, "invalid"),
        ("Patient/u3", ANN, 400, "invalid"),
        ("Patient/u4", {"resourceType": "Group", "id": "u4"}, 400, "invalid"),
        ("Patient/" + "x" * 65, {**ANN, "id": "x" * 65}, 400, "invalid"),
        ("Patient/u_5", {**ANN, "id": "u_5"}, 400, "invalid"),
        ("Fish/u6", {"resourceType": "Fish", "id": "u6"}, 404, "not-found"),
        ("Patient/u7", {**ANN, "id": "u7", "gender": "robot"}, 422, None),
    ],
)
async def test_update_with_the_clients_id(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, code: str | None
) -> None:
    response = await client.put(path, json=body)
    assert response.status_code == status, response.text
    if code:
        assert issue(response)["code"] == code


async def test_an_update_that_changes_nothing_makes_no_new_version(client: httpx.AsyncClient) -> None:
    body = {**ANN, "id": "same"}
    first = await client.put("Patient/same", json=body)
    again = await client.put("Patient/same", json=body)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.headers["etag"] == 'W/"1"'
    own = await client.put("Patient/same", content=first.content, headers={"content-type": "application/fhir+json"})
    assert own.headers["etag"] == 'W/"1"'
    changed = await client.put("Patient/same", json={**body, "active": True})
    assert changed.headers["etag"] == 'W/"2"'


async def test_versions_can_be_read_for_ever(client: httpx.AsyncClient) -> None:
    for active in (True, False):
        await client.put("Patient/v", json={**ANN, "id": "v", "active": active})
    first, second = await client.get("Patient/v/_history/1"), await client.get("Patient/v/_history/2")
    assert first.json()["active"] is True
    assert second.json()["active"] is False
    for wrong in ("3", "0", "x", "99999999999"):
        assert (await client.get(f"Patient/v/_history/{wrong}")).status_code == 404


async def test_if_match_lets_nobody_overwrite_what_they_did_not_see(client: httpx.AsyncClient) -> None:
    await client.put("Patient/m", json={**ANN, "id": "m"})
    wrong = await client.put("Patient/m", json={**ANN, "id": "m", "active": True}, headers={"if-match": 'W/"7"'})
    assert wrong.status_code == 412
    right = await client.put("Patient/m", json={**ANN, "id": "m", "active": True}, headers={"if-match": 'W/"1"'})
    assert right.status_code == 200
    absent = await client.put("Patient/m2", json={**ANN, "id": "m2"}, headers={"if-match": 'W/"1"'})
    assert absent.status_code == 412
    guarded = await client.put("Patient/m", json={**ANN, "id": "m"}, headers={"if-none-match": "*"})
    assert guarded.status_code == 412
    assert (await client.delete("Patient/m", headers={"if-match": 'W/"1"'})).status_code == 412


async def test_delete_is_idempotent_and_leaves_a_tombstone_that_can_be_revived(client: httpx.AsyncClient) -> None:
    await client.put("Patient/d", json={**ANN, "id": "d"})
    gone = await client.delete("Patient/d")
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await client.delete("Patient/d")).status_code == 204
    assert (await client.delete("Patient/never")).status_code == 204
    read = await client.get("Patient/d")
    assert read.status_code == 410
    assert read.headers["etag"] == 'W/"2"'
    assert (await client.get("Patient/d/_history/2")).status_code == 410
    assert (await client.get("Patient/d/_history/1")).status_code == 200
    revived = await client.put("Patient/d", json={**ANN, "id": "d"})
    assert (revived.status_code, revived.headers["etag"]) == (201, 'W/"3"')


async def test_conditional_read(client: httpx.AsyncClient) -> None:
    await client.put("Patient/c", json={**ANN, "id": "c"})
    response = await client.get("Patient/c")
    same = await client.get("Patient/c", headers={"if-none-match": response.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    assert same.headers["etag"] == 'W/"1"'
    assert (await client.get("Patient/c", headers={"if-none-match": 'W/"9"'})).status_code == 200
    seen = {"if-modified-since": response.headers["last-modified"]}
    assert (await client.get("Patient/c", headers=seen)).status_code == 304
    before = {"if-modified-since": "Sun, 06 Nov 1994 08:49:37 GMT"}
    assert (await client.get("Patient/c", headers=before)).status_code == 200
    assert (await client.get("Patient/c", headers={"if-modified-since": "yesterday"})).status_code == 200


async def test_head_is_get_without_a_body(client: httpx.AsyncClient) -> None:
    await client.put("Patient/h", json={**ANN, "id": "h"})
    get, head = await client.get("Patient/h"), await client.head("Patient/h")
    assert head.status_code == 200
    assert head.content == b""
    for name in ("etag", "last-modified", "content-type", "content-length"):
        assert head.headers[name] == get.headers[name]
    assert (await client.head("Patient/none")).status_code == 404


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [("return=minimal", ""), ("return=representation", "Patient"), ("return=OperationOutcome", "OperationOutcome")],
)
async def test_prefer_return(client: httpx.AsyncClient, prefer: str, expected: str) -> None:
    response = await client.post("Patient", json=ANN, headers={"prefer": prefer})
    assert response.status_code == 201
    assert (response.json()["resourceType"] if response.content else "") == expected
    assert "location" in response.headers


async def test_header_lines_of_one_name_are_one_list(client: httpx.AsyncClient) -> None:
    lines = [("prefer", "handling=lenient"), ("prefer", "return=representation")]
    response = await client.post("Patient", json=ANN, headers=lines)
    assert response.json()["resourceType"] == "Patient"
    found = await client.get("Patient?nonsense=1", headers=lines)
    assert found.status_code == 200
    twice = [("if-none-exist", "identifier=a"), ("if-none-exist", "identifier=b")]
    created = await client.post("Patient", json={**ANN, "identifier": [{"value": "a"}]}, headers=twice)
    again = await client.post("Patient", json={**ANN, "identifier": [{"value": "a"}]}, headers=twice)
    assert (created.status_code, again.status_code) == (201, 200), "neither line is left unheard"
    put = await client.put("Patient/l", json={**ANN, "id": "l"})
    match = [("if-match", 'W/"7"'), ("if-match", put.headers["etag"])]
    assert (await client.put("Patient/l", json={**ANN, "id": "l", "active": True}, headers=match)).status_code == 200


async def test_pretty_and_format_shape_the_answer(client: httpx.AsyncClient) -> None:
    await client.put("Patient/p", json={**ANN, "id": "p"})
    assert "\n  " in (await client.get("Patient/p?_pretty=true")).text
    xml = await client.get("Patient/p?_format=xml")
    assert xml.headers["content-type"].startswith("application/fhir+xml")
    assert "<Patient" in xml.text
    assert issue(await client.get("Patient/p?_pretty=perhaps"))["code"] == "invalid"


async def test_summary_and_elements_of_a_read_are_marked_as_incomplete(client: httpx.AsyncClient) -> None:
    await client.put("Patient/s", json={**ANN, "id": "s", "maritalStatus": {"text": "married"}})
    summary = (await client.get("Patient/s?_summary=true")).json()
    assert "maritalStatus" not in summary
    assert "name" in summary
    assert summary["meta"]["tag"][0]["code"] == "SUBSETTED"
    elements = (await client.get("Patient/s?_elements=birthDate")).json()
    assert elements["birthDate"] == "1980-05-01"
    assert "name" not in elements


async def test_an_unknown_parameter_is_refused_by_name(client: httpx.AsyncClient) -> None:
    await client.put("Patient/q", json={**ANN, "id": "q"})
    response = await client.get("Patient/q?_sumary=true")
    assert response.status_code == 400
    assert "_sumary" in issue(response)["diagnostics"]
    lenient = await client.get("Patient/q?_sumary=true", headers={"prefer": "handling=lenient"})
    assert lenient.status_code == 200


@pytest.mark.parametrize(
    ("header", "matches"),
    [
        ('W/"1"', True),
        ('"1"', True),
        ("1", True),
        ("*", True),
        ('W/"9", W/"1"', True),
        ('"9","1"', True),
        ('W/"7"', False),
        ('"9", "8"', False),
        ('""', False),
        ("", False),
        ('"1', False),
        ('1"', False),
        ('W/"1" x', False),
    ],
)
async def test_entity_tags_weak_strong_wild_and_in_lists(client: httpx.AsyncClient, header: str, matches: bool) -> None:
    await client.delete("Patient/tags")
    id = (await client.post("Patient", json=ANN)).json()["id"]
    read = await client.get(f"Patient/{id}", headers={"if-none-match": header})
    assert read.status_code == (304 if matches else 200)
    body = {**ANN, "id": id, "active": True}
    refused = await client.put(f"Patient/{id}", json=body, headers={"if-none-match": header})
    assert refused.status_code == (412 if matches else 200)
    version = refused.headers.get("etag", 'W/"1"')
    changed = await client.put(
        f"Patient/{id}", json={**body, "gender": "other"}, headers={"if-match": header.replace("1", version[3:-1])}
    )
    assert changed.status_code == (200 if matches else 412)


async def test_a_delete_tells_what_it_did_to_those_who_prefer_to_know(client: httpx.AsyncClient) -> None:
    prefer = {"prefer": "return=OperationOutcome"}
    await client.put("Patient/told", json={**ANN, "id": "told"})
    for words in ("Deleted: Patient/told", "There was nothing to delete"):
        deleted = await client.delete("Patient/told", headers=prefer)
        assert deleted.status_code == 200
        assert issue(deleted)["diagnostics"] == words
    assert (await client.delete("Patient/told", headers={"prefer": "return=representation"})).status_code == 204


async def test_a_part_of_the_capability_statement(client: httpx.AsyncClient) -> None:
    found = (await client.get("metadata?_elements=software")).json()
    assert "software" in found
    assert "implementation" not in found
    assert found["meta"]["tag"][0]["code"] == "SUBSETTED"

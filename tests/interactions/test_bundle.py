"""batch and transaction. https://hl7.org/fhir/R4/http.html#transaction"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio

SYSTEM = "http://example.org/b"


def entry(
    method: str, url: str, resource: dict[str, Any] | None = None, full_url: str = "", **request: str
) -> dict[str, Any]:
    result: dict[str, Any] = {"request": {"method": method, "url": url, **request}}
    if full_url:
        result["fullUrl"] = full_url
    if resource is not None:
        result["resource"] = resource
    return result


def bundle(kind: str, *entries: dict[str, Any]) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": kind, "entry": list(entries)}


def patient(number: str, **more: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "identifier": [{"system": SYSTEM, "value": number}], **more}


def observation(subject: str, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": {"text": "x"},
        "subject": {"reference": subject},
        **more,
    }


def statuses(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [one["response"]["status"].split()[0] for one in response.json()["entry"]]


async def test_references_between_entries_become_the_ids_they_got(client: httpx.AsyncClient) -> None:
    urn = "urn:uuid:61ebe359-bfdc-4613-8bf2-c5e300945f0a"
    div = f'<div xmlns="http://www.w3.org/1999/xhtml"><a href="{urn}">her</a></div>'
    response = await client.post(
        "",
        json=bundle(
            "transaction",
            entry("POST", "Observation", observation(urn, text={"status": "generated", "div": div})),
            entry("POST", "Patient", patient("r1"), urn),
            entry(
                "POST",
                "Basic",
                {
                    "resourceType": "Basic",
                    "code": {"text": "c"},
                    "extension": [{"url": "http://e.org/x", "valueUri": urn}],
                },
            ),
        ),
    )
    assert statuses(response) == ["201", "201", "201"]
    paths = [
        one["response"]["location"].removeprefix("http://test/fhir/").split("/_history")[0]
        for one in response.json()["entry"]
    ]
    stored = (await client.get(paths[0])).json()
    assert stored["subject"]["reference"] == paths[1]
    assert f'href="{paths[1]}"' in stored["text"]["div"]
    assert (await client.get(paths[2])).json()["extension"][0]["valueUri"] == paths[1]


async def test_a_full_url_on_a_server_is_rewritten_too(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "",
        json=bundle(
            "transaction",
            entry("POST", "Patient", patient("r2", id="77"), "http://other.org/fhir/Patient/77"),
            entry("POST", "Observation", observation("Patient/77"), "http://other.org/fhir/Observation/1"),
            entry("POST", "Observation", observation("http://other.org/fhir/Patient/77")),
        ),
    )
    ids = [one["response"]["location"].split("/")[-3] for one in response.json()["entry"]]
    for id in ids[1:]:
        assert (await client.get(f"Observation/{id}")).json()["subject"]["reference"] == f"Patient/{ids[0]}"


async def test_conditional_references(client: httpx.AsyncClient) -> None:
    await client.put("Patient/cr", json=patient("cr", id="cr"))
    made = await client.post(
        "", json=bundle("transaction", entry("POST", "Observation", observation(f"Patient?identifier={SYSTEM}|cr")))
    )
    id = made.json()["entry"][0]["response"]["location"].split("/")[-3]
    assert (await client.get(f"Observation/{id}")).json()["subject"]["reference"] == "Patient/cr"
    for number, status in (("none", 400), ("two", 412)):
        if number == "two":
            for _ in range(2):
                await client.post("Patient", json=patient("two"))
        refused = await client.post(
            "",
            json=bundle(
                "transaction", entry("POST", "Observation", observation(f"Patient?identifier={SYSTEM}|{number}"))
            ),
        )
        assert refused.status_code == status
        assert "Bundle.entry[0]" in refused.text


async def test_verbs_run_in_their_order_and_answers_come_in_the_requests(client: httpx.AsyncClient) -> None:
    await client.put("Patient/o1", json=patient("o1", id="o1"))
    await client.put("Patient/o2", json=patient("o2", id="o2"))
    response = await client.post(
        "",
        json=bundle(
            "transaction",
            entry("GET", "Patient/o2"),
            entry("PUT", "Patient/o2", patient("o2", id="o2", active=True)),
            entry("POST", "Patient", patient("o1"), ifNoneExist=f"identifier={SYSTEM}|o1x"),
            entry("DELETE", "Patient/o1"),
        ),
    )
    assert statuses(response) == ["200", "200", "201", "204"]
    assert response.json()["type"] == "transaction-response"
    assert response.json()["entry"][0]["resource"]["active"] is True  # reads see the whole
    assert response.json()["entry"][1]["response"]["etag"] == 'W/"2"'
    assert (await client.get("Patient/o1")).status_code == 410


async def test_all_or_nothing_and_every_problem_is_named(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "",
        json=bundle(
            "transaction",
            entry("PUT", "Patient/n1", patient("n1", id="n1")),
            entry("POST", "Patient", patient("n2", gender="robot")),
            entry("POST", "Patient", patient("n3", birthDate="never")),
        ),
    )
    assert response.status_code == 422
    where = [one["expression"][0] for one in response.json()["issue"] if one["severity"] == "error"]
    assert where == ["Bundle.entry[1].resource.gender", "Bundle.entry[2].resource.birthDate"]
    assert (await client.get("Patient/n1")).status_code == 404


@pytest.mark.parametrize(
    ("entries", "status"),
    [
        ([entry("PUT", "Patient/t1", patient("t", id="t1")), entry("DELETE", "Patient/t1")], 400),
        ([entry("PUT", "Patient/t1", patient("t", id="t1")), entry("PUT", "Patient/t1", patient("t", id="t1"))], 400),
        ([entry("POST", "Patient", patient("t2"), ifNoneExist="identifier=t2")] * 2, 400),
        (
            [
                entry("POST", "Patient", patient("t3"), "urn:uuid:1"),
                entry("POST", "Patient", patient("t4"), "urn:uuid:1"),
            ],
            400,
        ),
        ([entry("PUT", "Patient/t5", patient("t", id="t6"))], 400),
        ([entry("PUT", "Patient/t7", patient("t", id="t7"), ifMatch='W/"4"')], 412),
        ([entry("POST", "Patient/t8", patient("t"))], 400),
        ([entry("POST", "Fish", {"resourceType": "Fish"})], 404),
        ([entry("POST", "Patient")], 400),
        ([{"resource": patient("t9")}], 400),
        ([entry("EAT", "Patient", patient("t"))], 400),
        ([entry("POST", "http://[", patient("t"))], 400),
        ([entry("POST", "//test/fhir/Patient", patient("t"))], 400),
        ([entry("POST", "http://other.org/fhir/Patient", patient("t"))], 400),
        ([entry("POST", "http://test/fhirPatient", patient("t"))], 400),
        ([entry("POST", "urn:uuid:1", patient("t"))], 400),
        ([entry("POST", "Patient#1", patient("t"))], 400),
        ([entry("PUT", "Patient/%ff", patient("t"))], 400),
        ([entry("POST", "Patient", patient("t")), entry("GET", "Patient?colour=red")], 400),
        ([entry("POST", "Patient", patient("t")), entry("GET", "Fish/1")], 404),
        ([entry("POST", "Patient", patient("t")), entry("GET", "Patient/_history/1/2/3")], 404),
    ],
)
async def test_a_transaction_that_cannot_be(
    client: httpx.AsyncClient, entries: list[dict[str, Any]], status: int
) -> None:
    response = await client.post("", json=bundle("transaction", *entries))
    assert response.status_code == status, response.text
    assert "Bundle.entry[" in response.text


async def test_a_batch_answers_each_entry_for_itself(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "",
        json=bundle(
            "batch",
            entry("POST", "Patient", patient("b1")),
            entry("POST", "Patient", patient("b2", gender="robot")),
            entry("GET", "Patient/none"),
            entry("GET", f"Patient?identifier={SYSTEM}|none"),
            entry("PUT", "Patient/b3", patient("b3", id="b3")),
            entry("GET", "metadata"),
            entry("DELETE", "Patient/none"),
        ),
    )
    assert statuses(response) == ["201", "422", "404", "200", "201", "200", "204"]
    entries = response.json()["entry"]
    assert entries[1]["response"]["outcome"]["issue"][0]["expression"] == ["Patient.gender"]
    assert entries[3]["resource"]["type"] == "searchset"


@pytest.mark.parametrize("kind", ["batch", "transaction"])
async def test_a_json_patch_in_a_bundle_is_a_binary(client: httpx.AsyncClient, kind: str) -> None:
    await client.put("Patient/pt", json=patient("pt", id="pt"))
    operations = base64.b64encode(json.dumps([{"op": "add", "path": "/active", "value": True}]).encode()).decode()
    binary = {"resourceType": "Binary", "contentType": "application/json-patch+json", "data": operations}
    response = await client.post("", json=bundle(kind, entry("PATCH", "Patient/pt", binary)))
    assert statuses(response) == ["200"]
    assert (await client.get("Patient/pt")).json()["active"] is True
    unfit = {**binary, "contentType": "application/json"}, {**binary, "data": "="}
    answers = [await client.post("", json=bundle(kind, entry("PATCH", "Patient/pt", one))) for one in unfit]
    said = [statuses(one)[0] if kind == "batch" else str(one.status_code) for one in answers]
    assert said == ["415", "400"]


async def test_prefer_return_decides_what_the_entries_carry(client: httpx.AsyncClient) -> None:
    body = bundle("transaction", entry("POST", "Patient", patient("pr")))
    assert "resource" not in (await client.post("", json=body)).json()["entry"][0]
    full = await client.post("", json=body, headers={"prefer": "return=representation"})
    assert full.json()["entry"][0]["resource"]["identifier"][0]["value"] == "pr"


async def test_5000_entries(client: httpx.AsyncClient) -> None:
    urn = "urn:uuid:0b5b1a6c-0000-4000-8000-000000000000"
    entries = [entry("POST", "Patient", patient("big"), urn)]
    entries += [entry("POST", "Observation", observation(urn, valueInteger=n)) for n in range(4999)]
    response = await client.post("", json=bundle("transaction", *entries), timeout=120)
    assert set(statuses(response)) == {"201"}
    id = response.json()["entry"][0]["response"]["location"].split("/")[-3]
    total = (await client.get(f"Observation?subject=Patient/{id}&_summary=count")).json()["total"]
    assert total == 4999


async def test_too_many_entries_is_413(client: httpx.AsyncClient) -> None:
    entries = [entry("GET", "metadata")] * 10_001
    assert (await client.post("", json=bundle("batch", *entries))).status_code == 413


@pytest.mark.parametrize(
    "body", [{"resourceType": "Patient"}, bundle("collection"), {"resourceType": "Bundle", "type": "batch", "entry": 1}]
)
async def test_only_batches_and_transactions_are_processed(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert (await client.post("", json=body)).status_code == 400


async def test_transactions_on_the_same_resources_at_once_are_each_whole(client: httpx.AsyncClient) -> None:
    """Eight transactions write the same pair; at the end both carry the mark of one and the same writer."""

    async def write(mark: int) -> httpx.Response:
        entries = [
            entry(
                "PUT", f"Basic/pair{half}", {"resourceType": "Basic", "id": f"pair{half}", "code": {"text": str(mark)}}
            )
            for half in (1, 2)
        ]
        return await client.post("", json=bundle("transaction", *entries))

    answers = await asyncio.gather(*(write(mark) for mark in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    marks = [(await client.get(f"Basic/pair{half}")).json() for half in (1, 2)]
    assert marks[0]["code"] == marks[1]["code"]
    assert marks[0]["meta"]["versionId"] == "8"


async def test_urls_of_entries_may_be_absolute(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "",
        json=bundle(
            "transaction",
            entry("PUT", "http://test/fhir/Patient/ab", patient("ab", id="ab")),
            entry("PUT", f"http://test/fhir/Patient?identifier={SYSTEM}|ab2", patient("ab2")),
            entry("POST", "/Patient", patient("ab3")),
            entry("GET", f"http://test/fhir/Patient?identifier={SYSTEM}|ab2"),
            entry("GET", "http://test/fhir?_id=ab&_type=Patient"),
        ),
    )
    assert statuses(response) == ["201", "201", "201", "200", "200"]
    assert [len(one["resource"]["entry"]) for one in response.json()["entry"][3:]] == [1, 1]


async def test_a_read_that_finds_nothing_does_not_make_a_transaction_look_refused(client: httpx.AsyncClient) -> None:
    both = bundle("transaction", entry("PUT", "Patient/w1", patient("w1", id="w1")), entry("GET", "Patient/none"))
    assert statuses(await client.post("", json=both)) == ["201", "404"]
    assert (await client.get("Patient/w1")).status_code == 200
    alone = await client.post("", json=bundle("transaction", entry("GET", "Patient/none")))
    assert alone.status_code == 404


async def test_a_transaction_whose_reads_cannot_be_writes_nothing(client: httpx.AsyncClient) -> None:
    body = bundle("transaction", entry("PUT", "Patient/w2", patient("w2", id="w2")), entry("GET", "Patient?colour=red"))
    refused = await client.post("", json=body)
    assert (refused.status_code, "Bundle.entry[1]" in refused.text) == (400, True)
    assert (await client.get("Patient/w2")).status_code == 404


async def test_a_conditional_update_does_not_take_over_what_did_not_match(client: httpx.AsyncClient) -> None:
    await client.put("Patient/free", json=patient("free", id="free"))
    mine = patient("mine", id="free")
    for url in ("", f"Patient?identifier={SYSTEM}|mine"):
        refused = await (
            client.put(url, json=mine)
            if url
            else client.post("", json=bundle("transaction", entry("PUT", f"Patient?identifier={SYSTEM}|mine", mine)))
        )
        assert refused.status_code == 409, refused.text
    assert (await client.get("Patient/free")).json()["identifier"][0]["value"] == "free"


async def test_conditional_reads_in_a_batch(client: httpx.AsyncClient) -> None:
    stored = await client.put("Patient/cb", json=patient("cb", id="cb"))
    moment = stored.json()["meta"]["lastUpdated"]
    response = await client.post(
        "",
        json=bundle(
            "batch",
            entry("GET", "Patient/cb", ifNoneMatch='W/"1"'),
            entry("GET", "Patient/cb", ifNoneMatch='W/"2"'),
            entry("GET", "Patient/cb", ifModifiedSince=moment),
            entry("GET", "Patient/cb", ifModifiedSince="2020-01-01T00:00:00Z"),
            entry("HEAD", "Patient/cb"),
        ),
    )
    assert statuses(response) == ["304", "200", "304", "200", "200"]
    assert ["resource" in one for one in response.json()["entry"]] == [False, True, False, True, False]


async def test_operations_and_searches_in_a_batch(client: httpx.AsyncClient) -> None:
    await client.put("Patient/op", json=patient("op", id="op"))
    tag = {"resourceType": "Parameters", "parameter": [{"name": "meta", "valueMeta": {"tag": [{"code": "t"}]}}]}
    response = await client.post(
        "",
        json=bundle(
            "batch",
            entry("GET", "Patient/op/$meta"),
            entry("POST", "Patient/op/$meta-add", tag),
            entry("POST", "Patient/$validate", patient("x", gender="robot")),
            entry("GET", "Patient/op/$nothing"),
            entry("GET", f"Patient?identifier={SYSTEM}|op&_elements=identifier"),
            entry("GET", "Patient/op/_history"),
            entry("GET", "Patient?colour=red"),
            entry("DELETE", "metadata"),
            {"request": {"method": "GET", "url": 5}},
            entry("POST", "Patient/_search"),
        ),
    )
    assert statuses(response)[:9] == ["200", "200", "200", "404", "200", "200", "400", "405", "400"]
    entries = response.json()["entry"]
    assert entries[2]["resource"]["issue"][0]["severity"] == "error"
    assert entries[4]["resource"]["type"] == "searchset"
    assert entries[5]["resource"]["type"] == "history"
    assert entries[7]["response"]["status"] == "405 Method Not Allowed"


async def test_references_in_circles_and_in_every_place(client: httpx.AsyncClient) -> None:
    """Contained resources, extensions, uris and canonicals, fragments, the narrative; an identifier is no link."""
    one, two = "urn:uuid:00000000-0000-4000-8000-000000000001", "urn:uuid:00000000-0000-4000-8000-000000000002"
    inner = {
        "resourceType": "Observation",
        "id": "in",
        "status": "final",
        "code": {"text": one},
        "focus": [{"reference": two}],
    }
    div = (
        f'<div xmlns="http://www.w3.org/1999/xhtml">{one}<a href="{two}">her</a><img src="{two}#x" alt="{two}"/></div>'
    )
    first = {
        "resourceType": "Basic",
        "text": {"status": "generated", "div": div},
        "contained": [inner],
        "extension": [
            {"url": "http://e.org/r", "valueReference": {"reference": two}},
            {"url": "http://e.org/u", "valueUri": two},
            {"url": "http://e.org/c", "valueCanonical": two},
            {"url": "http://e.org/s", "valueString": two},
            {"url": "http://e.org/i", "valueReference": {"reference": "#in"}},
        ],
        "identifier": [{"system": "urn:ietf:rfc:3986", "value": one}],
        "code": {"text": two},
        "subject": {"reference": f"{two}#part", "display": two},
        "author": {"reference": "Practitioner/elsewhere"},
    }
    second = {"resourceType": "Basic", "code": {"text": "x"}, "subject": {"reference": one}}
    response = await client.post(
        "", json=bundle("transaction", entry("POST", "Basic", first, one), entry("POST", "Basic", second, two))
    )
    assert statuses(response) == ["201", "201"]
    here, there = (
        one["response"]["location"].removeprefix("http://test/fhir/").split("/_history")[0]
        for one in response.json()["entry"]
    )
    stored = (await client.get(here)).json()
    assert stored["contained"][0]["focus"][0]["reference"] == there
    assert stored["contained"][0]["code"]["text"] == one
    assert [next(v for k, v in e.items() if k != "url") for e in stored["extension"]] == [
        {"reference": there},
        there,
        there,
        two,
        {"reference": "#in"},
    ]
    assert stored["identifier"] == first["identifier"]
    assert stored["code"] == first["code"]
    assert stored["subject"] == {"reference": f"{there}#part", "display": two}
    assert stored["author"] == first["author"]
    assert stored["text"]["div"] == div.replace(f'="{two}', f'="{there}').replace(f'alt="{there}"', f'alt="{two}"')
    assert (await client.get(there)).json()["subject"]["reference"] == here


async def test_entries_that_are_none_are_refused_one_by_one(client: httpx.AsyncClient) -> None:
    wrong: list[Any] = ["x", 5, None, [], {}, {"request": "x"}, {"request": {"method": "GET"}}, {"request": {"url": 5}}]
    wrong += [
        {"request": {"method": ["GET"], "url": "Patient"}},
        {"request": {"method": "POST", "url": "Patient"}, "resource": 5},
    ]
    right = entry("GET", "metadata?_elements=status")
    response = await client.post("", json={"resourceType": "Bundle", "type": "batch", "entry": [*wrong, right]})
    assert statuses(response) == ["400"] * len(wrong) + ["200"]
    for one in wrong:
        refused = await client.post("", json={"resourceType": "Bundle", "type": "transaction", "entry": [right, one]})
        assert refused.status_code == 400


async def test_conditional_references_see_what_the_transaction_does(client: httpx.AsyncClient) -> None:
    """Made here: a match. Deleted or replaced here: none any more. Here and there: two."""
    await client.put("Patient/seen", json=patient("seen", id="seen"))
    reference = f"Patient?identifier={SYSTEM}|"

    async def subject(number: str, *others: dict[str, Any]) -> tuple[int, str]:
        response = await client.post(
            "", json=bundle("transaction", entry("POST", "Observation", observation(reference + number)), *others)
        )
        if response.status_code != 200:
            assert "Bundle.entry[" in response.text
            return response.status_code, ""
        url = response.json()["entry"][0]["response"]["location"].split("/_history")[0]
        found: str = (await client.get(url)).json()["subject"]["reference"]
        return 200, found

    status, made = await subject(
        "fresh", entry("POST", "Patient", patient("fresh"), ifNoneExist=f"identifier={SYSTEM}|fresh")
    )
    assert status == 200
    assert (await client.get(made)).json()["identifier"][0]["value"] == "fresh"
    again = entry("POST", "Patient", patient("fresh"), ifNoneExist=f"identifier={SYSTEM}|fresh")
    assert await subject("fresh", again) == (200, made)
    assert (await subject("fresh", entry("POST", "Patient", patient("fresh"))))[0] == 412
    assert (await subject("unheard", entry("POST", "Patient", patient("other"))))[0] == 400
    kept = entry("PUT", "Patient/seen", patient("seen", id="seen", active=True))
    assert await subject("seen", kept) == (200, "Patient/seen")
    assert (await subject("seen", entry("PUT", "Patient/seen", patient("renamed", id="seen"))))[0] == 400
    assert (await subject("seen", entry("DELETE", "Patient/seen")))[0] == 400
    assert (await subject("fresh", entry("PUT", "Patient/broken", patient("fresh", id="broken", gender="robot"))))[
        0
    ] == 422

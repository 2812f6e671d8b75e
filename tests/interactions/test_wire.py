"""Formats, encodings, bounds and errors on the wire."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio

JSON = "application/fhir+json"
BODY = b'{"resourceType":"Patient","active":true}'


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/fhir+json", JSON),
        ("application/fhir+xml", "application/fhir+xml"),
        ("application/json", JSON),
        ("text/xml", "application/fhir+xml"),
        ("*/*", JSON),
        ("application/fhir+xml;q=0.5, application/fhir+json;q=0.9", JSON),
        ("application/fhir+json;q=0.5, application/fhir+xml", "application/fhir+xml"),
        ("application/fhir+json; fhirVersion=4.0", JSON),
        ("text/html,application/xhtml+xml,*/*;q=0.8", JSON),
        ("image/png", None),
        ("application/fhir+json; fhirVersion=5.0", None),
        ("application/fhir+turtle", None),
    ],
)
async def test_accept(client: httpx.AsyncClient, accept: str, expected: str | None) -> None:
    response = await client.get("metadata", headers={"accept": accept})
    if expected is None:
        assert response.status_code == 406
    else:
        assert response.headers["content-type"].startswith(expected)


@pytest.mark.parametrize(
    ("format", "status"),
    [("json", 200), ("xml", 200), ("application/fhir+xml", 200), ("application/fhir json", 200), ("pdf", 406)],
)
async def test_format_wins_over_accept(client: httpx.AsyncClient, format: str, status: int) -> None:
    response = await client.get(
        "metadata", params={"_format": format}, headers={"accept": "image/png" if status == 200 else "*/*"}
    )
    assert response.status_code == status


async def test_xml_in_and_out(client: httpx.AsyncClient) -> None:
    xml = '<Patient xmlns="http://hl7.org/fhir"><id value="x1"/><birthDate value="1980"/></Patient>'
    created = await client.put("Patient/x1", content=xml, headers={"content-type": "application/fhir+xml"})
    assert created.status_code == 201, created.text
    assert (await client.get("Patient/x1")).json()["birthDate"] == "1980"
    answer = await client.get("Patient/x1", headers={"accept": "application/fhir+xml"})
    assert '<birthDate value="1980"/>' in answer.text
    error = await client.get("Patient/none", headers={"accept": "application/fhir+xml"})
    assert "<OperationOutcome" in error.text


BAD_BODIES: list[tuple[bytes, str, int, str]] = [
    (b"{", JSON, 400, "not valid JSON"),
    (b"[]", JSON, 400, "one JSON object"),
    (b'"x"', JSON, 400, "one JSON object"),
    (b'{"resourceType":"Patient","active":true,"active":false}', JSON, 400, "'active' occurs twice"),
    (b'{"resourceType":"Patient","id" : "1","id":"2","x":"\\":"}', JSON, 400, "'id' occurs twice"),
    (b'{"a":' * 90000 + b"1" + b"}" * 90000, JSON, 400, "nested deeper"),
    (b'{"resourceType":"Patient","name":' + b"[" * 200 + b"]" * 200 + b"}", JSON, 400, "nested deeper"),
    (b'{"resourceType":"Patient","name":[{"text":"\xff\xfe"}]}', JSON, 400, "not valid JSON"),
    (b'{"active":true}', JSON, 400, "resourceType"),
    (b"", JSON, 400, "as its body"),
    (BODY.replace(b"true", b"1e99999999999999999999"), JSON, 400, "out of range"),
    (b'{"resourceType":"Patient","name":[{"text":"\\ud800"}]}', JSON, 400, "not valid JSON"),
    (b'{"resourceType":"Patient","name":[{"text":"\\u0000"}]}', JSON, 422, "control characters"),
    (BODY, "text/plain", 415, "text/plain"),
    (BODY, "", 415, "no Content-Type"),
    (BODY, "application/fhir+json; charset=latin-1", 415, "latin-1"),
    (b"<Patient", "application/fhir+xml", 400, "XML"),
    (b"<!DOCTYPE x [<!ENTITY e 'x'>]><Patient xmlns='http://hl7.org/fhir'/>", "application/fhir+xml", 400, ""),
    (b'{"resourceType":"Patient","birthDate":"2024-02-30"}', JSON, 422, "2024-02-30"),
    (b'{"resourceType":"Patient","colour":"red"}', JSON, 422, "colour"),
]


@pytest.mark.parametrize(("body", "content_type", "status", "words"), BAD_BODIES, ids=range(len(BAD_BODIES)))
async def test_a_bad_body_is_refused_with_words(
    client: httpx.AsyncClient, body: bytes, content_type: str, status: int, words: str
) -> None:
    response = await client.post("Patient", content=body, headers={"content-type": content_type})
    assert response.status_code == status, response.text
    outcome = response.json()
    assert words in " ".join(one["diagnostics"] for one in outcome["issue"])
    assert "Traceback" not in response.text


async def test_every_problem_is_told_not_only_the_first(client: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {"resourceType": "Patient", "gender": "robot", "birthDate": "x", "colour": 1}
    outcome = (await client.post("Patient", json=body)).json()
    where = {expression for one in outcome["issue"] for expression in one.get("expression", ())}
    assert {"Patient.gender", "Patient.birthDate"} <= where
    assert len(outcome["issue"]) >= 3


async def test_gzip_both_ways(client: httpx.AsyncClient) -> None:
    packed = {"content-type": JSON, "content-encoding": "gzip"}
    response = await client.post("Patient", content=gzip.compress(BODY), headers=packed)
    assert response.status_code == 201
    metadata = await client.get("metadata", headers={"accept-encoding": "gzip"})
    assert metadata.headers["content-encoding"] == "gzip"
    assert metadata.json()["resourceType"] == "CapabilityStatement"
    plain = await client.get("metadata", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers


async def test_a_gzip_bomb_is_not_unpacked(client: httpx.AsyncClient) -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(b" " * 1_000_000) for _ in range(80)) + packer.flush()
    assert len(bomb) < 200_000
    response = await client.post("Patient", content=bomb, headers={"content-type": JSON, "content-encoding": "gzip"})
    assert response.status_code == 413


async def test_broken_encodings(client: httpx.AsyncClient) -> None:
    headers = {"content-type": JSON, "content-encoding": "gzip"}
    assert (await client.post("Patient", content=b"no gzip", headers=headers)).status_code == 400
    assert (await client.post("Patient", content=gzip.compress(BODY)[:-9], headers=headers)).status_code == 400
    headers["content-encoding"] = "br"
    assert (await client.post("Patient", content=BODY, headers=headers)).status_code == 415


async def test_a_body_over_the_limit_is_413(client: httpx.AsyncClient) -> None:
    response = await client.post("Patient", content=b" " * (65 * 1024 * 1024), headers={"content-type": JSON})
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("DELETE", "metadata", 405, "GET, HEAD"),
        ("POST", "Patient/1", 405, "DELETE, GET, HEAD, PATCH, PUT"),
        ("PUT", "Patient/1/_history/1", 405, "GET, HEAD"),
        ("GET", "Patient/1/2/3/4/5", 404, None),
        ("GET", "Patient/1/$nothing", 404, None),
        ("GET", "Patient/%00", 400, None),
        ("GET", "Patient/%ff", 400, None),
        ("GET", "Patient/a%2F_history", 400, None),
        ("GET", "Patient/a%2F..%2Fb", 400, None),
        ("GET", "Patient/a%3F_format=xml", 400, None),
        ("GET", "../fhir%2FPatient", 404, None),
        ("POST", "Patient/1/_history/1/$meta-add", 404, None),
        ("BREW", "Patient/1", 405, "DELETE, GET, HEAD, PATCH, PUT"),
    ],
)
async def test_methods_and_paths(
    client: httpx.AsyncClient, method: str, path: str, status: int, allow: str | None
) -> None:
    response = await client.request(method, path)
    assert response.status_code == status, response.text
    assert response.headers.get("allow") == allow
    assert response.json()["resourceType"] == "OperationOutcome"


async def test_the_request_id_is_given_back_and_a_harmful_one_is_not(client: httpx.AsyncClient) -> None:
    assert (await client.get("metadata", headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
    assert (await client.get("metadata", headers={"x-request-id": "<script>"})).headers["x-request-id"] != "<script>"


async def test_metadata_modes(client: httpx.AsyncClient) -> None:
    full = (await client.get("metadata")).json()
    assert len(full["rest"][0]["resource"]) > 140
    normative = (await client.get("metadata?mode=normative")).json()
    assert {"Patient", "Observation"} <= {entry["type"] for entry in normative["rest"][0]["resource"]}
    assert len(normative["rest"][0]["resource"]) < 20
    assert (await client.get("metadata?mode=terminology")).json()["resourceType"] == "TerminologyCapabilities"
    assert (await client.get("metadata?mode=x")).status_code == 400


async def test_a_byte_order_mark_is_no_part_of_the_resource(client: httpx.AsyncClient) -> None:
    created = await client.post("Patient", content=b"\xef\xbb\xbf" + BODY, headers={"content-type": JSON})
    assert created.status_code == 201


@pytest.mark.parametrize(
    ("accept", "packed"),
    [
        ("gzip", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("*", True),
        ("gzip;q=0", False),
        ("br, gzip;q=0.0", False),
        ("identity, *;q=0", False),
        ("notgzip", False),
        ("", False),
    ],
)
async def test_gzip_only_for_those_who_take_it(client: httpx.AsyncClient, accept: str, packed: bool) -> None:
    metadata = await client.get("metadata", headers={"accept-encoding": accept})
    assert ("content-encoding" in metadata.headers) is packed


async def test_a_form_says_how_its_answer_should_look(client: httpx.AsyncClient) -> None:
    answer = await client.post("Patient/_search", data={"_format": "xml", "_id": "none"})
    assert answer.headers["content-type"].startswith("application/fhir+xml")
    answer = await client.post("Patient/_search", data={"_pretty": "true", "_id": "none"})
    assert answer.text.startswith('{\n  "resourceType"')
    assert (await client.post("Patient/_search", data={"_format": "pdf"})).status_code == 406
    for method, path in (("PUT", "Patient/1"), ("POST", "Patient"), ("POST", ""), ("PATCH", "Patient/1")):
        assert (await client.request(method, path, data={"_id": "1"})).status_code == 415


async def test_criteria_in_json_are_not_taken_for_none(client: httpx.AsyncClient) -> None:
    """A search that ignored its body would find everybody."""
    refused = await client.post("Patient/_search", json={"resourceType": "Parameters"})
    assert refused.status_code == 415


async def test_format_and_pretty_on_a_write(client: httpx.AsyncClient) -> None:
    created = await client.post("Patient?_format=xml&_pretty=true", content=BODY, headers={"content-type": JSON})
    assert created.status_code == 201
    assert created.text.startswith("<?xml")
    refused = await client.post("Patient?_format=xml", content=b"{", headers={"content-type": JSON})
    assert (refused.status_code, "<OperationOutcome" in refused.text) == (400, True)


async def test_links_name_only_a_host_that_is_one(client: httpx.AsyncClient) -> None:
    for host, shown in (("good.example:8080", True), ("[::1]:80", True), ('x"><script>', False), ("h\xe9", False)):
        created = await client.post(
            "Patient", content=BODY, headers=[(b"content-type", JSON.encode()), (b"host", host.encode("latin-1"))]
        )
        assert created.headers["location"].startswith(f"http://{host}/fhir/") is shown


async def test_a_body_that_stops_coming_is_not_waited_for(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fhir_server.http.application.BODY_SECONDS", 0.05)

    async def halting() -> AsyncIterator[bytes]:
        yield BODY[:10]
        await asyncio.sleep(5)

    refused = await client.post("Patient", content=halting(), headers={"content-type": JSON})
    assert refused.status_code == 408
    assert refused.json()["issue"][0]["code"] == "timeout"

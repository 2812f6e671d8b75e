"""Whatever is sent, the answer is an answer: no 5xx, and an OperationOutcome with words where it is a refusal.

Requests are made at random from parts that are right, nearly right and wrong; the seed is fixed, `--long` takes many.
"""

from __future__ import annotations

import copy
import gzip
import itertools
import json
import os
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from fhir_server.cli.population import bundles
from fhir_server.model.xml import to_xml
from fhir_server.operations import OPERATIONS

pytestmark = pytest.mark.anyio

CALLS = [f"${row.name}" for row in OPERATIONS if row.name != "await-hooks"]  # that one waits, half a minute, by design
METHODS = ["GET", "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"]
TYPES = ["Patient", "Observation", "Bundle", "Binary", "Parameters", "ValueSet", "StructureDefinition", "Task", "Fish"]
SEGMENTS = [
    "_history",
    "_search",
    "metadata",
    "*",
    "1",
    "x.y",
    "...",
    "%2F",
    "%00",
    "%ff",
    "é",
    "$",
    "_",
    "a b",
    "1" * 70,
]
NAMES = [
    *(
        "_id",
        "_lastUpdated",
        "_tag",
        "_profile",
        "_text",
        "_content",
        "_filter",
        "_list",
        "_has",
        "_has:Observation:patient:code",
    ),
    *(
        "_sort",
        "_count",
        "_include",
        "_revinclude",
        "_summary",
        "_elements",
        "_total",
        "_contained",
        "_containedType",
        "_type",
    ),
    *(
        "_format",
        "_pretty",
        "_since",
        "_at",
        "_cursor",
        "_explain",
        "_multiple",
        "_query",
        "mode",
        "profile",
        "name",
        "name:exact",
    ),
    *(
        "birthdate",
        "identifier",
        "identifier:of-type",
        "code",
        "code:in",
        "code:not",
        "value-quantity",
        "subject.name",
        "near",
    ),
    *(
        "subject:Patient.name",
        "patient:identifier",
        "date",
        "combo-code-value-quantity",
        "general-practitioner",
        "url:below",
        ":",
    ),
]
VALUES = [
    *(
        "",
        "1",
        "-1",
        "a",
        "a,b",
        "a|b",
        "|",
        "||",
        "$",
        "\\",
        "\\,",
        "true",
        "count",
        "xml",
        "json",
        "*",
        "eq2024",
        "gt2024-02-30",
    ),
    *(
        "ap5",
        "5.40e-3|http://unitsofmeasure.org|mg",
        "le1e999",
        "Patient/1",
        "Patient",
        "http://x",
        "urn:uuid:1",
        "null",
        "\x00",
    ),
    *(
        "name eq 'x'",
        "name co ",
        "(",
        ")",
        "42.1|-71|10|km",
        "2024-01-01T00:00:00Z",
        "9" * 400,
        "é😀",
        "Observation:patient",
        "-_id",
    ),
    *(
        "Patient:organization:Organization",
        "$regex",
        '{"$gt":""}',
        "0001",
        "10000-01-01",
        "gt0001-01-01",
        "lt9999-12-31T23:59:60Z",
    ),
]
HEADERS: dict[str, list[str]] = {
    "accept": [
        "application/fhir+json",
        "application/fhir+xml",
        "text/html",
        "image/png",
        "*/*;q=x",
        ";;,",
        "application/fhir+json;q=0",
    ],
    "content-type": [
        "application/fhir+json",
        "application/fhir+xml",
        "application/json-patch+json",
        "text/plain",
        ";charset=",
        "",
    ],
    "prefer": [
        "return=minimal",
        "return=OperationOutcome",
        "handling=lenient",
        "handling=strict",
        "=;=,",
        "respond-async",
    ],
    "if-match": ['W/"1"', "*", '"', "W/", "1,2"],
    "if-none-match": ['W/"1"', "*", '"', ",,"],
    "if-none-exist": ["identifier=x", "_id=1", "?", "=", "Patient?_id=1", "_sort=x", "colour=red", "%ff"],
    "if-modified-since": ["x", "Sat, 29 Oct 1994 19:43:31 GMT", "9999", "2024-01-01T00:00:00Z", "0"],
    "content-encoding": ["gzip", "deflate", "br", "identity"],
    "accept-encoding": ["gzip", "gzip;q=0", "*;q=nan"],
    "host": ["h", "[", "a b", "é"],
    "x-request-id": ["1", "<", ""],
    "origin": ["http://app.example", "null"],
}
WRONG = [
    None,
    True,
    0,
    -1,
    10**30,
    1e300,
    "",
    " ",
    "x" * 70,
    "\x00",
    "😀",
    "2024-02-30",
    [],
    {},
    [None],
    [[]],
    {"id": 1},
    {"a": "b"},
]
WRONG += [
    {"reference": "Patient?x"},
    {"reference": 5},
    {"extension": {}},
    {"resourceType": "Patient"},
    {"resourceType": 3},
    "urn:uuid:1",
]


def resources() -> list[dict[str, Any]]:
    """Some of each type of the sample population, and of the official examples where they are."""
    found: dict[str, list[dict[str, Any]]] = {}
    for _, bundle in itertools.islice(bundles(), 3):
        for entry in json.loads(bundle)["entry"]:
            found.setdefault(entry["resource"]["resourceType"], []).append(entry["resource"])
    samples = [one for some in found.values() for one in some[:3]]
    samples += [
        {
            "resourceType": "Bundle",
            "type": kind,
            "entry": [
                {
                    "fullUrl": "urn:uuid:1",
                    "resource": samples[0],
                    "request": {"method": "POST", "url": samples[0]["resourceType"]},
                },
                {
                    "resource": samples[1],
                    "request": {"method": "PUT", "url": f"{samples[1]['resourceType']}?identifier=x|y"},
                },
                {"request": {"method": "GET", "url": "Patient?name=x"}},
                {"request": {"method": "DELETE", "url": "Patient/1"}},
            ],
        }
        for kind in ("batch", "transaction")
    ]
    samples += [
        {
            "resourceType": "Parameters",
            "parameter": [
                {
                    "name": "operation",
                    "part": [
                        {"name": "type", "valueCode": "add"},
                        {"name": "path", "valueString": "Patient"},
                        {"name": "name", "valueString": "active"},
                        {"name": "value", "valueBoolean": True},
                    ],
                },
                {"name": "meta", "valueMeta": {"tag": [{"code": "x"}]}},
                {"name": "resource", "resource": samples[0]},
                {"name": "mode", "valueCode": "update"},
                {"name": "profile", "valueUri": "http://hl7.org/fhir/StructureDefinition/bp"},
            ],
        }
    ]
    folder = os.environ.get("FHIR_EXAMPLES")
    if folder:
        samples += [
            json.loads(path.read_bytes())
            for path in sorted(Path(folder).glob("*.json"))
            if path.stat().st_size < 60_000
        ]
    return samples


class Fuzzer:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.samples = resources()

    def request(self) -> dict[str, Any]:
        pick = self.random
        headers = {name: pick.choice(values) for name, values in HEADERS.items() if pick.random() < 0.12}
        method = pick.choice(METHODS)
        content = b""
        path = self.path()
        if method in ("POST", "PUT", "PATCH") or pick.random() < 0.05:
            resource = copy.deepcopy(pick.choice(self.samples))
            if pick.random() < 0.6:
                path = self.fitting(method, resource)
            for _ in range(pick.choice([0, 0, 1, 2, 5])):
                self.spoil(resource)
            content, kind = self.body(resource)
            headers.setdefault("content-type", kind)
            if headers.get("content-encoding") == "gzip" and pick.random() < 0.7:
                content = gzip.compress(content)
        if pick.random() < 0.5:
            path += "?" + "&".join(
                f"{pick.choice(NAMES)}={pick.choice(VALUES)}" for _ in range(pick.choice([1, 1, 2, 3]))
            )
        url = httpx.URL("http://test/fhir").copy_with(raw_path=b"/fhir/" + self.encoded(path))
        return {
            "method": method,
            "url": url,
            "content": content,
            "headers": [(name.encode(), value.encode("utf-8")) for name, value in headers.items()],
        }

    def encoded(self, text: str) -> bytes:
        return b"".join(b"%%%02x" % byte if byte < 33 or byte > 126 else bytes([byte]) for byte in text.encode())

    def path(self) -> str:
        pick = self.random
        parts = [pick.choice(TYPES)] if pick.random() < 0.85 else []
        parts += pick.choices([*SEGMENTS, *TYPES, *CALLS], k=pick.choice([0, 0, 1, 1, 2, 3, 4]))
        return pick.choice(["/", "/", "/", "//"]).join(parts) + pick.choice(["", "", "", "/"])

    def fitting(self, method: str, resource: dict[str, Any]) -> str:
        name = resource["resourceType"]
        if name == "Bundle" and self.random.random() < 0.7:
            return ""
        if method == "POST":
            return self.random.choice([name, name, f"{name}/$validate"])
        return self.random.choice([f"{name}/{resource.get('id', 1)}", f"{name}?identifier=x|y", f"{name}/1/$meta-add"])

    def body(self, resource: dict[str, Any]) -> tuple[bytes, str]:
        pick = self.random.random()
        if pick < 0.15:
            try:
                content = to_xml(resource)
            except Exception:
                content = b"<Patient xmlns='http://hl7.org/fhir'><id value='1'/><id/></Patient>"
            return self.torn(content), "application/fhir+xml"
        if pick < 0.25:
            place = self.random.choice(["/active", "/name/0", "", "/id", "/-", "/~2", "/meta"])
            change = {
                "op": self.random.choice(["add", "remove", "replace", "move", "copy", "test", "eat"]),
                "path": place,
                "from": "/name",
                "value": self.random.choice(WRONG),
            }
            return json.dumps([change]).encode(), "application/json-patch+json"
        if pick < 0.3:
            return b"name=x&_id=%00&_format=xml&=", "application/x-www-form-urlencoded"
        return self.torn(json.dumps(resource).encode()), "application/fhir+json"

    def torn(self, content: bytes) -> bytes:
        """Now and then a few bytes are others, or missing."""
        pick = self.random
        if pick.random() < 0.85 or not content:
            return content
        at = pick.randrange(len(content))
        return (
            content[:at]
            + pick.choice([b"", b"\x00", b"\xff", b"1e9999999999999999999", b"]", b'"', b"<", b"&#0;", b"\\ud800"])
            + content[at + pick.randrange(3) :]
        )

    def spoil(self, resource: dict[str, Any]) -> None:
        """One value somewhere becomes another, goes away, or moves under another name."""
        pick = self.random
        places: list[tuple[Any, Any]] = []
        stack: list[Any] = [resource]
        while stack:
            value = stack.pop()
            for key in list(value) if isinstance(value, dict) else range(len(value)):
                places.append((value, key))
                if isinstance(value[key], dict | list):
                    stack.append(value[key])
        owner, key = pick.choice(places)
        what = pick.random()
        if what < 0.7:
            owner[key] = copy.deepcopy(pick.choice(WRONG))
        elif what < 0.8:
            del owner[key]
        elif isinstance(owner, dict):
            owner[
                pick.choice(["_", "$", "", "x.y", "_id", "extension", "contained", "meta", "text"])
                + pick.choice(["", str(key)])
            ] = copy.deepcopy(owner[key])
        else:
            owner.append(copy.deepcopy(pick.choice(WRONG)))


async def hold(client: httpx.AsyncClient, seed: int, requests: int) -> None:
    fuzzer = Fuzzer(seed)
    seen: set[int] = set()
    for number in range(requests):
        request = fuzzer.request()
        response = await client.request(**request)
        told = f"seed {seed} request {number}: {request} {response.status_code} {response.text[:500]}"
        assert response.status_code < 500 or response.status_code == 501, told
        assert response.headers["x-request-id"], told
        if response.status_code >= 400 and request["method"] != "HEAD":
            assert "OperationOutcome" in response.text, told
            assert "iagnostics" in response.text, told
        seen.add(response.status_code)
    assert seen > {200, 201, 400, 404, 405, 406, 412, 415, 422}


async def test_nothing_that_is_sent_makes_the_server_fail(client: httpx.AsyncClient) -> None:
    await hold(client, 1, 1500)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 12))
async def test_nothing_at_all(client: httpx.AsyncClient, seed: int) -> None:
    await hold(client, seed, 3_000)

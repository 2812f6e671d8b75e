"""A bulk data client: asks, waits, reads. https://hl7.org/fhir/uv/bulkdata/STU2/export.html"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx

ASYNC = {"Prefer": "respond-async"}
Resource = dict[str, Any]


def parameters(**given: Any) -> Resource:
    """Lists repeat a parameter; `patient` are references."""
    parts = []
    for name, values in given.items():
        for value in values if isinstance(values, list) else [values]:
            part = {"valueReference": {"reference": value}} if name == "patient" else {"valueString": value}
            parts.append({"name": name, **part})
    return {"resourceType": "Parameters", "parameter": parts}


async def kick_off(
    http: httpx.AsyncClient, url: str, headers: Mapping[str, str] | None = None, body: Resource | None = None
) -> httpx.Response:
    said = {**ASYNC, **(headers or {})}
    return await (http.get(url, headers=said) if body is None else http.post(url, json=body, headers=said))


async def finished(http: httpx.AsyncClient, location: str, headers: Mapping[str, str] | None = None) -> Resource:
    """The manifest."""
    for _ in range(1000):
        answer = await http.get(location, headers=headers)
        if answer.status_code != 202:
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"] == "application/json"
            manifest: Resource = answer.json()
            return manifest
        assert len(answer.headers["x-progress"]) < 100
        assert int(answer.headers["retry-after"]) > 0
        await asyncio.sleep(0.02)
    raise AssertionError("the export never ends")


async def read(
    http: httpx.AsyncClient, manifest: Resource, headers: Mapping[str, str] | None = None, kind: str = "output"
) -> list[Resource]:
    """What is in the files."""
    found: list[Resource] = []
    for item in manifest[kind]:
        answer = await http.get(item["url"], headers={"Accept": "application/fhir+ndjson", **(headers or {})})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/fhir+ndjson"
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert {line["resourceType"] for line in lines} == {item["type"]}
        assert len(lines) == item["count"]
        found += lines
    return found


async def export(
    http: httpx.AsyncClient, url: str, headers: Mapping[str, str] | None = None, body: Resource | None = None
) -> tuple[Resource, list[Resource]]:
    """Manifest and resources."""
    answer = await kick_off(http, url, headers, body)
    assert answer.status_code == 202, answer.text
    location = answer.headers["content-location"]
    manifest = await finished(http, location, headers)
    resources = await read(http, manifest, headers)
    assert (await http.delete(location, headers=headers)).status_code == 202
    return manifest, resources


def keys(resources: list[Resource]) -> list[str]:
    return sorted(f"{one['resourceType']}/{one['id']}" for one in resources)

"""Kick-off requests as a table: kick_off.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.export.asking import finished, keys, parameters, read

pytestmark = pytest.mark.anyio

ROWS = yaml.safe_load((Path(__file__).parent / "kick_off.yaml").read_text())


@pytest.fixture(scope="module")
async def filled(client: httpx.AsyncClient) -> httpx.AsyncClient:
    resources: list[dict[str, Any]] = [{"resourceType": "Organization", "id": "org", "name": "North"}]
    for id in ("a", "b"):
        subject = {"reference": f"Patient/{id}"}
        code = {"coding": [{"code": id}]}
        resources += [
            {"resourceType": "Patient", "id": id, "active": True, "birthDate": "1980", "name": [{"family": "Lee"}]},
            {"resourceType": "Observation", "id": id, "status": "final", "code": code, "subject": subject},
            {"resourceType": "Condition", "id": id, "code": code, "subject": subject},
        ]
    members = [
        {"entity": {"reference": "Patient/a"}},
        {"entity": {"reference": "Patient/b"}, "inactive": True},
        {"entity": {"reference": "Patient/b"}, "period": {"end": "2020"}},
        {"entity": {"reference": "Practitioner/a"}},
    ]
    resources.append({"resourceType": "Group", "id": "g", "type": "person", "actual": True, "member": members})
    for resource in resources:
        answer = await client.put(f"{resource['resourceType']}/{resource['id']}", json=resource)
        assert answer.status_code == 201, answer.text
    return client


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['url']} {row.get('post', '')} {row.get('prefer', '')}")
async def test_kick_off(filled: httpx.AsyncClient, row: dict[str, Any]) -> None:
    headers = {"Prefer": row.get("prefer", "respond-async")}
    if "post" in row:
        answer = await filled.post(row["url"], json=parameters(**row["post"]), headers=headers)
    else:
        answer = await filled.get(row["url"], headers=headers)
    assert answer.status_code == row["status"], answer.text
    assert answer.json()["resourceType"] == "OperationOutcome"
    if answer.status_code != 202:
        assert row.get("says", "") in answer.json()["issue"][0]["diagnostics"]
        return
    location = answer.headers["content-location"]
    manifest = await finished(filled, location)
    said = " ".join(one["issue"][0]["diagnostics"] for one in await read(filled, manifest, kind="error"))
    assert row.get("says", "") in said
    assert bool(said) == ("says" in row)
    if "types" in row:
        assert sorted(item["type"] for item in manifest["output"]) == row["types"]
    if row["url"].startswith("Group/"):
        found = keys(await read(filled, manifest))
        assert "Patient/a" in found and "Patient/b" not in found, "who is no longer a member is not exported"
    assert (await filled.delete(location)).status_code == 202


async def test_elements(filled: httpx.AsyncClient) -> None:
    answer = await filled.get(
        "$export?_elements=Patient.birthDate&_type=Patient,Condition", headers={"Prefer": "respond-async"}
    )
    location = answer.headers["content-location"]
    for resource in await read(filled, await finished(filled, location)):
        if resource["resourceType"] == "Patient":
            assert set(resource) == {"resourceType", "id", "meta", "active", "birthDate"}, "and modifiers"
            assert resource["meta"]["tag"][0]["code"] == "SUBSETTED"
        else:
            assert "code" in resource and "tag" not in resource["meta"]
    await filled.delete(location)

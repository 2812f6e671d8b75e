"""$validate in all its forms, and what is common to operations. https://hl7.org/fhir/R4/resource-operation-validate.html"""

from __future__ import annotations

from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio

ANN: dict[str, Any] = {"resourceType": "Patient", "birthDate": "1980"}
R4 = "http://hl7.org/fhir/StructureDefinition/"
OURS = "http://example.org/StructureDefinition/"


def parameters(**given: Any) -> dict[str, Any]:
    keys = {"resource": "resource", "mode": "valueCode", "profile": "valueUri"}
    return {"resourceType": "Parameters", "parameter": [{"name": n, keys[n]: value} for n, value in given.items()]}


def profile(name: str, base: str, path: str, type: str = "Patient", **rule: Any) -> dict[str, Any]:
    return {
        "resourceType": "StructureDefinition",
        "id": name,
        "url": OURS + name,
        "name": name.replace("-", ""),
        "status": "active",
        "kind": "resource",
        "abstract": False,
        "type": type,
        "baseDefinition": base,
        "derivation": "constraint",
        "differential": {"element": [{"id": type, "path": type}, {"id": path, "path": path, **rule}]},
    }


@pytest.fixture(scope="module", autouse=True)
async def stored(client: httpx.AsyncClient) -> None:
    for resource in (
        {**ANN, "id": "v1"},
        profile("named", R4 + "Patient", "Patient.name", min=1),
        profile("named-and-born", OURS + "named", "Patient.gender", min=1),
        profile("odd", R4 + "Patient", "Patient.name", max="many"),
    ):
        answer = await client.put(f"{resource['resourceType']}/{resource['id']}", json=resource)
        assert answer.status_code == 201, answer.text


def verdict(response: httpx.Response) -> list[str]:
    """Where the errors are; nothing for a yes."""
    assert response.status_code == 200, response.text
    outcome = response.json()
    assert outcome["resourceType"] == "OperationOutcome"
    return [one.get("expression", ["?"])[0] for one in outcome["issue"] if one["severity"] in ("error", "fatal")]


WRONG = {**ANN, "gender": "robot"}
V1 = {**ANN, "id": "v1"}
HR = {"resourceType": "Observation", "status": "final", "code": {"text": "x"}}


@pytest.mark.parametrize(
    ("url", "body", "errors"),
    [
        ("Patient/$validate", ANN, []),
        ("Patient/$validate", WRONG, ["Patient.gender"]),
        ("Patient/$validate", parameters(resource=ANN), []),
        ("Patient/$validate", parameters(resource=WRONG, mode="create"), ["Patient.gender"]),
        ("Patient/$validate?mode=create", V1, []),
        ("Patient/$validate?mode=update", V1, []),
        ("Patient/$validate?mode=update", ANN, ["Patient.id"]),
        ("Patient/v1/$validate", parameters(resource=V1, mode="update"), []),
        ("Patient/v1/$validate", parameters(resource={**ANN, "id": "v2"}, mode="update"), ["Patient.id"]),
        ("Patient/v1/$validate?mode=delete", None, []),
        ("Patient/v1/$validate", None, []),
        ("Observation/$validate", ANN, ["resourceType"]),
        (f"Patient/$validate?profile={R4}Patient", ANN, []),
        (f"Patient/$validate?profile={R4}Observation", ANN, ["resourceType"]),
        (f"Patient/$validate?profile={OURS}named", ANN, ["Patient"]),
        (f"Patient/$validate?profile={OURS}named", {**ANN, "name": [{"text": "A"}]}, []),
        (f"Patient/v1/$validate?profile={OURS}named", None, ["Patient"]),
        (f"Patient/$validate?profile={OURS}named-and-born", {**ANN, "gender": "other"}, ["Patient"]),
        ("Patient/$validate", parameters(resource=ANN, mode="profile", profile=OURS + "named"), ["Patient"]),
        (f"Observation/$validate?profile={R4}heartrate", HR, None),
    ],
)
async def test_the_answer_is_a_verdict(
    client: httpx.AsyncClient, url: str, body: Any, errors: list[str] | None
) -> None:
    response = await (client.post(url, json=body) if body is not None else client.get(url))
    if errors is None:
        assert verdict(response)
    else:
        assert verdict(response) == errors


@pytest.mark.parametrize(
    ("url", "body", "status"),
    [
        ("Patient/$validate", None, 400),
        ("Patient/none/$validate", None, 404),
        ("Patient/$validate?mode=eat", ANN, 400),
        ("Patient/$validate?mode=profile", ANN, 400),
        ("Patient/$validate?profile=http://example.org/none", ANN, 400),
        (f"Patient/$validate?profile={OURS}odd", {**ANN, "name": [{"text": "A"}]}, 400),
        ("Patient/$validate", parameters(resource="x"), 400),
        ("Patient/v1/_history/1/$validate", ANN, 404),
        ("Fish/$validate", ANN, 404),
        ("$validate", ANN, 404),
        ("Patient/v1/$meta-add", {"resourceType": "Parameters", "parameter": ["x"]}, 400),
        ("Patient/v1/$meta-add", {"resourceType": "Parameters", "parameter": {"name": "meta"}}, 400),
        (
            "Patient/v1/$meta-add",
            {"resourceType": "Parameters", "parameter": [{"name": "meta", "valueMeta": {"tag": 5}}]},
            400,
        ),
        (
            "Patient/v1/$meta-add",
            {"resourceType": "Parameters", "parameter": [{"name": "meta", "valueMeta": {"tag": [5]}}]},
            422,
        ),
        ("Patient/v1/$meta-add", {"resourceType": "Parameters", "parameter": [{"name": "meta", "part": ["x"]}]}, 400),
    ],
)
async def test_what_cannot_be_answered(client: httpx.AsyncClient, url: str, body: Any, status: int) -> None:
    response = await client.post(url, json=body) if body is not None else await client.get(url)
    assert response.status_code == status, response.text
    assert response.json()["issue"][0]["diagnostics"]


async def test_labels_are_added_found_and_removed(client: httpx.AsyncClient) -> None:
    label = {"system": "http://example.org", "code": "vip", "display": "V"}
    body = {"resourceType": "Parameters", "parameter": [{"name": "meta", "valueMeta": {"tag": [label]}}]}

    async def tags(url: str) -> Any:
        return (await client.get(url)).json()["parameter"][0]["valueMeta"].get("tag")

    for _ in range(2):  # the second changes nothing
        assert (await client.post("Patient/v1/$meta-add", json=body)).status_code == 200
    assert (await client.get("Patient/v1")).json()["meta"]["versionId"] == "2"
    for url in ("Patient/v1/$meta", "Patient/v1/_history/2/$meta", "Patient/$meta", "$meta"):
        assert await tags(url) == [label], url
    assert await tags("Patient/v1/_history/1/$meta") is None
    assert (await client.post("Patient/v1/$meta-delete", json=body)).status_code == 200
    assert await tags("Patient/v1/$meta") is None
    assert (await client.get("Patient/v1/$meta-add")).status_code == 405

"""What a search answers besides its matches: links, totals, parts, includes and their bounds."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from fhir_server.search import includes

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", autouse=True)
async def world(client: httpx.AsyncClient) -> None:
    await client.put("Organization/clinic", json={"resourceType": "Organization", "id": "clinic", "name": "Clinic"})
    for number in range(5):
        body: dict[str, Any] = {
            "resourceType": "Patient",
            "id": f"p{number}",
            "text": {"status": "generated", "div": '<div xmlns="http://www.w3.org/1999/xhtml">p</div>'},
            "name": [{"family": "Adams"}],
            "photo": [{"title": "passport"}],
            "contact": [{"name": {"family": "Kin"}}],
            "managingOrganization": {"reference": "Organization/clinic"},
            "deceasedBoolean": False,
        }
        await client.put(f"Patient/p{number}", json=body)
    for number in range(3):
        body = {
            "resourceType": "Observation",
            "id": f"o{number}",
            "status": "final",
            "code": {"text": "x"},
            "subject": {"reference": "Patient/p0"},
            "valueQuantity": {"value": 1},
        }
        text = json.dumps(body).replace('"value": 1', '"value": 1.50')
        await client.put(f"Observation/o{number}", content=text, headers={"content-type": "application/fhir+json"})


async def get(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    response = await client.get(url)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def link(bundle: dict[str, Any], relation: str) -> str | None:
    return next((found["url"] for found in bundle["link"] if found["relation"] == relation), None)


async def test_a_match_is_the_stored_bytes(client: httpx.AsyncClient) -> None:
    stored = (await client.get("Observation/o0")).content
    assert b"1.50" in stored
    assert stored in (await client.get("Observation?_id=o0")).content


async def test_links_and_addresses(client: httpx.AsyncClient) -> None:
    bundle = await get(client, "Patient?family=adams&_count=2")
    assert bundle["type"] == "searchset"
    assert "total" not in bundle
    assert link(bundle, "self") == "http://test/fhir/Patient?family=adams&_count=2"
    assert "_cursor=" in (link(bundle, "next") or "")
    assert bundle["entry"][0]["fullUrl"] == "http://test/fhir/Patient/p0"
    assert link(await get(client, "Patient?_count=5"), "next") is None
    assert link(await get(client, "Patient?_count=4"), "next") is not None


async def test_self_says_what_was_applied(client: httpx.AsyncClient) -> None:
    response = await client.get("Patient?family=adams&colour=red", headers={"prefer": "handling=lenient"})
    bundle = response.json()
    assert link(bundle, "self") == "http://test/fhir/Patient?family=adams&_count=50"
    outcome = bundle["entry"][-1]
    assert outcome["search"]["mode"] == "outcome"
    assert "'colour'" in outcome["resource"]["issue"][0]["diagnostics"]
    assert (await client.get("Patient?family=adams&colour=red")).status_code == 400
    huge = await get(client, "Patient?_count=1000000")
    assert (link(huge, "self") or "").endswith("_count=1000")


async def test_lenient_is_not_careless(client: httpx.AsyncClient) -> None:
    headers = {"prefer": "handling=lenient"}
    for query in ("birthdate=2024-13", "family:below=x", "_count=-1", "_sort=photo"):
        assert (await client.get(f"Patient?{query}", headers=headers)).status_code in (200, 400)
    assert (await client.get("Patient?birthdate=2024-13", headers=headers)).status_code == 400


@pytest.mark.parametrize(
    ("query", "total", "entries"),
    [
        ("_total=accurate&_count=2", 5, 2),
        ("_total=estimate&_count=2", 5, 2),
        ("_total=none", None, 5),
        ("_summary=count", 5, 0),
        ("_count=0", 5, 0),
        ("family=nobody&_summary=count", 0, 0),
    ],
)
async def test_totals(client: httpx.AsyncClient, query: str, total: int | None, entries: int) -> None:
    bundle = await get(client, f"Patient?{query}")
    assert bundle.get("total") == total
    assert len(bundle.get("entry", ())) == entries


@pytest.mark.parametrize(
    ("query", "there", "gone"),
    [
        ("_summary=true", {"name", "deceasedBoolean", "managingOrganization"}, {"text", "photo", "contact"}),
        ("_summary=text", {"text"}, {"photo", "name", "managingOrganization"}),
        ("_summary=data", {"name", "photo", "contact"}, {"text"}),
        ("_summary=false", {"text", "name", "photo", "contact"}, set()),
        ("_elements=name,photo", {"name", "photo", "deceasedBoolean"}, {"text", "contact", "managingOrganization"}),
        ("_elements=Patient.name", {"name"}, {"photo"}),
    ],
)
async def test_parts(client: httpx.AsyncClient, query: str, there: set[str], gone: set[str]) -> None:
    resource = (await get(client, f"Patient?_id=p0&{query}"))["entry"][0]["resource"]
    assert there | {"resourceType", "id", "meta"} <= set(resource)
    assert not gone & set(resource)
    marked = any(tag["code"] == "SUBSETTED" for tag in resource["meta"].get("tag", ()))
    assert marked is (query != "_summary=false")


async def test_included_once_after_the_matches(client: httpx.AsyncClient) -> None:
    bundle = await get(client, "Patient?_include=Patient:organization&_revinclude=Observation:subject")
    modes = [entry["search"]["mode"] for entry in bundle["entry"]]
    assert modes == ["match"] * 5 + ["include"] * 4


async def test_what_the_bound_cuts_is_said(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(includes, "MOST_INCLUDED", 2)
    bundle = await get(client, "Patient?_id=p0&_revinclude=Observation:subject")
    assert [entry["search"]["mode"] for entry in bundle["entry"]] == ["match", "include", "include", "outcome"]
    assert "More than 2" in bundle["entry"][-1]["resource"]["issue"][0]["diagnostics"]


async def test_a_chain_that_leads_through_too_many_is_refused(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fhir_server.search.execute.MOST_REFERENCES", 2)
    response = await client.get("Observation?patient.family=adams")
    assert response.status_code == 400
    assert response.json()["issue"][0]["code"] == "too-costly"


async def test_searches_by_post(client: httpx.AsyncClient) -> None:
    response = await client.post("Patient/_search", data={"family": "adams", "_count": "2"})
    assert response.status_code == 200
    assert len(response.json()["entry"]) == 2


async def test_contained_resources(client: httpx.AsyncClient) -> None:
    body = {
        "resourceType": "MedicationRequest",
        "id": "mr",
        "status": "active",
        "intent": "order",
        "subject": {"reference": "Patient/p0"},
        "contained": [{"resourceType": "Medication", "id": "m", "code": {"coding": [{"code": "aspirin"}]}}],
        "medicationReference": {"reference": "#m"},
    }
    await client.put("MedicationRequest/mr", json=body)
    await client.put(
        "Medication/free", json={"resourceType": "Medication", "id": "free", "code": {"coding": [{"code": "aspirin"}]}}
    )
    plain = await get(client, "Medication?code=aspirin")
    assert [e["resource"]["id"] for e in plain["entry"]] == ["free"]
    inside = await get(client, "Medication?code=aspirin&_contained=true")
    assert [e["resource"]["id"] for e in inside["entry"]] == ["mr"]
    itself = await get(client, "Medication?code=aspirin&_contained=true&_containedType=contained")
    assert [e["fullUrl"] for e in itself["entry"]] == ["http://test/fhir/MedicationRequest/mr#m"]
    both = await get(client, "Medication?code=aspirin&_contained=both")
    assert [e["resource"]["id"] for e in both["entry"]] == ["free", "mr"]
    assert "entry" not in await get(client, "Medication?code=statin&_contained=true")


async def test_deleted_resources_are_not_found(client: httpx.AsyncClient) -> None:
    await client.put("Basic/gone", json={"resourceType": "Basic", "id": "gone", "code": {"text": "x"}})
    assert (await get(client, "Basic?_id=gone"))["entry"]
    await client.delete("Basic/gone")
    for query in ("", "_id=gone", "_lastUpdated=gt2000", "code:not=y", "subject:missing=true", "_sort=-_lastUpdated"):
        bundle = await get(client, f"Basic?{query}&_total=accurate")
        assert bundle["total"] == 0, query
        assert "entry" not in bundle

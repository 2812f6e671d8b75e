"""What may be written, where reading is allowed: nothing of another's record, and nothing that widens one's own reach."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.auth.conftest import Secured

pytestmark = pytest.mark.anyio

Resource = dict[str, Any]
PATCH = {"Content-Type": "application/json-patch+json"}


def to(reference: str) -> dict[str, str]:
    return {"reference": reference}


def transaction(method: str, url: str, resource: Resource | None = None) -> Resource:
    entry: Resource = {"request": {"method": method, "url": url}}
    if resource is not None:
        entry["resource"] = resource
    return {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}


@pytest.fixture
async def keeper(secured: Secured) -> dict[str, str]:
    await secured.user("keeper", "administrator", clearance="V")
    headers = await secured.token("user/*.cruds", user="keeper")
    for id in ("w1", "w2"):
        await secured.http.put(f"Patient/{id}", json={"resourceType": "Patient", "id": id}, headers=headers)
    await secured.user("w1", "patient", "Patient/w1")
    return headers


async def put(secured: Secured, resource: Resource, headers: dict[str, str]) -> None:
    answer = await secured.http.put(f"{resource['resourceType']}/{resource['id']}", json=resource, headers=headers)
    assert answer.status_code in (200, 201), answer.text


SHARED_RECORDS: tuple[Resource, ...] = (
    {"resourceType": "Patient", "id": "w3", "link": [{"other": to("Patient/w1"), "type": "seealso"}]},
    {"resourceType": "CareTeam", "id": "w3", "status": "active", "subject": to("Patient/w2"),
     "participant": [{"member": to("Patient/w1")}]},
)  # fmt: skip


@pytest.mark.parametrize("resource", SHARED_RECORDS, ids=lambda one: one["resourceType"])
async def test_what_stands_in_anothers_record_as_well_stays_there(
    secured: Secured, keeper: dict[str, str], resource: Resource
) -> None:
    await put(secured, resource, keeper)
    own = await secured.token("patient/*.cruds", user="w1", patient="w1")
    kind, url, http = resource["resourceType"], f"{resource['resourceType']}/{resource['id']}", secured.http
    assert (await http.get(url, headers=own)).status_code == 200
    mine = {**resource, "subject": to("Patient/w1")} if kind == "CareTeam" else resource
    change = json.dumps([{"op": "replace", "path": "/subject/reference", "value": "Patient/w1"}])
    refused = [
        await http.delete(url, headers=own),
        await http.delete(f"{kind}?_id={resource['id']}", headers=own),
        await http.delete(f"{kind}?_id={resource['id']}&_multiple=true", headers=own),
        await http.put(url, json=mine, headers=own),
        await http.post("", json=transaction("DELETE", url), headers=own),
        await http.post("", json=transaction("PUT", url, mine), headers=own),
    ]
    if kind == "CareTeam":
        refused.append(await http.patch(url, content=change, headers={**own, **PATCH}))
    assert [answer.status_code for answer in refused] == [403] * len(refused), [answer.text for answer in refused]
    assert (await http.get(url, headers=keeper)).json()["meta"]["versionId"] == "1"
    assert (await http.delete(url, headers=keeper)).status_code == 204


@pytest.mark.parametrize(
    ("id", "scope"),
    [
        ("w8", "user/Observation.u patient/Observation.c"),
        ("w9", "user/Observation.u user/Observation.c?category=laboratory"),
    ],
)
async def test_an_update_that_creates_is_a_create(
    secured: Secured, keeper: dict[str, str], id: str, scope: str
) -> None:
    await secured.user("doctor", "practitioner", "Practitioner/d1", reach="all")
    headers = await secured.token(scope, user="doctor", patient="w1")
    url = f"Observation/{id}"
    survey = [{"coding": [{"code": "survey"}]}]
    body = {"resourceType": "Observation", "id": id, "status": "final", "code": {"text": "x"},
            "category": survey, "subject": to("Patient/w2")}  # fmt: skip
    for answer in (
        await secured.http.put(url, json=body, headers=headers),
        await secured.http.put(f"Observation?identifier={id}", json=body, headers=headers),
        await secured.http.post("", json=transaction("PUT", url, body), headers=headers),
    ):
        assert answer.status_code == 403, answer.text
    await put(secured, body, keeper)
    changed = await secured.http.put(url, json={**body, "status": "amended"}, headers=headers)
    assert changed.status_code == 200, changed.text
    assert (await secured.http.delete(url, headers=keeper)).status_code == 204
    assert (await secured.http.put(url, json=body, headers=headers)).status_code == 403


async def test_broken_glass_opens_nothing_for_later(secured: Secured, keeper: dict[str, str]) -> None:
    await secured.user("nurse", "practitioner", "Practitioner/d2", reach="care-team")
    nurse = await secured.token("user/*.cruds", user="nurse")
    broken = {**nurse, "X-Break-Glass": "unconscious in the ER"}
    team = {"resourceType": "CareTeam", "status": "active", "subject": to("Patient/w2"),
            "participant": [{"member": to("Practitioner/d2")}]}  # fmt: skip
    for answer in (
        await secured.http.post("CareTeam", json=team, headers=broken),
        await secured.http.post("", json=transaction("POST", "CareTeam", team), headers=broken),
    ):
        assert answer.status_code == 403, answer.text
    assert (await secured.http.get("Patient/w2", headers=nurse)).status_code == 404
    label = {"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}
    restricted = {"resourceType": "Observation", "id": "w7", "meta": {"security": [label]}, "status": "final",
                  "code": {"text": "x"}, "subject": to("Patient/w2")}  # fmt: skip
    await put(secured, restricted, keeper)
    bare = {name: value for name, value in restricted.items() if name != "meta"}
    assert (await secured.http.put("Observation/w7", json=bare, headers=broken)).status_code == 403
    unlabel = {"resourceType": "Parameters", "parameter": [{"name": "meta", "valueMeta": {"security": [label]}}]}
    answer = await secured.http.post("Observation/w7/$meta-delete", json=unlabel, headers=broken)
    assert answer.status_code == 403, answer.text
    amended = {**restricted, "status": "amended"}
    assert (await secured.http.put("Observation/w7", json=amended, headers=broken)).status_code == 200


async def test_a_proxy_does_not_write_the_consent_to_herself(secured: Secured, keeper: dict[str, str]) -> None:
    await put(secured, {"resourceType": "RelatedPerson", "id": "w1", "patient": to("Patient/w1")}, keeper)
    text = {"text": "x"}

    def consent(person: str, **more: Any) -> Resource:
        actor = [{"role": text, "reference": to(f"RelatedPerson/{person}")}]
        provision = {"type": "permit", "provision": [{"type": "permit", "actor": actor}]} if more else {"actor": actor}
        return {"resourceType": "Consent", "id": "w1", "status": "active", "scope": text, "category": [text],
                "policyRule": text, "patient": to("Patient/w1"),
                "provision": {"type": "permit", **provision, **more}}  # fmt: skip

    await put(secured, consent("w1"), keeper)
    await secured.user("proxy", "related-person", "RelatedPerson/w1")
    proxy = await secured.token("user/*.cruds", user="proxy")
    assert (await secured.http.get("Patient/w1", headers=proxy)).status_code == 200
    for answer in (
        await secured.http.post("Consent", json=consent("w1"), headers=proxy),
        await secured.http.post("Consent", json=consent("w1", period={"end": "2099"}), headers=proxy),
        await secured.http.put("Consent/w1", json=consent("w1", period={"end": "2099"}), headers=proxy),
        await secured.http.put("Consent/w1", json=consent("other"), headers=proxy),
        await secured.http.delete("Consent/w1", headers=proxy),
    ):
        assert answer.status_code == 403, answer.text
    assert (await secured.http.post("Consent", json=consent("other"), headers=proxy)).status_code == 201
    await put(secured, {**consent("w1"), "status": "inactive"}, keeper)
    assert (await secured.http.get("Patient/w1", headers=proxy)).status_code == 404


@pytest.mark.parametrize(("scope", "shown"), [("patient/Observation.u", False), ("patient/Observation.ru", True)])
async def test_a_patch_is_no_way_to_read(secured: Secured, keeper: dict[str, str], scope: str, shown: bool) -> None:
    body = {"resourceType": "Observation", "id": "w6", "status": "final", "code": {"text": "telling"},
            "subject": to("Patient/w1")}  # fmt: skip
    await put(secured, body, keeper)
    own = {**await secured.token(scope, user="w1", patient="w1"), "Prefer": "return=representation"}
    change = {"resourceType": "Parameters"}
    for answer in (
        await secured.http.patch("Observation/w6", content="[]", headers={**own, **PATCH}),
        await secured.http.post("", json=transaction("PATCH", "Observation/w6", change), headers=own),
        await secured.http.post(
            "", json={**transaction("PATCH", "Observation/w6", change), "type": "batch"}, headers=own
        ),
    ):
        assert answer.status_code == 200, answer.text
        assert ("telling" in answer.text) == shown

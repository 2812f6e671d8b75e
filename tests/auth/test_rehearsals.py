"""What rules would do is told by what the asker may see: neither by labelled results nor about patients who are hidden."""

from __future__ import annotations

from typing import Any

import pytest

from fhir_server.automation.ledger import Failure, Ledger, dump
from fhir_server.store.ledgers import Ledgers
from tests.auth.conftest import Secured

pytestmark = pytest.mark.anyio

LABEL = {"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}
OURS = "https://fhir-server.org/fhir/StructureDefinition"
TAGS = "https://fhir-server.org/fhir/CodeSystem/patient-tags"
CODE = {"system": "http://loinc.org", "code": "9999-1"}
RULE: dict[str, Any] = {
    "resourceType": "PlanDefinition", "id": "told", "url": "http://example.org/told", "version": "1", "status": "draft",
    "name": "Told", "title": "Told",
    "type": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/plan-definition-type", "code": "eca-rule"}]},
    "action": [{
        "id": "tell",
        "trigger": [{"type": "data-changed", "data": [
            {"type": "Observation", "codeFilter": [{"path": "code", "code": [CODE]}]}]}],
        "input": [{"type": "Observation", "codeFilter": [{"path": "code", "code": [CODE]}], "extension": [
            {"url": f"{OURS}/fact", "extension": [{"url": "name", "valueCode": "level"}]}]}],
        "condition": [{"kind": "applicability", "expression": {"language": "text/fhirpath", "expression": "%level > 7"}}],
        "extension": [{"url": f"{OURS}/tag", "valueCoding": {"system": TAGS, "code": "high-level"}}],
    }],
}  # fmt: skip


@pytest.fixture(scope="module")
async def told(secured: Secured) -> Secured:
    """A restricted result of t1, one of t2 as anybody's, and t3, who objects, like t2's."""
    await secured.user("keeper", "administrator", clearance="V")
    keeper = await secured.token("user/*.cruds", user="keeper")
    text = {"text": "x"}
    resources = [RULE]
    for id, label in (("t1", [LABEL]), ("t2", []), ("t3", [])):
        resources.append({"resourceType": "Patient", "id": id, "birthDate": "1950-01-01", "gender": "male"})
        resources.append(
            {"resourceType": "Observation", "id": f"told-{id}", "meta": {"security": label} if label else {},
             "status": "final", "code": {"coding": [CODE]}, "subject": {"reference": f"Patient/{id}"},
             "effectiveDateTime": "2026-01-01T00:00:00Z",
             "valueQuantity": {"value": 9, "unit": "1", "system": "http://unitsofmeasure.org", "code": "1"}}
        )  # fmt: skip
    resources.append(
        {"resourceType": "Consent", "id": "told", "status": "active", "scope": text, "category": [text],
         "policyRule": text, "patient": {"reference": "Patient/t3"}, "provision": {"type": "deny"}}
    )  # fmt: skip
    for resource in resources:
        if not resource.get("meta", True):
            del resource["meta"]
        answer = await secured.http.put(f"{resource['resourceType']}/{resource['id']}", json=resource, headers=keeper)
        assert answer.status_code == 201, answer.text
    await secured.user("doctor", "practitioner", "Practitioner/d1", reach="all")
    await secured.user("cleared", "practitioner", "Practitioner/d1", reach="all", clearance="R")
    return secured


@pytest.mark.parametrize(
    ("user", "scope", "patient", "tagged"),
    [
        ("cleared", "user/*.rs", "t1", True),
        ("doctor", "user/*.rs", "t1", False),
        ("doctor", "user/*.rs", "t2", True),
        ("doctor", "user/Patient.r user/PlanDefinition.r", "t2", False),
    ],
)
async def test_what_would_follow_follows_from_what_is_seen(
    told: Secured, user: str, scope: str, patient: str, tagged: bool
) -> None:
    headers = await told.token(scope, user=user)
    answer = await told.http.post(f"PlanDefinition/told/$apply?subject=Patient/{patient}", headers=headers)
    assert answer.status_code == 200, answer.text
    assert ("high-level" in answer.text) == tagged


@pytest.mark.parametrize(
    ("user", "matched"), [("keeper", {"t1", "t2", "t3"}), ("cleared", {"t1", "t2"}), ("doctor", {"t2"})]
)
async def test_a_dry_run_counts_who_is_seen(told: Secured, user: str, matched: set[str]) -> None:
    headers = await told.token("user/*.cruds", user=user)
    answer = await told.http.post("PlanDefinition/told/$dry-run", headers=headers)
    assert answer.status_code == 200, answer.text
    parts = answer.json()["parameter"]
    said = {part["name"]: part.get("valueInteger") for part in parts}
    assert said["matched"] == len(matched)
    assert said["patients"] == (3 if user == "keeper" else 2)
    examples = {part["valueReference"]["reference"] for part in parts if part["name"] == "example"}
    assert examples == {f"Patient/{id}" for id in matched}
    answer = await told.http.post("PlanDefinition/told/$backfill", headers=headers)
    assert {part["name"]: part.get("valueInteger") for part in answer.json()["parameter"]}["patients"] == said[
        "patients"
    ]


@pytest.mark.parametrize("operation", ["$hook-status", "$await-hooks", "PlanDefinition/told/$dry-run"])
async def test_who_is_limited_is_refused_what_is_about_everybody(told: Secured, operation: str) -> None:
    await told.user("t1", "patient", "Patient/t1")
    headers = await told.token("patient/*.cruds", user="t1", patient="t1")
    answer = await told.http.post(operation, headers=headers)
    assert answer.status_code == 403, answer.text


async def test_what_was_given_up_is_told_of_who_is_seen(told: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    async def dead(*_: Any) -> dict[str, bytes]:
        ledger = dump(Ledger(failures={"http://example.org/told": Failure("9 is too much")}))
        return {"t2": ledger, "t3": ledger}

    monkeypatch.setattr(Ledgers, "dead", dead)
    for user, patients in (("keeper", {"Patient/t2", "Patient/t3"}), ("doctor", {"Patient/t2"})):
        answer = await told.http.get("$hook-status", headers=await told.token("user/*.cruds", user=user))
        parts = answer.json()["parameter"]
        letters = [part["part"][0]["valueReference"]["reference"] for part in parts if part["name"] == "deadLetter"]
        assert set(letters) == patients
        assert [part["valueInteger"] for part in parts if part["name"] == "deadLetters"] == [len(patients)]

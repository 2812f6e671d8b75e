"""$explain tells what a rule saw to those who may see what it looked at."""

from __future__ import annotations

from typing import Any

import pytest

from fhir_server.automation.proposals import Seen
from fhir_server.automation.provenance import provenance_id
from fhir_server.automation.vocabulary import IDENTIFIERS, structure
from fhir_server.model.resource import dump
from fhir_server.search.index import index
from fhir_server.store.protocol import Put, Stored
from tests.auth.conftest import Secured

pytestmark = pytest.mark.anyio
RESTRICTED = {"security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}]}
INPUT = "Observation/why-1"


def derived() -> list[dict[str, Any]]:
    subject = {"reference": "Patient/why"}
    seen = str(Seen("%level.value > 7", "9.1 %", True))
    rule = [
        {"url": structure("rule"), "valueCanonical": "http://example.org/rule|1"},
        {"url": structure("event"), "valueString": f"create {INPUT}"},
        {"url": structure("conditions-seen"), "valueString": seen},
        {"url": structure("input"), "valueReference": {"reference": f"{INPUT}/_history/1"}},
    ]
    return [
        {"resourceType": "Patient", "id": "why"},
        {"resourceType": "Observation", "id": "why-1", "meta": RESTRICTED, "status": "final", "subject": subject},
        {"resourceType": "Flag", "id": "why-f", "subject": subject,
         "identifier": [{"system": IDENTIFIERS, "value": "slot|why|1"}]},
        {"resourceType": "Provenance", "id": provenance_id("why", "slot", 1), "recorded": "2026-01-01T00:00:00Z",
         "target": [{"reference": "Flag/why-f"}], "extension": [{"url": structure("rule-applied"), "extension": rule}]},
    ]  # fmt: skip


async def test_an_explanation_shows_no_more_than_its_reader_may_see(secured: Secured) -> None:
    puts = []
    for resource in derived():
        indexed = index(secured.server.registry, resource)
        kind, id = resource["resourceType"], resource["id"]
        stored = Stored(kind, id, 1, 1, dump(resource), patients=indexed.patients, entries=indexed.entries)
        puts.append(Put(stored))
    await secured.server.store.commit(puts)
    await secured.user("why", "patient", "Patient/why")
    await secured.user("cleared", "patient", "Patient/why", clearance="R")
    for user, scope, told in (
        ("cleared", "patient/*.rs", True),
        ("why", "patient/*.rs", False),
        ("cleared", "patient/Flag.rs", False),
    ):
        headers = await secured.token(scope, user=user, patient="why")
        answer = await secured.http.get("Flag/why-f/$explain", headers=headers)
        assert answer.status_code == 200, answer.text
        assert "http://example.org/rule|1" in answer.text
        assert ("9.1 %" in answer.text, INPUT in answer.text) == (told, told), (user, scope)


async def test_an_identifier_of_anothers_leads_nowhere(secured: Secured) -> None:
    """Whoever writes a resource chooses its identifier, and slots have known names."""
    subject = {"reference": "Patient/curious"}
    forged = {"resourceType": "Flag", "id": "curious-f", "subject": subject,
              "identifier": [{"system": IDENTIFIERS, "value": "slot|why|1"}]}  # fmt: skip
    puts = []
    for resource in (*derived(), {"resourceType": "Patient", "id": "curious"}, forged):
        key = (resource["resourceType"], resource["id"])
        if await secured.server.store.read(*key) is None:
            indexed = index(secured.server.registry, resource)
            puts.append(Put(Stored(*key, 1, 1, dump(resource), patients=indexed.patients, entries=indexed.entries)))
    await secured.server.store.commit(puts)
    await secured.user("curious", "patient", "Patient/curious")
    headers = await secured.token("patient/*.cruds", user="curious", patient="curious")
    answer = await secured.http.get("Flag/curious-f/$explain", headers=headers)
    assert answer.status_code == 404, answer.text
    for value in ({}, {"value": "slot"}, {"value": "slot|why|one"}):
        flag = {**forged, "identifier": [{"system": IDENTIFIERS, **value}], "status": "active", "code": {"text": "x"}}
        assert (await secured.http.put("Flag/curious-f", json=flag, headers=headers)).status_code == 200
        assert (await secured.http.get("Flag/curious-f/$explain", headers=headers)).status_code == 404

"""Whose record a Task, a Provenance, a Device is in: R4's compartment leaves them out, access must not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fhir_server.search.reindex import reindex
from tests.auth.conftest import Secured
from tests.auth.test_reach import actor, consent, put, records, team  # noqa: F401  (fixtures)

pytestmark = pytest.mark.anyio

Put = Callable[[dict[str, Any]], Awaitable[None]]
ABOUT = (
    "Task/t-for", "Task/t-focus", "Provenance/v-task", "Provenance/v-result", "Device/dev", "GuidanceResponse/g",
    "Binary/b-patient", "Binary/b-result",
)  # fmt: skip
CARRIERS = ("Bundle/b", "Parameters/p")


def provenance(id: str, *targets: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "resourceType": "Provenance",
        "target": [{"reference": one} for one in targets],
        "recorded": "2026-01-01T00:00:00Z",
        "agent": [{"who": {"reference": "Practitioner/d1"}}],
    }
    return found | ({"id": id} if id else {})


def task(id: str, **more: Any) -> dict[str, Any]:
    return {"resourceType": "Task", "id": id, "status": "requested", "intent": "order", **more}


@pytest.fixture
async def about_c1(put: Put, records: None) -> None:  # noqa: F811
    """Each of ABOUT is about patient c1, by one way or another."""
    await put(task("t-for", **{"for": {"reference": "Patient/c1"}}))
    await put(task("t-focus", focus={"reference": "Observation/o-c1"}))
    await put(provenance("v-task", "Task/t-focus"))
    await put(provenance("v-result", "Observation/o-c1/_history/1"))
    await put({"resourceType": "Device", "id": "dev", "patient": {"reference": "Patient/c1"}})
    for id, reference in (("b-patient", "Patient/c1"), ("b-result", "Observation/o-c1")):
        await put({"resourceType": "Binary", "id": id, "contentType": "text/plain", "data": "eA==",
                   "securityContext": {"reference": reference}})  # fmt: skip
    inside = {
        "resourceType": "Observation",
        "status": "final",
        "code": {"text": "x"},
        "subject": {"reference": "Patient/c1"},
    }
    await put({"resourceType": "Bundle", "id": "b", "type": "collection", "entry": [{"resource": inside}]})
    patient = {"resourceType": "Patient", "id": "c1"}
    await put({"resourceType": "Parameters", "id": "p", "parameter": [{"name": "x", "resource": patient}]})
    await put({"resourceType": "GuidanceResponse", "id": "g", "moduleUri": "http://x", "status": "success",
               "subject": {"reference": "Patient/c1"}})  # fmt: skip


async def shown(secured: Secured, headers: dict[str, str], keys: tuple[str, ...] = ABOUT) -> set[str]:
    """Which of them show, by id, search and history alike."""
    found = set()
    for key in keys:
        kind, _, id = key.partition("/")
        by_id = (await secured.http.get(key, headers=headers)).status_code
        total = (await secured.http.get(f"{kind}?_id={id}&_summary=count", headers=headers)).json()["total"]
        history = (await secured.http.get(f"{key}/_history", headers=headers)).status_code
        assert (by_id, history) == ((200, 200) if total else (404, 404)), key
        if total:
            found.add(key)
    return found


async def test_an_objection_hides_what_is_about_the_patient(secured: Secured, put: Put, about_c1: None) -> None:  # noqa: F811
    await secured.user("all", "practitioner", "Practitioner/d1", reach="all")
    doctor = await secured.token("user/*.rs", user="all")
    service = await secured.token("system/*.rs", client="service")
    keys = (*ABOUT, *CARRIERS)
    assert await shown(secured, doctor, keys) == await shown(secured, service, keys) == set(keys)
    await put(consent("x1", "c1", {"type": "deny"}))
    assert await shown(secured, doctor, keys) == await shown(secured, service, keys) == set()
    await put(consent("x1", "c1", {"type": "deny"}, status="inactive"))
    assert await shown(secured, doctor) == set(ABOUT)


async def test_who_sees_the_patient_sees_the_tasks(secured: Secured, put: Put, about_c1: None) -> None:  # noqa: F811
    await secured.user("c1", "patient", "Patient/c1")
    await secured.user("c2", "patient", "Patient/c2")
    assert await shown(secured, await secured.token("patient/*.rs", user="c1", patient="c1")) == set(ABOUT)
    assert await shown(secured, await secured.token("patient/*.rs", user="c2", patient="c2")) == set()
    for key in CARRIERS:
        own = await secured.token("patient/*.rs", user="c1", patient="c1")
        assert (await secured.http.get(key, headers=own)).status_code == 403, "others may be in it"
    await secured.user("team", "practitioner", "Practitioner/d8", reach="care-team")
    nurse = await secured.token("user/*.cruds", user="team")
    assert await shown(secured, nurse) == set()
    await put(team("x2", "c1", "d8"))
    assert await shown(secured, nurse) == set(ABOUT)
    done = [{"op": "replace", "path": "/status", "value": "completed"}]
    patch = {**nurse, "Content-Type": "application/json-patch+json"}
    assert (await secured.http.patch("Task/t-for", json=done, headers=patch)).status_code == 200
    assert (await secured.http.get("Patient/c1/Task?_summary=count", headers=nurse)).json()["total"] == 2
    everything = await secured.http.get("Patient/c1/$everything?_count=100", headers=nurse)
    assert {f"{one['resource']['resourceType']}/{one['resource']['id']}" for one in everything.json()["entry"]} >= set(
        ABOUT
    )
    await put(team("x2", "c1", "d8", status="inactive"))


async def test_a_target_that_is_not_ones_own_leads_nowhere(secured: Secured, put: Put, about_c1: None) -> None:  # noqa: F811
    """Neither into the other's record, nor to a difference from an id that nobody has."""
    await secured.user("own", "patient", "Patient/c2")
    own = await secured.token("patient/*.cruds", user="own", patient="c2")
    for others in ("Observation/o-c1", "Observation/nobody"):
        assert (await secured.http.post("Provenance", json=provenance("", others), headers=own)).status_code == 403
        answer = await secured.http.post("Provenance", json=provenance("", "Observation/o-c2", others), headers=own)
        assert answer.status_code == 201
        key = f"Provenance/{answer.json()['id']}"
        assert (await secured.http.get(key, headers=own)).status_code == 200
        await secured.user("c1", "patient", "Patient/c1")
        other = await secured.token("patient/*.rs", user="c1", patient="c1")
        assert (await secured.http.get(key, headers=other)).status_code == 404
    both = task("", **{"for": {"reference": "Patient/c2"}, "focus": {"reference": "Patient/c1"}})
    del both["id"]
    assert (await secured.http.post("Task", json=both, headers=own)).status_code == 403


async def test_within_a_transaction_and_after_reindexing(secured: Secured, put: Put, about_c1: None) -> None:  # noqa: F811
    await secured.user("laboratory", "lab", "Practitioner/d1")
    lab = await secured.token("user/*.c", user="laboratory")
    result = {
        "resourceType": "Observation",
        "status": "final",
        "code": {"text": "x"},
        "subject": {"reference": "Patient/c1"},
    }
    entries = [  # what is about others first
        {"resource": provenance("", "urn:uuid:b"), "request": {"method": "POST", "url": "Provenance"}},
        {"resource": task("", focus={"reference": "urn:uuid:a"}), "fullUrl": "urn:uuid:b",
         "request": {"method": "POST", "url": "Task"}},
        {"resource": result, "fullUrl": "urn:uuid:a", "request": {"method": "POST", "url": "Observation"}},
    ]  # fmt: skip
    del entries[1]["resource"]["id"]
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    answer = await secured.http.post("", json=bundle, headers=lab)
    assert answer.status_code == 200, answer.text
    keys = ["/".join(one["response"]["location"].split("/")[-4:-2]) for one in answer.json()["entry"]]
    assert [key.split("/")[0] for key in keys] == ["Provenance", "Task", "Observation"]
    await secured.user("c1", "patient", "Patient/c1")
    own = await secured.token("patient/*.rs", user="c1", patient="c1")
    assert [(await secured.http.get(key, headers=own)).status_code for key in keys] == [200] * 3
    store = secured.server.store
    await store.database["Provenance"].update_one(
        {"_id": "v-result"}, {"$unset": {"p": 1}}
    )  # as before it was looked for
    async for _ in reindex(store, secured.server.registry, ("*",), base="http://test/fhir"):
        pass
    assert await shown(secured, own) == set(ABOUT)
    assert [(await secured.http.get(key, headers=own)).status_code for key in keys] == [200] * 3

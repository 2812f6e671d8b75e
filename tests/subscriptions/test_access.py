"""Who is told what: asked at delivery, of the one policy, as things are then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from fhir_server.auth.audit_event import Access
from fhir_server.auth.labels import CONFIDENTIALITY
from fhir_server.automation.delivery import Deliveries, visible
from fhir_server.errors import Forbidden
from fhir_server.interactions.context import Context
from fhir_server.store.credentials import Client
from fhir_server.store.notifications import Notification
from tests.auth.conftest import Secured, secured_application
from tests.subscriptions.conftest import Receiver, active, subscription

pytestmark = pytest.mark.anyio
ALL = "system/*.cruds"
TEXT = {"text": "privacy"}


@pytest.fixture(scope="module")
async def secured(mongo_url: str, tmp_path_factory: Any, anyio_backend: Any, impatient: None) -> AsyncIterator[Secured]:
    folder = tmp_path_factory.mktemp("subscriptions")
    async with secured_application(mongo_url, folder, audit=False, subscription_internal=True) as secured:
        for id in ("plain", "leaving"):
            client = Client(id=id, name=id, kind="confidential-asymmetric", scopes=(ALL,))
            await secured.authority.credentials.put_client(client)
        master = Client(
            id="master",
            name="m",
            kind="confidential-asymmetric",
            scopes=(ALL,),
            clearance="V",
            roles=frozenset({"administrator"}),
        )
        await secured.authority.credentials.put_client(master)
        await secured.user("doctor", "practitioner", "Practitioner/d1", reach="all")
        writer = await secured.token(ALL, client="master")
        for id in ("p1", "p2"):
            answer = await secured.http.put(f"Patient/{id}", json={"resourceType": "Patient", "id": id}, headers=writer)
            assert answer.status_code == 201
        yield secured


async def observe(secured: Secured, id: str, patient: str = "p1", category: str = "vital-signs", **more: Any) -> None:
    one = {
        "resourceType": "Observation", "id": id, "status": "final", "code": {"text": "x"},
        "category": [{"coding": [{"code": category}]}], "subject": {"reference": f"Patient/{patient}"}, **more,
    }  # fmt: skip
    writer = await secured.token(ALL, client="master")
    answer = await secured.http.put(f"Observation/{id}", json=one, headers=writer)
    assert answer.status_code in (200, 201), answer.text


def told(receiver: Receiver) -> set[str]:
    """Ids of what was sent along."""
    return {path.rpartition("/")[2] for method, path, *_ in receiver.heard if method == "PUT"}


async def until(receiver: Receiver, id: str) -> None:
    async with asyncio.timeout(15):
        while id not in told(receiver):  # noqa: ASYNC110 - the other side is another task
            await asyncio.sleep(0.02)


async def test_only_what_the_token_may_find_and_read(secured: Secured, receiver: Receiver) -> None:
    scope = "system/Observation.rs?category=vital-signs system/Subscription.cruds"
    headers = await secured.token(scope, client="plain")
    await active(secured.http, subscription("Observation", receiver.url, payload="application/fhir+json"), headers)
    await observe(secured, "a1", category="laboratory")
    await observe(secured, "a2", meta={"security": [{"system": CONFIDENTIALITY, "code": "R"}]})
    await observe(secured, "a3")
    await until(receiver, "a3")
    assert told(receiver) == {"a3"}
    assert [headers["x-event-number"] for _, _, headers, _ in receiver.heard] == ["1"], "nothing hints at the others"


async def test_who_may_not_search_may_not_subscribe(secured: Secured, receiver: Receiver) -> None:
    headers = await secured.token("system/Observation.r system/Subscription.cruds", client="plain")
    answer = await secured.http.post("Subscription", json=subscription("Observation", receiver.url), headers=headers)
    assert answer.status_code == 403
    limited = await secured.token("patient/*.cruds", user="doctor", patient="p1")
    answer = await secured.http.post("Subscription", json=subscription("Observation", receiver.url), headers=limited)
    assert answer.status_code == 403


async def test_a_consent_between_commit_and_delivery_counts(secured: Secured, receiver: Receiver) -> None:
    receiver.status = 500
    headers = await secured.token("user/*.cruds", user="doctor")
    await active(secured.http, subscription("Observation", receiver.url, payload="application/fhir+json"), headers)
    await observe(secured, "c0", "p1")
    await receiver.wait(1)
    await observe(secured, "c1", "p2")
    consent = {
        "resourceType": "Consent", "id": "no", "status": "active", "scope": TEXT, "category": [TEXT], "policyRule": TEXT,
        "patient": {"reference": "Patient/p2"}, "provision": {"type": "deny"},
    }  # fmt: skip
    writer = await secured.token(ALL, client="master")
    assert (await secured.http.put("Consent/no", json=consent, headers=writer)).status_code == 201
    await observe(secured, "c2", "p1")
    receiver.status = 200
    await until(receiver, "c2")
    assert told(receiver) == {"c0", "c2"}


async def test_a_client_that_is_gone_hears_nothing_more(secured: Secured, receiver: Receiver) -> None:
    headers = await secured.token(ALL, client="leaving")
    id = await active(secured.http, subscription("Observation", receiver.url), headers)
    assert await secured.authority.credentials.remove_client("leaving")
    await observe(secured, "d1")
    writer = await secured.token(ALL, client="master")
    async with asyncio.timeout(15):
        while (await secured.http.get(f"Subscription/{id}", headers=writer)).json()["status"] != "error":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert receiver.heard == []


async def test_what_a_user_took_back_is_told_no_more(secured: Secured, receiver: Receiver) -> None:
    """The grant has ended, though user and app are still there."""
    headers = await secured.token("user/*.cruds", user="doctor")
    id = await active(secured.http, subscription("Observation", receiver.url), headers)
    principal = await secured.authority.tokens.principal(headers["Authorization"].removeprefix("Bearer "))
    await secured.authority.credentials.revoke_grant(principal.grant_id, 2**33)
    await observe(secured, "e1")
    writer = await secured.token(ALL, client="master")
    async with asyncio.timeout(15):
        while (await secured.http.get(f"Subscription/{id}", headers=writer)).json()["status"] != "error":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert receiver.heard == []


async def test_a_version_is_told_if_it_may_be_seen_then_and_now(secured: Secured) -> None:
    label = {"meta": {"security": [{"system": CONFIDENTIALITY, "code": "R"}]}}
    for id, first, second in (("f-closed", {}, label), ("f-opened", label, {})):
        await observe(secured, id, **first)
        await observe(secured, id, **second)

    async def shown(scope: str, id: str, version: int, *, read: bool) -> bool:
        headers = await secured.token(scope, client="plain")
        principal = await secured.authority.tokens.principal(headers["Authorization"].removeprefix("Bearer "))
        notification = Notification("s", "Observation", id, version, 0)
        return await visible(secured.server, principal, read, notification) is not None

    assert [await shown(ALL, "f-closed", version, read=True) for version in (1, 2)] == [False, False]
    assert [await shown(ALL, "f-opened", version, read=True) for version in (1, 2)] == [False, True]
    found = "system/Observation.s"
    assert [await shown(found, "f-opened", 2, read=read) for read in (False, True)] == [True, False]


async def test_another_issuers_token_cannot_subscribe(secured: Secured, receiver: Receiver) -> None:
    headers = await secured.token(ALL, client="plain")
    principal = await secured.authority.tokens.principal(headers["Authorization"].removeprefix("Bearer "))
    guard = secured.server.guards["Subscription"]
    body = {**subscription("Observation", receiver.url), "id": "foreign"}
    guard(Context(principal, "http://test/fhir"), body)
    with pytest.raises(Forbidden, match="token of this server"):
        guard(Context(replace(principal, issuer="https://login.example.org"), "http://test/fhir"), body)


async def test_what_is_told_is_audited(secured: Secured, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it went, in whose name, and whose record it is of."""
    (deliveries,) = (
        one for tell in secured.server.written if isinstance(one := getattr(tell, "__self__", 0), Deliveries)
    )
    accesses: list[Access] = []
    monkeypatch.setattr(deliveries, "_record", accesses.append)
    headers = await secured.token("user/*.cruds", user="doctor")
    id = await active(secured.http, subscription("Observation?_id=g1", receiver.url), headers)
    await observe(secured, "g1")
    await receiver.wait(1)
    async with asyncio.timeout(15):
        while not (mine := [one for one in accesses if one.request_id == f"Subscription/{id}"]):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    (one,) = mine
    assert (one.interaction, one.status, one.subject, one.client) == ("operation:$notify", 200, "doctor", "app")
    assert one.address == "127.0.0.1"
    assert (one.resource_type, one.id, one.version, one.patients) == ("Observation", "g1", 1, ("p1",))


async def test_an_internal_address_is_refused(secured: Secured, receiver: Receiver) -> None:
    subscribed = secured.server.rooms["subscribed"]
    subscribed.internal = False
    try:
        headers = await secured.token(ALL, client="plain")
        for endpoint in (receiver.url, "https://127.0.0.1/x", "https://[::1]/x", "https://169.254.169.254/x"):
            answer = await secured.http.post("Subscription", json=subscription("Patient", endpoint), headers=headers)
            assert answer.status_code == 422 and "channel.endpoint" in answer.text, answer.text
    finally:
        subscribed.internal = True


async def test_a_hidden_header_goes_nowhere_else(secured: Secured, receiver: Receiver) -> None:
    """Who may change a Subscription does not get to know its secret by having it sent elsewhere."""
    headers = await secured.token(ALL, client="plain")
    mine = subscription("Observation?status=amended", receiver.url, header=["Authorization: Bearer x"])
    id = await active(secured.http, mine, headers)
    subscribers = secured.server.store.database["subscribers"]
    shown = {**mine, "id": id, "channel": {**mine["channel"], "header": ["Authorization: ***"]}}
    assert (await secured.http.put(f"Subscription/{id}", json=shown, headers=headers)).status_code == 200
    assert (await subscribers.find_one({"_id": id}))["h"] == ["Authorization: Bearer x"]
    shown["channel"]["endpoint"] = receiver.url + "/elsewhere"
    assert (await secured.http.put(f"Subscription/{id}", json=shown, headers=headers)).status_code == 200
    assert (await subscribers.find_one({"_id": id}))["h"] == []

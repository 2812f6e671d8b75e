"""What the login pages offer is what the person would find: no name, no visit of a record that is hidden from them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from fhir_server.http.smart import choices
from fhir_server.store.credentials import User
from tests.auth.conftest import PASSWORD, Browser, Secured, Site

pytestmark = pytest.mark.anyio

RESTRICTED = {"security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}]}
SCOPE = "launch/encounter patient/*.rs"


def visit(id: str, patient: str, start: str, **more: Any) -> dict[str, Any]:
    kind = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"}
    return {"resourceType": "Encounter", "id": id, "status": "finished", "class": kind, "period": {"start": start},
            "subject": {"reference": f"Patient/{patient}"}, **more}  # fmt: skip


@pytest.fixture(scope="module")
async def clinic(secured: Secured) -> Secured:
    everything = await secured.token("system/*.cruds", client="service")
    for resource in (
        {"resourceType": "Patient", "id": "p1", "name": [{"family": "Lee", "given": ["Ann"]}]},
        {"resourceType": "Patient", "id": "p2", "name": [{"text": "陈博"}]},
        {"resourceType": "Patient", "id": "vip", "name": [{"family": "Famous"}], "meta": RESTRICTED},
        {"resourceType": "Patient", "id": "gone", "name": [{"family": "Moved"}], "active": False},
        {"resourceType": "CareTeam", "id": "t1", "status": "active", "subject": {"reference": "Patient/p2"},
         "participant": [{"member": {"reference": "Practitioner/d2"}}]},
        {"resourceType": "CareTeam", "id": "t2", "status": "active", "subject": {"reference": "Patient/p1"},
         "participant": [{"member": {"reference": "Practitioner/d2"}}]},
        visit("plain", "p1", "2026-03-01"), visit("delicate", "p1", "2026-03-02", meta=RESTRICTED),
        visit("other", "p2", "2026-03-03"),
    ):  # fmt: skip
        url = f"{resource['resourceType']}/{resource['id']}"
        assert (await secured.http.put(url, json=resource, headers=everything)).status_code == 201, url
    hashed = secured.authority.passwords.hash_now(PASSWORD)
    for user in (
        User(name="doctor", password_hash=hashed, role="practitioner", fhir_user="Practitioner/d1", reach="all"),
        User(name="head", password_hash=hashed, role="practitioner", fhir_user="Practitioner/d3", reach="all",
             clearance="R"),
        User(name="nurse", password_hash=hashed, role="practitioner", fhir_user="Practitioner/d2", reach="care-team"),
        User(name="lab", password_hash=hashed, role="lab"),
    ):  # fmt: skip
        await secured.authority.credentials.put_user(user, replace=True)
    return secured


@asynccontextmanager
async def browsing(clinic: Secured) -> AsyncIterator[Browser]:
    browser = Browser(Site("http://test/fhir", clinic.authority, clinic.authority.now))  # type: ignore[arg-type]
    await browser.http.aclose()
    browser.http = httpx.AsyncClient(transport=httpx.ASGITransport(clinic.app), follow_redirects=False)
    yield browser
    await browser.close()


def picker(browser: Browser) -> str:
    (page,) = [page for page in browser.pages if "/auth/patient" in page]
    return page


async def test_a_hidden_patient_is_not_offered_by_name(clinic: Secured) -> None:
    async with browsing(clinic) as browser:
        await browser.authorize("doctor", scope="patient/*.rs", patient="p2")
        assert "Ann Lee" in picker(browser) and "陈博" in picker(browser)
        assert "Famous" not in picker(browser) and "Moved" not in picker(browser)
    async with browsing(clinic) as browser:
        flow = await browser.authorize("head", scope="patient/*.rs", patient="vip")
        assert "Famous" in picker(browser) and "Famous" in browser.pages[-1]
        assert flow.code
    async with browsing(clinic) as browser:
        await browser.authorize("nurse", scope="patient/*.rs", patient="p1")
        assert "陈博" in picker(browser) and "Famous" not in picker(browser)


async def test_a_lab_has_nobody_to_look_at(clinic: Secured) -> None:
    async with browsing(clinic) as browser:
        with pytest.raises(AssertionError):  # there is nothing to go on with
            await browser.authorize("lab", scope="patient/*.c", patient="p1")
        assert "No patient found" in picker(browser)
        assert "Lee" not in picker(browser)


@pytest.mark.parametrize("patient", ["vip", "nobody", "p1,p2", "", "x" * 80])
async def test_what_was_not_offered_cannot_be_chosen(clinic: Secured, patient: str) -> None:
    async with browsing(clinic) as browser:
        asked = await browser.http.get(
            "http://test/fhir/auth/authorize",
            params={
                "response_type": "code", "client_id": "app", "redirect_uri": "https://app.example.org/callback",
                "scope": "patient/*.rs", "state": "s", "aud": "http://test/fhir", "code_challenge": "c" * 43,
                "code_challenge_method": "S256",
            },
        )  # fmt: skip
        request = asked.headers["location"].partition("request=")[2]
        form = {"request": request, "name": "doctor", "password": PASSWORD}
        assert (await browser.http.post("http://test/fhir/auth/login", data=form)).status_code == 303
        chosen = await browser.http.post("http://test/fhir/auth/patient", data={"request": request, "patient": patient})
        assert chosen.status_code in (303, 400)
        assert "/auth/continue" not in chosen.headers.get("location", "")
        assert "code=" not in chosen.headers.get("location", "")


async def test_a_hidden_visit_is_not_offered(clinic: Secured) -> None:
    async with browsing(clinic) as browser:
        await browser.authorize("doctor", scope=SCOPE, patient="p1", visit="plain")
        assert "2026-03-01" in browser.pages[-2] and "2026-03-02" not in browser.pages[-2]
    for hidden in ("delicate", "other", "none"):
        async with browsing(clinic) as browser:
            flow = await browser.authorize("doctor", scope=SCOPE, patient="p1", visit=hidden)
            assert flow.answer["error"] == "access_denied"
            assert flow.answer["error_description"] == "The user may not see what was chosen"
    async with browsing(clinic) as browser:
        assert (await browser.authorize("head", scope=SCOPE, patient="p1", visit="delicate")).code


async def test_a_patient_is_found_as_people_write_names(clinic: Secured) -> None:
    everything = await clinic.token("system/*.cruds", client="service")
    names: dict[str, list[dict[str, Any]]] = {
        "jane": [{"use": "maiden", "family": "Byrd"}, {"use": "official", "family": "Doe", "given": ["Jane", "Q"]}],
        "ming": [{"family": "欧阳", "given": ["晓明"]}],
        **{f"many-{number:02}": [{"family": "Many"}] for number in range(21)},
    }
    for id, name in names.items():
        patient = {"resourceType": "Patient", "id": id, "name": name}
        assert (await clinic.http.put(f"Patient/{id}", json=patient, headers=everything)).status_code == 201
    user = await clinic.authority.credentials.user("doctor")
    assert user is not None

    async def found(query: str) -> list[str]:
        return [one["name"] for one in await choices.patients(clinic.authority, user, query)]

    for query in ("Jane Doe", "doe, jane", "Doe,Jane", " Q  doe ", "byrd jane"):
        assert await found(query) == ["Jane Q Doe"], query
    for query in ("欧阳晓明", "欧阳 晓明", "晓明"):
        assert await found(query) == ["欧阳晓明"], query
    for query in ("Jane Lee", "Doe|Jane"):
        assert await found(query) == [], query
    for query in ("$", "\\", "|", ",", "\\,", "x" * 100):  # no question is an error
        await found(query)
    many = await found("many")
    assert len(many) == choices.SHOWN + 1
    async with browsing(clinic) as browser:
        await browser.authorize("doctor", scope="patient/*.rs", patient="many-01")
        assert picker(browser).count('type="radio"') == choices.SHOWN
        assert "Only 20 are shown" in picker(browser)
    async with browsing(clinic) as browser:
        await browser.authorize("nurse", scope="patient/*.rs", patient="p1")
        assert "are shown" not in picker(browser)

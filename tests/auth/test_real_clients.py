"""Libraries that others already use, through a full launch against the whole application on a real port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fhir_server.store.credentials import User
from tests.auth.conftest import PASSWORD, REDIRECT, Browser, Secured, Site, secured_application, serving

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def live(
    mongo_url: str, tmp_path_factory: pytest.TempPathFactory, anyio_backend: Any
) -> AsyncIterator[tuple[Site, Secured]]:
    sock = socket.create_server(("127.0.0.1", 0))
    base = f"http://127.0.0.1:{sock.getsockname()[1]}/fhir"
    async with (
        secured_application(mongo_url, tmp_path_factory.mktemp("live"), base=base) as secured,
        serving(secured.app, sock),
    ):
        everything = await secured.token("system/*.cruds", client="service")
        for id, family in (("p1", "Lee"), ("p2", "Chen")):
            patient = {
                "resourceType": "Patient",
                "id": id,
                "name": [{"family": family, "given": ["Ann"]}],
                "birthDate": "1980-05-01",
            }
            assert (await secured.http.put(f"{base}/Patient/{id}", json=patient, headers=everything)).status_code == 201
            for number in range(25):
                observation = {
                    "resourceType": "Observation", "id": f"{id}-{number}", "status": "final", "code": {"text": "pulse"},
                    "subject": {"reference": f"Patient/{id}"}, "valueQuantity": {"value": 60 + number},
                }  # fmt: skip
                put = await secured.http.put(f"{base}/Observation/{id}-{number}", json=observation, headers=everything)
                assert put.status_code == 201
        hashed = secured.authority.passwords.hash_now(PASSWORD)
        for user in (
            User(name="ann", password_hash=hashed, role="patient", fhir_user="Patient/p1"),
            User(name="doctor", password_hash=hashed, role="practitioner", fhir_user="Practitioner/d1", reach="all"),
        ):
            await secured.authority.credentials.put_user(user)
        yield Site(base, secured.authority, secured.authority.now), secured  # type: ignore[arg-type]


async def launch(site: Site, app: Any, user: str, patient: str = "") -> None:
    """The browser's part between the app's authorize URL and its callback."""
    browser = Browser(site)
    url = await asyncio.to_thread(lambda: app.authorize_url)
    back = await browser.fill_in(await browser.http.get(url), user, patient=patient)
    await browser.close()
    assert back.startswith(REDIRECT)
    await asyncio.to_thread(app.handle_callback, back)


async def test_fhirclient_launches_standalone(live: tuple[Site, Secured]) -> None:
    client = pytest.importorskip("fhirclient.client", reason="needs the package fhirclient")
    from fhirclient.models.observation import Observation

    site, _ = live
    app = client.FHIRClient(
        settings={
            "app_id": "app",
            "api_base": site.url,
            "redirect_uri": REDIRECT,
            "scope": "openid fhirUser launch/patient offline_access patient/*.read",
        }
    )
    await launch(site, app, "ann")
    assert app.ready
    patient = await asyncio.to_thread(lambda: app.patient)
    assert (patient.id, patient.name[0].family) == ("p1", "Lee")
    found = await asyncio.to_thread(
        lambda: list(Observation.where({"_count": "10"}).perform_resources_iter(app.server))
    )
    assert {one.subject.reference for one in found} == {"Patient/p1"}
    assert len(found) == 25
    assert await asyncio.to_thread(app.reauthorize)
    assert await asyncio.to_thread(lambda: Observation.read("p1-3", app.server).valueQuantity.value) == 63


async def test_fhirclient_launches_for_a_practitioner_who_picks(live: tuple[Site, Secured]) -> None:
    client = pytest.importorskip("fhirclient.client", reason="needs the package fhirclient")
    site, _ = live
    app = client.FHIRClient(
        settings={
            "app_id": "app",
            "api_base": site.url,
            "redirect_uri": REDIRECT,
            "scope": "launch/patient patient/*.rs",
        }
    )
    await launch(site, app, "doctor", "p2")
    assert (await asyncio.to_thread(lambda: app.patient)).id == "p2"


async def test_fhirclient_launches_from_an_ehr(live: tuple[Site, Secured]) -> None:
    client = pytest.importorskip("fhirclient.client", reason="needs the package fhirclient")
    site, secured = live
    ehr = await secured.token("user/*.rs", user="doctor")
    asked = await secured.http.post(f"{site.auth}/launch", json={"patient": "p2", "client_id": "app"}, headers=ehr)
    settings = {"app_id": "app", "api_base": site.url, "redirect_uri": REDIRECT, "scope": "launch patient/*.rs",
                "launch_token": asked.json()["launch"]}  # fmt: skip
    app = client.FHIRClient(settings=settings)
    await launch(site, app, "doctor")
    assert (await asyncio.to_thread(lambda: app.patient)).name[0].family == "Chen"


async def test_fhirpy_pages_with_a_token(live: tuple[Site, Secured]) -> None:
    fhirpy = pytest.importorskip("fhirpy", reason="needs the package fhirpy")
    site, secured = live
    token = await secured.token("patient/*.rs", user="ann", patient="p1")
    client = fhirpy.AsyncFHIRClient(site.url, authorization=token["Authorization"])
    found = [one["id"] async for one in client.resources("Observation").limit(7)]
    assert sorted(found) == sorted(f"p1-{number}" for number in range(25))
    with pytest.raises(fhirpy.base.exceptions.ResourceNotFound):
        await client.reference("Observation", "p2-1").to_resource()

"""Every grant as an app uses it; discovery, introspection, revocation, the keys.

https://hl7.org/fhir/smart-app-launch/STU2.2/app-launch.html
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc.jwk import ECKey, RSAKey

from fhir_server.auth.authority import build
from fhir_server.auth.grants import challenge_of
from fhir_server.store.credentials import Credentials, SigningKey
from tests.auth.conftest import (
    PASSWORD,
    REDIRECT,
    Browser,
    Flow,
    Site,
    assertion,
    redeem,
    refresh,
    secured_application,
    who,
)

pytestmark = pytest.mark.anyio


async def test_discovery_names_what_is_there(site: Site, http: httpx.AsyncClient) -> None:
    smart = (await http.get(site.url + "/.well-known/smart-configuration")).json()
    openid = (await http.get(site.url + "/.well-known/openid-configuration")).json()
    assert smart["issuer"] == openid["issuer"] == site.url
    assert smart["code_challenge_methods_supported"] == ["S256"]
    assert {"launch-ehr", "launch-standalone", "permission-v1", "permission-v2"} <= set(smart["capabilities"])
    keys = (await http.get(smart["jwks_uri"])).json()["keys"]
    assert [set(key) & {"d", "p", "q", "dp", "dq", "qi"} for key in keys] == [set()]
    assert "registration_endpoint" not in smart
    for endpoint in ("token", "introspection", "revocation"):  # RFC 8414 2: where private_key_jwt is among the methods
        assert "private_key_jwt" in openid[f"{endpoint}_endpoint_auth_methods_supported"]
        assert openid[f"{endpoint}_endpoint_auth_signing_alg_values_supported"] == ["RS384", "ES384"]
    assert openid["response_modes_supported"] == ["query"], "left out it would mean fragment, too"


async def test_authlib_does_a_standalone_launch(site: Site, browser: Browser, http: httpx.AsyncClient) -> None:
    async with AsyncOAuth2Client(
        "web", site.secrets["web"], redirect_uri=REDIRECT, code_challenge_method="S256",
        scope="openid fhirUser launch/patient offline_access patient/*.read",
    ) as app:  # fmt: skip
        verifier = "v" * 64
        url, state = app.create_authorization_url(
            site.auth + "/authorize", code_verifier=verifier, aud=site.url, nonce="n1"
        )
        back = await browser.fill_in(await browser.http.get(url), "ann")
        token = await app.fetch_token(
            site.auth + "/token", authorization_response=back, code_verifier=verifier, state=state
        )
        assert token["patient"] == "p1"
        assert token["scope"] == "openid fhirUser launch/patient offline_access patient/*.read"
        discovered = (await http.get(site.url + "/.well-known/openid-configuration")).json()
        keys = jwt.PyJWKSet.from_dict((await http.get(discovered["jwks_uri"])).json())
        header = jwt.get_unverified_header(token["id_token"])
        claims = jwt.decode(
            token["id_token"], keys[header["kid"]].key, algorithms=["RS256"], audience="web", issuer=site.url
        )
        assert (claims["sub"], claims["fhirUser"], claims["nonce"]) == ("ann", site.url + "/Patient/p1", "n1")
        seen = (await app.get(site.url + "/whoami")).json()
        assert (seen["patient"], seen["patients"], seen["roles"]) == ("p1", ["p1"], ["patient"])
        first = token["refresh_token"]
        renewed = await app.refresh_token(site.auth + "/token", refresh_token=first)
        assert renewed["refresh_token"] != first
        assert renewed["patient"] == "p1"
        told = await app.introspect_token(site.auth + "/introspect", token=renewed["access_token"])
        assert told.json()["active"] is True
        assert told.json()["patient"] == "p1"
        await app.revoke_token(site.auth + "/revoke", token=renewed["refresh_token"])
        assert (await who(http, site, renewed["access_token"])).status_code == 401


@pytest.mark.parametrize("kid", ["r", "e"])
async def test_authlib_does_backend_services(
    site: Site, kid: str, rsa_key: Any, ec_key: Any, http: httpx.AsyncClient
) -> None:
    key, algorithm = (rsa_key, "RS384") if kid == "r" else (ec_key, "ES384")
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    own = RSAKey.import_key(pem) if kid == "r" else ECKey.import_key(pem)
    async with AsyncOAuth2Client("backend", own, token_endpoint_auth_method="private_key_jwt") as app:
        claims = {"exp": int(site.now()) + 240}
        method = PrivateKeyJWT(site.auth + "/token", claims=claims, headers={"kid": kid}, alg=algorithm)
        app.register_client_auth_method(method)
        token = await app.fetch_token(
            site.auth + "/token", grant_type="client_credentials", scope="system/Patient.rs system/Observation.cruds"
        )
    assert token["expires_in"] == 300
    assert "refresh_token" not in token
    seen = (await who(http, site, token["access_token"])).json()
    assert (seen["subject"], seen["patients"]) == ("backend", None)
    assert seen["scopes"] == ["system/Patient.rs", "system/Observation.cruds"]


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
async def test_authlib_with_a_secret(site: Site, method: str) -> None:
    async with AsyncOAuth2Client("daemon", site.secrets["daemon"], token_endpoint_auth_method=method) as app:
        token = await app.fetch_token(site.auth + "/token", grant_type="client_credentials", scope="system/*.rs")
    assert token["scope"] == "system/*.rs"


async def test_a_parameter_without_a_value_is_none(site: Site, browser: Browser, http: httpx.AsyncClient) -> None:
    """RFC 6749 3.1 and 3.2; form libraries send them."""
    flow = await browser.authorize("ann", scope="patient/*.rs", launch="", prompt="", max_age="", request="")
    assert flow.code
    form = {"grant_type": "client_credentials", "scope": "system/*.rs", "client_id": "", "client_assertion_type": ""}
    answer = await http.post(site.auth + "/token", data=form, auth=("daemon", site.secrets["daemon"]))
    assert answer.status_code == 200, answer.text


async def test_an_asymmetric_app_with_a_user(
    site: Site, browser: Browser, http: httpx.AsyncClient, ec_key: Any
) -> None:
    flow = await browser.authorize("ann", client="signed", scope="patient/*.rs online_access")
    answer = await redeem(http, site, flow, "signed", **assertion(site, ec_key, "e", "signed"))
    assert answer.status_code == 200, answer.text
    again = await refresh(
        http, site, answer.json()["refresh_token"], "signed", **assertion(site, ec_key, "e", "signed")
    )
    assert again.status_code == 200, again.text


async def test_an_ehr_launch_carries_its_context(site: Site, browser: Browser, http: httpx.AsyncClient) -> None:
    ehr = (await redeem(http, site, await browser.authorize("doctor", scope="user/*.rs"))).json()
    context = {"patient": "p2", "encounter": "e9", "fhirContext": [{"reference": "ImagingStudy/7"}], "client_id": "app"}
    asked = await http.post(
        site.auth + "/launch", json=context, headers={"Authorization": f"Bearer {ehr['access_token']}"}
    )
    assert asked.status_code == 201, asked.text
    flow = await browser.authorize("doctor", scope="launch openid patient/*.rs", launch=asked.json()["launch"])
    token = (await redeem(http, site, flow)).json()
    assert (token["patient"], token["encounter"]) == ("p2", "e9")
    assert token["fhirContext"] == [{"reference": "ImagingStudy/7"}]
    assert token["need_patient_banner"] is True
    assert "Bo Chen" in browser.pages[-1]
    refused = await browser.http.get(site.auth + "/authorize", params={
        "response_type": "code", "client_id": "app", "redirect_uri": REDIRECT, "scope": "launch patient/*.rs", "state": "s",
        "aud": site.url, "code_challenge": "c" * 43, "code_challenge_method": "S256", "launch": asked.json()["launch"],
    })  # fmt: skip
    assert "error=invalid_request" in refused.headers["location"]


async def test_a_launch_is_for_those_who_may_see_the_patient(
    site: Site, browser: Browser, http: httpx.AsyncClient
) -> None:
    nurse = (await redeem(http, site, await browser.authorize("nurse", scope="user/Patient.rs"))).json()
    headers = {"Authorization": f"Bearer {nurse['access_token']}"}
    for patient, status in (("p2", 201), ("p1", 403), ("none", 403)):
        asked = await http.post(site.auth + "/launch", json={"patient": patient}, headers=headers)
        assert asked.status_code == status, patient
    assert (await http.post(site.auth + "/launch", json={"patient": "p2"})).status_code == 401


@pytest.mark.parametrize(
    "wrong", ['{"fhirContext": 5}', '{"fhirContext": ["x"]}', '{"need_patient_banner": "no"}', '{"intent": "\\ud800"}']
)
async def test_a_launch_that_cannot_be_understood(
    site: Site, browser: Browser, http: httpx.AsyncClient, wrong: str
) -> None:
    doctor = (await redeem(http, site, await browser.authorize("doctor", scope="user/*.rs"))).json()
    headers = {"Authorization": f"Bearer {doctor['access_token']}"}
    answer = await http.post(site.auth + "/launch", content=wrong, headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


async def test_a_launch_passes_on_what_the_ehr_may_read(site: Site, browser: Browser, http: httpx.AsyncClient) -> None:
    doctor = (await redeem(http, site, await browser.authorize("doctor", scope="user/*.rs"))).json()
    few = (await redeem(http, site, await browser.authorize("doctor", scope="user/Patient.rs"))).json()
    for token, encounter, status in ((doctor, "e9", 201), (doctor, "e8", 403), (doctor, "none", 403), (few, "e9", 403)):
        asked = await http.post(
            site.auth + "/launch",
            json={"patient": "p2", "encounter": encounter},
            headers={"Authorization": f"Bearer {token['access_token']}"},
        )
        assert asked.status_code == status, encounter
        assert status == 201 or "does not reach this encounter" in asked.text


async def test_a_person_picks_the_visit(site: Site, browser: Browser, http: httpx.AsyncClient) -> None:
    scope = "launch/encounter patient/*.rs"
    token = (await redeem(http, site, await browser.authorize("doctor", scope=scope, patient="p3", visit="e8"))).json()
    assert (token["patient"], token["encounter"]) == ("p3", "e8")
    assert token["need_patient_banner"] is True
    page = browser.pages[-2]
    assert page.index("2026-04-01 · outpatient") < page.index("2026-03-01 08:30 · emergency · chest pain")
    assert 'value="e9"' not in page, "it is another patient's"
    token = (await redeem(http, site, await browser.authorize("doctor", scope=scope, patient="p3"))).json()
    assert "encounter" not in token
    assert token["scope"] == "patient/*.rs", "what was not granted is not among the scopes"
    token = (await redeem(http, site, await browser.authorize("doctor", scope=scope, patient="p1"))).json()
    assert token["scope"] == "patient/*.rs", "without visits there is nothing to choose"
    flow = await browser.authorize("doctor", scope=scope, patient="p3", visit="e9")
    assert flow.answer["error"] == "access_denied"


async def test_an_ehr_leaves_the_choice_of_the_patient_to_the_user(
    site: Site, browser: Browser, http: httpx.AsyncClient
) -> None:
    ehr = (await redeem(http, site, await browser.authorize("doctor", scope="user/*.rs"))).json()
    headers = {"Authorization": f"Bearer {ehr['access_token']}"}
    for context in ({"intent": "order"}, {"encounter": "e9"}):
        asked = await http.post(site.auth + "/launch", json=context, headers=headers)
        launch = asked.json()["launch"]
        flow = await browser.authorize(
            "doctor", scope="launch launch/patient patient/*.rs", patient="p3", launch=launch
        )
        token = (await redeem(http, site, flow)).json()
        assert (token["patient"], token.get("encounter")) == ("p3", None), "e9 is another patient's"


async def test_choices_are_of_one_patient_and_one_person(site: Site, browser: Browser, http: httpx.AsyncClient) -> None:
    """The browser's button back, and the page's link to log in as somebody else, lead to pages before a choice."""
    verifier = "v" * 64
    start = await browser.http.get(site.auth + "/authorize", params={
        "response_type": "code", "client_id": "app", "redirect_uri": REDIRECT, "scope": "launch/encounter patient/*.rs",
        "state": "s", "aud": site.url, "code_challenge": challenge_of(verifier), "code_challenge_method": "S256",
    })  # fmt: skip
    request = {"request": parse_qs(urlsplit(start.headers["location"]).query)["request"][0]}

    async def post(page: str, **form: Any) -> httpx.Response:
        return await browser.http.post(f"{site.auth}/{page}", data={**request, **form})

    await post("login", name="doctor", password=PASSWORD)
    await post("patient", patient="p3")
    await post("visit", visit="e8")
    await post("patient", patient="p2")
    page = await browser.http.get(start.headers["location"])
    assert 'value="e9"' in page.text, "the visit is asked for anew"
    await browser.http.get(site.auth + "/logout", params=request)
    await post("login", name="ann", password=PASSWORD)
    page = await browser.http.get(start.headers["location"])
    assert "Ann Lee" in page.text
    assert "p2" not in page.text
    back = (await post("consent", answer="allow", scope=["launch/encounter", "patient/*.rs"])).headers["location"]
    flow = Flow(verifier, "s", {name: values[0] for name, values in parse_qs(urlsplit(back).query).items()})
    token = (await redeem(http, site, flow)).json()
    assert (token["patient"], token.get("encounter")) == ("p1", None)


async def test_a_practitioner_picks_the_patient(site: Site, browser: Browser, http: httpx.AsyncClient) -> None:
    flow = await browser.authorize("doctor", scope="launch/patient patient/*.rs", patient="p3")
    assert (await redeem(http, site, flow)).json()["patient"] == "p3"
    other = Browser(site)
    flow = await other.authorize("nurse", scope="patient/*.rs")  # one patient in her care team: nothing to pick
    assert (await redeem(http, site, flow)).json()["patient"] == "p2"
    await other.close()


async def test_a_proxy_needs_consent(site: Site, browser: Browser, http: httpx.AsyncClient) -> None:
    token = (await redeem(http, site, await browser.authorize("proxy"))).json()
    assert token["patient"] == "p3"
    assert (await who(http, site, token["access_token"])).json()["patients"] == ["p3"]
    other = Browser(site)
    assert (await other.authorize("stranger")).answer["error"] == "access_denied"
    await other.close()


async def test_a_user_drops_scopes(site: Site, browser: Browser, http: httpx.AsyncClient) -> None:
    flow = await browser.authorize(
        "ann",
        scope="patient/Observation.rs patient/Condition.rs offline_access",
        drop=["patient/Condition.rs", "offline_access"],
    )
    token = (await redeem(http, site, flow)).json()
    assert token["scope"] == "patient/Observation.rs"
    assert "refresh_token" not in token
    other = Browser(site)
    flow = await other.authorize("ann", deny=True)
    assert (flow.answer["error"], flow.answer["state"]) == ("access_denied", flow.state)
    await other.close()


async def test_a_context_that_is_dropped_is_not_told(site: Site, browser: Browser, http: httpx.AsyncClient) -> None:
    scope = "openid launch/patient patient/Condition.rs"
    flow = await browser.authorize("ann", scope=scope, drop=["launch/patient", "patient/Condition.rs"])
    token = (await redeem(http, site, flow)).json()
    assert token["scope"] == "openid"
    assert not {"patient", "need_patient_banner"} & set(token)
    other = Browser(site)
    ehr = (await redeem(http, site, await other.authorize("doctor", scope="user/*.rs"))).json()
    asked = await http.post(
        site.auth + "/launch",
        json={"patient": "p2", "intent": "order", "fhirContext": [{"reference": "ImagingStudy/7"}]},
        headers={"Authorization": f"Bearer {ehr['access_token']}"},
    )
    launch = asked.json()["launch"]
    flow = await other.authorize("doctor", scope="launch openid user/*.rs", launch=launch, drop=["launch"])
    token = (await redeem(http, site, flow)).json()
    assert not {"patient", "intent", "fhirContext"} & set(token)
    await other.close()


async def test_a_lab_only_creates(site: Site, browser: Browser, http: httpx.AsyncClient) -> None:
    token = (await redeem(http, site, await browser.authorize("lab", scope="user/*.cruds"))).json()
    assert token["scope"] == "user/*.c"


async def test_a_public_app_may_refresh_without_its_client_id(
    site: Site, browser: Browser, http: httpx.AsyncClient, ec_key: Any
) -> None:
    """RFC 6749 3.2.1; browser libraries do so. Who has credentials must show them all the same."""
    url = site.auth + "/token"
    public = (await redeem(http, site, await browser.authorize("ann", scope="patient/*.rs offline_access"))).json()
    form = {"grant_type": "refresh_token", "refresh_token": public["refresh_token"]}
    assert (await http.post(url, data=form)).status_code == 200
    again = await http.post(url, data=form)  # rotation and reuse detection hold as ever
    assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
    flow = await browser.authorize("ann", client="signed", scope="patient/*.rs offline_access")
    signed = (await redeem(http, site, flow, "signed", **assertion(site, ec_key, "e", "signed"))).json()
    refused = await http.post(url, data={"grant_type": "refresh_token", "refresh_token": signed["refresh_token"]})
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_client")
    unknown = await http.post(url, data={"grant_type": "refresh_token", "refresh_token": "nobody's"})
    assert unknown.json()["error"] == "invalid_client"


async def test_logging_out_ends_online_access(site: Site, browser: Browser, http: httpx.AsyncClient) -> None:
    online = (await redeem(http, site, await browser.authorize("ann", scope="patient/*.rs online_access"))).json()
    offline = (await redeem(http, site, await browser.authorize("ann", scope="patient/*.rs offline_access"))).json()
    start = await browser.http.get(site.auth + "/authorize", params={
        "response_type": "code", "client_id": "app", "redirect_uri": REDIRECT, "scope": "patient/*.rs", "state": "s",
        "aud": site.url, "code_challenge": "c" * 43, "code_challenge_method": "S256",
    })  # fmt: skip
    request_id = parse_qs(urlsplit(start.headers["location"]).query)["request"][0]
    await browser.http.get(site.auth + "/logout", params={"request": request_id})
    assert (await refresh(http, site, online["refresh_token"])).json()["error"] == "invalid_grant"
    assert (await refresh(http, site, offline["refresh_token"])).status_code == 200
    assert (await who(http, site, online["access_token"])).status_code == 401


async def test_introspection_tells_clients_only_of_their_own(
    site: Site, browser: Browser, http: httpx.AsyncClient
) -> None:
    token = (
        await redeem(http, site, await browser.authorize("ann", scope="openid fhirUser patient/*.rs offline_access"))
    ).json()
    for client, seen in (("web", False), ("gateway", True)):
        for kind in ("access_token", "refresh_token"):
            answer = await http.post(
                site.auth + "/introspect", data={"token": token[kind]}, auth=(client, site.secrets[client])
            )
            assert answer.json()["active"] is seen, (client, kind)
            assert seen or answer.json() == {"active": False}
    nobody = await http.post(site.auth + "/introspect", data={"token": token["access_token"], "client_id": "app"})
    assert (nobody.status_code, nobody.json()["error"]) == (401, "invalid_client")


async def test_introspection_tells_the_context_that_came_with_the_token(
    site: Site, browser: Browser, http: httpx.AsyncClient
) -> None:
    ehr = (await redeem(http, site, await browser.authorize("doctor", scope="user/*.rs"))).json()
    context = {
        "patient": "p2",
        "encounter": "e9",
        "fhirContext": [{"reference": "ImagingStudy/7"}],
        "intent": "order",
        "need_patient_banner": False,
    }
    asked = await http.post(
        site.auth + "/launch", json=context, headers={"Authorization": f"Bearer {ehr['access_token']}"}
    )
    flow = await browser.authorize("doctor", scope="launch openid patient/*.rs", launch=asked.json()["launch"])
    token = (await redeem(http, site, flow)).json()
    told = await http.post(
        site.auth + "/introspect", data={"token": token["access_token"]}, auth=("gateway", site.secrets["gateway"])
    )
    for name, value in context.items():
        assert token[name] == told.json()[name] == value, name


async def test_a_user_who_is_disabled_gets_no_token_for_a_code(
    site: Site, browser: Browser, http: httpx.AsyncClient
) -> None:
    flow = await browser.authorize("ann", scope="openid patient/*.rs offline_access")
    token = (await redeem(http, site, flow)).json()
    flow = await browser.authorize("ann", scope="openid patient/*.rs")
    credentials = site.authority.credentials
    user = await credentials.user("ann")
    assert user is not None
    await credentials.put_user(replace(user, disabled=True), replace=True)
    try:
        answer = await redeem(http, site, flow)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")
        auth = ("gateway", site.secrets["gateway"])
        told = await http.post(site.auth + "/introspect", data={"token": token["refresh_token"]}, auth=auth)
        assert told.json() == {"active": False}
    finally:
        await credentials.put_user(user, replace=True)


async def test_revoking_somebody_elses_token_does_nothing(
    site: Site, browser: Browser, http: httpx.AsyncClient
) -> None:
    token = (await redeem(http, site, await browser.authorize("ann", scope="patient/*.rs offline_access"))).json()
    for value in (token["access_token"], token["refresh_token"], "nonsense"):
        answer = await http.post(site.auth + "/revoke", data={"token": value}, auth=("web", site.secrets["web"]))
        assert answer.status_code == 200
    assert (await who(http, site, token["access_token"])).status_code == 200
    answer = await http.post(site.auth + "/revoke", data={"token": token["access_token"], "client_id": "app"})
    assert answer.status_code == 200
    assert (await who(http, site, token["access_token"])).status_code == 401
    assert (await refresh(http, site, token["refresh_token"])).status_code == 200


async def test_keys_rotate_and_old_tokens_stay_valid_to_their_end(
    site: Site, browser: Browser, http: httpx.AsyncClient, at: Any
) -> None:
    old = (await redeem(http, site, await browser.authorize("ann"))).json()["access_token"]
    before = [key["kid"] for key in (await http.get(site.auth + "/jwks")).json()["keys"]]
    fresh = await site.authority.keys.rotate()
    published = [key["kid"] for key in (await http.get(site.auth + "/jwks")).json()["keys"]]
    assert set(published) == {fresh, *before}
    new = (await redeem(http, site, await browser.authorize("ann"))).json()["access_token"]
    assert jwt.get_unverified_header(new)["kid"] == fresh
    assert (await who(http, site, old)).status_code == 200
    assert (await who(http, site, new)).status_code == 200
    at(2 * 3600)
    assert [key["kid"] for key in (await http.get(site.auth + "/jwks")).json()["keys"]] == [fresh]


async def test_a_rotation_elsewhere_refuses_no_token(
    site: Site, browser: Browser, http: httpx.AsyncClient, at: Any
) -> None:
    """Another worker signs with the new key at once; this one must not need its next look at the keys to know it."""
    settings, credentials = site.authority.settings, site.authority.credentials
    other = build(settings, credentials, base=site.url, now=site.now, passwords=site.authority.passwords)
    await other.open()
    await http.get(site.auth + "/jwks")  # has just looked
    await other.keys.rotate()
    client = await credentials.client("daemon")
    assert client is not None
    at(1.5)
    token = await other.tokens.access_token(subject="daemon", client=client, scopes=["system/*.rs"])
    assert (await who(http, site, token)).status_code == 200


async def test_a_rotation_ends_no_token_that_lives_longer_than_others(
    site: Site, http: httpx.AsyncClient, at: Any
) -> None:
    client = await site.authority.credentials.client("daemon")
    assert client is not None
    token = await site.authority.tokens.access_token(
        subject="daemon", client=client, scopes=["system/*.rs"], lifetime=86400
    )
    await site.authority.keys.rotate()
    at(86000)
    kids = [key["kid"] for key in (await http.get(site.auth + "/jwks")).json()["keys"]]
    assert jwt.get_unverified_header(token)["kid"] in kids
    assert (await who(http, site, token)).status_code == 200
    at(1000)
    assert (await who(http, site, token)).status_code == 401


async def test_a_rotation_that_stops_half_way_leaves_a_key_that_signs(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials, put = site.authority.credentials, Credentials.put_key

    async def once(self: Credentials, key: SigningKey) -> None:
        await put(self, key)
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(Credentials, "put_key", once)
        with pytest.raises(RuntimeError):
            await site.authority.keys.rotate()
    assert any(not key.expires for key in await credentials.all_keys())


async def test_private_keys_and_secrets_are_not_in_the_database(site: Site) -> None:
    database = site.authority.credentials._database
    everything = ""
    for name in await database.list_collection_names():
        everything += str(await database[name].find().to_list())
    assert PASSWORD not in everything
    assert site.secrets["web"] not in everything
    assert "'d':" not in everything
    key = site.authority.settings.data_dir / "auth.key"
    assert key.stat().st_mode & 0o777 == 0o600


async def test_a_removed_client_and_a_disabled_user_are_out(
    site: Site, browser: Browser, http: httpx.AsyncClient, at: Any
) -> None:
    credentials = site.authority.credentials
    client = await credentials.client("small")
    assert client is not None
    token = (
        await redeem(
            http, site, await browser.authorize("ann", client="small", scope="patient/Observation.rs"), "small"
        )
    ).json()
    assert (await who(http, site, token["access_token"])).status_code == 200
    await credentials.remove_client("small")
    at(3)  # as another process would notice
    assert (await who(http, site, token["access_token"])).status_code == 401
    await credentials.put_client(client)
    assert (await who(http, site, token["access_token"])).status_code == 401, "its grants ended with it"


async def test_breaking_the_glass_needs_a_practitioner_and_a_reason(
    site: Site, browser: Browser, http: httpx.AsyncClient
) -> None:
    nurse = (await redeem(http, site, await browser.authorize("nurse", scope="user/*.rs"))).json()["access_token"]
    seen = (await who(http, site, nurse, **{"X-Break-Glass": "unconscious in the emergency room"})).json()
    assert (seen["patients"], seen["clearance"], seen["purpose"]) == (None, "V", "unconscious in the emergency room")
    for short in ("x", "昏迷".encode(), "%20" * 9):
        assert (await who(http, site, nurse, **{"X-Break-Glass": short})).status_code == 400
    for reason in ("病人昏迷".encode(), "%E7%97%85%E4%BA%BA%E6%98%8F%E8%BF%B7"):
        assert (await who(http, site, nurse, **{"X-Break-Glass": reason})).json()["purpose"] == "病人昏迷"
    other = Browser(site)
    ann = (await redeem(http, site, await other.authorize("ann"))).json()["access_token"]
    await other.close()
    assert (await who(http, site, ann, **{"X-Break-Glass": "I am curious about it"})).status_code == 403


async def test_an_app_registers_itself_where_that_is_allowed(
    mongo_url: str, tmp_path: Any, http: httpx.AsyncClient
) -> None:
    async with secured_application(mongo_url, tmp_path, registration=True, audit=False) as secured:
        configuration = (await secured.http.get(".well-known/smart-configuration")).json()
        url = configuration["registration_endpoint"]
        asked = {"client_name": "Own", "redirect_uris": [REDIRECT], "scope": "patient/*.rs system/*.cruds openid"}
        made = await secured.http.post(url, json=asked)
        assert made.status_code == 201
        answer = made.json()
        assert answer["scope"] == "patient/*.rs openid", "never system scopes"
        client = await secured.authority.credentials.client(answer["client_id"])
        assert client is not None
        assert (client.kind, client.grant_types) == ("confidential-symmetric", ("authorization_code", "refresh_token"))
        form = {"grant_type": "client_credentials", "scope": "patient/*.rs"}
        refused = await secured.http.post("auth/token", data=form, auth=(client.id, answer["client_secret"]))
        assert refused.json()["error"] == "unauthorized_client"
        for wrong, error in (
            ({"redirect_uris": []}, "invalid_client_metadata"),
            ({"redirect_uris": ["http://evil.example/"]}, "invalid_redirect_uri"),
            ({"redirect_uris": ["https://a.example/#x"]}, "invalid_redirect_uri"),
            ({"redirect_uris": ["javascript:alert(1)"]}, "invalid_redirect_uri"),
            ({"redirect_uris": ["https://[a.example/"]}, "invalid_redirect_uri"),
            ({"redirect_uris": [REDIRECT], "token_endpoint_auth_method": "tls"}, "invalid_client_metadata"),
            ({"redirect_uris": [REDIRECT], "token_endpoint_auth_method": "private_key_jwt"}, "invalid_client_metadata"),
        ):
            answer = await secured.http.post(url, json=wrong)
            assert (answer.status_code, answer.json()["error"]) == (400, error), wrong

"""What an attacker would try, and the OAuth error it earns.

https://www.rfc-editor.org/rfc/rfc9700 (security best practice) and https://www.rfc-editor.org/rfc/rfc8725 (JWT)
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from fhir_server.auth import remote_keys
from fhir_server.auth.addresses import Unreachable, is_public
from fhir_server.auth.limits import FAILED_LOGINS, RateLimit, place
from fhir_server.auth.remote_keys import RemoteKeys
from fhir_server.errors import TooManyRequests
from fhir_server.http.smart import pages, routes
from tests.auth.conftest import (
    PASSWORD,
    REDIRECT,
    Browser,
    Secured,
    Site,
    assertion,
    jwk_of,
    redeem,
    refresh,
    serving,
    who,
)

pytestmark = pytest.mark.anyio


def b64(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.fixture(scope="module")
async def good(site: Site) -> dict[str, Any]:
    """A token that works, with its parts."""
    browser = Browser(site)
    async with httpx.AsyncClient() as http:
        token = (await redeem(http, site, await browser.authorize("ann"))).json()
        assert (await who(http, site, token["access_token"])).status_code == 200
        keys = (await http.get(site.auth + "/jwks")).json()["keys"]
    await browser.close()
    header, claims, signature = token["access_token"].split(".")
    return {
        "token": token["access_token"],
        "id_token": token["id_token"],
        "header": jwt.get_unverified_header(token["access_token"]),
        "claims": jwt.decode(token["access_token"], options={"verify_signature": False}),
        "parts": (header, claims, signature),
        "jwk": keys[0],
    }


def signed(good: dict[str, Any], key: Any, **header: Any) -> str:
    return jwt.encode(good["claims"], key, "RS256", headers={**good["header"], **header})


FORGERIES: dict[str, Any] = {
    "alg none": lambda g, key: f"{b64({**g['header'], 'alg': 'none'})}.{g['parts'][1]}.",
    "alg None in other case": lambda g, key: f"{b64({**g['header'], 'alg': 'nOnE'})}.{g['parts'][1]}.",
    "no signature": lambda g, key: f"{g['parts'][0]}.{g['parts'][1]}.",
    "changed claims": lambda g, key: f"{g['parts'][0]}.{b64({**g['claims'], 'patient': 'p2'})}.{g['parts'][2]}",
    "HS256 with the public key": lambda g, key: hs256(g),
    "another key under our kid": signed,
    "a key of its own (jwk header)": lambda g, key: signed(g, key, jwk=jwk_of(key, "x"), kid="x"),
    "a key elsewhere (jku header)": lambda g, key: signed(g, key, jku="https://evil.example/jwks"),
    "kid as a path": lambda g, key: signed(g, key, kid="../../../../dev/null"),
    "kid as a query": lambda g, key: signed(g, key, kid="' OR '1'='1"),
    "kid as an object": lambda g, key: ".".join((b64({**g["header"], "kid": {"$ne": ""}}), *g["parts"][1:])),
    "no kid": lambda g, key: jwt.encode(g["claims"], key, "RS256", headers={"typ": "at+jwt"}),
    "an id_token": lambda g, key: g["id_token"],
    "not a token": lambda g, key: "abc",
    "dots": lambda g, key: "..",
    "very long": lambda g, key: "a" * 20_000 + ".b.c",
    "not ASCII": lambda g, key: "é.è.ê".encode().decode("latin-1"),
}  # fmt: skip


def hs256(good: dict[str, Any]) -> str:
    """The public key, which everybody knows, used as a shared secret."""
    pem = jwt.PyJWK(good["jwk"], "RS256").key
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    secret = pem.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = f"{b64({**good['header'], 'alg': 'HS256'})}.{good['parts'][1]}"
    return f"{signed}.{b64(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_forged_access_tokens(
    site: Site, http: httpx.AsyncClient, good: dict[str, Any], rsa_key: Any, forgery: str
) -> None:
    token = FORGERIES[forgery](good, rsa_key)
    answer = await http.get(site.url + "/whoami", headers=[(b"Authorization", b"Bearer " + token.encode("latin-1"))])
    assert answer.status_code == 401, answer.text
    assert answer.headers["www-authenticate"].startswith('Bearer error="invalid_token"')
    assert not token or token not in answer.text


async def test_a_refusal_says_what_would_be_needed(site: Site, http: httpx.AsyncClient, good: dict[str, Any]) -> None:
    """https://www.rfc-editor.org/rfc/rfc6750#section-3.1 and https://www.rfc-editor.org/rfc/rfc7617#section-2"""
    bearer = ("Authorization", f"Bearer {good['token']}")
    for status, code, headers in (
        (401, None, [("Authorization", "Basic YTpi")]),
        (400, "invalid_request", [bearer, bearer]),
        (403, "insufficient_scope", [bearer, ("X-Break-Glass", "only a patient")]),
    ):
        answer = await http.get(site.url + "/whoami", headers=headers)
        assert answer.status_code == status
        assert answer.headers["www-authenticate"] == (f'Bearer error="{code}"' if code else "Bearer")
    form = {"grant_type": "client_credentials"}
    answer = await http.post(site.auth + "/token", data=form, auth=("daemon", "wrong"))
    assert answer.headers["www-authenticate"].startswith('Basic realm="')


WRONG_CLAIMS = {
    "another audience": {"aud": "https://other.example/fhir"},
    "a list without us": {"aud": ["https://a.example", "https://b.example"]},
    "another issuer": {"iss": "https://other.example"},
    "no subject": {"sub": None},
    "no audience": {"aud": None},
    "no expiry": {"exp": None},
    "no token id": {"jti": None},
    "expired": {"exp": -60},
    "not valid yet": {"nbf": +60},
    "expiry as text": {"exp": "9999999999"},
    "an unknown client": {"client_id": "nobody"},
    "an unknown user": {"sub": "nobody"},
    "a disabled user": {"sub": "gone"},
}


@pytest.mark.parametrize("wrong", WRONG_CLAIMS)
async def test_wrong_claims_under_our_own_signature(
    site: Site, http: httpx.AsyncClient, good: dict[str, Any], wrong: str
) -> None:
    claims = {**good["claims"], "jti": secrets.token_hex(8), **WRONG_CLAIMS[wrong]}
    for name in ("exp", "nbf"):
        if isinstance(claims.get(name), int) and abs(claims[name]) < 1000:
            claims[name] += int(site.now())
    claims = {name: value for name, value in claims.items() if value is not None}
    token = await site.authority.keys.sign(claims, "at+jwt")
    assert (await who(http, site, token)).status_code == 401
    as_other_type = await site.authority.keys.sign({**good["claims"], "jti": "z"}, "JWT")
    assert (await who(http, site, as_other_type)).status_code == 401


async def test_a_token_ends_in_time(site: Site, browser: Browser, http: httpx.AsyncClient, at: Any) -> None:
    token = (await redeem(http, site, await browser.authorize("ann"))).json()["access_token"]
    assert (await who(http, site, token)).status_code == 200
    at(3600 + 10)
    assert (await who(http, site, token)).status_code == 401, "also when it is remembered as verified"


async def test_user_tokens_carry_no_system_scopes(site: Site, http: httpx.AsyncClient, good: dict[str, Any]) -> None:
    claims = {**good["claims"], "scope": "system/*.cruds patient/*.rs", "jti": "s1"}
    seen = (await who(http, site, await site.authority.keys.sign(claims, "at+jwt"))).json()
    assert seen["scopes"] == ["patient/*.rs"]


# Codes and PKCE


async def test_a_code_works_once_and_its_reuse_ends_everything(
    site: Site, browser: Browser, http: httpx.AsyncClient
) -> None:
    flow = await browser.authorize("ann", scope="patient/*.rs offline_access")
    first = (await redeem(http, site, flow)).json()
    assert (await who(http, site, first["access_token"])).status_code == 200
    second = await redeem(http, site, flow)
    assert (second.status_code, second.json()["error"]) == (400, "invalid_grant")
    assert (await who(http, site, first["access_token"])).status_code == 401
    assert (await refresh(http, site, first["refresh_token"])).json()["error"] == "invalid_grant"


async def test_a_code_redeemed_twice_at_once_leaves_no_living_token(
    site: Site, browser: Browser, http: httpx.AsyncClient
) -> None:
    flow = await browser.authorize("ann", scope="patient/*.rs offline_access")
    answers = await asyncio.gather(*(redeem(http, site, flow) for _ in range(6)))
    won = [answer.json() for answer in answers if answer.status_code == 200]
    assert len(won) <= 1
    for token in won:
        assert (await who(http, site, token["access_token"])).status_code == 401
        assert (await refresh(http, site, token["refresh_token"])).json()["error"] == "invalid_grant"


CODE_MISUSE: dict[str, dict[str, Any]] = {
    "another verifier": {"code_verifier": "x" * 64},
    "no verifier": {"code_verifier": None},
    "an empty verifier": {"code_verifier": ""},
    "a short verifier": {"code_verifier": "short"},
    "another redirect_uri": {"redirect_uri": "https://evil.example/"},
    "no redirect_uri": {"redirect_uri": None},
    "a code nobody gave": {"code": "guess"},
}


@pytest.mark.parametrize("misuse", CODE_MISUSE)
async def test_misused_codes(site: Site, browser: Browser, http: httpx.AsyncClient, misuse: str) -> None:
    flow = await browser.authorize("ann")
    answer = await redeem(http, site, flow, **CODE_MISUSE[misuse])
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant"), answer.text
    assert answer.headers["cache-control"] == "no-store"


async def test_a_code_expires_and_belongs_to_one_client(
    site: Site, browser: Browser, http: httpx.AsyncClient, at: Any
) -> None:
    flow = await browser.authorize("ann")
    assert (await redeem(http, site, flow, "small")).json()["error"] == "invalid_grant"
    flow = await browser.authorize("ann")
    at(61)
    assert (await redeem(http, site, flow)).json()["error"] == "invalid_grant"


async def test_the_plain_challenge_as_verifier_is_refused(
    site: Site, browser: Browser, http: httpx.AsyncClient
) -> None:
    challenge = "c" * 43
    flow = await browser.authorize("ann", code_challenge=challenge)
    assert (await redeem(http, site, flow, code_verifier=challenge)).json()["error"] == "invalid_grant"


# Authorization requests

REFUSED_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "PKCE plain": ({"code_challenge_method": "plain"}, "invalid_request"),
    "PKCE method left out (means plain)": ({"code_challenge_method": None}, "invalid_request"),
    "no challenge": ({"code_challenge": None, "code_challenge_method": None}, "invalid_request"),
    "a short challenge": ({"code_challenge": "abc"}, "invalid_request"),
    "implicit": ({"response_type": "token"}, "unsupported_response_type"),
    "no state": ({"state": None}, "invalid_request"),
    "another server's aud": ({"aud": "https://evil.example/fhir"}, "invalid_request"),
    "aud of a server that begins like us": ({"aud": "http://localhost:@evil.example/fhir"}, "invalid_request"),
    "no aud": ({"aud": None}, "invalid_request"),
    "no scope": ({"scope": None}, "invalid_scope"),
    "only system scopes": ({"scope": "system/*.rs"}, "invalid_scope"),
    "a launch nobody made": ({"launch": "guess"}, "invalid_request"),
    "a response in the fragment": ({"response_mode": "fragment"}, "invalid_request"),
    "a request object": ({"request": "x.y.z"}, "request_not_supported"),
    "prompt none without session": ({"prompt": "none"}, "login_required"),
    "prompt none and more": ({"prompt": "none login"}, "invalid_request"),
    "an age that is no number": ({"max_age": "-1"}, "invalid_request"),
}


def request_of(site: Site, **changed: Any) -> dict[str, str]:
    parameters = {
        "response_type": "code",
        "client_id": "app",
        "redirect_uri": REDIRECT,
        "scope": "patient/*.rs",
        "state": "s&=+ ",
        "aud": site.url,
        "code_challenge": "c" * 43,
        "code_challenge_method": "S256",
        **changed,
    }
    return {name: value for name, value in parameters.items() if value is not None}


@pytest.mark.parametrize("refused", REFUSED_REQUESTS)
async def test_refused_requests_go_back_to_the_app(site: Site, http: httpx.AsyncClient, refused: str) -> None:
    changed, error = REFUSED_REQUESTS[refused]
    answer = await http.get(site.auth + "/authorize", params=request_of(site, **changed))
    assert answer.status_code == 303, answer.text
    assert answer.headers["location"].startswith(REDIRECT + "?")
    back = parse_qs(urlsplit(answer.headers["location"]).query)
    assert back["error"] == [error]
    assert back["iss"] == [site.url]
    assert back.get("state") == (["s&=+ "] if "state" not in changed else None)


FRESH: dict[str, dict[str, str]] = {
    "prompt": {"prompt": "login"},
    "one of several": {"prompt": "login consent"},
    "age": {"max_age": "0"},
}


@pytest.mark.parametrize("asked", FRESH)
async def test_an_app_asks_for_a_fresh_login(site: Site, browser: Browser, http: httpx.AsyncClient, asked: str) -> None:
    """Also by a form on its own page, where the browser leaves the session's cookie out of the POST and not of what follows."""
    online = (await redeem(http, site, await browser.authorize("ann", scope="patient/*.rs online_access"))).json()
    wanted = request_of(site, **FRESH[asked])
    by_link = await browser.http.get(site.auth + "/authorize", params=wanted)
    async with httpx.AsyncClient(cookies={"fhir-browser": browser.http.cookies["fhir-browser"]}) as bare:
        by_form = await bare.post(site.auth + "/authorize", data=wanted)
    for start in (by_link, by_form):
        assert 'type="password"' in (await browser.http.get(start.headers["location"])).text
    again = await refresh(http, site, online["refresh_token"])
    assert again.status_code == 200, "that another site's link asks for a login logs nobody out"
    back = await browser.fill_in(by_link, "ann")
    assert "code=" in back
    again = await refresh(http, site, again.json()["refresh_token"])
    assert again.status_code == 200, "and the same person's new login goes on where the old one was"
    by_link = await browser.http.get(site.auth + "/authorize", params=wanted)
    await browser.fill_in(by_link, "doctor", patient="p3")
    assert (await refresh(http, site, again.json()["refresh_token"])).json()["error"] == "invalid_grant"


async def test_a_login_that_is_young_enough_counts(site: Site, browser: Browser, at: Any) -> None:
    await browser.authorize("ann")
    for seconds, asked in ((0, False), (90, True)):
        at(seconds)
        start = await browser.http.get(site.auth + "/authorize", params=request_of(site, max_age="60"))
        shown = await browser.http.get(start.headers["location"])
        assert ('type="password"' in shown.text) is asked
    silent = await browser.http.get(site.auth + "/authorize", params=request_of(site, max_age="60", prompt="none"))
    assert parse_qs(urlsplit(silent.headers["location"]).query)["error"] == ["login_required"]


async def test_localhost_is_this_machine(site: Site, http: httpx.AsyncClient) -> None:
    aud = site.url.replace("127.0.0.1", "localhost") + "/"
    answer = await http.get(site.auth + "/authorize", params=request_of(site, aud=aud))
    assert "error" not in answer.headers["location"]


BAD_REDIRECTS = [
    "https://evil.example/callback",
    REDIRECT + "/",
    REDIRECT + "?x=1",
    REDIRECT + "#x",
    REDIRECT + "/../evil",
    REDIRECT.upper(),
    REDIRECT.replace("https", "http"),
    "https://app.example.org:444/callback",
    "https://app.example.org.evil.example/callback",
    "https://app.example.org@evil.example/callback",
    "//app.example.org/callback",
    "javascript:alert(1)",
    "",
]


@pytest.mark.parametrize("uri", BAD_REDIRECTS)
async def test_redirects_go_only_where_the_app_lives(site: Site, http: httpx.AsyncClient, uri: str) -> None:
    for changed in ({}, {"response_type": "token"}, {"client_id": "nobody"}):
        answer = await http.get(site.auth + "/authorize", params=request_of(site, redirect_uri=uri, **changed))
        assert answer.status_code == 400
        assert "location" not in answer.headers
        assert "evil" not in answer.text
        assert answer.headers["content-type"].startswith("text/html")


async def test_a_parameter_given_twice_is_refused(site: Site, http: httpx.AsyncClient) -> None:
    pairs = [*request_of(site).items(), ("redirect_uri", "https://evil.example/")]
    answer = await http.get(site.auth + "/authorize", params=pairs)
    assert (answer.status_code, "location" in answer.headers) == (400, False)
    body = "grant_type=client_credentials&scope=system/*.rs&scope=system/*.cruds"
    answer = await http.post(
        site.auth + "/token", content=body, headers={"Content-Type": "application/x-www-form-urlencoded"},
        auth=("daemon", site.secrets["daemon"]),
    )  # fmt: skip
    assert answer.json()["error"] == "invalid_request"


async def test_another_browser_cannot_go_on_with_a_login(site: Site) -> None:
    """Neither a stolen link nor a form on another site works without the first browser's cookie."""
    victim, thief = Browser(site), Browser(site)
    start = await victim.http.get(site.auth + "/authorize", params=request_of(site))
    await victim.http.get(start.headers["location"])
    request_id = parse_qs(urlsplit(start.headers["location"]).query)["request"][0]
    await thief.http.get(site.auth + "/authorize", params=request_of(site))  # has a browser cookie of its own
    for path, form in (
        ("login", {"name": "ann", "password": PASSWORD}),
        ("patient", {"patient": "p1"}),
        ("consent", {"answer": "allow", "scope": "patient/*.rs"}),
    ):
        answer = await thief.http.post(f"{site.auth}/{path}", data={"request": request_id, **form})
        assert (answer.status_code, "location" in answer.headers) == (400, False), path
    assert (await thief.http.get(site.auth + "/continue", params={"request": request_id})).status_code == 400
    await victim.close()
    await thief.close()


async def test_consent_cannot_be_widened_by_the_form(site: Site, browser: Browser, http: httpx.AsyncClient) -> None:
    start = await browser.http.get(site.auth + "/authorize", params=request_of(site, scope="patient/Observation.rs"))
    request_id = parse_qs(urlsplit(start.headers["location"]).query)["request"][0]
    await browser.http.post(site.auth + "/login", data={"request": request_id, "name": "ann", "password": PASSWORD})
    form = {"request": request_id, "answer": "allow", "scope": ["user/*.cruds", "patient/*.cruds"]}
    back = await browser.http.post(site.auth + "/consent", data=form)
    assert "error=access_denied" in back.headers["location"]


async def test_a_patient_cannot_be_chosen_beyond_ones_reach(site: Site, browser: Browser) -> None:
    start = await browser.http.get(site.auth + "/authorize", params=request_of(site, scope="patient/Observation.rs"))
    request_id = parse_qs(urlsplit(start.headers["location"]).query)["request"][0]
    await browser.http.post(site.auth + "/login", data={"request": request_id, "name": "nurse", "password": PASSWORD})
    back = await browser.http.post(site.auth + "/patient", data={"request": request_id, "patient": "p1"})
    assert "error=access_denied" in back.headers["location"]


# Refresh tokens


async def test_refresh_reuse_revokes_the_family(site: Site, browser: Browser, http: httpx.AsyncClient) -> None:
    first = (await redeem(http, site, await browser.authorize("ann", scope="patient/*.rs offline_access"))).json()
    second = (await refresh(http, site, first["refresh_token"])).json()
    assert (await who(http, site, second["access_token"])).status_code == 200
    stolen = await refresh(http, site, first["refresh_token"])
    assert (stolen.status_code, stolen.json()["error"]) == (400, "invalid_grant")
    assert (await refresh(http, site, second["refresh_token"])).json()["error"] == "invalid_grant"
    assert (await who(http, site, second["access_token"])).status_code == 401


async def test_scopes_do_not_grow_on_refresh(site: Site, browser: Browser, http: httpx.AsyncClient) -> None:
    scope = "patient/Observation.rs patient/Condition.rs offline_access"
    token = (await redeem(http, site, await browser.authorize("ann", scope=scope))).json()
    for wider in (
        "patient/*.rs",
        "patient/Observation.cruds",
        "user/Observation.rs",
        "openid",
        "patient/Observation.rs system/*.rs",
    ):
        answer = await refresh(http, site, token["refresh_token"], scope=wider)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_scope"), wider
    less = await refresh(http, site, token["refresh_token"], scope="patient/Observation.rs?category=vital-signs")
    assert less.json()["scope"] == "patient/Observation.rs?category=vital-signs"
    again = await refresh(http, site, less.json()["refresh_token"])
    assert again.json()["scope"] == scope, "a refresh may ask for less without losing the rest (RFC 6749 6)"


async def test_a_refresh_token_of_another_client(site: Site, browser: Browser, http: httpx.AsyncClient) -> None:
    token = (await redeem(http, site, await browser.authorize("ann", scope="patient/*.rs offline_access"))).json()
    answer = await refresh(http, site, token["refresh_token"], "small")
    assert answer.json()["error"] == "invalid_grant"
    assert (await refresh(http, site, token["refresh_token"])).status_code == 200, "and does its owner no harm"


# Client authentication

ASSERTIONS: dict[str, dict[str, Any]] = {
    "for another endpoint": {"aud": "https://other.example/token"},
    "expired": {"exp": -10},
    "living too long": {"exp": 3600},
    "without end": {"exp": None},
    "without jti": {"jti": None},
    "in the future": {"nbf": 600},
    "issued in the future": {"iat": 600},
    "from somebody else": {"iss": "signed"},
    "for another subject": {"sub": "signed"},
    "an unknown client": {"iss": "nobody", "sub": "nobody"},
    "a public client": {"iss": "app", "sub": "app"},
    "an object as issuer": {"iss": {"$ne": 1}, "sub": {"$ne": 1}},
    "half a character as issuer": {"iss": "\ud800", "sub": "\ud800"},
    "half a character as jti": {"jti": "\ud800"},
    "an end that is no number": {"exp": float("nan")},
}


@pytest.mark.parametrize("wrong", ASSERTIONS)
async def test_wrong_assertions(site: Site, http: httpx.AsyncClient, rsa_key: Any, wrong: str) -> None:
    changed = dict(ASSERTIONS[wrong])
    for name in ("exp", "nbf", "iat"):
        if isinstance(changed.get(name), int):
            changed[name] += int(site.now())
    if isinstance(changed.get("iss"), dict):  # PyJWT would not sign it: the claims are put together by hand
        claims = {**changed, "aud": site.auth + "/token", "exp": int(site.now()) + 60, "jti": "j"}
        fields = assertion(site, rsa_key, "r")
        fields["client_assertion"] = f"{b64({'alg': 'RS384', 'kid': 'r'})}.{b64(claims)}.{b64(b'signature')}"
    else:
        fields = assertion(site, rsa_key, "r", **changed)
    answer = await http.post(
        site.auth + "/token", data={"grant_type": "client_credentials", "scope": "system/*.rs", **fields}
    )
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client"), answer.text


async def test_assertions_by_wrong_means(site: Site, http: httpx.AsyncClient, rsa_key: Any, ec_key: Any) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = {"grant_type": "client_credentials", "scope": "system/*.rs"}
    for fields in (
        assertion(site, other, "r"),  # a stranger's key under a known kid
        assertion(site, rsa_key, "unknown"),
        assertion(site, rsa_key, "e"),  # the other key's kid
        assertion(site, rsa_key, "r", algorithm="RS256"),
        assertion(site, rsa_key, "r", algorithm="PS384"),
        assertion(site, rsa_key, "r", jku="https://backend.example.org/jwks"),  # not where it said that its keys are
        {**assertion(site, rsa_key, "r"), "client_assertion": "abc"},
    ):
        answer = await http.post(site.auth + "/token", data={**form, **fields})
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client"), answer.text


async def test_an_assertion_is_used_once(site: Site, http: httpx.AsyncClient, ec_key: Any) -> None:
    form = {"grant_type": "client_credentials", "scope": "system/*.rs", **assertion(site, ec_key, "e")}
    assert (await http.post(site.auth + "/token", data=form)).status_code == 200
    again = await http.post(site.auth + "/token", data=form)
    assert (again.status_code, again.json()["error"]) == (401, "invalid_client")
    same = assertion(site, ec_key, "e", jti="fixed")
    at_once = await asyncio.gather(*(http.post(site.auth + "/token", data={**form, **same}) for _ in range(5)))
    assert sorted(answer.status_code for answer in at_once) == [200, 401, 401, 401, 401]


async def test_clients_authenticate_as_registered(site: Site, http: httpx.AsyncClient, rsa_key: Any) -> None:
    form = {"grant_type": "client_credentials", "scope": "system/*.rs"}
    token = site.auth + "/token"
    secret = site.secrets["daemon"]
    cases = [
        (401, "invalid_client", form, ("daemon", "wrong")),
        (401, "invalid_client", form, ("nobody", secret)),
        (401, "invalid_client", form, ("backend", secret)),  # registered with a key
        (401, "invalid_client", form, None),
        (401, "invalid_client", {**form, "client_id": "daemon"}, None),  # its secret left out
        (400, "invalid_request", {**form, "client_secret": secret, "client_id": "daemon"}, ("daemon", secret)),
        (400, "invalid_request", {**form, **assertion(site, rsa_key, "r"), "client_id": "daemon"}, None),
        (400, "unauthorized_client", {**form, "client_id": "app"}, None),
        (400, "invalid_scope", {**form, "scope": ""}, ("daemon", secret)),
        (400, "invalid_scope", {**form, "scope": "user/*.rs"}, ("daemon", secret)),
        (400, "invalid_scope", {**form, "scope": "system/Patient.d"}, ("daemon", secret)),
        (400, "unsupported_grant_type", {"grant_type": "password"}, ("daemon", secret)),
        (400, "unauthorized_client", {"grant_type": "authorization_code"}, ("daemon", secret)),
        (400, "invalid_request", {"scope": "x"}, ("daemon", secret)),
    ]
    for status, error, fields, auth in cases:
        answer = await http.post(token, data=fields, auth=auth)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["error"]) == (status, error), (fields, answer.text)
        assert secret not in answer.text
    wrong_type = await http.post(token, json={**form}, auth=("daemon", secret))
    assert wrong_type.json()["error"] == "invalid_request"
    huge = await http.post(token, data={**form, "x": "y" * 70_000}, auth=("daemon", secret))
    assert huge.status_code == 413


# Keys fetched from elsewhere


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True), ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True), ("127.0.0.1", False), ("10.1.2.3", False),
        ("172.16.0.1", False), ("192.168.1.1", False), ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False),
        ("224.0.0.1", False), ("255.255.255.255", False), ("::1", False), ("::", False), ("fe80::1", False), ("fc00::1", False),
        ("::ffff:127.0.0.1", False), ("::ffff:169.254.169.254", False), ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False),
        ("192.0.2.1", False), ("ff02::1", False),
    ],
)  # fmt: skip
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    "url",
    ["http://example.org/jwks", "https://127.0.0.1/jwks", "https://localhost/jwks", "https://[::1]/jwks", "file:///etc/passwd",
     "https://user@127.0.0.1/", "https:///jwks", "https://2130706433/jwks", "https://0x7f.1/jwks", "gopher://127.0.0.1/"],
)  # fmt: skip
async def test_internal_key_sets_are_not_fetched(site: Site, url: str) -> None:
    with pytest.raises(Unreachable):
        await RemoteKeys(now=site.now).keys(url, "k")


async def test_key_sets_are_fetched_cached_and_bounded(site: Site, rsa_key: Any, at: Any) -> None:
    import socket

    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, RedirectResponse, Response
    from starlette.routing import Route

    fetched: list[str] = []
    kids = ["a"]

    async def keys(request: Request) -> Response:
        fetched.append(request.headers["host"])
        body = {"keys": [jwk_of(rsa_key, kid) for kid in kids]}
        return JSONResponse(body, headers={"Cache-Control": "max-age=600"})

    async def elsewhere(request: Request) -> Response:
        return RedirectResponse("/jwks")

    async def large(request: Request) -> Response:
        return Response(b" " * 300_000)

    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    app = Starlette(routes=[Route("/jwks", keys), Route("/elsewhere", elsewhere), Route("/large", large)])
    url = f"http://localhost:{port}"
    async with serving(app, sock):
        remote = RemoteKeys(now=site.now, internal_allowed=True)
        assert len(await remote.keys(url + "/jwks", "a")) == 1
        await asyncio.gather(*(remote.keys(url + "/jwks", "a") for _ in range(10)))
        assert fetched == [f"localhost:{port}"]
        assert await remote.keys(url + "/jwks", "b") == []
        assert len(fetched) == 1, "an unknown kid does not make us hammer the client's server"
        kids.append("b")
        at(31)
        assert len(await remote.keys(url + "/jwks", "b")) == 1, "but a rotation is noticed"
        at(700)
        await remote.keys(url + "/jwks", "a")
        assert len(fetched) == 3
        for path in ("/elsewhere", "/large", "/missing"):
            with pytest.raises(Unreachable):
                await remote.keys(url + path, "a")
        with pytest.raises(Unreachable, match="public"):
            await RemoteKeys(now=site.now).keys(f"https://localhost:{port}/jwks", "a")


async def test_a_name_server_that_does_not_answer_is_not_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(*_: Any, **__: Any) -> list[Any]:
        await asyncio.sleep(60)
        return []

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", silent)
    monkeypatch.setattr(remote_keys, "SECONDS", 0.05)
    async with asyncio.timeout(5):
        with pytest.raises(Unreachable, match="could not be fetched"):
            await RemoteKeys(now=site.now).keys("https://keys.example.org/jwks", "k")


# Pages, limits, headers


async def test_pages_escape_and_forbid(site: Site, browser: Browser) -> None:
    await browser.authorize("ann", deny=True)
    page = browser.pages[0]
    assert "<b>App" not in page
    assert "&lt;b&gt;App" in page
    start = await browser.http.get(site.auth + "/authorize", params=request_of(site))
    shown = await browser.http.get(start.headers["location"])
    policy = shown.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "form-action 'self' https://app.example.org" in policy
    assert "script" not in shown.text
    assert shown.headers["x-content-type-options"] == "nosniff"
    assert shown.headers["referrer-policy"] == "no-referrer"
    cookies = [value for name, value in start.headers.multi_items() if name == "set-cookie"]
    assert all("HttpOnly" in cookie and "SameSite=lax" in cookie and "Path=/fhir/auth" in cookie for cookie in cookies)
    assert cookies


async def test_pages_speak_two_languages_and_label_their_fields(site: Site) -> None:
    for language, title in (("zh-CN,zh;q=0.9", "登录"), ("en", "Log in"), ("fr", "Log in")):
        async with httpx.AsyncClient(headers={"Accept-Language": language}, follow_redirects=True) as http:
            page = (await http.get(site.auth + "/authorize", params=request_of(site))).text
            assert f"<h1>{title}</h1>" in page
            for id in re.findall(r'<input id="([^"]+)"', page):
                assert f'<label for="{id}">' in page


async def test_failed_logins_are_limited(site: Site, browser: Browser, at: Any) -> None:
    start = await browser.http.get(site.auth + "/authorize", params=request_of(site))
    request_id = parse_qs(urlsplit(start.headers["location"]).query)["request"][0]
    for name in ("limited-but-unknown", "doctor"):
        form = {"request": request_id, "name": name, "password": "wrong"}
        answers = [(await browser.http.post(site.auth + "/login", data=form)) for _ in range(FAILED_LOGINS + 1)]
        assert [answer.status_code for answer in answers] == [401] * FAILED_LOGINS + [429], name
        assert int(answers[-1].headers["retry-after"]) > 0
        right = await browser.http.post(site.auth + "/login", data={**form, "password": PASSWORD})
        assert right.status_code == 429, "the right password does not help while the name is locked"
    at(301)
    start = await browser.http.get(site.auth + "/authorize", params=request_of(site))
    request_id = parse_qs(urlsplit(start.headers["location"]).query)["request"][0]
    form = {"request": request_id, "name": "doctor", "password": PASSWORD}
    assert (await browser.http.post(site.auth + "/login", data=form)).status_code == 303


async def test_guesses_at_the_same_time_are_counted(site: Site, browser: Browser, at: Any) -> None:
    at(301)
    start = await browser.http.get(site.auth + "/authorize", params=request_of(site))
    request_id = parse_qs(urlsplit(start.headers["location"]).query)["request"][0]
    form = {"request": request_id, "name": "nurse", "password": "wrong"}
    for _ in range(3):  # who logs in is not counted
        right = await browser.http.post(site.auth + "/login", data={**form, "password": PASSWORD})
        assert right.status_code == 303
    browser.http.cookies.delete("fhir-session")
    answers = await asyncio.gather(*(browser.http.post(site.auth + "/login", data=form) for _ in range(30)))
    assert sorted(answer.status_code for answer in answers) == [401] * FAILED_LOGINS + [429] * (30 - FAILED_LOGINS)


def test_who_has_many_addresses_is_one_place() -> None:
    assert place("2001:db8:1:2:3:4:5:6") == place("2001:db8:1:2:ffff::1") != place("2001:db8:1:3::1")
    assert place("::ffff:192.0.2.7") == place("192.0.2.7") != place("192.0.2.8")
    assert place("fe80::1%eth0") == place("fe80::2%eth1")
    assert place("") == ""


def test_many_places_cost_the_rate_limit_little() -> None:
    clock = [0.0]
    limit = RateLimit(20, clock=lambda: clock[0])
    started = time.process_time()
    for number in range(60_000):
        clock[0] += 0.0001
        limit.check(f"place {number}")
    assert time.process_time() - started < 2
    assert len(limit._buckets) < 35_000, "what is full again is forgotten"


async def test_a_disabled_user_does_not_log_in(site: Site, browser: Browser) -> None:
    start = await browser.http.get(site.auth + "/authorize", params=request_of(site))
    request_id = parse_qs(urlsplit(start.headers["location"]).query)["request"][0]
    form = {"request": request_id, "name": "gone", "password": PASSWORD}
    assert (await browser.http.post(site.auth + "/login", data=form)).status_code == 401


def test_the_rate_limit_is_a_bucket() -> None:
    clock = [0.0]
    limit = RateLimit(10, clock=lambda: clock[0])
    for _ in range(20):
        limit.check("a")
    with pytest.raises(TooManyRequests) as refused:
        limit.check("a")
    assert refused.value.headers["Retry-After"] == "1"
    limit.check("b")
    clock[0] = 0.1
    limit.check("a")
    with pytest.raises(TooManyRequests):
        limit.check("a")


async def test_cors_is_for_the_api_and_not_for_the_pages(site: Site, http: httpx.AsyncClient) -> None:
    origin = {"Origin": "https://app.example.org"}
    preflight = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for path in ("/auth/token", "/whoami", "/.well-known/smart-configuration", "/auth/jwks"):
        asked = await http.options(site.url + path, headers=preflight)
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (204, "*"), path
        assert "Authorization" in asked.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in asked.headers
    told = await http.get(site.url + "/.well-known/smart-configuration", headers=origin)
    assert told.headers["access-control-allow-origin"] == "*"
    page = await http.get(site.auth + "/authorize", params=request_of(site), headers=origin)
    assert "access-control-allow-origin" not in page.headers
    forms = [
        route.path for route in routes("") if route.endpoint.__module__ == pages.__name__ and "css" not in route.path
    ]
    assert len(forms) == 7
    for path in forms:
        assert (await http.options(site.url + path, headers=preflight)).status_code == 403, path


async def test_nobodys_body_is_not_read(secured: Secured) -> None:
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    for method, path in (("POST", "Patient"), ("PUT", "Patient/p1"), ("POST", "Patient/_search"), ("POST", "")):
        answer = await secured.http.request(method, path, content=body(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 401, path


async def test_a_token_revoked_while_a_body_trickles_in_writes_nothing(
    secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fhir_server.http.application.LONG_SECONDS", 0.0)
    await secured.user("trickles", "administrator")
    headers = await secured.token("user/*.cruds", user="trickles")

    async def body() -> AsyncIterator[bytes]:
        yield b'{"resourceType":"Patient",'
        revoked = {"token": headers["Authorization"].split()[1], "client_id": "app"}
        assert (await secured.http.post("auth/revoke", data=revoked)).status_code == 200
        yield b'"id":"trickled"}'

    sent = {**headers, "Content-Type": "application/fhir+json"}
    assert (await secured.http.put("Patient/trickled", content=body(), headers=sent)).status_code == 401
    assert await secured.server.store.read("Patient", "trickled") is None


async def test_registration_is_off_by_default(site: Site, http: httpx.AsyncClient) -> None:
    answer = await http.post(site.auth + "/register", json={"redirect_uris": [REDIRECT]})
    assert (answer.status_code, answer.json()["error"]) == (403, "access_denied")


# The wire below: uvicorn's parser decides, and one request must never be taken for two


SMUGGLING = {
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "length and chunks": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    b"GET /fhir/whoami HTTP/1.1\r\nHost: x\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "chunked in disguise": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"Content-Length : 5\r\n\r\nhello",
    "a folded header": b"X-A: 1\r\n Content-Length: 5\r\n\r\nhello",
    "a negative length": b"Content-Length: -1\r\n\r\n",
    "a bad chunk size": b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "a bare newline": b"X-A: 1\nContent-Length: 5\r\n\r\nhello",
}


@pytest.mark.parametrize("attack", SMUGGLING)
async def test_smuggled_requests_get_no_second_answer(site: Site, attack: str) -> None:
    parts = urlsplit(site.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(b"POST /fhir/auth/token HTTP/1.1\r\nHost: x\r\n" + SMUGGLING[attack])
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert answer.count(b"HTTP/1.1 ") <= 1, answer
    assert b"HTTP/1.1 2" not in answer


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "x@evil.example", "evil.example/path?", ""])
async def test_the_host_header_decides_nothing(site: Site, http: httpx.AsyncClient, host: str) -> None:
    answer = await http.get(site.url + "/.well-known/smart-configuration", headers={"Host": host})
    assert "evil" not in answer.text
    answer = await http.get(site.auth + "/authorize", params=request_of(site), headers={"Host": host})
    assert "evil" not in str(answer.headers)
    assert answer.status_code in (303, 400)

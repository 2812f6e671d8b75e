"""An authorization server that is there already, on a port of its own: its tokens count, and apps are sent to it."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.auth.conftest import Secured, jwk_of, secured_application, serving

pytestmark = pytest.mark.anyio

METHODS = ["client_secret_basic", "private_key_jwt"]


@dataclass
class Realm:
    """What such a server publishes; `down` makes it fail."""

    url: str
    key: Any
    asked: list[str] = field(default_factory=list)
    down: bool = False
    named: str = ""

    async def publish(self, request: Request) -> Response:
        self.asked.append(request.url.path)
        if self.down:
            return Response(status_code=500)
        if request.url.path.endswith("/certs"):
            return JSONResponse({"keys": [jwk_of(self.key, "k1")]})
        return JSONResponse(
            {
                "issuer": self.named or self.url, "jwks_uri": f"{self.url}/certs",
                "authorization_endpoint": f"{self.url}/login", "token_endpoint": f"{self.url}/token",
                "registration_endpoint": f"{self.url}/register", "code_challenge_methods_supported": ["plain", "S256"],
                "token_endpoint_auth_methods_supported": METHODS, "scopes_supported": ["openid", "launch/patient"],
                "mtls_endpoint_aliases": {"token_endpoint": "https://other.example.org"},
            }
        )  # fmt: skip

    def token(self, scope: str, **claims: Any) -> dict[str, str]:
        now = int(time.time())
        told = {"iss": self.url, "aud": ["account", "fhir"], "sub": "u1", "azp": "portal", "iat": now, "exp": now + 60,
                "jti": secrets.token_hex(4), "scope": scope, **claims}  # fmt: skip
        return {"Authorization": f"Bearer {jwt.encode(told, self.key, 'RS256', headers={'kid': 'k1'})}"}


@pytest.fixture
async def realm(rsa_key: Any, anyio_backend: Any) -> AsyncIterator[Realm]:
    sock = socket.create_server(("127.0.0.1", 0))
    realm = Realm(f"http://127.0.0.1:{sock.getsockname()[1]}/realms/clinic", rsa_key)
    async with serving(Starlette(routes=[Route("/{path:path}", realm.publish)]), sock):
        yield realm


@pytest.fixture
async def clinic(realm: Realm, mongo_url: str, tmp_path: Any) -> AsyncIterator[Secured]:
    settings = {"issuer": realm.url, "issuer_audience": "fhir", "issuer_patient_claim": "context.patient"}
    async with secured_application(mongo_url, tmp_path, issuer_reach="all", **settings) as secured:
        yield secured


async def test_its_tokens_count(clinic: Secured, realm: Realm) -> None:
    service = realm.token("system/*.cruds profile", sub="warehouse")
    for id in ("p1", "p2"):
        put = await clinic.http.put(f"Patient/{id}", json={"resourceType": "Patient", "id": id}, headers=service)
        assert put.status_code == 201, put.text

    async def seen(headers: dict[str, str]) -> set[str]:
        answer = await clinic.http.get("Patient", headers=headers)
        assert answer.status_code == 200, answer.text
        return {entry["resource"]["id"] for entry in answer.json().get("entry", ())}

    assert await seen(realm.token("openid patient/*.rs", context={"patient": "p1"})) == {"p1"}
    assert await seen(realm.token("user/*.rs", fhirUser="https://x.example.org/fhir/Practitioner/d1")) == {"p1", "p2"}
    administrator = realm.token("user/*.rs", realm_access={"roles": ["administrator", "uma_authorization"]})
    assert (await clinic.http.get("AuditEvent", headers=administrator)).status_code == 200
    for refused in (
        realm.token("system/*.rs", aud="account"),
        realm.token("system/*.rs", iss=f"{realm.url}/other"),
        realm.token("system/*.rs", exp=int(time.time()) - 60),
    ):
        assert (await clinic.http.get("Patient", headers=refused)).status_code == 401
    assert (await clinic.http.get("Patient", headers=realm.token("openid profile"))).status_code == 403
    assert realm.asked.count("/realms/clinic/certs") == 1
    assert (await clinic.http.get("Patient", headers=await clinic.token("system/*.rs", client="service"))).is_success


async def test_its_clock_and_its_claims_may_differ(clinic: Secured, realm: Realm) -> None:
    now = int(time.time())
    for status, claims in (
        (200, {"iat": now + 3, "nbf": now + 3}),
        (200, {"exp": now - 3}),
        (401, {"iat": now + 60}),
        (401, {"exp": float("inf")}),
        (401, {"exp": float("nan")}),
        (200, {"scope": ["openid", "system/*.rs"]}),
        (200, {"scope": [5, ["openid"], "system/*.rs"]}),
        (200, {"realm_access": {"roles": [{"name": "lab"}, 5]}}),
    ):
        answer = await clinic.http.get("Patient", headers=realm.token(**{"scope": "system/*.rs", **claims}))
        assert answer.status_code == status, claims
    administrator = realm.token("user/*.rs", realm_access={"roles": "administrator other"})
    assert (await clinic.http.get("AuditEvent", headers=administrator)).status_code == 200


async def test_apps_are_sent_to_it(clinic: Secured, realm: Realm) -> None:
    answer = await clinic.http.get(".well-known/smart-configuration")
    assert answer.json() == {
        "issuer": realm.url,
        "jwks_uri": f"{realm.url}/certs",
        "authorization_endpoint": f"{realm.url}/login",
        "token_endpoint": f"{realm.url}/token",
        "registration_endpoint": f"{realm.url}/register",
        "code_challenge_methods_supported": ["plain", "S256"],
        "token_endpoint_auth_methods_supported": METHODS,
        "scopes_supported": ["openid", "launch/patient"],
        "capabilities": [
            "permission-patient", "permission-user", "permission-v1", "permission-v2", "client-public",
            "client-confidential-symmetric", "client-confidential-asymmetric", "sso-openid-connect", "launch-standalone",
            "context-standalone-patient",
        ],
    }  # fmt: skip
    security = (await clinic.http.get("metadata")).json()["rest"][0]["security"]
    assert "extension" not in security, "it names no other place to log in"
    assert security["service"][0]["coding"][0]["code"] == "SMART-on-FHIR"


@pytest.mark.parametrize("wrong", [{"down": True}, {"named": "https://evil.example.org"}], ids=str)
async def test_nobody_is_sent_to_the_wrong_place_when_it_is_away(
    clinic: Secured, realm: Realm, wrong: dict[str, Any]
) -> None:
    for name, value in wrong.items():
        setattr(realm, name, value)
    answer = await clinic.http.get(".well-known/smart-configuration")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert (await clinic.http.get("Patient", headers=realm.token("system/*.rs"))).status_code == 503
    realm.down, realm.named = False, ""
    assert (await clinic.http.get(".well-known/smart-configuration")).json()["issuer"] == realm.url
    assert (await clinic.http.get("Patient", headers=realm.token("system/*.rs"))).status_code == 200

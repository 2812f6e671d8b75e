"""An authorization server on a real port with a real database, and a browser that fills in its forms."""

from __future__ import annotations

import asyncio
import html
import json
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from pymongo import AsyncMongoClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fhir_server.app import build_server, mounted
from fhir_server.auth.authority import Authority, build
from fhir_server.auth.grants import challenge_of
from fhir_server.auth.passwords import Passwords
from fhir_server.auth.principal import Principal
from fhir_server.errors import FhirError
from fhir_server.http.smart import Bearer, Headers, routes
from fhir_server.settings import Settings
from fhir_server.store.credentials import Client, Credentials, Grant, User

PASSWORD = "correct horse battery staple"
REDIRECT = "https://app.example.org/callback"


class Now:
    """Real time, which a test may move ahead."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class Shelf:
    """Patients for the picker, where no FHIR store is part of the test."""

    def __init__(self, *resources: Mapping[str, Any]) -> None:
        self.resources = resources

    async def find(
        self, resource_type: str, *parameters: tuple[str, str], limit: int = 0, seen_by: Principal | None = None
    ) -> Sequence[Mapping[str, Any]]:
        found = [one for one in self.resources if one["resourceType"] == resource_type]
        if seen_by is not None:
            if not any(scope.resource_type in ("*", resource_type) for scope in seen_by.scopes):
                return []
            found = [one for one in found if seen_by.patients is None or patient_of(one) in seen_by.patients]
        for name, value in parameters:
            if name == "_id":
                found = [one for one in found if one["id"] in value.split(",")]
            elif name == "name:contains":
                found = [one for one in found if value.lower() in json.dumps(one.get("name", [])).lower()]
            elif name == "participant":
                found = [one for one in found if value in json.dumps(one.get("participant", []))]
            elif name == "patient":
                found = [one for one in found if patient_of(one) == value.removeprefix("Patient/")]
            elif name == "status":
                found = [one for one in found if one.get("status") == value]
        return found[: limit or None]


def patient_of(resource: Mapping[str, Any]) -> str:
    if resource["resourceType"] == "Patient":
        return str(resource["id"])
    named = resource.get("patient") or resource.get("subject") or {}
    return str(named.get("reference", "")).removeprefix("Patient/")


SHELF = Shelf(
    *(
        {"resourceType": "Patient", "id": id, "name": [{"family": family, "given": [given]}], "birthDate": "1980-05-01"}
        for id, given, family in [("p1", "Ann", "Lee"), ("p2", "Bo", "Chen"), ("p3", "Cy", "Diaz")]
    ),
    {"resourceType": "CareTeam", "id": "t1", "status": "active", "subject": {"reference": "Patient/p2"},
     "participant": [{"member": {"reference": "Practitioner/d2"}}]},
    {"resourceType": "RelatedPerson", "id": "r1", "active": True, "patient": {"reference": "Patient/p3"}},
    {"resourceType": "Consent", "id": "c1", "status": "active", "patient": {"reference": "Patient/p3"},
     "provision": {"type": "permit", "actor": [{"reference": {"reference": "RelatedPerson/r1"}}]}},
    {"resourceType": "RelatedPerson", "id": "r2", "patient": {"reference": "Patient/p3"}},
    {"resourceType": "Encounter", "id": "e8", "class": {"code": "EMER"}, "subject": {"reference": "Patient/p3"},
     "period": {"start": "2026-03-01T08:30:00+08:00"}, "type": [{"text": "chest pain"}]},
    {"resourceType": "Encounter", "id": "e9", "class": {"code": "AMB"}, "subject": {"reference": "Patient/p2"}},
    {"resourceType": "Encounter", "id": "e10", "class": {"code": "AMB"}, "subject": {"reference": "Patient/p3"},
     "period": {"start": "2026-04-01"}},
)  # fmt: skip


@pytest.fixture(scope="session")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="session")
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def jwk_of(key: Any, kid: str) -> dict[str, Any]:
    kind = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}


@dataclass
class Site:
    """The running server: `url` is the FHIR base."""

    url: str
    authority: Authority
    now: Now
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def auth(self) -> str:
        return self.url + "/auth"


def quick_passwords() -> Passwords:
    """argon2 with parameters that a test can afford."""
    return Passwords(memory_kib=64, rounds=1)


@asynccontextmanager
async def serving(app: Any, sock: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server.serve(sockets=[sock]))
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event to wait for
        await asyncio.sleep(0.005)
    try:
        yield
    finally:
        server.should_exit = True
        await task


async def whoami(request: Request) -> Response:
    """Stands for the FHIR base: shows what the token was taken for."""
    try:
        principal = await Bearer(request.app.state.authority)(request.scope)
        if not principal.subject:
            return JSONResponse({"error": "nobody"}, 401)
    except FhirError as error:
        return JSONResponse({"error": error.diagnostics}, error.status, headers=error.headers)
    return JSONResponse(
        {
            "subject": principal.subject,
            "client": principal.client_id,
            "scopes": [str(scope) for scope in principal.scopes],
            "patient": principal.patient,
            "roles": sorted(principal.roles),
            "patients": sorted(principal.patients) if principal.patients is not None else None,
            "fhirUser": principal.fhir_user,
            "purpose": principal.purpose,
            "clearance": principal.clearance,
        }
    )


EVERY_SCOPE = ("openid", "fhirUser", "launch", "launch/patient", "launch/encounter", "offline_access", "online_access",
               "patient/*.cruds", "user/*.cruds")  # fmt: skip


async def populate(authority: Authority, rsa_key: Any, ec_key: Any) -> dict[str, str]:
    hashed = authority.passwords.hash_now(PASSWORD)
    people = [
        User(name="admin", password_hash=hashed, role="administrator"),
        User(name="doctor", password_hash=hashed, role="practitioner", fhir_user="Practitioner/d1", reach="all"),
        User(name="nurse", password_hash=hashed, role="practitioner", fhir_user="Practitioner/d2", reach="care-team"),
        User(name="ann", password_hash=hashed, role="patient", fhir_user="Patient/p1", display="Ann Lee"),
        User(name="proxy", password_hash=hashed, role="related-person", fhir_user="RelatedPerson/r1"),
        User(name="stranger", password_hash=hashed, role="related-person", fhir_user="RelatedPerson/r2"),
        User(name="lab", password_hash=hashed, role="lab", fhir_user="Practitioner/lab"),
        User(name="gone", password_hash=hashed, role="patient", fhir_user="Patient/p2", disabled=True),
    ]
    for user in people:
        assert await authority.credentials.put_user(user)
    secret = secrets.token_urlsafe(24)
    secret_hash = authority.passwords.hash_now(secret)
    backend = {"grant_types": ("client_credentials",), "scopes": ("system/*.rs", "system/Observation.cruds")}
    clients = [
        Client(id="app", name="Heart <b>App</b>", kind="public", redirect_uris=(REDIRECT,), scopes=EVERY_SCOPE),
        Client(id="small", name="Small", kind="public", redirect_uris=(REDIRECT,), scopes=("patient/Observation.rs",)),
        Client(id="web", name="Web App", kind="confidential-symmetric", secret_hash=secret_hash,
               redirect_uris=(REDIRECT, "http://localhost:3000/cb?keep=1"), scopes=EVERY_SCOPE),
        Client(id="signed", name="Signed", kind="confidential-asymmetric", redirect_uris=(REDIRECT,),
               scopes=EVERY_SCOPE, jwks={"keys": [jwk_of(rsa_key, "r"), jwk_of(ec_key, "e")]}),
        Client(id="backend", name="Warehouse", kind="confidential-asymmetric",
               jwks={"keys": [jwk_of(rsa_key, "r"), jwk_of(ec_key, "e")]}, **backend),
        Client(id="daemon", name="Daemon", kind="confidential-symmetric", secret_hash=secret_hash, **backend),
        Client(id="gateway", name="Resource server", kind="confidential-symmetric", secret_hash=secret_hash,
               introspects=True),
    ]  # fmt: skip
    for client in clients:
        await authority.credentials.put_client(client)
    return dict.fromkeys(("web", "daemon", "gateway"), secret)


@pytest.fixture(scope="module")
async def site(
    mongo_url: str, tmp_path_factory: pytest.TempPathFactory, rsa_key: Any, ec_key: Any, anyio_backend: Any
) -> AsyncIterator[Site]:
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongo_url)
    name = f"auth{secrets.token_hex(4)}"
    sock = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}/fhir"
    settings = Settings(data_dir=tmp_path_factory.mktemp("auth"), rate_limit=0)
    now = Now()
    authority = build(
        settings, Credentials(client[name]), base=url, records=SHELF, now=now, passwords=quick_passwords()
    )
    object.__setattr__(authority, "token_rate", type(authority.rate)(0))
    await authority.open()
    app = Starlette(routes=[*routes("/fhir"), Route("/fhir/whoami", whoami)])
    app.state.authority = authority
    async with serving(Headers(app), sock):
        yield Site(url, authority, now, await populate(authority, rsa_key, ec_key))
    authority.close()
    await client.drop_database(name)
    await client.close()


@dataclass
class Flow:
    """One authorization request, and what came back to the app."""

    verifier: str
    state: str
    answer: dict[str, str] = field(default_factory=dict)

    @property
    def code(self) -> str:
        return self.answer["code"]


class Browser:
    """Follows redirects within the server, fills in login, picker and consent, and stops where it is sent to the app."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.http = httpx.AsyncClient(follow_redirects=False)
        self.pages: list[str] = []

    async def authorize(
        self,
        user: str,
        *,
        client: str = "app",
        scope: str = "openid fhirUser patient/*.rs",
        patient: str = "",
        visit: str = "",
        drop: Sequence[str] = (),
        deny: bool = False,
        redirect_uri: str = REDIRECT,
        **more: Any,
    ) -> Flow:
        flow = Flow(secrets.token_urlsafe(48), secrets.token_urlsafe(8))
        parameters = {
            "response_type": "code",
            "client_id": client,
            "redirect_uri": redirect_uri,
            "scope": scope,
            "state": flow.state,
            "aud": self.site.url,
            "code_challenge": challenge_of(flow.verifier),
            "code_challenge_method": "S256",
            **more,
        }
        parameters = {name: value for name, value in parameters.items() if value is not None}
        response = await self.http.get(self.site.auth + "/authorize", params=parameters)
        url = await self.fill_in(response, user, patient=patient, visit=visit, drop=drop, deny=deny)
        assert url.startswith(redirect_uri), url
        flow.answer = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        return flow

    async def fill_in(
        self,
        response: httpx.Response,
        user: str,
        *,
        patient: str = "",
        visit: str = "",
        drop: Sequence[str] = (),
        deny: bool = False,
    ) -> str:
        for _ in range(8):
            while response.status_code in (302, 303):
                target = response.headers["location"]
                if not target.startswith(self.site.auth):
                    return str(target)
                response = await self.http.get(target)
            self.pages.append(response.text)
            assert response.status_code == 200, response.text
            action = re.search(r'<form method="post" action="([^"]+)"', response.text)
            assert action, response.text
            request_id = re.findall(r'name="request" value="([^"]+)"', response.text)[0]
            form: dict[str, Any] = {"request": request_id}
            form |= dict(re.findall(r'name="(ui_locales)" value="([^"]+)"', response.text))
            if action[1].endswith("/login"):
                form |= {"name": user, "password": PASSWORD}
            elif action[1].endswith("/patient"):
                offered = re.findall(r'name="patient" id="p\d+" value="([^"]+)"', response.text)
                assert patient in offered, offered
                form["patient"] = patient
            elif action[1].endswith("/visit"):
                form["visit"] = visit
            else:
                scopes = [
                    html.unescape(one) for one in re.findall(r'name="scope" id="s\d+" value="([^"]+)"', response.text)
                ]
                form |= {"answer": "deny" if deny else "allow", "scope": [one for one in scopes if one not in drop]}
            response = await self.http.post(html.unescape(action[1]), data=form)
        raise AssertionError("the login never ends")

    async def close(self) -> None:
        await self.http.aclose()


@pytest.fixture
async def browser(site: Site) -> AsyncIterator[Browser]:
    browser = Browser(site)
    yield browser
    await browser.close()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


@pytest.fixture
def at(site: Site) -> Any:
    """Moves the server's clock for one test."""
    yield lambda seconds: setattr(site.now, "ahead", site.now.ahead + seconds)
    site.now.ahead = 0.0


async def redeem(http: httpx.AsyncClient, site: Site, flow: Flow, client: str = "app", **more: Any) -> httpx.Response:
    form = {
        "grant_type": "authorization_code",
        "code": flow.code,
        "redirect_uri": REDIRECT,
        "code_verifier": flow.verifier,
        "client_id": client,
        **more,
    }
    return await http.post(
        site.auth + "/token", data={name: value for name, value in form.items() if value is not None}
    )


async def refresh(http: httpx.AsyncClient, site: Site, token: str, client: str = "app", **more: Any) -> httpx.Response:
    form = {"grant_type": "refresh_token", "refresh_token": token, "client_id": client, **more}
    return await http.post(site.auth + "/token", data=form)


def assertion(
    site: Site, key: Any, kid: str, client: str = "backend", *, algorithm: str = "", jku: str = "", **changed: Any
) -> dict[str, str]:
    """The form fields of `private_key_jwt`; `changed` claims may be wrong, None takes one away."""
    now = int(site.now())
    claims = {
        "iss": client,
        "sub": client,
        "aud": site.auth + "/token",
        "exp": now + 240,
        "jti": secrets.token_urlsafe(12),
        **changed,
    }
    claims = {name: value for name, value in claims.items() if value is not None}
    algorithm = algorithm or ("RS384" if isinstance(key, rsa.RSAPrivateKey) else "ES384")
    token = jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid} | ({"jku": jku} if jku else {}))
    return {
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": token,
    }


async def who(http: httpx.AsyncClient, site: Site, token: str, **headers: str | bytes) -> httpx.Response:
    return await http.get(site.url + "/whoami", headers={"Authorization": f"Bearer {token}", **headers})


@dataclass
class Secured:
    """The whole application with authorization, on a database of its own; `token` makes tokens without the login pages."""

    app: Any
    authority: Authority
    server: Any
    http: httpx.AsyncClient

    async def token(self, scope: str, *, user: str = "", patient: str = "", client: str = "app") -> dict[str, str]:
        """Headers for a user's token, or without user for a backend service's."""
        registered = await self.authority.credentials.client(client)
        assert registered is not None
        grant = None
        if user:
            known = await self.authority.credentials.user(user)
            assert known is not None
            now = int(self.authority.now())
            grant = Grant(id=secrets.token_hex(8), client_id=client, subject=user, scopes=tuple(scope.split()),
                          patient=patient or None, fhir_user=known.fhir_user, expires=now + 3600)  # fmt: skip
            await self.authority.credentials.put_grant(grant)
        token = await self.authority.tokens.access_token(
            subject=user or client, client=registered, scopes=scope.split(), grant=grant
        )
        return {"Authorization": f"Bearer {token}"}

    async def user(self, name: str, role: str, fhir_user: str = "", reach: str = "self", clearance: str = "N") -> None:
        await self.authority.credentials.put_user(
            User(name=name, password_hash="", role=role, fhir_user=fhir_user, reach=reach, clearance=clearance),
            replace=True,
        )


@asynccontextmanager
async def secured_application(
    mongo_url: str, folder: Any, *, base: str = "http://test/fhir", **changed: Any
) -> AsyncIterator[Secured]:
    settings = Settings(
        data_dir=folder, database=f"secured{secrets.token_hex(4)}", automation=False, rate_limit=0, public_url=base,
        **changed,
    )  # fmt: skip
    server = build_server(settings, mongo_url)
    await server.store.open()
    try:
        async with mounted(server) as app:
            authority: Authority = server.rooms["authority"]
            await authority.credentials.put_client(
                Client(id="app", name="App", kind="public", scopes=EVERY_SCOPE, redirect_uris=(REDIRECT,))
            )
            await authority.credentials.put_client(
                Client(
                    id="service",
                    name="Service",
                    kind="confidential-asymmetric",
                    scopes=("system/*.cruds",),
                    clearance="V",
                )
            )
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test/fhir/") as http:
                yield Secured(app, authority, server, http)
    finally:
        await server.store.client.drop_database(settings.database)
        await server.store.close()


@pytest.fixture(scope="module")
async def secured(
    mongo_url: str, tmp_path_factory: pytest.TempPathFactory, anyio_backend: Any
) -> AsyncIterator[Secured]:
    async with secured_application(mongo_url, tmp_path_factory.mktemp("secured")) as secured:
        yield secured

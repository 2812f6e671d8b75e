"""The npm library `fhirclient` in Chromium, through the login pages by keyboard alone, against the whole application.

Needs node, Chromium, and the npm packages that `make browser` installs (docs/authorization.md, Testing).
FHIR_BROWSER_SHOTS may name a folder for pictures of every page.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from fhir_server.store.credentials import Client, User
from tests.auth.conftest import PASSWORD, Secured, secured_application, serving

pytestmark = pytest.mark.anyio

FOLDER = Path(__file__).parent / "browser"
PAGES = ("launch.html", "launch.js", "app.html", "app.js")
DATA = ("patient/Patient.rs", "patient/Observation.rs", "patient/Condition.rs")
STANDALONE = ("openid", "fhirUser", "launch/patient", "offline_access", *DATA)
LONG_NAME = "Hubert" * 30
READABLE = 4.5  # WCAG 2.2, 1.4.3: contrast of text
TOUCHABLE = 24.0  # WCAG 2.2, 2.5.8: CSS pixels


@dataclass
class Tools:
    """`modules`: the folder of npm packages."""

    node: str
    chromium: str
    modules: Path


@pytest.fixture(scope="module")
def tools() -> Tools:
    """What `make test` does not need: the tests here are skipped where one of them is missing."""
    modules = FOLDER / "node_modules"
    for package in ("fhirclient/build/fhir-client.js", "playwright-core/package.json"):
        if not (modules / package).is_file():
            pytest.skip(f"{package} is not here; `make browser` installs it")
    node, chromium = shutil.which("node"), shutil.which("chromium")
    if node is None or chromium is None:
        pytest.skip(f"{'chromium' if node else 'node'} is not installed")
    return Tools(node, chromium, modules)


@dataclass
class Clinic:
    """The FHIR base, the app's own origin (another port, so that CORS counts), and a browser for each visit."""

    base: str
    app: str
    secured: Secured
    tools: Tools
    folder: Path

    async def visit(self, user: str, scopes: tuple[str, ...] = STANDALONE, *, launch: str = "", **job: Any) -> Any:
        parameters = {"iss": self.base, "scope": " ".join(scopes)} | ({"launch": launch} if launch else {})
        name = f"{user}-{job.get('locale', 'en')}-{len(list(self.folder.iterdir()))}"
        shots = os.environ.get("FHIR_BROWSER_SHOTS")
        job = {
            "modules": str(self.tools.modules), "chromium": self.tools.chromium, "profile": str(self.folder / name),
            "start": f"{self.app}/launch.html?{urlencode(parameters)}", "app": self.app, "user": user,
            "password": PASSWORD, "locale": "en", "search": "", "drop": [], "answer": "allow",
            "shots": f"{shots}/{name}" if shots else "",
        } | job  # fmt: skip
        drive = await asyncio.create_subprocess_exec(
            self.tools.node,
            str(FOLDER / "drive.mjs"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, problem = await asyncio.wait_for(drive.communicate(json.dumps(job).encode()), 90)
        assert drive.returncode == 0, problem.decode()
        report = json.loads(out)
        assert "error" not in report, report
        return report


@pytest.fixture(scope="module")
async def clinic(
    tools: Tools, mongo_url: str, tmp_path_factory: pytest.TempPathFactory, anyio_backend: Any
) -> AsyncIterator[Clinic]:
    async def page(request: Request) -> Response:
        name = request.path_params["name"]
        if name == "fhir-client.js":
            return FileResponse(tools.modules / "fhirclient/build/fhir-client.js")
        return FileResponse(FOLDER / name) if name in PAGES else Response(status_code=404)

    ours, theirs = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    base = f"http://127.0.0.1:{ours.getsockname()[1]}/fhir"
    app = f"http://127.0.0.1:{theirs.getsockname()[1]}"
    async with (
        secured_application(mongo_url, tmp_path_factory.mktemp("clinic"), base=base) as secured,
        serving(secured.app, ours),
        serving(Starlette(routes=[Route("/{name}", page)]), theirs),
    ):
        await populate(secured, f"{app}/app.html")
        yield Clinic(base, app, secured, tools, tmp_path_factory.mktemp("profiles"))


async def populate(secured: Secured, redirect: str) -> None:
    everything = await secured.token("system/*.cruds", client="service")
    resources: list[dict[str, Any]] = []
    for id, given, family in (
        ("p1", "Ann", "Lee"),
        ("p2", "Bo", "Chen"),
        ("p3", "Cy", "Diaz"),
        ("p4", "Dee", LONG_NAME),
    ):
        subject = {"reference": f"Patient/{id}"}
        name = [{"given": [given], "family": family}]
        resources += [
            {"resourceType": "Patient", "id": id, "name": name, "birthDate": "1980-05-01", "gender": "other"},
            {"resourceType": "Condition", "id": f"{id}-c", "subject": subject, "code": {"text": "cough"}},
        ]
        resources += [
            {"resourceType": "Observation", "id": f"{id}-{number}", "status": "final", "code": {"text": "pulse"},
             "subject": subject, "valueQuantity": {"value": 60 + number}}
            for number in range(3)
        ]  # fmt: skip
    resources.append(
        {"resourceType": "Encounter", "id": "p1-v", "status": "finished", "subject": {"reference": "Patient/p1"},
         "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"},
         "period": {"start": "2026-03-01T08:30:00+08:00"}, "type": [{"text": "血压复查"}]}
    )  # fmt: skip
    for one in resources:
        put = await secured.http.put(f"{one['resourceType']}/{one['id']}", json=one, headers=everything)
        assert put.status_code == 201, put.text
    hashed = secured.authority.passwords.hash_now(PASSWORD)
    for user in (
        User(name="ann", password_hash=hashed, role="patient", fhir_user="Patient/p1"),
        User(name="doctor", password_hash=hashed, role="practitioner", fhir_user="Practitioner/d1", reach="all"),
        User(name="stranger", password_hash=hashed, role="related-person", fhir_user="RelatedPerson/r9"),
    ):
        await secured.authority.credentials.put_user(user)
    await secured.authority.credentials.put_client(
        Client(
            id="pulse",
            name="Pulse",
            kind="public",
            redirect_uris=(redirect,),
            scopes=("launch", "launch/encounter", *STANDALONE),
        )
    )


def check_pages(report: Any, lang: str) -> None:
    for page in report["pages"]:
        assert page["lang"] == lang, page
        assert page["heading"] in page["title"], page
        assert page["unlabelled"] == [], page
        assert page["contrast"] >= READABLE, page
        assert page["smallest"] >= TOUCHABLE, page
        assert page["styled"] and not page["overflow"], page


def sent(report: Any, path: str) -> list[dict[str, str]]:
    """The parameters of each request to a path, from the address and the form."""
    found = [(urlsplit(url), body) for _, url, body in report["requests"]]
    return [{k: v[0] for k, v in parse_qs(f"{u.query}&{body}").items()} for u, body in found if u.path.endswith(path)]


@pytest.mark.parametrize(("lang", "gender"), [("zh-CN", "其他"), ("en", "other")])
async def test_a_practitioner_picks_a_patient_and_withholds_a_scope(clinic: Clinic, lang: str, gender: str) -> None:
    report = await clinic.visit("doctor", locale=lang, search="Chen", drop=["patient/Condition.rs"])
    app = report["app"]
    assert app["problem"] == ""
    assert app["patient"] == "Bo Chen (p2)"
    assert app["pulses"].split("\n") == ["Patient/p2 60", "Patient/p2 61", "Patient/p2 62"]
    assert app["user"] == "Practitioner/d1"
    assert set(app["granted"].split()) == set(STANDALONE) - {"patient/Condition.rs"}
    assert app["conditions"] == "403"
    assert app["other"] == "404"
    assert app["refreshed"] == "new token, allowed"

    assert [page["name"] for page in report["pages"]] == ["login", "patient", "found", "consent"]
    check_pages(report, lang)
    assert "Ann Lee" in report["pages"][1]["text"] and LONG_NAME in report["pages"][1]["text"]
    assert "Ann Lee" not in report["pages"][2]["text"]
    assert [page["focus"]["id"] for page in report["pages"][:3]] == ["name", "q", "q"]
    assert f"1980-05-01 · {gender}" in report["pages"][1]["text"]
    assert "Bo Chen" in report["pages"][3]["text"]

    (asked,) = sent(report, "/auth/authorize")
    assert asked["code_challenge_method"] == "S256"
    code, refresh = sent(report, "/auth/token")
    assert code["grant_type"] == "authorization_code"
    assert len(code["code_verifier"]) >= 43
    assert refresh["grant_type"] == "refresh_token"
    # The browser itself complains of what it blocks (style, form, CORS); two requests were meant to fail.
    assert len(report["console"]) == 2 and all("status of 40" in one for one in report["console"]), report["console"]


async def test_a_patient_chooses_the_visit(clinic: Clinic) -> None:
    scopes = (*STANDALONE, "launch/encounter")
    report = await clinic.visit("ann", scopes, locale="zh-CN", width=320)
    assert [page["name"] for page in report["pages"]] == ["login", "visit", "consent"]
    check_pages(report, "zh-CN")
    assert "2026-03-01 08:30 · 门诊 · 血压复查" in report["pages"][1]["text"]
    assert set(report["app"]["granted"].split()) == set(scopes)


async def test_a_patient_mistypes_and_is_told_so(clinic: Clinic) -> None:
    report = await clinic.visit("ann", mistake="wrong", drop=["offline_access"], width=320, dark=True)
    assert report["app"]["patient"] == "Ann Lee (p1)"
    assert report["app"]["conditions"] == "allowed"
    assert report["app"]["refreshed"] == ""
    assert [page["name"] for page in report["pages"]] == ["login", "mistake", "consent"]
    check_pages(report, "en")
    mistake = report["pages"][1]
    assert mistake["describedBy"] == "problem"
    assert mistake["title"] != report["pages"][0]["title"]
    assert mistake["focus"] == {"id": "password", "tag": "input", "type": "password", "value": ""}


async def test_a_launch_from_an_ehr_needs_no_picker(clinic: Clinic) -> None:
    ehr = await clinic.secured.token("user/*.rs", user="doctor")
    wanted = {"patient": "p3", "client_id": "pulse"}
    made = await clinic.secured.http.post(f"{clinic.base}/auth/launch", json=wanted, headers=ehr)
    report = await clinic.visit("doctor", ("launch", *DATA), launch=made.json()["launch"])
    assert report["app"]["patient"] == "Cy Diaz (p3)"
    assert [page["name"] for page in report["pages"]] == ["login", "consent"]


@pytest.mark.parametrize(
    ("user", "answer", "pages", "told"),
    [
        pytest.param("ann", "deny", ["login", "consent"], "The user did not allow it", id="denied"),
        pytest.param("stranger", "allow", ["login"], "The user has no patient to choose", id="nobody-to-choose"),
    ],
)
async def test_a_refusal_reaches_the_app(clinic: Clinic, user: str, answer: str, pages: list[str], told: str) -> None:
    report = await clinic.visit(user, answer=answer)
    assert [page["name"] for page in report["pages"]] == pages
    assert told in report["app"]["problem"]
    assert sent(report, "/auth/token") == []

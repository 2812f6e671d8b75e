"""Who may export what: exactly what the same token finds by searching; and whose job it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from fhir_server.auth.labels import CONFIDENTIALITY
from fhir_server.search import stream
from fhir_server.store.credentials import Client
from tests.auth.conftest import EVERY_SCOPE, REDIRECT, Secured, secured_application
from tests.export.asking import ASYNC, Resource, export, finished, keys, kick_off, parameters, read

pytestmark = pytest.mark.anyio

TYPES = ("Condition", "Consent", "CareTeam", "Group", "Observation", "Organization", "Patient", "Practitioner")
CATEGORIES = ("vital-signs", "laboratory")


def records() -> list[Resource]:
    """Four patients; p3 objects to everybody but d1; some is labelled; some is in two records; some in none."""
    found: list[Resource] = [
        {"resourceType": "Organization", "id": "north", "name": "North"},
        {"resourceType": "Practitioner", "id": "d1", "name": [{"family": "Good"}]},
        {"resourceType": "Practitioner", "id": "d2", "name": [{"family": "Strange"}]},
    ]
    for number in range(1, 5):
        subject = {"reference": f"Patient/p{number}"}
        found.append(
            {"resourceType": "Patient", "id": f"p{number}", "name": [{"family": "Lee" if number % 2 else "Diaz"}]}
        )
        for kind in range(6):
            one: Resource = {
                "resourceType": "Observation", "id": f"o{number}{kind}", "status": "final", "code": {"text": "x"},
                "category": [{"coding": [{"code": CATEGORIES[kind % 2]}]}], "subject": subject,
            }  # fmt: skip
            if kind in (2, 3):
                one["meta"] = {"security": [{"system": CONFIDENTIALITY, "code": "RV"[kind - 2]}]}
            if kind == 4:
                one["performer"] = [{"reference": f"Patient/p{number % 4 + 1}"}]
            found.append(one)
        found.append({"resourceType": "Condition", "id": f"c{number}", "code": {"text": "flu"}, "subject": subject})
    found.append({"resourceType": "Observation", "id": "nobodys", "status": "final", "code": {"text": "x"}})
    team = {"participant": [{"member": {"reference": "Practitioner/d2"}}], "status": "active"}
    found += [
        {"resourceType": "CareTeam", "id": f"t{n}", "subject": {"reference": f"Patient/p{n}"}, **team}
        for n in (1, 2, 3)
    ]
    text = {"text": "privacy"}
    permit = {"type": "permit", "actor": [{"role": text, "reference": {"reference": "Practitioner/d1"}}]}
    found.append(
        {"resourceType": "Consent", "id": "no", "status": "active", "scope": text, "category": [text], "policyRule": text,
         "patient": {"reference": "Patient/p3"}, "provision": {"type": "deny", "provision": [permit]}}
    )  # fmt: skip
    members = [{"entity": {"reference": f"Patient/p{number}"}} for number in (2, 3, 4)]
    found.append({"resourceType": "Group", "id": "g", "type": "person", "actual": True, "member": members})
    return found


@dataclass(frozen=True)
class Asker:
    """`user` "": the service `client` itself."""

    scope: str
    user: str = ""
    client: str = "service"
    patient: str = ""

    async def headers(self, secured: Secured) -> dict[str, str]:
        client = "app" if self.user else self.client
        return await secured.token(self.scope, user=self.user, patient=self.patient, client=client)


ASKERS = [
    Asker("system/*.rs"),
    Asker("system/*.cruds", client="other"),
    Asker("system/*.rs", client="cleared"),
    Asker("system/*.rs", client="master"),
    Asker("system/Observation.rs?category=vital-signs system/Patient.rs"),
    Asker("system/Observation.rs?category=vital-signs system/Observation.rs?category=laboratory", client="other"),
    Asker("system/Patient.rs?family=Lee system/Observation.r system/Condition.s"),
    Asker("system/*.read", client="other"),
    Asker("user/*.rs", "admin"),
    Asker("user/*.rs", "doctor"),
    Asker("user/*.rs", "nurse"),
    Asker("user/Observation.rs?category=laboratory user/Condition.rs user/Practitioner.rs", "nurse"),
    Asker("patient/*.rs", "doctor", patient="p3"),
    Asker("patient/*.rs user/Organization.rs", "nurse", patient="p1"),
    Asker("patient/*.rs", "nurse", patient="p4"),
]


@pytest.fixture(scope="module")
async def world(mongo_url: str, tmp_path_factory: Any, anyio_backend: Any) -> AsyncIterator[Secured]:
    async with secured_application(mongo_url, tmp_path_factory.mktemp("export"), audit=False) as secured:
        put = secured.authority.credentials.put_client
        backend: dict[str, Any] = {"kind": "confidential-asymmetric", "scopes": ("system/*.cruds",)}
        await put(Client(id="other", name="Other", **backend))
        await put(Client(id="cleared", name="Cleared", clearance="R", **backend))
        await put(Client(id="master", name="Master", clearance="V", roles=frozenset({"administrator"}), **backend))
        await put(Client(id="app2", name="App", kind="public", scopes=EVERY_SCOPE, redirect_uris=(REDIRECT,)))
        await secured.user("admin", "administrator")
        await secured.user("doctor", "practitioner", "Practitioner/d1", reach="all")
        await secured.user("nurse", "practitioner", "Practitioner/d2", reach="care-team")
        await secured.user("ann", "patient", "Patient/p1")
        await secured.user("lab", "lab", "Practitioner/d1")
        headers = await secured.token("system/*.cruds", client="master")
        for one in records():
            answer = await secured.http.put(f"{one['resourceType']}/{one['id']}", json=one, headers=headers)
            assert answer.status_code == 201, answer.text
        yield secured


async def searched(http: httpx.AsyncClient, headers: dict[str, str], paths: list[str]) -> list[str]:
    """What searches find, each resource once; of types that the token may read as well."""
    found: dict[str, str] = {}
    for path in paths:
        answer = await http.get(f"{path}?_count=1000", headers=headers)
        if answer.status_code == 403:
            continue
        assert answer.status_code == 200, answer.text
        assert not any(link["relation"] == "next" for link in answer.json()["link"])
        resources = [entry["resource"] for entry in answer.json().get("entry", ())]
        found |= {f"{one['resourceType']}/{one['id']}": one["resourceType"] for one in resources}
    examples = {kind: key for key, kind in found.items()}
    readable = {kind: (await http.get(key, headers=headers)).status_code == 200 for kind, key in examples.items()}
    return sorted(key for key, kind in found.items() if readable[kind])


@pytest.mark.parametrize("asker", ASKERS, ids=str)
async def test_the_files_have_what_searches_find(world: Secured, asker: Asker) -> None:
    headers = await asker.headers(world)
    manifest, resources = await export(world.http, "$export", headers)
    assert manifest["requiresAccessToken"] is True
    assert keys(resources) == await searched(world.http, headers, list(TYPES))
    _, again = await export(world.http, "$export", headers)
    assert keys(again) == keys(resources)


@pytest.mark.parametrize("asker", ASKERS, ids=str)
async def test_patients_and_groups(world: Secured, asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patient by patient: what is in several records comes once."""
    monkeypatch.setattr(stream, "FEW", 1)
    headers = await asker.headers(world)
    compartment = [kind for kind in TYPES if kind not in ("Organization", "Practitioner")]

    def of(*numbers: int) -> list[str]:
        return [f"Patient/p{number}/{kind}" for number in numbers for kind in compartment]

    answer = await kick_off(world.http, "Patient/$export", headers)
    if answer.status_code == 202:
        manifest = await finished(world.http, answer.headers["content-location"], headers)
        found = keys(await read(world.http, manifest, headers))
        assert found == await searched(world.http, headers, of(1, 2, 3, 4))
        await world.http.delete(answer.headers["content-location"], headers=headers)
    group = await world.http.get("Group/g", headers=headers)
    answer = await kick_off(world.http, "Group/g/$export", headers)
    if group.status_code != 200:
        assert answer.status_code == group.status_code
        assert answer.text == group.text
        return
    manifest = await finished(world.http, answer.headers["content-location"], headers)
    found = keys(await read(world.http, manifest, headers))
    assert found == await searched(world.http, headers, of(2, 3, 4))
    await world.http.delete(answer.headers["content-location"], headers=headers)


async def test_only_the_patients_asked_for(world: Secured) -> None:
    headers = await Asker("system/*.rs", client="master").headers(world)
    _, resources = await export(world.http, "Patient/$export", headers, parameters(patient="Patient/p1"))
    found = keys(resources)
    assert "Observation/o10" in found
    assert "Observation/o14" not in found, "it is in the record of p2, too"
    hidden = await Asker("system/*.rs").headers(world)
    answers = [
        await kick_off(world.http, "Patient/$export", hidden, parameters(patient=f"Patient/{id}"))
        for id in ("p3", "xx")
    ]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert answers[0].text.replace("p3", "xx") == answers[1].text, "who objects looks like who never was"


async def test_a_provenance_follows_its_target(world: Secured) -> None:
    """It names no patient, and stands in the record of what it is about."""
    master = await Asker("system/*.cruds", client="master").headers(world)
    for id, target in (("mine", "Observation/o20"), ("both", "Observation/o14"), ("nobodys", "Organization/north")):
        one = {"resourceType": "Provenance", "id": id, "target": [{"reference": target}], "recorded": "2026-01-01T00:00:00Z",
               "agent": [{"who": {"reference": "Practitioner/d1"}}]}  # fmt: skip
        assert (await world.http.put(f"Provenance/{id}", json=one, headers=master)).status_code == 201
    asked: dict[str, tuple[Asker, str, Resource | None]] = {
        "mine both": (Asker("system/*.rs", client="master"), "Patient/$export", None),
        "both mine": (Asker("system/*.rs", client="master"), "Group/g/$export", None),
        "mine": (Asker("system/*.rs", client="master"), "Patient/$export", parameters(patient="Patient/p2")),
        "both mine nobodys": (Asker("system/*.rs", client="master"), "$export", None),
        " mine both": (Asker("user/*.rs", "nurse"), "Patient/$export", None),
    }
    for expected, (asker, url, body) in asked.items():
        _, resources = await export(world.http, url, await asker.headers(world), body)
        found = [one["id"] for one in resources if one["resourceType"] == "Provenance"]
        assert sorted(found) == sorted(expected.split()), (asker, url)
    for id in ("mine", "both", "nobodys"):
        await world.http.delete(f"Provenance/{id}", headers=master)


REFUSED = [
    (Asker("system/Patient.rs"), "$export?_type=Patient,Observation", 403),
    (Asker("system/Observation.r system/Patient.rs"), "$export?_type=Observation", 403),
    (Asker("system/*.rs"), "$export?_type=AuditEvent", 403),
    (Asker("system/Observation.c"), "$export", 403),
    (Asker("patient/*.rs", "ann", patient="p1"), "Patient/$export", 403),
    (Asker("user/*.rs", "ann"), "$export", 403),
    (Asker("user/*.cruds", "lab"), "$export", 403),
    (Asker("system/Patient.rs"), "Group/g/$export", 403),
]


@pytest.mark.parametrize(("asker", "url", "status"), REFUSED, ids=str)
async def test_refused(world: Secured, asker: Asker, url: str, status: int) -> None:
    answer = await kick_off(world.http, url, await asker.headers(world))
    assert answer.status_code == status, answer.text


async def test_nobody(world: Secured) -> None:
    for url in ("$export", "Patient/$export", "Group/g/$export", "$export/x", "$export/x/y.ndjson"):
        answer = await kick_off(world.http, url)
        assert answer.status_code == 401, url
        assert "Bearer" in answer.headers["www-authenticate"]


async def test_no_glass_is_broken_for_an_export(world: Secured) -> None:
    headers = {**await Asker("user/*.rs", "doctor").headers(world), "X-Break-Glass": "does not breathe"}
    assert (await kick_off(world.http, "$export", headers)).status_code == 403


@pytest.mark.parametrize(
    ("mine", "others"),
    [
        (Asker("system/*.rs"), Asker("system/*.cruds", client="other")),
        (Asker("system/*.rs"), Asker("system/*.cruds", client="master")),
        (Asker("user/*.rs", "doctor"), Asker("user/*.cruds", "nurse")),
        (Asker("user/*.rs", "doctor"), Asker("user/*.cruds", "admin")),
        (Asker("patient/*.rs", "doctor", patient="p1"), Asker("patient/*.rs", "doctor", patient="p2")),
    ],
    ids=str,
)
async def test_anothers_export_is_not_there(world: Secured, mine: Asker, others: Asker) -> None:
    headers, foreign = await mine.headers(world), await others.headers(world)
    location = (await kick_off(world.http, "$export?_type=Patient", headers)).headers["content-location"]
    url = (await finished(world.http, location, headers))["output"][0]["url"]
    never = location.rsplit("/", 1)[0] + "/neverwas"
    for method, asked in (("GET", location), ("DELETE", location), ("GET", url)):
        answer = await world.http.request(method, asked, headers=foreign)
        like = await world.http.request(method, asked.replace(location, never), headers=foreign)
        assert (answer.status_code, answer.text) == (like.status_code, like.text) == (404, like.text)
        assert (await world.http.request(method, asked)).status_code == 401
    assert (await world.http.get(url, headers=headers)).status_code == 200
    await world.http.delete(location, headers=headers)


async def test_another_app_of_the_same_user_is_another(world: Secured) -> None:
    mine = await world.token("user/*.rs", user="doctor")
    other = await world.token("user/*.rs", user="doctor", client="app2")
    location = (await kick_off(world.http, "$export?_type=Patient", mine)).headers["content-location"]
    assert (await world.http.get(location, headers=other)).status_code == 404
    await world.http.delete(location, headers=mine)


async def test_a_narrower_token_reads_nothing_that_a_wider_one_found(world: Secured) -> None:
    wide = await Asker("system/Observation.rs system/Patient.cruds").headers(world)
    location = (await kick_off(world.http, "$export", wide)).headers["content-location"]
    url = (await finished(world.http, location, wide))["output"][0]["url"]
    narrow = (
        "system/Observation.rs?category=vital-signs system/Patient.rs",
        "system/Patient.rs",
        "system/Observation.r",
    )
    for scope in narrow:
        headers = await Asker(scope).headers(world)
        assert (await world.http.get(url, headers=headers)).status_code == 403, scope
        assert (await world.http.get(location, headers=headers)).status_code == 403
    for scope in ("system/*.rs", "system/Observation.rs system/Patient.rs"):
        again = await Asker(scope).headers(world)
        assert (await world.http.get(url, headers=again)).status_code == 200, scope
    await world.http.delete(location, headers=wide)


async def test_who_was_removed_cannot_read(world: Secured) -> None:
    credentials = world.authority.credentials
    await credentials.put_client(Client(id="brief", name="B", kind="confidential-asymmetric", scopes=("system/*.rs",)))
    headers = await Asker("system/*.rs", client="brief").headers(world)
    location = (await kick_off(world.http, "$export?_type=Patient", headers)).headers["content-location"]
    url = (await finished(world.http, location, headers))["output"][0]["url"]
    await credentials.remove_client("brief")
    world.authority.tokens.recheck()
    for asked in (location, url):
        assert (await world.http.get(asked, headers=headers)).status_code == 401


async def test_an_objection_before_the_work_begins_counts(world: Secured) -> None:
    """Whoever waits, or goes on after a fall, sees what they may see by then."""
    from fhir_server.operations.bulk.worker import ROOM

    exporter = world.server.rooms[ROOM]
    headers = await Asker("system/*.rs").headers(world)
    master = await Asker("system/*.cruds", client="master").headers(world)
    await exporter.close()
    location = (await kick_off(world.http, "$export?_type=Patient", headers)).headers["content-location"]
    consent = {**next(one for one in records() if one["resourceType"] == "Consent"), "id": "new"}
    consent["patient"] = {"reference": "Patient/p1"}
    await world.http.put("Consent/new", json=consent, headers=master)
    await exporter.open()
    found = keys(await read(world.http, await finished(world.http, location, headers), headers))
    assert found == ["Patient/p2", "Patient/p4"]
    await world.http.delete("Consent/new", headers=master)
    await world.http.delete(location, headers=headers)


async def test_the_audit_names_the_kick_off_and_every_file(mongo_url: str, tmp_path: Any, anyio_backend: Any) -> None:
    import base64

    async with secured_application(mongo_url, tmp_path) as secured:
        await secured.user("admin", "administrator")
        headers = await secured.token("user/*.cruds", user="admin")
        await secured.http.put("Patient/p", json={"resourceType": "Patient", "id": "p"}, headers=headers)
        answer = await kick_off(secured.http, "$export", headers, parameters(_type="Patient"))
        location = answer.headers["content-location"]
        manifest = await finished(secured.http, location, headers)
        (item,) = manifest["output"]
        assert (await secured.http.get(item["url"], headers=headers)).status_code == 200
        bundle = (await secured.http.get("AuditEvent?_count=500", headers=headers)).json()
        events = [entry["resource"] for entry in bundle["entry"]]
        exports = [one for one in events if one["subtype"][-1].get("display") == "$export"]
        asked = [
            base64.b64decode(entity["query"]).decode()
            for one in exports
            for entity in one["entity"]
            if "query" in entity
        ]
        assert "$export?_type=Patient" in asked, "what a body asks, too"
        assert item["url"].removeprefix("http://test/fhir/") in asked
        _, resources = await export(secured.http, "$export?_type=AuditEvent", headers)
        assert len(resources) >= len(events), "administrators may take the audit along"
        answer = await secured.http.get("$export", headers=headers | ASYNC)
        assert answer.status_code == 202


GONE = {"gone-1": "p1", "gone-r": "p1", "gone-2": "p2", "gone-3": "p3", "gone-4": "p4", "gone": ""}
WHO_HEARS = [
    (Asker("system/*.rs"), set(GONE) - {"gone-3"}),
    (Asker("system/*.rs", client="other"), set(GONE) - {"gone-3", "gone-r"}),
    (Asker("user/*.rs", "doctor"), set(GONE) - {"gone-r"}),
    (Asker("user/*.rs", "nurse"), {"gone-1", "gone-2"}),
    (Asker("patient/*.rs", "nurse", patient="p1"), {"gone-1"}),
    (Asker("system/Observation.rs?category=laboratory"), set()),
]


@pytest.mark.parametrize(("asker", "heard"), WHO_HEARS, ids=[str(asker) for asker, _ in WHO_HEARS])
async def test_what_was_deleted_is_told_to_who_could_have_seen_it(
    world: Secured, asker: Asker, heard: set[str]
) -> None:
    master = await world.token("system/*.cruds", client="master")
    if (await world.http.get("Observation/gone", headers=master)).status_code == 404:
        for id, patient in GONE.items():
            one: Resource = {"resourceType": "Observation", "id": id, "status": "final", "code": {"text": "x"}}
            if patient:
                one["subject"] = {"reference": f"Patient/{patient}"}
            if id == "gone-r":
                one["meta"] = {"security": [{"system": CONFIDENTIALITY, "code": "R"}]}
            assert (await world.http.put(f"Observation/{id}", json=one, headers=master)).status_code == 201
            assert (await world.http.delete(f"Observation/{id}", headers=master)).status_code == 204
    headers = await asker.headers(world)
    location = (await kick_off(world.http, "$export?_type=Observation&_since=2020-01-01", headers)).headers[
        "content-location"
    ]
    bundles = await read(world.http, await finished(world.http, location, headers), headers, kind="deleted")
    assert (await world.http.delete(location, headers=headers)).status_code == 202
    told = [entry["request"]["url"] for bundle in bundles for entry in bundle["entry"]]
    assert sorted(told) == sorted(f"Observation/{id}" for id in heard)

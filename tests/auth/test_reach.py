"""Whose records a user may see, read from CareTeam, RelatedPerson and Consent as they stand at this moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml

from fhir_server.auth.consents import verdict
from fhir_server.auth.issuer import ExternalIssuer, Mapped
from fhir_server.auth.principal import Principal
from fhir_server.auth.reach import Reach
from fhir_server.auth.remote_keys import RemoteKeys
from fhir_server.auth.scopes import Scope
from fhir_server.errors import FhirError
from tests.auth.conftest import Secured, jwk_of, secured_application

pytestmark = pytest.mark.anyio

BASE = "http://test/fhir"

Put = Callable[[dict[str, Any]], Awaitable[None]]


@pytest.fixture
async def put(secured: Secured) -> Put:
    await secured.user("keeper", "administrator", clearance="V")  # whom no consent keeps out
    everything = await secured.token("user/*.cruds", user="keeper")

    async def put(resource: dict[str, Any]) -> None:
        url = f"{resource['resourceType']}/{resource['id']}"
        answer = await secured.http.put(url, json=resource, headers=everything)
        assert answer.status_code in (200, 201), answer.text

    return put


@pytest.fixture
async def records(put: Put) -> None:
    for id in ("c1", "c2", "c3"):
        await put({"resourceType": "Patient", "id": id, "name": [{"family": id}]})
        await put(
            {"resourceType": "Observation", "id": f"o-{id}", "status": "final", "code": {"text": "x"},
             "subject": {"reference": f"Patient/{id}"}}
        )  # fmt: skip
    await put({"resourceType": "Practitioner", "id": "d1"})
    await put({"resourceType": "Practitioner", "id": "d2"})


async def seen(secured: Secured, headers: dict[str, str]) -> set[str]:
    """The patients whose observations show, by search and by id alike."""
    answer = await secured.http.get("Observation?_total=accurate&_id=o-c1,o-c2,o-c3", headers=headers)
    found = {entry["resource"]["id"] for entry in answer.json().get("entry", ())}
    assert answer.json()["total"] == len(found)
    by_id = set()
    for id in ("c1", "c2", "c3"):
        if (await secured.http.get(f"Observation/o-{id}", headers=headers)).status_code == 200:
            by_id.add(f"o-{id}")
    assert found == by_id
    return {id.removeprefix("o-") for id in found}


def team(id: str, patient: str, practitioner: str, status: str = "active") -> dict[str, Any]:
    member = {"member": {"reference": f"Practitioner/{practitioner}"}}
    subject = {"reference": f"Patient/{patient}"}
    return {"resourceType": "CareTeam", "id": id, "status": status, "subject": subject, "participant": [member]}


def consent(id: str, patient: str, provision: dict[str, Any] | None, status: str = "active") -> dict[str, Any]:
    resource = {
        "resourceType": "Consent",
        "id": id,
        "status": status,
        "scope": {
            "coding": [{"system": "http://terminology.hl7.org/CodeSystem/consentscope", "code": "patient-privacy"}]
        },
        "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
        "patient": {"reference": f"Patient/{patient}"},
        "policyRule": {"text": "as the patient said"},
    }
    return resource | ({"provision": provision} if provision else {})


def actor(reference: str) -> list[dict[str, Any]]:
    return [{"role": {"text": "recipient"}, "reference": {"reference": reference}}]


async def test_a_care_team_opens_and_closes_at_once(secured: Secured, put: Put, records: None) -> None:
    await secured.user("nurse", "practitioner", "Practitioner/d2", reach="care-team")
    nurse = await secured.token("user/*.rs", user="nurse")
    assert await seen(secured, nurse) == set()
    await put(team("t1", "c1", "d2"))
    assert await seen(secured, nurse) == {"c1"}
    await put(team("t2", "c2", "d2"))
    await put(team("t3", "c3", "d1"))
    assert await seen(secured, nurse) == {"c1", "c2"}
    await put(team("t1", "c1", "d2", status="inactive"))
    assert await seen(secured, nurse) == {"c2"}
    broken = {**nurse, "X-Break-Glass": "emergency room, unconscious"}
    assert await seen(secured, broken) == {"c1", "c2", "c3"}
    assert await seen(secured, nurse) == {"c2"}, "for that request only"


@pytest.mark.parametrize("prefix", ["http://elsewhere.example/fhir/", "https://test/fhir/", "urn:x/"])
async def test_no_reference_to_somebody_elsewhere_opens_a_record_here(
    secured: Secured, put: Put, records: None, prefix: str
) -> None:
    """Such a resource is in nobody else's compartment, so that whoever may write in one record may write it."""
    await put(team("mine", "c1", "d7"))
    await secured.user("climber", "practitioner", "Practitioner/d7", reach="care-team")
    nurse = await secured.token("user/*.cruds", user="climber")
    foreign = team("", "c1", "d7") | {"subject": {"reference": f"{prefix}Patient/c3"}}
    del foreign["id"]
    foreign["participant"].append({"member": {"reference": "Patient/c1"}})
    answer = await secured.http.post("CareTeam", json=foreign, headers=nurse)
    assert answer.status_code == 201, answer.text
    assert await seen(secured, nurse) == {"c1"}
    await put({"resourceType": "RelatedPerson", "id": "r9", "patient": {"reference": "Patient/c2"}})
    await put(consent("n9", "c2", {"type": "permit", "actor": actor(f"{prefix}RelatedPerson/r9")}))
    await secured.user("cousin", "related-person", "RelatedPerson/r9")
    assert await seen(secured, await secured.token("user/*.rs", user="cousin")) == set()
    await put(consent("n9", "c2", {"type": "permit", "actor": actor(f"{BASE}/RelatedPerson/r9")}))
    assert await seen(secured, await secured.token("user/*.rs", user="cousin")) == {"c2"}
    await put(consent("n9", "c2", None, status="inactive"))
    await put(team("mine", "c1", "d7", status="inactive"))


async def test_the_host_of_a_write_does_not_decide_whose_record_it_opens(
    mongo_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Called by another name, the server takes its own URLs for another's: what it did not judge opens nothing."""
    async with secured_application(mongo_url, tmp_path_factory.mktemp("hosts"), base="") as here:
        base = here.server.settings.base_url
        await here.user("keeper", "administrator")
        await here.user("nurse", "practitioner", "Practitioner/d2", reach="care-team")
        keeper, nurse = await here.token("user/*.cruds", user="keeper"), await here.token("user/*.cruds", user="nurse")
        for resource in (
            {"resourceType": "Patient", "id": "c1"},
            {"resourceType": "Patient", "id": "c3"},
            team("t1", "c1", "d2"),
        ):
            url = f"{base}/{resource['resourceType']}/{resource['id']}"
            assert (await here.http.put(url, json=resource, headers=keeper)).status_code == 201
        stolen = team("t3", "c1", "d2") | {"subject": {"reference": f"{base}/Patient/c3"}}
        stolen["participant"].append({"member": {"reference": "Patient/c1"}})
        for host, seen_then in (("elsewhere.example", ["c1"]), (base.split("/")[2], ["c1", "c3"])):
            who = nurse if host == "elsewhere.example" else keeper
            answer = await here.http.post(f"{base}/CareTeam", json=stolen, headers={**who, "Host": host})
            assert answer.status_code == 201, answer.text
            found = (await here.http.get(f"{base}/Patient", headers=nurse)).json()
            assert [entry["resource"]["id"] for entry in found["entry"]] == seen_then


@pytest.mark.parametrize("form", ["Patient/c1", f"{BASE}/Patient/c1", "Patient/c1/_history/1"])
async def test_a_denial_holds_however_it_names_its_patient(
    secured: Secured, put: Put, records: None, form: str
) -> None:
    await secured.user("reader", "practitioner", "Practitioner/d1", reach="all")
    reader = await secured.token("user/*.rs", user="reader")
    denial = consent("n8", "c1", {"type": "deny"}) | {"patient": {"reference": form}}
    await put(denial)
    assert await seen(secured, reader) == {"c2", "c3"}
    await put({**denial, "status": "inactive"})


async def test_consent_takes_a_patient_out(secured: Secured, put: Put, records: None) -> None:
    await secured.user("doctor", "practitioner", "Practitioner/d1", reach="all")
    await secured.user("other", "practitioner", "Practitioner/d2", reach="all")
    await secured.user("own", "patient", "Patient/c1")
    doctor, other = (
        await secured.token("user/*.cruds", user="doctor"),
        await secured.token("user/*.cruds", user="other"),
    )
    own = await secured.token("patient/*.rs", user="own", patient="c1")
    service = await secured.token("system/*.rs", client="service")
    everyone = {"c1", "c2", "c3"}
    assert await seen(secured, doctor) == everyone
    await put(consent("n1", "c1", {"type": "deny", "actor": actor("Practitioner/d1")}))
    assert await seen(secured, doctor) == {"c2", "c3"}
    assert await seen(secured, other) == everyone
    assert await seen(secured, {**doctor, "X-Break-Glass": "emergency room, unconscious"}) == everyone
    write = {
        "resourceType": "Observation",
        "status": "final",
        "code": {"text": "x"},
        "subject": {"reference": "Patient/c1"},
    }
    assert (await secured.http.post("Observation", json=write, headers=doctor)).status_code == 403
    await put(consent("n1", "c1", {"type": "deny"}))
    assert await seen(secured, doctor) == await seen(secured, other) == await seen(secured, service) == {"c2", "c3"}
    assert await seen(secured, own) == {"c1"}, "nobody is kept from the own record"
    writer = await secured.token("system/*.cruds", client="service")
    other_patient = {**write, "subject": {"reference": "Patient/c2"}}
    for id, body, status in (("chosen", other_patient, 201), ("o-c1", other_patient, 403), ("chosen-2", write, 403)):
        answer = await secured.http.put(f"Observation/{id}", json={**body, "id": id}, headers=writer)
        assert answer.status_code == status, "one patient's objection ends no service's work for the others"
    assert (await secured.http.delete("Observation/chosen", headers=writer)).status_code == 204
    exception = {"type": "deny", "provision": [{"type": "permit", "actor": actor("Practitioner/d1")}]}
    await put(consent("n1", "c1", exception))
    assert (await seen(secured, doctor), await seen(secured, other)) == (everyone, {"c2", "c3"})
    await put(consent("n1", "c1", {"type": "deny"}, status="inactive"))
    assert await seen(secured, other) == everyone
    await put(consent("n1", "c1", {"type": "deny"}))
    assert await seen(secured, other) == {"c2", "c3"}
    assert (await secured.http.delete("Consent/n1", headers=await admin(secured))).status_code == 204
    assert await seen(secured, other) == everyone


@pytest.mark.parametrize("named", ["PractitionerRole/pr6", "Organization/org6", "CareTeam/ct6", "Group/g6"])
async def test_a_denial_reaches_whom_it_names_by_role_or_team(
    secured: Secured, put: Put, records: None, named: str
) -> None:
    me = {"reference": "Practitioner/d6"}
    await put({"resourceType": "Organization", "id": "org6", "name": "North"})
    await put(
        {
            "resourceType": "PractitionerRole",
            "id": "pr6",
            "practitioner": me,
            "organization": {"reference": "Organization/org6"},
        }
    )
    await put({"resourceType": "CareTeam", "id": "ct6", "participant": [{"member": me}]})
    await put({"resourceType": "Group", "id": "g6", "type": "practitioner", "actual": True, "member": [{"entity": me}]})
    await secured.user("six", "practitioner", "Practitioner/d6", reach="all")
    await secured.user("seven", "practitioner", "Practitioner/d7", reach="all")
    six, seven = await secured.token("user/*.rs", user="six"), await secured.token("user/*.rs", user="seven")
    everyone = {"c1", "c2", "c3"}
    await put(consent("n6", "c1", {"type": "deny", "actor": actor(named)}))
    assert (await seen(secured, six), await seen(secured, seven)) == ({"c2", "c3"}, everyone)
    exception = {"type": "permit", "actor": actor(named)}
    await put(consent("n6", "c1", {"type": "deny", "provision": [exception]}))
    assert (await seen(secured, six), await seen(secured, seven)) == (everyone, {"c2", "c3"})
    await put(consent("n6", "c1", None, status="inactive"))


async def test_what_concerns_two_is_hidden_if_one_of_them_objects(
    secured: Secured, put: Put, records: None, ec_key: Any
) -> None:
    await put(
        {"resourceType": "Observation", "id": "o-both", "status": "final", "code": {"text": "x"},
         "subject": {"reference": "Patient/c1"}, "performer": [{"reference": "Patient/c3"}]}
    )  # fmt: skip
    await put(team("both", "c1", "d2"))
    await secured.user("careful", "practitioner", "Practitioner/d2", reach="care-team")
    nurse = await secured.token("user/*.rs", user="careful")
    assert (await secured.http.get("Observation/o-both", headers=nurse)).status_code == 200
    await put(consent("n3", "c3", {"type": "deny"}))
    assert (await secured.http.get("Observation/o-both", headers=nurse)).status_code == 404
    assert (await secured.http.get("Observation?_id=o-both&_summary=count", headers=nurse)).json()["total"] == 0
    issuer = ExternalIssuer(
        ISSUER, Published(jwk_of(ec_key, "e")), secured.authority.reach, audience="fhir", jwks_url="https://x",
        mapped=Mapped(), now=lambda: 1_767_323_045.0,
    )  # type: ignore[arg-type]  # fmt: skip
    service = {**FOREIGN, "patient": None, "fhirUser": None, "scope": "system/*.rs"}
    principal = await issuer.principal(jwt.encode(service, ec_key, "ES384", headers={"kid": "e"}))
    assert principal.excluded == {"c3"}, "no other issuer's service is asked less"
    await put(consent("n3", "c3", {"type": "deny"}, status="inactive"))
    await put(team("both", "c1", "d2", status="inactive"))


async def admin(secured: Secured) -> dict[str, str]:
    await secured.user("admin", "administrator")
    return await secured.token("user/*.cruds", user="admin")


async def test_a_proxy_sees_while_consent_permits(secured: Secured, put: Put, records: None) -> None:
    await put({"resourceType": "RelatedPerson", "id": "r1", "active": True, "patient": {"reference": "Patient/c2"}})
    await secured.user("mother", "related-person", "RelatedPerson/r1")
    mother = await secured.token("patient/*.rs", user="mother", patient="c2")
    assert await seen(secured, mother) == set()
    await put(consent("n2", "c2", {"type": "permit", "actor": actor("RelatedPerson/r1")}))
    assert await seen(secured, mother) == {"c2"}
    await put(consent("n2", "c2", {"type": "permit"}))
    assert await seen(secured, mother) == set(), "she has to be named"
    ended = {"type": "permit", "actor": actor("RelatedPerson/r1"), "period": {"end": "2020-01-01"}}
    await put(consent("n2", "c2", ended))
    assert await seen(secured, mother) == set()
    permitted = {"type": "permit", "actor": actor("RelatedPerson/r1")}
    await put(consent("n2", "c2", permitted, status="inactive"))
    assert await seen(secured, mother) == set(), "a Consent counts while it is active"
    await put(consent("n2", "c2", permitted))
    await put(consent("n3", "c2", {"type": "deny", "actor": actor("RelatedPerson/r1")}))
    assert await seen(secured, mother) == set(), "a denial wins over a permit"
    await put(consent("n3", "c2", None, status="inactive"))
    assert await seen(secured, mother) == {"c2"}
    await put({"resourceType": "RelatedPerson", "id": "r1", "active": False, "patient": {"reference": "Patient/c2"}})
    assert await seen(secured, mother) == set(), "who is not related any more stands in for nobody"
    await put(consent("n2", "c2", None, status="inactive"))


async def test_who_subscribes_is_judged_at_delivery(secured: Secured, put: Put, records: None) -> None:
    """What a subscription keeps of its owner is enough to ask again, and no more."""
    tokens = secured.authority.tokens
    await secured.user("watcher", "practitioner", "Practitioner/d2", reach="care-team")
    headers = await secured.token("user/Observation.rs", user="watcher")
    kept = tokens.standing(await tokens.principal(headers["Authorization"].removeprefix("Bearer ")))
    assert (await tokens.still(kept)).scopes == (Scope.parse("user/Observation.rs"),)
    before = (await tokens.still(kept)).patients
    await put(team("t9", "c3", "d2"))
    assert before is not None
    assert (await tokens.still(kept)).patients == before | {"c3"}
    await secured.authority.credentials.users.delete_one({"_id": "watcher"})
    with pytest.raises(FhirError):
        await tokens.still(kept)
    service = await secured.token("system/Observation.rs", client="service")
    kept = tokens.standing(await tokens.principal(service["Authorization"].removeprefix("Bearer ")))
    assert (await tokens.still(kept)).patients is None
    foreign = Principal(subject="watcher", client_id="service", issuer="https://login.example.org")
    assert await tokens.as_now(foreign) is foreign, "another issuer's is not taken for one of ours of the same name"


async def test_labels_hide_and_clearance_shows(secured: Secured, put: Put, records: None) -> None:
    label = {"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}
    await put({"resourceType": "Observation", "id": "o-c3", "meta": {"security": [label]}, "status": "final",
               "code": {"text": "x"}, "subject": {"reference": "Patient/c3"}})  # fmt: skip
    await secured.user("plain", "practitioner", "Practitioner/d1", reach="all")
    await secured.user("cleared", "practitioner", "Practitioner/d1", reach="all", clearance="R")
    assert await seen(secured, await secured.token("user/*.rs", user="plain")) == {"c1", "c2"}
    assert await seen(secured, await secured.token("user/*.rs", user="cleared")) == {"c1", "c2", "c3"}
    # What was said before it was labelled is not to be had from the history either.
    for user, status in (("plain", 404), ("cleared", 200)):
        headers = await secured.token("user/*.rs", user=user)
        for url in ("Observation/o-c3", "Observation/o-c3/_history/1", "Observation/o-c3/_history"):
            assert (await secured.http.get(url, headers=headers)).status_code == status, (user, url)
        whole = (await secured.http.get("Observation/_history", headers=headers)).text
        assert ("o-c3" in whole) == (status == 200)


@pytest.mark.parametrize(
    "row", yaml.safe_load((Path(__file__).parent / "consents.yaml").read_text()), ids=lambda row: row["name"]
)
def test_verdicts(row: dict[str, Any]) -> None:
    now = 1_767_323_045.0  # 2026-01-02T03:04:05Z
    for who, expected in row["is"].items():
        found = verdict(row["provision"], who, now, base="http://here/fhir", named=row.get("named", False))
        assert found == (expected or ""), who


# An external issuer


class Published:
    """A key set that is at hand."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self._keys = keys

    async def keys(self, url: str, kid: str | None, *, trusted: bool = False) -> list[dict[str, Any]]:
        return [key for key in self._keys if key["kid"] == kid]


ISSUER = "https://login.example.org/realms/clinic"
FOREIGN: dict[str, Any] = {
    "iss": ISSUER, "aud": ["account", "fhir"], "sub": "f1", "azp": "portal", "exp": 2_000_000_000, "scope": "openid patient/*.rs",
    "patient": "c1", "fhirUser": "https://x.example/fhir/Patient/c1",
}  # fmt: skip


@pytest.fixture
def external(rsa_key: Any, ec_key: Any) -> ExternalIssuer:
    keys = Published(jwk_of(rsa_key, "r"), jwk_of(ec_key, "e"))
    now = lambda: 1_767_323_045.0  # noqa: E731
    return ExternalIssuer(
        ISSUER, keys, Reach(now=now), audience="fhir", jwks_url="https://x", mapped=Mapped(reach="all"), now=now,
    )  # type: ignore[arg-type]  # fmt: skip


async def test_an_external_patient(external: ExternalIssuer, rsa_key: Any) -> None:
    token = jwt.encode(FOREIGN, rsa_key, "RS256", headers={"kid": "r"})
    principal = await external.principal(token)
    assert (principal.patient, principal.fhir_user, principal.patients) == ("c1", "Patient/c1", frozenset({"c1"}))
    assert (principal.client_id, [str(scope) for scope in principal.scopes]) == ("portal", ["patient/*.rs"])


async def test_external_roles_and_services(external: ExternalIssuer, ec_key: Any) -> None:
    claims = {**FOREIGN, "patient": None, "fhirUser": "Practitioner/d1", "scope": ["user/*.rs", "system/*.cruds"],
              "realm_access": {"roles": ["offline_access", "practitioner"]}}  # fmt: skip
    principal = await external.principal(jwt.encode(claims, ec_key, "ES384", headers={"kid": "e"}))
    assert (principal.roles, principal.patients) == (frozenset({"practitioner"}), None)
    assert [str(scope) for scope in principal.scopes] == ["user/*.rs"], "people get no system scopes"
    service = {**FOREIGN, "patient": None, "fhirUser": None, "scope": "system/*.rs user/*.rs"}
    principal = await external.principal(jwt.encode(service, ec_key, "ES384", headers={"kid": "e"}))
    assert [str(scope) for scope in principal.scopes] == ["system/*.rs"]


@pytest.mark.parametrize(
    "wrong",
    [{"aud": "other"}, {"iss": "https://evil.example"}, {"exp": 1_000_000_000}, {"nbf": 1_999_999_999}, {"sub": None},
     {"exp": None}],
    ids=str,
)  # fmt: skip
async def test_wrong_external_tokens(external: ExternalIssuer, rsa_key: Any, wrong: dict[str, Any]) -> None:
    claims = {name: value for name, value in {**FOREIGN, **wrong}.items() if value is not None}
    with pytest.raises(FhirError) as refused:
        await external.principal(jwt.encode(claims, rsa_key, "RS256", headers={"kid": "r"}))
    assert refused.value.status == 401


async def test_external_keys_and_algorithms_must_fit(external: ExternalIssuer, rsa_key: Any, ec_key: Any) -> None:
    for token in (
        jwt.encode(FOREIGN, rsa_key, "RS256", headers={"kid": "e"}),
        jwt.encode(FOREIGN, ec_key, "ES384", headers={"kid": "r"}),
        jwt.encode(FOREIGN, rsa_key, "RS256", headers={"kid": "unknown"}),
        jwt.encode(FOREIGN, rsa_key, "RS256"),
        jwt.encode(FOREIGN, "s" * 64, "HS256", headers={"kid": "r"}),
    ):
        with pytest.raises(FhirError) as refused:
            await external.principal(token)
        assert refused.value.status == 401


def test_remote_keys_are_what_the_issuer_is_given() -> None:
    """`Published` stands in for RemoteKeys, whose own tests fetch over HTTP."""
    assert asyncio.iscoroutinefunction(RemoteKeys.keys)
    assert asyncio.iscoroutinefunction(Published.keys)

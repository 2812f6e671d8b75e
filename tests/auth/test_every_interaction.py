"""Each interaction by HTTP, in a batch and in a transaction: refused without its letter, blind to what is not one's own.

test_nobody_sees_more.py asks at random; here each place that has to ask the policy is asked once, by name.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.auth.conftest import Secured

pytestmark = pytest.mark.anyio

LABEL = {"security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}]}
JSON_PATCH = "application/json-patch+json"
PATCH = [{"op": "replace", "path": "/status", "value": "amended"}]
BY_IDENTIFIER = "Observation?identifier=urn:x|{id}"
NEVER = "never"
HIDDEN = ("labelled", "other", "gone")


def observation(id: str, patient: str, **more: Any) -> dict[str, Any]:
    return {"resourceType": "Observation", "id": id, "status": "final", "subject": {"reference": f"Patient/{patient}"},
            "code": {"text": "x"}, "identifier": [{"system": "urn:x", "value": id}], **more}  # fmt: skip


@pytest.fixture(scope="module")
async def clinic(secured: Secured) -> AsyncIterator[Secured]:
    """`mine` is p1's, `labelled` p1's with a label, `other` p2's, `gone` p1's with a label and deleted."""
    headers = await secured.token("system/*.cruds", client="service")
    for id in ("p1", "p2"):
        await secured.http.put(f"Patient/{id}", json={"resourceType": "Patient", "id": id}, headers=headers)
    for id, patient, more in (
        ("mine", "p1", {}), ("labelled", "p1", {"meta": LABEL}), ("other", "p2", {}), ("gone", "p1", {"meta": LABEL}),
    ):  # fmt: skip
        for text in ("first", "second"):
            body = {**observation(id, patient, **more), "note": [{"text": text}]}
            assert (await secured.http.put(f"Observation/{id}", json=body, headers=headers)).is_success
    assert (await secured.http.delete("Observation/gone", headers=headers)).status_code == 204
    await secured.user("ann", "patient", "Patient/p1")
    await secured.user("doc", "practitioner", "Practitioner/d1", reach="all")
    yield secured


def body_of(method: str, id: str, patient: str = "p1") -> dict[str, Any]:
    """What a request sends along, by HTTP."""
    if method == "PATCH":
        return {"content": json.dumps(PATCH), "headers": {"Content-Type": JSON_PATCH}}
    return {"json": observation(id, patient)} if method in ("PUT", "POST") else {}


def entry_of(method: str, url: str, id: str, **request: str) -> dict[str, Any]:
    """The same as an entry of a bundle."""
    entry: dict[str, Any] = {"request": {"method": method, "url": url, **request}}
    if method == "PATCH":
        data = base64.b64encode(json.dumps(PATCH).encode()).decode()
        entry["resource"] = {"resourceType": "Binary", "contentType": JSON_PATCH, "data": data}
    elif method in ("PUT", "POST"):
        entry["resource"] = observation(id, "p1")
    return entry


async def bundled(clinic: Secured, kind: str, headers: dict[str, str], entry: dict[str, Any]) -> httpx.Response:
    bundle = {"resourceType": "Bundle", "type": kind, "entry": [entry]}
    return await clinic.http.post("", json=bundle, headers=headers)


# Method, URL, and what each needs; without any one of the letters it is refused.
NEEDED = [
    ("GET", "Observation/mine", "r"),
    ("GET", "Observation/mine/_history/1", "r"),
    ("GET", "Observation/mine/_history", "r"),
    ("GET", "Observation/_history", "s"),
    ("GET", "_history", "s"),
    ("GET", "Observation?code=x", "s"),
    ("GET", "Patient/p1/Observation", "s"),
    ("GET", "?_type=Observation", "s"),
    ("POST", "Observation", "c"),
    ("PUT", "Observation/mine", "u"),
    ("PUT", "Observation/fresh", "cu"),
    ("PATCH", "Observation/mine", "u"),
    ("DELETE", "Observation/mine", "d"),
    ("PUT", BY_IDENTIFIER.format(id="mine"), "cu"),
    ("PATCH", BY_IDENTIFIER.format(id="mine"), "u"),
    ("DELETE", BY_IDENTIFIER.format(id="mine"), "d"),
    ("DELETE", BY_IDENTIFIER.format(id="mine") + "&_multiple=true", "d"),
    ("GET", "Patient/p1/$everything", "rs"),
    ("GET", "Observation/$lastn?patient=p1", "s"),
    ("GET", "Observation/$stats?subject=Patient/p1&code=x&statistic=count", "s"),
    ("GET", "Observation/mine/$meta", "r"),
    ("GET", "Observation/$meta", "rs"),
    ("GET", "Observation/mine/$explain", "rs"),
]


@pytest.mark.parametrize(("method", "url", "letters"), NEEDED)
async def test_each_is_refused_without_its_letter(clinic: Secured, method: str, url: str, letters: str) -> None:
    id = url.partition("?")[0].rpartition("/")[2] if url.startswith("Observation/") else "mine"
    assert (await clinic.http.request(method, url, **body_of(method, id))).status_code == 401
    everything = await clinic.token("system/*.cruds", client="service")
    before = (await clinic.http.get("Observation/mine", headers=everything)).content
    for missing in letters:
        scopes = "system/*." + "".join(letter for letter in "cruds" if letter != missing)
        headers = await clinic.token(scopes, client="service")
        sent = body_of(method, id)
        answer = await clinic.http.request(method, url, **{**sent, "headers": {**headers, **sent.get("headers", {})}})
        assert answer.status_code == 403, (missing, answer.text)
        answer = await bundled(clinic, "batch", headers, entry_of(method, url, id))
        assert answer.json()["entry"][0]["response"]["status"].startswith("403"), (missing, answer.text)
        answer = await bundled(clinic, "transaction", headers, entry_of(method, url, id))
        assert answer.status_code == 403, (missing, answer.text)
    assert (await clinic.http.get("Observation/mine", headers=everything)).content == before
    assert (await clinic.http.get("Observation/fresh", headers=everything)).status_code == 404


async def test_a_bundle_itself_needs_a_token(clinic: Secured) -> None:
    for kind in ("batch", "transaction"):
        empty = {"resourceType": "Bundle", "type": kind}
        assert (await clinic.http.post("", json=empty)).status_code == 401
    for url in ("?_type=Observation", "_history", "$export/x", "$export/x/y.ndjson", "Observation?_explain=true"):
        assert (await clinic.http.get(url)).status_code == 401, url


# Of what is hidden, and of what never was: the answers must be the same but for the id.
BLIND = [
    ("GET", "Observation/{id}", {}),
    ("GET", "Observation/{id}/_history/1", {}),
    ("GET", "Observation/{id}/_history/3", {}),
    ("GET", "Observation/{id}/_history", {}),
    ("GET", "Observation/{id}/$meta", {}),
    ("GET", "Observation/{id}/$explain", {}),
    ("GET", "Observation?_id={id}&_total=accurate", {}),
    ("PUT", "Observation/{id}", {}),
    ("PUT", "Observation/{id}", {"ifMatch": 'W/"2"'}),
    ("PUT", "Observation/{id}", {"ifNoneMatch": "*"}),
    ("PATCH", "Observation/{id}", {}),
    ("PATCH", "Observation/{id}", {"ifMatch": 'W/"2"'}),
    ("DELETE", "Observation/{id}", {}),
    ("DELETE", "Observation/{id}", {"ifMatch": 'W/"2"'}),
    ("PUT", "Observation?_id={id}", {}),
    ("PATCH", "Observation?_id={id}", {}),
    ("DELETE", "Observation?_id={id}", {}),
    ("DELETE", "Observation?_id={id}&_multiple=true", {}),
]
HEADERS = {"ifMatch": "If-Match", "ifNoneMatch": "If-None-Match"}


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize(("method", "url", "request_"), BLIND)
async def test_what_is_hidden_is_as_if_it_had_never_been(
    clinic: Secured, method: str, url: str, request_: dict[str, str], hidden: str
) -> None:
    headers = await clinic.token("patient/*.cruds", user="ann", patient="p1")
    everything = await clinic.token("system/*.cruds", client="service")
    before = (await clinic.http.get(f"Observation/{hidden}/_history", headers=everything)).content
    told: list[list[Any]] = []
    for id in (hidden, NEVER):
        sent = body_of(method, id)
        extra = {HEADERS[name]: value for name, value in request_.items()}
        direct = await clinic.http.request(
            method, url.format(id=id), **{**sent, "headers": {**headers, **extra, **sent.get("headers", {})}}
        )
        entry = entry_of(method, url.format(id=id), id, **request_)
        answers = [direct, *[await bundled(clinic, kind, headers, entry) for kind in ("batch", "transaction")]]
        told.append([(one.status_code, one.text.replace(id, "ID"), one.headers.get("etag")) for one in answers])
    assert told[0] == told[1]
    assert (await clinic.http.get(f"Observation/{hidden}/_history", headers=everything)).content == before
    assert (await clinic.http.get(f"Observation/{NEVER}", headers=everything)).status_code == 404


async def test_a_history_of_many_has_only_ones_own(clinic: Secured) -> None:
    """For one who is limited, and for one who is not but lacks the clearance: neither versions nor deletions."""
    for user, patient, scopes, hidden in (
        ("ann", "p1", "patient/*.cruds", HIDDEN),
        ("doc", "", "user/*.cruds", ("labelled", "gone")),
        ("ann", "p1", "patient/Observation.s", HIDDEN),
    ):
        headers = await clinic.token(scopes, user=user, patient=patient)
        for url in ("Observation/_history", "_history"):
            if "*" not in scopes and url == "_history":
                continue
            text = (await clinic.http.get(url, headers=headers)).text
            assert "Observation/mine" in text
            assert not [id for id in hidden if f"Observation/{id}" in text], (url, user)


async def test_a_history_shows_what_either_way_in_shows(clinic: Secured) -> None:
    """One way in of several that is not limited to a patient: the patient of the other must not narrow the whole."""
    narrowed = "user/Observation.s?identifier=urn:x|other patient/Observation.s"
    headers = await clinic.token(narrowed, user="doc", patient="p1")
    text = (await clinic.http.get("Observation/_history", headers=headers)).text
    assert "Observation/mine" in text and "Observation/other" in text


async def test_a_search_over_all_types_is_over_those_that_are_permitted(clinic: Secured) -> None:
    headers = await clinic.token("system/Patient.rs", client="service")
    answer = await clinic.http.get("?_type=Patient,Observation", headers=headers)
    assert {entry["resource"]["resourceType"] for entry in answer.json()["entry"]} == {"Patient"}
    assert (await clinic.http.get("?_type=Observation", headers=headers)).status_code == 403
    assert "Observation" not in (await clinic.http.get("$meta", headers=headers)).text


async def test_how_a_search_is_done_is_for_administrators(clinic: Secured) -> None:
    headers = await clinic.token("user/*.cruds", user="doc")
    assert (await clinic.http.get("Observation?_explain=true", headers=headers)).status_code == 403


async def test_a_conditional_reference_finds_only_ones_own(clinic: Secured) -> None:
    """In a transaction, and in what it would say: a match that is hidden is none."""
    headers = await clinic.token("patient/*.cruds", user="ann", patient="p1")
    told = []
    for id in ("other", NEVER):
        body = observation("x", "p1", hasMember=[{"reference": f"Observation?identifier=urn:x|{id}"}])
        entry = {"request": {"method": "POST", "url": "Observation"}, "resource": body}
        answer = await bundled(clinic, "transaction", headers, entry)
        told.append((answer.status_code, answer.text.replace(id, "ID")))
    assert told[0] == told[1]
    assert told[0][0] == 400


async def test_an_id_cannot_be_chosen_by_who_is_limited(clinic: Secured) -> None:
    headers = await clinic.token("patient/*.cruds", user="ann", patient="p1")
    body = observation(NEVER, "p1")
    for url in (f"Observation/{NEVER}", f"Observation?identifier=urn:x|{NEVER}"):
        assert (await clinic.http.put(url, json=body, headers=headers)).status_code == 403
        for kind in ("batch", "transaction"):
            entry = {"request": {"method": "PUT", "url": url}, "resource": body}
            answer = await bundled(clinic, kind, headers, entry)
            status = answer.json()["entry"][0]["response"]["status"] if kind == "batch" else str(answer.status_code)
            assert status.startswith("403"), (url, kind, answer.text)


async def test_an_operation_gathers_only_ones_own(clinic: Secured) -> None:
    """Figures, latest results, records and labels in use: of what is hidden nothing, not even a number."""
    headers = await clinic.token("patient/*.cruds", user="ann", patient="p1")
    everything = await clinic.token("system/*.cruds", client="service")
    stats = "Observation/$stats?subject=Patient/p1&coding=urn:c|c&statistic=total-count&include=true"
    for id, patient, more in (("s-mine", "p1", {}), ("s-labelled", "p1", {"meta": LABEL}), ("s-other", "p2", {})):
        body = {**observation(id, patient, **more), "code": {"coding": [{"system": "urn:c", "code": "c"}]}}
        assert (await clinic.http.put(f"Observation/{id}", json=body, headers=everything)).is_success
    for url in (stats, "Observation/$lastn?patient=p1&max=9&code=urn:c|c", "Patient/p1/$everything"):
        for who, ids in ((headers, {"s-mine"}), (everything, {"s-mine", "s-labelled"})):
            answer = await clinic.http.get(url, headers=who)
            assert answer.status_code == 200, answer.text
            assert {id for id in ("s-mine", "s-labelled", "s-other") if f'"{id}"' in answer.text} == ids, url
    figures = (await clinic.http.get(stats, headers=headers)).json()["parameter"][0]["resource"]
    assert figures["component"][0]["valueQuantity"]["value"] == 1
    told = []
    for id in ("p2", NEVER):
        urls = (stats.replace("p1", id), f"Observation/$lastn?patient={id}", f"Patient/{id}/$everything")
        answers = [await clinic.http.get(url, headers=headers) for url in urls]
        told.append([(one.status_code, one.text.replace(id, "ID")) for one in answers])
    assert told[0] == told[1]
    assert told[0][2][0] == 404
    for url in ("Observation/$meta", "$meta"):
        assert '"R"' not in (await clinic.http.get(url, headers=headers)).text
        assert '"R"' in (await clinic.http.get(url, headers=everything)).text


async def test_each_letter_is_narrowed_by_itself(clinic: Secured) -> None:
    """What may be read is not there for a change that is narrowed to something else."""
    everything = await clinic.token("system/*.cruds", client="service")
    before = (await clinic.http.get("Observation/mine", headers=everything)).content
    headers = await clinic.token("user/Observation.rs user/Observation.ud?identifier=urn:x|other", user="doc")
    assert (await clinic.http.get("Observation/mine", headers=headers)).status_code == 200
    for method, status in (("PUT", 403), ("PATCH", 404), ("DELETE", 204)):
        sent = body_of(method, "mine")
        answer = await clinic.http.request(
            method, "Observation/mine", **{**sent, "headers": {**headers, **sent.get("headers", {})}}
        )
        assert answer.status_code == status, (method, answer.text)
        answer = await bundled(clinic, "transaction", headers, entry_of(method, "Observation/mine", "mine"))
        assert answer.status_code == (status if status != 204 else 200), (method, answer.text)
        assert (await clinic.http.get("Observation/mine", headers=everything)).content == before, method


@pytest.mark.parametrize(
    "scopes", ["user/Observation.rs user/Observation.d?identifier=urn:x|other", "user/*.rs patient/*.d"]
)
async def test_a_deletion_by_criteria_ends_only_what_may_be_deleted(clinic: Secured, scopes: str) -> None:
    """One that takes several, too: what they find may be more, by another scope."""
    everything = await clinic.token("system/*.cruds", client="service")
    before = (await clinic.http.get("Observation/mine", headers=everything)).content
    headers = await clinic.token(scopes, user="doc", patient="p2")
    url = BY_IDENTIFIER.format(id="mine")
    for one in (url, f"{url}&_multiple=true"):
        assert (await clinic.http.delete(one, headers=headers)).status_code == 204
        answer = await bundled(clinic, "batch", headers, entry_of("DELETE", one, "mine"))
        assert answer.status_code == 200
        assert (await clinic.http.get("Observation/mine", headers=everything)).content == before, one


async def test_a_deletion_stays_in_the_record_of_what_it_ended(clinic: Secured) -> None:
    everything = await clinic.token("system/*.cruds", client="service")
    for id, patient in (("ended", "p1"), ("ended-other", "p2")):
        assert (
            await clinic.http.put(f"Observation/{id}", json=observation(id, patient), headers=everything)
        ).is_success
        assert (await clinic.http.delete(f"Observation/{id}", headers=everything)).status_code == 204
    headers = await clinic.token("patient/*.cruds", user="ann", patient="p1")
    for url in ("Observation/{id}", "Observation/{id}/_history/2"):
        assert (await clinic.http.get(url.format(id="ended"), headers=headers)).status_code == 410
        assert (await clinic.http.get(url.format(id="ended-other"), headers=headers)).status_code == 404
    history = (await clinic.http.get("Observation/ended/_history", headers=headers)).json()
    assert [entry["request"]["method"] for entry in history["entry"]] == ["DELETE", "POST"]


async def test_an_earlier_version_is_judged_by_itself(clinic: Secured) -> None:
    """It was another patient's, or labelled; that it is one's own now does not open it."""
    everything = await clinic.token("system/*.cruds", client="service")
    earlier: dict[str, tuple[str, dict[str, Any]]] = {"corrected": ("p2", {}), "cleared": ("p1", {"meta": LABEL})}
    for id, (patient, more) in earlier.items():
        for body in (observation(id, patient, note=[{"text": "once"}], **more), observation(id, "p1")):
            assert (await clinic.http.put(f"Observation/{id}", json=body, headers=everything)).is_success
    headers = await clinic.token("patient/*.cruds", user="ann", patient="p1")
    for id in earlier:
        assert (await clinic.http.get(f"Observation/{id}", headers=headers)).status_code == 200
        assert (await clinic.http.get(f"Observation/{id}/_history/2", headers=headers)).status_code == 200
        for version in (1, 9):
            assert (await clinic.http.get(f"Observation/{id}/_history/{version}", headers=headers)).status_code == 404
        for url in (f"Observation/{id}/_history", "Observation/_history", "_history"):
            text = (await clinic.http.get(url, headers=headers)).text
            assert f"Observation/{id}" in text and "once" not in text, url

"""The order of a load, and what an entry becomes: files in, no server."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from fhir_server.cli.loading.compose import body, compose, single
from fhir_server.cli.loading.plan import Plan, plan
from fhir_server.cli.loading.sources import Unreadable
from fhir_server.errors import BadRequest

Json = dict[str, Any]
HOSPITAL = "urn:uuid:0c3151bd-1cbf-4d64-b04d-cd9187a4c6e0"
PATIENT = "urn:uuid:7d0f7a3c-3b38-4b64-8f3e-0f6f2f6f8a11"


def entry(resource: Json, **request: str) -> Json:
    return {
        "fullUrl": f"urn:uuid:{resource.get('id', '')}",
        "resource": resource,
        "request": {"method": "POST", "url": resource["resourceType"], **request},
    }


def transaction(*entries: Json) -> Json:
    return {"resourceType": "Bundle", "type": "transaction", "entry": list(entries)}


def basic(id: str) -> Json:
    """The smallest valid resource."""
    return {"resourceType": "Basic", "id": id, "code": {"text": "anything"}}


def organization(**elements: Any) -> Json:
    return {"resourceType": "Organization", "id": HOSPITAL[9:], **elements}


def patient(reference: str) -> Json:
    return {"resourceType": "Patient", "id": PATIENT[9:], "managingOrganization": {"reference": reference}}


def write(folder: Path, name: str, content: Json | list[Json]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        raw = b"".join(json.dumps(line).encode() + b"\n" for line in content)
    else:
        raw = json.dumps(content, ensure_ascii=False).encode()
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


def order(found: Plan) -> list[str]:
    return [step.path.name if step.path else step.name for step in found.steps]


def test_conditional_references_wait_for_who_is_meant(tmp_path: Path) -> None:
    """As Synthea writes it: patients name practitioners by identifier, practitioners name their organization so."""
    staff = {"resourceType": "Practitioner", "id": "p1", "identifier": [{"system": "urn:npi", "value": "99"}]}
    role = {
        "resourceType": "PractitionerRole",
        "id": "r1",
        "practitioner": {"reference": "Practitioner?identifier=urn:npi|99"},
        "organization": {"reference": "Organization?identifier=urn:org|7"},
    }
    seen = {
        "resourceType": "Patient",
        "id": "1",
        "generalPractitioner": [{"reference": "Practitioner?identifier=urn%3Anpi%7C99"}],
    }
    write(tmp_path, "a-patient.json", transaction(entry(seen)))
    write(tmp_path, "b-practitioner.json.gz", transaction(entry(staff), entry(role)))
    write(
        tmp_path, "c-hospital.json", transaction(entry(organization(identifier=[{"system": "urn:org", "value": "7"}])))
    )
    assert order(plan([tmp_path])) == ["c-hospital.json", "b-practitioner.json.gz", "a-patient.json"]


def test_single_resources_go_by_what_they_refer_to(tmp_path: Path) -> None:
    write(tmp_path, "1.json", {"resourceType": "Observation", "id": "o", "subject": {"reference": "Patient/p"}})
    write(
        tmp_path,
        "2.ndjson",
        [{"resourceType": "Patient", "id": "p", "managingOrganization": {"reference": "Organization/x"}}],
    )
    write(tmp_path, "deep/3.json", {"resourceType": "Organization", "id": "x"})
    write(tmp_path, "notes.txt", {"resourceType": "Basic"})
    found = plan([tmp_path])
    assert order(found) == ["Organization resources", "Patient resources", "Observation resources"]
    assert found.resources == 3


def test_a_circle_is_cut_and_everything_goes(tmp_path: Path) -> None:
    write(
        tmp_path, "a.json", transaction(entry({"resourceType": "List", "id": "a", "subject": {"reference": "Group/b"}}))
    )
    write(
        tmp_path,
        "b.json",
        transaction(entry({"resourceType": "Group", "id": "b", "managingEntity": {"reference": "List/a"}})),
    )
    assert sorted(order(plan([tmp_path]))) == ["a.json", "b.json"]


def test_a_thousand_files_are_planned_quickly(tmp_path: Path) -> None:
    for number in range(1000):
        there = {"resourceType": "Basic", "id": f"b{number}", "author": {"reference": f"Basic/b{number - 1}"}}
        write(tmp_path, f"{999 - number:04}.json", transaction(entry(there)))
    assert order(plan([tmp_path])) == [f"{999 - number:04}.json" for number in range(1000)]


def test_what_several_bundles_bring_is_sent_by_the_first(tmp_path: Path) -> None:
    shared = write(tmp_path, "z.json", transaction(entry(organization(name="whole"))))
    one = write(tmp_path, "a.json", transaction(entry(organization(name="short")), entry(patient(HOSPITAL))))
    found = plan([tmp_path])
    assert order(found) == ["z.json", "a.json"]
    owner = found.owners[f"Organization/{HOSPITAL[9:]}"]
    assert owner.path == shared
    composed = compose(one.read_bytes(), "a.json", lambda key: key in found.owners)
    sent = json.loads(body(composed.type, composed.items))["entry"]
    assert composed.left_out == 1
    assert [item["resource"]["resourceType"] for item in sent] == ["Patient"]
    assert sent[0]["resource"]["managingOrganization"] == {"reference": f"Organization/{HOSPITAL[9:]}"}


def test_a_creation_becomes_create_unless_there(tmp_path: Path) -> None:
    raw = json.dumps(transaction(entry(organization(name=HOSPITAL + " in words")), entry(patient(HOSPITAL)))).encode()
    first, second = json.loads(body("transaction", compose(raw, "x", lambda _: False).items))["entry"]
    assert first["request"] == {"method": "PUT", "url": f"Organization/{HOSPITAL[9:]}", "ifNoneMatch": "*"}
    assert first["resource"]["name"] == HOSPITAL + " in words"  # only whole values are references
    assert second["resource"]["managingOrganization"]["reference"] == f"Organization/{HOSPITAL[9:]}"


def test_what_says_how_to_create_it_stays_as_it_is() -> None:
    conditional = entry(organization(), ifNoneExist="identifier=urn:org|7")
    change = {"resource": organization(), "request": {"method": "PUT", "url": "Organization?identifier=urn:org|7"}}
    removal = {"request": {"method": "DELETE", "url": "Organization/old"}}
    raw = json.dumps(transaction(conditional, change, removal)).encode()
    sent = json.loads(body("transaction", compose(raw, "x", lambda _: True).items))["entry"]
    assert [item["request"] for item in sent] == [
        {"method": "POST", "url": "Organization", "ifNoneExist": "identifier=urn:org|7"},
        {"method": "PUT", "url": "Organization?identifier=urn:org|7"},
        {"method": "DELETE", "url": "Organization/old"},
    ]


def test_a_collection_is_put() -> None:
    raw = json.dumps({"resourceType": "Bundle", "type": "collection", "entry": [{"resource": organization()}]}).encode()
    composed = compose(raw, "x", lambda _: False)
    assert composed.type == "batch"
    assert json.loads(composed.items[0].json)["request"] == {"method": "PUT", "url": f"Organization/{HOSPITAL[9:]}"}


def test_digits_and_order_are_not_touched() -> None:
    resource = b'{"resourceType":"Observation","id":"x","valueQuantity":{"value":1.00,"unit":"\\u6beb"}}'
    assert resource in single(resource + b"\n", "x").json


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"resourceType":"Basic"}', b'{"id":"%b","resourceType":"Basic"}'),
        (b' {"resourceType":"Basic" } ', b'{"id":"%b","resourceType":"Basic" }'),
    ],
)
def test_without_an_id_the_content_makes_one(raw: bytes, expected: bytes) -> None:
    one, two = single(raw, "x"), single(raw, "y")
    assert one.json == two.json
    sent = json.loads(one.json)
    assert sent["request"]["url"] == f"Basic/{sent['resource']['id']}"
    assert expected % sent["resource"]["id"].encode() in one.json


def test_what_cannot_be_read_is_named_and_the_rest_stays(tmp_path: Path) -> None:
    write(tmp_path, "good.json", {"resourceType": "Basic", "id": "g"})
    (tmp_path / "broken.json").write_bytes(b'{"resourceType":"Basic"')
    (tmp_path / "other.json").write_bytes(b'{"name":"package"}')
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b'{"resourceType":"Basic"}')[:-4])
    found = plan([tmp_path])
    assert found.resources == 1
    assert {Path(name).name: why for name, why in found.unreadable} == {
        "broken.json": "not valid JSON: Input data was truncated",
        "cut.json.gz": "Compressed file ended before the end-of-stream marker was reached",
        "other.json": "not a resource: it has no resourceType",
    }


@pytest.mark.parametrize("name", ["absent.json", "notes.txt"])
def test_a_path_that_is_not_to_be_loaded_stops_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("{}")
    with pytest.raises(BadRequest, match=name):
        plan([tmp_path / name])


def test_a_line_that_is_no_resource_is_refused() -> None:
    with pytest.raises(Unreadable):
        single(b"[1]", "x")

"""`fhir-server load` against a running server: everything arrives, again changes nothing, failures are named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from fhir_server.cli import population
from tests.cli.conftest import Start, call
from tests.cli.test_plan import basic, entry, transaction, write

Json = dict[str, Any]


def get(base: str, path: str) -> Json:
    answer = httpx.get(f"{base}/{path}", timeout=30)
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


def versions(base: str, *keys: str) -> dict[str, str]:
    return {key: get(base, key)["meta"]["versionId"] for key in keys}


@pytest.fixture(scope="module")
def people(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clinic and four people of the sample population, loaded once; the clinic's file is the last by name."""
    folder = tmp_path_factory.mktemp("people")
    for name, raw in list(population.bundles())[:5]:
        (folder / f"{'z-' if name == 'clinic' else ''}{name}.json").write_bytes(raw)
    loaded = call("load", folder, "--server", base)
    assert loaded.returncode == 0, loaded.stderr
    return folder


def test_it_arrives(base: str, people: Path) -> None:
    sent = json.loads((people / "sample-01.json").read_bytes())["entry"]
    for item in sent[:: len(sent) // 10]:
        resource = item["resource"]
        found = get(base, f"{resource['resourceType']}/{resource['id']}")
        assert {**found, "meta": None} == {**resource, "meta": None}


def test_it_says_what_it_did(base: str, people: Path) -> None:
    again = call("load", people, "--server", base)
    total = sum(len(json.loads(path.read_bytes())["entry"]) for path in people.iterdir())
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1].startswith(f"{total:,} resources in ")
    assert again.stdout.splitlines()[-1].endswith(f"0 created, {total:,} already there")


def test_again_changes_nothing_not_even_what_was_edited(base: str, people: Path) -> None:
    edited = get(base, "Patient/sample-02") | {"maritalStatus": {"text": "said on the telephone"}}
    assert httpx.put(f"{base}/Patient/sample-02", json=edited, timeout=30).status_code == 200
    keys = ["Patient/sample-01", "Patient/sample-02", "Organization/sample-organization", "Encounter/sample-03-2020"]
    before = versions(base, *keys)
    assert call("load", people, "--server", base).returncode == 0
    assert versions(base, *keys) == before
    assert get(base, "Patient/sample-02")["maritalStatus"]["text"] == "said on the telephone"


def test_a_half_known_bundle_brings_the_rest(base: str, tmp_path: Path) -> None:
    """An organization that is there already, with other content, is left as it is; who refers to it finds it."""
    there = {"resourceType": "Organization", "id": "half-1", "name": "first"}
    write(tmp_path, "a/a.json", transaction(entry(there)))
    patient = {"resourceType": "Patient", "id": "half-2", "managingOrganization": {"reference": "urn:uuid:half-1"}}
    write(tmp_path, "b/b.json", transaction(entry(patient), entry({**there, "name": "second"})))
    assert call("load", tmp_path / "a", "--server", base).returncode == 0
    second = call("load", tmp_path / "b", "--server", base)
    assert second.stdout.endswith("1 created, 1 already there\n"), second.stderr
    assert get(base, "Organization/half-1")["name"] == "first"
    assert get(base, "Patient/half-2")["managingOrganization"] == {"reference": "Organization/half-1"}


def test_what_several_bundles_bring_does_not_change_back_and_forth(base: str, tmp_path: Path) -> None:
    for number in range(4):
        shared = {"resourceType": "Organization", "id": "shared-1", "name": f"as file {number} has it"}
        own = {"resourceType": "Patient", "id": f"shared-p{number}"}
        write(tmp_path, f"{number}.json", transaction(entry(own), entry(shared)))
    for _ in range(2):
        assert call("load", tmp_path, "--server", base).returncode == 0
        assert get(base, "Organization/shared-1")["meta"]["versionId"] == "1"


def test_lines_and_single_resources(base: str, tmp_path: Path) -> None:
    lines: list[Json] = [basic(f"line-{number}") for number in range(450)]
    write(tmp_path, "Basic.ndjson.gz", lines)
    write(tmp_path, "one.json", {"resourceType": "Basic", "code": {"text": "no id"}})
    first = call("load", tmp_path, "--server", base)
    assert first.stdout.endswith("451 created, 0 already there\n"), first.stderr
    second = call("load", tmp_path, "--server", base)
    assert second.stdout.endswith("0 created, 451 already there\n"), second.stderr
    assert get(base, "Basic/line-449")["meta"]["versionId"] == "1"


def test_a_failure_is_named_with_its_reason_and_the_rest_goes_on(base: str, tmp_path: Path) -> None:
    wrong = {"resourceType": "Patient", "id": "wrong-1", "gender": "foo"}
    write(tmp_path, "a-wrong.json", transaction(entry(wrong), entry(basic("wrong-2"))))
    write(tmp_path, "b-right.json", transaction(entry(basic("right-1"))))
    write(tmp_path, "c.ndjson", [basic("right-2"), {**wrong, "id": "wrong-3"}])
    (tmp_path / "d-broken.json").write_text('{"resourceType": "Basic"')
    loaded = call("load", tmp_path, "--server", base)
    assert loaded.returncode == 1
    failures = {
        line.split(": ")[1].rpartition("/")[2]: line
        for line in loaded.stderr.splitlines()
        if line.startswith("failed: ")
    }
    assert failures.keys() == {"a-wrong.json", "c.ndjson:2", "d-broken.json"}
    assert "gender" in failures["a-wrong.json"]
    assert "HTTP 422" in failures["a-wrong.json"]
    assert "gender" in failures["c.ndjson:2"]
    assert "not valid JSON" in failures["d-broken.json"]
    assert versions(base, "Basic/right-1", "Basic/right-2") == {"Basic/right-1": "1", "Basic/right-2": "1"}
    assert httpx.get(f"{base}/Basic/wrong-2", timeout=30).status_code == 404  # its transaction was refused as a whole


def test_a_path_that_is_not_there(base: str, tmp_path: Path) -> None:
    loaded = call("load", tmp_path / "absent", "--server", base)
    assert loaded.returncode == 2
    assert "There is no" in loaded.stderr


def test_nobody_answers(tmp_path: Path) -> None:
    write(tmp_path, "a.json", basic("x"))
    loaded = call("load", tmp_path, "--server", "http://127.0.0.1:9/fhir")
    assert loaded.returncode == 2
    assert "Nobody answers at http://127.0.0.1:9/fhir" in loaded.stderr


def test_a_server_with_authorization_wants_a_token(start: Start, mongo_url: str, tmp_path: Path) -> None:
    write(tmp_path, "a.json", basic("x"))
    place = {"FHIR_MONGO_URL": mongo_url, "FHIR_DATABASE": f"guarded{os.getpid()}", "FHIR_DATA_DIR": str(tmp_path)}
    base = start("serve", "--port", 0, "--no-automation", **place).base
    without = call("load", tmp_path / "a.json", "--server", base)
    assert without.returncode == 2
    assert f"{base} wants a token" in without.stderr
    port = base.removesuffix("/fhir").rpartition(":")[2]
    token = call("token", "--scope", "system/*.cruds", "--port", port, **place).stdout.strip()
    loaded = call("load", tmp_path / "a.json", "--server", base, FHIR_TOKEN=token)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.endswith("1 created, 0 already there\n")

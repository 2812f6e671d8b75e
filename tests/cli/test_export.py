"""`fhir-server export`: what was loaded comes out again, one file a type, and can be loaded elsewhere."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from tests.cli.conftest import call
from tests.cli.test_plan import write


def test_what_was_loaded_comes_out(base: str, tmp_path: Path) -> None:
    lines = [{"resourceType": "Basic", "id": f"out-{number:04}", "code": {"text": "基本"}} for number in range(1203)]
    write(tmp_path, "in/Basic.ndjson", list(lines))
    write(tmp_path, "in/decimal.json", {"resourceType": "Patient", "id": "out-p"})
    assert call("load", tmp_path / "in", "--server", base).returncode == 0
    exported = call("export", tmp_path / "out", "--server", base)
    assert exported.returncode == 0, exported.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Basic.ndjson", "Patient.ndjson"]
    found = [json.loads(line) for line in (tmp_path / "out" / "Basic.ndjson").read_bytes().splitlines()]
    assert sorted(item["id"] for item in found) == [line["id"] for line in lines]
    assert all(item["code"] == {"text": "基本"} for item in found)

    again = call("load", tmp_path / "out", "--server", base)
    assert again.stdout.endswith("0 created, 1,204 already there\n"), again.stderr


def test_one_type_zipped(base: str, tmp_path: Path) -> None:
    write(tmp_path, "one.json", {"resourceType": "Flag", "id": "zipped", "status": "active",
                                 "code": {"text": "x"}, "subject": {"reference": "Patient/out-p"}})  # fmt: skip
    assert call("load", tmp_path / "one.json", "--server", base).returncode == 0
    exported = call("export", tmp_path / "out", "--type", "Flag", "--gzip", "--server", base)
    assert exported.returncode == 0, exported.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["Flag.ndjson.gz"]
    assert json.loads(gzip.decompress((tmp_path / "out" / "Flag.ndjson.gz").read_bytes()))["id"] == "zipped"


def test_a_folder_with_an_export_is_not_mixed(base: str, tmp_path: Path) -> None:
    (tmp_path / "Patient.ndjson").write_text("")
    refused = call("export", tmp_path, "--server", base)
    assert refused.returncode == 2
    assert "choose an empty folder" in refused.stderr

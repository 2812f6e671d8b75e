"""`fhir-server reindex`: a posted SearchParameter is served afterwards."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.cli.conftest import call
from tests.cli.test_plan import write


def test_a_new_parameter_is_served(base: str, tmp_path: Path) -> None:
    parameter = {
        "resourceType": "SearchParameter",
        "id": "shade",
        "url": "http://example.org/SearchParameter/shade",
        "name": "shade",
        "status": "active",
        "description": "shade",
        "code": "shade",
        "base": ["Basic"],
        "type": "string",
        "expression": "Basic.code.text",
    }
    basic = {"resourceType": "Basic", "id": "shaded", "code": {"text": "Ochre"}}
    write(tmp_path, "one.json", basic)
    write(tmp_path, "two.json", parameter)
    assert call("load", tmp_path, "--server", base).returncode == 0
    done = call("reindex", "--server", base)
    assert (done.returncode, done.stdout) == (0, "everything is indexed\n"), done.stderr
    found = httpx.get(f"{base}/Basic?shade=ochre").json()
    assert [entry["resource"]["id"] for entry in found["entry"]] == ["shaded"]
    again = call("reindex", "--all", "--server", base)
    assert again.returncode == 0, again.stderr

"""Commands that need no server of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import fhir_server
from tests.cli.conftest import Start, call


def test_version() -> None:
    printed = call("version", "--all").stdout.splitlines()
    assert printed[0] == f"fhir-server {fhir_server.__version__} (FHIR 4.0.1)"
    assert any(line.startswith("pymongo ") for line in printed)


def test_an_unknown_command_is_a_usage_error() -> None:
    refused = call("sevre")
    assert refused.returncode == 2
    assert "invalid choice" in refused.stderr


def test_help_names_every_command() -> None:
    from fhir_server.cli import COMMANDS

    shown = call("--help").stdout
    assert all(f"\n    {name} " in shown for name in COMMANDS)


def test_the_demo_loads_once_and_keeps_its_data(start: Start, tmp_path: Path) -> None:
    """The lines that are printed for people are the lines that work, and work only with the token."""
    words = ["demo", "--port", 0, "--no-automation", "--data-dir", tmp_path / "demo"]
    first = start(*words)
    first.line("Ctrl-C stops it")
    assert any(line.endswith("created, 0 already there") for line in first.lines)
    curls = [line.strip() for line in first.lines if line.strip().startswith("curl ")]
    assert len(curls) == 3
    for curl in curls:
        answer = shell(curl.replace("curl ", "curl -sS --fail ", 1))
        assert answer.returncode == 0, f"{curl}\n{answer.stderr}{answer.stdout}"
        assert '"Bundle"' in answer.stdout
    assert "王" in shell(curls[0]).stdout
    assert "401" in shell(f"curl -s -o /dev/null -w '%{{http_code}}' {first.base}/Patient").stdout
    (printed,) = [line.strip() for line in first.lines if line.strip().startswith("eyJ")]
    assert (
        "200"
        in shell(
            f"curl -s -o /dev/null -w '%{{http_code}}' -H 'Authorization: Bearer {printed}' {first.base}/Patient"
        ).stdout
    )
    assert (tmp_path / "demo" / "token").stat().st_mode & 0o777 == 0o600
    assert first.stop() == 0

    second = start(*words)
    second.line("Ctrl-C stops it")
    assert not any("created" in line for line in second.lines)
    curl = next(line.strip() for line in second.lines if line.strip().startswith("curl "))
    assert "王" in shell(curl).stdout
    assert second.stop() == 0


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """As a person pastes it."""
    return subprocess.run(line, shell=True, capture_output=True, text=True, check=False)


def test_a_misspelt_variable_is_named() -> None:
    found = call("version", FHIR_PRT="90", FHIR_WORKERS="2", FHIR_SOMETHING_ELSE="x")
    assert found.returncode == 0
    assert found.stderr.splitlines() == ["fhir-server: FHIR_PRT is no setting and is ignored; is FHIR_PORT meant?"]

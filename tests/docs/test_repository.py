"""The house itself: its rooms, the size of its modules, its pins, and files for containers that at least parse."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TOP_LEVEL = {
    ".ci", ".gitignore", "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "constraints.txt", "docker", "docs",
    "fhir_server", "profiles", "pyproject.toml", "resources", "terminology", "tests",
}  # fmt: skip
LINES = 400


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name]


def test_the_top_level_is_what_was_agreed() -> None:
    """A new room is a decision: change the list here, README.md and docs/architecture.md together."""
    assert {name.split("/")[0] for name in tracked()} - TOP_LEVEL == set()


def test_modules_stay_readable() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in (ROOT / "fhir_server").rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > LINES
    }
    assert long == {}, "split by concern"


def test_every_module_says_what_it_is() -> None:
    bare = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "fhir_server").rglob("*.py")
        if not path.read_text(encoding="utf-8").startswith(('"""', 'r"""')) and path.stat().st_size
    ]
    assert bare == []


def pins() -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return {normal(name): version for name, version in found}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_pins_have_hashes_and_no_addresses() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"://|--(index|extra-index|find-links|trusted)", text)
    entries = [entry for entry in re.split(r"\n(?=[A-Za-z0-9])", text) if "==" in entry]
    assert len(entries) == len(pins())
    assert [entry.split("==")[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_pins_satisfy_what_is_asked_for() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [
        *project["project"]["dependencies"],
        *project["dependency-groups"]["dev"],
        *project["build-system"]["requires"],
    ]
    pinned = pins()
    wrong = [
        str(requirement)
        for requirement in map(Requirement, asked)
        if not requirement.specifier.contains(pinned.get(normal(requirement.name), "0.0.0.dev0"))
    ]
    assert wrong == [], "make constraints"


@pytest.mark.parametrize("path", sorted((ROOT / "docker").rglob("*.yaml")), ids=lambda path: path.name)
def test_container_files_parse(path: Path) -> None:
    documents: list[dict[str, Any]] = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    assert documents
    if path.name == "compose.yaml":
        (compose,) = documents
        services = compose["services"]
        assert len([name for name, service in services.items() if "--replSet" in service.get("command", [])]) == 3
        for service in services.values():
            assert set(service.get("depends_on", {})) <= set(services)
            assert set(service["networks"]) <= set(compose["networks"])
            named = {str(volume).split(":")[0] for volume in service.get("volumes", [])}
            assert named <= set(compose["volumes"])
        assert all(port.startswith("127.0.0.1:") for port in services["server"]["ports"])
        return
    for document in documents:
        assert {"apiVersion", "kind", "metadata"} <= document.keys()


def test_container_files_use_settings_that_exist() -> None:
    from dataclasses import fields

    from fhir_server.settings import Settings

    known = {f"FHIR_{field.name.upper()}" for field in fields(Settings)}
    for path in [ROOT / "docker" / "Dockerfile", *(ROOT / "docker").rglob("*.yaml")]:
        used = set(re.findall(r"\bFHIR_[A-Z_]+\b", path.read_text(encoding="utf-8")))
        assert used, path
        assert used <= known, path


def test_the_dockerfile_copies_what_is_there() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    described = re.findall(r"^([a-z-]+):.*?## ", makefile, re.MULTILINE)
    assert sorted(described) == sorted(phony[1].split())

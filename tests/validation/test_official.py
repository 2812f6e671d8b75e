"""Official examples and a synthetic population: accepted as their definitions say, and the same after XML."""

from __future__ import annotations

import gzip
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from fhir_server.model import resource
from fhir_server.model.xml import from_xml, to_xml
from fhir_server.validation import Validator

REFUSED = Path(__file__).parent / "official_examples_refused.yaml"


@pytest.fixture(scope="module")
def examples(spec_data: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    with tarfile.open(spec_data / "fhir" / "r4-examples-part-a.tar.xz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None and member.name.endswith(".json"):
                found[Path(member.name).name] = resource.load(file.read())
    assert len(found) == 466
    return found


def test_examples_are_accepted_but_for_those_listed(examples: dict[str, dict[str, Any]]) -> None:
    listed = {file: set(row["codes"]) for row in yaml.safe_load(REFUSED.read_text()) for file in row["files"]}
    validator = Validator()
    unlisted: dict[str, list[str]] = {}
    for file, example in examples.items():
        issues = [issue for issue in validator.check(example) if issue.is_error]
        codes = {issue.code for issue in issues}
        allowed = listed.get(file, set())
        if not codes <= allowed or (allowed and not codes):
            unlisted[file] = [f"{i.code} {i.expression[0]}: {i.diagnostics}" for i in issues] or ["is accepted now"]
    assert unlisted == {}
    assert listed.keys() <= examples.keys()


def test_examples_come_back_equal_from_xml(examples: dict[str, dict[str, Any]]) -> None:
    for file, example in examples.items():
        again = from_xml(to_xml(example))
        assert again == example, file
        assert from_xml(to_xml(example, pretty=True)) == example, file


def test_examples_keep_their_digits_and_order(examples: dict[str, dict[str, Any]]) -> None:
    for file, example in examples.items():
        assert resource.dump(resource.load(resource.dump(example))) == resource.dump(example), file
        digits = sorted(str(d) for d in _numbers(example))
        assert sorted(str(d) for d in _numbers(from_xml(to_xml(example)))) == digits, file


def _numbers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [n for item in value.values() for n in _numbers(item)]
    if isinstance(value, list):
        return [n for item in value for n in _numbers(item)]
    return [value] if not isinstance(value, str | bool | None) else []


def test_a_synthetic_population_is_accepted(spec_data: Path) -> None:
    validator = Validator()
    wrong: Counter[tuple[str, str]] = Counter()
    seen = 0
    for file in sorted((spec_data / "synthea").glob("*.json.gz")):
        bundle = resource.load(gzip.decompress(file.read_bytes()))
        for entry in bundle["entry"]:
            seen += 1
            issues = validator.check(entry["resource"])
            wrong.update((i.expression[0], i.diagnostics) for i in issues if i.is_error)
    assert seen > 15_000
    assert wrong == Counter()

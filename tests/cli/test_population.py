"""The sample population: the same bytes every time, valid, whole, and plausible."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from fhir_server.cli import population
from fhir_server.model.resource import load
from fhir_server.validation import Validator

Json = dict[str, Any]


@pytest.fixture(scope="module")
def bundles() -> list[tuple[str, bytes]]:
    return list(population.bundles())


@pytest.fixture(scope="module")
def resources(bundles: list[tuple[str, bytes]]) -> list[Json]:
    return [entry["resource"] for _, raw in bundles for entry in load(raw)["entry"]]


def test_the_same_bytes_in_another_process(bundles: list[tuple[str, bytes]]) -> None:
    here = hashlib.sha256(b"".join(raw for _, raw in bundles)).hexdigest()
    program = (
        "import hashlib; from fhir_server.cli import population;"
        "print(hashlib.sha256(b''.join(raw for _, raw in population.bundles())).hexdigest())"
    )
    there = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "12345", "TZ": "America/Lima", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == here


def test_another_seed_makes_another_population(bundles: list[tuple[str, bytes]]) -> None:
    other = dict(population.bundles(seed=1))
    assert [name for name, raw in bundles if other[name] == raw] == ["clinic"]


def test_every_resource_is_valid(resources: list[Json]) -> None:
    validator = Validator()
    errors = [
        f"{resource['resourceType']}/{resource['id']}: {issue.diagnostics}"
        for resource in resources
        for issue in validator.check(resource)
        if issue.is_error
    ]
    assert errors == []


def test_ids_are_unique_and_nothing_is_referred_to_before_it_is_there(bundles: list[tuple[str, bytes]]) -> None:
    seen: set[str] = set()
    for name, raw in bundles:
        inside = Counter(
            f"{entry['resource']['resourceType']}/{entry['resource']['id']}" for entry in load(raw)["entry"]
        )
        assert max(inside.values()) == 1, name
        assert not seen & inside.keys(), name
        seen |= inside.keys()
        references = {match.decode() for match in re.findall(rb'"reference":"([^"]*)"', raw)}
        assert references <= seen, name


def test_entries_create_unless_there(bundles: list[tuple[str, bytes]]) -> None:
    for _, raw in bundles:
        for entry in load(raw)["entry"]:
            resource = entry["resource"]
            expected = {"method": "PUT", "url": f"{resource['resourceType']}/{resource['id']}", "ifNoneMatch": "*"}
            assert entry["request"] == expected


def test_who_lives_there(resources: list[Json]) -> None:
    patients = [resource for resource in resources if resource["resourceType"] == "Patient"]
    assert len(patients) == 36
    for patient in patients:
        age = population.TODAY.year - date.fromisoformat(patient["birthDate"]).year
        assert 30 <= age <= 85
        assert patient["name"][0]["use"] == "official"
        assert patient["meta"]["security"][0]["code"] == "HTEST"
    pinyin = [p for p in patients if len(p["name"]) == 2]
    assert len(pinyin) == 24
    assert all(p["name"][1]["use"] == "usual" and p["name"][1]["family"].isalpha() for p in pinyin)
    assert {p["gender"] for p in patients} == {"male", "female"}


def test_numbers_hang_together(resources: list[Json]) -> None:
    """BMI is weight by height, LDL is below total cholesterol, systolic is above diastolic: in every check-up."""
    values: dict[str, dict[str, Decimal]] = defaultdict(dict)
    for resource in resources:
        if resource["resourceType"] == "Observation" and "encounter" in resource:
            visit = resource["encounter"]["reference"]
            if "valueQuantity" in resource:
                values[visit][resource["id"].split("-", 3)[3]] = resource["valueQuantity"]["value"]
            for part, name in zip(resource.get("component", ()), ("systolic", "diastolic"), strict=False):
                values[visit][name] = part["valueQuantity"]["value"]
    assert len(values) == 36 * 8
    for visit, value in values.items():
        assert abs(value["weight"] / (value["height"] / 100) ** 2 - value["bmi"]) < Decimal("0.15"), visit
        assert value["hdl"] + value["ldl"] < value["cholesterol"], visit
        assert value["diastolic"] + 20 < value["systolic"], visit
        assert 85 <= value["systolic"] <= 200, visit
        assert Decimal("4.5") <= value["hba1c"] <= 10, visit


def test_conventional_units_where_they_are_printed(resources: list[Json]) -> None:
    glucose = [
        resource
        for resource in resources
        if resource["resourceType"] == "Observation" and resource["code"]["coding"][0]["code"] in ("14771-0", "1558-6")
    ]
    assert Counter((item["code"]["coding"][0]["code"], item["valueQuantity"]["code"]) for item in glucose) == {
        ("14771-0", "mmol/L"): 24 * 8,
        ("1558-6", "mg/dL"): 12 * 8,
    }


def test_there_is_something_to_find(resources: list[Json]) -> None:
    counts = Counter(resource["resourceType"] for resource in resources)
    assert counts["Observation"] > 5000
    conditions = Counter(
        resource["code"]["coding"][0]["code"] for resource in resources if resource["resourceType"] == "Condition"
    )
    assert conditions["I10"] >= 8
    assert conditions["E11.9"] >= 5
    assert counts["MedicationRequest"] == counts["Condition"]
    home = [r for r in resources if r["resourceType"] == "Observation" and "-home-" in r["id"]]
    assert len(home) >= 24 * 8

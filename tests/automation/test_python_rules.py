"""A developer's own rule: a function in an installed package, found by its entry point. docs/hooks.md (Rules in Python)"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fhir_server.automation.hooks import installed
from fhir_server.automation.rules import Rule
from fhir_server.automation.worker import Worker
from tests.automation.conftest import Hooks, parts

pytestmark = pytest.mark.anyio

MODULE = """
from fhir.resources.R4B.task import Task
from fhir_server.automation.hooks import Fact, Facts, Propose, Tag, rule


@rule(
    url="https://clinic.example/rules/pulse",
    version="1.0.0",
    facts=[Fact("pulse", "Observation", codes=["http://loinc.org|8867-4"], unit="/min")],
)
def fast_pulse(facts: Facts):
    pulse = facts.number("pulse")
    if pulse is not None and pulse > 120:
        yield Tag("https://fhir-server.org/fhir/CodeSystem/patient-tags", "tachycardia")
        person = {"reference": f"Patient/{facts.patient['id']}"}
        yield Propose("check-pulse", Task(**{"status": "requested", "intent": "order", "for": person, "description": "Check"}))
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with one rule that works and one that cannot be imported, as pip would install it."""
    (tmp_path / "clinic_rules.py").write_text(MODULE)
    metadata = tmp_path / "clinic_rules-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: clinic-rules\nVersion: 1.0\n")
    points = "[fhir_server.hooks]\npulse = clinic_rules:fast_pulse\nbroken = clinic_rules:nothing_of_the_kind\n"
    (metadata / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("clinic_rules", None)


@pytest.fixture
async def mine(hooks: Hooks, package: None) -> AsyncIterator[tuple[Worker, Rule]]:
    (rule,) = installed()  # the other one is in the log
    worker, before = Worker(hooks.server, rules=[rule]), hooks.server.rooms["automation"]
    hooks.server.rooms["automation"] = worker
    await worker.open()
    yield worker, rule
    await worker.stop()
    hooks.server.rooms["automation"] = before


async def test_an_entry_point_is_a_rule_and_explains_itself(hooks: Hooks, mine: tuple[Worker, Rule]) -> None:
    patient = await hooks.patient()
    reading = await hooks.lab(patient, "8867-4", "121", "/min")
    await hooks.settle()
    assert "tachycardia" in await hooks.tags(patient)
    (task,) = await hooks.all("Task", patient)
    assert task["description"] == "Check"
    for path in (f"Task/{task['id']}", f"Patient/{patient}"):
        (told,) = parts(await hooks.operation(f"{path}/$explain"), "explanation")
        said = {one["name"]: one for one in told}
        assert said["rule"]["valueCanonical"] == "https://clinic.example/rules/pulse|1.0.0"
        assert "pulse = 121" in said["text"]["valueString"]
        assert said["input"]["valueReference"] == {"reference": f"Observation/{reading}"}
    await hooks.change("Observation", reading, status="entered-in-error")
    await hooks.settle()
    assert await hooks.tags(patient) == frozenset()
    (task,) = await hooks.all("Task", patient)
    assert task["status"] == "cancelled"

"""What automation derives from a restricted record is as restricted: a Task, a risk or a Provenance says what its inputs said."""

from __future__ import annotations

from typing import Any

import pytest

from fhir_server.auth.labels import CONFIDENTIALITY, highest, label_of
from fhir_server.automation.tags import set_by_rule
from tests.automation.conftest import Hooks

pytestmark = pytest.mark.anyio

URGENT = "hypertension-urgent-referral"
DERIVED = ("Task", "RiskAssessment", "Flag", "CommunicationRequest", "Observation")


def labelled(code: str) -> dict[str, Any]:
    return {"security": [{"system": CONFIDENTIALITY, "code": code}]}


async def labels(hooks: Hooks, patient: str, *, of: tuple[str, ...] = DERIVED) -> dict[str, str]:
    """Of everything that was derived and is in force, and of its Provenance: reference → label."""
    found = {}
    for resource_type in of:
        for resource in await hooks.all(resource_type, patient):
            if "identifier" not in resource or resource.get("status") in ("cancelled", "inactive", "entered-in-error"):
                continue
            reference = f"{resource_type}/{resource['id']}"
            found[reference] = label_of(resource)
            for one in await hooks.provenance(reference):
                found[f"{reference} Provenance"] = label_of(one)
    return found


async def why_tagged(hooks: Hooks, patient: str) -> str:
    (provenance,) = await hooks.provenance(f"Patient/{patient}")
    return label_of(provenance)


async def test_the_label_of_an_input_is_that_of_what_follows(hooks: Hooks) -> None:
    patient = await hooks.patient()
    await hooks.bp(patient, "185/115", id="open-bp")
    await hooks.settle()
    plain = await labels(hooks, patient)
    assert any(key.startswith("Task/") for key in plain) and set(plain.values()) == {""}
    assert await why_tagged(hooks, patient) == ""

    await hooks.change("Observation", "open-bp", meta=labelled("R"))
    await hooks.settle()
    (task,) = await hooks.tasks(patient, URGENT)
    found = await labels(hooks, patient)
    assert found.keys() == plain.keys(), "nothing else is different"
    assert found[f"Task/{task['id']}"] == found[f"Task/{task['id']} Provenance"] == "R"
    assert await why_tagged(hooks, patient) == "R"
    (label,) = task["meta"]["security"]
    assert set_by_rule(label).startswith(task["instantiatesCanonical"].partition("|")[0])

    await hooks.change("Observation", "open-bp", meta=labelled("V"))
    await hooks.settle()
    assert (await labels(hooks, patient))[f"Task/{task['id']}"] == "V"
    await hooks.change("Observation", "open-bp", meta=labelled("N"))
    await hooks.settle()
    assert await labels(hooks, patient) == plain
    assert await why_tagged(hooks, patient) == ""


async def test_it_goes_on_from_what_is_derived_and_only_where_it_was_used(hooks: Hooks) -> None:
    """Creatinine → eGFR → the kidney's rules; what rests on the blood pressure alone is as open as that is."""
    patient = await hooks.patient(birth="1950-01-01")
    await hooks.bp(patient, "185/115")
    await hooks.lab(patient, "2160-0", "2.4", "mg/dL", meta=labelled("R"))
    await hooks.settle()
    (egfr,) = [one for one in await hooks.all("Observation", patient) if "identifier" in one and
               any(coding["code"] in ("62238-1", "98979-8") for coding in one["code"]["coding"])]  # fmt: skip
    assert label_of(egfr) == "R"
    tasks = {task["instantiatesUri"]: label_of(task) for task in await hooks.tasks(patient)}
    assert {"R"} == {label for rule, label in tasks.items() if "nephrology-referral" in rule}
    assert {label for rule, label in tasks.items() if URGENT in rule} == {""}


async def test_a_persons_label_stays(hooks: Hooks) -> None:
    patient = await hooks.patient()
    await hooks.bp(patient, "185/115", id="persons-bp")
    await hooks.settle()
    (task,) = await hooks.tasks(patient, URGENT)
    await hooks.put({**task, "meta": labelled("R")})
    await hooks.change("Observation", "persons-bp", meta=labelled("R"))
    await hooks.settle()
    found = await labels(hooks, patient, of=("Task",))
    assert found[f"Task/{task['id']}"] == found[f"Task/{task['id']} Provenance"] == "R"
    await hooks.change("Observation", "persons-bp", meta=labelled("N"))
    await hooks.settle()
    (task,) = await hooks.tasks(patient, URGENT)
    assert label_of(task) == "R"


def test_which_label_is_the_highest() -> None:
    assert [highest(labels) for labels in (["R", "V", "N"], ["L", "R"], ["N", "X"], [])] == ["V", "R", "", ""]
    other = {"meta": {"security": [{"system": "https://example.org", "code": "V"}, {"code": "R"}]}}
    assert label_of(other) == label_of({"meta": {}}) == label_of({}) == ""

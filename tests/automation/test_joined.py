"""Effects in the transaction of the change: the same as the worker's, and never in the way of the change."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fhir_server.automation import hooks as api
from fhir_server.automation.evaluate import Situation
from fhir_server.automation.hooks import Facts
from fhir_server.automation.rulebook import Rulebook
from fhir_server.automation.worker import Worker
from fhir_server.errors import PreconditionFailed
from fhir_server.interactions import write
from fhir_server.model.resource import load
from tests.automation.conftest import Hooks

pytestmark = pytest.mark.anyio

URGENT = "hypertension-urgent-referral"
KINDS = ("Task", "RiskAssessment", "Flag", "CommunicationRequest", "Observation", "Provenance")


@pytest.fixture
async def joining(hooks: Hooks) -> Hooks:
    hooks.server.joins.append(hooks.worker.join)
    return hooks


async def warm(hooks: Hooks) -> str:
    """A patient whose record is at hand."""
    patient = await hooks.patient()
    await hooks.bp(patient, "120/70")
    await hooks.settle()
    return patient


async def waiting(hooks: Hooks, patient: str) -> list[str]:
    return [f"{one.resource_type}/{one.resource_id}" for one in await hooks.worker.outbox.pending([patient])]


async def test_what_was_acknowledged_has_its_consequences(joining: Hooks) -> None:
    patient = await warm(joining)
    reading = await joining.bp(patient, "185/115")
    assert await waiting(joining, patient) == []
    (task,) = await joining.tasks(patient, URGENT)
    assert task["focus"]["reference"] == f"Observation/{reading}"
    assert "hypertension-grade-3" in await joining.tags(patient)
    found = await joining.get("Observation", reading)
    assert found is not None
    assert found["meta"]["versionId"] == "2"
    assert found["interpretation"]
    first = await joining.server.store.read_version("Observation", reading, 1)
    assert first is not None
    assert "interpretation" not in load(first.raw)
    assert await joining.provenance(f"Task/{task['id']}")


async def test_a_patient_who_is_new_here_is_the_workers(joining: Hooks) -> None:
    patient = await joining.patient()
    reading = await joining.bp(patient, "185/115")
    assert f"Observation/{reading}" in await waiting(joining, patient)
    assert await joining.tasks(patient, URGENT) == []
    await joining.settle()
    assert len(await joining.tasks(patient, URGENT)) == 1


async def test_a_change_goes_alone_where_somebody_else_took_the_patient(joining: Hooks) -> None:
    patient = await warm(joining)
    other = Worker(joining.server)
    await other.open()
    await joining.worker.ledgers.release(joining.worker.name)
    await other.ledgers.lease([patient], other.name, 10**15, 10**15)
    reading = await joining.bp(patient, "185/115")
    assert await joining.get("Observation", reading) is not None
    assert await waiting(joining, patient) == [f"Observation/{reading}"]
    await joining.worker.ledgers.release(other.name)
    await joining.settle()
    assert len(await joining.tasks(patient, URGENT)) == 1


async def test_a_rule_that_fails_keeps_no_change_from_being_made(
    joining: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = await warm(joining)
    evaluate = joining.worker._functions.call

    def broken(rule: Any, situation: Situation, foci: Any) -> Any:
        if rule.id == "bp-grade-cn":
            raise ValueError("broken")
        return evaluate(rule, situation, foci)

    monkeypatch.setattr(joining.worker._functions, "call", broken)
    reading = await joining.bp(patient, "185/115")
    assert await waiting(joining, patient) == [f"Observation/{reading}"]
    await joining.settle()
    assert len(await joining.tasks(patient, URGENT)) == 1, "the other rules go on"
    assert "hypertension-grade-3" not in await joining.tags(patient)
    again = await joining.bp(patient, "186/115")
    assert await waiting(joining, patient) == [f"Observation/{again}"], "while a rule is to be tried again"


async def test_a_rule_in_python_is_not_waited_for(joining: Hooks) -> None:
    patient = await warm(joining)

    @api.rule(
        url="https://clinic.example/pulse", version="1", facts=[api.Fact("pulse", codes=["http://loinc.org|8867-4"])]
    )
    def pulse(facts: Facts) -> Any:
        yield api.Tag("https://clinic.example/tags", "has-pulse")

    book = joining.worker.book
    joining.worker.book = Rulebook(book.definitions, [pulse])
    try:
        id = await joining.lab(patient, "8867-4", "70", "/min")
        assert await waiting(joining, patient) == [f"Observation/{id}"]
        await joining.settle()
        assert "has-pulse" in {tag["code"] for tag in (await joining.get("Patient", patient) or {})["meta"]["tag"]}
        await joining.bp(patient, "185/115")
        assert await waiting(joining, patient) == [], "it wakes no rule in Python"
    finally:
        joining.worker.book = book
        await joining.settle()


async def test_a_precondition_that_fails_is_the_clients_to_hear(joining: Hooks) -> None:
    patient = await warm(joining)
    reading = await joining.bp(patient, "185/115")
    found = await joining.get("Observation", reading)
    assert found is not None
    with pytest.raises(PreconditionFailed):
        await write.update(joining.server, joining.context, "Observation", reading, found, if_match='W/"1"')
    await joining.bp(patient, "120/70")
    assert "hypertension-grade-3" not in await joining.tags(patient)
    (task,) = await joining.tasks(patient, URGENT, open_only=False)
    assert task["status"] == "cancelled"


async def test_joined_or_not_the_same_is_derived(joining: Hooks) -> None:
    """Two patients with the same readings, one dealt with by the worker, one on the way; with corrections."""
    chance = random.Random(4)
    texts = [f"{chance.randrange(110, 200)}/{chance.randrange(60, 120)}" for _ in range(14)]
    states = []
    for joins in ([], [joining.worker.join]):
        joining.server.joins[:] = joins
        patient = await warm(joining)
        await joining.condition(patient, "I10")
        await joining.settle()
        ids = []

        async def done(joins: list[Any] = joins, patient: str = patient) -> None:
            if not joins:
                await joining.settle()
            assert await waiting(joining, patient) == []

        for number, text in enumerate(texts):
            joining.clock.advance(minutes=1)
            ids.append(await joining.bp(patient, text))
            await done()
            if number % 5 == 4:
                await joining.change("Observation", ids[number - 1], status="entered-in-error")
                await done()
            if number % 7 == 6:
                await joining.delete("Observation", ids[number - 2])
                await done()
        found: list[Any] = [sorted(await joining.tags(patient))]
        for kind in ("Task", "RiskAssessment", "Flag", "CommunicationRequest"):
            for one in await joining.all(kind, patient):
                said = one.get("instantiatesUri") or one.get("method"), one["status"], one.get("priority")
                found.append((kind, *map(str, said), one["meta"]["versionId"]))
        states.append([found[0], *sorted(map(str, found[1:]))])
        joining.clock.advance(minutes=-len(texts))
    assert states[0] == states[1]


async def test_what_the_engine_writes_itself_is_valid(joining: Hooks) -> None:
    """It is not validated on each write, because no rule decides what it looks like."""
    patient = await warm(joining)
    await joining.condition(patient, "I10")
    await joining.settle()
    for text in ("185/115", "150/95", "118/70"):
        joining.clock.advance(minutes=1)
        await joining.bp(patient, text)
    found = [one for kind in KINDS for one in await joining.all(kind, patient)]
    for task in await joining.all("Task", patient):
        found += await joining.provenance(f"Task/{task['id']}")
    found += await joining.provenance(f"Patient/{patient}")
    kinds = {one["resourceType"] for one in found}
    assert {"Task", "Provenance", "Observation"} <= kinds
    for one in found:
        assert [issue for issue in joining.server.validator.check(one) if issue.is_error] == []

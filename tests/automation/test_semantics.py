"""The sixteen semantics of the hooks, each with its own test. docs/hooks.md"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import replace
from typing import Any

import pytest

from fhir_server.automation import hooks as api
from fhir_server.automation.facts import Facts
from fhir_server.automation.ledger import NAMESPACE
from fhir_server.automation.rounds import ATTEMPTS
from fhir_server.automation.rulebook import Rulebook
from fhir_server.automation.rules import Rule
from fhir_server.automation.vocabulary import DEVICE, PATIENT_TAGS, structure
from fhir_server.automation.worker import Worker
from fhir_server.store.outbox import Taken
from fhir_server.store.protocol import Cause, Changed, Event
from tests.automation.conftest import Hooks, parts

pytestmark = pytest.mark.anyio

URGENT = "hypertension-urgent-referral"


def tag_rule(id: str, condition: str, tag: str, *, version: str = "1.0.0", **action: Any) -> dict[str, Any]:
    """A rule that tags patients by a condition on the tags and the demographics."""
    return {
        "resourceType": "PlanDefinition",
        "id": id,
        "url": f"https://example.org/PlanDefinition/{id}",
        "version": version,
        "status": "active",
        "type": {
            "coding": [{"code": "eca-rule", "system": "http://terminology.hl7.org/CodeSystem/plan-definition-type"}]
        },
        "action": [
            {
                "id": "tag",
                "trigger": [{"type": "data-changed", "data": [{"type": "Patient"}]}],
                "condition": [
                    {"kind": "applicability", "expression": {"language": "text/fhirpath", "expression": condition}}
                ],
                "extension": [{"url": structure("tag"), "valueCoding": {"system": PATIENT_TAGS, "code": tag}}],
                **action,
            }
        ],
    }


async def test_01_effects_happen_exactly_once(hooks: Hooks) -> None:
    """Repeated events change nothing, and two workers that take the same events write once."""
    patient = await hooks.patient()
    await hooks.bp(patient, "185/115")
    events = await hooks.worker.outbox.pending([patient])
    other = Worker(hooks.server)
    await other.open()
    await asyncio.gather(hooks.worker.work([patient]), other.work([patient]), return_exceptions=True)
    await hooks.settle()
    (task,) = await hooks.tasks(patient, URGENT)
    assert await hooks.worker.outbox.pending([patient]) == []
    rule = "https://fhir-server.org/fhir/PlanDefinition/hypertension-follow-up"
    assert task["id"] == str(uuid.uuid5(NAMESPACE, f"{patient}|{rule}#urgent|0")), "whoever derives it comes to this id"
    versions = {
        stored.id: stored.version
        async for stored in hooks.server.store.scan("Task", filter={"s.subject": f"Patient/{patient}"})
    }
    await other.outbox.add([replace(event, id=event.id[:-1] + "z") for event in events])  # delivered a second time
    await hooks.settle()
    assert {
        s.id: s.version async for s in hooks.server.store.scan("Task", filter={"s.subject": f"Patient/{patient}"})
    } == versions
    assert (await hooks.tasks(patient, URGENT, open_only=False)) == [task]
    await other.stop()


async def test_01_effects_and_acknowledgement_are_one_transaction(hooks: Hooks) -> None:
    """A worker whose lease was taken over commits nothing: neither effects nor the end of the events."""
    patient = await hooks.patient()
    await hooks.bp(patient, "185/115")
    slow = Worker(hooks.server)
    await slow.open()
    held = await slow._hold([patient])
    assert held == {patient}
    ledgers = hooks.worker.ledgers
    await ledgers.release(slow.name)  # as if its lease had run out
    await hooks.settle()
    assert len(await hooks.tasks(patient, URGENT)) == 1
    await hooks.bp(patient, "186/115")
    with pytest.raises((Changed, Taken)):
        await slow._batch([patient])
    assert len(await hooks.worker.outbox.pending([patient])) == 1, (
        "the event is still there for the one who holds the patient"
    )
    await hooks.settle()
    await slow.stop()


async def test_02_events_of_a_patient_run_in_commit_order(hooks: Hooks) -> None:
    patient = await hooks.patient()
    reading = await hooks.bp(patient, "185/115")
    for value in ("150/95", "125/75", "165/95"):
        hooks.clock.advance(seconds=1)
        parts_ = [(c, v) for c, v in zip(("8480-6", "8462-4"), value.split("/"), strict=True)]
        component = [
            {"code": {"coding": [{"system": "http://loinc.org", "code": c}]},
             "valueQuantity": {"value": int(v), "unit": "mmHg", "system": "http://unitsofmeasure.org", "code": "mm[Hg]"}}
            for c, v in parts_
        ]  # fmt: skip
        await hooks.change("Observation", reading, component=component)
    pending = await hooks.worker.outbox.pending([patient])
    assert [(event.resource_type, event.version) for event in pending] == [
        ("Patient", 1), ("Observation", 1), ("Observation", 2), ("Observation", 3), ("Observation", 4),
    ]  # fmt: skip
    await hooks.settle()
    assert "hypertension-grade-2" in await hooks.tags(patient)
    assert not await hooks.tasks(patient, URGENT)


async def test_03_an_open_task_is_updated_not_doubled(hooks: Hooks) -> None:
    patient = await hooks.patient()
    first = await hooks.bp(patient, "185/115")
    await hooks.settle()
    (before,) = await hooks.tasks(patient, URGENT)
    assert before["focus"] == {"reference": f"Observation/{first}"}
    await hooks.change("Task", before["id"], owner={"reference": "Practitioner/wang"}, note=[{"text": "called"}])
    hooks.clock.advance(hours=1)
    second = await hooks.bp(patient, "190/118")
    await hooks.settle()
    (after,) = await hooks.tasks(patient, URGENT)
    assert after["id"] == before["id"]
    assert after["focus"] == {"reference": f"Observation/{second}"}
    assert after["authoredOn"] == before["authoredOn"]
    assert after["note"] == [{"text": "called"}], "what people wrote stays"
    assert after["owner"] == {"reference": "Practitioner/wang"}


async def test_03_priority_is_raised_never_lowered(hooks: Hooks) -> None:
    from fhir_server.automation.reconcile import higher

    assert [higher("routine", "stat"), higher("stat", "routine"), higher("urgent", "asap")] == ["stat", "stat", "asap"]
    patient = await hooks.patient()
    await hooks.bp(patient, "185/115")
    await hooks.settle()
    (task,) = await hooks.tasks(patient, URGENT)
    await hooks.change("Task", task["id"], priority="routine")  # a person's mistake
    hooks.clock.advance(minutes=5)
    await hooks.bp(patient, "187/115")
    await hooks.settle()
    (task,) = await hooks.tasks(patient, URGENT)
    assert task["priority"] == "stat"


async def test_03_hysteresis_set_and_clear_differ(hooks: Hooks) -> None:
    """Set at 120, cleared below 100, kept between: whatever the order of arrival."""
    plan = tag_rule("pulse", "%patient.exists()", "pulse-high")
    fact = [{"url": "name", "valueCode": "pulses"}, {"url": "unit", "valueCode": "/min"}]
    fact.append({"url": "aggregate", "valueCode": "all"})
    plan["action"][0]["input"] = [
        {
            "type": "Observation",
            "codeFilter": [{"path": "code", "code": [{"system": "http://loinc.org", "code": "8867-4"}]}],
            "extension": [{"url": structure("fact"), "extension": fact}],
        }
    ]
    plan["action"][0]["extension"].append(
        {"url": structure("hysteresis"), "extension": [
            {"url": "fact", "valueId": "pulses"},
            {"url": "set", "valueExpression": {"language": "text/fhirpath", "expression": "$this >= 120"}},
            {"url": "clear", "valueExpression": {"language": "text/fhirpath", "expression": "$this < 100"}}]}
    )  # fmt: skip
    await hooks.rule(plan)
    series = [("110", False), ("121", True), ("110", True), ("101", True), ("99", False), ("110", False)]
    for order in (1, -1):
        patient = await hooks.patient()
        for hour, (value, on) in list(enumerate(series))[::order]:
            await hooks.lab(patient, "8867-4", value, "/min", at=hooks.now(hours=hour - 10))
            await hooks.settle()
            if order == 1:
                assert ("pulse-high" in await hooks.tags(patient)) is on, value
        assert "pulse-high" not in await hooks.tags(patient)


async def test_04_an_amended_result_changes_what_it_caused(hooks: Hooks) -> None:
    patient = await hooks.patient()
    reading = await hooks.bp(patient, "185/115")
    await hooks.settle()
    assert "hypertension-grade-3" in await hooks.tags(patient)
    interpreted = await hooks.get("Observation", reading)
    assert interpreted and interpreted["interpretation"][0]["coding"][0]["code"] == "HH"
    await hooks.bp(patient, "135/85", id=reading, status="amended")
    await hooks.settle()
    assert "hypertension-grade-3" not in await hooks.tags(patient)
    (task,) = await hooks.tasks(patient, URGENT, open_only=False)
    assert task["status"] == "cancelled"
    assert task["statusReason"]["coding"][0]["code"] == "no-longer-applies"
    amended = await hooks.get("Observation", reading)
    assert amended and "interpretation" not in amended


@pytest.mark.parametrize("how", ["entered-in-error", "deleted", "moved"])
async def test_04_what_a_wrong_result_caused_is_undone(hooks: Hooks, how: str) -> None:
    patient, somebody = await hooks.patient(), await hooks.patient()
    creatinine = await hooks.lab(patient, "2160-0", "2.0", "mg/dL")
    reading = await hooks.bp(patient, "185/115")
    await hooks.settle()
    (egfr,) = [one for one in await hooks.all("Observation", patient) if one["code"]["coding"][0]["code"] == "98979-8"]
    assert egfr["status"] == "final"
    assert len(await hooks.tasks(patient, URGENT)) == 1
    for id in (creatinine, reading):
        if how == "deleted":
            await hooks.delete("Observation", id)
        elif how == "moved":
            await hooks.change("Observation", id, subject={"reference": f"Patient/{somebody}"})
        else:
            await hooks.change("Observation", id, status="entered-in-error")
    await hooks.settle()
    tags = await hooks.tags(patient)
    assert not any(tag.startswith(("hypertension-grade", "ckd")) for tag in tags)
    assert await hooks.tasks(patient) == []
    egfr_after = await hooks.get("Observation", egfr["id"])
    assert egfr_after and egfr_after["status"] == "entered-in-error"
    if how == "moved":
        assert "hypertension-grade-3" in await hooks.tags(somebody)
        assert len(await hooks.tasks(somebody, URGENT)) == 1


async def test_04_what_is_taken_back_within_one_batch_leaves_no_tag(hooks: Hooks) -> None:
    """The worker sees both events at once; the record has no tags before and none after."""
    patient = await hooks.patient()
    await hooks.settle()
    reading = await hooks.bp(patient, "185/115")
    await hooks.change("Observation", reading, status="entered-in-error")
    await hooks.settle()
    assert await hooks.tags(patient) == frozenset()
    assert await hooks.tasks(patient, URGENT) == []


async def test_04_what_was_derived_stays_in_sight_of_a_worker_that_begins_anew(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result comes and goes while another is being worked on: whoever takes over knows what followed from that one."""
    patient = await hooks.patient()
    await hooks.settle()
    await hooks.lab(patient, "2160-0", "3.75", "mg/dL")
    commit = hooks.worker._commit

    async def overtaken(results: Any) -> None:
        monkeypatch.undo()
        reading = await hooks.lab(patient, "2160-0", "5.3", "mg/dL", at=hooks.now(hours=-9))
        await hooks.change("Observation", reading, status="entered-in-error")
        await commit(results)

    monkeypatch.setattr(hooks.worker, "_commit", overtaken)
    await hooks.worker.work([patient])
    assert "ckd-g4" in await hooks.tags(patient)
    hooks.worker.forget([patient])
    await hooks.settle()
    assert "ckd-g4" in await hooks.tags(patient)
    assert await hooks.tasks(patient, "nephrology-referral")


async def test_04_a_correction_of_a_correction_brings_it_back(hooks: Hooks) -> None:
    patient = await hooks.patient()
    reading = await hooks.bp(patient, "185/115")
    await hooks.settle()
    (first,) = await hooks.tasks(patient, URGENT)
    await hooks.change("Observation", reading, status="entered-in-error")
    await hooks.settle()
    await hooks.change("Observation", reading, status="final")
    await hooks.settle()
    (again,) = await hooks.tasks(patient, URGENT)
    assert again["id"] == first["id"] and "statusReason" not in again


async def test_05_late_data_enter_the_tags_but_raise_no_alarm(hooks: Hooks) -> None:
    patient = await hooks.patient()
    await hooks.bp(patient, "190/120", at=hooks.now(days=-30))
    await hooks.settle()
    assert "hypertension-grade-3" in await hooks.tags(patient)
    assert await hooks.tasks(patient, URGENT) == []
    await hooks.bp(patient, "150/95", at="2019-05-01")
    await hooks.settle()
    assert "hypertension-grade-3" in await hooks.tags(patient), "the newest by its own time decides"


async def test_05_an_open_alarm_outlives_the_span_it_may_be_raised_in(hooks: Hooks) -> None:
    patient = await hooks.patient()
    await hooks.bp(patient, "190/120")
    await hooks.settle()
    hooks.clock.advance(days=3)
    await hooks.condition(patient, "I10")
    await hooks.settle()
    assert len(await hooks.tasks(patient, URGENT)) == 1


async def test_06_missing_is_not_false(hooks: Hooks) -> None:
    patient = await hooks.patient(sex="female", birth="1976-01-01")
    await hooks.lab(patient, "2093-3", "200", "mg/dL")
    await hooks.bp(patient, "120/70")
    await hooks.settle()
    assert [one for one in await hooks.all("RiskAssessment", patient) if "prevent-base-10y" in str(one["method"])] == []
    asked = await hooks.tasks(patient, "collect-missing-inputs")
    (task,) = [one for one in asked if "/assess-prevent-base-10y|" in one["instantiatesCanonical"]]
    assert "Smokes now" in task["description"] and "HDL cholesterol" in task["description"]


async def test_07_units_are_converted_or_refused(hooks: Hooks) -> None:
    """14771-0 is glucose in moles; sent in mg/dL it is converted, sent in a unit of another dimension it is nothing."""
    moles, mass, nonsense = await hooks.patient(), await hooks.patient(), await hooks.patient()
    await hooks.lab(moles, "14771-0", "7.2", "mmol/L")
    await hooks.lab(mass, "14771-0", "129.7", "mg/dL")
    await hooks.lab(nonsense, "14771-0", "7.2", "mm[Hg]")
    await hooks.settle()
    assert "diabetes-range-glucose" in await hooks.tags(moles)
    assert await hooks.tags(mass) == await hooks.tags(moles)
    assert await hooks.tags(nonsense) == frozenset()


async def test_08_every_derived_resource_has_its_provenance_and_explains_itself(hooks: Hooks) -> None:
    patient = await hooks.patient()
    reading = await hooks.bp(patient, "185/115")
    await hooks.lab(patient, "2160-0", "2.0", "mg/dL")
    event = (await hooks.worker.outbox.pending([patient]))[1]
    await hooks.settle()
    derived = [
        f"{one['resourceType']}/{one['id']}"
        for kind in ("Task", "RiskAssessment", "Flag", "Observation")
        for one in await hooks.all(kind, patient)
        if any(i["system"].endswith("/automation") for i in one.get("identifier", ()))
    ]
    assert len(derived) >= 3
    for reference in (*derived, f"Patient/{patient}"):
        assert await hooks.provenance(reference), reference
    (task,) = await hooks.tasks(patient, URGENT)
    told = await hooks.operation(f"Task/{task['id']}/$explain")
    (explanation,) = parts(told, "explanation")
    said = {one["name"]: one for one in explanation}
    assert said["rule"]["valueCanonical"] == "https://fhir-server.org/fhir/PlanDefinition/hypertension-follow-up|1.0.0"
    assert said["event"]["valueString"] == event.id
    assert said["input"]["valueReference"]["reference"] == f"Observation/{reading}"
    saw = [one["part"] for one in explanation if one["name"] == "condition"]
    assert any({"name": "saw", "valueString": "any_sbp = 185, any_dbp = 115"} in part for part in saw)
    tags = await hooks.operation(f"Patient/{patient}/$explain")
    assert any("hypertension-grade-3" in str(one) for one in parts(tags, "explanation"))
    await hooks.operation(f"Observation/{reading}/$explain", expect=404)


async def test_09_a_version_is_never_overwritten_and_old_work_still_names_it(hooks: Hooks) -> None:
    plan = tag_rule("versioned", "%patient.birthDate = '1911-11-11'", "versioned-one")
    await hooks.rule(plan)
    patient = await hooks.patient(birth="1911-11-11")
    await hooks.settle()
    changed = tag_rule("versioned", "%patient.birthDate = '1911-11-11'", "versioned-two")
    answer = await hooks.http.put("PlanDefinition/versioned", json=changed)
    assert answer.status_code == 422 and "new version" in answer.text
    await hooks.rule({**changed, "version": "1.1.0"})
    answer = await hooks.http.put("PlanDefinition/versioned", json=plan)
    assert answer.status_code == 422 and "go back" in answer.text
    (provenance,) = await hooks.provenance(f"Patient/{patient}")
    assert provenance["policy"] == ["https://example.org/PlanDefinition/versioned|1.0.0"]
    assert "versioned-one" in await hooks.tags(patient), "what 1.0.0 did stands until something happens"
    await hooks.change("Patient", patient, active=True)
    await hooks.settle()
    assert await hooks.tags(patient) >= {"versioned-two"} and "versioned-one" not in await hooks.tags(patient)
    (now,) = await hooks.provenance(f"Patient/{patient}")
    assert now["policy"] == ["https://example.org/PlanDefinition/versioned|1.1.0"]


async def test_09_a_rule_that_does_not_compile_is_refused_with_every_reason(hooks: Hooks) -> None:
    plan = tag_rule("broken", "%weight > 80 and", "broken")
    plan["action"][0]["trigger"].append({"type": "data-accessed", "data": [{"type": "Patient"}]})
    plan["library"] = ["https://example.org/Library/none"]
    answer = await hooks.http.put("PlanDefinition/broken", json=plan)
    assert answer.status_code == 422
    said = answer.text
    assert "Library/none is not known" in said and "data-accessed" in said and "condition[0]" in said
    unknown = await hooks.http.put("PlanDefinition/broken", json=tag_rule("broken", "%weight > 80", "broken"))
    assert unknown.status_code == 422 and "%weight is neither a fact" in unknown.text


async def test_10_dry_run_says_who_would_match_and_backfill_does_it(hooks: Hooks) -> None:
    patients = [await hooks.patient(birth="1901-01-01") for _ in range(3)]
    await hooks.settle()
    draft = tag_rule("elders", "%age > 120", "elder")
    await hooks.rule({**draft, "status": "draft"})
    told = await hooks.operation("PlanDefinition/elders/$dry-run")
    assert parts(told, "matched") == [3]
    assert {one["reference"] for one in parts(told, "example")} == {f"Patient/{id}" for id in patients}
    assert "elder" not in await hooks.tags(patients[0]), "nothing was written"
    await hooks.rule(draft)
    assert "elder" not in await hooks.tags(patients[0]), "a new rule waits for something to happen"
    told = await hooks.operation("PlanDefinition/elders/$backfill", post={"rate": {"valueDecimal": 10_000}}, expect=202)
    assert parts(told, "patients")[0] >= 3
    await hooks.worker.backfills.finished()
    await hooks.settle()
    assert [("elder" in await hooks.tags(id)) for id in patients] == [True] * 3
    await hooks.rule({**draft, "status": "retired"})
    await hooks.operation("PlanDefinition/elders/$backfill", post={"rate": {"valueDecimal": 10_000}}, expect=202)
    await hooks.worker.backfills.finished()
    await hooks.settle()
    assert [("elder" in await hooks.tags(id)) for id in patients] == [False] * 3, "a retired rule cleans up"


async def test_10_dry_run_counts_tasks_over_history(hooks: Hooks) -> None:
    patient = await hooks.patient()
    for days in (-300, -200, -100):
        await hooks.bp(patient, "190/115", at=hooks.now(days=days))
    told = await hooks.operation(f"PlanDefinition/hypertension-follow-up/$dry-run?since={hooks.now(days=-250)[:10]}")
    whats = {one[1]["valueString"]: one for one in parts(told, "outcome") if one[0]["valueCode"] == "Task"}
    assert URGENT in whats, "a reading that was new then would have raised the alarm then"
    assert await hooks.tasks(patient) == []


async def test_10_apply_shows_what_would_be_proposed(hooks: Hooks) -> None:
    patient = await hooks.patient()
    await hooks.bp(patient, "190/115")
    plan = await hooks.operation(f"PlanDefinition/hypertension-follow-up/$apply?subject=Patient/{patient}")
    assert plan["resourceType"] == "CarePlan" and plan["status"] == "draft"
    kinds = [one["resourceType"] for one in plan["contained"]]
    assert kinds == ["Task", "Task", "RequestGroup"] and plan["contained"][0]["priority"] == "stat"
    assert await hooks.tasks(patient) == []
    await hooks.settle()


def _python(hooks: Hooks, *rules: Rule) -> Worker:
    worker = hooks.worker
    worker._python = rules
    worker.book = Rulebook(worker.book.definitions, rules)
    return worker


async def test_11_a_rule_that_raises_holds_nobody_up(hooks: Hooks) -> None:
    broken = True

    @api.rule(
        url="https://example.org/rules/raises",
        version="1.0.0",
        facts=[api.Fact("bp", codes=["http://loinc.org|85354-9"])],
    )
    def raises(facts: Facts) -> Any:
        if broken:
            raise RuntimeError("out of luck")
        yield api.Tag(PATIENT_TAGS, "lucky")

    worker = _python(hooks, raises)
    patient = await hooks.patient()
    await hooks.bp(patient, "185/115")
    await hooks.settle()
    assert "hypertension-grade-3" in await hooks.tags(patient), "the others are done at once"
    assert await worker.outbox.pending([patient]) == []
    for _ in range(ATTEMPTS):
        await hooks.pass_time(minutes=10)
    status = await hooks.operation("$hook-status")
    (letter,) = parts(status, "deadLetter")
    said = {one["name"]: next(v for k, v in one.items() if k.startswith("value")) for one in letter}
    assert said["rule"] == raises.url and "out of luck" in said["error"] and said["attempts"] == ATTEMPTS
    broken = False
    assert parts(await hooks.operation("$hook-retry", post={"rule": {"valueString": raises.url}}), "retried") == [1]
    await hooks.settle()
    assert "lucky" in await hooks.tags(patient)
    assert parts(await hooks.operation("$hook-status"), "deadLetters") == [0]
    _python(hooks)


async def test_11_a_rule_that_sleeps_holds_nobody_up(hooks: Hooks) -> None:
    @api.rule(
        url="https://example.org/rules/sleeps",
        version="1.0.0",
        facts=[api.Fact("bp", codes=["http://loinc.org|85354-9"], component="http://loinc.org|8480-6")],
    )
    def sleeps(facts: Facts) -> Any:
        if facts.find("bp").sources:
            time.sleep(0.5)
            yield api.Tag(PATIENT_TAGS, "slept-well")

    worker = _python(hooks, sleeps)
    patients = [await hooks.patient() for _ in range(3)]
    await hooks.settle()
    for patient in patients:
        await hooks.bp(patient, "185/115")
    await worker.work(patients)
    for patient in patients:
        tags = await hooks.tags(patient)
        assert "hypertension-grade-3" in tags and "slept-well" not in tags, "nobody waits for it"
    await hooks.settle()
    for patient in patients:
        assert "slept-well" in await hooks.tags(patient)
    _python(hooks)


async def test_11_a_result_that_cannot_be_stored_is_the_rules_failure(hooks: Hooks) -> None:
    @api.rule(
        url="https://example.org/rules/invalid",
        version="1.0.0",
        facts=[api.Fact("bp", codes=["http://loinc.org|85354-9"])],
    )
    def invalid(facts: Facts) -> Any:
        yield api.Propose("nonsense", {"resourceType": "Task", "status": "sleeping", "intent": "order"})

    _python(hooks, invalid)
    patient = await hooks.patient()
    await hooks.bp(patient, "185/115")
    await hooks.settle()
    assert "hypertension-grade-3" in await hooks.tags(patient)
    assert len(await hooks.tasks(patient, URGENT)) == 1
    assert hooks.worker.metrics.failed[invalid.url] >= 1
    _python(hooks)
    await hooks.worker.reload()


async def test_12_a_loop_stops_with_a_task(hooks: Hooks) -> None:
    """A rule that undoes its own reason: the tag makes it false, its absence makes it true."""
    plan = tag_rule("loop", "%patient.birthDate = '1922-02-22' and ('loop' in %tags).not()", "loop")
    await hooks.rule(plan)
    patient = await hooks.patient(birth="1922-02-22")
    await hooks.settle()
    (task,) = [one for one in await hooks.all("Task", patient) if one["code"]["coding"][0]["code"] == "loop"]
    assert task["priority"] == "urgent" and task["status"] == "requested"
    stored = await hooks.server.store.read("Patient", patient)
    assert stored is not None and stored.version < 12
    await hooks.rule({**plan, "status": "retired"})


async def test_12_derived_resources_carry_their_cause(hooks: Hooks) -> None:
    patient = await hooks.patient()
    await hooks.bp(patient, "185/115")
    reason = (await hooks.worker.outbox.pending([patient]))[-1]
    events: list[Event] = []
    hooks.server.committed.append(events.extend)
    await hooks.worker.work([patient])
    hooks.server.committed.remove(events.extend)
    rule = "https://fhir-server.org/fhir/PlanDefinition/hypertension-follow-up|1.0.0"
    assert Cause((reason.id,), rule, DEVICE) in {event.cause for event in events if event.resource_type == "Task"}
    await hooks.settle()


async def test_13_nothing_happened_is_an_event_too(hooks: Hooks) -> None:
    """The ladder of missing readings, through due times in the database; also over a restart."""
    patient = await hooks.patient()
    detail = {"status": "in-progress", "code": {"coding": [{"system": "http://loinc.org", "code": "85354-9"}]}}
    subject = {"reference": f"Patient/{patient}"}
    await hooks.put(
        {"resourceType": "CarePlan", "id": f"plan-{patient}", "status": "active", "intent": "plan", "subject": subject,
         "activity": [{"detail": detail}]}
    )  # fmt: skip
    await hooks.bp(patient, "130/80")
    await hooks.settle()
    assert await hooks.worker.ledgers.next_due() is not None
    await hooks.pass_time(days=3, hours=1)
    assert len(await hooks.all("CommunicationRequest", patient)) == 1
    fresh = Worker(hooks.server)  # another process, with an empty memory
    await fresh.open()
    hooks.clock.advance(days=6)
    await hooks.worker.ledgers.release(hooks.worker.name)
    assert await fresh.tick() >= 1
    assert await hooks.worker.tick() == 0, "each due time fires once, whoever is faster"
    await fresh.settle()
    (call,) = await hooks.tasks(patient, "bp-nurse-call")
    assert "monitoring-lapsed" in await hooks.tags(patient)
    await fresh.stop()
    hooks.worker.forget([patient])
    await hooks.pass_time(days=2, hours=1)
    (decision,) = await hooks.tasks(patient, "bp-doctor-decides")
    await hooks.bp(patient, "128/78")
    await hooks.settle()
    assert "monitoring-lapsed" not in await hooks.tags(patient)
    assert {(await hooks.get("Task", one["id"]))["status"] for one in (call, decision)} == {"cancelled"}  # type: ignore[index]


async def test_14_await_hooks_returns_when_everything_is_done(hooks: Hooks) -> None:
    patient = await hooks.patient()
    await hooks.bp(patient, "185/115")
    answer = await hooks.http.get("$await-hooks?timeout=0.05")
    assert answer.status_code == 503, "nobody works yet"
    hooks.worker.start()
    try:
        for value in ("186/115", "140/90", "187/115"):
            await hooks.bp(patient, value)
        told = await hooks.operation("$await-hooks")
        assert parts(told, "waited")
        assert await hooks.worker.outbox.pending([patient]) == []
        assert len(await hooks.tasks(patient, URGENT)) == 1
    finally:
        for task in hooks.worker._tasks:
            task.cancel()
        await asyncio.gather(*hooks.worker._tasks, return_exceptions=True)
        hooks.server.written.remove(hooks.worker.written)


async def test_15_automation_writes_as_itself(hooks: Hooks) -> None:
    patient = await hooks.patient()
    await hooks.bp(patient, "185/115")
    await hooks.settle()
    (task,) = await hooks.tasks(patient, URGENT)
    assert task["requester"] == {"reference": DEVICE}
    assert await hooks.get("Device", "automation")
    (provenance,) = await hooks.provenance(f"Task/{task['id']}")
    assert provenance["agent"][0]["who"]["reference"] == DEVICE


@pytest.mark.parametrize(
    ("proposed", "why"),
    [
        (
            {
                "resourceType": "Task",
                "status": "requested",
                "intent": "order",
                "for": {"reference": "Patient/somebody"},
            },
            "for",
        ),
        (
            {"resourceType": "Flag", "status": "active", "code": {}, "subject": {"reference": "Patient/somebody"}},
            "subject",
        ),
        ({"resourceType": "Condition", "subject": {"reference": "Patient/somebody"}}, "not Condition"),
        ({"resourceType": "PlanDefinition", "status": "active"}, "not PlanDefinition"),
        (api.Interpretation(("Observation", "of-somebody"), {"code": "HH"}), "not in the record"),
    ],
    ids=str,
)
async def test_15_a_rule_keeps_to_its_patient_and_to_what_automation_writes(
    hooks: Hooks, proposed: Any, why: str
) -> None:
    @api.rule(
        url="https://example.org/rules/strays",
        version="1.0.0",
        facts=[api.Fact("bp", codes=["http://loinc.org|85354-9"])],
    )
    def strays(facts: Facts) -> Any:
        yield api.Propose("strays", proposed) if isinstance(proposed, dict) else proposed

    await hooks.put({"resourceType": "Patient", "id": "somebody"})
    await hooks.observe("somebody", "718-7", id="of-somebody")
    await hooks.settle()
    _python(hooks, strays)
    patient = await hooks.patient()
    await hooks.bp(patient, "185/115")
    await hooks.settle()
    assert "hypertension-grade-3" in await hooks.tags(patient)
    assert hooks.worker.metrics.failed[strays.url] >= 1
    for resource_type in ("Task", "Flag", "Condition"):
        assert await hooks.all(resource_type, "somebody") == []
    assert "interpretation" not in (await hooks.get("Observation", "of-somebody") or {})
    for _ in range(ATTEMPTS):
        await hooks.pass_time(minutes=10)
    letters = [str(letter) for letter in parts(await hooks.operation("$hook-status"), "deadLetter")]
    assert any(why in letter for letter in letters)
    await hooks.operation("$hook-retry", post={"rule": {"valueString": strays.url}})
    _python(hooks)
    await hooks.settle()
    await hooks.worker.reload()


async def test_16_figures(hooks: Hooks) -> None:
    patient = await hooks.patient()
    await hooks.bp(patient, "185/115")
    status = await hooks.operation("$hook-status")
    assert parts(status, "queueDepth")[0] >= 2
    hooks.clock.advance(seconds=2)
    await hooks.settle()
    status = await hooks.operation("$hook-status")
    assert parts(status, "queueDepth") == [0] and parts(status, "lagMedian") and parts(status, "lagP99")
    rules = {part[0]["valueCanonical"]: part[1]["valueInteger"] for part in parts(status, "rule")}
    assert rules["https://fhir-server.org/fhir/PlanDefinition/hypertension-follow-up|1.0.0"] >= 1
    text = (await hooks.http.get("http://test/metrics")).text
    assert 'fhir_hooks_firings_total{type="Task"}' in text
    assert "hypertension" not in text, "no token is asked for it"
    assert "fhir_hooks_lag_seconds_bucket" in text and "fhir_hooks_queue_depth" in text

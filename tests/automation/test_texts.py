"""What people read of derived resources: each language speaks its own, with names from the content."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from fhir_server.automation import content
from fhir_server.automation.cases import Case, run
from fhir_server.automation.definitions import Definitions
from fhir_server.automation.plans import check
from fhir_server.automation.risk.specification import chinese
from fhir_server.automation.rulebook import Rulebook
from fhir_server.model.resource import Resource

KNOWN = content.definitions()
TRANSLATION = "http://hl7.org/fhir/StructureDefinition/translation"


def named(url: str) -> Resource:
    found = KNOWN.find(f"https://fhir-server.org/fhir/{url}")
    assert found is not None
    return deepcopy(found)


def translated(chinese: str) -> Resource:
    return {"extension": [{"url": TRANSLATION, "extension": [
        {"url": "lang", "valueCode": "zh"}, {"url": "content", "valueString": chinese}]}]}  # fmt: skip


def reasons(rule: Resource, *changed: Resource) -> list[str]:
    replaced = {one["url"] for one in changed}
    others = (one for kind in ("Library", "ActivityDefinition", "ValueSet") for one in KNOWN.all(kind))
    definitions = Definitions([*(one for one in others if one["url"] not in replaced), *changed])
    return [issue.diagnostics for issue in check(rule, definitions)]


def fact_of(rule: Resource) -> list[Any]:
    """The parts of the fact `acr`, which an action of kidney-risk requires."""
    parts: list[Any] = rule["action"][1]["input"][0]["extension"][0]["extension"]
    assert parts[0] == {"url": "name", "valueCode": "acr"}
    return parts


def test_a_required_fact_needs_both_names_where_a_task_asks_for_it() -> None:
    rule = named("PlanDefinition/kidney-risk")
    assert reasons(rule) == []
    del fact_of(rule)[1]["_valueString"]
    assert any("%acr has no English or no Chinese name" in why for why in reasons(rule))
    del fact_of(rule)[1]
    assert any("%acr has no English or no Chinese name" in why for why in reasons(rule))
    rule["action"][1]["extension"] = [
        one for one in rule["action"][1]["extension"] if not one["url"].endswith("missing")
    ]
    assert reasons(rule) == []  # nobody is asked


@pytest.mark.parametrize("name", ["documentation", "_documentation"])
def test_an_input_of_a_score_needs_both_names_where_a_task_asks_for_it(name: str) -> None:
    library = named("Library/china-par-10y")
    input = next(one for one in library["parameter"] if one["name"] == "waist_cm")
    del input[name]
    why = reasons(named("PlanDefinition/assess-china-par-10y"), library)
    assert any("waist_cm no English or no Chinese name" in one for one in why)
    assert reasons(named("PlanDefinition/assess-score2"), library) == []


def played(description: str, chinese: str, expected: dict[str, Any], *libraries: Resource) -> list[str]:
    """kidney-risk with other words for what is missing, on an eGFR of 50 alone."""
    activity = named("ActivityDefinition/collect-missing-inputs")
    activity.update(description=description, _description=translated(chinese))
    replaced = {one["url"] for one in libraries}
    others = (one for kind in ("Library", "ValueSet") for one in KNOWN.all(kind) if one["url"] not in replaced)
    book = Rulebook(Definitions([*others, *libraries, activity, named("PlanDefinition/kidney-risk")]))
    egfr = {"code": "98979-8", "value": "50 mL/min/{1.73_m2}", "at": "-1 h"}
    body = {"given": [{"patient": {"age": 50}}], "when": [{"observation": egfr}], "then": {"tasks": [expected]}}
    return run(Case(Path("-"), "-", (), body), book).problems


def test_each_language_has_its_own_names_and_can_be_asserted() -> None:
    texts = ("Ask for {%missing}.", "请补充{%missing}。")
    assert (
        played(*texts, {"text": "Ask for Urine albumin to creatinine ratio.", "zh": "请补充尿白蛋白/肌酐比值。"}) == []
    )
    for wrong in ({"text": "尿白蛋白"}, {"zh": "Urine"}, {"text": "acr"}, {"zh": "acr"}):
        assert any("nothing matches" in problem for problem in played(*texts, wrong)), wrong


def test_a_focus_is_called_as_the_facts_call_it() -> None:
    texts = ("Look at {%focus_name}", "请看{%focus_name}")
    assert played(*texts, {"text": "Look at –", "zh": "请看–"}) == []  # neither the facts nor its sender name it
    library = named("Library/facts-kidney")
    for requirement in library["dataRequirement"]:
        requirement["extension"][0]["extension"].append(
            {"url": "display", "valueString": "eGFR", "_valueString": translated("肾小球滤过率")}
        )
    assert played(*texts, {"text": "Look at eGFR", "zh": "请看肾小球滤过率"}, library) == []


def test_a_critical_value_is_told_with_its_name_number_and_unit_in_both_languages() -> None:
    book = content.book_of(KNOWN, ["critical-values"])
    body = {
        "given": [{"patient": {"age": 50}}],
        "when": [{"observation": {"code": "2823-3", "value": "6.5 mmol/L", "at": "-1 h"}}],
        "then": {"tasks": [{"text": "Critical value of Potassium: 6.5 mmol/L.", "zh": "危急值：血钾 6.5 mmol/L。"}]},
    }
    assert run(Case(Path("-"), "-", (), body), book).problems == []


def test_a_task_that_is_withdrawn_says_why_in_both_languages() -> None:
    book = content.book_of(KNOWN, ["critical-values"])
    potassium = {"code": "2823-3", "value": "6.5 mmol/L", "at": "-1 h", "id": "k"}
    steps = [{"observation": potassium}, {"correct": "k", "status": "entered-in-error"}]
    verdict = run(
        Case(Path("-"), "-", (), {"given": [{"patient": {"age": 50}}], "when": steps, "then": {"tasks": []}}), book
    )
    assert verdict.problems == [] and verdict.world is not None
    (task,) = verdict.world.resources("Task")
    assert task["statusReason"]["text"] == "The findings that led to it no longer hold"
    assert chinese(task["statusReason"], "text") == "所依据的结果已不再成立"

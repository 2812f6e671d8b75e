"""The content as a whole: rules compile and pass their cases, texts are in two languages, codes exist, the report is current."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fhir_server.automation import cases as played
from fhir_server.automation import content
from fhir_server.automation.plans import is_rule
from fhir_server.automation.vocabulary import BASE, PATIENT_TAGS, extension, part
from fhir_server.model.content import files
from fhir_server.model.resource import Resource

ROOT = Path(__file__).parents[2]
TRANSLATED = ("title", "description", "documentation", "text")  # where a Chinese text stands beside the English one
FOLLOW_UPS = ("tasks", "flags", "messages", "resources")  # what is made from an ActivityDefinition, as cases call it
UNSURE = {"secondary", "unconfirmed", "default"}


@cache
def resources() -> tuple[Resource, ...]:
    return tuple(file.resource for file in content.content())


RULES = [one for one in resources() if is_rule(one)]
SCORES = [one for one in resources() if extension(one, "score") is not None]
CASES = [case for path in content.case_files() for case in played.cases(path)]


def codings(element: Any) -> Iterator[tuple[str, str]]:
    """(system, code) of every Coding, wherever it stands."""
    if isinstance(element, dict):
        if isinstance(element.get("system"), str) and isinstance(element.get("code"), str):
            yield element["system"], element["code"]
        for item in element.values():
            yield from codings(item)
    elif isinstance(element, list):
        for item in element:
            yield from codings(item)


def concepts(code_system: Resource) -> Iterator[Resource]:
    for concept in code_system.get("concept", ()):
        yield concept
        yield from concepts(concept)


def chinese(element: Resource, name: str) -> bool:
    extensions = element.get(f"_{name}", {}).get("extension", ())
    return any(part(one, "lang") == "zh" and part(one, "content") for one in extensions)


def test_the_content_is_in_order() -> None:
    """Canonicals resolve, rules compile, every case passes, every active rule has one."""
    assert content.check() == []


@pytest.mark.parametrize("rule", RULES, ids=lambda one: one["id"])
def test_every_rule_has_cases_for_and_against(rule: Resource) -> None:
    if rule.get("status") == "draft":
        pytest.skip("switched off")
    mine = [case for case in CASES if rule["id"] in case.rules]
    assert any(any(case.body.get("then", {}).values()) for case in mine), "no case in which something follows"
    assert any(case.body.get("not") for case in mine), "no case in which something must not follow"


@pytest.mark.parametrize("side", ["then", "not"])
def test_every_tag_and_every_follow_up_has_a_case_for_and_a_case_against_it(side: str) -> None:
    said = [case.body.get(side, {}) for case in CASES]
    tags = next(one for one in resources() if one.get("url") == PATIENT_TAGS)
    assert {concept["code"] for concept in concepts(tags)} - {
        tag for one in said for tag in one.get("tags", ())
    } == set()
    asserted = {item.get("activity") for one in said for name in FOLLOW_UPS for item in one.get(name, ())}
    made = {one["id"] for one in resources() if one["resourceType"] == "ActivityDefinition"}
    assert made - asserted == set()


@pytest.mark.parametrize("resource", [*RULES, *SCORES], ids=lambda one: one["id"])
def test_what_is_not_verified_says_so(resource: Resource) -> None:
    found = extension(resource, "verification")
    assert found is not None
    status, note = part(found, "status"), part(found, "note")
    assert status in {"verified", "recomputed", *UNSURE}
    assert note
    assert resource.get("relatedArtifact")
    assert resource.get("copyright")
    if status == "unconfirmed":
        assert resource["experimental"] is True


@pytest.mark.parametrize("resource", resources(), ids=lambda one: f"{one['resourceType']}-{one['id']}")
def test_texts_are_in_two_languages(resource: Resource) -> None:
    kind = resource["resourceType"]
    if kind in ("PlanDefinition", "Questionnaire", "ActivityDefinition", "Library", "CodeSystem", "ValueSet"):
        assert chinese(resource, "title")
    if kind == "ActivityDefinition":
        assert chinese(resource, "description")
    if kind == "CodeSystem":
        for concept in concepts(resource):
            assert any(one.get("language") == "zh" for one in concept.get("designation", ())), concept["code"]
    if kind == "Questionnaire":
        for item in resource["item"]:
            assert chinese(item, "text"), item["linkId"]


def test_every_tag_is_given_by_a_rule() -> None:
    tags = next(one for one in resources() if one.get("url") == PATIENT_TAGS)
    given = {code for rule in RULES for system, code in codings(rule) if system == PATIENT_TAGS}
    assert {concept["code"] for concept in concepts(tags)} == given


def test_every_score_is_computed_by_a_rule() -> None:
    asked = {
        part(one, "code")
        for rule in RULES
        for one in _extensions(rule)
        if one.get("url") == f"{BASE}/StructureDefinition/assess"
    }
    assert asked == {part(extension(one, "score") or {}, "code") for one in SCORES}


def _extensions(element: Any) -> Iterator[Resource]:
    if isinstance(element, dict):
        yield from element.get("extension", ())
        for item in element.values():
            yield from _extensions(item)
    elif isinstance(element, list):
        for item in element:
            yield from _extensions(item)


def test_every_extension_of_ours_is_defined() -> None:
    prefix = f"{BASE}/StructureDefinition/"
    used = {one["url"] for resource in resources() for one in _extensions(resource) if one["url"].startswith(prefix)}
    assert used - {one["url"] for one in resources() if one["resourceType"] == "StructureDefinition"} == set()


def test_the_page_about_the_content_is_current() -> None:
    """`fhir-server content report --output docs/content.md` writes it."""
    assert (ROOT / "docs" / "content.md").read_text(encoding="utf-8") == content.report()


def test_what_has_no_license_is_not_here() -> None:
    names = {path.stem.lower() for name in ("resources", "terminology") for path in files(name)}
    assert not {
        name for name in names if any(word in name for word in ("stop-bang", "psqi", "mmas", "moca", "mmse", "qrisk"))
    }


CHINESE = re.compile(r"[\u4e00-\u9fff]")
HOLE = re.compile(r"\{%[^{}]+\}")


def translations(element: Any) -> Iterator[tuple[str, str]]:
    """(text, its Chinese translation) of everything that has one."""
    if isinstance(element, dict):
        for name, beside in element.items():
            if name.startswith("_") and chinese(element, name[1:]):
                (said,) = (one for one in beside["extension"] if part(one, "lang") == "zh")
                yield str(element.get(name[1:], "")), str(part(said, "content"))
            yield from translations(beside)
    elif isinstance(element, list):
        for item in element:
            yield from translations(item)


def test_each_language_is_itself_and_both_say_the_same_numbers() -> None:
    found = [pair for one in resources() for pair in translations(one)]
    assert len(found) > 500
    for text, said in found:
        assert CHINESE.search(said) and not CHINESE.search(text), (text, said)
        assert sorted(HOLE.findall(said)) == sorted(HOLE.findall(text)), (text, said)

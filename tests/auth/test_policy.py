"""The policy as a table: policy.yaml. Each row is asked both ways, one resource at a time and as a search's restriction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fhir_server.auth.labels import CONFIDENTIALITY
from fhir_server.auth.policy import NEED_A_TOKEN, NEEDS, Policy, Principal
from fhir_server.auth.scopes import resource_scopes, split
from fhir_server.errors import Forbidden, Unauthorized
from fhir_server.model.resource import dump
from fhir_server.operations import OPERATIONS
from fhir_server.search.index import index
from fhir_server.search.registry import standard
from fhir_server.store.protocol import Stored

TABLE = yaml.safe_load((Path(__file__).parent / "policy.yaml").read_text())
POLICY = Policy()


def principal_of(who: dict[str, Any]) -> Principal:
    patients = who.get("patients", [])
    role = who.get("role")
    default_user = f"Patient/{patients[0]}" if role == "patient" and patients != "all" else None
    principal = Principal(
        subject="somebody",
        client_id="app",
        scopes=resource_scopes(split(who["scopes"])),
        patient=who.get("patient"),
        fhir_user=who.get("fhir_user", default_user),
        roles=frozenset([role] if role else []),
        patients=None if patients == "all" else frozenset(patients),
        excluded=frozenset(who.get("excluded", ())),
        clearance=who.get("clearance", "N"),
    )
    return principal.breaking_glass(who["purpose"]) if "purpose" in who else principal


def stored_of(question: dict[str, Any], resource_type: str) -> Stored:
    resource: dict[str, Any] = {"resourceType": resource_type, "id": "x", "meta": {}}
    if "label" in question:
        resource["meta"]["security"] = [{"system": CONFIDENTIALITY, "code": question["label"]}]
    if "category" in question:
        resource["category"] = [{"coding": [{"code": question["category"]}]}]
    entries = index(standard(), resource).entries
    return Stored(resource_type, "x", 1, 0, dump(resource), patients=tuple(question["of"]), entries=entries)


def questions(kind: str) -> list[Any]:
    return [
        pytest.param(row["who"], question, id=f"{row['name']}: {question}")
        for row in TABLE
        for question in row.get(kind, ())
    ]


def asked(question: dict[str, Any]) -> tuple[str, Any]:
    return next(iter(question.items()))


@pytest.mark.parametrize(("who", "question"), questions("sees"))
def test_sees(who: dict[str, Any], question: dict[str, Any]) -> None:
    interaction, resource_type = asked(question)
    principal, stored = principal_of(who), stored_of(question, resource_type)
    POLICY.may(principal, interaction, resource_type)
    assert POLICY.sees(principal, interaction, stored)
    assert POLICY.sees(principal, interaction, replace(stored, entries={})), "entries are made where they are missing"
    assert POLICY.restrict(principal, interaction)(resource_type).allows(stored.patients, stored.entries)


@pytest.mark.parametrize(("who", "question"), questions("hidden"))
def test_hidden(who: dict[str, Any], question: dict[str, Any]) -> None:
    interaction, resource_type = asked(question)
    principal, stored = principal_of(who), stored_of(question, resource_type)
    assert not POLICY.sees(principal, interaction, stored)
    assert not POLICY.sees(principal, interaction, replace(stored, entries={}))
    assert not POLICY.restrict(principal, interaction)(resource_type).allows(stored.patients, stored.entries)


@pytest.mark.parametrize(("who", "question"), questions("refused"))
def test_refused(who: dict[str, Any], question: dict[str, Any]) -> None:
    interaction, resource_type = asked(question)
    principal = principal_of(who)
    with pytest.raises(Forbidden):
        POLICY.may(principal, interaction, resource_type)
    if resource_type and interaction in ("read", "search"):
        assert POLICY.restrict(principal, interaction)(resource_type).nothing
        assert not POLICY.sees(principal, interaction, stored_of({"of": ["p1"]}, resource_type))


@pytest.mark.parametrize(("who", "question"), questions("allowed"))
def test_allowed(who: dict[str, Any], question: dict[str, Any]) -> None:
    POLICY.may(principal_of(who), *asked(question))


@pytest.mark.parametrize(("who", "question"), questions("writes"))
def test_writes(who: dict[str, Any], question: dict[str, Any]) -> None:
    interaction, resource_type = asked(question)
    principal = principal_of(who)
    POLICY.may(principal, interaction, resource_type)
    stored = stored_of(question, resource_type)
    # What replaces nothing is a create, too.
    POLICY.check_write(principal, interaction, stored, None if interaction == "create" else stored)


@pytest.mark.parametrize(("who", "question"), questions("cannot"))
def test_cannot_write(who: dict[str, Any], question: dict[str, Any]) -> None:
    interaction, resource_type = asked(question)
    with pytest.raises(Forbidden, match="reach"):
        POLICY.check_write(principal_of(who), interaction, stored_of(question, resource_type))


def test_nobody_is_told_to_log_in() -> None:
    with pytest.raises(Unauthorized) as refused:
        POLICY.may(Principal.nobody(), "read", "Patient")
    assert refused.value.headers["WWW-Authenticate"] == "Bearer"
    assert POLICY.restrict(Principal.nobody())("Patient").nothing
    assert not POLICY.sees(Principal.nobody(), "read", stored_of({"of": []}, "Organization"))


@pytest.mark.parametrize("principal", [Principal.open(), Principal.automation()])
def test_open_and_automation_see_everything(principal: Principal) -> None:
    POLICY.may(principal, "operation:$invented", None)
    assert POLICY.restrict(principal)("AuditEvent").everything
    assert POLICY.sees(principal, "read", stored_of({"of": ["p1"], "label": "V"}, "Condition"))


def test_a_narrowed_scope_shows_no_deletion() -> None:
    """Nothing is kept of it that could be narrowed, least of all what a narrowing excludes: no entries are not `:not`."""
    label = dump({"meta": {"security": [{"system": CONFIDENTIALITY, "code": "R"}]}})
    for raw in (b"", label):
        tombstone = Stored("Observation", "x", 2, 0, raw, True, "delete", ("p1",))
        for scopes, seen in (("system/Observation.rs", True), ("system/Observation.rs?category:not=survey", False)):
            principal = principal_of({"scopes": scopes, "patients": "all", "clearance": "V"})
            assert POLICY.sees(principal, "read", tombstone) is seen


def test_a_condition_without_search_finds_nothing() -> None:
    """Otherwise If-None-Exist would tell a lab who is a patient here."""
    lab = principal_of({"scopes": "system/Patient.c", "patients": "all"})
    POLICY.may(lab, "conditional-create", "Patient")
    assert POLICY.restrict(lab, "conditional-create")("Patient").nothing


# What each interaction needs of a type, written down a second time: docs/authorization.md, and the scopes' own words for
# it (https://hl7.org/fhir/smart-app-launch/STU2.2/scopes-and-launch-context.html).
LETTERS = {
    "read": "r", "vread": "r", "history": "r", "search": "s", "history-type": "s", "history-system": "s",
    "create": "c", "update": "u", "patch": "u", "delete": "d",
    "conditional-create": "c", "conditional-update": "cu", "conditional-patch": "u", "conditional-delete": "d",
    "operation:$everything": "rs", "operation:$export": "rs", "operation:$explain": "rs", "operation:$lastn": "s",
    "operation:$stats": "s", "operation:$meta": "r", "operation:$apply": "r", "operation:$meta-add": "ru",
    "operation:$meta-delete": "ru", "operation:$assess-risk": "rs",
    **dict.fromkeys(
        ("operation:$reindex", "operation:$hook-status", "operation:$hook-retry", "operation:$hook-event",
         "operation:$await-hooks", "operation:$backfill", "operation:$dry-run"),
        "cruds",
    ),
}  # fmt: skip


@pytest.mark.parametrize("interaction", LETTERS)
def test_each_interaction_needs_its_letters_and_no_others(interaction: str) -> None:
    resource_type = None if interaction == "history-system" else "Observation"
    letters = LETTERS[interaction]
    POLICY.may(principal_of({"scopes": f"system/*.{letters}", "patients": "all"}), interaction, resource_type)
    for missing in letters:
        others = "".join(letter for letter in "cruds" if letter != missing)
        principal = principal_of({"scopes": f"system/*.{others}", "patients": "all"})
        with pytest.raises(Forbidden):
            POLICY.may(principal, interaction, resource_type)
    if letters == "cruds":  # what nobody described may lead to any type
        with pytest.raises(Forbidden):
            POLICY.may(
                principal_of({"scopes": "system/Observation.cruds", "patients": "all"}), interaction, "Observation"
            )


def test_every_operation_that_the_tables_know_is_there() -> None:
    """A row for an operation that is not would open it, unseen, to whoever writes one of that name."""
    known = {name for name in (*NEEDS, *NEED_A_TOKEN) if "$" in name}
    assert known <= {f"operation:${operation.name}" for operation in OPERATIONS}
    assert {*known, *(name for name in LETTERS if "$" in name)} == {f"operation:${one.name}" for one in OPERATIONS}


@pytest.mark.parametrize(
    "interaction", [name for name, letters in LETTERS.items() if letters != "cruds" and "conditional" not in name]
)
def test_what_one_letter_opens_another_does_not_show(interaction: str) -> None:
    """A search shows what `s` reaches, a read what `r` does: each letter may be narrowed by itself."""
    letter = LETTERS[interaction][-1]
    others = "".join(one for one in "cruds" if one != letter)
    scopes = f"system/Observation.{letter}?category=survey system/Observation.{others}?category=laboratory"
    principal = principal_of({"scopes": scopes, "patients": "all"})
    for category in ("survey", "laboratory"):
        stored = stored_of({"of": ["p1"], "category": category}, "Observation")
        assert POLICY.sees(principal, interaction, stored) is (category == "survey")
        narrowed = POLICY.restrict(principal, interaction)("Observation")
        assert narrowed.allows(stored.patients, stored.entries) is (category == "survey")

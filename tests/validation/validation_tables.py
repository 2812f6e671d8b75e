"""The tables in cases/, and the least a resource of each type must hold."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from fhir_server.errors import Issue
from fhir_server.model import resource
from fhir_server.validation import Validator

CASES = Path(__file__).parent / "cases"
Row = dict[str, Any]

# The least a resource of these types must hold.
SMALLEST: dict[str, Row] = {
    "AllergyIntolerance": {"patient": {"reference": "Patient/1"}},
    "Appointment": {"status": "proposed", "participant": [{"actor": {"display": "a"}, "status": "accepted"}]},
    "Bundle": {"type": "collection"},
    "CarePlan": {"status": "active", "intent": "plan", "subject": {"reference": "Patient/1"}},
    "Composition": {
        "status": "final",
        "type": {"text": "a"},
        "date": "2024",
        "author": [{"display": "a"}],
        "title": "a",
    },
    "Condition": {"subject": {"reference": "Patient/1"}},
    "Encounter": {"status": "finished", "class": {"code": "AMB"}},
    "FamilyMemberHistory": {
        "status": "partial",
        "patient": {"reference": "Patient/1"},
        "relationship": {"text": "a"},
    },
    "Goal": {"lifecycleStatus": "active", "description": {"text": "a"}, "subject": {"reference": "Patient/1"}},
    "Group": {"type": "person", "actual": True},
    "Immunization": {
        "status": "completed",
        "vaccineCode": {"text": "a"},
        "patient": {"reference": "Patient/1"},
        "occurrenceString": "a",
    },
    "List": {"status": "current", "mode": "working"},
    "MedicationAdministration": {
        "status": "completed",
        "medicationCodeableConcept": {"text": "a"},
        "subject": {"reference": "Patient/1"},
        "effectiveDateTime": "2024",
    },
    "Observation": {"status": "final", "code": {"text": "a"}},
    "Questionnaire": {"status": "active"},
    "QuestionnaireResponse": {"status": "completed"},
    "SearchParameter": {
        "url": "http://a",
        "name": "A",
        "status": "active",
        "description": "a",
        "code": "a",
        "base": ["Patient"],
        "type": "token",
    },
    "ServiceRequest": {"status": "active", "intent": "order", "subject": {"reference": "Patient/1"}},
    "StructureDefinition": {
        "url": "http://a",
        "name": "A",
        "status": "active",
        "kind": "resource",
        "abstract": False,
        "type": "Patient",
        "baseDefinition": "http://hl7.org/fhir/StructureDefinition/Patient",
        "derivation": "constraint",
    },
    "Task": {"status": "requested", "intent": "order"},
    "ValueSet": {"status": "active"},
}


def table(name: str) -> list[Row]:
    rows: list[Row] = yaml.safe_load((CASES / f"{name}.yaml").read_text(encoding="utf-8"))
    return rows


def check(value: Row) -> list[Issue]:
    """As a write does: through JSON, so that numbers are what a client's would be."""
    return Validator().check(resource.load(json.dumps(value).encode()))


def errors(value: Row) -> Counter[tuple[str, str]]:
    return Counter((i.code, i.expression[0]) for i in check(value) if i.is_error)

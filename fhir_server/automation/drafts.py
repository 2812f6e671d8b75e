"""What a case writes in short, as resources: `bp: 160/95` at `-1 d` is an Observation. docs/hooks.md, Cases."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from fhir_server.automation.definitions import UNITS
from fhir_server.automation.vocabulary import PATIENT_TAGS
from fhir_server.model.dates import DAY, instant
from fhir_server.model.resource import Resource

PATIENT = "case"
LOINC = "http://loinc.org"
UCUM = "http://unitsofmeasure.org"

_RELATIVE = re.compile(r"([+-])\s*(\d+(?:\.\d+)?)\s*([a-z]+)")
_BP = re.compile(r"(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")
_QUANTITY = re.compile(r"(-?\d+(?:\.\d+)?)\s*(\S.*)?")
MAKES = ("patient", "bp", "observation", "condition", "resource")
_SUBJECT = {
    "subject": {"Observation", "Condition", "MedicationStatement", "MedicationRequest", "QuestionnaireResponse", "CarePlan",
                "Goal", "Encounter", "Procedure", "DiagnosticReport", "ServiceRequest", "RiskAssessment"},
    "patient": {"FamilyMemberHistory", "AllergyIntolerance", "Immunization"},
}  # fmt: skip
_WHEN = {"QuestionnaireResponse": "authored", "Condition": "onsetDateTime", "MedicationRequest": "authoredOn",
         "FamilyMemberHistory": "date", "Procedure": "performedDateTime", "Goal": "startDate"}  # fmt: skip


class BadCase(Exception):
    """A case that cannot be read: a mistake in the file, not in the rules."""


class Drafts:
    """Resources of one case, for its one patient. `start`: the case's first instant (ms); `now`: says the present one."""

    def __init__(self, start: int, now: Callable[[], int]) -> None:
        self._start, self._now = start, now
        self._count = 0

    def make(self, one: Mapping[str, Any]) -> Resource:
        kinds = [kind for kind in MAKES if kind in one]
        if len(kinds) != 1:
            raise BadCase(f"a step needs exactly one of {', '.join(MAKES)}: {dict(one)}")
        self._count += 1
        what = one[kinds[0]]
        extra = {name: value for name, value in one.items() if name not in (kinds[0], "at", "id")}
        made: Resource = getattr(self, f"_make_{kinds[0]}")(what, one)
        return {**made, **extra}

    def _make_patient(self, what: Mapping[str, Any], one: Mapping[str, Any]) -> Resource:
        fields = dict(what)
        age = fields.pop("age", 60)
        birth = instant(self._start - DAY)  # the birthday was yesterday
        resource: Resource = {
            "resourceType": "Patient",
            "id": PATIENT,
            "gender": fields.pop("sex", "male"),
            "birthDate": fields.pop("birthDate", f"{int(birth[:4]) - int(age):04}{birth[4:10]}"),
        }
        tags = fields.pop("tags", ())
        if tags:
            resource["meta"] = {"tag": [{"system": PATIENT_TAGS, "code": code} for code in tags]}
        return {**resource, **fields}

    def _make_bp(self, what: Any, one: Mapping[str, Any]) -> Resource:
        panel = {"coding": [{"system": LOINC, "code": "85354-9"}]}
        return {**self._observation(one, panel), "component": components(str(what))}

    def _make_observation(self, what: Mapping[str, Any], one: Mapping[str, Any]) -> Resource:
        fields = dict(what)
        code = {"coding": [_coding(str(fields.pop("code")))]}
        merged: dict[str, Any] = dict(one)
        merged.update((name, fields.pop(name)) for name in ("at", "id") if name in fields)
        resource = self._observation(merged, code)
        if "value" in fields:
            resource.update(value(fields.pop("value")))
        return {**resource, **fields}

    def _observation(self, one: Mapping[str, Any], code: Any) -> Resource:
        return {
            "resourceType": "Observation",
            "id": str(one.get("id", f"o{self._count}")),
            "status": "final",
            "code": code,
            "subject": {"reference": f"Patient/{PATIENT}"},
            "effectiveDateTime": self._time(one.get("at", "+0 d")),
        }

    def _make_condition(self, what: Mapping[str, Any], one: Mapping[str, Any]) -> Resource:
        fields = dict(what)
        status = "http://terminology.hl7.org/CodeSystem/condition-clinical"
        resource: Resource = {
            "resourceType": "Condition",
            "id": str(one.get("id", fields.pop("id", f"c{self._count}"))),
            "clinicalStatus": {"coding": [{"system": status, "code": fields.pop("clinicalStatus", "active")}]},
            "code": {"coding": [_coding(str(fields.pop("code")))]},
            "subject": {"reference": f"Patient/{PATIENT}"},
        }
        if "at" in one or "at" in fields:
            resource["onsetDateTime"] = self._time(one.get("at", fields.pop("at", None)))
        return {**resource, **fields}

    def _make_resource(self, what: Mapping[str, Any], one: Mapping[str, Any]) -> Resource:
        resource: Resource = {}
        resource["id"] = str(one.get("id", f"r{self._count}"))
        resource.update(what)
        for name in ("subject", "patient"):
            if resource["resourceType"] in _SUBJECT[name]:
                resource.setdefault(name, {"reference": f"Patient/{PATIENT}"})
        if "at" in one:
            resource.setdefault(_WHEN.get(resource["resourceType"], "effectiveDateTime"), self._time(one["at"]))
        return resource

    def _time(self, value: Any) -> str:
        text = str(value)
        return instant(self._now() + span(text)) if text[:1] in "+-" else text


def components(text: str) -> list[Any]:
    match = _BP.fullmatch(text)
    if match is None:
        raise BadCase(f"{text!r} is no blood pressure such as 140/90")
    return [
        {"code": {"coding": [{"system": LOINC, "code": code}]}, "valueQuantity": _quantity(value, "mm[Hg]")}
        for code, value in (("8480-6", match.group(1)), ("8462-4", match.group(2)))
    ]


def _quantity(value: str, unit: str) -> dict[str, Any]:
    return {"value": Decimal(value), "unit": unit, "system": UCUM, "code": unit}


def value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"valueBoolean": value}
    if isinstance(value, dict):
        return {"valueCodeableConcept" if "coding" in value else "valueQuantity": value}
    text = str(value)
    match = _QUANTITY.fullmatch(text)
    if match is not None:
        return {"valueQuantity": _quantity(match.group(1), match.group(2) or "1")}
    if "|" in text:
        return {"valueCodeableConcept": {"coding": [_coding(text)]}}
    return {"valueString": text}


def _coding(text: str) -> dict[str, str]:
    system, _, code = text.rpartition("|")
    return {"system": system or LOINC, "code": code}


def span(text: str) -> int:
    """`3 d`, `+2 h`, `-90 d` in ms. Raises BadCase."""
    match = _RELATIVE.fullmatch(text if text[:1] in "+-" else f"+{text}")
    if match is None or match.group(3) not in UNITS:
        raise BadCase(f"{text!r} is no span of time such as 3 d")
    span = int(Decimal(match.group(2)) * UNITS[match.group(3)])
    return -span if match.group(1) == "-" else span

"""What fhir.resources rejects, we reject: broken copies of a few resources, judged by both.

Its R4B equals R4 for the types used here. It accepts much that R4 forbids, so nothing follows from what it accepts.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from fhir.resources.R4B import get_fhir_model_class
from pydantic import ValidationError

from fhir_server.model import resource
from fhir_server.validation import Validator

PATIENT = {
    "resourceType": "Patient",
    "id": "p-1",
    "identifier": [{"use": "official", "system": "urn:oid:1.2.3", "value": "1", "period": {"start": "2020-01-02"}}],
    "active": True,
    "name": [
        {"family": "李", "given": ["明", "Ming"], "_given": [None, {"extension": [{"url": "x", "valueCode": "a"}]}]}
    ],
    "telecom": [{"system": "phone", "value": "1", "rank": 1}],
    "gender": "male",
    "birthDate": "1980-05-02",
    "deceasedBoolean": False,
    "address": [{"line": ["a"], "city": "b"}],
    "contact": [{"name": {"family": "W"}, "organization": {"reference": "Organization/1"}}],
    "communication": [{"language": {"coding": [{"system": "urn:ietf:bcp:47", "code": "zh"}]}, "preferred": True}],
    "managingOrganization": {"reference": "Organization/1", "display": "O"},
    "link": [{"other": {"reference": "Patient/2"}, "type": "seealso"}],
}
OBSERVATION = {
    "resourceType": "Observation",
    "status": "final",
    "category": [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "a"}]}],
    "code": {"coding": [{"system": "http://loinc.org", "code": "85354-9"}], "text": "Blood pressure"},
    "subject": {"reference": "Patient/p-1"},
    "effectiveDateTime": "2024-05-02T09:30:10+08:00",
    "issued": "2024-05-02T09:30:10Z",
    "component": [
        {"code": {"text": "Systolic"}, "valueQuantity": {"value": Decimal("142.0"), "unit": "mmHg"}},
        {"code": {"text": "Diastolic"}, "valueInteger": 91},
    ],
    "referenceRange": [{"low": {"value": 90}, "text": "a"}],
    "note": [{"text": "a", "authorString": "b", "time": "2024-05-02"}],
}
CONDITION = {
    "resourceType": "Condition",
    "clinicalStatus": {
        "coding": [{"system": "http://terminology.hl7.org/CodeSystem/condition-clinical", "code": "active"}]
    },
    "code": {"text": "Hypertension"},
    "subject": {"reference": "Patient/p-1"},
    "onsetAge": {"value": 40, "system": "http://unitsofmeasure.org", "code": "a"},
    "recordedDate": "2024-05",
    "stage": [{"summary": {"text": "2"}, "assessment": [{"reference": "Observation/1"}]}],
}
INSTEAD = ["", "x y", " ", "2024-02-30", -1, 1.5, True, None, [], {}, [{}], {"nonsense": 1}, ["a", "b"], "a" * 70]


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield (key,)
        for below in places(item):
            yield (key, *below)


def broken(value: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Copies with one element taken out, replaced, wrapped, or joined by one nobody knows."""
    for place in places(value):
        if place == ("resourceType",):
            continue
        for change in ("remove", "wrap", "add", *INSTEAD):
            mutant = copy.deepcopy(value)
            parent: Any = mutant
            for step in place[:-1]:
                parent = parent[step]
            if change == "remove":
                del parent[place[-1]]
            elif change == "wrap":
                parent[place[-1]] = [parent[place[-1]]]
            elif change == "add" and isinstance(parent, dict):
                parent["nonsense"] = "a"
            else:
                parent[place[-1]] = change
            yield f"{'.'.join(map(str, place))}: {change!r}", mutant


@pytest.mark.parametrize("value", [PATIENT, OBSERVATION, CONDITION], ids=lambda value: value["resourceType"])
def test_what_it_rejects_we_reject(value: dict[str, Any]) -> None:
    model = get_fhir_model_class(value["resourceType"])
    validator = Validator()
    sent = resource.load(resource.dump(value))
    model.model_validate_json(resource.dump(value))
    assert [issue for issue in validator.check(sent) if issue.is_error] == []
    rejected, accepted = 0, []
    for change, mutant in broken(sent):
        body = resource.dump(mutant)
        try:
            model.model_validate_json(body)
        except (ValidationError, ValueError, TypeError, AttributeError, json.JSONDecodeError):
            rejected += 1
            if not any(issue.is_error for issue in validator.check(resource.load(body))):
                accepted.append(change)
    assert rejected > 100
    assert accepted == []

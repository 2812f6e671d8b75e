"""Why a derived resource is what it is: rule, version, event, inputs, and the conditions with the values they saw.

https://hl7.org/fhir/R4/provenance.html
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fhir_server.automation.ledger import identity
from fhir_server.automation.proposals import Trail
from fhir_server.automation.vocabulary import DEVICE, split_canonical, structure
from fhir_server.model.dates import instant
from fhir_server.model.resource import Resource

_TYPES = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"
_ACTIVITY = "http://terminology.hl7.org/CodeSystem/v3-DataOperation"
MOST_SOURCES = 50


def provenance_id(patient: str, slot: str, n: int) -> str:
    return identity(patient, f"{slot}/provenance", n)


def provenance(
    id: str,
    *,
    target: str,
    rule: str,
    rule_id: str,
    event: str,
    sources: Sequence[str],
    trails: Iterable[Trail],
    now: int,
    withdrawn: bool = False,
) -> Resource:
    """One Provenance a derived resource; its own history follows the resource's."""
    url, version = split_canonical(rule)
    extension: list[dict[str, Any]] = [
        {"url": structure("rule"), "valueCanonical": rule},
        {"url": structure("event"), "valueString": event},
    ]
    for trail in trails:
        for expression, saw, result in trail.lines():
            parts: list[dict[str, Any]] = [{"url": "expression", "valueString": expression}]
            if saw:
                parts.append({"url": "saw", "valueString": saw})
            parts.append({"url": "result", "valueBoolean": result})
            extension.append({"url": structure("condition-seen"), "extension": parts})
    entities: list[dict[str, Any]] = [
        {
            "role": "derivation",
            "what": {
                "reference": f"PlanDefinition/{rule_id}" if rule_id else None,
                "identifier": {"system": "urn:ietf:rfc:3986", "value": url},
                "display": f"version {version}" if version else url,
            },
        }
    ]
    entities += [{"role": "source", "what": {"reference": source}} for source in sources[:MOST_SOURCES]]
    if not rule_id:
        del entities[0]["what"]["reference"]
    return {
        "resourceType": "Provenance",
        "id": id,
        "extension": extension,
        "target": [{"reference": target}],
        "recorded": instant(now),
        "policy": [rule],
        "activity": {"coding": [{"system": _ACTIVITY, "code": "ABORT" if withdrawn else "DERIVE"}]},
        "agent": [
            {
                "type": {"coding": [{"system": _TYPES, "code": "assembler"}]},
                "who": {"reference": DEVICE, "display": "Automation of this server"},
            }
        ],
        "entity": entities,
    }

"""Why a derived resource is what it is: rule, version, event, inputs, and the conditions with the values they saw.

https://hl7.org/fhir/R4/provenance.html
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fhir_server.auth.labels import CONFIDENTIALITY
from fhir_server.automation.ledger import identity
from fhir_server.automation.proposals import Seen, Trail
from fhir_server.automation.vocabulary import DEVICE, Element, split_canonical, structure, value
from fhir_server.model.dates import instant
from fhir_server.model.resource import Resource

_TYPES = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"
_ACTIVITY = "http://terminology.hl7.org/CodeSystem/v3-DataOperation"
MOST_SOURCES = 50


def provenance_id(patient: str, slot: str, n: int) -> str:
    return identity(patient, f"{slot}/provenance", n)


def tags_provenance_id(patient: str) -> str:
    return identity(patient, "tags/provenance")


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
    label: str = "",
) -> Resource:
    """One Provenance a derived resource; its own history follows the resource's. `label`: the highest of its inputs."""
    entities = [_rule(rule, rule_id), *(_source(source) for source in sources[:MOST_SOURCES])]
    told = _told(rule, event, [trail.lines() for trail in trails])
    return _labelled(_resource(id, target, [rule], told, entities, now, withdrawn), label)


def section(rule: str, rule_id: str, event: str, sources: Sequence[str], trails: Iterable[Trail]) -> Element:
    """What one rule has to say about the patient's tags."""
    # What was tried and did not hold is left out: there are many rules, and this is about the tags they set.
    parts = _told(rule, event, [[seen for seen in trail.lines() if seen.result] for trail in trails])
    parts += [{"url": structure("input"), "valueReference": {"reference": one}} for one in sources[:MOST_SOURCES]]
    if rule_id:
        parts.append({"url": structure("rule-id"), "valueString": rule_id})
    return {"url": structure("rule-applied"), "extension": parts}


def of_tags(
    patient: str,
    sections: Iterable[Element],
    existing: Resource | None,
    gone: Iterable[str],
    now: int,
    label: str,
) -> Resource:
    """The Provenance of all the patient's tags: `sections` take the place of those of the same rules; `gone` (urls) go.

    `label`: the highest of the inputs of them all.
    """
    kept: dict[str, Element] = {}
    for one in (*((existing or {}).get("extension", ())), *sections):
        kept[split_canonical(str(value(one["extension"][0])))[0]] = one
    for rule in gone:
        kept.pop(rule, None)
    entities: list[Any] = []
    seen: dict[str, None] = {}
    for one in kept.values():
        parts = {part["url"]: value(part) for part in one["extension"]}
        entities.append(_rule(str(parts[structure("rule")]), str(parts.get(structure("rule-id"), ""))))
        seen.update((value(p)["reference"], None) for p in one["extension"] if p["url"] == structure("input"))
    entities += [_source(reference) for reference in list(seen)[:MOST_SOURCES]]
    rules = [str(value(one["extension"][0])) for one in kept.values()]
    id = tags_provenance_id(patient)
    made = _resource(id, f"Patient/{patient}", rules, list(kept.values()), entities, now, not kept)
    told = {name: content for name, content in made.items() if content}
    return _labelled(told, label)


def _labelled(resource: Resource, label: str) -> Resource:
    """It tells the values its inputs had, so that it is for those who may see them."""
    return {**resource, "meta": {"security": [{"system": CONFIDENTIALITY, "code": label}]}} if label else resource


def _told(rule: str, event: str, trails: Iterable[Iterable[Seen]]) -> list[dict[str, Any]]:
    """One text for all conditions: an extension for each would be most of what a write costs."""
    extension: list[dict[str, Any]] = [
        {"url": structure("rule"), "valueCanonical": rule},
        {"url": structure("event"), "valueString": event},
    ]
    lines = [str(seen) for trail in trails for seen in trail]
    if lines:
        extension.append({"url": structure("conditions-seen"), "valueString": "\n".join(lines)})
    return extension


def _rule(rule: str, rule_id: str) -> dict[str, Any]:
    """`policy` has the canonical with its version."""
    if rule_id:
        return {"role": "derivation", "what": {"reference": f"PlanDefinition/{rule_id}"}}
    identifier = {"system": "urn:ietf:rfc:3986", "value": split_canonical(rule)[0]}
    return {"role": "derivation", "what": {"identifier": identifier}}


def _source(reference: str) -> dict[str, Any]:
    return {"role": "source", "what": {"reference": reference}}


def _resource(
    id: str, target: str, rules: list[str], extension: list[Any], entities: list[Any], now: int, withdrawn: bool
) -> Resource:
    return {
        "resourceType": "Provenance",
        "id": id,
        "extension": extension,
        "target": [{"reference": target}],
        "recorded": instant(now),
        "policy": rules,
        "activity": {"coding": [{"system": _ACTIVITY, "code": "ABORT" if withdrawn else "DERIVE"}]},
        "agent": [
            {
                "type": {"coding": [{"system": _TYPES, "code": "assembler"}]},
                "who": {"reference": DEVICE},
            }
        ],
        "entity": entities,
    }

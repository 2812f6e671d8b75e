"""From what should be so and what automation wrote earlier to what has to be written now. Pure.

An open Task is updated, never doubled; what no longer holds is withdrawn; what a person closed stays closed until
something newer happens. Because identities and contents depend on facts alone, so does the result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fhir_server.auth.labels import CONFIDENTIALITY, highest, label_of
from fhir_server.automation.follow_up import PRIORITIES
from fhir_server.automation.ledger import Ledger, Slot, identity, slot_key
from fhir_server.automation.proposals import EPISODES, Decision, Propose
from fhir_server.automation.tags import SET_BY, set_by_rule
from fhir_server.automation.vocabulary import IDENTIFIERS, STATUS_REASONS, split_canonical, translation
from fhir_server.model.dates import instant
from fhir_server.model.resource import Resource, dump
from fhir_server.store.protocol import Key

# What a withdrawn resource of each type looks like, and what closes one for good when a person writes it.
WITHDRAWN: Mapping[str, str] = {
    "Task": "cancelled", "CommunicationRequest": "revoked", "ServiceRequest": "revoked", "CarePlan": "revoked",
    "Flag": "inactive", "RiskAssessment": "entered-in-error", "Observation": "entered-in-error",
}  # fmt: skip
CLOSED = frozenset(
    {"completed", "cancelled", "rejected", "failed", "revoked", "entered-in-error", "deleted", "inactive"}
)
STARTED = {"Task": "requested", "CommunicationRequest": "active", "ServiceRequest": "active", "CarePlan": "active"}
# Ours to change in a resource that people work on, too; everything else in it is theirs.
OWNED: Mapping[str, tuple[str, ...]] = {
    "Task": ("instantiatesCanonical", "instantiatesUri", "code", "description", "_description", "focus",
             "reasonReference", "restriction", "performerType", "input"),
    "CommunicationRequest": ("payload", "about", "occurrenceDateTime", "reasonReference", "category", "recipient"),
    "ServiceRequest": ("instantiatesCanonical", "code", "occurrenceDateTime", "reasonReference", "patientInstruction"),
    "CarePlan": ("instantiatesCanonical", "title", "description", "_description", "category", "supportingInfo", "period"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """One resource to be written. `proposal` None: withdraw it."""

    slot: Slot
    key: Key
    rule: str  # canonical with version
    proposal: Propose | None
    n: int = 0  # which episode of the slot
    fresh: bool = False  # nothing can be there yet, as far as the ledger knows


def reconcile(patient: str, decision: Decision, ledger: Ledger, now: int) -> list[Change]:
    """What has to be written for one rule. The ledger is brought to the state after the writing."""
    changes: list[Change] = []
    wanted = {slot_key(decision.rule, one.action, one.scope): one for one in decision.proposals}
    for key, proposal in wanted.items():
        change = _wanted(patient, key, proposal, decision, ledger, now)
        if change is not None:
            changes.append(change)
    for slot in ledger.of_rule(decision.rule):
        looked_at = decision.foci is None or not slot.scope or slot.scope in decision.foci
        if slot.key not in wanted and slot.state == "open" and looked_at:
            slot.state, slot.hash = "withdrawn", ""
            where = (slot.resource_type, identity(patient, slot.key, slot.n))
            changes.append(Change(slot, where, decision.canonical, None, slot.n))
    if decision.due is None:
        ledger.due.pop(decision.rule, None)
    else:
        ledger.due[decision.rule] = decision.due
    return changes


def _wanted(patient: str, key: str, proposal: Propose, decision: Decision, ledger: Ledger, now: int) -> Change | None:
    slot = ledger.slots.get(key)
    resource_type = proposal.resource["resourceType"]
    if slot is not None and slot.resource_type != resource_type:  # the definition now makes something else
        slot = None
    content = digest(proposal)
    fresh = False
    if slot is None:
        if not proposal.raises:
            return None
        slot = Slot(decision.rule, proposal.action, proposal.scope, resource_type, begun=now)
        ledger.slots[key] = slot
        fresh = True
    elif slot.state == "open":
        if slot.hash == content:
            return None
    elif slot.state == "withdrawn":
        if not proposal.raises:
            return None
        slot.begun, slot.status = now, ""
    else:  # a person closed it: only something newer starts another
        newer = (proposal.focus_at, proposal.focus) > (slot.focus_at, slot.focus)
        if not proposal.raises or not newer:
            return None
        slot.n, slot.begun, slot.status, fresh = slot.n + 1, now, "", True
    slot.state, slot.hash = "open", content
    slot.focus, slot.focus_at = proposal.focus, proposal.focus_at
    return Change(slot, (resource_type, identity(patient, key, slot.n)), decision.canonical, proposal, slot.n, fresh)


def digest(proposal: Propose) -> str:
    """Changes exactly when there is something new to say."""
    body = dump([proposal.resource, proposal.sources if proposal.renewed else (), *filter(None, [proposal.label])])
    return hashlib.blake2b(body, digest_size=9).hexdigest()


def closed_by_person(slot: Slot, resource: Resource | None) -> bool:
    """Whether the resource says that a person is done with it; None stands for one that was deleted."""
    if slot.resource_type not in EPISODES:
        return resource is None
    if resource is None:
        return True
    return str(resource.get("status")) in CLOSED and not _withdrawn_by_us(resource)


def _withdrawn_by_us(resource: Resource) -> bool:
    reason = resource.get("statusReason", {})
    return any(coding.get("system") == STATUS_REASONS for coding in reason.get("coding", ()))


def realize(change: Change, existing: Resource | None, now: int, patient: str) -> Resource | None:
    """The resource as it shall be stored, built on what is there; None where there is nothing to withdraw."""
    if change.proposal is None:
        return None if existing is None else withdrawn(existing)
    resource = _made(change, change.proposal, existing, now, patient)
    return labelled(resource, change.proposal.label, change.rule)


def _made(change: Change, proposal: Propose, existing: Resource | None, now: int, patient: str) -> Resource:
    slot, made = change.slot, proposal.resource
    if proposal.within is not None and change.key[0] == "Task":
        made = {**made, "restriction": {"period": {"end": instant(slot.begun + proposal.within)}}}
    resource_type, id = change.key
    identifier = {"system": IDENTIFIERS, "value": f"{slot.key}|{patient}|{change.n}"}
    if existing is None or resource_type not in EPISODES:
        resource: Resource = {"resourceType": resource_type, "id": id}
        if existing is not None and "meta" in existing:
            resource["meta"] = existing["meta"]
        resource["identifier"] = [identifier]
        resource.update((key, value) for key, value in made.items() if key != "resourceType")
        if resource_type in EPISODES:
            resource["authoredOn" if resource_type != "CarePlan" else "created"] = instant(now)
        if resource_type == "Task":
            resource["lastModified"] = instant(now)
        if resource_type == "Flag":
            begun = (
                (existing or {}).get("period", {}).get("start") if (existing or {}).get("status") == "active" else None
            )
            resource["period"] = {"start": begun or instant(now)}
        return resource
    resource = dict(existing)
    for name in OWNED[resource_type]:
        if name in made:
            resource[name] = made[name]
        else:
            resource.pop(name, None)
    resource["priority"] = higher(str(existing.get("priority", "routine")), str(made.get("priority", "routine")))
    if _withdrawn_by_us(existing):
        resource["status"] = STARTED[resource_type]
        resource["priority"] = made.get("priority", "routine")
        resource.pop("statusReason", None)
        resource["authoredOn" if resource_type != "CarePlan" else "created"] = instant(now)
    if resource_type == "CarePlan":
        resource.pop("priority", None)
    if resource_type == "Task":
        resource["lastModified"] = instant(now)
    return resource


def labelled(resource: Resource, label: str, rule: str) -> Resource:
    """With the confidentiality of what it was derived from (it says what those said); a person's labels stay."""
    meta = resource.get("meta", {})
    kept = [one for one in meta.get("security", ()) if not set_by_rule(one)]
    if label and highest([label_of({"meta": {"security": kept}}), label]) == label:
        kept.append({"extension": [{"url": SET_BY, "valueCanonical": rule}], "system": CONFIDENTIALITY, "code": label})
    if kept == meta.get("security", []):
        return resource
    changed = {**meta, "security": kept}
    return {**resource, "meta": {name: value for name, value in changed.items() if value}}


def withdrawn(existing: Resource) -> Resource:
    """What nothing supports any more: kept, and said to be so."""
    resource_type = existing["resourceType"]
    resource = {**existing, "status": WITHDRAWN[resource_type]}
    if resource_type in ("Task", "CommunicationRequest"):
        coding = {"system": STATUS_REASONS, "code": "no-longer-applies", "display": "No longer applies"}
        said = {
            "text": "The findings that led to it no longer hold",
            "_text": translation("所依据的结果已不再成立"),
        }
        resource["statusReason"] = {"coding": [coding], **said}
    elif resource_type in ("ServiceRequest", "CarePlan"):
        resource["statusReason"] = {"coding": [{"system": STATUS_REASONS, "code": "no-longer-applies"}]}
        resource.pop("statusReason")  # R4 has none on these types
    return resource


def higher(left: str, right: str) -> str:
    rank = {name: index for index, name in enumerate(PRIORITIES)}
    return left if rank.get(left, 0) >= rank.get(right, 0) else right


def tags_wanted(ledger: Ledger) -> dict[tuple[str, str], tuple[str, str]]:
    """(system, code) → (display, rule url): what every rule together wants on the patient."""
    wanted: dict[tuple[str, str], tuple[str, str]] = {}
    for rule in sorted(ledger.tags):
        for system, code, display, *_ in ledger.tags[rule]:
            wanted.setdefault((system, code), (display, rule))
    return wanted


def tags_label(ledger: Ledger) -> str:
    """The highest confidentiality of what any tag rests on."""
    return highest(label for tags in ledger.tags.values() for tag in tags for label in tag[3:])


def take_tags(decision: Decision, ledger: Ledger) -> bool:
    """Notes the rule's tags, with the label of what they rest on; true if they are others than before."""
    more = [decision.label] if decision.label else []
    tags = sorted(
        {(tag.system, tag.code): [tag.system, tag.code, tag.display, *more] for tag in decision.tags}.values()
    )
    if tags == ledger.tags.get(decision.rule, []):
        return False
    if tags:
        ledger.tags[decision.rule] = tags
    else:
        ledger.tags.pop(decision.rule, None)
    return True


def interpreted(observation: Resource, rule: str, codings: Iterable[Mapping[str, Any]]) -> Resource | None:
    """The Observation with exactly these codings of the rule in `interpretation`; None if it has them.

    What a laboratory or another rule said stays; ours carry the rule (canonical) that set them.
    """
    present = list(observation.get("interpretation", ()))
    url = split_canonical(rule)[0]
    wanted = list(codings)
    kept = [concept for concept in present if not _ours(concept, url) or _said(concept, wanted)]
    for coding in wanted:
        if not any(_same(one, coding) for concept in kept for one in concept.get("coding", ())):
            kept.append({"coding": [{"extension": [{"url": SET_BY, "valueCanonical": rule}], **coding}]})
    if kept == present:
        return None
    resource = {key: value for key, value in observation.items() if key != "interpretation"}
    return {**resource, "interpretation": kept} if kept else resource


def _ours(concept: Mapping[str, Any], url: str) -> bool:
    return any(split_canonical(set_by_rule(coding))[0] == url for coding in concept.get("coding", ()))


def _said(concept: Mapping[str, Any], wanted: list[Mapping[str, Any]]) -> bool:
    return any(_same(coding, one) for coding in concept.get("coding", ()) for one in wanted)


def _same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return (left.get("system"), left.get("code")) == (right.get("system"), right.get("code"))

"""A random world of records, random tokens, and what each token may see, worked out the slow and simple way.

Nothing here uses the policy: membership in a compartment, labels and scopes are read again from the resources and the
token, so that a mistake in the policy and the same mistake here are two mistakes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Resource = dict[str, Any]

# Whose record: R4's patient compartment, for the types of this world, and what it lacks. Paths to references that count.
COMPARTMENT: dict[str, tuple[str, ...]] = {
    "Patient": ("link.other",),
    "Observation": ("subject", "performer"),
    "Condition": ("subject", "asserter"),
    "Encounter": ("subject",),
    "Appointment": ("participant.actor",),
    "CareTeam": ("subject", "participant.member"),
    "List": ("subject", "source"),
    "DocumentReference": ("subject", "author"),
    "Provenance": ("target",),
    "Task": ("for", "focus"),
    "Device": ("patient",),
    "Binary": ("securityContext",),
    "Group": ("member.entity",),
    "RelatedPerson": ("patient",),
    "MedicationRequest": ("subject",),
    "Consent": ("patient",),
}
NOBODYS = ("Organization", "Practitioner", "Questionnaire")
# Also in the records of what this refers to.
THROUGH = {"Provenance": "target", "Task": "focus", "Binary": "securityContext"}
NEITHER = ("Basic",)
TYPES = (*COMPARTMENT, *NOBODYS, *NEITHER)
LABELS = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality"
CATEGORIES = ("vital-signs", "laboratory", "survey")
RANK = {"N": 0, "R": 1, "V": 2}


@dataclass(frozen=True)
class Version:
    """One version as it stands in the database."""

    resource_type: str
    id: str
    number: int
    resource: Resource
    deleted: bool = False
    patients: frozenset[str] = frozenset()
    label: str = "N"

    @property
    def key(self) -> str:
        return f"{self.resource_type}/{self.id}"


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "reference" and isinstance(item, str):
                yield item
            else:
                yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def patients_of(resource: Resource, others: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """Whose records hold it; `others`: whose those of the other resources do, by `Type/id`."""
    resource_type = resource["resourceType"]
    found = {resource["id"]} if resource_type == "Patient" else set()
    for reference in references(resource.get(THROUGH.get(resource_type, ""))):
        if not reference.startswith("Patient/"):  # that patient's, and not those whom it links to
            found |= others.get(reference, frozenset())
    for path in COMPARTMENT.get(resource_type, ()):
        values: list[Any] = [resource]
        for step in path.split("."):
            values = [item for value in values for item in as_list(value.get(step))]
        for reference in references(values):
            if reference.startswith("Patient/"):
                found.add(reference.split("/")[1])
    return frozenset(found)


def as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def label_of(resource: Resource) -> str:
    labels = [label["code"] for label in resource.get("meta", {}).get("security", ()) if label.get("system") == LABELS]
    return max((label for label in labels if label in RANK), key=lambda label: RANK[label], default="N")


@dataclass
class Maker:
    """Random resources that refer to each other across compartments."""

    random: random.Random
    keys: list[str] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    practitioners: list[str] = field(default_factory=list)

    def id(self, resource_type: str) -> str:
        """Never a part of anything else, so that finding it in an answer means that it leaked."""
        return f"{resource_type[:3].lower()}-{self.random.getrandbits(48):012x}"

    def reference(self, *types: str) -> dict[str, str]:
        fitting = [key for key in self.keys if not types or key.split("/")[0] in types]
        return {"reference": self.random.choice(fitting or [f"Patient/{self.random.choice(self.patients)}"])}

    def someone(self) -> dict[str, str]:
        return {"reference": f"Patient/{self.random.choice(self.patients)}"}

    def resource(self, resource_type: str, id: str) -> Resource:
        choose = self.random
        resource: Resource = {"resourceType": resource_type, "id": id}
        if choose.random() < 0.2:
            resource["meta"] = {"security": [{"system": LABELS, "code": choose.choice("NRV")}]}
        resource.update(getattr(self, f"_{resource_type.lower()}")())
        return resource

    def _patient(self) -> Resource:
        linked = [{"other": self.someone(), "type": "seealso"}] if self.patients and self.random.random() < 0.3 else []
        name = [{"family": self.random.choice(["Lee", "Chen", "Diaz"]), "given": [self.random.choice("ABC")]}]
        gp = [self.reference("Practitioner")] if self.practitioners else []
        patient: Resource = {"name": name, "birthDate": f"19{self.random.randint(50, 99)}-01-01", "gender": "female"}
        return patient | ({"link": linked} if linked else {}) | ({"generalPractitioner": gp} if gp else {})

    def _observation(self) -> Resource:
        observation: Resource = {
            "status": "final",
            "category": [{"coding": [{"code": self.random.choice(CATEGORIES)}]}],
            "code": {"coding": [{"system": "http://loinc.org", "code": self.random.choice(["8867-4", "2339-0"])}]},
            "subject": self.someone(),
            "effectiveDateTime": f"20{self.random.randint(10, 25)}-0{self.random.randint(1, 9)}-01",
            "valueQuantity": {"value": self.random.randint(50, 150)},
        }
        if self.random.random() < 0.2:
            observation["performer"] = [
                self.someone() if self.random.random() < 0.5 else self.reference("Practitioner")
            ]
        if self.random.random() < 0.3:
            observation["hasMember"] = [self.reference("Observation")]
        if self.random.random() < 0.3:
            observation["encounter"] = self.reference("Encounter")
        return observation

    def _condition(self) -> Resource:
        condition: Resource = {"subject": self.someone(), "code": {"text": self.random.choice(["flu", "asthma"])}}
        if self.random.random() < 0.3:
            condition["encounter"] = self.reference("Encounter")
        return condition

    def _encounter(self) -> Resource:
        encounter: Resource = {"status": "finished", "class": {"code": "AMB"}, "subject": self.someone()}
        if self.random.random() < 0.3:
            encounter["partOf"] = self.reference("Encounter")
        return encounter

    def _appointment(self) -> Resource:
        participants = [{"actor": self.someone(), "status": "accepted"} for _ in range(self.random.randint(1, 2))]
        return {"status": "proposed", "participant": participants}

    def _careteam(self) -> Resource:
        member = self.reference("Practitioner")
        return {"status": "active", "subject": self.someone(), "participant": [{"member": member}]}

    def _list(self) -> Resource:
        entries = [{"item": self.reference()} for _ in range(3)]
        resource: Resource = {"status": "current", "mode": "working", "entry": entries}
        return resource | ({"subject": self.someone()} if self.random.random() < 0.7 else {})

    def _documentreference(self) -> Resource:
        content = [{"attachment": {"title": "note"}}]
        return {
            "status": "current",
            "subject": self.someone(),
            "content": content,
            "context": {"related": [self.reference()]},
        }

    def _provenance(self) -> Resource:
        return {
            "target": [self.reference() for _ in range(self.random.randint(1, 2))],
            "recorded": "2026-01-01T00:00:00Z",
            "agent": [{"who": self.reference("Practitioner")}],
        }

    def _task(self) -> Resource:
        task: Resource = {"status": "requested", "intent": "order", "description": "call back"}
        if self.random.random() < 0.7:
            task["for"] = self.someone()
        return task | ({"focus": self.reference()} if self.random.random() < 0.6 else {})

    def _group(self) -> Resource:
        return {"type": "person", "actual": True, "member": [{"entity": self.someone()} for _ in range(2)]}

    def _relatedperson(self) -> Resource:
        return {"patient": self.someone(), "active": self.random.random() < 0.8}

    def _medicationrequest(self) -> Resource:
        return {
            "status": "active",
            "intent": "order",
            "medicationCodeableConcept": {"text": "aspirin"},
            "subject": self.someone(),
            "reasonReference": [self.reference("Condition", "Observation")],
        }

    def _consent(self) -> Resource:
        text = {"text": "privacy"}
        status = self.random.choice(["active", "active", "active", "inactive", "draft"])
        consent: Resource = {"status": status, "scope": text, "category": [text], "policyRule": text}
        consent["patient"] = self.someone()
        provision = self.provision(2) if self.random.random() < 0.4 else self.telling_provision()
        return consent | ({"provision": provision} if self.random.random() < 0.9 else {})

    def telling_provision(self) -> Resource:
        """What chance alone seldom makes: everybody is denied, or all but one."""
        one = [{"role": {"text": "to whom"}, "reference": self.reference("Practitioner")}]
        own = [{"role": {"text": "to whom"}, "reference": self.reference("RelatedPerson")}]
        a_part: Resource = {"type": "permit", "purpose": [{"system": "http://example.org/x", "code": "x"}]}
        return self.random.choice(
            [
                {"type": "deny"},
                {"type": "deny", "provision": [{"type": "permit", "actor": one}]},
                {"type": "deny", "provision": [{"type": "permit", "actor": one}]},
                {"type": "permit", "provision": [{"type": "deny", "actor": one}]},
                {"type": "deny", "provision": [a_part | ({"actor": one} if self.random.random() < 0.5 else {})]},
                {"type": "deny", "actor": one},
                {"type": "permit", "actor": own},
                {"type": "permit"},
                {"type": "permit"},
            ]
        )

    def provision(self, depth: int) -> Resource:
        """Who may (not), when, for what; and exceptions to it."""
        chance = self.random
        provision: Resource = {"type": chance.choice(["deny", "permit"])} if chance.random() < 0.9 else {}
        if chance.random() < 0.6:
            actors = [self.reference("Practitioner", "RelatedPerson") for _ in range(chance.randint(1, 2))]
            provision["actor"] = [{"role": {"text": "to whom"}, "reference": actor} for actor in actors]
        if chance.random() < 0.3:
            periods = [{"end": "2020"}, {"start": "2020"}, {"start": "2020", "end": "2199-12"}, {"start": "2199"}]
            provision["period"] = chance.choice(periods)
        if chance.random() < 0.15:
            provision[chance.choice(["purpose", "class"])] = [{"system": "http://example.org/x", "code": "x"}]
        if depth and chance.random() < 0.4:
            provision["provision"] = [self.provision(depth - 1) for _ in range(chance.randint(1, 2))]
        return provision or {"type": "deny"}

    def _organization(self) -> Resource:
        return {"name": self.random.choice(["North", "South"])}

    def _practitioner(self) -> Resource:
        return {"name": [{"family": self.random.choice(["Good", "Strange"])}]}

    def _questionnaire(self) -> Resource:
        return {"status": "active", "title": self.random.choice(["A", "B"])}

    def _binary(self) -> Resource:
        return {"contentType": "text/plain", "data": "c2VjcmV0", "securityContext": self.reference()}

    def _device(self) -> Resource:
        return {"status": "active", "patient": self.someone()}

    def _basic(self) -> Resource:
        return {"code": {"text": "note"}}


def objects(consents: Iterable[Resource], actor: str) -> frozenset[str]:
    """Whose consent keeps the actor ("" is nobody in particular) away from their record."""
    return frozenset(
        consent["patient"]["reference"].split("/")[1]
        for consent in consents
        if consent["status"] == "active" and decision(consent.get("provision"), actor) == "deny"
    )


def proxied(consents: Iterable[Resource], person: Resource | None) -> frozenset[str]:
    """Whom a related person stands in for: her patient, if consents that name her permit it and none denies it."""
    if person is None or person.get("active") is False:
        return frozenset()
    patient = person["patient"]["reference"]
    said = {
        decision(consent.get("provision"), f"RelatedPerson/{person['id']}", by_name=True)
        for consent in consents
        if consent["status"] == "active" and consent["patient"]["reference"] == patient
    }
    return frozenset([patient.split("/")[1]] if said >= {"permit"} and "deny" not in said else [])


def decision(provision: Resource | None, actor: str, *, by_name: bool = False) -> str:
    """docs/authorization.md, once more: the innermost exception that applies decides, of several a denial."""
    if provision is None:
        return ""
    period = provision.get("period", {})
    if period.get("start", "0") >= "2199" or period.get("end", "9") <= "2020":
        return ""
    names = [one["reference"]["reference"] for one in provision.get("actor", ())]
    if names and actor not in names:
        return ""
    exceptions = [decision(one, actor, by_name=by_name) for one in provision.get("provision", ())]
    if "deny" in exceptions:
        return "deny"
    if "permit" in exceptions:
        return "permit"
    if by_name and not names:
        return ""
    if provision.get("type") == "permit" and ("purpose" in provision or "class" in provision):
        return ""  # permits a part: not enough
    return str(provision.get("type", ""))


@dataclass(frozen=True)
class Token:
    """What a token says, as the oracle reads it."""

    scopes: tuple[tuple[str, str, str, str], ...]  # context, type, letters, category ("" all)
    role: str  # "" for a service
    user: str = ""  # name
    patient: str = ""
    reach: frozenset[str] | None = None
    clearance: str = "N"
    excluded: frozenset[str] = frozenset()  # whose consent denies it

    @property
    def audits(self) -> bool:
        """Whether AuditEvents may show up at all."""
        return self.role == "administrator" and any(kind == "*" for _, kind, _, _ in self.scopes)

    @property
    def scope(self) -> str:
        return " ".join(
            f"{context}/{kind}.{letters}{'?category=' + category if category else ''}"
            for context, kind, letters, category in self.scopes
        )

    def sees(self, version: Version, letter: str) -> bool:
        if RANK[version.label] > RANK[self.clearance]:
            return False
        if version.resource_type == "AuditEvent":
            return self.audits and letter in "rs"
        return any(self._opens(scope, version, letter) for scope in self.scopes)

    def _opens(self, scope: tuple[str, str, str, str], version: Version, letter: str) -> bool:
        context, kind, letters, category = scope
        if letter not in letters or kind not in ("*", version.resource_type):
            return False
        if self.role == "lab" and letter != "c":
            return False
        if category and (version.deleted or category not in json.dumps(version.resource.get("category", []))):
            return False
        reach = self.reach
        if context == "patient":
            if not self.patient:
                return False
            reach = frozenset({self.patient}) if reach is None or self.patient in reach else frozenset()
        if version.resource_type in NOBODYS and reach is not None:
            return letter in "rs"
        if version.patients & self.excluded:
            return False
        if reach is None:
            return True
        return version.resource_type != "Group" and bool(version.patients & reach)

"""A patient's record as rules see it: readings by type and code, in the order of their own time."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from fhir_server.auth.labels import highest, label_of
from fhir_server.automation.terms import Code, codes_of
from fhir_server.model.dates import DateError, interval
from fhir_server.model.resource import Resource
from fhir_server.model.resource import load_stored as load
from fhir_server.store.protocol import Key, Stored

# https://hl7.org/fhir/R4/valueset-observation-status.html and the like: what must not be reasoned with
NO_FACTS = frozenset({"entered-in-error", "cancelled", "registered", "unknown", "not-done", "rejected"})
NOT_SO = frozenset({"refuted", "entered-in-error"})  # Condition.verificationStatus

_TIMES: Mapping[str, tuple[str, ...]] = {
    "Observation": ("effectiveDateTime", "effectivePeriod", "effectiveInstant", "issued"),
    "Condition": ("onsetDateTime", "onsetPeriod", "recordedDate"),
    "QuestionnaireResponse": ("authored",),
    "MedicationStatement": ("effectiveDateTime", "effectivePeriod", "dateAsserted"),
    "MedicationRequest": ("authoredOn",),
    "MedicationDispense": ("whenHandedOver", "whenPrepared"),
    "Procedure": ("performedDateTime", "performedPeriod"),
    "Encounter": ("period",),
    "DiagnosticReport": ("effectiveDateTime", "effectivePeriod", "issued"),
    "RiskAssessment": ("occurrenceDateTime", "occurrencePeriod"),
    "AllergyIntolerance": ("onsetDateTime", "recordedDate"),
    "Immunization": ("occurrenceDateTime",),
    "FamilyMemberHistory": ("date",),
    "CarePlan": ("period", "created"),
    "Goal": ("startDate",),
    "Communication": ("sent",),
    "Task": ("authoredOn",),
    "Flag": ("period",),
}
_CODED: Mapping[str, tuple[str, ...]] = {
    "MedicationStatement": ("medicationCodeableConcept",),
    "MedicationRequest": ("medicationCodeableConcept",),
    "MedicationDispense": ("medicationCodeableConcept",),
    "QuestionnaireResponse": ("questionnaire",),
    "FamilyMemberHistory": ("relationship",),
    "Immunization": ("vaccineCode",),
    "Encounter": ("class", "type"),
    "RiskAssessment": ("method",),
    "CarePlan": ("category",),
    "Goal": ("description",),
}


class Reading:
    """One resource: its time (ms; the start of what it covers), its codes, and what has been worked out about it."""

    __slots__ = ("at", "codes", "key", "label", "memo", "reference", "resource", "stored", "usable")

    def __init__(self, resource: Resource, stored: Stored | None = None) -> None:
        self.resource = resource
        self.stored = stored
        self.key: Key = (resource["resourceType"], resource["id"])
        self.reference = f"{self.key[0]}/{self.key[1]}"
        self.at = time_of(resource)
        self.codes = frozenset(codes(resource, "code"))
        self.usable = usable(resource)
        self.label = label_of(resource)
        self.memo: dict[Any, Any] = {}

    def __lt__(self, other: Reading) -> bool:
        return (self.at, self.key) < (other.at, other.key)


def codes(resource: Resource, path: str) -> Iterable[Code]:
    """Codes at `path`; `code` is whatever says what a resource of this type is about."""
    names = _CODED.get(resource["resourceType"], ("code",)) if path == "code" else (path, f"{path}CodeableConcept")
    for name in names:
        if name in resource:
            yield from codes_of(resource[name])


def time_of(resource: Resource) -> int:
    """When it was true, in ms: the start of its clinical time; lastUpdated where it has none; 0 if that is missing, too."""
    for name in _TIMES.get(resource["resourceType"], ()):
        found = resource.get(name)
        if isinstance(found, dict):
            found = found.get("start") or found.get("end")
        if isinstance(found, str):
            try:
                return interval(found)[0]
            except DateError:
                continue
    updated = resource.get("meta", {}).get("lastUpdated")
    return interval(updated)[0] if updated else 0


def usable(resource: Resource) -> bool:
    if resource.get("status") in NO_FACTS:
        return False
    verification = resource.get("verificationStatus")
    return verification is None or not any(code in NOT_SO for _, code in codes_of(verification))


def _mark(reading: Reading) -> int:
    return hash((reading.key, reading.stored.version if reading.stored is not None else id(reading)))


class Asked(Protocol):
    """A question whose answer depends on the resources of one type, and of some codes only unless `indexed` is None."""

    @property
    def type(self) -> str: ...

    @property
    def indexed(self) -> frozenset[Code] | None: ...


class Answers:
    """What was found out about a chart, until a change or time makes it another: a reading changes few of the facts."""

    __slots__ = ("_known", "_of_type")

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, int, int | None]] = {}  # question → answer, asked at (ms), good until (ms)
        self._of_type: dict[str, dict[int, frozenset[Code] | None]] = {}

    def get(self, question: int, now: int) -> Any:
        """None where nothing is known that holds at `now` (ms)."""
        known = self._known.get(question)
        if known is None or now < known[1] or (known[2] is not None and now > known[2]):
            return None
        return known[0]

    def keep(self, question: int, answer: Any, asked: Asked, now: int, good_until: int | None) -> None:
        self._known[question] = (answer, now, good_until)
        self._of_type.setdefault(asked.type, {})[question] = asked.indexed

    def changed(self, resource_type: str, codes: frozenset[Code]) -> None:
        """A resource with these codes came, went or changed."""
        of_type = self._of_type.get(resource_type)
        if of_type:
            for question, wanted in of_type.items():
                if wanted is None or not wanted.isdisjoint(codes):
                    self._known.pop(question, None)


class Chart:
    """One patient. `put` and `drop` keep the orders; `version` differs where what is in it differs."""

    def __init__(self, patient: str, resources: Iterable[Resource] = ()) -> None:
        self.id = patient
        self.version = 0
        self._readings: dict[Key, Reading] = {}
        self._types: dict[str, list[Reading]] = {}
        self._codes: dict[tuple[str, Code], list[Reading]] = {}
        self._labelled: dict[str, str] = {}  # reference → label, of what has one
        self.answers = Answers()
        for resource in resources:
            self.put(Reading(resource))

    @property
    def patient(self) -> Resource | None:
        found = self._readings.get(("Patient", self.id))
        return found.resource if found is not None else None

    def get(self, key: Key) -> Reading | None:
        return self._readings.get(key)

    def put(self, reading: Reading) -> None:
        self.drop(reading.key)
        self.version ^= _mark(reading)
        self._readings[reading.key] = reading
        if reading.label:
            self._labelled[reading.reference] = reading.label
        resource_type = reading.key[0]
        self.answers.changed(resource_type, reading.codes)
        insort(self._types.setdefault(resource_type, []), reading)
        for code in reading.codes:
            insort(self._codes.setdefault((resource_type, code), []), reading)

    def drop(self, key: Key) -> None:
        found = self._readings.pop(key, None)
        if found is None:
            return
        self.version ^= _mark(found)
        self._labelled.pop(found.reference, None)
        self.answers.changed(key[0], found.codes)
        self._types[key[0]].remove(found)
        for code in found.codes:
            self._codes[key[0], code].remove(found)

    def put_stored(self, stored: Stored) -> None:
        """A version from the store, a deletion included; older than what is known, it changes nothing."""
        key = (stored.resource_type, stored.id)
        known = self._readings.get(key)
        if known is not None and known.stored is not None and known.stored.version >= stored.version:
            return
        if stored.deleted:
            self.drop(key)
        else:
            self.put(Reading(load(stored.raw), stored))

    @property
    def labelled(self) -> bool:
        """Whether anything in it is."""
        return bool(self._labelled)

    def label(self, references: Iterable[str]) -> str:
        """The highest confidentiality label among these of its resources."""
        return highest(self._labelled.get(one, "") for one in references) if self._labelled else ""

    def of_type(self, resource_type: str) -> list[Reading]:
        """Oldest first."""
        return self._types.get(resource_type, [])

    def coded(self, resource_type: str, code: Code) -> list[Reading]:
        """Oldest first."""
        return self._codes.get((resource_type, code), [])

    def readings(self) -> Iterable[Reading]:
        return self._readings.values()

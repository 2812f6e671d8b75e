"""Cases: given, when, then, not. One YAML file a topic; run in memory. docs/hooks.md (Cases) says how they are written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from fhir_server.automation.definitions import UNITS
from fhir_server.automation.reconcile import CLOSED
from fhir_server.automation.rulebook import Rulebook
from fhir_server.automation.tags import codes
from fhir_server.automation.vocabulary import PATIENT_TAGS, split_canonical, structure
from fhir_server.automation.world import World
from fhir_server.model.content import read_yaml
from fhir_server.model.dates import DAY, instant, interval
from fhir_server.model.resource import Resource
from fhir_server.validation import Validator

PATIENT = "case"
LOINC = "http://loinc.org"
UCUM = "http://unitsofmeasure.org"
DEFAULT_NOW = "2026-06-01T08:00:00+08:00"

_RELATIVE = re.compile(r"([+-])\s*(\d+(?:\.\d+)?)\s*([a-z]+)")
_BP = re.compile(r"(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")
_QUANTITY = re.compile(r"(-?\d+(?:\.\d+)?)\s*(\S.*)?")
MAKES = ("patient", "bp", "observation", "condition", "resource")
EXPECTATIONS = ("tags", "tasks", "assessments", "observations", "interpretations", "flags", "messages", "resources")


class BadCase(Exception):
    """A case that cannot be read: a mistake in the file, not in the rules."""


@dataclass(frozen=True, slots=True)
class Case:
    path: Path
    name: str
    rules: tuple[str, ...]
    body: Mapping[str, Any]


@dataclass(slots=True)
class Verdict:
    case: Case
    problems: list[str] = field(default_factory=list)
    world: World | None = None


def cases(path: Path) -> list[Case]:
    """The cases of one file. Raises BadCase."""
    content = read_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(content, dict) or not isinstance(content.get("cases"), list):
        raise BadCase(f"{path}: a file of cases has a list `cases`")
    rules = content.get("rule", content.get("rules", []))
    ids = tuple(rules) if isinstance(rules, list) else (str(rules),)
    found = []
    for body in content["cases"]:
        strange = set(body) - {"name", "now", "given", "when", "then", "not", "rule"}
        if strange or "name" not in body:
            raise BadCase(f"{path}: {body.get('name', 'a case without a name')}: unknown {', '.join(sorted(strange))}")
        if "then" not in body and "not" not in body:
            raise BadCase(f"{path}: {body['name']}: without `then` or `not` a case cannot fail")
        own = body.get("rule", [])
        found.append(Case(path, str(body["name"]), tuple(own if isinstance(own, list) else [own]) or ids, body))
    return found


def run(case: Case, book: Rulebook, validator: Validator | None = None) -> Verdict:
    """Plays the case on `book`; every deviation in words."""
    verdict = Verdict(case)
    try:
        player = _Player(case, book, validator)
        verdict.world = player.world
        player.play()
        verdict.problems += player.judge()
    except BadCase as error:
        verdict.problems.append(str(error))
    return verdict


class _Player:
    def __init__(self, case: Case, book: Rulebook, validator: Validator | None) -> None:
        self._case = case
        self._start = interval(str(case.body.get("now", DEFAULT_NOW)))[0]
        self.world = World(book, PATIENT, self._start, validator)
        self._count = 0

    def play(self) -> None:
        given = list(self._case.body.get("given", ()))
        if not any("patient" in one for one in given):
            given.insert(0, {"patient": {}})
        for one in given:
            self.world.write(self._make(one))
        self.world.settle()
        for one in self._case.body.get("when", ()):
            self._step(one)
            self.world.settle()

    def _step(self, step: Mapping[str, Any]) -> None:
        if "advance" in step:
            self.world.advance(self.world.now + self._span(str(step["advance"])))
        elif "correct" in step:
            key, resource = self._find(str(step["correct"]))
            fields = {name: value for name, value in step.items() if name != "correct"}
            if "bp" in fields:
                fields["component"] = _components(str(fields.pop("bp")))
            if "value" in fields:
                resource = {name: value for name, value in resource.items() if not name.startswith("value")}
                resource.update(_value(fields.pop("value")))
            self.world.write({**resource, **fields, "id": key[1]})
        elif "delete" in step:
            self.world.delete(self._find(str(step["delete"]))[0])
        elif "close" in step:
            found = [one for one in self._activities(str(step["close"])) if one.get("status") not in CLOSED]
            if not found:
                raise BadCase(f"nothing of {step['close']} is open, so that it cannot be closed")
            self.world.write({**found[0], "status": step.get("status", "completed")})
        else:
            self.world.write(self._make(step))

    def _find(self, id: str) -> tuple[tuple[str, str], Resource]:
        for key in self.world.stored:
            resource = self.world.get(key)
            if key[1] == id and resource is not None:
                return key, resource
        raise BadCase(f"there is no resource with id {id!r}")

    def _span(self, text: str) -> int:
        match = _RELATIVE.fullmatch(text if text[:1] in "+-" else f"+{text}")
        if match is None or match.group(3) not in UNITS:
            raise BadCase(f"{text!r} is no span of time such as 3 d")
        span = int(Decimal(match.group(2)) * UNITS[match.group(3)])
        return -span if match.group(1) == "-" else span

    def _time(self, value: Any) -> str:
        text = str(value)
        return instant(self.world.now + self._span(text)) if text[:1] in "+-" else text

    def _make(self, one: Mapping[str, Any]) -> Resource:
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
        return {**self._observation(one, panel), "component": _components(str(what))}

    def _make_observation(self, what: Mapping[str, Any], one: Mapping[str, Any]) -> Resource:
        fields = dict(what)
        code = {"coding": [_coding(str(fields.pop("code")))]}
        merged: dict[str, Any] = dict(one)
        merged.update((name, fields.pop(name)) for name in ("at", "id") if name in fields)
        resource = self._observation(merged, code)
        if "value" in fields:
            resource.update(_value(fields.pop("value")))
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

    # What came of it

    def judge(self) -> list[str]:
        problems = [f"a derived resource is not valid: {issue.diagnostics}" for issue in self.world.issues]
        problems += [f"the rule {rule} failed: {failure.error}" for rule, failure in self.world.failures()]
        for name, expected in self._case.body.get("then", {}).items():
            problems += self._expected(name, expected)
        for name, unwanted in self._case.body.get("not", {}).items():
            problems += self._unwanted(name, unwanted)
        return problems

    def _expected(self, name: str, expected: Any) -> Iterator[str]:
        if name == "tags":
            have = codes(self.world.get(("Patient", PATIENT)))
            if not expected and have:
                yield f"no tags expected, found {', '.join(sorted(have))}"
            yield from (
                f"the tag {tag} is missing; found {', '.join(sorted(have)) or 'none'}"
                for tag in expected
                if tag not in have
            )
        elif name == "interpretations":
            for id, wanted in expected.items():
                said = self._interpretation(id)
                yield from (f"{id} is not interpreted {code}; found {said}" for code in wanted if code not in said)
        elif name in _TYPES:
            if not expected and self._any(name, {}):
                yield f"no {name} expected, found {self._shown(name)}"
            yield from (
                f"{name}: nothing matches {_plain(one)}; found {self._shown(name)}"
                for one in expected
                if not self._any(name, one)
            )
        else:
            raise BadCase(f"`then` knows {', '.join(EXPECTATIONS)}, not {name!r}")

    def _unwanted(self, name: str, unwanted: Any) -> Iterator[str]:
        if name == "tags":
            have = codes(self.world.get(("Patient", PATIENT)))
            yield from (f"the tag {tag} should not be there" for tag in unwanted if tag in have)
        elif name == "interpretations":
            for id, codes_ in unwanted.items():
                yield from (
                    f"{id} should not be interpreted {code}" for code in codes_ if code in self._interpretation(id)
                )
        elif name in _TYPES:
            yield from (f"{name}: {_plain(one)} should not be there" for one in unwanted if self._any(name, one))
        else:
            raise BadCase(f"`not` knows {', '.join(EXPECTATIONS)}, not {name!r}")

    def _interpretation(self, id: str) -> list[str]:
        _, resource = self._find(id)
        return [
            coding["code"] for concept in resource.get("interpretation", ()) for coding in concept.get("coding", ())
        ]

    def _of(self, name: str) -> list[Resource]:
        return [resource for kind in _TYPES[name] for resource in self.world.resources(kind)]

    def _activities(self, id: str) -> list[Resource]:
        return [one for name in ("tasks", "flags", "messages") for one in self._of(name) if _activity(one) == id]

    def _shown(self, name: str) -> str:
        return "; ".join(_in_words(name, one) for one in self._of(name)) or "none"

    def _any(self, name: str, wanted: Mapping[str, Any]) -> bool:
        return any(self._matches(name, one, wanted) for one in self._of(name))

    def _matches(self, name: str, resource: Resource, wanted: Mapping[str, Any]) -> bool:
        rest = dict(wanted)
        status = rest.pop("status", None)
        if status is not None:
            if resource.get("status") != status:
                return False
        elif resource.get("status") in CLOSED:
            return False
        if name == "assessments":
            return self._assessment(resource, rest)
        if name == "observations":
            return _observed(resource, rest)
        return all(self._field(resource, key, value) for key, value in rest.items())

    def _field(self, resource: Resource, key: str, value: Any) -> bool:
        match key:
            case "activity":
                return bool(_activity(resource) == value)
            case "rule":
                return bool(_rule(resource) == value)
            case "owner":
                return bool(resource.get("owner", {}).get("identifier", {}).get("value") == value)
            case "due":
                text = str(value)
                at = self._start + self._span(text) if text[:1] in "+-" else interval(text)[0]
                return interval(str(_due(resource) or "1900"))[0] == at
            case "at":
                text = str(value)
                at = self._start + self._span(text) if text[:1] in "+-" else interval(text)[0]
                return interval(str(resource.get("occurrenceDateTime", "1900")))[0] == at
            case "focus":
                return str(resource.get("focus", {}).get("reference", "")).endswith(f"/{value}")
            case "text":
                return str(value) in str(resource)
            case "code":
                return bool(_code(resource) == value)
        if key not in resource and key not in ("priority", "type"):
            return False
        return bool(resource["resourceType"] == value if key == "type" else resource.get(key) == value)

    def _assessment(self, resource: Resource, wanted: Mapping[str, Any]) -> bool:
        if wanted.get("score") not in (None, _method(resource)):
            return False
        for prediction in resource.get("prediction", ()):
            outcome = {c.get("code") for c in prediction.get("outcome", {}).get("coding", ())}
            band = {c.get("code") for c in prediction.get("qualitativeRisk", {}).get("coding", ())}
            number = prediction.get("probabilityDecimal")
            if number is None and "rationale" in prediction:
                number = Decimal(str(prediction["rationale"]).split()[0])
            near = Decimal(str(wanted.get("within", 0)))
            value = wanted.get("percent", wanted.get("value"))
            if (
                wanted.get("outcome") in (None, *outcome)
                and wanted.get("band") in (None, *band)
                and (value is None or (number is not None and abs(Decimal(str(value)) - number) <= near))
            ):
                return True
        return False


_SUBJECT = {
    "subject": {"Observation", "Condition", "MedicationStatement", "MedicationRequest", "QuestionnaireResponse", "CarePlan",
                "Goal", "Encounter", "Procedure", "DiagnosticReport", "ServiceRequest", "RiskAssessment"},
    "patient": {"FamilyMemberHistory", "AllergyIntolerance", "Immunization"},
}  # fmt: skip
_WHEN = {"QuestionnaireResponse": "authored", "Condition": "onsetDateTime", "MedicationRequest": "authoredOn",
         "FamilyMemberHistory": "date", "Procedure": "performedDateTime", "Goal": "startDate"}  # fmt: skip
_TYPES: Mapping[str, Sequence[str]] = {
    "tasks": ("Task",), "assessments": ("RiskAssessment",), "observations": ("Observation",), "flags": ("Flag",),
    "messages": ("CommunicationRequest",), "resources": ("CarePlan", "ServiceRequest", "Task", "Flag", "CommunicationRequest"),
}  # fmt: skip


def _components(text: str) -> list[Any]:
    match = _BP.fullmatch(text)
    if match is None:
        raise BadCase(f"{text!r} is no blood pressure such as 140/90")
    return [
        {"code": {"coding": [{"system": LOINC, "code": code}]}, "valueQuantity": _quantity(value, "mm[Hg]")}
        for code, value in (("8480-6", match.group(1)), ("8462-4", match.group(2)))
    ]


def _quantity(value: str, unit: str) -> dict[str, Any]:
    return {"value": Decimal(value), "unit": unit, "system": UCUM, "code": unit}


def _value(value: Any) -> dict[str, Any]:
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


def _code(resource: Resource) -> str:
    return next((str(coding.get("code")) for coding in resource.get("code", {}).get("coding", ())), "")


def _method(resource: Resource) -> str:
    return next((str(coding.get("code")) for coding in resource.get("method", {}).get("coding", ())), "")


def _activity(resource: Resource) -> str:
    canonical = resource.get("instantiatesUri", "")
    for extension in resource.get("extension", ()):
        if extension.get("url") == structure("instantiates-activity"):
            canonical = extension.get("valueCanonical", "")
    return split_canonical(str(canonical))[0].rpartition("/")[2]


def _rule(resource: Resource) -> str:
    canonical = resource.get("instantiatesCanonical", "")
    text = canonical[0] if isinstance(canonical, list) and canonical else canonical
    return split_canonical(str(text))[0].rpartition("/")[2]


def _due(resource: Resource) -> Any:
    return resource.get("restriction", {}).get("period", {}).get("end")


def _observed(resource: Resource, wanted: Mapping[str, Any]) -> bool:
    codings = {coding.get("code") for coding in resource.get("code", {}).get("coding", ())}
    if wanted.get("code") not in (None, *codings):
        return False
    if "value" in wanted:
        number = resource.get("valueQuantity", {}).get("value")
        return number is not None and abs(Decimal(str(wanted["value"])) - number) <= Decimal(
            str(wanted.get("within", 0))
        )
    return True


def _in_words(name: str, one: Resource) -> str:
    if name == "assessments":
        numbers = [str(p.get("probabilityDecimal", p.get("rationale"))) for p in one.get("prediction", ())]
        return f"{_method(one)} {', '.join(numbers)} {one.get('status')}"
    if name == "observations":
        return f"{_code(one)} {one.get('valueQuantity', {}).get('value')}"
    what = _activity(one) or one["resourceType"]
    return f"{what} {one.get('status')} {one.get('priority', '')} due {_due(one)}"


def _plain(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in one.items())

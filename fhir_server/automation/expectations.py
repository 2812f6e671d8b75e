"""What must have come of a case, and what must not: its `then` and `not`, judged. docs/hooks.md, Cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from fhir_server.automation.drafts import PATIENT, BadCase, span
from fhir_server.automation.reconcile import CLOSED
from fhir_server.automation.risk.specification import chinese
from fhir_server.automation.tags import codes
from fhir_server.automation.vocabulary import split_canonical, structure
from fhir_server.automation.world import World
from fhir_server.model.dates import interval
from fhir_server.model.resource import Resource

EXPECTATIONS = ("tags", "tasks", "assessments", "observations", "interpretations", "flags", "messages", "resources")
_TYPES: Mapping[str, Sequence[str]] = {
    "tasks": ("Task",), "assessments": ("RiskAssessment",), "observations": ("Observation",), "flags": ("Flag",),
    "messages": ("CommunicationRequest",), "resources": ("CarePlan", "ServiceRequest", "Task", "Flag", "CommunicationRequest"),
}  # fmt: skip


class Judge:
    """Compares what a case's world holds with what the case expects. `start`: the case's first instant (ms)."""

    def __init__(self, world: World, start: int) -> None:
        self.world, self._start = world, start

    def problems(self, body: Mapping[str, Any]) -> list[str]:
        problems = [f"a derived resource is not valid: {issue.diagnostics}" for issue in self.world.issues]
        problems += [f"the rule {rule} failed: {failure.error}" for rule, failure in self.world.failures()]
        for name, expected in body.get("then", {}).items():
            problems += self._expected(name, expected)
        for name, unwanted in body.get("not", {}).items():
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
        _, resource = find(self.world, id)
        return [
            coding["code"] for concept in resource.get("interpretation", ()) for coding in concept.get("coding", ())
        ]

    def _of(self, name: str) -> list[Resource]:
        return [resource for kind in _TYPES[name] for resource in self.world.resources(kind)]

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
                at = self._start + span(text) if text[:1] in "+-" else interval(text)[0]
                return interval(str(_due(resource) or "1900"))[0] == at
            case "at":
                text = str(value)
                at = self._start + span(text) if text[:1] in "+-" else interval(text)[0]
                return interval(str(resource.get("occurrenceDateTime", "1900")))[0] == at
            case "focus":
                return str(resource.get("focus", {}).get("reference", "")).endswith(f"/{value}")
            case "text":
                return str(value) in _texts(resource)[0]
            case "zh":
                return str(value) in _texts(resource)[1]
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


def find(world: World, id: str) -> tuple[tuple[str, str], Resource]:
    """The stored resource of any type with this id. Raises BadCase."""
    for key in world.stored:
        resource = world.get(key)
        if key[1] == id and resource is not None:
            return key, resource
    raise BadCase(f"there is no resource with id {id!r}")


def activities(world: World, id: str) -> list[Resource]:
    """What was made from the ActivityDefinition with this id."""
    kinds = (kind for name in ("tasks", "flags", "messages") for kind in _TYPES[name])
    return [one for kind in kinds for one in world.resources(kind) if _activity(one) == id]


def _texts(resource: Resource) -> tuple[str, str]:
    """(English, Chinese): what a person reads of a Task, Flag, message or plan."""
    places: tuple[tuple[Any, str], ...] = (
        (resource, "description"),
        (next(iter(resource.get("payload", ())), {}), "contentString"),
        (resource, "patientInstruction"),
        (resource.get("code", {}), "text"),
    )
    return next(((str(place[name]), chinese(place, name)) for place, name in places if name in place), ("", ""))


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
    return f"{what} {one.get('status')} {one.get('priority', '')} due {_due(one)}: {' / '.join(_texts(one))}"


def _plain(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in one.items())

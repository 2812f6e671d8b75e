"""What rules refer to by canonical: ActivityDefinitions, Libraries, ValueSets; the newest version where none is named.

https://hl7.org/fhir/R4/references.html#canonical
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from fhir_server.automation.formulas import Formula, formula
from fhir_server.automation.requirements import AGGREGATES, NUMERIC, FactDefinition, Filter
from fhir_server.automation.risk.specification import chinese
from fhir_server.automation.terms import Codes, of_value_set
from fhir_server.automation.vocabulary import Element, extension, extensions, part, parts, split_canonical, value
from fhir_server.errors import FhirError
from fhir_server.model.dates import DAY, HOUR, MINUTE, SECOND
from fhir_server.model.resource import Resource

UNITS: Mapping[str, int] = {  # UCUM and FHIR's words; a month of 30 days and a year of 365: due times, not calendars
    "s": SECOND, "min": MINUTE, "h": HOUR, "d": DAY, "wk": 7 * DAY, "mo": 30 * DAY, "a": 365 * DAY,
    "second": SECOND, "minute": MINUTE, "hour": HOUR, "day": DAY, "week": 7 * DAY, "month": 30 * DAY, "year": 365 * DAY,
}  # fmt: skip


class Wrong(Exception):
    """A definition that does not compile: where, and why."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")
        self.where, self.why = where, why


def duration(element: Element, where: str) -> int:
    """A Duration → ms. Raises Wrong."""
    unit = str(element.get("code") or element.get("unit"))
    if unit not in UNITS or "value" not in element:
        raise Wrong(where, f"a duration needs a value and a unit of {', '.join(list(UNITS)[:7])}, not {unit!r}")
    return int(Decimal(element["value"]) * UNITS[unit])


def compiled(expression: Any, where: str) -> Formula:
    """An Expression or its text → Formula. Raises Wrong."""
    try:
        found = Formula(expression) if isinstance(expression, str) else formula(expression)
    except (FhirError, ValueError, KeyError) as error:
        raise Wrong(where, str(error)) from None
    if found is None:
        raise Wrong(where, "an expression is missing")
    return found


class Definitions:
    """A set of conformance resources, looked up by canonical; what is compiled from a Library is compiled once."""

    def __init__(self, resources: Iterable[Resource] = ()) -> None:
        self._resources: dict[str, dict[str, Resource]] = {}
        self._facts: dict[str, Mapping[str, tuple[FactDefinition, ...]]] = {}
        self._value_sets: dict[str, Codes] = {}
        for resource in resources:
            self.add(resource)

    def with_(self, resource: Resource) -> Definitions:
        """These, with `resource` in place of what has its type and id."""
        key = (resource["resourceType"], resource.get("id"))
        others = (one for versions in self._resources.values() for one in versions.values())
        return Definitions([*(one for one in others if (one["resourceType"], one.get("id")) != key), resource])

    def add(self, resource: Resource) -> None:
        if "url" in resource:
            self._resources.setdefault(resource["url"], {})[str(resource.get("version", ""))] = resource

    def find(self, canonical: str, resource_type: str = "") -> Resource | None:
        """The version that is named, else the newest that may stand in for it: a later one with the same first number.

        So a laboratory that publishes its own limits as version 1.1.0 need not touch the rules that ask for 1.0.0.
        """
        url, version = split_canonical(canonical)
        versions = self._resources.get(url, {})
        if version in versions:
            chosen = version
        else:
            chosen = max((one for one in versions if not version or _serves(one, version)), key=version_key, default="")
        found = versions.get(chosen)
        return found if found is not None and resource_type in ("", found["resourceType"]) else None

    def exactly(self, url: str, version: str) -> Resource | None:
        return self._resources.get(url, {}).get(version)

    def all(self, resource_type: str) -> Iterable[Resource]:
        for versions in self._resources.values():
            for resource in versions.values():
                if resource["resourceType"] == resource_type:
                    yield resource

    def score(self, code: str) -> Resource | None:
        """The newest Library that specifies the score `code`."""
        found = [
            library
            for library in self.all("Library")
            if (score := extension(library, "score")) is not None and part(score, "code") == code
        ]
        return max(found, key=lambda library: version_key(str(library.get("version", ""))), default=None)

    def value_set(self, canonical: str, where: str) -> Codes:
        """The codes of a ValueSet. Raises Wrong."""
        if canonical not in self._value_sets:
            found = self.find(canonical, "ValueSet")
            if found is None:
                raise Wrong(where, f"the value set {canonical} is not known")
            try:
                self._value_sets[canonical] = of_value_set(found, lambda url: self.find(url, "ValueSet"))
            except (ValueError, KeyError) as error:
                raise Wrong(where, str(error)) from None
        return self._value_sets[canonical]

    def facts_of(self, canonical: str, where: str) -> Mapping[str, tuple[FactDefinition, ...]]:
        """The facts of a Library, by name. Raises Wrong."""
        if canonical not in self._facts:
            library = self.find(canonical, "Library")
            if library is None:
                raise Wrong(where, f"the library {canonical} is not known")
            self._facts[canonical] = self.facts(library.get("dataRequirement", ()), f"{library['url']} dataRequirement")
        return self._facts[canonical]

    def facts(self, requirements: Iterable[Element], where: str) -> Mapping[str, tuple[FactDefinition, ...]]:
        """DataRequirements with the `fact` extension, by name; equal names are alternatives in order."""
        found: dict[str, tuple[FactDefinition, ...]] = {}
        for index, requirement in enumerate(requirements):
            if extension(requirement, "fact") is not None:
                definition = self.fact(requirement, f"{where}[{index}]")
                found[definition.name] = (*found.get(definition.name, ()), definition)
        return found

    def fact(self, requirement: Element, where: str) -> FactDefinition:
        fact = extension(requirement, "fact")
        assert fact is not None
        known = {"name", "component", "unit", "molar-mass", "value", "formula", "where", "aggregate", "at-least",
                 "distinct-days", "day-first-dropped", "display"}  # fmt: skip
        strange = {one["url"] for one in fact.get("extension", ())} - known
        if strange:
            raise Wrong(where, f"the fact extension has no part {', '.join(sorted(strange))}")
        name = part(fact, "name")
        if not isinstance(name, str) or not name.isidentifier():
            raise Wrong(where, f"the name of a fact must be letters, digits and _, not {name!r}")
        aggregate = part(fact, "aggregate", "last")
        if aggregate not in AGGREGATES:
            raise Wrong(where, f"the aggregate {aggregate!r} is none of {', '.join(sorted(AGGREGATES))}")
        unit = part(fact, "unit", "")
        if aggregate in NUMERIC and not unit:
            raise Wrong(where, f"the aggregate {aggregate} needs a unit")
        component = parts(fact, "component")

        def expression(what: str) -> Formula | None:
            text = part(fact, what)
            return None if text is None else compiled(text, f"{where} {what}")

        return FactDefinition(
            name=name,
            type=str(requirement.get("type")),
            filters=self.filters(requirement, where),
            within=self._within(requirement, where),
            limit=int(requirement.get("limit", 0)),
            aggregate=aggregate,
            component=Codes(frozenset((str(c.get("system", "")), str(c["code"])) for c in component))
            if component
            else None,
            unit=unit,
            molar_mass=part(fact, "molar-mass"),
            value=expression("value"),
            formula=expression("formula"),
            where=expression("where"),
            at_least=int(part(fact, "at-least", 1)),
            distinct_days=int(part(fact, "distinct-days", 1)),
            day_first_dropped=bool(part(fact, "day-first-dropped", False)),
            display=str(part(fact, "display", "")),
            zh=next((chinese(one, "valueString") for one in fact["extension"] if one["url"] == "display"), ""),
        )

    def filters(self, requirement: Element, where: str) -> tuple[Filter, ...]:
        """The codeFilters of a DataRequirement. Raises Wrong."""
        found = []
        for index, one in enumerate(requirement.get("codeFilter", ())):
            at = f"{where}.codeFilter[{index}]"
            if "path" not in one:
                raise Wrong(at, "a code filter needs a path")
            codes = Codes(frozenset((str(c.get("system", "")), str(c["code"])) for c in one.get("code", ())))
            if "valueSet" in one:
                codes = codes.union(self.value_set(one["valueSet"], at))
            if not codes.listed and not codes.patterns:
                raise Wrong(at, "a code filter needs codes or a value set")
            found.append(Filter(str(one["path"]), codes))
        return tuple(sorted(found, key=lambda f: f.path != "code"))

    def _within(self, requirement: Element, where: str) -> int:
        for one in requirement.get("dateFilter", ()):
            if "valueDuration" not in one:
                raise Wrong(f"{where}.dateFilter", "only valueDuration is supported")
            return duration(one["valueDuration"], f"{where}.dateFilter")
        return 0

    def parameters(self, resource: Element) -> Mapping[str, Any]:
        """The `parameter` extensions of a Library or PlanDefinition: name → value."""
        return {part(one, "name"): next((v for e in one["extension"] if e["url"] == "value" for v in [value(e)]), None)
                for one in extensions(resource, "parameter")}  # fmt: skip


def score_outcomes(library: Resource) -> list[Element]:
    """The Codings of the outcomes a score's Library offers; none where it has only one result."""
    score = extension(library, "score")
    return parts(score, "outcome") if score is not None else []


def _serves(version: str, wanted: str) -> bool:
    have, need = version_key(version), version_key(wanted)
    return have[0] == need[0] and have > need


def version_key(version: str) -> tuple[Any, ...]:
    """Orders versions as people do: 1.10.0 after 1.9.0, text after numbers."""
    return tuple((0, int(item), "") if item.isdigit() else (1, 0, item) for item in version.split("."))

"""The search parameters of each resource type. https://hl7.org/fhir/R4/searchparameter-registry.html"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from fhir_server.errors import Unprocessable
from fhir_server.model.definitions import (
    RESOURCE_TYPES,
    SearchParameterDefinition,
    search_parameters,
    type_definition,
)
from fhir_server.search import types
from fhir_server.search.paths import Path, resolve
from fhir_server.search.records import memberships
from fhir_server.store.protocol import Index

State = Literal["ready", "unindexed"]

# Parameters that are no field of an index entry; search/parse.py knows each of them by name.
SPECIAL = frozenset({"_id", "_lastUpdated", "_text", "_content", "_list", "_has", "_type", "_filter"})

# Why a parameter of the definitions is not served; said in the documentation, absent from the CapabilityStatement.
UNSERVED: Mapping[tuple[str, str], str] = {
    ("Resource", "_query"): "names searches that a server defines; this one defines none",
    ("Patient", "age"): "the definitions give it no expression; search by birthdate",
    ("Patient", "birthOrderBoolean"): "the definitions give it no expression; search by birthdate",
    ("Patient", "part-agree"): "its expression looks at DocumentReference, its base is Patient",
    ("Bundle", "composition"): "its value is a resource inside the bundle, not a reference to one",
    ("Bundle", "message"): "its value is a resource inside the bundle, not a reference to one",
}

# Expressions that are computed rather than looked up; index.py has the function.
COMPUTED = frozenset({"Patient.deceased.exists() and Patient.deceased != false"})


# Components whose expressions R4 gives to each other's definitions.
CORRECTED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "http://hl7.org/fhir/SearchParameter/DocumentReference-relationship": (
        ("http://hl7.org/fhir/SearchParameter/DocumentReference-relatesto", "target"),
        ("http://hl7.org/fhir/SearchParameter/DocumentReference-relation", "code"),
    )
}


@dataclass(frozen=True, slots=True)
class Component:
    """One part of a composite: the parameter it is, and where it is, seen from the composite's element."""

    parameter: Parameter
    expression: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """One search parameter as it applies to one resource type."""

    resource_type: str
    code: str
    type: str  # number | date | string | token | reference | composite | quantity | uri | special
    url: str
    expression: str
    targets: tuple[str, ...] = ()
    components: tuple[Component, ...] = ()
    state: State = "ready"
    field: str = ""  # name of its entries; "" for a composite that is the conjunction of its components
    parts: tuple[Parameter, ...] = ()  # whose entries together are this one's, which then has none of its own
    resolves_to: str = ""  # shares the entries of a wider parameter: only references to this type are its own
    single: bool = False  # at most one value, and the entry is that value, no array (references, dates, numbers)
    paths: tuple[Path, ...] | None = None  # None: the expression needs FHIRPath, or is computed
    custom: bool = False
    fhir_types: frozenset[str] = frozenset()

    @property
    def short(self) -> bool:
        """Dates: no value can be longer than a year."""
        return not self.fhir_types & {"Period", "Timing"} and self.paths is not None

    @property
    def of_names(self) -> bool:
        """Strings: nothing but names of people, whose entries have their endings (types/string.py)."""
        return (
            self.type == "string"
            and bool(self.paths)
            and all(p.type == "HumanName" or p.keys[-1:] in (("family",), ("given",)) for p in self.paths or ())
        )

    @property
    def modifiers(self) -> frozenset[str]:
        """Besides the names of target types, for references."""
        return types.modifiers(self.type, self.fhir_types)


class Registry:
    """Parameters by type and code. Standard ones come from the definitions; custom ones are added while running.

    One per process; adding is not safe while another thread reads. `version` changes with every change, for caches.
    """

    def __init__(self, definitions: Iterable[SearchParameterDefinition] = ()) -> None:
        self._by_base: dict[str, list[SearchParameterDefinition]] = {}
        self._by_url: dict[str, SearchParameterDefinition] = {}
        self._custom: dict[str, tuple[SearchParameterDefinition, State]] = {}
        self._parameters: dict[str, dict[str, Parameter]] = {}
        self.version = 0
        for definition in definitions:
            self._by_url[definition.url] = definition
            for base in definition.base:
                self._by_base.setdefault(base, []).append(definition)

    @classmethod
    def standard(cls) -> Registry:
        """R4's own parameters, nothing else."""
        return cls(search_parameters())

    def parameter(self, resource_type: str, code: str) -> Parameter | None:
        return self.parameters(resource_type).get(code)

    def parameters(self, resource_type: str) -> Mapping[str, Parameter]:
        """Everything that can be asked of one type, by code. Empty for what is no resource type."""
        found = self._parameters.get(resource_type)
        if found is None:
            if resource_type not in RESOURCE_TYPES:
                return {}
            found = self._parameters[resource_type] = self._build(resource_type)
        return found

    def indexes(self, resource_type: str) -> list[Index]:
        """What the store creates with the collection of this type, besides its own: see search/indexes.py."""
        from fhir_server.search.indexes import indexes  # noqa: PLC0415  (it is built on parameters)

        return indexes(self, resource_type)

    def compartment(self, code: str, resource_type: str) -> list[Parameter]:
        """The parameters that put a resource of this type into compartments of type `code`. KeyError if unknown."""
        known = self.parameters(resource_type)
        return [known[name] for name in memberships(code).get(resource_type, ()) if name in known]

    # Custom parameters

    def add(self, definition: Mapping[str, Any], state: State = "unindexed") -> list[Parameter]:
        """A SearchParameter resource → its parameters, one a base type. Raises Unprocessable for one we cannot serve."""
        row = _row(definition)
        before = dict(self._custom)
        self._custom[row.url] = (row, state)
        self._changed()
        try:
            return [self._custom_parameter(base, row, state) for base in _bases(row)]
        except Unprocessable:
            self._custom = before
            self._changed()
            raise

    def remove(self, url: str) -> None:
        if self._custom.pop(url, None) is not None:
            self._changed()

    def mark_ready(self, url: str) -> None:
        """After a reindex: the parameter is in force."""
        if url in self._custom:
            self._custom[url] = (self._custom[url][0], "ready")
            self._changed()

    def custom(self) -> Mapping[str, State]:
        """URL → state of every custom parameter."""
        return {url: state for url, (_, state) in self._custom.items()}

    def unindexed(self) -> dict[str, set[str]]:
        """Resource type → URLs of parameters that wait for a reindex."""
        waiting: dict[str, set[str]] = {}
        for url, (row, state) in self._custom.items():
            if state == "unindexed":
                for base in _bases(row):
                    waiting.setdefault(base, set()).add(url)
        return waiting

    def unserved(self, resource_type: str) -> dict[str, str]:
        """Code → reason, for the parameters of the definitions that are not served."""
        return {
            code: reason
            for (base, code), reason in UNSERVED.items()
            if base == resource_type or (base == "Resource" and resource_type in RESOURCE_TYPES)
        }

    def _changed(self) -> None:
        self._parameters.clear()
        self.version += 1

    def _custom_parameter(self, base: str, row: SearchParameterDefinition, state: State) -> Parameter:
        parameter = self.parameter(base, row.code)
        if parameter is None or parameter.url != row.url:
            raise Unprocessable(
                f"SearchParameter {row.url} cannot be served on {base}: "
                + (
                    f"{parameter.url} already has the code {row.code!r}"
                    if parameter
                    else f"its expression {row.expression!r} yields nothing of type {row.type}"
                ),
                expression=["SearchParameter.expression"],
            )
        return replace(parameter, state=state)

    def _rows(self, resource_type: str) -> Iterator[tuple[SearchParameterDefinition, State, bool]]:
        bases = ["Resource"]
        if type_definition(resource_type).base == "DomainResource":
            bases.append("DomainResource")
        for base in (*bases, resource_type):
            for row in self._by_base.get(base, ()):
                if (base, row.code) not in UNSERVED and row.code not in SPECIAL:
                    yield row, "ready", False
        for row, state in self._custom.values():
            if resource_type in _bases(row):
                yield row, state, True

    def _build(self, resource_type: str) -> dict[str, Parameter]:
        found: dict[str, Parameter] = {}
        composites: list[tuple[SearchParameterDefinition, State, bool]] = []
        for row, state, custom in self._rows(resource_type):
            if row.type == "composite":
                composites.append((row, state, custom))
            elif row.code not in found:
                parameter = _parameter(resource_type, row, state, custom)
                if parameter is not None:
                    found[row.code] = parameter
        _share(found)
        _unite(found)
        by_url = {parameter.url: parameter for parameter in found.values()}
        for row, state, custom in composites:
            composite = _composite(resource_type, row, by_url)
            if composite is not None and row.code not in found:
                found[row.code] = replace(composite, state=state, custom=custom)
        return found


@cache
def standard() -> Registry:
    """A shared registry of R4's own parameters, for what needs no custom ones. Not to be changed."""
    return Registry.standard()


def _parameter(resource_type: str, row: SearchParameterDefinition, state: State, custom: bool) -> Parameter | None:
    paths = resolve(row.expression, resource_type)
    fits = types.fhir_types(row.type)
    targets = tuple(t for t in row.target if t in RESOURCE_TYPES)
    if paths is None:
        computed = row.expression in COMPUTED
        if not computed and not custom:
            return None
        known = frozenset({"boolean"}) if computed else frozenset()
        return Parameter(
            resource_type,
            row.code,
            row.type,
            row.url,
            row.expression,
            targets,
            (),
            state,
            _field(row.code),
            custom=custom,
            fhir_types=known,
        )
    usable = tuple(path for path in paths if path.type in fits)
    if not usable:
        return None
    resolved = {path.resolves_to for path in usable}
    if len(resolved) == 1 and "" not in resolved:
        targets = tuple(resolved)
    elif row.type == "reference":
        # The definitions list every target of every base; the element says what this type can refer to.
        named = {t for path in usable for t in path.targets}
        if named and all(path.targets for path in usable):
            targets = tuple(sorted(named & set(targets) if targets else named))
    return Parameter(
        resource_type, row.code, row.type, row.url, row.expression, targets, (), state,
        _field(row.code), single=_single(row.type, usable), paths=usable, custom=custom,
        fhir_types=frozenset(path.type for path in usable),
    )  # fmt: skip


def _single(search_type: str, paths: tuple[Path, ...]) -> bool:
    if search_type not in ("reference", "date", "number", "special"):
        return False
    if any(path.many for path in paths) or (search_type == "reference" and any(p.type != "Reference" for p in paths)):
        return False
    return len({path.choice or path.keys for path in paths}) == 1


def _share(found: dict[str, Parameter]) -> None:
    """`patient` is `subject` where it refers to a Patient: no entries of its own, and subject's indexes serve both."""
    plain = {
        frozenset(parameter.paths): code
        for code, parameter in found.items()
        if parameter.type == "reference" and parameter.paths and not any(p.resolves_to for p in parameter.paths)
    }
    for code, parameter in found.items():
        if parameter.type != "reference" or not parameter.paths:
            continue
        kinds = {path.resolves_to for path in parameter.paths}
        bare = frozenset(replace(path, resolves_to="") for path in parameter.paths)
        if len(kinds) == 1 and "" not in kinds and bare in plain:
            wider = found[plain[bare]]
            found[code] = replace(
                parameter, field=wider.field, resolves_to=next(iter(kinds)), single=wider.single, targets=tuple(kinds)
            )


def _unite(found: dict[str, Parameter]) -> None:
    """`combo-code` is `code` and `component-code` together: asking both costs less than indexing everything twice.

    (A blood pressure has 17 index keys less, of 57; what indexes cost is two thirds of what a create costs the database.)
    """
    for code, parameter in list(found.items()):
        if parameter.type not in ("token", "quantity") or not parameter.paths or len(parameter.paths) < 2:
            continue
        wanted = frozenset(parameter.paths)
        narrower = [
            other
            for other in found.values()
            if other.type == parameter.type and other.paths and not other.parts and frozenset(other.paths) < wanted
        ]
        parts: list[Parameter] = []
        for other in sorted(narrower, key=lambda one: -len(one.paths or ())):
            if not any(frozenset(other.paths or ()) & frozenset(part.paths or ()) for part in parts):
                parts.append(other)
        if frozenset(path for part in parts for path in part.paths or ()) == wanted:
            found[code] = replace(parameter, parts=tuple(parts), field="")


def _composite(resource_type: str, row: SearchParameterDefinition, by_url: Mapping[str, Parameter]) -> Parameter | None:
    contexts = resolve(row.expression, resource_type)
    rows = CORRECTED.get(row.url, row.components)
    if not contexts or not rows or any(url not in by_url for url, _ in rows):
        return None
    components = tuple(Component(by_url[url], expression) for url, expression in rows)
    # Seen from the resource itself, "both in the same element" is no more than "both".
    whole = all(not context.steps for context in contexts)
    return Parameter(
        resource_type, row.code, "composite", row.url, row.expression, (), components, "ready",
        "" if whole else _field(row.code), paths=tuple(contexts),
    )  # fmt: skip


def _field(code: str) -> str:
    return code.replace(".", "_").replace("$", "_")


def _bases(row: SearchParameterDefinition) -> list[str]:
    if {"Resource", "DomainResource"} & set(row.base):
        return sorted(RESOURCE_TYPES)
    return [base for base in row.base if base in RESOURCE_TYPES]


_CODE = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]{0,63}", re.ASCII)


def _row(definition: Mapping[str, Any]) -> SearchParameterDefinition:
    for key in ("url", "code", "type", "base", "expression"):
        if not definition.get(key):
            raise Unprocessable(
                f"A SearchParameter needs {key} to be searched by", expression=[f"SearchParameter.{key}"]
            )
    if not _CODE.fullmatch(definition["code"]) or definition["code"] in SPECIAL:
        raise Unprocessable(
            f"{definition['code']!r} cannot be the code of a parameter", expression=["SearchParameter.code"]
        )
    if definition["type"] == "special" or not types.is_type(definition["type"]):
        raise Unprocessable(
            f"Parameters of type {definition['type']!r} cannot be added", expression=["SearchParameter.type"]
        )
    return SearchParameterDefinition(
        definition["url"],
        definition["code"],
        definition["type"],
        tuple(definition["base"]),
        definition["expression"],
        tuple(definition.get("target", ())),
        tuple((c["definition"], c["expression"]) for c in definition.get("component", ())),
    )

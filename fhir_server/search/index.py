"""A resource's search entries and the patients whose compartments hold it. https://hl7.org/fhir/R4/search.html"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from fhir_server.model import fhirpath
from fhir_server.model.definitions import RESOURCE_TYPES
from fhir_server.search import fulltext, types
from fhir_server.search.entries import CONTAINED, Indexed
from fhir_server.search.paths import Path
from fhir_server.search.records import CARRIERS, mentioned
from fhir_server.search.registry import COMPUTED, Parameter, Registry
from fhir_server.search.tree import Captured, Node, Work, composite, converter
from fhir_server.search.types import reference, token

__all__ = ["Indexed", "index"]

# FHIRPath's own types, which computed values have, as the FHIR types they are indexed like.
SYSTEM_TYPES = {
    f"System.{name}": name[0].lower() + name[1:]
    for name in ("Boolean", "String", "Integer", "Decimal", "Date", "DateTime")
} | {"System.Quantity": "Quantity"}


def index(registry: Registry, resource: Mapping[str, Any], *, base: str = "") -> Indexed:
    """Entries of every parameter that has a definition, in force or not; references that start with `base` are local.

    Never fails on a resource that is not valid: what cannot be read has no entry.
    """
    indexer = _indexer(registry, str(resource.get("resourceType", "")))
    entries = indexer.entries(resource, base)
    return Indexed(entries, indexer.patients(resource, entries, base))


class _Indexer:
    """The compiled tree of one resource type."""

    def __init__(self, registry: Registry, resource_type: str) -> None:
        self._registry = weakref.ref(registry)
        root = Node()
        computed: list[tuple[Parameter, Callable[[Mapping[str, Any], str], list[Any]]]] = []
        composites: list[Parameter] = []
        for parameter in registry.parameters(resource_type).values():
            if parameter.resolves_to and any(not p.resolves_to for p in _sharing(registry, parameter)):
                continue  # lives in the wider parameter's entries
            if parameter.parts:
                continue
            if parameter.type == "composite":
                if parameter.field:
                    composites.append(parameter)
            elif parameter.paths is None:
                computed.append((parameter, _computed(parameter)))
            else:
                for path in parameter.paths:
                    node = root.at(path)
                    if path.type == "Reference":
                        node.references.append((parameter.field, path.resolves_to, parameter.single))
                    else:
                        kind = (
                            "phonetic" if parameter.code == "phonetic" and path.type == "HumanName" else parameter.type
                        )
                        node.leaf(kind, path).fields.append((parameter.field, parameter.single))
        finishes = [f for parameter in composites for f in composite(root, parameter)]
        self._walk = root.compile()
        self._finishes = finishes
        self._computed = computed
        self._resource_type = resource_type
        self._patients = [
            (p.field, p.single) for p in registry.compartment("Patient", resource_type) if p.type == "reference"
        ]

    def entries(self, resource: Mapping[str, Any], base: str) -> dict[str, Any]:
        work = Work(resource, base)
        captured: Captured = {}
        self._walk(resource, work, captured)
        for finish in self._finishes:
            finish(work, captured)
        for parameter, compute in self._computed:
            found = compute(resource, base)
            if found:
                work.entries[parameter.field] = found
        if "contained" in resource:
            self._contain(work)
        if "text" in resource:
            found = fulltext.narrative(resource)
            if found:
                work.entries[fulltext.TEXT] = found
        found = fulltext.content(resource)
        if found:
            work.entries[fulltext.CONTENT] = found
        return work.entries

    def patients(self, resource: Mapping[str, Any], entries: Mapping[str, Any], base: str) -> tuple[str, ...]:
        found: dict[str, None] = {}
        if self._resource_type in CARRIERS:
            found.update(dict.fromkeys(mentioned(resource, base)))
        if self._resource_type == "Patient" and "id" in resource:
            found[resource["id"]] = None
        for field, single in self._patients:
            value = entries.get(field)
            if value is None:
                continue
            for text in (value,) if single else value:
                if text.startswith("Patient/"):
                    found[text[8:]] = None
        return tuple(found)

    def _contain(self, work: Work) -> None:
        registry = self._registry()
        assert registry is not None
        items: list[dict[str, Any]] = []
        contained = work.resource.get("contained")
        for inner in contained if type(contained) is list else ():
            if type(inner) is not dict or inner.get("resourceType") not in RESOURCE_TYPES:
                continue
            indexer = _indexer(registry, inner["resourceType"])
            item: dict[str, Any] = {"t": inner["resourceType"]}
            if type(inner.get("id")) is str:
                item["i"] = inner["id"]
                fields = list(dict.fromkeys(field for field, id in work.contained if id == inner["id"]))
                if fields:
                    item["p"] = fields
            item["s"] = indexer.entries({k: v for k, v in inner.items() if k != "contained"}, work.base)
            items.append(item)
        if items:
            work.entries[CONTAINED] = items


def _sharing(registry: Registry, parameter: Parameter) -> list[Parameter]:
    return [
        other
        for other in registry.parameters(parameter.resource_type).values()
        if other.field == parameter.field and other.code != parameter.code
    ]


def _computed(parameter: Parameter) -> Callable[[Mapping[str, Any], str], list[Any]]:
    """Parameters whose expression is no path."""
    if parameter.expression in COMPUTED:
        return lambda resource, base: token.boolean(
            any(key in resource and resource[key] is not False for key in ("deceasedBoolean", "deceasedDateTime"))
        )
    expression = fhirpath.compile(parameter.expression, root_type=parameter.resource_type)
    usable = types.fhir_types(parameter.type)

    def compute(resource: Mapping[str, Any], base: str) -> list[Any]:
        found: list[Any] = []
        for name, value in expression.typed(resource):
            fhir_type = SYSTEM_TYPES.get(name, name)
            if fhir_type not in usable:
                continue
            if fhir_type == "Reference":
                literal = value.get("reference")
                if type(literal) is str and not literal.startswith("#"):
                    found.append(reference.local(literal, base)[0])
            else:
                found.extend(converter(parameter.type, Path((), fhir_type))(value))
        return found

    return compute


def _indexer(registry: Registry, resource_type: str) -> _Indexer:
    version, known = _INDEXERS.get(registry, (-1, {}))
    if version != registry.version:
        known = {}
        _INDEXERS[registry] = (registry.version, known)
    indexer = known.get(resource_type)
    if indexer is None:
        indexer = known[resource_type] = _Indexer(registry, resource_type)
    return indexer


# Compiled trees by registry; they go when their registry goes or changes.
_INDEXERS: weakref.WeakKeyDictionary[Registry, tuple[int, dict[str, _Indexer]]] = weakref.WeakKeyDictionary()

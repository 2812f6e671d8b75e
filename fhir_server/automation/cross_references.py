"""What the content's resources say of each other: every code is in terminology/, every canonical is here and names a version."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fhir_server.automation.definitions import Definitions
from fhir_server.automation.vocabulary import BASE, split_canonical, structure, value
from fhir_server.model.resource import Resource
from fhir_server.terminology import units

CANONICALS = frozenset(
    {"library", "definitionCanonical", "valueCanonical", "valueSet", "answerValueSet", "instantiatesCanonical"}
)
Known = dict[str, frozenset[str]]


def vocabulary(resources: Iterable[Resource]) -> Known:
    """System → its codes, of every CodeSystem; a supplement gives those it names of the system it supplements."""
    known: dict[str, set[str]] = {}
    for resource in resources:
        if resource.get("resourceType") == "CodeSystem":
            system = str(resource.get("supplements") or resource.get("url"))
            known.setdefault(system, set()).update(_concepts(resource))
    return {system: frozenset(codes) for system, codes in known.items()}


def problems(resource: Resource, vocabulary: Known, known: Definitions) -> Iterator[str]:
    """What this resource refers to and is not here. Codes of value sets are whole systems of others (ICD-10, ATC): not asked."""
    for where, name, element in _walk(resource, ""):
        if isinstance(element, dict):
            if resource.get("resourceType") != "CodeSystem":
                yield from _coding(where, element, vocabulary)
            yield from _unit(where, element)
        elif name in CANONICALS and isinstance(element, str):
            yield from _canonical(where, element, known)


def _coding(where: str, element: Resource, vocabulary: Known) -> Iterator[str]:
    system, code = element.get("system"), element.get("code")
    if not isinstance(system, str) or not isinstance(code, str):
        return
    if system == units.SYSTEM:
        if units.parse(code) is None:
            yield f"{where}: {code} is not a unit of UCUM"
    elif system not in vocabulary:
        yield f"{where}: the code system {system} is not in terminology/"
    elif code not in vocabulary[system]:
        yield f"{where}: {system} has no code {code!r} in terminology/"


def _unit(where: str, element: Resource) -> Iterator[str]:
    """The unit of a fact: with one that UCUM does not know, it never has a value."""
    if element.get("url") == structure("fact"):
        for one in element.get("extension", ()):
            if one.get("url") == "unit" and units.parse(str(value(one))) is None:
                yield f"{where}: {value(one)} is not a unit of UCUM"


def _canonical(where: str, canonical: str, known: Definitions) -> Iterator[str]:
    url, version = split_canonical(canonical)
    if not url.startswith(f"{BASE}/"):
        return
    if known.find(url) is None:
        yield f"{where}: {canonical} is not part of the content"
    elif not version:
        yield f"{where}: {canonical} should name a version"
    elif known.exactly(url, version) is None:
        yield f"{where}: the content has another version than {canonical}"


def _concepts(element: Resource) -> Iterator[str]:
    for concept in element.get("concept", ()):
        yield str(concept["code"])
        yield from _concepts(concept)


def _walk(element: Any, path: str, name: str = "") -> Iterator[tuple[str, str, Any]]:
    """(path, name of the element, element) of everything in it."""
    yield path, name, element
    if isinstance(element, dict):
        for key, item in element.items():
            yield from _walk(item, f"{path}.{key}" if path else key, key)
    elif isinstance(element, list):
        for index, item in enumerate(element):
            yield from _walk(item, f"{path}[{index}]", name)

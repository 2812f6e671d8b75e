"""Parts of a resource: `_summary` and `_elements`. https://hl7.org/fhir/R4/search.html#summary

What is left out is said by the tag SUBSETTED, so that nobody writes the part back as the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fhir_server.errors import BadRequest
from fhir_server.model.definitions import TypeDefinition, type_definition
from fhir_server.model.resource import Resource

SUBSETTED = {"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED"}
ALWAYS = frozenset({"resourceType", "id", "meta"})


def subset(resource: Mapping[str, Any], summary: str | None, elements: Sequence[str] = ()) -> Resource:
    """`summary`: true | text | data | None; `elements`: top-level names, which win over a summary. A copy is returned."""
    definition = type_definition(str(resource["resourceType"]))
    if elements:
        kept = _elements(definition, elements)
        part = {key: value for key, value in resource.items() if key.removeprefix("_") in kept}
    elif summary == "true":
        part = _summarized(resource, definition)
    elif summary == "text":
        kept = _mandatory(definition) | ALWAYS | {"text"}
        part = {key: value for key, value in resource.items() if key.removeprefix("_") in kept}
    elif summary == "data":
        part = {key: value for key, value in resource.items() if key.removeprefix("_") != "text"}
    else:
        return dict(resource)
    return _tagged(part)


def _elements(definition: TypeDefinition, names: Sequence[str]) -> frozenset[str]:
    """JSON keys to keep: those asked for (a choice by its name or with its type), what is mandatory, and the head."""
    kept = set(ALWAYS) | _mandatory(definition)
    for given in names:
        name = given.removeprefix(f"{definition.name}.").removesuffix("[x]")
        kept.update(key for key, element in definition.elements.items() if name in (key, element.name))
        # A search over several types may name what only one of them has, so a name that this type lacks is no error.
        if not name.replace("_", "").isalnum():
            raise BadRequest(f"_elements: {name[:60]!r} is not the name of an element")
    return frozenset(kept)


def _mandatory(definition: TypeDefinition) -> frozenset[str]:
    return frozenset(key for key, element in definition.elements.items() if element.min > 0)


def _summarized(value: Mapping[str, Any], definition: TypeDefinition) -> Resource:
    part: Resource = {}
    for key, item in value.items():
        element = definition.elements.get(key.removeprefix("_"))
        if key in ALWAYS or (element is not None and (element.summary or element.min > 0)):
            part[key] = item if element is None or key in ALWAYS or key[0] == "_" else _within(item, element.type)
    return part


def _within(item: Any, type_name: str) -> Any:
    """Backbone elements have summary flags of their own; a data type in a summary is shown whole."""
    if isinstance(item, list):
        return [_within(one, type_name) for one in item]
    if isinstance(item, dict) and "." in type_name:
        return _summarized(item, type_definition(type_name))
    return item


def _tagged(part: Resource) -> Resource:
    meta = dict(part.get("meta", {}))
    meta["tag"] = [*meta.get("tag", ()), SUBSETTED]
    result: Resource = {}
    for key, value in part.items():
        if key != "meta":
            result[key] = value
        if key == "id":
            result["meta"] = meta
    result.setdefault("meta", meta)
    return result

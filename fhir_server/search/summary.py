"""`_summary` and `_elements`: a part of a resource, marked as one. https://hl7.org/fhir/R4/search.html#summary"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fhir_server.model.definitions import Element, TypeDefinition, type_definition

SUBSETTED = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
    "code": "SUBSETTED",
    "display": "subsetted",
}
_ALWAYS = ("resourceType", "id", "meta")


def subset(resource: Mapping[str, Any], summary: str, elements: Sequence[str] = ()) -> dict[str, Any]:
    """`summary`: "" | true | text | data | false (| count, which has no resources); `elements`: names at the top level.

    Mandatory and modifier elements stay, as the specification asks. Unchanged if neither says otherwise.
    """
    if elements:
        wanted = {name.rpartition(".")[2] for name in elements}
        return _marked(resource, lambda element: element.name in wanted or _needed(element))
    if summary == "true":
        definition = type_definition(str(resource["resourceType"]))
        return _mark(_summarised(resource, definition))
    if summary == "text":
        return _marked(resource, lambda element: element.name == "text" or _needed(element))
    if summary == "data":
        return _marked(resource, lambda element: element.name != "text")
    return dict(resource)


def _needed(element: Element) -> bool:
    return element.min > 0 or element.modifier


def _marked(resource: Mapping[str, Any], wanted: Any) -> dict[str, Any]:
    definition = type_definition(str(resource["resourceType"]))
    return _mark(
        {
            key: value
            for key, value in resource.items()
            if key in _ALWAYS or ((element := _element(definition, key)) is not None and wanted(element))
        }
    )


def _summarised(item: Mapping[str, Any], definition: TypeDefinition) -> dict[str, Any]:
    """Summary elements, at every depth where the definitions say so (backbone elements)."""
    found: dict[str, Any] = {}
    for key, value in item.items():
        if key in _ALWAYS:
            found[key] = value
            continue
        element = _element(definition, key)
        if element is None or not (element.summary or _needed(element)):
            continue
        part = _part(value, element, definition)
        if part:
            found[key] = part
        elif value == part:
            found[key] = value
    return found


def _part(value: Any, element: Element, definition: TypeDefinition) -> Any:
    """Of an element with elements of its own, its summary; any other value as it is."""
    if "." not in element.type or element.type == definition.name:
        return value
    inner = type_definition(element.type)
    if isinstance(value, list):
        return [_summarised(v, inner) if isinstance(v, dict) else v for v in value]
    return _summarised(value, inner) if isinstance(value, dict) else value


def _element(definition: TypeDefinition, key: str) -> Element | None:
    return definition.elements.get(key.removeprefix("_"))


def _mark(resource: dict[str, Any]) -> dict[str, Any]:
    """With the tag that says this is not all of it, so that nobody writes it back."""
    meta = dict(resource.get("meta") or {})
    tags = [t for t in meta.get("tag", ()) if t.get("code") != "SUBSETTED"]
    meta["tag"] = [*tags, SUBSETTED]
    marked = {"resourceType": resource["resourceType"]}
    if "id" in resource:
        marked["id"] = resource["id"]
    marked["meta"] = meta
    return {**marked, **{k: v for k, v in resource.items() if k not in marked}}

"""Places in a resource that FHIRPath leads to. https://hl7.org/fhir/R4/fhirpatch.html

A path is evaluated on a copy in which every primitive has a `_name` sibling; each object of the copy stands for one place
of the resource, so that what the path found tells where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fhir_server.errors import FhirError
from fhir_server.model import fhirpath
from fhir_server.model.definitions import is_type, type_definition
from fhir_server.model.fhirpath import ast
from fhir_server.model.resource import Resource


class Place(NamedTuple):
    """Where a value stands: under `key` of `parent`, position `at` if that is a list. The resource has no parent."""

    parent: dict[str, Any] | None
    key: str = ""
    at: int | None = None


class Places:
    """The resource as it is before an operation, with the place of everything in it."""

    def __init__(self, resource: Resource, misses: Callable[[str], FhirError]) -> None:
        """`misses` makes the failure of a path that does not lead to a place."""
        self.resource = resource
        self._misses = misses
        self._places: dict[int, Place] = {}
        self._nodes: dict[int, Any] = {}  # object of the copy → object of the resource
        self._owners: dict[int, Place] = {}  # object of the resource → its place
        self._probe = self._mirror(resource, Place(None))

    def find(self, node: ast.Node) -> list[tuple[Place, Any, str]]:
        """(place, the value there, its type) for all the path leads to. Raises FhirPathError for a wrong path."""
        expression = fhirpath.compile(str(node), str(self.resource.get("resourceType")))
        places = []
        for value, kind, sibling in expression.items(self._probe):
            mark = id(value) if isinstance(value, dict) else id(sibling)
            if mark not in self._places:
                raise self._misses("the path computes a value; it must lead to a place in the resource")
            places.append((self._places[mark], self._nodes.get(mark), kind))
        return places

    def one(self, node: ast.Node) -> tuple[Place, Any, str]:
        found = self.find(node)
        if len(found) != 1:
            raise self._misses(f"the path leads to {len(found) or 'no'} places, not to one")
        return found[0]

    def remove(self, place: Place) -> None:
        """And what has become empty by it, as FHIR has no empty elements."""
        parent = place.parent
        if parent is None:
            raise self._misses("the resource itself cannot be deleted")
        for key in (place.key, f"_{place.key}"):
            if place.at is None:
                parent.pop(key, None)
            elif isinstance(parent.get(key), list):
                if place.key[0] == "_":  # the sibling of a value that stays where it is
                    parent[key][place.at] = None
                else:
                    del parent[key][place.at : place.at + 1]
                if all(value is None for value in parent[key]):
                    del parent[key]
        if not parent:
            owner = self._owners.get(id(parent))
            if owner is not None and owner.parent is not None:
                self.remove(owner)

    def _mirror(self, value: dict[str, Any], place: Place) -> dict[str, Any]:
        copy: dict[str, Any] = {}
        self._places[id(copy)], self._nodes[id(copy)], self._owners[id(value)] = place, value, place
        for key in value:
            name = key.removeprefix("_")
            if name == "resourceType" or name in copy or f"_{name}" in copy:
                continue
            self._mirror_element(copy, value, name)
        if "resourceType" in value:
            copy["resourceType"] = value["resourceType"]
        return copy

    def _mirror_element(self, copy: dict[str, Any], value: dict[str, Any], name: str) -> None:
        child, sibling = value.get(name), value.get(f"_{name}")
        if isinstance(child, list) or isinstance(sibling, list):
            children, siblings = child if isinstance(child, list) else [], sibling if isinstance(sibling, list) else []
            marks: list[Any] = []
            mirrored: list[Any] = []
            for index in range(max(len(children), len(siblings))):
                entry = children[index] if index < len(children) else None
                extra = siblings[index] if index < len(siblings) else None
                if isinstance(entry, dict):
                    mirrored.append(self._mirror(entry, Place(value, name, index)))
                else:
                    mirrored.append(entry)
                    marks.append(self._mark(extra, Place(value, name, index)))
            copy[name] = mirrored
            if marks:
                copy[f"_{name}"] = marks
        elif isinstance(child, dict):
            copy[name] = self._mirror(child, Place(value, name))
        else:
            if child is not None:
                copy[name] = child
            copy[f"_{name}"] = self._mark(sibling, Place(value, name))

    def _mark(self, sibling: Any, place: Place) -> dict[str, Any]:
        own = Place(place.parent, f"_{place.key}", place.at)
        mark = self._mirror(sibling, own) if isinstance(sibling, dict) else {}
        self._places[id(mark)] = place
        return mark

    def type_of(self, wanted: Any) -> str:
        """The type of an object of the resource, by the definitions; "" if they do not know it."""
        stack: list[tuple[dict[str, Any], str]] = [(self.resource, str(self.resource.get("resourceType")))]
        while stack:
            value, kind = stack.pop()
            if value is wanted:
                return kind
            elements = type_definition(kind).elements if is_type(kind) else {}
            for key, child in value.items():
                name = key.removeprefix("_")
                child_kind = elements[name].type if name in elements else ""
                if key != name:
                    child_kind = "Element"
                for entry in child if isinstance(child, list) else (child,):
                    if isinstance(entry, dict):
                        stack.append((entry, str(entry.get("resourceType", child_kind))))
        return ""

    def sibling(self, place: Place) -> dict[str, Any]:
        """The `_name` object beside a primitive, made if it is missing."""
        parent, key = place.parent or {}, f"_{place.key}"
        if place.at is None:
            made: dict[str, Any] = parent.setdefault(key, {})
            return made
        siblings = parent.setdefault(key, [])
        siblings.extend([None] * (list_length(parent, place.key) - len(siblings)))
        if siblings[place.at] is None:
            siblings[place.at] = {}
        found: dict[str, Any] = siblings[place.at]
        return found


def list_length(parent: dict[str, Any], key: str) -> int:
    """Of a list under `key`, its siblings counted; 0 if it is not there."""
    return max(len(parent.get(key) or ()), len(parent.get(f"_{key}") or ()))

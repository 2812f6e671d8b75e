"""FHIRPath Patch: operations as Parameters, their places as FHIRPath. https://hl7.org/fhir/R4/fhirpatch.html"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from fhir_server.errors import BadRequest, Unprocessable
from fhir_server.interactions.json_tree import Copies
from fhir_server.interactions.places import Place, Places, list_length
from fhir_server.model import fhirpath
from fhir_server.model.definitions import Element, is_type, type_definition
from fhir_server.model.fhirpath import ast
from fhir_server.model.fhirpath.values import is_primitive
from fhir_server.model.resource import Resource

MAX_OPERATIONS: Final = 1_000  # each walks the resource


class Value(NamedTuple):
    """A value to write: JSON, the sibling of a primitive, and the type it was given as (`Quantity`); "" for parts."""

    json: Any
    sibling: dict[str, Any] | None
    type: str


def patched(resource: Resource, parameters: Resource) -> Resource:
    """`resource`, which is changed on the way, after every operation in turn.

    Raises BadRequest for Parameters that are no patch, Unprocessable for a path that does not lead to one place.
    """
    if parameters.get("resourceType") != "Parameters":
        raise BadRequest("A FHIRPath Patch is a Parameters resource")
    operations = parameters.get("parameter", [])
    if not isinstance(operations, list) or len(operations) > MAX_OPERATIONS:
        raise BadRequest(f"A FHIRPath Patch has up to {MAX_OPERATIONS} operations")
    parsed = [_Operation(index, operation) for index, operation in enumerate(operations)]
    copies = Copies()
    for operation in parsed:
        try:
            _APPLY[operation.type](Places(resource, operation.misses), operation, copies)
        except fhirpath.FhirPathError as error:
            raise operation.malformed(error.diagnostics) from None
    return resource


class _Operation:
    """One `parameter` named `operation`."""

    def __init__(self, index: int, parameter: Any) -> None:
        self.name = f"Parameters.parameter[{index}]"
        if not isinstance(parameter, dict) or parameter.get("name") != "operation":
            raise self.malformed("every parameter of a FHIRPath Patch is named 'operation'")
        parts = parameter.get("part", [])
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise self.malformed("an operation has parts")
        self._parts = {str(part.get("name")): part for part in parts}
        self.type = self._text("type", "valueCode", "valueString")
        if self.type not in _APPLY:
            raise self.malformed(f"'type' must be one of {', '.join(_APPLY)}, not {self.type!r}")
        self.path = self._text("path", "valueString")
        try:
            self.node = fhirpath.parse(self.path)
        except fhirpath.FhirPathError as error:
            raise self.malformed(error.diagnostics) from None
        if self.type in ("add", "insert", "replace"):
            self.value = self._parts.get("value")
            if self.value is None:
                raise self.malformed("the part 'value' is missing")
        self.element = self._text("name", "valueString") if self.type == "add" else ""

    def number(self, name: str) -> int:
        part = self._parts.get(name, {})
        value = next(
            (part[key] for key in ("valueInteger", "valueUnsignedInt", "valuePositiveInt") if key in part), None
        )
        if type(value) is not int or value < 0:
            raise self.malformed(f"the part '{name}' must be a valueInteger from 0")
        return value

    def _text(self, name: str, *keys: str) -> str:
        part = self._parts.get(name, {})
        value = next((part[key] for key in keys if key in part), None)
        if not isinstance(value, str) or not value:
            raise self.malformed(f"the part '{name}' must be a {keys[0]}")
        return value

    def malformed(self, reason: str) -> BadRequest:
        return BadRequest(f"{self.name}: {reason}", expression=[self.name])

    def misses(self, reason: str) -> Unprocessable:
        return Unprocessable(f"{self.name} ({self.type} {self.path}): {reason}", expression=[self.name])


def _add(tree: Places, operation: _Operation, copies: Copies) -> None:
    place, parent, kind = tree.one(operation.node)
    name = operation.element.removesuffix("[x]")
    elements = _elements(kind, name)
    if is_primitive(kind):
        if name not in ("id", "extension"):
            raise operation.misses(f"a {kind} has no element {name}")
        parent = tree.sibling(place)
    value = _value(operation, operation.value, elements, copies)
    element = _chosen(elements, value, operation, kind, name)
    if element.max is None:
        _insert(parent, element.key, None, value)
        return
    if any(key in parent for other in elements for key in (other.key, f"_{other.key}")):
        raise operation.misses(f"{name} is there already; use replace")
    _write(parent, element.key, value)


def _insert_at(tree: Places, operation: _Operation, copies: Copies) -> None:
    parent, elements, kind = _list(tree, operation)
    value = _value(operation, operation.value, elements, copies)
    element = _chosen(elements, value, operation, kind, elements[0].name)
    index = operation.number("index")
    if index > list_length(parent, element.key):
        raise operation.misses(f"index {index} is beyond the end, which is {list_length(parent, element.key)}")
    _insert(parent, element.key, index, value)


def _delete(tree: Places, operation: _Operation, copies: Copies) -> None:
    found = tree.find(operation.node)
    if len(found) > 1:
        raise operation.misses(f"the path leads to {len(found)} places, not to one")
    if found:
        tree.remove(found[0][0])


def _replace(tree: Places, operation: _Operation, copies: Copies) -> None:
    place, _, kind = tree.one(operation.node)
    parent = place.parent
    if parent is None:
        raise operation.misses("the resource itself cannot be replaced")
    owner_kind = _owner_type(tree, operation)
    elements = [element for element in _elements(owner_kind, place.key) if element.key == place.key]
    if elements and elements[0].choice:
        elements = _elements(owner_kind, elements[0].name)
    if not elements:
        elements = [_unknown(place, kind)]
    value = _value(operation, operation.value, elements, copies)
    element = _chosen(elements, value, operation, owner_kind, place.key)
    if place.at is not None:
        _set(parent, place.key, place.at, value)
        return
    entries = list(parent.items())
    parent.clear()
    written = False
    for key, old in entries:
        if key not in (place.key, f"_{place.key}"):
            parent[key] = old
        elif not written:
            written = True
            _write(parent, element.key, value)


def _move(tree: Places, operation: _Operation, copies: Copies) -> None:
    parent, elements, _ = _list(tree, operation)
    key = elements[0].key
    source, destination, length = operation.number("source"), operation.number("destination"), list_length(parent, key)
    if source >= length or destination >= length:
        raise operation.misses(f"source and destination must be less than {length}")
    for name in (key, f"_{key}"):
        entries = parent.get(name)
        if isinstance(entries, list):
            entries.extend([None] * (length - len(entries)))
            entries.insert(destination, entries.pop(source))


_APPLY: Final[dict[str, Callable[[Places, _Operation, Copies], None]]] = {
    "add": _add,
    "insert": _insert_at,
    "delete": _delete,
    "replace": _replace,
    "move": _move,
}


def _list(tree: Places, operation: _Operation) -> tuple[dict[str, Any], list[Element], str]:
    """The object that holds the list a path such as `Patient.name` names, and the list's element; it may be absent."""
    node = operation.node
    if not isinstance(node, ast.Member) or not isinstance(node.step, ast.Name):
        raise operation.misses("the path must end in the name of a list, as Patient.identifier does")
    _, parent, kind = tree.one(node.target)
    elements = _elements(kind, node.step.name)
    if not isinstance(parent, dict) or not elements or elements[0].max is not None:
        raise operation.misses(f"{node.step.name} is no list of {kind}")
    return parent, elements, kind


def _owner_type(tree: Places, operation: _Operation) -> str:
    """The type of the object that holds what the path leads to."""
    place = tree.one(operation.node)[0]
    return tree.type_of(place.parent)


def _elements(kind: str, name: str) -> list[Element]:
    """An element by its name, or one choice of it by its key."""
    known = type_definition(kind).elements.values() if is_type(kind) else ()
    return [element for element in known if element.name == name] or [e for e in known if e.key == name]


def _unknown(place: Place, kind: str) -> Element:
    return Element(place.key, place.key, kind, 0, 1, False, (), "", 0, False, False, ())


def _chosen(elements: list[Element], value: Value, operation: _Operation, kind: str, name: str) -> Element:
    if not elements:
        raise operation.misses(f"{kind} has no element {name}")
    if not elements[0].choice or len(elements) == 1:
        return elements[0]
    for element in elements:
        if element.type == value.type:
            return element
    raise operation.misses(f"{elements[0].name} cannot be a {value.type or 'structure of parts'}")


def _value(operation: _Operation, part: dict[str, Any] | None, elements: list[Element], copies: Copies) -> Value:
    """What a part holds: `value[x]`, a resource, or parts that make up an object without a type of its own."""
    part = part or {}
    for key in part:
        name = key.removeprefix("_")
        if name.startswith("value") and len(name) > len("value"):
            given = part.get(name)
            sibling = part.get(f"_{name}")
            kind = next((e.type for e in type_definition("Extension").elements.values() if e.key == name), "")
            return Value(copies.copy(given), copies.copy(sibling), kind)
    if "resource" in part:
        return Value(copies.copy(part["resource"]), None, "Resource")
    if not isinstance(part.get("part"), list):
        raise operation.malformed("the part 'value' holds neither a value nor parts")
    kind = elements[0].type if elements else ""
    made: dict[str, Any] = {}
    for inner in part["part"]:
        if not isinstance(inner, dict):
            raise operation.malformed("every part is an object")
        name = str(inner.get("name"))
        known = _elements(kind, name)
        if not known:
            raise operation.misses(f"{kind or 'The element'} has no element {name}")
        value = _value(operation, inner, known, copies)
        element = _chosen(known, value, operation, kind, name)
        if element.max is None:
            _insert(made, element.key, None, value)
        else:
            _write(made, element.key, value)
    return Value(made, None, "")


def _write(parent: dict[str, Any], key: str, value: Value) -> None:
    if value.json is not None:
        parent[key] = value.json
    if value.sibling is not None:
        parent[f"_{key}"] = value.sibling


def _insert(parent: dict[str, Any], key: str, index: int | None, value: Value) -> None:
    """At the end if `index` is None. Values and siblings correspond by position."""
    length = list_length(parent, key)
    for name, entry in ((key, value.json), (f"_{key}", value.sibling)):
        if name in parent or entry is not None:
            entries = parent.setdefault(name, [])
            entries.extend([None] * (length - len(entries)))
            entries.insert(length if index is None else index, entry)


def _set(parent: dict[str, Any], key: str, index: int, value: Value) -> None:
    length = list_length(parent, key)
    for name, entry in ((key, value.json), (f"_{key}", value.sibling)):
        if name in parent or entry is not None:
            entries = parent.setdefault(name, [])
            entries.extend([None] * (length - len(entries)))
            entries[index] = entry
            if all(other is None for other in entries):
                del parent[name]

"""From an item to the items of one of its elements. https://hl7.org/fhirpath/N1/#path-selection

What a name means on a type is looked up once; afterwards a step is one look into a dict by type.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final, NamedTuple

from fhir_server.model.definitions import is_type, type_definition
from fhir_server.model.fhirpath.compiled import Compiled, Types
from fhir_server.model.fhirpath.quantities import Quantity
from fhir_server.model.fhirpath.types import selected_by
from fhir_server.model.fhirpath.values import NOTHING, STRING, TYPE_INFO, Frame, Item, Items, is_primitive, system

DYNAMIC: Final = frozenset({"Resource", "DomainResource"})  # the data say what they are
Kinds = tuple[str, ...] | None

_SIBLING: Final = "_"


class Step(NamedTuple):
    """Where a name leads from one type. `sibling` is the `_key` of a primitive, None for other types; `type` None for
    resources, which say it themselves. A choice has its keys in `choices`."""

    key: str
    sibling: str | None
    type: str | None
    choices: dict[str, tuple[str, str | None, str]] | None = None


_NOWHERE: Final = Step("", None, "", {})
_steps: Final[dict[tuple[str, Kinds], dict[str, Step]]] = defaultdict(dict)  # by name and selection, then by type


def step_types(kind: str, name: str) -> Types:
    """The types `name` may have on an item of type `kind`; empty if there is no such element, None if unknown."""
    if kind == "" or kind in DYNAMIC or kind == "Element" or not is_type(kind):
        return None
    if is_primitive(kind) and name == "value":
        return None
    elements = [element for element in type_definition(kind).elements.values() if element.name == name]
    if not elements:
        return frozenset()
    kinds = frozenset(element.type for element in elements)
    return None if kinds & DYNAMIC else kinds


def member(target: Compiled, name: str, types: Types, kinds: Kinds = None) -> Compiled:
    """`target.name`; with `kinds`, `target.name.ofType(…)` in one step, for elements whose type the definitions tell."""
    source = target.collect
    table = _steps[name, kinds]

    def collect(frame: Frame) -> Items:
        found = source(frame)
        if not found:
            return NOTHING
        out: Items = []
        for entry in found:
            value, kind, _ = entry
            if type(value) is dict:
                step = table.get(kind)
                if step is None:
                    step = table[kind] = _learn(kind, name, kinds)
                key, sibling, child_kind, choices = step
                if choices is not None:
                    for present in value.keys() & choices.keys():
                        key, sibling, child_kind = choices[present]
                        break
                    else:
                        continue
                child = value.get(key)
                if sibling is not None:
                    extra = value.get(sibling)
                    if extra is not None:
                        _with_siblings(out, child, child_kind or "", extra)
                        continue
                if child is None:
                    continue
                if type(child) is list:
                    if child_kind is None:
                        out.extend([(c, c.get("resourceType", "Resource"), None) for c in child])
                    else:
                        out.extend([(c, child_kind, None) for c in child if c is not None])
                elif child_kind is None:
                    out.append((child, child.get("resourceType", "Resource"), None))
                else:
                    out.append((child, child_kind, None))
            else:
                out.extend(_of_primitive(entry, name))
        return out

    return Compiled(collect, types, None, (target, name) if kinds is None else None)


def rooted(target: Compiled, kind: str) -> Compiled:
    """A type's name at the start of a path: the items of that type."""
    source = target.collect

    def collect(frame: Frame) -> Items:
        found = source(frame)
        if len(found) == 1 and found[0][1] == kind:
            return found
        return [entry for entry in found if is_a(entry[1], kind)]

    return Compiled(collect, frozenset({kind}) if kind not in DYNAMIC else None)


def is_a(kind: str, ancestor: str) -> bool:
    while kind != ancestor:
        if not is_type(kind):
            return False
        kind = type_definition(kind).base
    return True


def children(entry: Item) -> Items:
    """Every child in the order of the data, siblings' `id` and `extension` included."""
    value, kind, _ = entry
    if type(value) is not dict:
        return [*_of_primitive(entry, "id"), *_of_primitive(entry, "extension")]
    definition = type_definition(kind) if is_type(kind) else None
    out: Items = []
    for name in value:
        key = name.removeprefix(_SIBLING)
        if name == "resourceType" or (key != name and key in value):
            continue
        child, extra = value.get(key), value.get(_SIBLING + key)
        known = definition.elements.get(key) if definition is not None else None
        child_kind = known.type if known is not None else ""
        if extra is not None:
            _with_siblings(out, child, child_kind, extra)
            continue
        for part in child if type(child) is list else (child,):
            if part is None:
                continue
            dynamic = child_kind in DYNAMIC and type(part) is dict
            out.append((part, part.get("resourceType", child_kind) if dynamic else child_kind, None))
    return out


def _learn(kind: str, name: str, kinds: Kinds) -> Step:
    if kind == "":
        return Step(name, None, "")
    if kind == TYPE_INFO:
        return Step(name, None, STRING)
    if not is_type(kind):
        return _NOWHERE
    elements = [element for element in type_definition(kind).elements.values() if element.name == name]
    if kinds is not None:
        elements = [element for element in elements if selected_by(kinds)(element.type)]
    if not elements:
        return _NOWHERE
    if len(elements) == 1:
        (element,) = elements
        return Step(element.key, _sibling(element.key, element.type), _data_type(element.type))
    choices: dict[str, tuple[str, str | None, str]] = {}
    for element in elements:
        sibling = _sibling(element.key, element.type)
        choices[element.key] = (element.key, sibling, element.type)
        if sibling is not None:
            choices[sibling] = choices[element.key]
    return Step("", None, "", choices)


def _data_type(kind: str) -> str | None:
    return None if kind in DYNAMIC else kind


def _sibling(key: str, kind: str) -> str | None:
    return _SIBLING + key if is_primitive(kind) else None


def _with_siblings(out: Items, child: Any, kind: str, extra: Any) -> None:
    """Values and their `_key` siblings, which for lists correspond by position and may be null."""
    if type(child) is not list and type(extra) is not list:
        out.append((child, kind, extra))
        return
    values = child if type(child) is list else []
    extras = extra if type(extra) is list else []
    for index in range(max(len(values), len(extras))):
        value = values[index] if index < len(values) else None
        sibling = extras[index] if index < len(extras) else None
        if value is not None or sibling is not None:
            out.append((value, kind, sibling))


def _of_primitive(entry: Item, name: str) -> Items:
    value, kind, element = entry
    if type(value) is Quantity:
        return [system(getattr(value, name))] if name in ("value", "unit") else NOTHING
    if name == "value" and not kind.startswith("System."):
        return [] if value is None else [system(value)]
    if type(element) is not dict:
        return NOTHING
    child = element.get(name)
    if child is None:
        return NOTHING
    kind = "Extension" if name == "extension" else "string"
    return [(part, kind, None) for part in child] if type(child) is list else [(child, kind, None)]

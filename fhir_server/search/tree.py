"""The expressions of a type's parameters as one tree over JSON keys: each value is converted once, for all that look at it.

`Node.compile` makes the functions that walk a resource. A composite captures what its components find in one element and
pairs them when the element has been walked. https://hl7.org/fhir/R4/searchparameter.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fhir_server.search import types
from fhir_server.search.entries import IDENTIFIER, PARTS, VERSION
from fhir_server.search.paths import Guard, Path, resolve
from fhir_server.search.registry import Parameter
from fhir_server.search.types import date, number, quantity, reference, special, string, token, uri

OF_RESOURCE = "%resource."  # components that are looked up from the resource, not from the composite's element


class Work:
    """One resource on its way through the tree."""

    __slots__ = ("base", "contained", "entries", "pending", "resource")

    def __init__(self, resource: Mapping[str, Any], base: str) -> None:
        self.resource = resource
        self.base = base
        self.entries: dict[str, Any] = {}
        self.contained: list[tuple[str, str]] = []  # (field, id of the contained resource it refers to)
        self.pending: list[tuple[str, Captured]] = []  # elements of composites that also need the whole resource


Capture = tuple[str, str]  # (search type, expression) of a composite's component
Captured = dict[Capture, list[Any]]
Handle = Callable[[Any, Mapping[str, Any], Work, Captured], None]
Convert = Callable[[Any], list[Any]]
Finish = Callable[[Work, Captured], None]


class Node:
    """A place in the tree: what to do with the value there, and which keys of it to look at."""

    def __init__(self) -> None:
        self.children: dict[tuple[str, bool, Guard | None], Node] = {}
        self.leaves: dict[tuple[str, str, str], Leaf] = {}  # (search type, FHIR type, binding)
        self.references: list[tuple[str, str, bool]] = []  # (field, type it must resolve to, single)
        self.captures: list[Capture] = []  # of composites that take the reference here
        self.finishes: list[Finish] = []  # composites whose element this is

    def at(self, path: Path) -> Node:
        node = self
        for step in path.steps:
            node = node.children.setdefault((step.key, step.many, step.guard), Node())
        return node

    def leaf(self, search_type: str, path: Path) -> Leaf:
        return self.leaves.setdefault((search_type, path.type, path.binding), Leaf(search_type, path))

    def compile(self) -> Callable[[Mapping[str, Any], Work, Captured], None]:
        """The function that walks an object standing at this node."""
        handlers: dict[str, list[Handle]] = {}
        for (key, many, guard), child in self.children.items():
            handlers.setdefault(key, []).append(child._handle(many, guard))
        single = {key: found[0] if len(found) == 1 else _each(found) for key, found in handlers.items()}
        lookup = single.get

        def walk(item: Mapping[str, Any], work: Work, captured: Captured) -> None:
            for key, value in item.items():
                handle = lookup(key)
                if handle is not None:
                    handle(value, item, work, captured)

        return walk

    def _handle(self, many: bool, guard: Guard | None) -> Handle:
        """The function for the value of one key."""
        steps: list[Handle] = [leaf.compile() for leaf in self.leaves.values()]
        if self.references or self.captures:
            steps.append(_references(self.references, self.captures))
        walk = self.compile() if self.children else None
        finishes = tuple(self.finishes)
        one = steps[0] if len(steps) == 1 else _each(steps)

        def handle(value: Any, parent: Mapping[str, Any], work: Work, captured: Captured) -> None:
            items = value if many else (value,)
            if many and type(value) is not list:
                return
            for item in items:
                if guard is not None and not (type(item) is dict and guard(item)):
                    continue
                one(item, parent, work, captured)
                if walk is not None and type(item) is dict:
                    if finishes:
                        inner: Captured = {}
                        walk(item, work, inner)
                        for finish in finishes:
                            finish(work, inner)
                        for capture, found in inner.items():
                            if capture[1].startswith(OF_RESOURCE):
                                captured[capture] = [*captured.get(capture, ()), *found]
                    else:
                        walk(item, work, captured)

        return handle


def _each(handlers: list[Handle]) -> Handle:
    def handle(value: Any, parent: Mapping[str, Any], work: Work, captured: Captured) -> None:
        for one in handlers:
            one(value, parent, work, captured)

    return handle


class Leaf:
    """One conversion of the value at a node, for all the parameters that want it. `search_type` may be "phonetic"."""

    def __init__(self, search_type: str, path: Path) -> None:
        self.search_type = search_type
        self.path = path
        self.fields: list[tuple[str, bool]] = []
        self.captures: list[Capture] = []

    def compile(self) -> Handle:
        convert = converter(self.search_type, self.path)
        arrays = tuple(field for field, single in self.fields if not single)
        scalars = tuple(field for field, single in self.fields if single)
        captures = tuple(self.captures)
        with_context = self.search_type == "quantity"
        is_object = self.path.type[0].isupper()

        def handle(value: Any, parent: Mapping[str, Any], work: Work, captured: Captured) -> None:
            if is_object and type(value) is not dict:
                return
            found = convert(value, parent) if with_context else convert(value)  # type: ignore[call-arg]
            if not found:
                return
            entries = work.entries
            for field in arrays:
                before = entries.get(field)
                entries[field] = found if before is None else [*before, *found]
            for field in scalars:
                entries[field] = found[0]
            for capture in captures:
                before = captured.get(capture)
                captured[capture] = found if before is None else [*before, *found]

        return handle


def converter(search_type: str, path: Path) -> Convert:
    """The function that turns a value of `path`'s type into entries of a search type."""
    if search_type == "token":
        return token.code_of(path.binding) if path.type == "code" else token.ENTRIES[path.type]
    if search_type == "phonetic":
        return string.sounds
    if search_type == "string":
        if path.keys[-1:] in (("family",), ("given",)):
            return string.name_part
        if len(path.keys) > 1 and path.keys[-2] == "address":
            return string.place
        return string.ENTRIES[path.type]
    if search_type == "date":
        return date.ENTRIES[path.type]
    if search_type == "number":
        return number.ENTRIES[path.type]
    if search_type == "quantity":
        return quantity.ENTRIES[path.type]
    if search_type == "uri":
        return uri.ENTRIES[path.type]
    if search_type == "reference":  # canonical and uri; Reference has a handler of its own
        return lambda value: reference.canonical(value) if type(value) is str else []
    return special.position


def _references(fields: list[tuple[str, str, bool]], captures: list[Capture]) -> Handle:
    """One handler for every parameter that looks at a Reference."""

    def handle(value: Any, parent: Mapping[str, Any], work: Work, captured: Captured) -> None:
        if type(value) is not dict:
            return
        entries = work.entries
        literal = value.get("reference")
        identifier = value.get("identifier")
        if type(literal) is str and literal:
            if literal[0] == "#":
                for field, _, _ in fields:
                    work.contained.append((field, literal[1:]))
            else:
                text, version = reference.local(literal, work.base)
                for capture in captures:
                    captured[capture] = [*captured.get(capture, ()), text]
                for field, resolves_to, single in fields:
                    if resolves_to and reference.type_of(text) != resolves_to:
                        continue
                    if single:
                        entries[field] = text
                    else:
                        entries[field] = [*entries.get(field, ()), text]
                    if version:
                        entries[field + VERSION] = [*entries.get(field + VERSION, ()), f"{text}/_history/{version}"]
        if type(identifier) is dict:
            found = token.identifier(identifier)
            named = value.get("type")
            for field, resolves_to, _ in fields:
                if found and (not resolves_to or named in (None, resolves_to)):
                    entries[field + IDENTIFIER] = [*entries.get(field + IDENTIFIER, ()), *found]

    return handle


def composite(root: Node, parameter: Parameter) -> list[Finish]:
    """Captures at the components' places; returns what is to be done when the whole resource has been walked."""
    at_end: list[Finish] = []
    for context in parameter.paths or ():
        node = root.at(context)
        keys: list[tuple[bool, Capture]] = []
        for component in parameter.components:
            of_resource = component.expression.startswith(OF_RESOURCE)
            expression = component.expression.removeprefix(OF_RESOURCE)
            start, type_name = (root, parameter.resource_type) if of_resource else (node, context.type)
            capture = (component.parameter.type, component.expression)
            for path in resolve(expression, type_name, relative=True) or ():
                if path.type not in types.fhir_types(component.parameter.type):
                    continue
                place = start.at(path)
                if path.type == "Reference":
                    place.captures.append(capture)
                elif capture not in place.leaf(component.parameter.type, path).captures:
                    place.leaf(component.parameter.type, path).captures.append(capture)
            keys.append((of_resource, capture))
        if not context.steps:
            at_end.append(_finish(parameter.field, keys))
        elif any(of_resource for of_resource, _ in keys):
            # What the resource adds may stand after the element, so the pairs are made at the end.
            field = parameter.field
            node.finishes.append(lambda work, inner, field=field: work.pending.append((field, inner)))  # type: ignore[misc]
            at_end.append(_join(field, keys))
        else:
            node.finishes.append(_finish(parameter.field, keys))
    return at_end


def _finish(field: str, keys: list[tuple[bool, Capture]]) -> Finish:
    names = tuple((PARTS[n], capture) for n, (_, capture) in enumerate(keys))

    def finish(work: Work, captured: Captured) -> None:
        entry: dict[str, Any] = {}
        for name, capture in names:
            found = captured.get(capture)
            if found is None:
                return
            entry[name] = found
        work.entries[field] = [*work.entries.get(field, ()), entry]

    return finish


def _join(field: str, keys: list[tuple[bool, Capture]]) -> Finish:
    finish = _finish(field, keys)
    shared = [capture for of_resource, capture in keys if of_resource]

    def join(work: Work, captured: Captured) -> None:
        of_resource = {capture: captured[capture] for capture in shared if capture in captured}
        for name, inner in work.pending:
            if name == field:
                finish(work, {**inner, **of_resource})

    return join

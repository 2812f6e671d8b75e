"""A resource's search entries and the patients whose compartments hold it. https://hl7.org/fhir/R4/search.html

The expressions of a type's parameters become one tree over JSON keys. Indexing walks the keys that are there, converts each
value once and hands the result to every parameter that looks at it.

Entries by name (the store keeps them under `s`): one for each parameter's field; besides,
    <field>:identifier   token keys of a reference's identifier        <field>:version   the reference with its version
    #contained           [{t: type, i: id, p: fields that refer to it, s: its own entries}]
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fhir_server.model import fhirpath
from fhir_server.model.definitions import RESOURCE_TYPES
from fhir_server.search import fulltext, types
from fhir_server.search.paths import Guard, Path, resolve
from fhir_server.search.registry import COMPUTED, Parameter, Registry
from fhir_server.search.types import date, number, quantity, reference, special, string, token, uri

# FHIRPath's own types, which computed values have, as the FHIR types they are indexed like.
SYSTEM_TYPES = {
    f"System.{name}": name[0].lower() + name[1:]
    for name in ("Boolean", "String", "Integer", "Decimal", "Date", "DateTime")
} | {"System.Quantity": "Quantity"}
CONTAINED = "#contained"
IDENTIFIER = ":identifier"
VERSION = ":version"
OF_RESOURCE = "%resource."  # components that are looked up from the resource, not from the composite's element
PARTS = ("1", "2", "3", "4")  # names of a composite's components in its entries


@dataclass(frozen=True, slots=True)
class Indexed:
    """`entries`: name → value, kept under `s` by the store. `patients`: ids, without the type."""

    entries: dict[str, Any]
    patients: tuple[str, ...]


def index(registry: Registry, resource: Mapping[str, Any], *, base: str = "") -> Indexed:
    """Entries of every parameter that has a definition, in force or not; references that start with `base` are local.

    Never fails on a resource that is not valid: what cannot be read has no entry.
    """
    indexer = _indexer(registry, str(resource.get("resourceType", "")))
    entries = indexer.entries(resource, base)
    return Indexed(entries, indexer.patients(resource, entries))


class _Work:
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
Handle = Callable[[Any, Mapping[str, Any], _Work, Captured], None]
Convert = Callable[[Any], list[Any]]
Finish = Callable[[_Work, Captured], None]


class _Node:
    """A place in the tree: what to do with the value there, and which keys of it to look at."""

    def __init__(self) -> None:
        self.children: dict[tuple[str, bool, Guard | None], _Node] = {}
        self.leaves: dict[tuple[str, str, str], _Leaf] = {}  # (search type, FHIR type, binding)
        self.references: list[tuple[str, str, bool]] = []  # (field, type it must resolve to, single)
        self.captures: list[Capture] = []  # of composites that take the reference here
        self.finishes: list[Finish] = []  # composites whose element this is

    def at(self, path: Path) -> _Node:
        node = self
        for step in path.steps:
            node = node.children.setdefault((step.key, step.many, step.guard), _Node())
        return node

    def leaf(self, search_type: str, path: Path) -> _Leaf:
        return self.leaves.setdefault((search_type, path.type, path.binding), _Leaf(search_type, path))

    def compile(self) -> Callable[[Mapping[str, Any], _Work, Captured], None]:
        """The function that walks an object standing at this node."""
        handlers: dict[str, list[Handle]] = {}
        for (key, many, guard), child in self.children.items():
            handlers.setdefault(key, []).append(child._handle(many, guard))
        single = {key: found[0] if len(found) == 1 else _each(found) for key, found in handlers.items()}
        lookup = single.get

        def walk(item: Mapping[str, Any], work: _Work, captured: Captured) -> None:
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

        def handle(value: Any, parent: Mapping[str, Any], work: _Work, captured: Captured) -> None:
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
    def handle(value: Any, parent: Mapping[str, Any], work: _Work, captured: Captured) -> None:
        for one in handlers:
            one(value, parent, work, captured)

    return handle


class _Leaf:
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

        def handle(value: Any, parent: Mapping[str, Any], work: _Work, captured: Captured) -> None:
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

    def handle(value: Any, parent: Mapping[str, Any], work: _Work, captured: Captured) -> None:
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


class _Indexer:
    """The compiled tree of one resource type."""

    def __init__(self, registry: Registry, resource_type: str) -> None:
        self._registry = weakref.ref(registry)
        root = _Node()
        computed: list[tuple[Parameter, Callable[[Mapping[str, Any], str], list[Any]]]] = []
        composites: list[Parameter] = []
        for parameter in registry.parameters(resource_type).values():
            if parameter.resolves_to and any(not p.resolves_to for p in _sharing(registry, parameter)):
                continue  # lives in the wider parameter's entries
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
        finishes = [f for parameter in composites for f in _composite(root, parameter)]
        self._walk = root.compile()
        self._finishes = finishes
        self._computed = computed
        self._resource_type = resource_type
        self._patients = [
            (p.field, p.single) for p in registry.compartment("Patient", resource_type) if p.type == "reference"
        ]

    def entries(self, resource: Mapping[str, Any], base: str) -> dict[str, Any]:
        work = _Work(resource, base)
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

    def patients(self, resource: Mapping[str, Any], entries: Mapping[str, Any]) -> tuple[str, ...]:
        found: dict[str, None] = {}
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

    def _contain(self, work: _Work) -> None:
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


def _composite(root: _Node, parameter: Parameter) -> list[Finish]:
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

    def finish(work: _Work, captured: Captured) -> None:
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

    def join(work: _Work, captured: Captured) -> None:
        of_resource = {capture: captured[capture] for capture in shared if capture in captured}
        for name, inner in work.pending:
            if name == field:
                finish(work, {**inner, **of_resource})

    return join


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

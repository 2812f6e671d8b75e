"""A resource against a profile, on request. https://hl7.org/fhir/R4/profiling.html

Judged: cardinalities, types, fixed values and patterns, required bindings to known value sets, invariants, slices by
value, pattern, existence and type. A profile is judged together with the profiles it is based on.

Differs from the spec: slices by `profile`, and discriminators through `resolve()`, are not told apart, because the
targets are not read here; such a slice's own rules are then left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fhir_server.errors import Issue
from fhir_server.model import definitions, fhirpath
from fhir_server.model.definitions import RESOURCE_TYPES, Element, is_type, type_definition
from fhir_server.validation import references
from fhir_server.validation.problems import Problem, Problems, Scope, below, quote
from fhir_server.validation.shapes import Json, Node, tree

STRUCTURE = "http://hl7.org/fhir/StructureDefinition/"
Find = Callable[[str], Json | None]  # canonical URL → StructureDefinition
Includes = Callable[[str, str, str], bool | None]  # value set, system, code → member? None: not known here


def listed(value_set: str, system: str, code: str) -> bool | None:
    """Membership in the value sets the R4 tables list; a missing system matches any."""
    members = definitions.codings(value_set)
    if members is None:
        return None
    return (system, code) in members or (not system and any(code == known for _, known in members))


class Profiles:
    """Profiles by URL; `find` is asked for those that R4 itself does not bring."""

    def __init__(self, find: Find = lambda _url: None, includes: Includes = listed) -> None:
        self._find = find
        self._includes = includes
        self._trees: dict[str, Node] = {}

    def structure(self, url: str) -> Json | None:
        plain = url.partition("|")[0]
        return self._find(url) or self._find(plain) or definitions.profile(plain)

    def check(self, resource: Json, url: str) -> list[Issue]:
        """All issues of a resource whose structure is right. An unknown profile is an issue too."""
        name = str(resource["resourceType"])
        scope = Scope(resource)
        return [p.issue(name) for p in self._against(resource, name, url, scope, set())]

    def _against(self, value: Any, type_name: str, url: str, scope: Scope, met: set[str]) -> Problems:
        plain = url.partition("|")[0]
        if plain.removeprefix(STRUCTURE) in RESOURCE_TYPES or is_type(plain.removeprefix(STRUCTURE)):
            required = plain.removeprefix(STRUCTURE)
            fits = required in (type_name, "Resource", "DomainResource", "Element", type_definition(type_name).base)
            return [] if fits else [Problem("", "structure", f"Must be a {required}, not {type_name}")]
        if plain in met:
            return []
        met.add(plain)
        structure = self.structure(url)
        if structure is None:
            return [Problem("", "not-found", f"The profile {url} is not known here")]
        if structure["type"] != type_name:
            text = f"The profile {plain} is for {structure['type']}, not for {type_name}"
            return [Problem("", "structure", text)]
        if plain not in self._trees:
            self._trees[plain] = tree(structure)
        found = _Walk(self, scope, str(structure.get("name", plain))).node(self._trees[plain], value, type_name)
        base = structure.get("baseDefinition", "")
        return found + (self._against(value, type_name, base, scope, met) if base else [])

    def includes(self, value_set: str, system: str, code: str) -> bool | None:
        return self._includes(value_set, system, code)


def check_profile(resource: Json, structure: Json, find: Find = lambda _url: None) -> list[Issue]:
    """A resource against one StructureDefinition at hand; `find` gives those it is based on or refers to."""

    def found(url: str) -> Json | None:
        return structure if url.partition("|")[0] == structure["url"] else find(url)

    return Profiles(found).check(resource, structure["url"])


class _Walk:
    """One profile's tree over one value."""

    def __init__(self, profiles: Profiles, scope: Scope, name: str) -> None:
        self.profiles = profiles
        self.scope = scope
        self.name = name

    def problem(self, code: str, text: str, severity: str = "error") -> Problem:
        return Problem("", code, f"{text} (profile {self.name})", severity)

    def node(self, node: Node, value: Any, type_name: str) -> Problems:
        """Everything the node says about one value of this type."""
        problems = self._value(node, value, type_name)
        if isinstance(value, dict):
            for child in node.children.values():
                problems += self._child(child, value, type_name)
        return problems

    def _child(self, child: Node, parent: Json, parent_type: str) -> Problems:
        found = list(_values(child.name, parent, parent_type))
        name = child.name.removesuffix("[x]")
        problems = self._count(child, len(found), f"'{name}'")
        for step, value, type_name in found:
            problems += below(step, self.node(child, value, type_name))
        if child.slices:
            problems += self._sliced(child, found, name)
        return problems

    def _count(self, node: Node, count: int, what: str) -> Problems:
        if count < node.min:
            return [self.problem("required", f"At least {node.min} of {what} needed, {count} given")]
        if node.max is not None and count > node.max:
            return [self.problem("structure", f"At most {node.max} of {what} allowed, {count} given")]
        return []

    def _sliced(self, child: Node, found: list[tuple[str, Any, str]], name: str) -> Problems:
        problems: Problems = []
        counts = dict.fromkeys(child.slices, 0)
        for step, value, type_name in found:
            slice_name = next((n for n, s in child.slices.items() if self._in(child, s, value, type_name)), None)
            if slice_name is not None:
                counts[slice_name] += 1
                problems += below(step, self.node(child.slices[slice_name], value, type_name))
            elif child.closed:
                problems += below(
                    step, [self.problem("structure", f"Fits no slice of '{name}', and no others are allowed")]
                )
        for slice_name, count in counts.items():
            problems += self._count(child.slices[slice_name], count, f"'{name}' as {slice_name}")
        return problems

    def _in(self, child: Node, part: Node, value: Any, type_name: str) -> bool:
        """Whether a value belongs to a slice: every discriminator agrees."""
        if part.profiles and type_name == "Extension":
            return isinstance(value, dict) and value.get("url") in part.profiles
        if not child.discriminators:  # said in a profile further down, which is judged by itself
            return not self.node(part, value, type_name)
        return all(self._agrees(d["type"], d["path"], part, value, type_name) for d in child.discriminators)

    def _agrees(self, kind: str, path: str, part: Node, value: Any, type_name: str) -> bool:
        if kind == "profile" or "resolve()" in path:
            return False
        wanted = list(part.at(path))
        actual = list(_reach(path, value, type_name))
        if kind == "exists":
            return all((node.max != 0) == bool(actual) for node in wanted)
        if kind == "type":
            return any(t["code"] == name for node in wanted for t in node.types for _, name in actual)
        wanted = [n for n in wanted if n.fixed is not None or n.pattern is not None or n.binding or n.children]
        return any(not self.node(node, item, name) for node in wanted for item, name in actual)

    def _value(self, node: Node, value: Any, type_name: str) -> Problems:
        problems: Problems = []
        codes = {t["code"].rpartition("/")[2].removeprefix("System.") for t in node.types}
        if node.types and not _fits(type_name, codes):
            problems.append(self.problem("structure", f"Must be {' or '.join(sorted(codes))}, not {type_name}"))
        if node.fixed is not None and value != node.fixed:
            problems.append(self.problem("value", f"Must be exactly {quote(node.fixed)}, not {quote(value)}"))
        if node.pattern is not None and not _holds(node.pattern, value):
            problems.append(self.problem("value", f"Must hold {quote(node.pattern)}, is {quote(value)}"))
        if node.binding and type_name not in ("string", "markdown"):  # the free text beside coded types of a choice
            problems += self._bound(node.binding, value)
        if type_name == "Reference" and isinstance(value, dict):
            targets = self._targets(node)
            problems += (references.check(value, targets, self.scope) or []) if targets else []
        known = {i.expression for i in type_definition(type_name).invariants} if is_type(type_name) else set()
        for rule in node.constraints:
            if rule.get("expression", "") not in ("", *known):
                problems += self._rule(rule, value, type_name)
        return problems + self._nested(node, value, type_name)

    def _nested(self, node: Node, value: Any, type_name: str) -> Problems:
        candidates = [url for url in node.profiles if self.profiles.structure(url) is not None]
        if not candidates or not isinstance(value, dict):
            return []
        judged = [self.profiles._against(value, type_name, url, self.scope, set()) for url in candidates]
        return min(judged, key=len)

    def _targets(self, node: Node) -> tuple[str, ...]:
        names: set[str] = set()
        for url in (url for t in node.types for url in t.get("targetProfile", ())):
            structure = self.profiles.structure(url)
            name = structure["type"] if structure else url.partition("|")[0].removeprefix(STRUCTURE)
            if name not in RESOURCE_TYPES:
                return ()  # any, or a profile not known here
            names.add(name)
        return tuple(sorted(names))

    def _bound(self, value_set: str, value: Any) -> Problems:
        known = [self.profiles.includes(value_set, system, code) for system, code in _codings(value)]
        if True in known or None in known or not isinstance(value, dict | str):
            return []
        if (
            not known
            and isinstance(value, dict)
            and ("coding" not in value or "extension" in value)
            and "text" not in value
        ):
            return []  # a quantity without a code, or an absence that is explained
        return [self.problem("code-invalid", f"Needs a code from {value_set}")]

    def _rule(self, rule: Json, value: Any, type_name: str) -> Problems:
        try:
            expression = fhirpath.compile(rule["expression"], type_name)
            holds = expression.holds(value, resource=self.scope.resource, rootResource=self.scope.root)
        except fhirpath.FhirPathError as error:
            return [self.problem("not-supported", f"The rule {rule['key']} cannot be judged: {error}", "warning")]
        if holds is not False:
            return []
        severity = rule.get("severity", "error")
        return [self.problem("invariant", f"{rule.get('human', rule['expression'])} ({rule['key']})", severity)]


def _values(name: str, parent: Json, parent_type: str) -> Iterator[tuple[str, Any, str]]:
    """(".component[0]", value, type) of an element, whichever type of a choice it has."""
    plain = name.removesuffix("[x]")
    for element in _elements(parent_type).values():
        if element.key == name or element.name == plain:
            yield from _of(element, parent)


def _of(element: Element, parent: Json) -> Iterator[tuple[str, Any, str]]:
    value: Any = parent.get(element.key)
    if value is None and "_" + element.key in parent:
        value = [None] * len(parent["_" + element.key]) if element.max != 1 else None
    elif value is None:
        return
    step = "." + element.name
    items = [(f"{step}[{i}]", v) for i, v in enumerate(value)] if isinstance(value, list) else [(step, value)]
    for at, item in items:
        yield at, item, item["resourceType"] if element.type == "Resource" else element.type


def _elements(type_name: str) -> dict[str, Element]:
    return type_definition(type_name).elements


def _reach(path: str, value: Any, type_name: str) -> Iterator[tuple[Any, str]]:
    """Values (with their types) at a discriminator's path."""
    step, _, rest = path.partition(".")
    if step in ("$this", ""):
        yield value, type_name
    elif isinstance(value, dict):
        for _, item, name in _values(step, value, type_name):
            yield from _reach(rest, item, name)


def _holds(pattern: Any, value: Any) -> bool:
    """A pattern is held by a value that has all of it, and perhaps more."""
    if isinstance(pattern, dict):
        return isinstance(value, dict) and all(
            key in value and _holds(part, value[key]) for key, part in pattern.items()
        )
    if isinstance(pattern, list):
        return isinstance(value, list) and all(any(_holds(part, item) for item in value) for part in pattern)
    return bool(pattern == value)


def _fits(type_name: str, codes: set[str]) -> bool:
    """A nested element's type is its path; the profile calls it BackboneElement or Element."""
    if type_name in codes or "." in type_name:
        return True
    if not is_type(type_name):
        return False
    return bool(codes & {"Resource", "DomainResource", "Element", type_definition(type_name).base, "String"})


def _codings(value: Any) -> list[tuple[str, str]]:
    if isinstance(value, str):
        return [("", value)]
    if not isinstance(value, dict):
        return []
    found = value.get("coding", [value] if "code" in value else [])
    return [(c.get("system", ""), c.get("code", "")) for c in found]

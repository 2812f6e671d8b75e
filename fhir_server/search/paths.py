"""Search expressions as element paths: what a parameter looks at, down to the JSON keys.

R4 writes its parameters in a small part of FHIRPath: paths, choices of type, a filter here and there. That part is resolved
here against the definitions, once, so that indexing is a walk over the keys that are present. Anything beyond it returns
None and is left to `model.fhirpath`. https://hl7.org/fhir/R4/searchparameter-definitions.html#SearchParameter.expression
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fhir_server.model.definitions import RESOURCE_TYPES, Element, type_definition

_TOKEN = re.compile(r"\s*(%?[A-Za-z_]\w*|'[^']*'|\[\d+\]|!=|[().|=])", re.ASCII)


@dataclass(frozen=True, slots=True)
class Guard:
    """What an object on the way must satisfy: `key` equals `value`, or it has an extension with this URL."""

    key: str  # "extension" for hasExtension
    value: str

    def __call__(self, item: Mapping[str, Any]) -> bool:
        if self.key == "extension":
            return any(type(e) is dict and e.get("url") == self.value for e in item.get("extension", ()))
        return item.get(self.key) == self.value


@dataclass(frozen=True, slots=True)
class Step:
    key: str
    many: bool
    guard: Guard | None = None


@dataclass(frozen=True, slots=True)
class Path:
    """From a resource (or an element of one) to values of one FHIR type."""

    steps: tuple[Step, ...]
    type: str
    binding: str = ""
    targets: tuple[str, ...] = ()
    resolves_to: str = ""  # only references to this type: where(resolve() is T)
    choice: str = ""  # path up to the choice element that this type is one of

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(step.key for step in self.steps)

    @property
    def many(self) -> bool:
        return any(step.many for step in self.steps)


_Operation = tuple[Literal["name", "as", "where", "resolves", "extension"], str, str]


class _Beyond(Exception):
    """The expression uses more of FHIRPath than is resolved here."""


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        position = 0
        while position < len(text.rstrip()):
            match = _TOKEN.match(text, position)
            if match is None:
                raise _Beyond
            self._tokens.append(match.group(1))
            position = match.end()
        self._at = 0

    def parse(self) -> list[list[_Operation]]:
        union = self._union()
        if self._at < len(self._tokens):
            raise _Beyond
        return union

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1] if self._at <= len(self._tokens) else ""

    def _expect(self, *tokens: str) -> None:
        for token in tokens:
            if self._next() != token:
                raise _Beyond

    def _union(self) -> list[list[_Operation]]:
        found = self._path()
        while self._peek() == "|":
            self._next()
            found = found + self._path()
        return found

    def _path(self) -> list[list[_Operation]]:
        if self._peek() == "(":
            self._next()
            found = self._union()
            self._expect(")")
        else:
            found = [[("name", self._name(), "")]]
        while True:
            ahead = self._peek()
            if ahead == ".":
                self._next()
                operation = self._call(self._name())
                found = [[*path, operation] for path in found]
            elif ahead == "as":
                self._next()
                operation = ("as", self._name(), "")
                found = [[*path, operation] for path in found]
            else:
                return found

    def _call(self, name: str) -> _Operation:
        if self._peek() != "(":
            return ("name", name, "")
        self._next()
        if name in ("as", "ofType"):
            operation: _Operation = ("as", self._name(), "")
        elif name == "extension":
            operation = ("extension", self._string(), "")
        elif name == "where":
            operation = self._where()
        else:
            raise _Beyond
        self._expect(")")
        return operation

    def _where(self) -> _Operation:
        name = self._name()
        if name == "resolve":
            self._expect("(", ")", "is")
            return ("resolves", self._name(), "")
        if name == "hasExtension":
            self._expect("(")
            url = self._string()
            self._expect(")")
            return ("where", "extension", url)
        self._expect("=")
        return ("where", name, self._string())

    def _name(self) -> str:
        token = self._next()
        if not token.isidentifier():
            raise _Beyond
        return token

    def _string(self) -> str:
        token = self._next()
        if not token.startswith("'"):
            raise _Beyond
        return token[1:-1]


def resolve(expression: str, root: str, *, relative: bool = False) -> list[Path] | None:
    """All paths of an expression from a type; [] if none of it applies to that type, None if it says more than paths.

    `relative`: the expression starts at an element of `root` rather than with a type's name.
    """
    try:
        alternatives = _Parser(expression).parse()
        found: list[Path] = []
        for operations in alternatives:
            rest: Sequence[_Operation] = operations
            if not relative:
                name = operations[0][1]
                if name in RESOURCE_TYPES and name != root:
                    continue
                if name[0].isupper():  # otherwise it starts at the resource without saying so
                    if name not in (root, "Resource", "DomainResource"):
                        raise _Beyond
                    rest = operations[1:]
            found.extend(_follow([Path((), root)], rest))
    except _Beyond:
        return None
    return list(dict.fromkeys(found))


def _follow(paths: list[Path], operations: Sequence[_Operation]) -> list[Path]:
    for kind, name, value in operations:
        if kind == "name":
            paths = [longer for path in paths for longer in _element(path, name)]
        elif kind == "as":
            wanted = name[0].lower() + name[1:]  # R4 writes `as DateTime` where it means dateTime
            paths = [path for path in paths if path.type in (name, wanted)]
        elif kind == "resolves":
            paths = [replace(path, resolves_to=name) for path in paths]
        elif kind == "where":
            paths = [_guarded(path, Guard(name, value)) for path in paths]
        else:
            # R4's own parameters stop at the extension and mean its value.
            paths = [
                longer
                for path in paths
                for extension in _element(path, "extension")
                for longer in _element(_guarded(extension, Guard("url", name)), "value")
            ]
    return paths


def _guarded(path: Path, guard: Guard) -> Path:
    *before, last = path.steps
    return replace(path, steps=(*before, replace(last, guard=guard)))


def _element(path: Path, name: str) -> list[Path]:
    try:
        definition = type_definition(path.type)
    except KeyError:
        raise _Beyond from None
    elements = [element for element in definition.elements.values() if element.name == name]
    if not elements:
        raise _Beyond
    return [_longer(path, element) for element in elements]


def _longer(path: Path, element: Element) -> Path:
    step = Step(element.key, element.max != 1)
    return Path(
        (*path.steps, step),
        element.type,
        element.binding,
        element.targets,
        path.resolves_to,
        ".".join((*path.keys, element.name)) if element.choice else "",
    )

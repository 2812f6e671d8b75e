"""A compiled expression and how to run it."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache
from typing import Any

from fhir_server.model.fhirpath import ast
from fhir_server.model.fhirpath.compiled import Compiled
from fhir_server.model.fhirpath.compiler import Compiler, is_constant
from fhir_server.model.fhirpath.failure import FhirPathError
from fhir_server.model.fhirpath.parser import parse
from fhir_server.model.fhirpath.steps import DYNAMIC
from fhir_server.model.fhirpath.values import DEFAULT_HOST, Frame, Host, Items, Run, plain

_JSON = (dict, str, int, bool, Decimal)


class Expression:
    """Runs on any resource, or on any element if `root_type` says what it is. Made by `compile`; has no state."""

    __slots__ = ("_collect", "_condition", "path", "root_type", "text", "types", "variables")

    def __init__(self, text: str, root_type: str | None, node: ast.Node, part: Compiled) -> None:
        self.text = text
        self.root_type = root_type
        self.types = part.types  # what the results may be; None when only the data can tell
        self.path = _path(node, root_type)  # ("code", "coding") for a path of names alone, else None
        self.variables = frozenset(_variables(node))  # %names it asks its caller for
        self._collect = part.collect
        self._condition = part.condition

    def __call__(self, focus: Any, /, *, host: Host = DEFAULT_HOST, **variables: Any) -> list[Any]:
        """The result's plain values: JSON values; a computed date is its text, a computed quantity a FHIR Quantity.

        `focus` is a resource, or an element of `root_type`. `resource` and `rootResource` among the variables are
        `%resource` and `%rootResource`, by default the focus itself. Raises FhirPathError.
        """
        found = self._run(self._collect, focus, None, host, variables)
        return [plain(entry) for entry in found if entry[0] is not None]

    def typed(self, focus: Any, /, *, host: Host = DEFAULT_HOST, **variables: Any) -> list[tuple[str, Any]]:
        """`(type, value)` of each result: `("Quantity", {…})`, `("Observation.component", {…})`, `("code", "final")`."""
        found = self._run(self._collect, focus, None, host, variables)
        return [(kind, value if type(value) in _JSON else plain((value, kind, None))) for value, kind, _ in found
                if value is not None]  # fmt: skip

    def items(self, focus: Any, /, *, host: Host = DEFAULT_HOST, **variables: Any) -> Items:
        """The items themselves, `(value, type, _name sibling)`; what the data hold is handed out as is, by identity."""
        found: Items = self._run(self._collect, focus, None, host, variables)
        return found

    def holds(self, focus: Any, /, *, element: Any = None, host: Host = DEFAULT_HOST, **variables: Any) -> bool | None:
        """The result as a condition: True, False, or None for an empty result (unknown).

        `element` is the `_name` sibling of a primitive focus; `focus` may then be None.
        """
        return self._run(self._condition, focus, element, host, variables)  # type: ignore[no-any-return]

    def _run(self, part: Any, focus: Any, element: Any, host: Host, variables: dict[str, Any]) -> Any:
        kind = self.root_type
        if kind is None or (type(focus) is dict and "resourceType" in focus):
            kind = focus.get("resourceType", "") if type(focus) is dict else ""
        context: Items = [(focus, kind, element)]
        resource = root = context
        if variables:
            resource = _container(variables.pop("resource", focus)) or context
            root = _container(variables.pop("rootResource", None)) or resource
        frame = Frame(context, Run(context, resource, root, host, variables))
        try:
            return part(frame)
        except FhirPathError as error:
            raise error.within(self.text) from None
        except RecursionError:
            raise FhirPathError("The data are nested too deep", None, self.text) from None

    def __repr__(self) -> str:
        return f"Expression({self.text!r}, {self.root_type!r})"


@lru_cache(maxsize=8192)
def compile(text: str, root_type: str | None = None, *, strict: bool = False) -> Expression:
    """`root_type` is the type of what the expression will run on. `strict` refuses elements that type does not have.

    Raises FhirPathError: syntax, functions that do not exist, their number of arguments, names of types.
    """
    node = parse(text)
    this = frozenset({root_type}) if root_type is not None and root_type not in DYNAMIC else None
    try:
        return Expression(text, root_type, node, Compiler(text, strict).part(node, this))
    except RecursionError:
        raise FhirPathError("The expression is nested too deep", None, text) from None


def _container(value: Any) -> Items:
    return [(value, value["resourceType"], None)] if type(value) is dict and "resourceType" in value else []


def _variables(node: Any) -> Iterator[str]:
    if isinstance(node, ast.External):
        if not is_constant(node.name):
            yield node.name
    elif isinstance(node, ast.Node):
        for name in node.__slots__:
            yield from _variables(getattr(node, name))
    elif isinstance(node, tuple):
        for part in node:
            yield from _variables(part)


def _path(node: ast.Node, root_type: str | None) -> tuple[str, ...] | None:
    names: list[str] = []
    while isinstance(node, ast.Member):
        if not isinstance(node.step, ast.Name):
            return None
        names.append(node.step.name)
        node = node.target
    if not isinstance(node, ast.Name):
        return None
    if node.name != root_type:
        names.append(node.name)
    return tuple(reversed(names))

"""`is`, `as` and `ofType`: which types a name means, and which items are of them. https://hl7.org/fhirpath/N1/#types"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from fhir_server.model.definitions import is_type
from fhir_server.model.fhirpath import ast
from fhir_server.model.fhirpath.values import QUANTITY, ancestors, is_primitive

SYSTEM_NAMES = frozenset({"Any", "Boolean", "String", "Integer", "Decimal", "Date", "DateTime", "Time", "Quantity"})


def type_name(node: ast.Node) -> str | None:
    """A type given as an argument, as `ofType(FHIR.Patient)`; None if it is no name."""
    if isinstance(node, ast.Name):
        return node.name
    if isinstance(node, ast.Member) and isinstance(node.target, ast.Name) and isinstance(node.step, ast.Name):
        return f"{node.target.name}.{node.step.name}"
    return None


@lru_cache(maxsize=512)
def resolve(name: str) -> tuple[str, ...]:
    """The types a name means, without `FHIR.`; empty if there is none. `Quantity` is FHIR's and FHIRPath's."""
    namespace, _, rest = name.partition(".")
    if namespace == "System" and rest:
        return (name,) if rest in SYSTEM_NAMES else ()
    if namespace == "FHIR" and rest:
        return (rest,) if is_type(rest) else ()
    if name == "Quantity":
        return ("Quantity", QUANTITY)
    if is_type(name):
        return (name,)
    return (f"System.{name}",) if name in SYSTEM_NAMES else ()


def is_of(kinds: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether an item's type is one of `kinds` or inherits from it."""

    @lru_cache(maxsize=256)
    def test(kind: str) -> bool:
        return any(wanted in ancestors(kind) for wanted in kinds)

    return test


def selected_by(kinds: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether `as` and `ofType` keep an item. Primitive types are kept by their own name only: a `canonical` is a `uri`
    by inheritance, but `value.ofType(uri)` chooses `valueUri`."""
    inherits = is_of(kinds)

    @lru_cache(maxsize=256)
    def test(kind: str) -> bool:
        return kind in kinds if is_primitive(kind) else inherits(kind)

    return test

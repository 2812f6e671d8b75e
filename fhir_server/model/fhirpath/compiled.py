"""What the compiler makes of each part of an expression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fhir_server.model.fhirpath import ast
from fhir_server.model.fhirpath.failure import FhirPathError
from fhir_server.model.fhirpath.values import BOOLEAN, FALSE, NOTHING, TRUE, Frame, Items, truth

if TYPE_CHECKING:
    from fhir_server.model.fhirpath.compiler import Compiler

Collect = Callable[[Frame], Items]
Truth = Callable[[Frame], bool | None]
Types = frozenset[str] | None  # types the items may have; None when only the data can tell

BOOLEANS = frozenset({BOOLEAN})


@dataclass(frozen=True, slots=True)
class Compiled:
    """`collect` gives the collection; `decide`, where there is one, the same as true, false or unknown, faster."""

    collect: Collect
    types: Types = None
    decide: Truth | None = None
    element: tuple[Compiled, str] | None = None  # target and name, if the part is just a step to an element

    @property
    def condition(self) -> Truth:
        """The part used as a condition."""
        if self.decide is not None:
            return self.decide
        collect = self.collect

        def decide(frame: Frame) -> bool | None:
            found = collect(frame)
            if not found:
                return None
            if len(found) == 1:
                value = found[0][0]
                return value if type(value) is bool else True
            return truth(found)

        return decide


def decided(decide: Truth) -> Compiled:
    """A part whose result is a boolean or nothing."""

    def collect(frame: Frame) -> Items:
        result = decide(frame)
        return NOTHING if result is None else TRUE if result else FALSE

    return Compiled(collect, BOOLEANS, decide)


def constant(collection: Items) -> Compiled:
    return Compiled(lambda frame: collection, frozenset(kind for _, kind, _ in collection))


def _nothing(frame: Frame) -> Items:
    return NOTHING


NOWHERE = Compiled(_nothing, frozenset())  # a path that starts at another type than the expression does


@dataclass(frozen=True, slots=True)
class Invocation:
    """A function call being compiled: `target.name(arguments)`."""

    compiler: Compiler
    call: ast.Call
    target: Compiled
    target_node: ast.Node | None
    this: Types  # what `$this` is around the call, for arguments that are evaluated there

    def value(self, index: int) -> Compiled | None:
        """An argument evaluated once, where the call stands; None if it was left out."""
        if index >= len(self.call.arguments):
            return None
        return self.compiler.part(self.call.arguments[index], self.this)

    def required(self, index: int) -> Compiled:
        """An argument that must be there."""
        return self.compiler.part(self.call.arguments[index], self.this)

    def selected(self, kind: ast.Node) -> Compiled:
        """The target's items of the type that `kind` names."""
        return self.compiler.selected(self.target, self.compiler.types(kind))

    def each(self, index: int, types: Types | None = None) -> Compiled:
        """An argument evaluated for each item of the target, which is its `$this`."""
        return self.compiler.part(self.call.arguments[index], types if types is not None else self.target.types)

    def failure(self, message: str) -> FhirPathError:
        return FhirPathError(f"{self.call.name}(): {message}", self.call.position, self.compiler.text)

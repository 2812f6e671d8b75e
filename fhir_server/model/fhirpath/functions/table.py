"""How a function is declared: its name, how many arguments it takes, what it becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, Final

from fhir_server.model.fhirpath.compiled import Collect, Compiled, Invocation, Types, decided
from fhir_server.model.fhirpath.values import Frame, Items

SAME: Final = frozenset({"the target's"})  # the result has the types of the target


@dataclass(frozen=True, slots=True)
class Function:
    low: int
    high: int
    build: Callable[[Invocation], Compiled]


class Table(dict[str, Function]):
    """Functions by name; the decorators below add to it."""

    def compiled(
        self, name: str, low: int = 0, high: int | None = None
    ) -> Callable[[Callable[[Invocation], Compiled]], Callable[[Invocation], Compiled]]:
        """For a function that compiles its arguments itself, as `where` does."""

        def add(build: Callable[[Invocation], Compiled]) -> Callable[[Invocation], Compiled]:
            self[name] = Function(low, low if high is None else high, build)
            return build

        return add

    def eager(self, name: str, types: Types = None) -> Callable[[Callable[..., Items]], Callable[..., Items]]:
        """For `body(items, run, argument, …) -> items`; an argument left out is not passed."""

        def add(body: Callable[..., Items]) -> Callable[..., Items]:
            low, high = _arity(body)

            def build(call: Invocation) -> Compiled:
                return Compiled(_applied(call, body), call.target.types if types is SAME else types)

            self[name] = Function(low, high, build)
            return body

        return add

    def decision(self, name: str) -> Callable[[Callable[..., bool | None]], Callable[..., bool | None]]:
        """For `body(items, run, argument, …) -> bool | None`."""

        def add(body: Callable[..., bool | None]) -> Callable[..., bool | None]:
            low, high = _arity(body)

            def build(call: Invocation) -> Compiled:
                return decided(_applied(call, body))

            self[name] = Function(low, high, build)
            return body

        return add


def _arity(body: Callable[..., Any]) -> tuple[int, int]:
    arguments = list(signature(body).parameters.values())[2:]
    return sum(argument.default is Parameter.empty for argument in arguments), len(arguments)


def _applied(call: Invocation, body: Callable[..., Any]) -> Callable[[Frame], Any]:
    source = call.target.collect
    arguments: list[Collect] = []
    for index in range(len(call.call.arguments)):
        part = call.value(index)
        if part is not None:
            arguments.append(part.collect)
    if not arguments:
        return lambda frame: body(source(frame), frame.run)
    if len(arguments) == 1:
        (only,) = arguments
        return lambda frame: body(source(frame), frame.run, only(frame))
    return lambda frame: body(source(frame), frame.run, *(argument(frame) for argument in arguments))

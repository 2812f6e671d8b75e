"""The conditions on the way to a conclusion, kept so that `$explain` and Provenance can say why. docs/hooks.md (Operations)"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fhir_server.automation.facts import Facts
from fhir_server.automation.follow_up import shown
from fhir_server.automation.formulas import Formula
from fhir_server.automation.proposals import Seen


class Trail:
    """The conditions on the way to a conclusion, with the facts they saw."""

    __slots__ = ("_facts", "_steps")

    def __init__(self, facts: Facts, steps: Iterable[tuple[Formula | str, bool]]) -> None:
        self._facts = facts
        self._steps = tuple(steps)

    def sources(self) -> list[str]:
        return [reading.reference for reading in self._facts.sources()]

    def lines(self) -> list[Seen]:
        lines = []
        for step, result in self._steps:
            if isinstance(step, str):
                lines.append(Seen(step, "", result))
                continue
            saw = ", ".join(f"{name} = {_text(self._facts.variable(name))}" for name in step.names)
            lines.append(Seen(step.text, saw, result))
        return lines


class FunctionTrail:
    """What a rule in Python looked at: its conditions are code, but the facts it asked for can be told."""

    __slots__ = ("_facts", "_title")

    def __init__(self, facts: Facts, title: str) -> None:
        self._facts, self._title = facts, title

    def sources(self) -> list[str]:
        return [reading.reference for reading in self._facts.sources()]

    def lines(self) -> list[Seen]:
        saw = ", ".join(f"{name} = {_text(list(found.values))}" for name, found in self._facts.used.items())
        return [Seen(self._title, saw, True)]


def _text(value: Any) -> str:
    if value is None or value == []:
        return "nothing"
    if isinstance(value, list):
        return "[" + ", ".join(shown(item) for item in value) + "]" if len(value) > 1 else shown(value[0])
    return shown(value)

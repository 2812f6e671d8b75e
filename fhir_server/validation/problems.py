"""What checkers hand upwards: problems whose paths grow from the inside out, made only when something is wrong.

A checker is a function `(value, scope) → None | [Problem, …]`. A right resource therefore costs no path at all.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from fhir_server.errors import Issue

LONGEST_QUOTE = 80  # characters of the sender's value repeated in a message
ENOUGH = 2_000  # problems of one array or object; who sent a million of wrong items would keep everybody waiting for a minute
MOST_HINTS = 50  # guesses at misspelt names in one check


class Problem(NamedTuple):
    """`path` is relative: "" for the value itself, ".component[1].value" for something below it."""

    path: str
    code: str  # issue-type code: structure | required | value | invariant | code-invalid | too-long | too-costly
    text: str
    severity: str = "error"

    def issue(self, root: str) -> Issue:
        return Issue(self.severity, self.code, self.text, (root + self.path,))


Problems = list[Problem]


class Scope:
    """The resource around the value being checked. One for each resource that is not contained."""

    __slots__ = ("_contained", "_hints", "bundled", "resource", "root")

    def __init__(self, root: dict[str, Any], outer: Scope | None = None) -> None:
        self.root = root  # FHIRPath's %rootResource: the container, for what it contains
        self.resource = root  # %resource: the innermost resource
        self.bundled = outer is not None  # inside a Bundle, where conditional references are still allowed
        self._hints: Iterator[int] = outer._hints if outer is not None else iter(range(MOST_HINTS))
        self._contained: dict[str, str] | None = None

    def hint(self, word: str, known: Iterable[str]) -> str:
        """What the sender may have meant, for the first few; looking costs more than all the rest."""
        near = difflib.get_close_matches(word, known, 1) if next(self._hints, None) is not None else []
        return f"; did you mean '{near[0]}'?" if near else ""

    @property
    def contained(self) -> dict[str, str]:
        """id → type of what the root contains."""
        if self._contained is None:
            inner = self.root.get("contained")
            items = [item for item in inner if isinstance(item, dict)] if isinstance(inner, list) else []
            pairs = ((item.get("id"), item.get("resourceType")) for item in items)
            self._contained = {id: name for id, name in pairs if isinstance(id, str) and isinstance(name, str)}
        return self._contained


Check = Callable[[Any, Scope], Problems | None]


def below(step: str, problems: Problems) -> Problems:
    """The same problems, one step further from the root: `below(".name[0]", …)`."""
    return [Problem(step + p.path, p.code, p.text, p.severity) for p in problems]


def kind(value: Any) -> str:
    """The JSON kind of a value, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float | Decimal):
        return "a number"
    return "a text" if isinstance(value, str) else "an array" if isinstance(value, list) else "an object"


def quote(value: Any) -> str:
    text = str(value)
    return f"'{text}'" if len(text) <= LONGEST_QUOTE else f"'{text[:LONGEST_QUOTE]}…'"

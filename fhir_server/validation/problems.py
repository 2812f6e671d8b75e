"""What checkers hand upwards: problems whose paths grow from the inside out, made only when something is wrong.

A checker is a function `(value, scope) → None | [Problem, …]`. A right resource therefore costs no path at all.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

from fhir_server.errors import Issue

LONGEST_QUOTE = 80  # characters of the sender's value repeated in a message


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

    __slots__ = ("bundled", "fragments", "resource", "root")

    def __init__(self, root: dict[str, Any], *, bundled: bool = False) -> None:
        self.root = root  # FHIRPath's %rootResource: the container, for what it contains
        self.resource = root  # %resource: the innermost resource
        self.bundled = bundled  # inside a Bundle, where conditional references are still allowed
        self.fragments: dict[str, list[tuple[str, ...]]] = {}  # "#id" → the target types each reference to it allows


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

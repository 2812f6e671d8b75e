"""JSON values as patches need them: copies of bounded size, equality by value."""

from __future__ import annotations

from typing import Any, Final

from fhir_server.errors import TooLarge
from fhir_server.model.fhirpath.equality import exact
from fhir_server.model.resource import MAX_DEPTH

MAX_NODES: Final = 1_000_000  # objects, lists and values one patch may copy; copying a copy doubles what there is


def copied(value: Any) -> Any:
    """A deep copy. Raises TooLarge."""
    return Copies().copy(value)


class Copies:
    """Deep copies within one budget."""

    def __init__(self, budget: int = MAX_NODES) -> None:
        self._left = budget

    def copy(self, value: Any, depth: int = 0) -> Any:
        """`depth` is how deep the copy will stand. Raises TooLarge when it is nested too deep or the budget is used up."""
        self._left -= 1
        if depth > MAX_DEPTH:
            raise TooLarge(f"The patch would nest the resource deeper than {MAX_DEPTH} levels")
        if self._left < 0:
            raise TooLarge(f"The patch copies more than {MAX_NODES} values")
        if isinstance(value, dict):
            return {key: self.copy(child, depth + 1) for key, child in value.items()}
        if isinstance(value, list):
            return [self.copy(child, depth + 1) for child in value]
        return value


def same(one: Any, other: Any) -> bool:
    """Equal JSON: numbers by value, objects in any order, `1` and `true` and `"1"` apart."""
    return exact(one) == exact(other)

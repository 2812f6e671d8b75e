"""What a principal may find, as a value that narrows every find of a search.

A Restriction is a disjunction: a resource is visible if at least one alternative lets it through. It says nothing about
how a database applies it; `plan.py` puts it inside each filter and `match.py` asks it in memory.
SMART: https://hl7.org/fhir/smart-app-launch/STU2.2/scopes-and-launch-context.html
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way in: within the compartments of `patients` (None: anybody's) and matching every one of `parameters`.

    `parameters` are search pairs as they stand in a URL, unescaped: `("category", "http://…|laboratory")`.
    `excluded`: patients whose consent denies it; what is in a compartment of one of them is not visible.
    """

    patients: frozenset[str] | None = None
    parameters: tuple[tuple[str, str], ...] = ()
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Restriction:
    """Visible resources of one type; no alternative means nothing is."""

    alternatives: tuple[Alternative, ...]

    @property
    def everything(self) -> bool:
        return any(a.patients is None and not a.parameters and not a.excluded for a in self.alternatives)

    @property
    def nothing(self) -> bool:
        return not self.alternatives


EVERYTHING = Restriction((Alternative(),))
NOTHING = Restriction(())

Restrict = Callable[[str], Restriction]  # by resource type


def unrestricted(resource_type: str) -> Restriction:
    """The Restrict of one who may see everything."""
    return EVERYTHING

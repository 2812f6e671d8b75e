"""What a principal may find, as a value that narrows every find of a search.

A Restriction is a disjunction: a resource is visible if at least one alternative lets it through. It says nothing about
how a database applies it; `plan.py` puts it inside each filter, `allows` asks it in memory.
SMART: https://hl7.org/fhir/smart-app-launch/STU2.2/scopes-and-launch-context.html
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fhir_server.search.conditions import parse_condition
from fhir_server.search.match import holds
from fhir_server.search.query import All, Condition
from fhir_server.search.registry import standard


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way in: within the compartments of `patients` (None: anybody's) and matching every one of `parameters`.

    `parameters` are search pairs as they stand in a URL, unescaped: `("category", "http://…|laboratory")`, of R4's own
    parameters without chains; `resource_type` says whose, and is needed where there are any.
    """

    patients: frozenset[str] | None = None
    parameters: tuple[tuple[str, str], ...] = ()
    resource_type: str = ""
    excluded: frozenset[str] = frozenset()  # patients who object: nothing in a compartment of theirs comes through

    @property
    def condition(self) -> Condition:
        """What `parameters` ask. Raises BadRequest if they cannot be understood."""
        return _condition(self.resource_type, self.parameters)

    def allows(self, patients: Collection[str], entries: Mapping[str, Any]) -> bool:
        """Whether a resource with these compartments and search entries comes through."""
        if self.patients is not None and self.patients.isdisjoint(patients):
            return False
        if self.excluded and not self.excluded.isdisjoint(patients):
            return False
        return not self.parameters or holds(self.condition, entries)


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

    def allows(self, patients: Collection[str], entries: Mapping[str, Any]) -> bool:
        return any(alternative.allows(patients, entries) for alternative in self.alternatives)


EVERYTHING = Restriction((Alternative(),))
NOTHING = Restriction(())

Restrict = Callable[[str], Restriction]  # by resource type


def unrestricted(resource_type: str) -> Restriction:
    """The Restrict of one who may see everything."""
    return EVERYTHING


@lru_cache(maxsize=1024)
def _condition(resource_type: str, parameters: tuple[tuple[str, str], ...]) -> Condition:
    return All(tuple(parse_condition(standard(), resource_type, name, value) for name, value in parameters))

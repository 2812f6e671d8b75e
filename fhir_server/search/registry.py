"""The search parameters of each resource type, and the database indexes they want.

https://hl7.org/fhir/R4/searchparameter-registry.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fhir_server.store.protocol import Index

State = Literal["ready", "unindexed"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One search parameter as it applies to one resource type."""

    resource_type: str
    code: str
    type: str  # number | date | string | token | reference | composite | quantity | uri | special
    url: str
    expression: str
    targets: tuple[str, ...] = ()
    components: tuple[tuple[str, str], ...] = ()  # (url of the parameter, expression relative to this one's)
    single: bool = False  # can have at most one value: its entry is no array
    state: State = "ready"


class Registry:
    """Parameters by type and code. Standard ones come from the definitions; custom ones are added while running."""

    def __init__(self) -> None:
        self._parameters: dict[str, dict[str, Parameter]] = {}

    @classmethod
    def standard(cls) -> Registry:
        return cls()

    def parameter(self, resource_type: str, code: str) -> Parameter | None:
        return self.parameters(resource_type).get(code)

    def parameters(self, resource_type: str) -> Mapping[str, Parameter]:
        """Everything that can be asked of one type, by code."""
        return self._parameters.get(resource_type, {})

    def indexes(self, resource_type: str) -> list[Index]:
        """What the store creates with the collection of this type: at most 64, the system's own included."""
        return []

    def add(self, definition: Mapping[str, Any], state: State = "unindexed") -> list[Parameter]:
        """A SearchParameter resource posted by a client; refused in searches until it is `ready`."""
        raise NotImplementedError

    def remove(self, url: str) -> None:
        raise NotImplementedError

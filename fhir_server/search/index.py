"""A resource's search entries and the patients whose compartments hold it. https://hl7.org/fhir/R4/search.html"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fhir_server.search.registry import Registry


@dataclass(frozen=True, slots=True)
class Indexed:
    """`entries`: name → value, kept under `s` by the store. `patients`: ids, without the type."""

    entries: dict[str, Any]
    patients: tuple[str, ...]


def index(registry: Registry, resource: Mapping[str, Any], *, base: str = "") -> Indexed:
    """Entries of every parameter that is in force. References that start with `base` count as local."""
    return Indexed({}, ())

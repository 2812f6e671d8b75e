"""Confidentiality labels in `meta.security`: R and V hide a resource from whoever has no clearance for them.

https://hl7.org/fhir/R4/security-labels.html; codes of http://terminology.hl7.org/CodeSystem/v3-Confidentiality
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

CONFIDENTIALITY = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality"
_HIDDEN = {"N": ("R", "V"), "R": ("V",), "V": ()}  # clearance → labels that stay hidden
_RANK = {"": 0, "R": 1, "V": 2}


def hidden(clearance: str) -> tuple[str, ...]:
    """The labels that whoever has this clearance does not see."""
    return _HIDDEN.get(clearance, ("R", "V"))


def label_of(resource: Mapping[str, Any]) -> str:
    """The highest of its labels that hide anything: V, R or empty."""
    security = (resource.get("meta") or {}).get("security")
    if not security:
        return ""
    return highest(str(one.get("code", "")) for one in security if one.get("system") == CONFIDENTIALITY)


def highest(labels: Iterable[str]) -> str:
    return max((label for label in labels if label in _RANK), key=_RANK.__getitem__, default="")

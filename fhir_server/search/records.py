"""Whose record a resource stands in: R4's Patient compartment, and what R4 leaves out of it though it is about a patient.

R4's compartment has no Task, no GuidanceResponse and no Device, and no Provenance of anything but the patient itself
(https://hl7.org/fhir/R4/compartmentdefinition-patient.html; R5 has taken Task and GuidanceResponse in). Left out, they would
be hidden from who may see the patient, and shown to whom the patient's Consent keeps away.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

from fhir_server.model.definitions import RESOURCE_TYPES, compartment
from fhir_server.search.types.reference import local
from fhir_server.store.protocol import Key, Store

# Type → parameters, beside those of the compartment, whose references to a Patient count.
ABOUT: Mapping[str, tuple[str, ...]] = {
    "Contract": ("patient", "subject", "signer"),
    "Device": ("patient",),
    "GuidanceResponse": ("patient", "subject"),
    "Task": ("patient", "focus"),
    "VerificationResult": ("target",),
}
# Type → the element whose references lead to it: it stands in the records of what it is about.
THROUGH: Mapping[str, str] = {"Provenance": "target", "Task": "focus"}


@cache
def memberships(code: str) -> Mapping[str, tuple[str, ...]]:
    """Resource type → codes of the reference parameters that put it into a compartment; only types that may be in one.

    KeyError for what is no compartment.
    """
    more = ABOUT if code == "Patient" else {}
    found = {**compartment(code), **more}
    return {name: codes for name, codes in sorted(found.items()) if codes}


def about(resource: Mapping[str, Any], base: str) -> list[Key]:
    """What the resource is about, where that decides whose record it is in. The resource need not be valid."""
    element = THROUGH.get(str(resource.get("resourceType")))
    if element is None:
        return []
    values = resource.get(element)
    keys: dict[Key, None] = {}
    for one in values if isinstance(values, list) else [values]:
        text = one.get("reference") if isinstance(one, Mapping) else None
        kind, _, id = local(text, base)[0].partition("/") if isinstance(text, str) else ("", "", "")
        if kind in RESOURCE_TYPES and kind != "Patient" and id and "/" not in id:
            keys[kind, id] = None
    return list(keys)


async def patients_of(store: Store, keys: Collection[Key]) -> dict[Key, tuple[str, ...]]:
    """Whose records these are in now, or were when they were deleted; what is not there is left out."""
    found = await store.read_many(list(keys), raw=False) if keys else {}
    return {key: stored.patients for key, stored in found.items()}

"""Whose record a resource stands in: R4's Patient compartment, and what R4 leaves out of it though it is about a patient.

R4's compartment has no Task, no GuidanceResponse and no Device, and no Provenance of anything but the patient itself
(https://hl7.org/fhir/R4/compartmentdefinition-patient.html; R5 has taken Task and GuidanceResponse in). Left out, they would
be hidden from who may see the patient, and shown to whom the patient's Consent keeps away.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
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
THROUGH: Mapping[str, str] = {"Binary": "securityContext", "Provenance": "target", "Task": "focus"}
# What carries other resources stands in the record of every patient whom they mention: it is kept from whom one of them keeps
# away, and the policy shows it to nobody who is limited to some.
CARRIERS = frozenset({"Bundle", "Parameters"})


@cache
def memberships(code: str) -> Mapping[str, tuple[str, ...]]:
    """Resource type → codes of the reference parameters that put it into a compartment; only types that may be in one.

    A type without codes gets there by THROUGH alone. KeyError for what is no compartment.
    """
    found = {name: codes for name, codes in compartment(code).items() if codes}
    if code == "Patient":
        found = {**dict.fromkeys(THROUGH, ()), **found, **ABOUT}
    return dict(sorted(found.items()))


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
        if kind in RESOURCE_TYPES and id and "/" not in id:
            keys[kind, id] = None
    return list(keys)


def mentioned(value: Any, base: str) -> Iterator[str]:
    """The ids of all Patients in what a carrier carries, and of those it refers to."""
    if isinstance(value, list):
        for one in value:
            yield from mentioned(one, base)
    elif isinstance(value, Mapping):
        if value.get("resourceType") == "Patient" and isinstance(value.get("id"), str):
            yield value["id"]
        for name, one in value.items():
            if name == "reference" and isinstance(one, str):
                kind, _, id = local(one, base)[0].partition("/")
                if kind == "Patient" and id and "/" not in id:
                    yield id
            else:
                yield from mentioned(one, base)


async def patients_of(store: Store, keys: Collection[Key]) -> dict[Key, tuple[str, ...]]:
    """Whose records these are in now, or were when they were deleted; what is not there is left out."""
    others = [key for key in keys if key[0] != "Patient"]
    found = await store.read_many(others, raw=False) if others else {}
    own = {key: (key[1],) for key in keys if key[0] == "Patient"}
    return {**own, **{key: stored.patients for key, stored in found.items()}}

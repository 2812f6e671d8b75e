"""Whose record a new version stands in by what it is about: a Provenance by its targets, a Task by its focus.

Asked before it is prepared, and kept with it: what is about something that is moved to another patient's record later stays where
it was put.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fhir_server.interactions.context import Context, Server
from fhir_server.model.resource import Resource
from fhir_server.search.records import about, patients_of
from fhir_server.store.protocol import Key

NONE: Mapping[Key, Sequence[str]] = {}


async def belonging(
    server: Server,
    context: Context,
    interaction: str,
    resource: Resource,
    beside: Mapping[Key, Sequence[str]] = NONE,
) -> tuple[str, ...]:
    """`beside`: the patients of what is written in the same transaction. What the writer does not reach leads nowhere."""
    keys = about(resource, context.base)
    if not keys:
        return ()
    found = {**await patients_of(server.store, [key for key in keys if key not in beside]), **beside}
    resource_type = str(resource["resourceType"])
    return tuple(
        dict.fromkeys(
            patient
            for key in keys
            if (patients := found.get(key))
            and server.policy.touches(context.principal, interaction, resource_type, patients)
            for patient in patients
        )
    )

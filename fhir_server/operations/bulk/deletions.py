"""What was deleted after `_since`, as transaction Bundles that delete it elsewhere, too. Bulk Data STU2, "deleted"

A deletion keeps nothing but its patients to be judged by: types with a `_typeFilter`, and what only a narrowed scope lets
through, have none here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from fhir_server.interactions.context import Context, Server
from fhir_server.model.resource import dump
from fhir_server.operations.bulk.request import Request
from fhir_server.operations.bulk.selection import INTERACTION
from fhir_server.search import stream
from fhir_server.store.protocol import Stored

ENTRIES = 100  # of a bundle, which is one line


async def deletions(server: Server, context: Context, request: Request) -> AsyncIterator[bytes]:
    keys: list[str] = []
    for resource_type in request.types:
        if resource_type in request.filters:
            continue
        async for stored in stream.deleted(server.store, resource_type, request.since):
            if _within(request, stored) and server.policy.sees(context.principal, INTERACTION, stored):
                keys.append(f"{resource_type}/{stored.id}")
                if len(keys) == ENTRIES:
                    yield _bundle(keys)
                    keys = []
    if keys:
        yield _bundle(keys)


def _within(request: Request, stored: Stored) -> bool:
    if request.patients is None:
        return request.level == "system" or bool(stored.patients)
    wanted = frozenset(request.patients)
    return wanted.issuperset(stored.patients) if request.only else not wanted.isdisjoint(stored.patients)


def _bundle(keys: list[str]) -> bytes:
    entries = [{"request": {"method": "DELETE", "url": key}} for key in keys]
    return dump({"resourceType": "Bundle", "type": "transaction", "entry": entries})

"""A Provenance names what it is about, seldom the patient: in an export of patients it follows its targets.

Bulk Data STU2: all Provenance "whose Provenance.target is a resource in the Patient compartment". A search shows those without a
patient to whoever is not limited to some; nobody else gets here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from fhir_server.search.types import reference
from fhir_server.store.documents import ID
from fhir_server.store.protocol import Find, Store, Stored

TARGET = "target"  # the search entry
AT_ONCE, BYTES = 200, 4 * 1024 * 1024  # that are looked at together: so many, or so large


async def of_patients(
    store: Store, matches: AsyncIterator[Stored], patients: frozenset[str] | None, *, only: bool
) -> AsyncIterator[Stored]:
    """Those in the compartments of `patients` (None: anybody's) themselves or by a target. `only`: in nobody else's."""
    waiting: list[Stored] = []
    size = 0
    async for stored in matches:
        waiting.append(stored)
        size += len(stored.raw)
        if len(waiting) >= AT_ONCE or size >= BYTES:
            for one in await _kept(store, waiting, patients, only):
                yield one
            waiting, size = [], 0
    for one in await _kept(store, waiting, patients, only):
        yield one


async def _kept(store: Store, found: Sequence[Stored], patients: frozenset[str] | None, only: bool) -> list[Stored]:
    by_type: dict[str, set[str]] = {}
    for stored in found:
        for key in stored.entries.get(TARGET, ()):
            if kind := reference.type_of(key):
                by_type.setdefault(kind, set()).add(key.rpartition("/")[2])
    whose: dict[str, tuple[str, ...]] = {}
    for kind, ids in by_type.items():
        for target in await store.find(Find(kind, {ID: {"$in": sorted(ids)}}, raw=False)):
            whose[f"{kind}/{target.id}"] = target.patients
    kept: list[Stored] = []
    for stored in found:
        of = {*stored.patients, *(id for key in stored.entries.get(TARGET, ()) for id in whose.get(key, ()))}
        wanted = bool(of) if patients is None else not patients.isdisjoint(of)
        if wanted and not (only and patients is not None and not patients.issuperset(of)):
            kept.append(stored)
    return kept

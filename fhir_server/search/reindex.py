"""Search entries made anew for what is stored: after a new SearchParameter, or for a new version of this software.

Goes through a type in the order of ids, in batches; after each batch it writes down how far it came, so that it can be
stopped and started again. A resource that somebody changes meanwhile is left alone: the change has indexed it. Only when
all is done is a parameter in force.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fhir_server.model.resource import load
from fhir_server.search.custom import SETTING, ready_parameters
from fhir_server.search.index import index
from fhir_server.search.records import THROUGH, about, patients_of
from fhir_server.search.registry import Registry
from fhir_server.store.documents import LIVE
from fhir_server.store.protocol import Store, Stored

BATCH = 200
CHECKPOINT = (
    "reindex"  # the setting: what is wanted, finished types, the type and id it got to, counts, time of the last step
)
START = {"wanted": [], "urls": [], "finished": [], "type": "", "after": "", "count": 0, "at": 0}
ALIVE = 30_000  # ms: a run that has written nothing down for so long has ended


@dataclass(frozen=True, slots=True)
class Progress:
    """`resource_type` is being read; `done` of `total` resources of all wanted types; `rate` per second."""

    resource_type: str
    done: int
    total: int
    rate: float

    @property
    def percent(self) -> float:
        return 100.0 * self.done / self.total if self.total else 0.0 if self.resource_type else 100.0


async def reindex(
    store: Store, registry: Registry, types: Sequence[str] = (), *, base: str = "", settle: float = 0.0
) -> AsyncIterator[Progress]:
    """Yields after each batch. `types`: none for those that have waiting parameters; ("*",) for every type there is.

    `base`: the server's own URL, as in `index`. `settle`: seconds for other processes to learn of new parameters (see
    custom.INTERVAL) before reading, so that what they write meanwhile is indexed by them.
    """
    waiting = registry.unindexed()
    urls = {url for found in waiting.values() for url in found}
    present = await store.resource_types()
    wanted = sorted(set(present) if tuple(types) == ("*",) else set(types or waiting) & set(present))
    await announce(store)
    await asyncio.sleep(settle)
    fingerprints = await _fingerprints(store)
    point = await store.setting(CHECKPOINT) or {}
    if not wanted or point.get("wanted") != wanted or point.get("urls") != sorted(urls):
        point = {**START, "wanted": wanted, "urls": sorted(urls)}
    total = sum([await store.count(kind, LIVE) for kind in wanted])
    started, before = time.monotonic(), int(point["count"])
    for kind in wanted:
        if kind in point["finished"]:
            continue
        await store.ensure_indexes(kind)
        after = str(point["after"]) if point["type"] == kind else ""
        async for batch in _batches(store, kind, after):
            await store.replace_entries(kind, await _anew(store, registry, batch, base))
            count = int(point["count"]) + len(batch)
            rate = (count - before) / max(time.monotonic() - started, 1e-6)
            point.update(type=kind, after=batch[-1].id, count=count, total=total, rate=rate, at=_now())
            await store.set_setting(CHECKPOINT, point)
            yield Progress(kind, count, total, rate)
        point["finished"] = [*point["finished"], kind]
    if not types or tuple(types) == ("*",):
        ready = await ready_parameters(store)
        ready.update({url: fingerprints[url] for url in urls if url in fingerprints})
        await store.set_setting(SETTING, {"ready": ready})
        for url in urls:
            registry.mark_ready(url)
    await store.set_setting(CHECKPOINT, START)
    yield Progress("", total, total, 0.0)


async def running(store: Store) -> Progress | None:
    """How far a run has come that is under way in this or another process."""
    point = await store.setting(CHECKPOINT) or {}
    if _now() - int(point.get("at", 0)) > ALIVE:
        return None
    return Progress(
        str(point.get("type", "")), int(point.get("count", 0)), int(point.get("total", 0)), float(point.get("rate", 0))
    )


async def announce(store: Store, *, ended: bool = False) -> None:
    """Tells other processes that a run is under way before it has a first step (or, `ended`, that it is no more)."""
    await store.set_setting(CHECKPOINT, {"at": 0 if ended else _now()})


def _now() -> int:
    return int(time.time() * 1000)


async def _anew(store: Store, registry: Registry, batch: Sequence[Stored], base: str) -> list[Stored]:
    """Whose record what it is about put it in when it was written stays; looked for only where it is in nobody's."""
    resources = [load(stored.raw) for stored in batch]
    leads = [
        [] if stored.patients else about(resource, base) for stored, resource in zip(batch, resources, strict=True)
    ]
    found = await patients_of(store, {key for keys in leads for key in keys})
    made: list[Stored] = []
    for stored, resource, keys in zip(batch, resources, leads, strict=True):
        indexed = index(registry, resource, base=base)
        kept = stored.patients if stored.resource_type in THROUGH else ()
        led = (id for key in keys for id in found.get(key, ()))
        patients = tuple(dict.fromkeys((*indexed.patients, *kept, *led)))
        made.append(replace(stored, entries=indexed.entries, patients=patients))
    return made


async def _batches(store: Store, resource_type: str, after: str) -> AsyncIterator[list[Stored]]:
    batch: list[Stored] = []
    async for stored in store.scan(resource_type, after=after):
        batch.append(stored)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


async def _fingerprints(store: Store) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async for stored in store.scan("SearchParameter"):
        url = load(stored.raw).get("url")
        if isinstance(url, str):
            found[url] = f"{stored.id}/{stored.version}"
    return found

"""SearchParameter resources that clients post become parameters of the registry. https://hl7.org/fhir/R4/searchparameter.html

A new or changed one is refused in searches until its resources are indexed (search/reindex.py). Every process looks for changes
when it commits one itself, and every few seconds for those of others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fhir_server.errors import FhirError
from fhir_server.model.resource import load
from fhir_server.search.registry import Registry, standard
from fhir_server.store.protocol import Event, Store

SETTING = "search-parameters"  # {"ready": {url: fingerprint}}
INTERVAL = 5.0  # seconds between looks at what other processes did
PATIENCE = 0.2  # seconds between looks that searches with strange parameters cause

log = logging.getLogger(__name__)


class CustomParameters:
    """Keeps a registry in step with the SearchParameter resources of a store."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store = store
        self._registry = registry
        self._known: dict[str, str] = {}  # url → fingerprint of the definition the registry has
        self._lock = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._looked = 0.0

    async def open(self, interval: float = INTERVAL) -> None:
        """Loads what is there and goes on watching until `close`."""
        await self.refresh()
        self._watch = asyncio.create_task(self._watching(interval))

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch

    def committed(self, events: Sequence[Event]) -> None:
        """Called after each commit of this process."""
        if any(event.resource_type == "SearchParameter" for event in events):
            self._wake.set()

    async def look(self) -> bool:
        """Whether there is news now: asked when a search uses a parameter that is unknown or not indexed."""
        if time.monotonic() - self._looked < PATIENCE:
            return False
        before = self._registry.version
        await self.refresh()
        return self._registry.version != before

    async def refresh(self) -> None:
        """The registry as the stored resources and the last reindex want it."""
        async with self._lock:
            self._looked = time.monotonic()
            wanted = await self._wanted()
            ready = await ready_parameters(self._store)
            for url in set(self._known) - set(wanted):
                self._registry.remove(url)
                del self._known[url]
            for url, (fingerprint, definition) in wanted.items():
                state = self._registry.custom().get(url)
                in_force = ready.get(url) == fingerprint
                if self._known.get(url) != fingerprint or state is None:
                    self._known[url] = fingerprint
                    try:
                        self._registry.add(definition, "ready" if in_force else "unindexed")
                    except FhirError as error:
                        log.warning("SearchParameter %s is not served: %s", url, error.diagnostics)
                elif in_force and state == "unindexed":
                    self._registry.mark_ready(url)

    async def _wanted(self) -> dict[str, tuple[str, Mapping[str, Any]]]:
        own = {p.url for kind in ("Resource", "Patient") for p in standard().parameters(kind).values()}
        found: dict[str, tuple[str, Mapping[str, Any]]] = {}
        async for stored in self._store.scan("SearchParameter"):
            definition = load(stored.raw)
            url = definition.get("url")
            if isinstance(url, str) and definition.get("status") != "retired" and url not in own:
                found[url] = (f"{stored.id}/{stored.version}", definition)
        return found

    async def _watching(self, interval: float) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), interval)
            self._wake.clear()
            try:
                await self.refresh()
            except Exception:
                log.exception("custom search parameters could not be read; trying again in %s s", interval)


async def ready_parameters(store: Store) -> dict[str, str]:
    """URL → fingerprint of the definitions whose resources are all indexed."""
    kept = await store.setting(SETTING)
    return dict((kept or {}).get("ready", {}))

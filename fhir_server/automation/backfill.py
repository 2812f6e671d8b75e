"""A rule run over everybody, through the outbox, at a limited rate; continues where it was after a restart."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fhir_server.automation.rehearsal import CHUNK, chunks
from fhir_server.automation.rounds import RULE_EVENT
from fhir_server.interactions.context import Server
from fhir_server.store.outbox import Outbox

SETTING = "backfills"  # rule url → {"rate": patients a second, "after": the last patient that was queued}
EVERYBODY = 10**12
DOT = "\uff0e"  # stands for a dot, which the name of a field should not have

log = logging.getLogger(__name__)


class Backfills:
    """`tell` hears of the events that were queued."""

    def __init__(self, server: Server, outbox: Outbox, tell: Any) -> None:
        self._server, self._outbox, self._tell = server, outbox, tell
        self._running: dict[str, asyncio.Task[None]] = {}

    async def resume(self) -> None:
        """Goes on with what an earlier process did not finish."""
        for url, state in ((await self._server.store.setting(SETTING)) or {}).items():
            if isinstance(state, dict):
                self._start(url.replace(DOT, "."), float(state["rate"]), str(state["after"]))

    async def begin(self, url: str, rate: float) -> None:
        """Starts, or starts again from the first patient."""
        await self._note(url, {"rate": rate, "after": ""})
        self._start(url, rate, "")

    async def close(self) -> None:
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        self._running.clear()

    async def finished(self) -> None:
        """Returns when everything that was begun here has been queued."""
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _start(self, url: str, rate: float, after: str) -> None:
        known = self._running.pop(url, None)
        if known is not None:
            known.cancel()
        self._running[url] = asyncio.create_task(self._run(url, rate, after))

    async def _run(self, url: str, rate: float, after: str) -> None:
        try:
            async for patients in chunks(self._server, EVERYBODY, after):
                events = [self._outbox.event(RULE_EVENT, url, (patient,)) for patient in patients]
                await self._outbox.add(events)
                self._tell(events)
                await self._note(url, {"rate": rate, "after": patients[-1]})
                if len(patients) == CHUNK:
                    await asyncio.sleep(len(patients) / rate)
            await self._note(url, None)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("the backfill of %s stopped; it goes on at the next start", url)

    async def _note(self, url: str, state: dict[str, Any] | None) -> None:
        setting = {k: v for k, v in ((await self._server.store.setting(SETTING)) or {}).items() if k != "_id"}
        key = url.replace(".", DOT)
        if state is None:
            setting.pop(key, None)
        else:
            setting[key] = state
        await self._server.store.set_setting(SETTING, setting)

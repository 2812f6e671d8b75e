"""SearchParameter/$reindex: indexes what is stored for parameters that wait, in the background. docs/cli.md (reindex)

`all=true` makes the entries of every resource anew; `start=false` only asks. Answers at once, with how far it is; the run goes
on without the client. One runs at a time, whichever process it runs in.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fhir_server.errors import BadRequest
from fhir_server.interactions.call import Answer, Call, parameters
from fhir_server.interactions.context import Context, Server
from fhir_server.model.resource import dump
from fhir_server.operations.given import pairs_of
from fhir_server.search import custom
from fhir_server.search import reindex as search_reindex

ROOM = "reindex"

log = logging.getLogger(__name__)


async def reindex(server: Server, context: Context, call: Call) -> Answer:
    given = dict(pairs_of(call))
    for name, value in given.items():
        if name not in ("all", "start") or value not in ("true", "false"):
            raise BadRequest(f"Parameter {name!r}: {value!r}; $reindex has all and start, each true or false")
    await server.rooms["search-parameters"].refresh()
    task: asyncio.Task[None] | None = server.rooms.get(ROOM)
    under_way = task is not None and not task.done()
    progress = await search_reindex.running(server.store)
    everything = given.get("all") == "true"
    waiting = sorted({url for urls in server.registry.unindexed().values() for url in urls})
    wanted = given.get("start") != "false" and (everything or waiting)
    if wanted and not under_way and progress is None:
        await search_reindex.announce(server.store)
        server.rooms[ROOM] = asyncio.create_task(_run(server, context.base, everything))
        server.closing.append(lambda: _stop(server))
        under_way = True
    return Answer(202 if under_way or progress else 200, body=_told(under_way, progress, waiting))


def _told(under_way: bool, progress: search_reindex.Progress | None, waiting: list[str]) -> bytes:
    parts: list[dict[str, Any]] = [
        {"name": "status", "valueCode": "running" if under_way or progress is not None else "idle"}
    ]
    if progress is not None:
        parts += [
            {"name": "type", "valueCode": progress.resource_type},
            {"name": "done", "valueInteger": progress.done},
            {"name": "total", "valueInteger": progress.total},
            {"name": "percent", "valueDecimal": round(progress.percent, 1)},
            {"name": "rate", "valueDecimal": round(progress.rate, 1)},
        ]
    parts += [{"name": "waiting", "valueUri": url} for url in waiting]
    return dump(parameters(*parts))


async def _run(server: Server, base: str, everything: bool) -> None:
    settle = custom.INTERVAL + 1 if server.settings.workers > 1 else 0.0
    types = ("*",) if everything else ()
    try:
        async for step in search_reindex.reindex(server.store, server.registry, types, base=base, settle=settle):
            log.info("reindex: %.1f %% (%s), %.0f/s", step.percent, step.resource_type or "done", step.rate)
    except Exception:
        log.exception("the reindex stopped; SearchParameter/$reindex goes on from where it got to")
        await search_reindex.announce(server.store, ended=True)


async def _stop(server: Server) -> None:
    task: asyncio.Task[None] = server.rooms[ROOM]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

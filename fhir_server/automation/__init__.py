"""What happens after a commit. Rules are pure; only worker.py acts. docs/hooks.md is the vocabulary of those who write them."""

from __future__ import annotations

from fhir_server.automation.content import store
from fhir_server.automation.hooks import installed
from fhir_server.automation.subscriptions import TYPE, Subscribed
from fhir_server.automation.worker import Worker
from fhir_server.interactions.context import Server

ROOM = "automation"  # where a Server keeps its Worker
SUBSCRIBED = "subscribed"  # and who wants to hear of what


async def engage(server: Server, *, act: bool = True, listen: bool = False) -> Worker:
    """Gives the server its rules: stored at the first start, checked on every write, and run, if `act`, until it closes.

    `listen`: see Worker.start.
    """
    worker = Worker(server, rules=installed(), shared=listen or server.settings.workers > 1)
    server.rooms[ROOM] = worker
    if act:
        await store(server)
    await worker.open()
    checks = server.validator.checks
    server.validator.checks = (*checks, ("rules", worker.check))
    subscribed = server.rooms[SUBSCRIBED] = Subscribed(server)
    await subscribed.open()
    server.validator.checks = (*server.validator.checks, ("subscriptions", subscribed.check))
    server.guards[TYPE] = subscribed.guard
    server.notices.append(subscribed.notice)
    worker.start(act=act, listen=listen)

    async def close() -> None:
        server.validator.checks = checks
        server.guards.pop(TYPE, None)
        server.notices.remove(subscribed.notice)
        server.closing.remove(close)
        await worker.stop()

    server.closing.append(close)
    return worker


def worker_of(server: Server) -> Worker:
    """The worker that `engage` made."""
    worker: Worker = server.rooms[ROOM]
    return worker

"""What surrounds every request: an id, a line in the log, the figures, bounds. One ordered list of ASGI callables.

A log line has the route's shape, never the URL itself: ids and search values are patient content.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("fhir_server.access")

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Figures:
    """Prometheus metrics of the wire; children are kept, because finding one costs more than counting."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._count = Counter("fhir_requests", "Requests answered", ["method", "route", "status"], registry=registry)
        self._time = Histogram(
            "fhir_request_seconds", "Time to answer", ["method", "route"], buckets=BUCKETS, registry=registry
        )
        self._children: dict[tuple[str, str, int], tuple[Any, Any]] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        child = self._children.get((method, route, status))
        if child is None:
            child = self._count.labels(method, route, str(status)), self._time.labels(method, route)
            self._children[method, route, status] = child
        child[0].inc()
        child[1].observe(seconds)


class Observed:
    """Gives each request an id (the client's own X-Request-Id if it is harmless), and tells log and figures how it went."""

    def __init__(self, app: Application, figures: Figures) -> None:
        self._app = app
        self._figures = figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _request_id(scope["headers"])
        scope["request_id"] = request_id
        status = 500
        header = (b"x-request-id", request_id.encode())

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            seconds = time.perf_counter() - started
            route = scope.get("route_shape", "other")
            self._figures.observe(scope["method"], route, status, seconds)
            if log.isEnabledFor(logging.INFO):
                log.info("%s %s %d %.1fms %s", scope["method"], route, status, seconds * 1000, request_id)


def _request_id(headers: list[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"x-request-id" and len(value) <= 64:
            text = value.decode("latin-1")
            if text.replace("-", "").isalnum() and text.isascii():
                return text
    return secrets.token_hex(8)

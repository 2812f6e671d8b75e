"""What surrounds every request: an id, a line in the log, the figures, bounds. One ordered list of ASGI callables.

A log line has the route's shape, never the URL itself: ids and search values are patient content.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from itertools import accumulate
from typing import Any

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("fhir_server.access")

_PROCESS = secrets.token_hex(5)
_numbers = itertools.count(1)

HUNG_UP = 499  # for log and figures: the client did not wait for an answer

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Figures(Collector):
    """Counts and times of the wire, for Prometheus. Plain integers in one dictionary: a request pays half a microsecond."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, int], list[float]] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        row = self._rows.get((method, route, status))
        if row is None:
            row = self._rows[method, route, status] = [0.0] * (len(BUCKETS) + 2)
        row[bisect_left(BUCKETS, seconds)] += 1
        row[-1] += seconds

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(
            "fhir_request_seconds", "Time to answer a request", labels=["method", "route", "status"]
        )
        for (method, route, status), row in list(self._rows.items()):
            sums = list(accumulate(row[:-1]))
            bounds = [*(str(bound) for bound in BUCKETS), "+Inf"]
            family.add_metric([method, route, str(status)], list(zip(bounds, sums, strict=True)), row[-1])
        yield family


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
        status = HUNG_UP
        header = (b"x-request-id", request_id.encode())

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        try:
            await self._app(scope, receive, observed)
        except BaseException:
            status = 500
            raise
        finally:
            seconds = time.perf_counter() - started
            route = scope.get("route_shape", "other")
            self._figures.observe(scope["method"], route, status, seconds)
            if log.isEnabledFor(logging.INFO):
                fields = {
                    "request": request_id,
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    "ms": round(seconds * 1000, 1),
                }
                log.info("%s %s %d", scope["method"], route, status, extra={"fields": fields})


def _request_id(headers: list[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"x-request-id" and len(value) <= 64:
            text = value.decode("latin-1")
            if text.replace("-", "").isalnum() and text.isascii():
                return text
    return f"{_PROCESS}-{next(_numbers):x}"

"""Jobs, one after the other in each process that serves: claimed under a lease, gone on with by anybody.

A process that ends (kill -9) leaves its lease to run out; whoever claims the job next goes on after the last file that was
written down, or begins the type anew where that cannot be. A job that fails again and again without getting anywhere is
given up, so that what ends a process cannot end all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable

from fhir_server.errors import FhirError, Unauthorized, Unavailable
from fhir_server.interactions.context import Server
from fhir_server.operations.bulk.job import Doing, Lost
from fhir_server.store.exports import Exports, Job
from fhir_server.store.protocol import SnapshotGone

ROOM = "exports"
LEASE = 5.0  # seconds; renewed after a third of it
LOOK = 1.0  # seconds between looks for a job that another process was asked for
SWEEP = 60.0
AGAIN = 2.0  # seconds until a job that could not go on is tried again
MOST_ATTEMPTS = 6  # without a file written down in between

log = logging.getLogger(__name__)


async def engage_exports(server: Server) -> None:
    """For every process that serves: answers for exports, and does them."""
    database = getattr(server.store, "database", None)
    if database is None:
        raise FhirError("Exports need the MongoDB store")
    exporter = Exporter(server, Exports(database))
    await exporter.open()
    server.rooms[ROOM] = exporter

    async def close() -> None:
        server.closing.remove(close)
        await exporter.close()

    server.closing.append(close)


def exporter_of(server: Server) -> Exporter:
    """What `engage_exports` made."""
    exporter: Exporter = server.rooms[ROOM]
    return exporter


class Exporter:
    def __init__(self, server: Server, exports: Exports, *, now: Callable[[], float] = time.time) -> None:
        self._server = server
        self.exports = exports
        self._now = now
        self._holder = secrets.token_hex(8)
        self._wanted = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._closing = False
        await self.exports.open()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        self._closing = True  # `wait_for` may swallow a cancellation (before Python 3.12)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def wake(self) -> None:
        """There is a job."""
        self._wanted.set()

    def now(self) -> int:
        """Milliseconds since 1970."""
        return int(self._now() * 1000)

    async def _run(self) -> None:
        swept = 0.0
        while not self._closing:
            self._wanted.clear()
            try:
                job = await self.exports.claim(self._holder, self.now(), self._until(LEASE))
                if job is not None:
                    await self._work(job)
                    continue
                if time.monotonic() - swept > SWEEP:
                    await self.exports.sweep(self.now())
                    swept = time.monotonic()
            except Unavailable:
                pass
            except Exception:
                log.exception("exports: looking for work failed")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), LOOK)

    def _until(self, seconds: float) -> int:
        return self.now() + int(seconds * 1000)

    async def _work(self, job: Job) -> None:
        """Does the job while the lease holds; lets go of it however this ends."""
        if job.attempts > MOST_ATTEMPTS:
            await self._finish(job, error="The export failed repeatedly; the server's log says why")
            return
        doing = asyncio.create_task(Doing(self._server, self.exports, job, self._holder, self._now).run())
        try:
            while not (await asyncio.wait({doing}, timeout=LEASE / 3))[0]:
                if not await self.exports.renew(job.id, self._holder, self._until(LEASE)):
                    raise Lost
            await doing
            await self._finish(job)
        except Lost:
            log.info("export %s was cancelled or taken over", job.id[:8])
        except Unauthorized as error:
            await self._finish(job, error=f"Who asked for the export may not have it any more: {error.diagnostics}")
        except (Unavailable, SnapshotGone) as error:
            log.warning("export %s is interrupted and will be tried again: %s", job.id[:8], error)
            await self.exports.release(job.id, self._holder, self._until(AGAIN))
        except asyncio.CancelledError:
            await _ended(doing)
            with contextlib.suppress(FhirError):
                await self.exports.release(job.id, self._holder, 0)
            raise
        except Exception:
            log.exception("export %s failed, attempt %d", job.id[:8], job.attempts)
            await self.exports.release(job.id, self._holder, self._until(AGAIN))
        finally:
            await _ended(doing)

    async def _finish(self, job: Job, *, error: str = "") -> None:
        expires = self._until(self._server.settings.export_hours * 3600)
        if error:
            await self.exports.keep_only(job.id, [])
        await self.exports.finish(job.id, self._holder, expires, error=error)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

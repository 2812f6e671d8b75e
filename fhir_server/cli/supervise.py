"""The parent of several workers: owns the embedded mongod, starts workers, starts again what died, stops all in order.

Workers share the port (SO_REUSEPORT) and learn their settings over a channel that also ties their life to ours: when
it closes, for whatever reason, they finish their requests and end.
"""

from __future__ import annotations

import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from fhir_server.cli.answering import GRACE_SECONDS, listen, pack
from fhir_server.errors import FhirError, Unavailable
from fhir_server.settings import Settings
from fhir_server.store.embedded import EmbeddedMongo

RESTART_SECONDS = 0.5  # between the death of a worker and the next try, times the deaths in a row


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    channel: socket.socket
    ready: bool = False


class Supervisor:
    """`run()` blocks until a signal. `on_ready(port)` is called once, when all workers take requests."""

    def __init__(self, settings: Settings, on_ready: Callable[[int], None]) -> None:
        self.settings = settings
        self.on_ready = on_ready
        self.count = max(1, settings.workers)
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._announced = False
        self._deaths = 0  # in a row, without a worker having become ready in between
        self._due: list[float] = []  # when the missing workers are to be started

    def run(self) -> int:
        listen(self.settings.host, self.settings.port).close()  # refused here if somebody else listens
        reserved = listen(self.settings.host, self.settings.port, shared=True, bound_only=True)
        port = int(reserved.getsockname()[1])
        self.settings = replace(self.settings, port=port)
        mongo: EmbeddedMongo | None = None
        waker, wakes = socket.socketpair()
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno())
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        self._selector.register(wakes, selectors.EVENT_READ)
        try:
            for _ in range(self.count):
                self._spawn()  # they import while mongod starts
            if not self.settings.mongo_url:
                mongo = EmbeddedMongo(self.settings.data_dir, cache_mb=self.settings.mongo_cache_mb)
                self.settings = replace(self.settings, mongo_url=mongo.start())
            for worker in self._workers:
                self._instruct(worker)
            while not self._stopping:
                self._turn(wakes, port)
        finally:
            self._end_workers()
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            for end in (waker, wakes, reserved):
                end.close()
            if mongo is not None:
                mongo.stop()
        return 0

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopping = True

    def _turn(self, wakes: socket.socket, port: int) -> None:
        patience = max(0.0, min(self._due) - time.monotonic()) if self._due else None
        for key, _ in self._selector.select(patience):
            if key.fileobj is wakes:
                wakes.recv(4096)
            else:
                self._hear(key.data)
        now = time.monotonic()
        for _ in [moment for moment in self._due if moment <= now]:
            self._instruct(self._spawn())
        self._due = [moment for moment in self._due if moment > now]
        if not self._announced and len(self._workers) == self.count and all(worker.ready for worker in self._workers):
            self._announced = True
            self.on_ready(port)

    def _hear(self, worker: _Worker) -> None:
        try:
            said = worker.channel.recv(64)
        except ConnectionError:
            said = b""
        if said:
            worker.ready = True
            self._deaths = 0
            return
        code = self._forget(worker)
        if self._stopping:
            return
        self._deaths += 1
        if not self._announced or self._deaths > 5 * self.count:
            raise Unavailable(f"A worker ended with code {code} before it could take requests; its messages are above")
        print(f"fhir-server: worker {worker.process.pid} ended with code {code}; starting another", file=sys.stderr)
        self._due.append(time.monotonic() + RESTART_SECONDS * (self._deaths - 1))

    def _forget(self, worker: _Worker) -> int:
        self._selector.unregister(worker.channel)
        worker.channel.close()
        self._workers.remove(worker)
        try:
            return worker.process.wait(GRACE_SECONDS + 5)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            return worker.process.wait()

    def _spawn(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            # A session of its own: Ctrl-C reaches the parent alone, which then stops everything in order.
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "fhir_server.cli.answering", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        worker = _Worker(process, ours)
        self._workers.append(worker)
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return worker

    def _instruct(self, worker: _Worker) -> None:
        try:
            worker.channel.sendall(pack(self.settings) + b"\n")
        except OSError as error:
            raise FhirError(f"A worker did not take its settings: {error}") from None

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.channel.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + GRACE_SECONDS + 5
        for worker in list(self._workers):
            try:
                worker.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
            self._forget(worker)

"""One process that answers requests: uvicorn around the application. Also the program of a worker (`python -m`)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import ipaddress
import json
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvicorn

from fhir_server.cli import logs
from fhir_server.errors import FhirError
from fhir_server.settings import Settings

BACKLOG = 2048
GRACE_SECONDS = 10  # what requests get to finish when we are told to stop


def answer(
    settings: Settings, listening: socket.socket, ready: Callable[[], None], parent: socket.socket | None = None
) -> int:
    """Serve until a signal, or until `parent` (a worker's channel) closes. `ready` is called when requests are taken."""
    from fhir_server import app

    logs.configure(settings.log_level)
    config = uvicorn.Config(
        app.create(settings),
        loop="uvloop" if _has("uvloop") else "asyncio",
        http=_protocol(),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        backlog=BACKLOG,
        ssl_certfile=settings.tls_cert or None,
        ssl_keyfile=settings.tls_key or None,
    )
    _Answering(config, ready, parent).run(sockets=[listening])
    return 0


class _Answering(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], parent: socket.socket | None) -> None:
        super().__init__(config)
        self._ready = ready
        self._parent = parent

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._parent is not None:
            asyncio.get_running_loop().add_reader(self._parent, self._parent_spoke, self._parent)
        await super().startup(sockets)
        # What is loaded now lives as long as the process: the collector need not walk it again and again.
        gc.collect()
        gc.freeze()
        # What is made for a request is gone after it without the collector's help; looking less often shortens the longest waits.
        gc.set_threshold(20_000, 10, 20)
        if not self.should_exit:
            self._ready()

    def _parent_spoke(self, parent: socket.socket) -> None:
        if not parent.recv(64):  # closed: the parent stops, or has died
            asyncio.get_running_loop().remove_reader(parent)
            self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does it, but without raising the signal again: mongod is still to be stopped, in order."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(host: str, port: int, *, shared: bool = False, bound_only: bool = False) -> socket.socket:
    """A listening socket; `shared`: several processes may listen on the port, and the kernel spreads connections."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise FhirError(f"--host {host}: no address of this machine has that name ({error.strerror})") from None
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(address)
        if not bound_only:
            listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        other = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
        raise FhirError(f"Cannot listen on {host}:{port}: {error.strerror}; choose another {other}") from None
    listening.setblocking(False)
    return listening


def is_loopback(host: str) -> bool:
    """Every address the name stands for is on this machine alone."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(item[4][0]).partition("%")[0]).is_loopback for item in found)


def _protocol() -> Any:
    if not _has("httptools"):
        return "auto"
    from fhir_server.cli.connection import Bounded

    return Bounded


def _has(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def pack(settings: Settings) -> bytes:
    """Settings for another process, in one line."""
    return json.dumps({name: str(v) if isinstance(v, Path) else v for name, v in asdict(settings).items()}).encode()


def unpack(line: bytes) -> Settings:
    values = json.loads(line)
    return Settings(**{**values, "data_dir": Path(values["data_dir"])})


def work(descriptor: int) -> int:
    """A worker: loads the application while the database starts, learns the settings from its parent, then answers."""
    from fhir_server import app

    assert app  # the import is the point: it takes as long as mongod's start
    parent = socket.socket(fileno=descriptor)
    line = b""
    while not line.endswith(b"\n"):
        part = parent.recv(65536)
        if not part:
            return 0
        line += part
    settings = unpack(line)
    parent.setblocking(False)
    listening = listen(settings.host, settings.port, shared=True)
    return answer(settings, listening, lambda: parent.sendall(b"ready\n"), parent)


if __name__ == "__main__":
    raise SystemExit(work(int(sys.argv[1])))

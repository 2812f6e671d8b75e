"""Real servers in real processes, to be killed."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.environment import environment


class Serving:
    """`fhir-server serve --open` on a data directory, by these settings alone; `base` is where it answers."""

    def __init__(self, data_dir: Path, *arguments: str, **settings: str) -> None:
        self.data_dir = data_dir
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("fhir-server")), "serve", "--open", "--port", "0"),
                *("--data-dir", str(data_dir), *arguments),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Nobody reads stderr while it runs: a line for each request would fill the pipe.
            env=environment(**{"FHIR_AUTOMATION": "false", "FHIR_LOG_LEVEL": "warning", **settings}),
        )
        self.base = self._ready()
        self.ready_after = time.monotonic() - self.started

    def _ready(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("ready on "):
            _, errors = self.process.communicate(timeout=30)
            raise AssertionError(f"not ready: {line!r} {errors[-2000:]}")
        return line.removeprefix("ready on ").strip()

    def mongod(self) -> int:
        return int((self.data_dir / "mongo" / "mongod.lock").read_text())

    def workers(self) -> list[int]:
        """Of a server with --workers; not the mongod beside them."""
        pid = self.process.pid
        found = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [one for one in found if b"fhir_server" in Path(f"/proc/{one}/cmdline").read_bytes()]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=30)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(ValueError):
            self.process.communicate(timeout=40)
        return self.process.returncode


@contextlib.contextmanager
def serving(data_dir: Path, *arguments: str) -> Iterator[Serving]:
    server = Serving(data_dir, *arguments)
    try:
        yield server
    finally:
        server.stop()


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until_gone(pid: int, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)

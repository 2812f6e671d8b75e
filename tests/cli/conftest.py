"""Real processes: the command line as its users call it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.environment import environment

COMMAND = [sys.executable, "-m", "fhir_server"]
PATIENCE_SECONDS = 60


def call(*words: object, **settings: str) -> subprocess.CompletedProcess[str]:
    """`fhir-server words…`, finished."""
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS * 2,
        env=environment(**settings),
        check=False,
    )


class Process:
    """A command that keeps running; what it prints is kept."""

    def __init__(self, *words: object, module: str = "fhir_server", **settings: str) -> None:
        self.lines: list[str] = []
        self._seen = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(**settings),
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            with self._seen:
                self.lines.append(line.rstrip("\n"))
                self._seen.notify_all()
        self.process.stdout.close()
        with self._seen:
            self._seen.notify_all()

    def line(self, start: str, since: int = 0) -> str:
        """The first line that begins so; fails if the process ends without it."""

        def found() -> str | None:
            return next((line for line in self.lines[since:] if line.startswith(start)), None)

        with self._seen:
            self._seen.wait_for(lambda: found() is not None or not self._reader.is_alive(), PATIENCE_SECONDS)
            line = found()
        assert line is not None, "\n".join(["no line begins with " + repr(start), *self.lines])
        return line

    @property
    def base(self) -> str:
        return self.line("ready on ").removeprefix("ready on ")

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        return code


Start = Callable[..., Process]
RUNNING: list[Process] = []


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Starts commands; those that still run at the end of the module are stopped."""

    def begin(*words: object, **settings: str) -> Process:
        process = Process(*words, **settings)
        RUNNING.append(process)
        return process

    yield begin
    while RUNNING:
        RUNNING.pop().stop()


_databases = itertools.count()


@pytest.fixture(scope="module")
def base(start: Start, mongo_url: str) -> str:
    """The base URL of a server with two workers and a database of this module's own."""
    database = f"cli{os.getpid()}x{next(_databases)}"
    words = ["serve", "--port", 0, "--open", "--workers", 2, "--no-automation", "--database", database]
    return start(*words, FHIR_MONGO_URL=mongo_url).base

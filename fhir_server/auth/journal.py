"""The audit's write-ahead file: an access is in it before its answer is sent, and leaves it when MongoDB has it.

One file a process, appended by one `write` each: what was written survives the end of the process, however it ends. `sync`
brings it to the disk several times a second, which bounds what a loss of power can take. A dead process's file is
adopted by the next one that starts (the kernel releases its lock).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from fhir_server.auth.audit_event import Access
from fhir_server.auth.oauth import new_secret
from fhir_server.errors import Unavailable

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Access).decode


class Journal:
    """`read` gives what is in it from a byte on; `end` is its length."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self.end = os.fstat(descriptor).st_size
        self._synced = self.end

    @property
    def name(self) -> str:
        return self.path.name

    @classmethod
    def create(cls, folder: Path) -> Journal:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"{new_secret(12)}.journal"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return cls(path, descriptor)

    @classmethod
    def orphans(cls, folder: Path) -> Iterator[Journal]:
        """Journals whose process has ended; ours from now on."""
        for path in sorted(folder.glob("*.journal")):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                continue
            if path.exists():
                yield cls(path, descriptor)
            else:
                os.close(descriptor)

    def append(self, *accesses: Access) -> None:
        """Returns when the operating system has them. Raises Unavailable: no audit, no answer."""
        line = b"".join([_encode(access) + b"\n" for access in accesses])
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise Unavailable(f"The audit journal cannot be written ({error.strerror})", retry_after=30) from None
        self.end += written
        if written != len(line):
            os.write(self._descriptor, b"\n")  # a torn line is skipped by its reader
            self.end += 1
            raise Unavailable("The audit journal cannot be written (no space left)", retry_after=30)

    def sync(self) -> None:
        """Blocking."""
        if self._synced != self.end:
            end = self.end
            os.fdatasync(self._descriptor)
            self._synced = end

    def read(self, position: int, most: int) -> tuple[list[Access], int]:
        """Up to so many accesses from a byte on, and the byte after them. A line that was torn by a crash is skipped."""
        found: list[Access] = []
        block = os.pread(self._descriptor, most * 600, position)
        if b"\n" not in block:
            block = os.pread(self._descriptor, max(0, self.end - position), position)
        start = 0
        while len(found) < most:
            stop = block.find(b"\n", start)
            if stop < 0:
                break
            with suppress(msgspec.DecodeError):
                found.append(_decode(block[start:stop]))
            start = stop + 1
        return found, position + start

    def close(self) -> None:
        os.close(self._descriptor)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.close()

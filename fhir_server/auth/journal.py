"""The audit's write-ahead file: an access is in it before its answer is sent, and leaves it when MongoDB has it.

One file a process, mapped into memory: what was copied there is the operating system's, and survives the end of the
process, however it ends, without a system call for each access. `sync` brings it to the disk several times a second, which
bounds what a loss of power can take. A dead process's file is adopted by the next one that starts (the kernel releases
its lock).

Room is made ahead, by writing zeros: a disk that is full refuses that (Unavailable), and not the copying, which would
end the process. A line is JSON and holds no zero, so what was not written to its end is told from what was.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from fhir_server.auth.audit_event import Access, line
from fhir_server.auth.oauth import new_secret
from fhir_server.errors import Unavailable

SEGMENT = 1 << 20  # bytes of room that are made at a time: some 5,000 accesses
_decode = msgspec.json.Decoder(Access).decode


class Journal:
    """`read` gives what is in it from a byte on; `end` is where the next access goes."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self.end = _written(descriptor)
        self._synced = self.end
        self._room = os.fstat(descriptor).st_size
        self._map: mmap.mmap | None = None
        self._from = self._to = self.end  # what part of the file the map is

    @property
    def name(self) -> str:
        return self.path.name

    @classmethod
    def create(cls, folder: Path) -> Journal:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"{new_secret(12)}.journal"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return cls(path, descriptor)

    @classmethod
    def orphans(cls, folder: Path) -> Iterator[Journal]:
        """Journals whose process has ended; ours from now on."""
        for path in sorted(folder.glob("*.journal")):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
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
        """As `write`."""
        self.write(b"".join(map(line, accesses)))

    def write(self, lines: bytes) -> None:
        """Returns when the operating system has them. Raises Unavailable: no audit, no answer."""
        end = self.end + len(lines)
        if end > self._to or self._map is None:
            self._make_room(len(lines))
        assert self._map is not None
        self._map[self.end - self._from : end - self._from] = lines
        self.end = end

    def _make_room(self, length: int) -> None:
        """Maps the file from about `end` on, for so many bytes at least."""
        start = self.end - self.end % mmap.ALLOCATIONGRANULARITY
        stop = start + max(SEGMENT, -(-(self.end - start + length) // SEGMENT) * SEGMENT)
        try:
            while self._room < stop:
                zeros = bytes(min(SEGMENT, stop - self._room))
                self._room += os.pwrite(self._descriptor, zeros, self._room)
            self._map = mmap.mmap(self._descriptor, stop - start, offset=start)
        except OSError as error:
            raise Unavailable(f"The audit journal cannot be written ({error.strerror})", retry_after=30) from None
        self._from, self._to = start, stop

    def sync(self) -> None:
        """Blocking."""
        if self._synced != self.end:
            end = self.end
            os.fdatasync(self._descriptor)  # what was changed in a map, too
            self._synced = end

    def read(self, position: int, most: int) -> tuple[list[Access], int]:
        """Up to so many accesses from a byte on, and the byte after them. A line that was torn by a crash is skipped."""
        found: list[Access] = []
        block = os.pread(self._descriptor, min(most * 600, self.end - position), position)
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
        if self._map is not None:
            self._map.close()
            self._map = None
        os.close(self._descriptor)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.close()


def _written(descriptor: int) -> int:
    """Where the zeros at the end of the file begin."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - SEGMENT)
        part = os.pread(descriptor, end - start, start).rstrip(b"\0")
        if part:
            return start + len(part)
        end = start
    return 0

"""NDJSON into the store: lines are gathered to a bounded number of bytes, packed on another thread, and written in pieces.

What counts is bytes, never resources: a hundred large documents weigh more than ten thousand small ones. At most two pieces
are in memory for a job, and none of a file that is being downloaded but the one that is sent.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import Literal

import msgspec

from fhir_server.errors import NotFound
from fhir_server.store.exports import Exports, File

PIECE = 2 * 1024 * 1024  # bytes of NDJSON in a piece; one more line may be as large as a resource
LARGEST_PIECE = 8 * 1024 * 1024  # bytes of a document's gzip, which MongoDB bounds at 16 MB
MOST_LINES, MOST_BYTES = 100_000, 128 * 1024 * 1024  # of a file
LEVEL = 1  # of zlib: FHIR shrinks to an eighth at once, and little more for ten times the work
GZIP = 31  # zlib's window bits that mean a gzip stream


class Writer:
    """One file. `add` lines, then `close`."""

    def __init__(
        self, exports: Exports, job: str, name: str, resource_type: str, kind: Literal["output", "deleted", "error"]
    ) -> None:
        self._exports = exports
        self._job = job
        self._pack = zlib.compressobj(LEVEL, wbits=GZIP)
        self._lines: list[bytes] = []
        self._gathered = 0
        self._writing: asyncio.Task[None] | None = None
        self.name = name
        self._resource_type = resource_type
        self._kind = kind
        self.count = self._size = self._packed = self._pieces = 0

    @property
    def full(self) -> bool:
        return self.count >= MOST_LINES or self._size >= MOST_BYTES

    async def add(self, raw: bytes) -> None:
        """One resource as one line: JSON strings hold no line breaks, so only layout can."""
        line = raw if b"\n" not in raw else msgspec.json.format(raw, indent=-1)
        self._lines += (line, b"\n")
        self._gathered += len(line) + 1
        self._size += len(line) + 1
        self.count += 1
        if self._gathered >= PIECE:
            await self._written()
            self._writing = asyncio.create_task(self._write(self._taken(), last=False))

    async def close(self) -> File:
        await self._written()
        await self._write(self._taken(), last=True)
        return File(self.name, self._resource_type, self._kind, self.count, self._size, self._packed, self._pieces)

    async def abandon(self) -> None:
        """No more of it is written; what was is the owner's to discard."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)

    def _taken(self) -> list[bytes]:
        lines, self._lines, self._gathered = self._lines, [], 0
        return lines

    async def _written(self) -> None:
        if self._writing is not None:
            await self._writing
            self._writing = None

    async def _write(self, lines: list[bytes], *, last: bool) -> None:
        packed = await asyncio.to_thread(self._packing, lines, last)
        for start in range(0, len(packed), LARGEST_PIECE):
            piece = packed[start : start + LARGEST_PIECE]
            await self._exports.put_piece(self._job, self.name, self._pieces, piece)
            self._pieces += 1
            self._packed += len(piece)

    def _packing(self, lines: list[bytes], last: bool) -> bytes:
        packed = self._pack.compress(b"".join(lines))
        return packed + self._pack.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)


async def packed(exports: Exports, job: str, file: File) -> AsyncIterator[bytes]:
    """The file as it is kept: one gzip stream. A piece is asked for when the one before has been sent."""
    for number in range(file.pieces):
        piece = await exports.piece(job, file.name, number)
        if piece is None:
            raise NotFound("The file was removed while it was read")
        yield piece

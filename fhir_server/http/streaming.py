"""Bodies that are too large for memory: a packed one goes to the client piece by piece, as it is or unpacked."""

from __future__ import annotations

import asyncio
import zlib

from fhir_server.http.middleware import Send
from fhir_server.http.wire import takes_gzip
from fhir_server.interactions.call import Call, Packed

GZIP = 31  # zlib's window bits that mean a gzip stream


def is_file(call: Call) -> bool:
    """A file of an export: its media type is its own, whatever FHIR formats are accepted."""
    return len(call.path) == 3 and call.path[0] == "$export"


async def send_packed(
    packed: Packed, fields: list[tuple[bytes, bytes]], accept_encoding: str, method: str, send: Send
) -> None:
    """A failure on the way breaks the connection off before Content-Length is reached, which the client notices."""
    as_it_is = takes_gzip(accept_encoding)
    if as_it_is:
        fields.append((b"content-encoding", b"gzip"))
    size = packed.packed_size if as_it_is else packed.size
    fields += [(b"vary", b"accept-encoding"), (b"content-length", str(size).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    if method != "HEAD":
        unpacker = zlib.decompressobj(wbits=GZIP)
        async for part in packed.parts:
            body = part if as_it_is else await asyncio.to_thread(unpacker.decompress, part)
            await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b""})

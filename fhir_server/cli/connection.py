"""A connection whose request heads are bounded in size and time: uvicorn's own takes any number of bytes, for ever.

https://www.rfc-editor.org/rfc/rfc9112#name-message-parsing
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 65_536  # request line and headers; what comes in one piece with the rest of a head is not cut
HEAD_SECONDS = 30.0  # from the first byte (for a new connection: from its start) to the end of the head


class Bounded(HttpToolsProtocol):
    """400 and the end for a head that is too large, the end for one that does not come."""

    _head = 0
    _in_head = False
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._head, self._in_head = 0, True
        if self._deadline is None:
            self._watch()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unwatch()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head += len(data)
            if self._head > HEAD_BYTES:
                self.send_400_response(f"The request line and headers are larger than {HEAD_BYTES} bytes")

    def _watch(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

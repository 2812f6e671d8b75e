"""The `next` link's token: where the page ended, sealed so that it can be neither forged nor bent to another search.

JSON, then 16 bytes of HMAC-SHA256 over it and the search it belongs to, in base64url.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import msgspec

from fhir_server.errors import BadRequest

_SEAL = 16


@dataclass(frozen=True, slots=True)
class Cursor:
    """`source`: name of the plan's source that the last match came from; `position`: its place in the order.

    `moment`: what the first page saw, for orders that writes can change. Later pages see it, too, while the store keeps it.
    """

    source: str
    position: tuple[Any, ...]
    moment: str = ""

    def seal(self, key: bytes, search: str) -> str:
        body = msgspec.json.encode([self.source, list(self.position), self.moment])
        return urlsafe_b64encode(_seal(key, body, search) + body).decode().rstrip("=")

    @classmethod
    def open(cls, text: str, key: bytes, search: str) -> Cursor:
        """Raises BadRequest for anything that `seal` did not make for this very search."""
        try:
            sealed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
            body = sealed[_SEAL:]
            if not hmac.compare_digest(sealed[:_SEAL], _seal(key, body, search)):
                raise ValueError("forged")
            source, position, moment = msgspec.json.decode(body)
        except (ValueError, TypeError):
            raise BadRequest(
                "Parameter '_cursor' is not one that this server gave for this search; start again from the first page"
            ) from None
        return cls(source, tuple(position), moment)


def _seal(key: bytes, body: bytes, search: str) -> bytes:
    return hmac.digest(key, body + b"\x00" + search.encode(), sha256)[:_SEAL]

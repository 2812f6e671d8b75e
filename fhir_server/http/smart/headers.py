"""CORS as SMART asks for it, and the headers that keep a browser from helping an attacker; one ASGI middleware.

Tokens travel in the Authorization header and never in cookies, so the FHIR API and the token endpoint may be called from
any origin the operator allows; the login pages may not. https://hl7.org/fhir/smart-app-launch/STU2.2/conformance.html#cors-support
"""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGES = tuple(f"/auth/{page}" for page in ("authorize", "login", "continue", "patient", "visit", "consent", "logout"))
METHODS = b"GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"
ASK = (
    b"Accept, Authorization, Content-Type, If-Match, If-Modified-Since, If-None-Exist, If-None-Match, Prefer, "
    b"X-Break-Glass, X-Request-Id"
)
TELL = (
    b"Content-Location, ETag, Expires, Last-Modified, Location, Retry-After, WWW-Authenticate, X-Progress, X-Request-Id"
)
ALWAYS: dict[bytes, bytes] = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
    b"cross-origin-opener-policy": b"same-origin",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    # What is a record stays out of shared caches, and private ones have to ask (ETag makes that cheap).
    b"cache-control": b"private, no-cache",
}
HSTS = (b"strict-transport-security", b"max-age=31536000")


class Headers:
    """`origins`: `*`, or origins separated by spaces. What the application already said about itself stays."""

    def __init__(self, app: ASGIApp, *, origins: str = "*", base_path: str = "/fhir") -> None:
        self._app = app
        self._any = "*" in origins.split()
        self._origins = frozenset(origin.encode() for origin in origins.split())
        self._pages = tuple(base_path + page for page in PAGES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = next((value for name, value in scope["headers"] if name == b"origin"), None)
        cors = self._cors(origin) if origin is not None and scope["path"] not in self._pages else []
        if origin is not None and scope["method"] == "OPTIONS" and _preflight(scope):
            allowed = [(b"access-control-allow-methods", METHODS), (b"access-control-allow-headers", ASK)]
            fields = [*cors, *(allowed if cors else []), (b"access-control-max-age", b"600"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 204 if cors else 403, "headers": fields})
            await send({"type": "http.response.body", "body": b""})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                fields: list[Any] = list(message.get("headers", ()))
                said = {name.lower() for name, _ in fields}
                fields += [(name, value) for name, value in ALWAYS.items() if name not in said]
                if scope.get("scheme") == "https":
                    fields.append(HSTS)
                if cors:
                    fields += [*cors, (b"access-control-expose-headers", TELL)]
                message["headers"] = fields
            await send(message)

        await self._app(scope, receive, with_headers)

    def _cors(self, origin: bytes) -> list[tuple[bytes, bytes]]:
        if self._any:
            return [(b"access-control-allow-origin", b"*")]
        if origin in self._origins:
            return [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]
        return []


def _preflight(scope: Scope) -> bool:
    return any(name == b"access-control-request-method" for name, _ in scope["headers"])

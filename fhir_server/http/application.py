"""The FHIR base as one ASGI application: a request is read, understood, dispatched and answered here.

Below Starlette's Request and Response, which would cost more than the interaction itself on the hottest routes.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable

from fhir_server.auth.audit import Audit
from fhir_server.auth.policy import Principal
from fhir_server.errors import BadRequest, FhirError, NotFound, TooLarge, TooSlow, UnsupportedMediaType
from fhir_server.http import failures, streaming, wire
from fhir_server.http.audited import NOT_UNDERSTOOD, lines
from fhir_server.http.middleware import Receive, Scope, Send
from fhir_server.http.routes import dispatch, known_shape
from fhir_server.interactions.call import Call, parse_query, segments
from fhir_server.interactions.context import Context, Server
from fhir_server.interactions.patch_document import JSON_PATCH

Authenticate = Callable[[Scope], Awaitable[Principal]]

BODY_SECONDS = 60.0  # without a byte of a body that is not complete
LONG_SECONDS = 1.0  # that a body took; by then the token may have been revoked
FORM = "application/x-www-form-urlencoded"


_HOST = re.compile(r"(?:[A-Za-z0-9._\-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

# The headers that an interaction or the wire looks at; decoding the others would cost more than routing.
HEARD = {
    name.encode(): name
    for name in (
        *("host", "accept", "accept-encoding", "content-type", "content-length", "content-encoding", "prefer"),
        *("if-match", "if-none-match", "if-none-exist", "if-modified-since", "origin", "x-provenance"),
    )
}


class ClientGone(Exception):
    """The client hung up before its request was complete."""


class FhirApplication:
    """`base_path` is where it is mounted ("/fhir"); `authenticate` says who asks."""

    def __init__(self, server: Server, authenticate: Authenticate) -> None:
        self._server = server
        self._authenticate = authenticate
        self._base_path = server.settings.base_path
        self._mount = segments(self._base_path)
        self._public = server.settings.public_url.rstrip("/")
        self._most = server.settings.max_body_mb * 1024 * 1024
        self._audit: Audit | None = server.rooms.get("audit")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[str, str] = {}
        for raw_name, value in scope["headers"]:
            if (name := HEARD.get(raw_name)) is not None:
                text = value.decode("latin-1")
                # Lines of one name are one list (RFC 9110 5.3); what is no list is then not valid, and refused.
                headers[name] = f"{headers[name]}, {text}" if name in headers else text
        method: str = scope["method"]
        request_id = scope.get("request_id", "")
        base = self._public or self._base(scope, headers)
        wanted = wire.PLAIN
        call = NOT_UNDERSTOOD
        principal = Principal.nobody()
        try:
            try:
                query = parse_query(scope["query_string"].decode("ascii", "strict")) if scope["query_string"] else []
                call = Call(method, self._path(scope), query, headers)
                scope["route_shape"] = known_shape(call.path)
                wanted = wire.wish(headers, query) if not streaming.is_file(call) else wire.PLAIN
            finally:  # what is refused is somebody's request, too
                principal = await self._authenticate(scope)
            if method in ("POST", "PUT", "PATCH"):
                # Who is nobody has no body read or parsed: each can cost a gigabyte and seconds.
                self._server.policy.may(principal, "request")
                began = time.monotonic()
                await self._read_body(call, receive)
                if call.query is not query:
                    wanted = wire.wish(headers, call.query)
                if time.monotonic() - began > LONG_SECONDS:
                    principal = await self._authenticate(scope)
            lenient = "prefer" in headers and wire.preferences(headers["prefer"])[1]
            context = Context(principal, base, request_id, lenient)
            answer = await dispatch(self._server, context, call)
        except ClientGone:
            return
        except UnicodeDecodeError:
            answer = failures.answer(BadRequest("The URL is not percent-encoded UTF-8"), request_id)
        except Exception as error:
            principal = scope.get("principal", principal)
            answer = failures.answer(error, request_id)
        try:
            status, fields, body = wire.render(answer, wanted, base, method)
        except Exception as error:
            answer = failures.answer(error, request_id)
            status, fields, body = wire.render(answer, wire.PLAIN, base, method)
        if self._audit is not None:
            try:
                self._audit.record_lines(lines(scope, call, answer, principal, request_id, base))
            except FhirError as error:
                status, fields, body = wire.render(failures.answer(error, request_id), wire.PLAIN, base, method)
        if answer.packed is not None and status == 200:
            await streaming.send_packed(answer.packed, fields, headers.get("accept-encoding", ""), method, send)
            return
        if status not in (204, 304):
            fields.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": body if method != "HEAD" else b""})

    def _path(self, scope: Scope) -> tuple[str, ...]:
        """The segments below the base; each is decoded for itself, so that `%2F` is no separator."""
        raw: bytes = scope.get("raw_path") or b""
        if b"%" not in raw:
            return tuple(part for part in scope["path"][len(self._base_path) :].split("/") if part)
        path = segments(raw.partition(b"?")[0].decode("ascii", "strict"))
        if path[: len(self._mount)] != self._mount:
            raise NotFound(f"The FHIR base is {self._base_path}")
        return path[len(self._mount) :]

    def _base(self, scope: Scope, headers: dict[str, str]) -> str:
        """As the client addressed us; a Host header that is no host is not repeated in links."""
        host = headers.get("host", "")
        if _HOST.fullmatch(host) is None:
            address = scope.get("server") or ("localhost", 80)
            host = f"{address[0]}:{address[1]}"
        return f"{scope.get('scheme', 'http')}://{host}{self._base_path}"

    async def _read_body(self, call: Call, receive: Receive) -> None:
        length = call.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._most:
            raise TooLarge(f"The body is larger than the {self._most} bytes that this server takes")
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS) as patience:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self._most:
                        raise TooLarge(f"The body is larger than the {self._most} bytes that this server takes")
                    parts.append(part)
                    if not message.get("more_body"):
                        break
                    patience.reschedule(asyncio.get_running_loop().time() + BODY_SECONDS)
        except TimeoutError:
            raise TooSlow(f"Nothing more of the body came for {BODY_SECONDS:g} s") from None
        body = b"".join(parts)
        if not body:
            return
        encoding = call.headers.get("content-encoding", "")
        if encoding:
            body = await asyncio.to_thread(wire.unpack, body, encoding.strip().lower(), self._most)
        content_type = call.headers.get("content-type", "")
        kind = content_type.partition(";")[0].strip().lower()
        if kind == FORM:
            self._read_form(call, body)
        elif call.path and call.path[-1] == "_search":
            raise UnsupportedMediaType(f"The parameters of POST _search are a form: {FORM}")
        elif kind == JSON_PATCH:
            if call.method != "PATCH":
                raise UnsupportedMediaType(f"{JSON_PATCH} is for PATCH")
            call.document = body
        else:
            call.resource = wire.parse(body, content_type)

    def _read_form(self, call: Call, body: bytes) -> None:
        """Search parameters of POST _search count like those of the URL."""
        last = call.path[-1] if call.path else ""
        if last != "_search" and not last.startswith("$"):
            raise UnsupportedMediaType(f"{FORM} is for POST _search; send {wire.JSON} or {wire.XML}")
        try:
            call.query = [*call.query, *parse_query(body.decode("utf-8"))]
        except UnicodeDecodeError:
            raise BadRequest("The form is not UTF-8") from None

"""Reading OAuth's forms strictly and answering in OAuth's own way. https://www.rfc-editor.org/rfc/rfc6749#section-3.2"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fhir_server.auth.authority import Authority
from fhir_server.auth.oauth import OAuthError, invalid_request
from fhir_server.errors import FhirError, TooManyRequests

LARGEST_FORM = 64 * 1024
NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
FORM = "application/x-www-form-urlencoded"

Endpoint = Callable[[Request], Awaitable[Response]]


def authority_of(request: Request) -> Authority:
    authority: Authority = request.app.state.authority
    return authority


async def read_body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_FORM:
            raise OAuthError("invalid_request", "The request is larger than 64 KiB", 413)
    return body


async def form_pairs(request: Request) -> list[tuple[str, str]]:
    """The form's pairs; anything but a form is refused, because only forms are free of a preflight by accident.

    Without a value a parameter counts as omitted (RFC 6749 3.1, 3.2).
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise invalid_request(f"The body must be {FORM}")
    try:
        text = (await read_body(request)).decode("ascii")
        return parse_qsl(text, errors="strict", max_num_fields=200)
    except (UnicodeDecodeError, ValueError):
        raise invalid_request("The form is not valid") from None


async def form(request: Request) -> dict[str, str]:
    """RFC 6749 3.2: parameters must not be repeated."""
    pairs = await form_pairs(request)
    values = dict(pairs)
    if len(values) != len(pairs):
        raise invalid_request("A parameter occurs twice")
    return values


def address_of(request: Request) -> str:
    """Of the client; behind a proxy uvicorn takes it from X-Forwarded-For, if it trusts the proxy."""
    return request.client.host if request.client else ""


def oauth(endpoint: Endpoint) -> Endpoint:
    """Errors as OAuth JSON, nothing cached."""

    @wraps(endpoint)
    async def answered(request: Request) -> Response:
        try:
            response = await endpoint(request)
        except OAuthError as error:
            response = JSONResponse(error.as_json(), error.status)
            if error.status == 401 and request.headers.get("authorization", "").lower().startswith("basic"):
                response.headers["WWW-Authenticate"] = 'Basic realm="OAuth clients"'  # RFC 7617 2 wants a realm
        except FhirError as error:
            code = "slow_down" if isinstance(error, TooManyRequests) else "temporarily_unavailable"
            if error.status < 429:
                code = "access_denied" if error.status in (401, 403) else "invalid_request"
            body: dict[str, Any] = {"error": code, "error_description": error.diagnostics}
            response = JSONResponse(body, error.status, headers=error.headers)
        for name, value in NO_STORE.items():
            response.headers.setdefault(name, value)
        return response

    return answered

"""Who sends this request: the Bearer token of an ASGI scope → Principal. https://www.rfc-editor.org/rfc/rfc6750"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from fhir_server.auth.authority import Authority
from fhir_server.auth.principal import Principal
from fhir_server.errors import BadRequest, FhirError, Forbidden, Unauthorized

BREAK_GLASS = b"x-break-glass"
SHORTEST_REASON, LONGEST_REASON = 8, 200  # bytes of UTF-8 (three Chinese characters say as much as a word); characters


async def everybody(scope: MutableMapping[str, Any]) -> Principal:
    """`--open`."""
    return Principal.open()


class Bearer:
    """`await bearer(scope)`. No token: nobody, whom the policy refuses; a bad token: Unauthorized at once."""

    def __init__(self, authority: Authority) -> None:
        self._tokens = authority.tokens
        self._rate = authority.rate

    async def __call__(self, scope: MutableMapping[str, Any]) -> Principal:
        authorization = reason = None
        for name, value in scope["headers"]:
            if name == b"authorization":
                if authorization is not None:
                    raise _twice()
                authorization = value
            elif name == BREAK_GLASS:
                reason = value
        if authorization is None:
            return Principal.nobody()
        if authorization[:7].lower() != b"bearer ":
            raise _unauthorized("The Authorization header must be a Bearer token", code="")
        principal = self._tokens.remembered(authorization[7:])
        if principal is None:
            try:
                principal = await self._tokens.principal(authorization[7:].decode("ascii").strip(" "))
            except UnicodeDecodeError:
                raise _unauthorized("The access token is not valid") from None
            except Unauthorized as error:
                raise _unauthorized(error.diagnostics) from None
        try:
            self._rate.check(principal.client_id)
            return principal if reason is None else _break_glass(principal, reason)
        except FhirError:
            scope["principal"] = principal  # for the audit, which says whose request was refused
            raise


def _break_glass(principal: Principal, reason: bytes) -> Principal:
    """`X-Break-Glass: why`: a practitioner sees what consents, labels and care teams hide; every access is audited as such."""
    text = unquote(reason.decode("utf-8", "replace")).strip()  # a browser sends no other letters than Latin ones
    if "practitioner" not in principal.roles:
        raise Forbidden("Only practitioners may break the glass")
    if len(text.encode()) < SHORTEST_REASON or len(text) > LONGEST_REASON or not text.isprintable():
        raise BadRequest(
            f"X-Break-Glass must say why: {SHORTEST_REASON} Latin or 3 Chinese characters at least, "
            f"{LONGEST_REASON} at most, in UTF-8 or percent-encoded"
        )
    return replace(principal.breaking_glass(text), patients=None)


def _unauthorized(text: str, *, code: str = "invalid_token") -> Unauthorized:
    """No code where there was no token at all (RFC 6750 3.1)."""
    error = Unauthorized(text)
    error.headers["WWW-Authenticate"] = f'Bearer error="{code}", error_description="{text}"' if code else "Bearer"
    return error


def _twice() -> BadRequest:
    error = BadRequest("The request has two Authorization headers")
    error.headers["WWW-Authenticate"] = 'Bearer error="invalid_request"'
    return error

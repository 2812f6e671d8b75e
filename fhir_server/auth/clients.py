"""Which client is calling the token endpoint, and is it really that one.

https://hl7.org/fhir/smart-app-launch/STU2.2/client-confidential-asymmetric.html
https://hl7.org/fhir/smart-app-launch/STU2.2/client-confidential-symmetric.html
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote_plus, urlsplit

import jwt

from fhir_server.auth.addresses import Unreachable
from fhir_server.auth.oauth import OAuthError, digest, invalid_client, invalid_request, is_time
from fhir_server.auth.passwords import Passwords
from fhir_server.auth.remote_keys import RemoteKeys
from fhir_server.store.credentials import Client, Credentials

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ASSERTION_ALGORITHMS = ("RS384", "ES384")
LONGEST_ASSERTION = 300  # seconds between now and `exp`
LEEWAY = 5
KEY_TYPES = {"RS384": "RSA", "ES384": "EC"}


class Clients:
    def __init__(
        self,
        credentials: Credentials,
        passwords: Passwords,
        remote_keys: RemoteKeys,
        *,
        token_url: Callable[[], str],
        now: Callable[[], float],
    ) -> None:
        self._credentials = credentials
        self._passwords = passwords
        self._remote_keys = remote_keys
        self._token_url = token_url
        self._now = now

    async def authenticate(
        self, form: Mapping[str, str], authorization: str = "", *, public_allowed: bool = True
    ) -> Client:
        """The client, by the one method it is registered with. Raises OAuthError invalid_client or invalid_request."""
        ways = [
            name
            for name, used in (
                ("basic", authorization.lower().startswith("basic ")),
                ("post", bool(form.get("client_secret"))),
                ("assertion", bool(form.get("client_assertion") or form.get("client_assertion_type"))),
            )
            if used
        ]
        if len(ways) > 1:
            raise invalid_request("Authenticate the client in one way, not in several")
        way = ways[0] if ways else "none"
        if way == "assertion":
            return await self._by_assertion(form)
        id, secret = (
            _basic(authorization) if way == "basic" else (form.get("client_id", ""), form.get("client_secret", ""))
        )
        if form.get("client_id", id) != id:
            raise invalid_request("client_id differs from the client that authenticates")
        if way == "none" and not id:
            id = await self._owner(form)
        client = await self._credentials.client(id) if id else None
        if way == "none":
            if client is None or client.kind != "public" or not public_allowed:
                raise invalid_client("The client is not known or must authenticate")
            return client
        known = client is not None and client.kind == "confidential-symmetric"
        right = await self._passwords.matches(client.secret_hash if client is not None and known else "", secret)
        if client is None or not right:
            raise invalid_client("The client is not known or its secret is wrong")
        return client

    async def _owner(self, form: Mapping[str, str]) -> str:
        """RFC 6749 3.2.1 lets a public client leave out client_id, and browser libraries do so when they refresh."""
        if form.get("grant_type") != "refresh_token" or not form.get("refresh_token"):
            return ""
        token = await self._credentials.refresh_token(digest(form["refresh_token"]))
        grant = await self._credentials.grant(token.grant_id) if token is not None else None
        return grant.client_id if grant is not None else ""

    async def _by_assertion(self, form: Mapping[str, str]) -> Client:
        """`private_key_jwt`: signed with a registered key, for this endpoint, short-lived, never seen before."""
        if form.get("client_assertion_type") != ASSERTION_TYPE:
            raise invalid_request(f"client_assertion_type must be {ASSERTION_TYPE}")
        assertion = form.get("client_assertion", "")
        try:
            header = jwt.get_unverified_header(assertion)
            stated: dict[str, Any] = jwt.decode(assertion, options={"verify_signature": False})
        except jwt.InvalidTokenError:
            raise invalid_client("The client assertion is not a JWT") from None
        algorithm, kid, id = header.get("alg"), header.get("kid"), stated.get("iss")
        if algorithm not in ASSERTION_ALGORITHMS:
            raise invalid_client(f"The client assertion must be signed with {' or '.join(ASSERTION_ALGORITHMS)}")
        if not isinstance(kid, str) or not isinstance(id, str) or not id.isprintable() or stated.get("sub") != id:
            raise invalid_client("The client assertion needs `kid`, and the client id as `iss` and `sub`")
        if form.get("client_id", id) != id:
            raise invalid_request("client_id differs from the client that authenticates")
        client = await self._credentials.client(id)
        if client is None or client.kind != "confidential-asymmetric":
            raise invalid_client("The client is not known or its assertion is not valid")
        if "jku" in header and header["jku"] != client.jwks_uri:
            raise invalid_client("The client assertion's `jku` is not the client's registered jwks_uri")
        claims = await self._verified(client, assertion, algorithm, kid)
        now, expires, jti = self._now(), claims.get("exp"), claims.get("jti")
        if not is_time(expires) or expires + LEEWAY <= now:
            raise invalid_client("The client assertion has expired")
        if expires > now + LONGEST_ASSERTION + LEEWAY:
            raise invalid_client("The client assertion's `exp` is more than five minutes away")
        for name in ("nbf", "iat"):
            if name in claims and (not is_time(claims[name]) or claims[name] - LEEWAY > now):
                raise invalid_client(f"The client assertion's `{name}` lies in the future")
        if not isinstance(jti, str) or not jti or len(jti) > 512 or not jti.isprintable():
            raise invalid_client("The client assertion needs a `jti`")
        if not await self._credentials.first_use(f"{client.id}:{jti}", int(expires) + LEEWAY):
            raise invalid_client("The client assertion was used before (`jti`)")
        return client

    async def _verified(self, client: Client, assertion: str, algorithm: str, kid: str) -> dict[str, Any]:
        for key in await self._keys(client, kid):
            if key.get("kty") != KEY_TYPES[algorithm] or key.get("alg", algorithm) != algorithm:
                continue
            if key.get("use", "sig") != "sig" or key.get("kid") != kid:
                continue
            try:
                public = jwt.PyJWK({name: key[name] for name in key if name not in ("d", "p", "q")}, algorithm).key
                claims: dict[str, Any] = jwt.decode(
                    assertion,
                    public,
                    algorithms=[algorithm],
                    audience=self._token_url(),
                    options={
                        "require": ["exp", "aud", "iss", "sub", "jti"],
                        "verify_exp": False,
                        "verify_nbf": False,
                        "verify_iat": False,
                    },
                )
            except jwt.PyJWTError:
                continue
            return claims
        raise invalid_client("The client is not known or its assertion is not valid")

    async def _keys(self, client: Client, kid: str) -> list[dict[str, Any]]:
        if client.jwks_uri:
            try:
                return await self._remote_keys.keys(client.jwks_uri, kid)
            except Unreachable as error:
                raise invalid_client(f"The client's jwks_uri: {error}") from None
        keys = (client.jwks or {}).get("keys", [])
        return [key for key in keys if isinstance(key, dict)]


def check_redirect_uri(uri: str) -> None:
    """What may be registered. Raises OAuthError. https://www.rfc-editor.org/rfc/rfc9700#section-2.1"""
    try:
        parts = urlsplit(uri)
    except ValueError:
        raise OAuthError("invalid_redirect_uri", f"{uri!r} is not a URL") from None
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    custom = "." in parts.scheme and not parts.netloc  # an app's own scheme, com.example.app:/back
    secure = parts.scheme == "https" and bool(parts.hostname)
    if not (secure or (parts.scheme == "http" and local) or custom) or parts.fragment or "#" in uri or parts.username:
        raise OAuthError(
            "invalid_redirect_uri",
            f"{uri!r} must be https (or http on localhost, or an app's own scheme), without fragment and user information",
        )


def _basic(authorization: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(authorization[6:].strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise invalid_client("The Authorization header is not valid Basic authentication") from None
    id, colon, secret = text.partition(":")
    if not colon:
        raise invalid_client("The Authorization header is not valid Basic authentication")
    return unquote_plus(id), unquote_plus(secret)  # RFC 6749 2.3.1: form-encoded first

"""Access tokens: signed JWTs made here, verified here, remembered by their hash until they expire or are revoked.

https://www.rfc-editor.org/rfc/rfc9068 and, for what a verifier must refuse, https://www.rfc-editor.org/rfc/rfc8725

A token that was verified costs one SHA-256 and one dictionary look-up. Every RECHECK seconds its user, client and
revocation are looked up again, so a revocation made by another process is noticed that soon, one made here at once.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jwt

from fhir_server.auth.keys import ALGORITHM, Keys
from fhir_server.auth.oauth import is_time, new_secret
from fhir_server.auth.principal import ROLES, Principal
from fhir_server.auth.reach import Reach
from fhir_server.auth.scopes import resource_scopes, split
from fhir_server.errors import Unauthorized
from fhir_server.store.credentials import Client, Credentials, Grant, User

RECHECK = 2.0  # seconds
REMEMBERED = 20_000  # tokens; the oldest make room
LEEWAY = 5  # seconds a clock may be off
LARGEST = 16 * 1024


class OtherIssuer(Protocol):
    """A server whose tokens are accepted, too: see issuer.py."""

    issuer: str

    async def principal(self, token: str) -> Principal: ...


@dataclass(slots=True)
class _Known:
    principal: Principal
    checked: float
    expires: float
    grant_id: str


class Tokens:
    def __init__(
        self,
        credentials: Credentials,
        keys: Keys,
        reach: Reach,
        *,
        issuer: str,
        audience: str,
        now: Callable[[], float],
        lifetime: int,
        other: OtherIssuer | None = None,
    ) -> None:
        self._credentials = credentials
        self._keys = keys
        self._reach = reach
        self._now = now
        self._other = other
        self.issuer = issuer
        self.audience = audience
        self.lifetime = lifetime
        self._known: dict[bytes, _Known] = {}
        self._changed = -1.0
        self._checking: dict[bytes, asyncio.Task[Principal]] = {}

    # Making

    async def access_token(
        self, *, subject: str, client: Client, scopes: list[str], grant: Grant | None = None, lifetime: int = 0
    ) -> str:
        now = int(self._now())
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": subject,
            "client_id": client.id,
            "scope": " ".join(scopes),
            "iat": now,
            "nbf": now,
            "exp": now + (lifetime or self.lifetime),
            "jti": new_secret(16),
        }
        if grant is not None:
            claims["grant"] = grant.id
            claims["fhirUser"] = grant.fhir_user
            if grant.patient:
                claims["patient"] = grant.patient
            if grant.encounter:
                claims["encounter"] = grant.encounter
        return await self._keys.sign(claims, "at+jwt")

    async def id_token(self, grant: Grant, client: Client) -> str:
        """https://openid.net/specs/openid-connect-core-1_0.html#IDToken with SMART's `fhirUser`."""
        now = int(self._now())
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "aud": client.id,
            "sub": grant.subject,
            "iat": now,
            "exp": now + self.lifetime,
            "auth_time": grant.auth_time,
        }
        if grant.nonce:
            claims["nonce"] = grant.nonce
        if grant.fhir_user and {"fhirUser", "profile"} & set(grant.scopes):
            claims["fhirUser"] = f"{self.audience}/{grant.fhir_user}"
        return await self._keys.sign(claims, "JWT")

    # Verifying

    async def principal(self, token: str) -> Principal:
        """Who this token stands for, now. Raises Unauthorized; the text never repeats the token."""
        key = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        known = self._fresh(key)
        if known is not None:
            return known
        checking = self._checking.get(key)
        if checking is None:  # many requests with one token: one look-up
            checking = self._checking[key] = asyncio.create_task(self._check(key, token))
            checking.add_done_callback(lambda _: self._checking.pop(key, None))
        try:
            return await asyncio.shield(checking)
        except Unauthorized as error:
            raise Unauthorized(error.diagnostics) from None

    def remembered(self, token: bytes) -> Principal | None:
        """As `principal`, if the token was verified a moment ago: what most requests need, without waiting."""
        return self._fresh(hashlib.sha256(token).digest())

    def _fresh(self, key: bytes) -> Principal | None:
        known = self._known.get(key)
        if known is None:
            return None
        now = self._now()
        if now < known.expires and 0 <= now - known.checked < RECHECK and known.checked > self._changed:
            return known.principal
        return None

    def recheck(self) -> None:
        """Somebody's reach changed: every token is looked up again at its next use."""
        self._changed = self._now()

    async def _check(self, key: bytes, token: str) -> Principal:
        self._known.pop(key, None)
        started = self._now()  # what changes while we look makes the answer stale
        if self._other is not None and _claimed_issuer(token) == self._other.issuer:
            principal = await self._other.principal(token)
            self._remember(key, _Known(principal, started, principal.expires + LEEWAY, ""))
            return principal
        claims = await self.claims(token)
        principal = await self.from_claims(claims)
        grant_id = str(claims.get("grant", ""))
        self._remember(key, _Known(principal, started, principal.expires + LEEWAY, grant_id))
        return principal

    async def claims(self, token: str) -> dict[str, Any]:
        """The claims of one of our own access tokens, verified and not revoked. Raises Unauthorized."""
        if len(token) > LARGEST:
            raise Unauthorized("The access token is too long")
        try:
            header = jwt.get_unverified_header(token)
            kid = header.get("kid")
            public = await self._keys.public(kid) if isinstance(kid, str) else None
            # The algorithm is ours to choose, the header only has to agree; an id_token is no access token.
            if public is None or header.get("alg") != ALGORITHM or str(header.get("typ", "")).lower() != "at+jwt":
                raise Unauthorized("The access token was not signed by this server")
            claims: dict[str, Any] = jwt.decode(
                token,
                public,
                algorithms=[ALGORITHM],
                issuer=self.issuer,
                audience=self.audience,
                options={
                    "require": ["exp", "iat", "nbf", "iss", "aud", "sub", "jti", "client_id", "scope"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.InvalidTokenError:
            raise Unauthorized("The access token is not valid") from None
        now = self._now()
        if not is_time(claims["exp"]) or claims["exp"] + LEEWAY <= now:
            raise Unauthorized("The access token has expired")
        if not is_time(claims["nbf"]) or claims["nbf"] - LEEWAY > now:
            raise Unauthorized("The access token is not valid yet")
        ids = [str(claims["jti"]), *([str(claims["grant"])] if claims.get("grant") else [])]
        if await self._credentials.any_revoked(ids):
            raise Unauthorized("The access token has been revoked")
        return claims

    async def from_claims(self, claims: dict[str, Any]) -> Principal:
        """The user and client as they are now: who was disabled or removed since is refused."""
        client = await self._credentials.client(str(claims["client_id"]))
        if client is None:
            raise Unauthorized("The access token's client is not registered any more")
        base = Principal(
            subject=str(claims["sub"]),
            client_id=client.id,
            scopes=resource_scopes(split(str(claims["scope"]))),
            patient=claims.get("patient"),
            encounter=claims.get("encounter"),
            token_id=str(claims["jti"]),
            expires=int(claims["exp"]),
            grant_id=str(claims.get("grant", "")),
        )
        if "grant" not in claims:  # a backend service, for itself
            system = tuple(scope for scope in base.scopes if scope.context == "system")
            reach = await self._reach.of_client(client)
            roles, clearance = client.roles & ROLES, client.clearance
            return replace(
                base, scopes=system, roles=roles, patients=None, excluded=reach.excluded, clearance=clearance
            )
        user = await self._credentials.user(base.subject)
        if user is None or user.disabled:
            raise Unauthorized("The access token's user may not log in any more")
        return await self.for_user(base, user)

    @staticmethod
    def standing(principal: Principal) -> dict[str, Any]:
        """What to keep of somebody in whose name something is done later (a subscription's delivery); no secret.

        Give it to `still` each time.
        """
        claims: dict[str, Any] = {
            "sub": principal.subject,
            "client_id": principal.client_id,
            "scope": " ".join(str(scope) for scope in principal.scopes),
            "jti": principal.token_id,
            "exp": principal.expires,
        }
        if principal.patient:
            claims["patient"] = principal.patient
        if principal.fhir_user or principal.subject != principal.client_id:
            claims["grant"] = principal.grant_id
        return claims

    async def still(self, claims: dict[str, Any]) -> Principal:
        """Whoever `standing` kept, and what they may see now, not what they might then.

        Raises Unauthorized when user or client have gone, or what the user allowed has ended or was revoked. The token
        itself may have: tokens are short-lived.
        """
        grant_id = str(claims.get("grant", ""))
        if grant_id:
            grant = await self._credentials.grant(grant_id)
            if grant is None or grant.revoked or grant.expires <= self._now():
                raise Unauthorized("What the user allowed the client has come to its end")
        return await self.from_claims(claims)

    async def as_now(self, then: Principal) -> Principal:
        """What somebody in whose name work goes on may do by now, as `still` says it. Raises Unauthorized.

        Who came with a token of another issuer is known by that token alone, and stays as it was.
        """
        return then if then.issuer else await self.still(self.standing(then))

    async def for_user(self, base: Principal, user: User) -> Principal:
        scopes = tuple(scope for scope in base.scopes if scope.context != "system")
        reach = await self._reach.of(user)
        return replace(
            base,
            scopes=scopes,
            fhir_user=user.fhir_user or None,
            roles=frozenset({user.role}) & ROLES,
            patients=reach.patients,
            excluded=reach.excluded,
            clearance=user.clearance,
        )

    def forget(self, *, token: str = "", grant_id: str = "") -> None:
        """After a revocation: the next use of the token is looked up again."""
        if token:
            self._known.pop(hashlib.sha256(token.encode()).digest(), None)
        if grant_id:
            for key in [key for key, known in self._known.items() if known.grant_id == grant_id]:
                del self._known[key]

    def _remember(self, key: bytes, known: _Known) -> None:
        while len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[key] = known


def _claimed_issuer(token: str) -> str:
    """Only to choose who verifies it."""
    try:
        issuer = jwt.decode(token, options={"verify_signature": False}).get("iss", "")
    except jwt.InvalidTokenError:
        return ""
    return issuer if isinstance(issuer, str) else ""

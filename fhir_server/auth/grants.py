"""The grants of the token endpoint: authorization code, refresh token, client credentials; and ending them again.

https://hl7.org/fhir/smart-app-launch/STU2.2/app-launch.html#obtain-access-token
https://hl7.org/fhir/smart-app-launch/STU2.2/backend-services.html
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from typing import Any

from fhir_server.auth.oauth import OAuthError, digest, invalid_grant, invalid_request, invalid_scope, new_secret
from fhir_server.auth.scopes import granted, split
from fhir_server.auth.tokens import Tokens
from fhir_server.errors import Unauthorized
from fhir_server.store.credentials import Client, Code, Credentials, Grant, RefreshToken

CODE_SECONDS = 60
_VERIFIER = re.compile(r"[A-Za-z0-9\-._~]{43,128}")


class Grants:
    """`refresh_seconds`: how long a grant lives with offline_access, `online_seconds` with online_access."""

    def __init__(
        self,
        credentials: Credentials,
        tokens: Tokens,
        *,
        now: Callable[[], float],
        backend_seconds: int = 300,
        refresh_seconds: int = 90 * 86400,
        online_seconds: int = 12 * 3600,
    ) -> None:
        self._credentials = credentials
        self._tokens = tokens
        self._now = now
        self._backend_seconds = backend_seconds
        self._refresh_seconds = refresh_seconds
        self._online_seconds = online_seconds

    def lifetime(self, scopes: list[str]) -> int:
        """Of a grant with these scopes, seconds."""
        if "offline_access" in scopes:
            return self._refresh_seconds
        return self._online_seconds if "online_access" in scopes else self._tokens.lifetime + CODE_SECONDS

    async def code(self, grant: Grant, redirect_uri: str, challenge: str) -> str:
        """An authorization code for what the user has just allowed."""
        code = new_secret()
        expires = int(self._now()) + CODE_SECONDS
        await self._credentials.put_grant(grant)
        await self._credentials.put_code(
            Code(hash=digest(code), grant=grant, redirect_uri=redirect_uri, challenge=challenge, expires=expires)
        )
        return code

    async def token(self, client: Client, form: Mapping[str, str]) -> dict[str, Any]:
        """The token response. Raises OAuthError."""
        grant_type = form.get("grant_type", "")
        if not grant_type:
            raise invalid_request("grant_type is missing")
        ways = {
            "authorization_code": self._by_code,
            "refresh_token": self._by_refresh_token,
            "client_credentials": self._by_client,
        }
        if grant_type not in ways:
            raise OAuthError("unsupported_grant_type", f"grant_type must be one of {', '.join(ways)}")
        if grant_type not in client.grant_types:
            raise OAuthError("unauthorized_client", f"The client is not registered for {grant_type}")
        return await ways[grant_type](client, form)

    async def _by_code(self, client: Client, form: Mapping[str, str]) -> dict[str, Any]:
        verifier = form.get("code_verifier", "")
        if not form.get("code"):
            raise invalid_request("code is missing")
        code = await self._credentials.use_code(digest(form["code"]))
        if code is None:
            raise invalid_grant("The authorization code is not known or has expired")
        if code.used:
            # Somebody has it who should not: whatever came of it ends (RFC 6749 4.1.2).
            await self._end(code.grant)
            raise invalid_grant("The authorization code was used before")
        if code.expires <= self._now():
            raise invalid_grant("The authorization code is not known or has expired")
        if code.grant.client_id != client.id:
            raise invalid_grant("The authorization code belongs to another client")
        if form.get("redirect_uri", "") != code.redirect_uri:
            raise invalid_grant("redirect_uri differs from the one of the authorization request")
        if not _VERIFIER.fullmatch(verifier) or not hmac.compare_digest(challenge_of(verifier), code.challenge):
            raise invalid_grant("code_verifier does not fit the code_challenge")
        grant = await self._credentials.grant(code.grant.id)
        if grant is None or grant.revoked:
            raise invalid_grant("The authorization was revoked")
        if not await self._stands(grant):
            raise invalid_grant("The user may not log in any more")
        return await self._response(client, grant, list(grant.scopes), with_id_token=True)

    async def _by_refresh_token(self, client: Client, form: Mapping[str, str]) -> dict[str, Any]:
        if not form.get("refresh_token"):
            raise invalid_request("refresh_token is missing")
        hashed = digest(form["refresh_token"])
        seen = await self._credentials.refresh_token(hashed)
        grant = await self._credentials.grant(seen.grant_id) if seen else None
        now = self._now()
        if seen is None or grant is None or grant.revoked or grant.expires <= now or seen.expires <= now:
            raise invalid_grant("The refresh token is not known, has expired or was revoked")
        if grant.client_id != client.id:
            raise invalid_grant("The refresh token belongs to another client")
        if not await self._stands(grant):
            raise invalid_grant("The user may not log in any more")
        scopes = list(grant.scopes)
        if form.get("scope"):
            scopes = _narrowed(split(form["scope"]), scopes)
        scopes = granted(scopes, [*client.scopes, *_always(scopes)])  # the client's registration may have shrunk
        before = await self._credentials.use_refresh_token(hashed)
        if before is None or before.used:
            # Rotation means every refresh token is used once; the second use is a thief's or his victim's.
            await self._end(grant)
            raise invalid_grant("The refresh token was used before; the whole grant is revoked")
        return await self._response(client, grant, scopes, with_id_token="openid" in scopes)

    async def _by_client(self, client: Client, form: Mapping[str, str]) -> dict[str, Any]:
        if client.kind == "public":
            raise OAuthError("unauthorized_client", "A public client cannot act on its own behalf")
        asked = split(form.get("scope", ""))
        if not asked:
            raise invalid_scope("scope is missing")
        scopes = [scope for scope in granted(asked, client.scopes) if scope.startswith("system/")]
        if not scopes:
            raise invalid_scope("None of the scopes asked for may be given to this client")
        seconds = self._backend_seconds
        token = await self._tokens.access_token(subject=client.id, client=client, scopes=scopes, lifetime=seconds)
        return {"access_token": token, "token_type": "bearer", "expires_in": seconds, "scope": " ".join(scopes)}

    async def _response(
        self, client: Client, grant: Grant, scopes: list[str], *, with_id_token: bool
    ) -> dict[str, Any]:
        now = int(self._now())
        seconds = max(1, min(self._tokens.lifetime, grant.expires - now))
        token = await self._tokens.access_token(
            subject=grant.subject, client=client, scopes=scopes, grant=grant, lifetime=seconds
        )
        response: dict[str, Any] = {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": seconds,
            "scope": " ".join(scopes),
        }
        response |= _context(grant)
        if with_id_token and "openid" in grant.scopes:
            response["id_token"] = await self._tokens.id_token(grant, client)
        if "refresh_token" in client.grant_types and {"offline_access", "online_access"} & set(grant.scopes):
            refresh = new_secret()
            await self._credentials.put_refresh_token(
                RefreshToken(hash=digest(refresh), grant_id=grant.id, expires=grant.expires)
            )
            response["refresh_token"] = refresh
        return response

    # Ending and asking

    async def revoke(self, client: Client, token: str) -> None:
        """RFC 7009: the whole grant a refresh token belongs to, or one access token; somebody else's or none: nothing."""
        refresh = await self._credentials.refresh_token(digest(token))
        if refresh is not None:
            grant = await self._credentials.grant(refresh.grant_id)
            if grant is not None and grant.client_id == client.id:
                await self._end(grant)
            return
        try:
            claims = await self._tokens.claims(token)
        except Unauthorized:
            return
        if claims["client_id"] == client.id:
            await self._credentials.revoke(str(claims["jti"]), int(claims["exp"]) + 60)
            self._tokens.forget(token=token)

    async def introspect(self, client: Client, token: str) -> dict[str, Any]:
        """RFC 7662 with the context that came with the token. A client sees its own tokens, a resource server
        (`introspects`) all. https://hl7.org/fhir/smart-app-launch/STU2.2/token-introspection.html
        """
        refresh = await self._credentials.refresh_token(digest(token))
        now = self._now()
        if refresh is not None:
            grant = await self._credentials.grant(refresh.grant_id)
            if grant is None or refresh.used or grant.revoked or grant.expires <= now:
                return {"active": False}
            if not await self._stands(grant):
                return {"active": False}
            if not client.introspects and grant.client_id != client.id:
                return {"active": False}
            scope = " ".join(grant.scopes)
            return {"active": True, "client_id": grant.client_id, "sub": grant.subject, "scope": scope,
                    "exp": refresh.expires, "token_type": "refresh_token"}  # fmt: skip
        try:
            claims = await self._tokens.claims(token)
            await self._tokens.from_claims(claims)  # its user and client still stand
        except Unauthorized:
            return {"active": False}
        if not client.introspects and claims["client_id"] != client.id:
            return {"active": False}
        shown = (
            "scope",
            "client_id",
            "sub",
            "iss",
            "aud",
            "exp",
            "iat",
            "nbf",
            "jti",
            "patient",
            "encounter",
            "fhirUser",
        )
        answer = {name: claims[name] for name in shown if claims.get(name)}
        if answer.get("fhirUser"):
            answer["fhirUser"] = f"{self._tokens.audience}/{answer['fhirUser']}"
        grant = await self._credentials.grant(str(claims.get("grant", "")))
        return {"active": True, "token_type": "Bearer", **answer, **(_context(grant) if grant is not None else {})}

    async def _stands(self, grant: Grant) -> bool:
        """Whether the user who gave it may still log in."""
        user = await self._credentials.user(grant.subject)
        return user is not None and not user.disabled

    async def end_session(self, session: str) -> None:
        """Logging out ends what was only granted for the time of the session (online_access)."""
        for grant in await self._credentials.grants_of_session(session):
            if "offline_access" not in grant.scopes:
                await self._end(grant)

    async def _end(self, grant: Grant) -> None:
        until = int(self._now()) + self._tokens.lifetime + 60
        await self._credentials.revoke_grant(grant.id, until)
        self._tokens.forget(grant_id=grant.id)


def challenge_of(verifier: str) -> str:
    """PKCE S256. https://www.rfc-editor.org/rfc/rfc7636#section-4.2"""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def _context(grant: Grant) -> dict[str, Any]:
    """https://hl7.org/fhir/smart-app-launch/STU2.2/scopes-and-launch-context.html#launch-context-arrives-with-your-access_token"""
    context: dict[str, Any] = {}
    if grant.patient:
        context["patient"] = grant.patient
    if grant.encounter:
        context["encounter"] = grant.encounter
    if grant.fhir_context:
        context["fhirContext"] = list(grant.fhir_context)
    if grant.intent:
        context["intent"] = grant.intent
    if grant.patient or "launch" in grant.scopes:
        context["need_patient_banner"] = grant.need_patient_banner
    return context


def _always(scopes: list[str]) -> list[str]:
    return [scope for scope in scopes if "/" not in scope]


def _narrowed(asked: list[str], held: list[str]) -> list[str]:
    """A refresh may ask for less, never for more (RFC 6749 6)."""
    given = granted(asked, held)
    if given != asked:
        raise invalid_scope("A refresh cannot ask for more than was granted")
    return given

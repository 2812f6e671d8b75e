"""Tokens of an external authorization server (Keycloak and its like): verified with its published keys, claims mapped.

Claims are named by settings, with dots for nesting (`realm_access.roles`). Discovery: https://openid.net/specs/openid-connect-discovery-1_0.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jwt

from fhir_server.auth.addresses import Unreachable
from fhir_server.auth.oauth import is_time
from fhir_server.auth.principal import ROLES, Principal
from fhir_server.auth.reach import Reach
from fhir_server.auth.remote_keys import RemoteKeys
from fhir_server.auth.scopes import resource_scopes, split
from fhir_server.errors import Unauthorized, Unavailable
from fhir_server.store.credentials import User

ALGORITHMS = {"RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "EC": ("ES256", "ES384", "ES512")}
LEEWAY = 5
CONFIGURATION_SECONDS = 300
KINDS = {"Patient": "patient", "RelatedPerson": "related-person", "Practitioner": "practitioner"}


@dataclass(frozen=True, slots=True)
class Mapped:
    """Which claims say what; `reach` is what a practitioner may see: `all` or `care-team`."""

    scope: str = "scope"
    patient: str = "patient"
    fhir_user: str = "fhirUser"
    roles: str = "realm_access.roles"
    reach: str = "care-team"


class ExternalIssuer:
    """`audience` has to be in the tokens' `aud`; `jwks_url` empty: found by discovery."""

    def __init__(
        self,
        issuer: str,
        keys: RemoteKeys,
        reach: Reach,
        *,
        audience: str,
        jwks_url: str,
        mapped: Mapped,
        now: Callable[[], float],
    ) -> None:
        self.issuer = issuer
        self._keys = keys
        self._reach = reach
        self._audience = audience
        self._jwks_url = jwks_url
        self._mapped = mapped
        self._now = now
        self._configuration: tuple[float, Mapping[str, Any]] = (-CONFIGURATION_SECONDS, {})

    async def configuration(self) -> Mapping[str, Any]:
        """Its OpenID discovery document, remembered for five minutes. Raises Unavailable."""
        if self._now() - self._configuration[0] >= CONFIGURATION_SECONDS:
            url = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
            try:
                found = await self._keys.document(url)
            except Unreachable as error:
                raise Unavailable(f"The token issuer's configuration: {error}", retry_after=5) from None
            if found.get("issuer") != self.issuer:
                raise Unavailable("The token issuer's configuration names another issuer", retry_after=60)
            self._configuration = (self._now(), found)
        return self._configuration[1]

    async def principal(self, token: str) -> Principal:
        claims = await self._claims(token)
        fhir_user = "/".join(str(_claim(claims, self._mapped.fhir_user) or "").split("/")[-2:])
        kind = fhir_user.partition("/")[0]
        patient = str(_claim(claims, self._mapped.patient) or "").rpartition("/")[2] or None
        stated = _claim(claims, self._mapped.roles)
        roles = frozenset(_texts(stated)) & ROLES
        scopes = resource_scopes(_texts(_claim(claims, self._mapped.scope)))
        base = Principal(
            subject=str(claims["sub"]),
            client_id=str(claims.get("client_id") or claims.get("azp") or claims["sub"]),
            scopes=scopes,
            patient=patient,
            fhir_user=fhir_user if kind in KINDS else None,
            token_id=str(claims.get("jti", "")),
            issuer=self.issuer,
            expires=int(claims["exp"]),
        )
        if base.fhir_user is None and patient is None and "administrator" not in roles:
            system = tuple(one for one in scopes if one.context == "system")
            return replace(base, scopes=system, patients=None, excluded=await self._reach.objecting_to_all())
        role = "administrator" if "administrator" in roles else "lab" if "lab" in roles else KINDS.get(kind, "patient")
        user = User(
            name=f"{self.issuer}|{base.subject}",
            password_hash="",
            role=role,
            fhir_user=fhir_user if kind in KINDS else f"Patient/{patient}" if patient else "",
            reach=self._mapped.reach,
        )
        view = await self._reach.of(user)
        return replace(
            base,
            scopes=tuple(one for one in scopes if one.context != "system"),
            roles=frozenset({role}),
            patients=view.patients,
            excluded=view.excluded,
        )

    async def _claims(self, token: str) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            kid, algorithm = header.get("kid"), header.get("alg")
            if not isinstance(kid, str):
                raise Unauthorized("The access token names no key")
            for key in await self._published(kid):
                kind = str(key.get("kty"))
                if algorithm not in ALGORITHMS.get(kind, ()) or key.get("alg", algorithm) != algorithm:
                    continue
                claims: dict[str, Any] = jwt.decode(
                    token,
                    jwt.PyJWK(key, algorithm).key,
                    algorithms=[algorithm],
                    issuer=self.issuer,
                    audience=self._audience,
                    options={
                        "require": ["exp", "iss", "aud", "sub"],
                        "verify_exp": False,
                        "verify_nbf": False,
                        "verify_iat": False,
                    },
                )
                break
            else:
                raise Unauthorized("The access token's key is not one its issuer publishes")
        except jwt.PyJWTError:
            raise Unauthorized("The access token is not valid") from None
        now = self._now()
        if not is_time(claims["exp"]) or claims["exp"] + LEEWAY <= now:
            raise Unauthorized("The access token has expired")
        for name in ("nbf", "iat"):
            if not is_time(claims.get(name, 0)) or claims.get(name, 0) - LEEWAY > now:
                raise Unauthorized("The access token is not valid yet")
        return claims

    async def _published(self, kid: str) -> list[dict[str, Any]]:
        url = self._jwks_url or str((await self.configuration()).get("jwks_uri", ""))
        try:
            return await self._keys.keys(url, kid, trusted=True)
        except Unreachable as error:
            raise Unavailable(f"The token issuer's keys: {error}", retry_after=5) from None


def _texts(value: Any) -> list[str]:
    """A claim's texts, whether it is a list of them or one text with spaces in between."""
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else split(str(value or ""))


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    value: Any = claims
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value

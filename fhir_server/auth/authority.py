"""The authorization server put together once, from settings and collaborators; `http/smart` and the command line use it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fhir_server.auth.audit_event import Access
from fhir_server.auth.authorization import Authorizations
from fhir_server.auth.clients import Clients
from fhir_server.auth.consents import Denials
from fhir_server.auth.grants import Grants
from fhir_server.auth.issuer import ExternalIssuer, Mapped
from fhir_server.auth.keys import Keys, key_file
from fhir_server.auth.limits import LoginLimit, RateLimit
from fhir_server.auth.passwords import Passwords
from fhir_server.auth.reach import DECIDING, Reach, Records
from fhir_server.auth.remote_keys import RemoteKeys
from fhir_server.auth.tokens import Tokens
from fhir_server.errors import FhirError
from fhir_server.settings import Settings
from fhir_server.store.credentials import Credentials
from fhir_server.store.protocol import Event, Store


@dataclass(frozen=True, slots=True)
class Authority:
    """`base` is the absolute FHIR base: issuer, audience and what `aud` has to be. `open()` before first use."""

    settings: Settings
    base: str
    credentials: Credentials
    passwords: Passwords
    keys: Keys
    reach: Reach
    tokens: Tokens
    clients: Clients
    grants: Grants
    authorizations: Authorizations
    external: ExternalIssuer | None  # whose tokens count, and to which apps are sent
    logins: LoginLimit
    rate: RateLimit
    token_rate: RateLimit
    records: Records | None
    recorded: list[Callable[[Access], None]]  # told of each login and logout; app.py puts the audit here
    secret: bytes = field(repr=False)  # encrypts the signing keys, and seals the audit
    now: Callable[[], float]

    @property
    def auth_url(self) -> str:
        return f"{self.base}/auth"

    async def open(self) -> None:
        await self.credentials.open()
        await self.keys.open()

    def close(self) -> None:
        self.passwords.close()

    def record(self, interaction: str, status: int, *, subject: str, client: str, user: str, address: str) -> None:
        """A login or logout for the audit. Raises Unavailable if it cannot be kept."""
        when = int(self.now() * 1000)
        for tell in self.recorded:
            tell(Access(when, interaction, status, subject=subject, client=client, user=user, address=address))

    def committed(self, events: list[Event]) -> None:
        """For `Server.committed`: who may see whom may just have changed."""
        if any(event.resource_type in DECIDING for event in events):
            self.reach.forget()
            self.tokens.recheck()


def build(
    settings: Settings,
    credentials: Credentials,
    *,
    base: str,
    store: Store | None = None,
    records: Records | None = None,
    now: Callable[[], float] = time.time,
    passwords: Passwords | None = None,
) -> Authority:
    base = base.rstrip("/")
    passwords = passwords or Passwords()
    longest = max(settings.token_seconds, settings.backend_token_seconds)
    secret = secret_of(settings)
    keys = Keys(credentials, secret, now=now, longest_token=longest)
    denials = Denials(store, base=base, now=now) if store is not None else None
    reach = Reach(records, denials, base=base, now=now)
    remote_keys = RemoteKeys(now=now, internal_allowed=settings.jwks_internal)
    other = None
    if settings.issuer:
        mapped = Mapped(
            scope=settings.issuer_scope_claim,
            patient=settings.issuer_patient_claim,
            fhir_user=settings.issuer_fhir_user_claim,
            roles=settings.issuer_roles_claim,
            reach=settings.issuer_reach,
        )
        other = ExternalIssuer(
            settings.issuer,
            remote_keys,
            reach,
            audience=settings.issuer_audience or base,
            jwks_url=settings.issuer_jwks,
            mapped=mapped,
            now=now,
        )
    tokens = Tokens(
        credentials,
        keys,
        reach,
        issuer=base,
        audience=base,
        now=now,
        lifetime=settings.token_seconds,
        other=other,
    )
    grants = Grants(
        credentials,
        tokens,
        now=now,
        backend_seconds=settings.backend_token_seconds,
        refresh_seconds=settings.refresh_days * 86400,
    )
    return Authority(
        settings=settings,
        base=base,
        credentials=credentials,
        passwords=passwords,
        keys=keys,
        reach=reach,
        tokens=tokens,
        clients=Clients(credentials, passwords, remote_keys, token_url=lambda: f"{base}/auth/token", now=now),
        grants=grants,
        authorizations=Authorizations(credentials, grants, reach, issuer=base, audience=base, now=now),
        external=other,
        logins=LoginLimit(credentials, now=now),
        rate=RateLimit(settings.rate_limit),
        token_rate=RateLimit(20),
        records=records,
        recorded=[],
        secret=secret,
        now=now,
    )


def secret_of(settings: Settings) -> bytes:
    if not settings.auth_key:
        return key_file(settings.data_dir)
    try:
        secret = bytes.fromhex(settings.auth_key)
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise FhirError("FHIR_AUTH_KEY must be 64 hexadecimal digits")
    return secret

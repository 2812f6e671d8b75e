"""What a job carries from the kick-off to whichever process does it: what was asked for, and in whose name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import msgspec

from fhir_server.auth.principal import Principal
from fhir_server.auth.scopes import Scope

Level = Literal["system", "patient", "group"]


class Who(msgspec.Struct, frozen=True):
    """A Principal, without its token."""

    subject: str
    client_id: str
    scopes: tuple[str, ...]
    patient: str | None
    fhir_user: str | None
    roles: tuple[str, ...]
    patients: tuple[str, ...] | None
    excluded: tuple[str, ...]
    clearance: str
    everything: bool
    token_id: str
    issuer: str
    grant_id: str = ""

    @classmethod
    def of(cls, principal: Principal) -> Who:
        return cls(
            principal.subject,
            principal.client_id,
            tuple(str(scope) for scope in principal.scopes),
            principal.patient,
            principal.fhir_user,
            tuple(sorted(principal.roles)),
            None if principal.patients is None else tuple(sorted(principal.patients)),
            tuple(sorted(principal.excluded)),
            principal.clearance,
            principal.everything,
            principal.token_id,
            principal.issuer,
            principal.grant_id,
        )

    def principal(self) -> Principal:
        return Principal(
            subject=self.subject,
            client_id=self.client_id,
            scopes=tuple(Scope.parse(scope) for scope in self.scopes),
            patient=self.patient,
            fhir_user=self.fhir_user,
            roles=frozenset(self.roles),
            patients=None if self.patients is None else frozenset(self.patients),
            excluded=frozenset(self.excluded),
            clearance=self.clearance,
            everything=self.everything,
            token_id=self.token_id,
            issuer=self.issuer,
            grant_id=self.grant_id,
        )


class Message(msgspec.Struct, frozen=True):
    """For the error file: something that is not in the export, or was not heeded."""

    severity: str
    code: str
    text: str


class Request(msgspec.Struct, frozen=True):
    """`filters`: by type, the searches of which one must match. `elements`: by type, or "" for every type."""

    who: Who
    base: str
    level: Level
    types: tuple[str, ...]
    filters: dict[str, list[list[tuple[str, str]]]]
    since: int  # ms: changed after this; -1 for everything
    elements: dict[str, list[str]]
    patients: tuple[str, ...] | None  # None: everybody
    only: bool  # nothing that is in the compartment of another patient, too
    lenient: bool
    messages: tuple[Message, ...]

    def encoded(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decoded(cls, raw: bytes) -> Request:
        return msgspec.json.decode(raw, type=cls)

    def elements_of(self, resource_type: str) -> tuple[str, ...]:
        return (*self.elements.get("", ()), *self.elements.get(resource_type, ()))


def owner_of(principal: Principal) -> str:
    """Only this client, for this user (and, with patient/ scopes, launched for this patient), is told of the job."""
    launched = any(scope.context == "patient" for scope in principal.scopes)
    patient = principal.patient if launched else None
    return "\n".join(
        (principal.issuer, principal.client_id, principal.subject, principal.fhir_user or "", patient or "")
    )


def about(url: str, moment: int, principal: Principal) -> dict[str, Any]:
    """What status requests need to know: the kick-off's URL, the transaction time (ms), and the scopes it went by."""
    letters = [(scope, "".join(letter for letter in scope.permissions if letter in "rs")) for scope in principal.scopes]
    scopes = [str(replace(scope, permissions=kept)) for scope, kept in letters if kept]
    return {"url": url, "moment": moment, "scopes": scopes}

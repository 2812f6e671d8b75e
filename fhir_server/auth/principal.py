"""Who asks: the one value every decision of the policy is made from.

https://hl7.org/fhir/smart-app-launch/STU2.2/app-launch.html
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from fhir_server.auth.scopes import Scope

# Roles of users (and, for `administrator`, of clients). What each may see at most is said in policy.py.
ROLES = frozenset({"administrator", "practitioner", "patient", "related-person", "lab"})


@dataclass(frozen=True, slots=True)
class Principal:
    """Made by `http/smart.authenticate` from a verified token; never from anything the client merely says.

    `patients` is whose compartments the *user* may see (None: everyone's), `excluded` whose consent denies it;
    `patient` is the launch context that patient/ scopes mean. Ids are bare: `p1`, not `Patient/p1`.
    """

    subject: str = ""  # user name, or the client id of a backend service; "" is nobody
    client_id: str = ""
    scopes: tuple[Scope, ...] = ()
    patient: str | None = None
    encounter: str | None = None
    fhir_user: str | None = None  # "Practitioner/1"
    roles: frozenset[str] = frozenset()
    patients: frozenset[str] | None = frozenset()
    excluded: frozenset[str] = frozenset()
    clearance: str = "N"  # highest meta.security confidentiality that may be seen: N, R or V
    purpose: str = ""  # break-glass: the stated reason; every access under it is audited as an emergency
    everything: bool = False  # --open and the automation: no scope is asked for
    token_id: str = ""
    grant_id: str = ""  # of the user's consent that the token comes from
    issuer: str = ""  # of a token that is not of this server
    expires: int = 0  # seconds since 1970; 0: never
    # What the policy has already worked out for this value: a token's requests are much alike.
    known: dict[tuple[str, str], Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    @classmethod
    def open(cls) -> Principal:
        """Everybody under `serve --open`."""
        return cls(subject="open", client_id="open", patients=None, clearance="V", everything=True)

    @classmethod
    def automation(cls) -> Principal:
        """The hooks engine writing on the server's own behalf."""
        return cls(subject="automation", client_id="automation", patients=None, clearance="V", everything=True)

    @classmethod
    def nobody(cls) -> Principal:
        """A request without a token: everything is refused with 401."""
        return cls()

    def breaking_glass(self, purpose: str) -> Principal:
        return replace(self, purpose=purpose, clearance="V", excluded=frozenset())

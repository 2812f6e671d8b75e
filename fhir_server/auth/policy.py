"""The one policy: (who, which interaction, which type) becomes yes, no, or a narrower view; asked by everybody.

How to ask, in this order, and for every entry of a bundle as for a request of its own:

1. `policy.may(principal, interaction, resource_type)` before anything is looked at. It raises Unauthorized (nobody) or
   Forbidden (no scope for it), and decides from the token alone: its answer never depends on what is stored, so
   a 403 says nothing about what exists.
2. `restriction = policy.restrict(principal, interaction)(resource_type)`:
   searches put it inside the filter of *every* find (main, chain, `_has`, include, revinclude, count), each find with
   its own type: hand `policy.restrict(principal, "search")` to `search` and it does that;
   a loaded version is shown only when `restriction.allows(stored.patients, stored.entries)`. If not, answer exactly
   as if it had never existed: the same NotFound, headers and body. The same holds for history and vread: each
   version is judged by its own compartments.
3. Writes judge both sides with the restriction of *their* interaction: the version they replace (not allowed: as if it
   did not exist, so an update becomes a create that is refused below, a delete or patch a 404) and the new one
   (not allowed: `policy.refuse_write()`); see `may_write`.

Interaction names: read vread history create update patch delete search history-type history-system conditional-create
conditional-update conditional-patch conditional-delete transaction batch capabilities operation:$name.
An interaction or operation this table does not know needs every permission on every type: fail closed.

Narrower views: `system/` scopes see every patient; `user/` scopes what the user may see (everyone, the care teams'
patients, oneself, one's proxies); `patient/` scopes the launch patient and only while the user may see that one.
Types that are nobody's record (Organization, Practitioner, Questionnaire, …) can be read by all of them, and
written only by those who are not limited to some patients. What has no patient and is not such a type is
invisible to whoever is limited. AuditEvent is for administrators.

https://hl7.org/fhir/smart-app-launch/STU2.2/scopes-and-launch-context.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fhir_server.auth.principal import Principal
from fhir_server.auth.scopes import PERMISSIONS, Scope
from fhir_server.errors import Forbidden, Unauthorized

if TYPE_CHECKING:
    from fhir_server.search.restrict import Restrict, Restriction

__all__ = ["Policy", "Principal"]

# What an interaction needs on its type: any one of the letters of each string, all strings.
NEEDS: dict[str, tuple[str, ...]] = {
    "read": ("r",),
    "vread": ("r",),
    "history": ("r",),
    "search": ("s",),
    "history-type": ("s",),
    "history-system": ("s",),
    "create": ("c",),
    "update": ("u",),
    "patch": ("u",),
    "delete": ("d",),
    "conditional-create": ("c",),
    "conditional-update": ("u", "c"),
    "conditional-patch": ("u",),
    "conditional-delete": ("d",),
}
# Interactions that only carry others, each of which is asked for itself.
CARRIERS = frozenset({"transaction", "batch", "capabilities"})


class Policy:
    """Stateless: everything it needs to know is in the Principal. One instance in `Server.policy`."""

    def may(self, principal: Principal, interaction: str, resource_type: str | None = None) -> None:
        """Returns if the interaction may go on (narrowed by `restrict`); raises Unauthorized or Forbidden."""
        if principal.everything:
            return
        if not principal.subject:
            raise Unauthorized("An access token is needed")
        if interaction in CARRIERS:
            return
        for letters in NEEDS.get(interaction, tuple(PERMISSIONS)):
            if not any(self._scopes(principal, letter, resource_type or "*") for letter in letters):
                raise Forbidden(f"The token allows no {interaction} of {resource_type or 'all types'}")

    def restrict(self, principal: Principal, interaction: str = "search") -> Restrict:
        """The view by resource type, as `search` takes it."""
        from fhir_server.search.restrict import EVERYTHING, NOTHING

        if principal.everything:
            return lambda resource_type: EVERYTHING
        return lambda resource_type: NOTHING

    def may_write(self, restriction: Restriction, patients: tuple[str, ...], entries: object) -> bool:
        """Whether the new version lies inside what the principal may write, in every compartment it enters."""
        return restriction.allows(patients, entries)  # type: ignore[arg-type]

    def refuse_write(self, resource_type: str) -> Forbidden:
        return Forbidden(
            f"The token does not allow this {resource_type}: it belongs to a record outside the token's reach"
        )

    def _scopes(self, principal: Principal, letter: str, resource_type: str) -> list[Scope]:
        return [scope for scope in principal.scopes if scope.permits(letter, resource_type)]

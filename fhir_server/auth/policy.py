"""The one policy: (who, which interaction, which type) becomes yes, no, or a narrower view; asked by everybody.

How to ask, in this order, and for every entry of a bundle as for a request of its own:

1. `policy.may(principal, interaction, resource_type)` before anything is looked at. It raises Unauthorized (nobody) or
   Forbidden (no scope for it), and decides from the token alone: its answer never depends on what is stored, so
   a 403 says nothing about what exists.
2. Searches: `policy.restrict(principal)` is the `Restrict` that `search` puts inside the filter of *every* find (main,
   chain, `_has`, include, revinclude, count), each find with its own type; a history takes from it whose versions are looked
   at.
3. A loaded version is shown only if `policy.sees(principal, interaction, stored)`. If not, answer exactly as if it had
   never existed: the same NotFound, headers and body. History and vread judge each version by its own compartments.
4. Writes judge both sides: the version they replace by `policy.sees(principal, "update"…, previous)` (if not: to this
   caller nothing is there; a patch or delete is the 404 of an unknown id, and an update or create is refused with
   `policy.refuse_write`, which is also what an unknown id outside the reach gets), and the new one by
   `policy.check_write(principal, interaction, stored, previous)` with `patients` and `entries` filled.

Interaction names: read vread history create update patch delete search history-type history-system conditional-create
conditional-update conditional-patch conditional-delete transaction batch operation:$name, and `request` for any that
has a body, before it is read. The CapabilityStatement is open to everybody and is not asked for.
An interaction or operation the tables do not know needs every permission on every type of every patient: fail closed.

Narrower views: `system/` scopes see every patient; `user/` scopes what the user may see (everyone, the care teams'
patients, oneself, one's proxies); `patient/` scopes the launch patient and only while the user may see that one.
Types that are nobody's record (SHARED) can be read by all of them, and written only by those who are not limited to
some patients. What has no patient and is not such a type is invisible to whoever is limited. AuditEvent is for
administrators, to be read and searched.
Labels R and V (`meta.security`) need the clearance; a patient's Consent can take that patient out.

Differs from the R4 patient compartment: what is about a patient, but left out of it, is in the record, too
(search/records.py); a Group, or a Bundle that is stored, is not shown to whoever is limited, because it names other patients.

https://hl7.org/fhir/smart-app-launch/STU2.2/scopes-and-launch-context.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from fhir_server.auth.consents import names
from fhir_server.auth.labels import CONFIDENTIALITY, hidden, highest, label_of
from fhir_server.auth.principal import Principal
from fhir_server.auth.reach import DECIDING
from fhir_server.auth.scopes import PERMISSIONS, Scope
from fhir_server.errors import FhirError, Forbidden, Unauthorized
from fhir_server.model.resource import load
from fhir_server.search.index import index
from fhir_server.search.match import alone
from fhir_server.search.records import CARRIERS
from fhir_server.search.registry import Registry, standard
from fhir_server.search.restrict import EVERYTHING, NOTHING, Alternative, Restrict, Restriction
from fhir_server.store.protocol import Stored

__all__ = ["Policy", "Principal"]

# What an interaction needs on its type: all of these permissions.
NEEDS: Mapping[str, str] = {
    "read": "r",
    "vread": "r",
    "history": "r",
    "search": "s",
    "history-type": "s",
    "history-system": "s",
    "create": "c",
    "update": "u",
    "patch": "u",
    "delete": "d",
    "conditional-create": "c",
    "conditional-update": "cu",
    "conditional-patch": "u",
    "conditional-delete": "d",
    "operation:$everything": "rs",
    "operation:$export": "rs",
    "operation:$explain": "rs",
    "operation:$lastn": "s",
    "operation:$stats": "s",
    "operation:$assess-risk": "rs",
    "operation:$meta": "r",
    "operation:$meta-add": "ru",
    "operation:$meta-delete": "ru",
    "operation:$apply": "r",
}
# Carry others, each of which is asked for itself, or show nothing of a record.
NEED_A_TOKEN = frozenset({"request", "transaction", "batch", "operation:$validate"})

# Who may take many records away at once, besides services; each type is asked for as well, and narrowed as a search is.
EXPORTERS = frozenset({"administrator", "practitioner"})

# Nobody's record: actors of the health system and definitions. Without patient content by their own definition in R4.
# fmt: off
SHARED = frozenset({
    "ActivityDefinition", "CapabilityStatement", "ChargeItemDefinition", "CodeSystem", "CompartmentDefinition",
    "ConceptMap", "Endpoint", "EventDefinition", "ExampleScenario", "GraphDefinition", "HealthcareService",
    "ImplementationGuide", "InsurancePlan", "Library", "Location", "Measure", "Medication", "MedicationKnowledge",
    "MessageDefinition", "NamingSystem", "OperationDefinition", "Organization", "OrganizationAffiliation",
    "PlanDefinition", "Practitioner", "PractitionerRole", "Questionnaire", "SearchParameter", "Slot",
    "StructureDefinition", "StructureMap", "Substance", "TerminologyCapabilities", "ValueSet",
})
# fmt: on
# They name, or carry, several patients.
HIDDEN_FROM_LIMITED = CARRIERS | {"Group"}


class Policy:
    """Stateless: what it needs to know is in the Principal. One instance in `Server.policy`."""

    def __init__(self, registry: Registry | None = None) -> None:
        self._registry = registry or standard()

    def may(self, principal: Principal, interaction: str, resource_type: str | None = None) -> None:
        """Returns if the interaction may go on (within `restrict` and `sees`); raises Unauthorized or Forbidden."""
        if principal.everything:
            return
        if not principal.subject:
            refused = Unauthorized("An access token is needed")
            refused.headers["WWW-Authenticate"] = "Bearer"
            raise refused
        if interaction in NEED_A_TOKEN:
            return
        if principal.purpose and resource_type in DECIDING and not set(NEEDS.get(interaction, "c")).isdisjoint("cud"):
            raise Forbidden("The glass is broken for somebody in an emergency, not to change who may see whom")
        if interaction == "operation:$export":
            _check_exporter(principal)
            if resource_type is None:
                return  # of the types that it may
        asked = (interaction, resource_type or "")
        if asked in principal.known:
            return
        needed = NEEDS.get(interaction)
        kind = (resource_type or "*") if needed else "*"
        for permission in needed or PERMISSIONS:
            if not any(scope.permits(permission, kind) for scope in principal.scopes):
                raise Forbidden(f"The token's scopes do not allow {_words(interaction, resource_type)}")
            if kind != "*" and not self._alternatives(principal, permission, kind):
                raise Forbidden(f"This token's user or context does not allow {_words(interaction, resource_type)}")
            # What nobody described narrows nothing either: it is for those who are not limited.
            if not needed and not self._is_wide(principal, permission, "*"):
                raise Forbidden(f"{_words(interaction, resource_type)} is for those who may see every patient")
        principal.known[asked] = True

    def restrict(self, principal: Principal, interaction: str = "search") -> Restrict:
        """The view by resource type, as `search` takes it."""
        if principal.everything:
            return _everything
        hidden = hidden_labels(principal)
        # A condition finds by searching: without `s` it finds nothing, or its answer would be a search in disguise.
        permission = "s" if interaction.startswith("conditional") else NEEDS.get(interaction, "s")[-1]

        def restriction(resource_type: str) -> Restriction:
            alternatives = self._alternatives(principal, permission, resource_type)
            if not alternatives:
                return NOTHING
            if not hidden:
                return Restriction(tuple(alternatives))
            return Restriction(tuple(replace(one, parameters=(*one.parameters, *hidden)) for one in alternatives))

        return restriction

    def sees(self, principal: Principal, interaction: str, stored: Stored) -> bool:
        """Whether this version exists as far as this principal and interaction are concerned."""
        if principal.everything:
            return True
        if _is_hidden(principal, stored):
            return False
        permission = NEEDS.get(interaction, "r")[-1]
        for one in self._alternatives(principal, permission, stored.resource_type):
            if one.patients is not None and one.patients.isdisjoint(stored.patients):
                continue
            if one.excluded and not one.excluded.isdisjoint(stored.patients):
                continue
            if not one.parameters or self._match(one, stored):
                return True
        return False

    def check_write(
        self, principal: Principal, interaction: str, stored: Stored, previous: Stored | None = None
    ) -> None:
        """Raises Forbidden unless the new version lies within what may be written, in every compartment it enters.

        So must the one that it replaces, in every compartment that it leaves: what stands in another's record as well
        is seen, and is not to be taken out of it. What nothing live precedes is a create, however it is asked for.
        """
        if principal.everything:
            return
        live = previous if previous is not None and not previous.deleted else None
        asked: list[tuple[str, Stored]] = []
        if not stored.deleted:
            asked += [("u", stored)] if not interaction.endswith("create") else []
            asked += [("c", stored)] if live is None else []
        if live is not None:
            asked.append(("d" if stored.deleted else "u", live))
        within = all(self._within(principal, permission, version) for permission, version in asked)
        if not within or _widens(principal, stored, live):
            raise self.refuse_write(stored.resource_type)

    def _within(self, principal: Principal, permission: str, stored: Stored) -> bool:
        """Whether a version lies within what this permission reaches with all of its compartments."""
        if _is_hidden(principal, stored):
            return False
        patients = frozenset(stored.patients)
        for one in self._alternatives(principal, permission, stored.resource_type):
            if one.patients is not None and (not patients or not patients <= one.patients):
                continue
            if one.excluded and patients & one.excluded:
                continue
            if not one.parameters or self._match(one, stored):
                return True
        return False

    def touches(self, principal: Principal, interaction: str, resource_type: str, patients: Sequence[str]) -> bool:
        """Whether who writes this reaches what is in these patients' records: only then does it lead into them.

        For anybody else it is as if what is referred to were not there: nothing to be learnt, nothing put into a
        record by guessing an id.
        """
        if principal.everything:
            return True
        permission = "c" if interaction.endswith("create") else "u"
        return any(
            one.excluded.isdisjoint(patients) and (one.patients is None or not one.patients.isdisjoint(patients))
            for one in self._alternatives(principal, permission, resource_type)
        )

    def may_choose_id(self, principal: Principal, resource_type: str) -> bool:
        """Whether an update may create under an id of the client's choice.

        For one who is limited to some patients it may not: whether it works would tell whether the id is taken by a
        resource of somebody else. Refuse with `refuse_write` whenever nothing is visible, there or not. One who sees
        everybody may, though some object and some resources are labelled: otherwise one patient's objection would end
        every service's PUT. What is learnt by it is that an id, guessed as a whole, is taken.
        """
        return principal.everything or self._is_wide(principal, "u", resource_type)

    def _is_wide(self, principal: Principal, permission: str, resource_type: str) -> bool:
        """Whether some scope allows it for everybody's record (of all types: `*`); objections and labels aside."""
        return any(
            one.patients is None and not one.parameters
            for one in self._alternatives(principal, permission, resource_type)
        )

    def refuse_write(self, resource_type: str) -> Forbidden:
        """The same words whatever is or is not there."""
        return Forbidden(
            f"The token does not allow this {resource_type}: it is outside the token's reach "
            "(its scopes, its patients, what consents allow, the clearance for its label)"
        )

    def _match(self, one: Alternative, stored: Stored) -> bool:
        """Whether a scope's narrowing lets the version through."""
        if stored.deleted or not stored.raw:  # of a deletion only labels are kept
            return False
        entries = stored.entries or index(self._registry, load(stored.raw)).entries
        return one.allows(stored.patients, entries)

    def _alternatives(self, principal: Principal, permission: str, resource_type: str) -> Sequence[Alternative]:
        """The ways in that the scopes open, labels apart. Empty: none."""
        asked = (permission, resource_type)
        known: Sequence[Alternative] | None = principal.known.get(asked)
        if known is None:
            known = principal.known[asked] = tuple(self._ways_in(principal, permission, resource_type))
        return known

    def _ways_in(self, principal: Principal, permission: str, resource_type: str) -> list[Alternative]:
        if resource_type == "AuditEvent" and not _may_audit(principal, permission):
            return []
        if resource_type in DECIDING and "lab" in principal.roles and "administrator" not in principal.roles:
            return []
        found: list[Alternative] = []
        for scope in principal.scopes:
            if not scope.permits(permission, resource_type) or not _is_understood(scope, resource_type):
                continue
            for patients, excluded in _reach(principal, scope, permission):
                if patients is None:
                    found.append(Alternative(None, scope.parameters, resource_type, excluded))
                elif resource_type in SHARED:
                    if permission in "rs":
                        found.append(Alternative(None, scope.parameters, resource_type))
                elif resource_type not in HIDDEN_FROM_LIMITED:
                    found.append(Alternative(patients, scope.parameters, resource_type, excluded))
        wide = [one for one in found if one.patients is None and not one.parameters]
        return wide[:1] or list(dict.fromkeys(found))


def _check_exporter(principal: Principal) -> None:
    if principal.purpose:
        raise Forbidden("The glass is broken for somebody in an emergency, not for an export")
    service = any(scope.context == "system" for scope in principal.scopes)
    if not service and principal.roles.isdisjoint(EXPORTERS):
        raise Forbidden("Exports are for services (system/ scopes), practitioners and administrators")


def _is_understood(scope: Scope, resource_type: str) -> bool:
    """A narrowing that means nothing for the type, or that the resource alone does not decide (a value set), lets nothing
    through.
    """
    try:
        return not scope.parameters or alone(Alternative(None, scope.parameters, resource_type).condition)
    except FhirError:
        return False


def _may_audit(principal: Principal, permission: str) -> bool:
    """Only the server writes it down, what is there stays as it is, and administrators only search it."""
    return permission in "rs" and "administrator" in principal.roles


def _reach(
    principal: Principal, scope: Scope, permission: str
) -> Iterator[tuple[frozenset[str] | None, frozenset[str]]]:
    """Whose compartments this scope opens for this principal, and whose consent closes them; nothing: no way in.

    Nobody's compartment (an empty care team, a patient who is out of reach) is not nothing: that is an empty answer and
    no refusal, because a refusal must not depend on what is stored.
    """
    own = principal.patients
    if scope.context == "system":
        yield None, principal.excluded
        return
    administrator = "administrator" in principal.roles
    if "lab" in principal.roles and not administrator and permission != "c":
        return
    if scope.context == "patient":
        if principal.patient:
            within = own is None or principal.patient in own
            yield frozenset({principal.patient} if within else ()), principal.excluded
    elif principal.fhir_user or administrator:
        yield own, principal.excluded


def hidden_labels(principal: Principal) -> tuple[tuple[str, str], ...]:
    """Search pairs that keep out what the principal has no clearance for."""
    labels = hidden(principal.clearance)
    if not labels:
        return ()
    return (("_security:not", ",".join(f"{CONFIDENTIALITY}|{label}" for label in labels)),)


def _is_hidden(principal: Principal, stored: Stored) -> bool:
    labels = hidden(principal.clearance)
    # Most resources carry no label at all, and parsing costs more than the rest of the decision.
    if not labels or b'"security"' not in stored.raw:
        return False
    return label_of(load(stored.raw)) in labels


def _widens(principal: Principal, stored: Stored, live: Stored | None) -> bool:
    """Whether the write adds to what this principal may see: by a consent to her own proxy, or by taking a label away that
    only broken glass lets her see through.
    """
    if stored.resource_type == "Consent" and "related-person" in principal.roles:
        versions = [load(one.raw) for one in (stored, live) if one is not None and not one.deleted]
        return any(names(one.get("provision"), principal.fhir_user or "") for one in versions)
    if not principal.purpose or live is None or stored.deleted or b'"security"' not in live.raw:
        return False
    labels = [label_of(load(one.raw)) for one in (live, stored)]
    return highest(labels) != labels[1]


def _everything(resource_type: str) -> Restriction:
    return EVERYTHING


def _words(interaction: str, resource_type: str | None) -> str:
    return f"{interaction} of {resource_type}" if resource_type else interaction

"""Whose records a user may see: everybody's, those of one's care teams, one's own, those one stands in for; minus who objects.

Read from the FHIR resources themselves (CareTeam, RelatedPerson, Consent) and remembered for a moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fhir_server.auth.consents import Denials, patient_of, verdict
from fhir_server.auth.principal import Principal
from fhir_server.search.types.reference import local
from fhir_server.store.credentials import Client, User

REMEMBERED_SECONDS = 2.0
# What it is decided from who may see whom. Whoever breaks the glass writes none of it, and would go on seeing otherwise; nor
# does a laboratory.
DECIDING = frozenset({"CareTeam", "Consent", "Group", "PractitionerRole", "RelatedPerson"})
NOBODY: frozenset[str] = frozenset()


class Records(Protocol):
    """A search: every match (or `limit` of them), as mappings. Over everything, for deciding; or as `seen_by` somebody."""

    async def find(
        self, resource_type: str, *parameters: tuple[str, str], limit: int = 0, seen_by: Principal | None = None
    ) -> Sequence[Mapping[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class View:
    """`patients` None: everybody's."""

    patients: frozenset[str] | None
    excluded: frozenset[str] = frozenset()


class Reach:
    """Without `records` and `denials` (tests of tokens alone) nobody has a care team and nobody objects."""

    def __init__(
        self,
        records: Records | None = None,
        denials: Denials | None = None,
        *,
        base: str = "",
        now: Callable[[], float],
    ) -> None:
        self._records = records
        self._denials = denials
        self._base = base
        self._now = now
        self._known: dict[str, tuple[float, User, View]] = {}

    async def of(self, user: User) -> View:
        known = self._known.get(user.name)
        if known is not None and known[1] == user and 0 <= self._now() - known[0] < REMEMBERED_SECONDS:
            return known[2]
        view = await self._look(user)
        if len(self._known) > 10_000:
            self._known.clear()
        self._known[user.name] = (self._now(), user, view)
        return view

    async def of_client(self, client: Client) -> View:
        """A backend service: everybody but who objects to everybody."""
        return View(None, await self.objecting_to_all() if "administrator" not in client.roles else NOBODY)

    async def objecting_to_all(self) -> frozenset[str]:
        """Who keeps out even those whom no Consent could name."""
        return await self._objecting("")

    def forget(self) -> None:
        """One of DECIDING was committed by this process."""
        self._known.clear()
        if self._denials is not None:
            self._denials.forget()

    async def _look(self, user: User) -> View:
        kind, _, id = user.fhir_user.partition("/")
        match user.role:
            case "administrator" | "lab":
                return View(None)  # a lab only creates: an objection to being seen does not turn results away
            case "patient":
                return View(frozenset({id}) if kind == "Patient" and id else NOBODY)
            case "related-person":
                return View(await self._proxied(id) if kind == "RelatedPerson" and id else NOBODY)
            case "practitioner" if user.reach == "all":
                return View(None, await self._objecting(user.fhir_user))
            case "practitioner" if user.reach == "care-team" and id:
                # Excluded as well: what is in the record of one who objects is not shown as part of another's.
                objecting = await self._objecting(user.fhir_user)
                return View(await self._care_team(user.fhir_user) - objecting, objecting)
        return View(NOBODY)

    async def _find(self, resource_type: str, *parameters: tuple[str, str]) -> Sequence[Mapping[str, Any]]:
        return await self._records.find(resource_type, *parameters) if self._records is not None else ()

    async def _objecting(self, reference: str) -> frozenset[str]:
        if self._denials is None:
            return NOBODY
        return await self._denials.against(reference, lambda: self._names_of(reference))

    async def _names_of(self, reference: str) -> frozenset[str]:
        """What else a Consent may mean a practitioner by: her roles, their organizations, her care teams and groups."""
        if not reference.startswith("Practitioner/"):
            return NOBODY
        roles = await self._find("PractitionerRole", ("practitioner", reference))
        found = {f"PractitionerRole/{role['id']}" for role in roles}
        for role in roles:
            organization = (role.get("organization") or {}).get("reference")
            if isinstance(organization, str):
                found.add(local(organization, self._base)[0])
        for kind, code in (("CareTeam", "participant"), ("Group", "member")):
            found |= {f"{kind}/{one['id']}" for one in await self._find(kind, (code, reference))}
        return frozenset(found)

    async def _care_team(self, reference: str) -> frozenset[str]:
        """The patients of active care teams that name this practitioner."""
        teams = await self._find("CareTeam", ("participant", reference), ("status", "active"))
        return frozenset({id for team in teams if (id := await self._patient(team, "subject"))})

    async def _patient(self, resource: Mapping[str, Any], element: str) -> str:
        """The patient whom the index, too, takes it to be about, "" for none.

        A URL is one of this server or not by the Host that the writer called it by: the policy judged what was written by the
        index, and so it is nobody else's that is opened by it.
        """
        id = patient_of(resource.get(element), self._base)
        if not id or resource[element]["reference"].startswith("Patient/"):
            return id
        indexed = await self._find(
            str(resource["resourceType"]), ("_id", str(resource["id"])), (element, f"Patient/{id}")
        )
        return id if indexed else ""

    async def _proxied(self, id: str) -> frozenset[str]:
        """The patient of this active related person, if a Consent in force permits this very person."""
        found: set[str] = set()
        for person in await self._find("RelatedPerson", ("_id", id)):
            patient = await self._patient(person, "patient")
            if not patient or person.get("active") is False:
                continue
            consents = await self._find("Consent", ("patient", f"Patient/{patient}"), ("status", "active"))
            verdicts = {
                verdict(consent.get("provision"), f"RelatedPerson/{id}", self._now(), base=self._base, named=True)
                for consent in consents
            }
            if "permit" in verdicts and "deny" not in verdicts:
                found.add(patient)
        return frozenset(found)

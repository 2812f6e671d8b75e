"""What a person may choose for an app: a patient, a visit. Found as a search in that person's own name would find it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fhir_server.auth.authority import Authority
from fhir_server.auth.principal import Principal
from fhir_server.auth.scopes import Scope
from fhir_server.store.credentials import User

SHOWN = 20
LOOKED_AT = 500  # visits of a patient, of which the latest are shown
SEES = (Scope.parse("user/*.rs"),)

Described = dict[str, str]


async def patients(authority: Authority, user: User, query: str = "", *, id: str = "") -> list[Described]:
    """Whose name contains `query`, or who has this id."""
    wanted = [("_id", id)] if id else [("active:not", "false"), *([("name:contains", query)] if query else [])]
    found = await _found(authority, user, "Patient", *wanted, limit=SHOWN * 2)
    return [_patient(one) for one in found if await authority.authorizations.may_choose(user, str(one["id"]))][:SHOWN]


async def patient_name(authority: Authority, user: User, id: str) -> str:
    found = await patients(authority, user, id=id)
    return found[0]["name"] if found else id


async def visits(authority: Authority, user: User, patient: str) -> list[Described]:
    """The patient's latest Encounters, the newest first."""
    found = await _found(authority, user, "Encounter", ("patient", patient), limit=LOOKED_AT)
    return sorted(map(_visit, found), key=lambda one: one["start"], reverse=True)[:SHOWN]


async def _found(
    authority: Authority, user: User, resource_type: str, *parameters: tuple[str, str], limit: int
) -> list[Mapping[str, Any]]:
    if authority.records is None:
        return []
    person = await authority.tokens.for_user(Principal(subject=user.name, scopes=SEES), user)
    return list(await authority.records.find(resource_type, *parameters, limit=limit, seen_by=person))


def _patient(resource: Mapping[str, Any]) -> Described:
    name: Mapping[str, Any] = next(iter(resource.get("name") or ()), {})
    text = name.get("text") or " ".join([*(name.get("given") or ()), name.get("family") or ""]).strip()
    return {
        "id": str(resource["id"]),
        "name": text or str(resource["id"]),
        "born": str(resource.get("birthDate", "")),
        "gender": str(resource.get("gender", "")),
    }


def _visit(resource: Mapping[str, Any]) -> Described:
    kind: Mapping[str, Any] = next(iter(resource.get("type") or ()), {})
    coding: Mapping[str, Any] = next(iter(kind.get("coding") or ()), {})
    start = str((resource.get("period") or {}).get("start", ""))
    where: Mapping[str, Any] = resource.get("class") or {}
    return {
        "id": str(resource["id"]),
        "start": start,
        "when": start[:16].replace("T", " "),
        "class": str(where.get("code", "")),
        "kind": str(kind.get("text") or coding.get("display") or ""),
    }

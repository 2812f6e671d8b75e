"""What a person may choose for an app: a patient, a visit. Found as a search in that person's own name would find it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fhir_server.auth.authority import Authority
from fhir_server.auth.principal import Principal
from fhir_server.auth.scopes import Scope
from fhir_server.store.credentials import User

SHOWN = 20
LOOKED_AT = 500  # visits of a patient, of which the latest are shown
# Which of a patient's names is shown: the first of the best use, and an earlier one only where there is no other.
USES = {"official": 0, "usual": 1, "old": 3, "maiden": 3}
SEES = (Scope.parse("user/*.rs"),)

Described = dict[str, str]


async def patients(authority: Authority, user: User, query: str = "", *, id: str = "") -> list[Described]:
    """Whose name contains every word of `query`, or who has this id; SHOWN, and one more if there are more."""
    wanted = [("_id", id)] if id else [("active:not", "false"), *(("name:contains", word) for word in _words(query))]
    found = await _found(authority, user, "Patient", *wanted, limit=SHOWN * 2)
    seen = [one for one in found if await authority.authorizations.may_choose(user, str(one["id"]))]
    return [_patient(one) for one in seen[: SHOWN + 1]]


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


def _words(query: str) -> list[str]:
    """A person writes "Lee, Ann" or "Ann Lee", and family and given names are two elements; escaped for a search."""
    words = [word for word in re.split(r"[\s,，、]+", query) if any(map(str.isalnum, word))]
    return [re.sub(r"([\\$|])", r"\\\1", word) for word in words][:8]


def _patient(resource: Mapping[str, Any]) -> Described:
    names: list[Mapping[str, Any]] = list(resource.get("name") or ())
    name = min(names, key=lambda one: USES.get(str(one.get("use", "")), 2), default={})
    family, given = str(name.get("family") or ""), [str(part) for part in name.get("given") or () if part]
    chinese = re.match(r"[\u3400-\u9fff]", family)
    text = name.get("text") or ("".join([family, *given]) if chinese else " ".join([*given, family]).strip())
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

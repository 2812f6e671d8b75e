"""One access, as the journal keeps it, and as the AuditEvent it becomes.

Shaped after IHE's Basic Audit Log Patterns: who, what, when, where, outcome, query. https://profiles.ihe.net/ITI/BALP/
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import msgspec

from fhir_server.model.dates import instant

_AUDIT = "http://terminology.hl7.org/CodeSystem/audit-event-type"
_REST = "http://hl7.org/fhir/restful-interaction"
_DCM = "http://dicom.nema.org/resources/ontology/DCM"
_ENTITY = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
_ROLE = "http://terminology.hl7.org/CodeSystem/object-role"
_REASON = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
_PARTICIPATION = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
_SOURCE = "http://terminology.hl7.org/CodeSystem/security-source-type"
_BALP = "https://profiles.ihe.net/ITI/BALP/CodeSystem/BasicAuditEntityType"

SOURCE = {"coding": [{"system": _DCM, "code": "110153", "display": "Source Role ID"}]}
DESTINATION = {"coding": [{"system": _DCM, "code": "110152", "display": "Destination Role ID"}]}
ACTIONS = {"c": "C", "r": "R", "v": "R", "h": "R", "u": "U", "p": "U", "d": "D"}
# Characters: what a URL can hold. A form may have a thousand times that, and no document holds it.
LONGEST_QUERY = 65_536
MOST_PATIENTS = 1_000  # of one event; a Group may have a hundred thousand members, and names them itself
LOGINS = {"login": ("110122", "Login"), "logout": ("110123", "Logout")}


class Access(msgspec.Struct, array_like=True, frozen=True):
    """What is written before the answer goes out. Append fields only at the end: old journals are still read."""

    when: int  # ms since 1970
    interaction: str  # restful-interaction code, `operation:$name`, login or logout
    status: int  # HTTP
    subject: str = ""
    client: str = ""
    user: str = ""  # FHIR reference
    address: str = ""
    request_id: str = ""
    resource_type: str = ""
    id: str = ""
    version: int = 0
    patients: tuple[str, ...] = ()
    query: str = ""
    purpose: str = ""  # break-glass
    token_id: str = ""


def bounded(query: str) -> str:
    if len(query) <= LONGEST_QUERY:
        return query
    note = f"… ({len(query)} characters)"
    return query[: LONGEST_QUERY - len(note)] + note


def storable(access: Access) -> Access:
    """An event that MongoDB does not take would keep all that come after it waiting, for ever."""
    if len(access.query) <= LONGEST_QUERY and len(access.patients) <= MOST_PATIENTS:
        return access
    return msgspec.structs.replace(access, query=bounded(access.query), patients=access.patients[:MOST_PATIENTS])


encode = msgspec.json.Encoder().encode


def line(access: Access) -> bytes:
    """As a journal keeps it."""
    return encode(access) + b"\n"


def read_line(
    when: int, status: int, who: bytes, request_id: str, resource_type: str, id: str, version: int,
    patients: tuple[str, ...], means: bytes,
) -> bytes:  # fmt: skip
    """`line` of a read by id, which most accesses are, from what is told of its token by `framed`: a third of the work."""
    return b'[%d,"read",%d,%b,%b,"%b","%b",%d,%b,"",%b]\n' % (
        when, status, who, encode(request_id), resource_type.encode(), id.encode(), version, encode(patients), means,
    )  # fmt: skip


def framed(subject: str, client: str, user: str, address: str, purpose: str, token_id: str) -> tuple[bytes, bytes]:
    """What all accesses by one token from one address have in common: `who` and `means` for `read_line`."""
    return encode((subject, client, user, address))[1:-1], encode((purpose, token_id))[1:-1]


def audit_event(access: Access, id: str, updated: int, base: str = "") -> dict[str, Any]:
    """The resource. `base` is the server's URL, `recorded` when it happened, `meta.lastUpdated` (ms) when it was taken
    over from the journal.
    """
    kind, _, name = access.interaction.partition(":")
    login = LOGINS.get(kind)
    event: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "id": id,
        "meta": {"versionId": "1", "lastUpdated": instant(updated)},
        "type": {"system": _DCM, "code": "110114"} if login else {"system": _AUDIT, "code": "rest"},
        "subtype": [
            {"system": _DCM, "code": login[0], "display": login[1]} if login else {"system": _REST, "code": kind}
        ],
        "action": ACTIONS.get(kind[:1], "E"),
        "recorded": instant(datetime.fromtimestamp(access.when / 1000, UTC)),
        "outcome": "0" if access.status < 400 else "4" if access.status < 500 else "8",
    }
    if name:
        event["subtype"].append({"system": _REST, "code": "operation", "display": name})
    if access.status >= 400:
        event["outcomeDesc"] = f"HTTP {access.status}"
    if access.purpose:
        event["purposeOfEvent"] = [{"coding": [{"system": _REASON, "code": "BTG"}], "text": access.purpose}]
    event["agent"] = _agents(access, base)
    event["source"] = {"observer": {"display": "fhir-server"}, "type": [{"system": _SOURCE, "code": "4"}]}
    if entities := _entities(access):
        event["entity"] = entities
    return event


def _agents(access: Access, base: str) -> list[dict[str, Any]]:
    """BALP has what is read flow from the server to the client, and all else, queries included, the other way."""
    ours, theirs = (SOURCE, DESTINATION) if access.interaction in ("read", "vread") else (DESTINATION, SOURCE)
    network = {"network": {"address": access.address, "type": "2"}} if access.address else {}
    policy = {"policy": [f"urn:jti:{access.token_id}"]} if access.token_id else {}
    agents: list[dict[str, Any]] = []
    if access.user or (access.subject and access.subject != access.client):
        who: dict[str, Any] = {"reference": access.user} if access.user else {}
        if access.subject:
            who["identifier"] = {"value": access.subject}
        kind = {"coding": [{"system": _PARTICIPATION, "code": "IRCP"}]}
        agents.append({"type": kind, "who": who, "requestor": True, **policy})
    if access.client or not agents:
        who = {"identifier": {"value": access.client}} if access.client else {"display": "nobody"}
        agents.append({"type": theirs, "who": who, "requestor": not agents, **network})
    elif network:
        agents[0] |= network
    here = {"network": {"address": base, "type": "5"}} if base else {}
    agents.append({"type": ours, "who": {"display": "fhir-server"}, "requestor": False, **here})
    return agents


def _entities(access: Access) -> list[dict[str, Any]]:
    entities: list[dict[str, Any]] = []
    if access.resource_type and access.id:
        version = f"/_history/{access.version}" if access.version else ""
        what = {"reference": f"{access.resource_type}/{access.id}{version}"}
        entities.append({"what": what, **coded("object")})
    for patient in access.patients:
        entities.append({"what": {"reference": f"Patient/{patient}"}, **coded("patient")})
    if access.query:
        query = base64.b64encode(access.query.encode()).decode()
        entities.append({**coded("query"), "query": query})
    if access.request_id:
        entities.append({"what": {"identifier": {"value": access.request_id}}, **coded("request")})
    return entities


def coded(kind: str) -> dict[str, Any]:
    """Type and role of an entity that is an object, a patient, a query or a request's id."""
    match kind:
        case "object":
            return {"type": _coding(_ENTITY, "2"), "role": _coding(_ROLE, "4")}
        case "patient":
            return {"type": _coding(_ENTITY, "1"), "role": _coding(_ROLE, "1")}
        case "query":
            return {"type": _coding(_ENTITY, "2"), "role": _coding(_ROLE, "24")}
        case _:
            return {"type": _coding(_BALP, "XrequestId")}


def _coding(system: str, code: str) -> dict[str, str]:
    return {"system": system, "code": code}

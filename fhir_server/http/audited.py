"""What an answered request looks like to the audit: one access, and one more for each entry of a bundle."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, MutableMapping
from typing import Any
from urllib.parse import urlencode

import msgspec

from fhir_server.auth.audit_event import MOST_PATIENTS, Access, bounded, framed, line, read_line
from fhir_server.auth.principal import Principal
from fhir_server.errors import BadRequest
from fhir_server.http.routes import shape
from fhir_server.interactions.call import Answer, Call, split_url
from fhir_server.interactions.entry import request_of
from fhir_server.model.definitions import RESOURCE_TYPES

# Codes of http://hl7.org/fhir/restful-interaction by method and shape of the URL; what is not here is an attempt.
INTERACTIONS: dict[tuple[str, str], str] = {
    ("GET", "{}/{}"): "read",
    ("PUT", "{}/{}"): "update",
    ("PATCH", "{}/{}"): "patch",
    ("DELETE", "{}/{}"): "delete",
    ("GET", "{}/{}/_history"): "history-instance",
    ("GET", "{}/{}/_history/{}"): "vread",
    ("POST", "{}"): "create",
    ("GET", "{}"): "search-type",
    ("POST", "{}/_search"): "search-type",
    ("PUT", "{}"): "update",
    ("PATCH", "{}"): "patch",
    ("DELETE", "{}"): "delete",
    ("GET", "{}/_history"): "history-type",
    ("GET", "{}/{}/{}"): "search-type",
    ("GET", "{}/{}/*"): "search-type",
    ("POST", "{}/{}/{}/_search"): "search-type",
    ("POST", "{}/{}/*/_search"): "search-type",
    ("GET", ""): "search-system",
    ("POST", "_search"): "search-system",
    ("GET", "_history"): "history-system",
    ("POST", ""): "batch",
}
NOT_UNDERSTOOD = Call("", ())  # a request whose URL cannot be read; told by its bytes
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
# Parameters of a search whose values are ids of patients.
_PATIENT = frozenset({"patient", "subject", "patient:Patient", "subject:Patient"})


def accesses(
    scope: MutableMapping[str, Any], call: Call, answer: Answer, principal: Principal, request_id: str, base: str = ""
) -> list[Access]:
    """Nothing for what is open to everybody (the CapabilityStatement)."""
    if call.path[:1] == ("metadata",):
        return []
    client = scope.get("client")
    address = client[0] if client else ""
    if call is NOT_UNDERSTOOD:
        one = _access(call, answer, principal, address, request_id)
        return [msgspec.structs.replace(one, query=bounded(_target(scope)))]
    return [_access(*part, principal, address, request_id) for part in _parts(call, answer, base)]


def lines(
    scope: MutableMapping[str, Any], call: Call, answer: Answer, principal: Principal, request_id: str, base: str = ""
) -> bytes:
    """`accesses`, as the journal keeps them."""
    stored, path = answer.stored, call.path
    if stored is None or len(path) != 2 or path[1] != stored.id or call.method != "GET" or call.query or answer.parts:
        return b"".join(map(line, accesses(scope, call, answer, principal, request_id, base)))
    client = scope.get("client")
    address = client[0] if client else ""
    known = principal.known.get(("audit", address))
    if known is None:
        known = principal.known["audit", address] = framed(
            principal.subject, principal.client_id, principal.fhir_user or "", address, principal.purpose,
            principal.token_id,
        )  # fmt: skip
    return read_line(
        time.time_ns() // 1_000_000, answer.status, known[0], request_id, stored.resource_type, stored.id,
        stored.version, stored.patients[:MOST_PATIENTS], known[1],
    )  # fmt: skip


def _access(call: Call, answer: Answer, principal: Principal, address: str, request_id: str) -> Access:
    stored = answer.stored
    if stored is None and len(answer.deleted) == 1:
        stored = answer.deleted[0]
    interaction = _interaction(call)
    if stored is not None:
        resource_type, id, patients = stored.resource_type, stored.id, stored.patients[:MOST_PATIENTS]
    else:
        (resource_type, id), patients = _named(call), ()
    query = _asked(call, interaction, id)
    if interaction[:7] == "search-":
        patients = _searched(call, principal)
        if resource_type == "Patient":
            id = ""  # of a compartment: told as the patient it is about
    return Access(  # by position, which costs half: this is done for every request
        time.time_ns() // 1_000_000,
        interaction,
        answer.status,
        principal.subject,
        principal.client_id,
        principal.fhir_user or "",
        address,
        request_id,
        resource_type,
        id,
        stored.version if stored is not None else 0,
        patients,
        query,
        principal.purpose,
        principal.token_id,
    )


def _asked(call: Call, interaction: str, id: str) -> str:
    """What was searched for; of what has no id (a refused creation, the history of a type), what it was about.

    BALP wants the request of each search, one without parameters, too.
    """
    path = "/".join(call.path)
    if call.query:
        return bounded(f"{path}?{urlencode(call.query)}")
    if call.method == "POST" and "if-none-exist" in call.headers:
        return bounded(f"{path}?{call.headers['if-none-exist']}")
    return "" if id and interaction[:7] != "search-" else bounded(path)


def _searched(call: Call, principal: Principal) -> tuple[str, ...]:
    """The patients that a search is about: named in it, or the only one that the token is for.

    https://profiles.ihe.net/ITI/BALP/StructureDefinition-IHE.BasicAudit.PatientQuery.html
    """
    resource_type = call.path[0] if call.path else ""
    found: dict[str, None] = {}
    if resource_type == "Patient" and len(call.path) > 2 and _ID.fullmatch(call.path[1]):
        found[call.path[1]] = None
    for name, value in call.query:
        if name in _PATIENT or (name == "_id" and resource_type == "Patient"):
            for one in value.split(",", MOST_PATIENTS):
                id = one.rpartition("Patient/")[2]
                if _ID.fullmatch(id):
                    found[id] = None
    if principal.patients is not None and len(principal.patients) == 1:
        found.update(dict.fromkeys(principal.patients))
    elif principal.patient and all(scope.context != "user" for scope in principal.scopes):
        found[principal.patient] = None
    return tuple(found)[:MOST_PATIENTS]


def _target(scope: MutableMapping[str, Any]) -> str:
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope["query_string"]
    return (path.partition(b"?")[0] + b"?" + query).decode("latin-1")


def _interaction(call: Call) -> str:
    route = shape(call.path)
    if "$" in route:
        operation = next(part for part in call.path if part[:1] == "$")
        return f"operation:{operation if operation.isprintable() else ascii(operation)}"[:74]
    if call.resource is not None and not call.path and call.resource.get("type") == "transaction":
        return "transaction"
    method = "GET" if call.method == "HEAD" else call.method
    return INTERACTIONS.get((method, route), "operation")


def _named(call: Call) -> tuple[str, str]:
    """Type and id of the URL, if they could be ones: attempts on what is not there are accesses, too."""
    if not call.path or call.path[0] not in RESOURCE_TYPES:
        return "", ""
    id = call.path[1] if len(call.path) > 1 and _ID.fullmatch(call.path[1]) else ""
    return call.path[0], id


def _parts(call: Call, answer: Answer, base: str) -> Iterator[tuple[Call, Answer]]:
    """The request, what it deleted if that is more than one, and the entries of a bundle as requests of their own."""
    yield call, answer
    if len(answer.deleted) > 1:
        for stored in answer.deleted:
            yield Call("DELETE", (stored.resource_type, stored.id)), Answer(answer.status, stored=stored)
    if not answer.parts or call.resource is None:
        return
    for entry, part in zip(call.resource.get("entry") or (), answer.parts, strict=False):
        request = request_of(entry)
        method, url = str(request.get("method", "")), str(request.get("url", ""))
        try:
            path, query = split_url(url, base)
        except (BadRequest, ValueError):
            method, path, query = "", (url,), []  # an attempt at something that is not here
        condition = request.get("ifNoneExist")
        headers = {"if-none-exist": condition} if isinstance(condition, str) else {}
        resource = entry.get("resource") if isinstance(entry, dict) and part.parts else None
        yield from _parts(Call(method, path, query, headers, resource), part, base)

"""What an answered request looks like to the audit: one access, and one more for each entry of a bundle."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, MutableMapping
from typing import Any
from urllib.parse import urlencode

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
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")


def accesses(
    scope: MutableMapping[str, Any], call: Call, answer: Answer, principal: Principal, request_id: str
) -> list[Access]:
    """Nothing for what is open to everybody (the CapabilityStatement)."""
    if call.path[:1] == ("metadata",):
        return []
    client = scope.get("client")
    address = client[0] if client else ""
    one = _access(call, answer, principal, address, request_id)
    if not answer.parts:
        return [one]
    return [one, *(_access(*part, principal, address, request_id) for part in _parts(call, answer))]


def lines(scope: MutableMapping[str, Any], call: Call, answer: Answer, principal: Principal, request_id: str) -> bytes:
    """`accesses`, as the journal keeps them."""
    stored, path = answer.stored, call.path
    if stored is None or len(path) != 2 or path[1] != stored.id or call.method != "GET" or call.query or answer.parts:
        return b"".join(map(line, accesses(scope, call, answer, principal, request_id)))
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
    resource_type, id = _named(call) if stored is None else (stored.resource_type, stored.id)
    return Access(  # by position, which costs half: this is done for every request
        time.time_ns() // 1_000_000,
        _interaction(call),
        answer.status,
        principal.subject,
        principal.client_id,
        principal.fhir_user or "",
        address,
        request_id,
        resource_type,
        id,
        stored.version if stored is not None else 0,
        stored.patients[:MOST_PATIENTS] if stored is not None else (),
        bounded(_asked(call)),
        principal.purpose,
        principal.token_id,
    )


def _asked(call: Call) -> str:
    """The query; of an export's status and files, which of them."""
    if call.query:
        return f"{'/'.join(call.path)}?{urlencode(call.query)}"
    return "/".join(call.path) if len(call.path) > 1 and call.path[0][:1] == "$" else ""


def _interaction(call: Call) -> str:
    route = shape(call.path)
    if "$" in route:
        operation = next(part for part in call.path if part[:1] == "$")
        return f"operation:{operation[:64]}"
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


def _parts(call: Call, answer: Answer) -> Iterator[tuple[Call, Answer]]:
    """The entries of a bundle as requests of their own."""
    if not answer.parts or call.resource is None:
        return
    for entry, part in zip(call.resource.get("entry") or (), answer.parts, strict=False):
        request = request_of(entry)
        try:
            path, query = split_url(str(request.get("url", "")))
        except (BadRequest, ValueError):
            path, query = (), []
        yield Call(str(request.get("method", "")), path, query), part

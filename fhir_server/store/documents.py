"""The shape of the documents: the only file that names a field.

current (one collection per resource type)
    _id  resource id          v  version            t  lastUpdated, ms       d  true if deleted (absent otherwise)
    m    method ("c" create, "u" update, "x" delete)
    raw  JSON bytes as served p  ids of the patients whose compartments hold it
    s    search entries, one field per search parameter (see search/index.py)
history (one collection)
    _id  "Type/id/v"          rt, id, v, t, d, m, raw, p as above
outbox (one collection)
    _id  event id             rt, id, v, m, t, p; cause: c chain, r rule, a agent; the worker's fields: see outbox.py
subscribers, notifications
    see notifications.py
claims (one collection)
    _id  hash of criteria     h  holder (unique per claim)                   at date, expires by TTL
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fhir_server.store.protocol import Cause, Entries, Event, Method, Stored

ID, VERSION, UPDATED, DELETED, METHOD, RAW, PATIENTS, ENTRIES = "_id", "v", "t", "d", "m", "raw", "p", "s"
HISTORY, OUTBOX, CLAIMS, SETTINGS = "history", "outbox", "claims", "settings"
LIVE: Mapping[str, Any] = {DELETED: None}  # matches a missing field, too: what is not deleted

_METHODS: dict[Method, str] = {"create": "c", "update": "u", "delete": "x"}
_METHOD_OF: dict[str, Method] = {code: method for method, code in _METHODS.items()}


def entry_path(name: str) -> str:
    """Where the search entries of one parameter stand in a current document."""
    return f"{ENTRIES}.{name}"


def current(stored: Stored) -> dict[str, Any]:
    document: dict[str, Any] = {ID: stored.id, VERSION: stored.version, UPDATED: stored.updated}
    if stored.deleted:
        document[DELETED] = True
    document[METHOD] = _METHODS[stored.method]
    document[RAW] = stored.raw
    if stored.patients:
        document[PATIENTS] = list(stored.patients)
    if stored.entries:
        document[ENTRIES] = stored.entries
    return document


def stored(resource_type: str, document: Mapping[str, Any]) -> Stored:
    return Stored(
        resource_type,
        document[ID],
        document[VERSION],
        document[UPDATED],
        document.get(RAW, b""),
        DELETED in document,
        _METHOD_OF[document.get(METHOD, "c")],
        tuple(document.get(PATIENTS, ())),
        document.get(ENTRIES, _NOTHING),
    )


_NOTHING: Entries = {}


def superseded(version: Stored) -> dict[str, Any]:
    document = current(version)
    document.pop(ENTRIES, None)
    document["rt"], document["id"] = version.resource_type, version.id
    document[ID] = f"{version.resource_type}/{version.id}/{version.version}"
    return document


def from_history(document: Mapping[str, Any]) -> Stored:
    return stored(document["rt"], {**document, ID: document["id"]})


def event(event: Event) -> dict[str, Any]:
    document: dict[str, Any] = {
        ID: event.id,
        "rt": event.resource_type,
        "id": event.resource_id,
        VERSION: event.version,
        METHOD: _METHODS[event.method],
        UPDATED: event.updated,
        PATIENTS: list(event.patients),
    }
    if event.group:
        document["g"] = event.group
    if event.cause.chain:
        document["c"] = list(event.cause.chain)
    if event.cause.rule:
        document["r"] = event.cause.rule
    if event.cause.agent:
        document["a"] = event.cause.agent
    return document


def from_outbox(document: Mapping[str, Any]) -> Event:
    return Event(
        document[ID],
        document["rt"],
        document["id"],
        document[VERSION],
        _METHOD_OF[document[METHOD]],
        document[UPDATED],
        tuple(document.get(PATIENTS, ())),
        Cause(tuple(document.get("c", ())), document.get("r", ""), document.get("a", "")),
        document.get("g", ""),
    )

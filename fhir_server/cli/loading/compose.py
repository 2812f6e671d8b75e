"""Bundles as they are sent: entries rewritten so that sending them twice changes nothing; resources stay the bytes they are.

References between entries (`urn:uuid:…`) become `Type/id` here, because a resource that was sent before is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from fhir_server.cli.loading import sources
from fhir_server.cli.loading.sources import Entry, Request

_URN = re.compile(rb'"(urn:(?:uuid|oid):[^"\\]+)"')


@dataclass(frozen=True, slots=True)
class Item:
    """One entry to be sent. `key` is "Type/id" where the entry creates it unless it is there, else empty."""

    label: str
    key: str
    json: bytes


@dataclass(frozen=True, slots=True)
class Composed:
    type: str  # transaction | batch
    items: list[Item]
    left_out: int  # resources that are there already


def body(kind: str, items: Iterable[Item]) -> bytes:
    entries = b",".join(item.json for item in items)
    return b'{"resourceType":"Bundle","type":"%b","entry":[%b]}' % (kind.encode(), entries)


def compose(raw: bytes, name: str, there: Callable[[str], bool]) -> Composed:
    """One file's Bundle. `there(key)`: whether a resource to be created is known to be on the server."""
    bundle = sources.bundle(raw)
    kept = bundle.type in ("transaction", "batch")
    renamed: dict[bytes, bytes] = {}
    drafts: list[tuple[str, str, Entry, bytes, Request]] = []
    for index, entry in enumerate(bundle.entry):
        label = f"{name} entry[{index}]"
        resource = bytes(entry.resource)
        if not resource:
            if kept and entry.request is not None:
                drafts.append((label, "", entry, b"", entry.request))
            continue
        head = sources.head(resource)
        id = sources.id_of(head, resource, entry.full_url)
        key = f"{head.resource_type}/{id}"
        request, creating = _request(entry, head.resource_type, key, kept)
        if request.method == "PUT":
            resource = sources.with_id(resource, head, id)
            if entry.full_url.startswith("urn:") and "?" not in request.url:
                renamed[entry.full_url.encode()] = request.url.encode()
        drafts.append((label, key if creating else "", entry, resource, request))
    items = [
        Item(label, key, _entry_json(entry, _rename(resource, renamed), request))
        for label, key, entry, resource, request in drafts
        if not (key and there(key))
    ]
    return Composed(bundle.type if kept else "batch", items, len(drafts) - len(items))


def single(raw: bytes, label: str) -> Item:
    """A resource that is to be as it says, under its own id."""
    resource = raw.strip()
    head = sources.head(resource)
    id = sources.id_of(head, resource)
    request = Request(method="PUT", url=f"{head.resource_type}/{id}")
    return Item(label, "", _entry_json(None, sources.with_id(resource, head, id), request))


def _request(entry: Entry, resource_type: str, key: str, kept: bool) -> tuple[Request, bool]:
    """(the request to be sent, whether it creates only what is not there)"""
    given = entry.request
    if not kept or given is None:
        return Request(method="PUT", url=key), False
    if given.method == "POST" and not given.if_none_exist and given.url.strip("/") == resource_type:
        return Request(method="PUT", url=key, if_none_match="*"), True
    if given.method == "PUT" and given.if_none_match == "*" and given.url == key:
        return given, True
    return given, False


def _rename(resource: bytes, renamed: dict[bytes, bytes]) -> bytes:
    if not renamed or b"urn:" not in resource:
        return resource

    def replace(match: re.Match[bytes]) -> bytes:
        target = renamed.get(match[1])
        return match[0] if target is None else b'"' + target + b'"'

    return _URN.sub(replace, resource)


def _entry_json(entry: Entry | None, resource: bytes, request: Request) -> bytes:
    parts = [b'{"request":', msgspec.json.encode(request)]
    if entry is not None and entry.full_url:
        parts += [b',"fullUrl":', msgspec.json.encode(entry.full_url)]
    if resource:
        parts += [b',"resource":', resource]
    parts.append(b"}")
    return b"".join(parts)

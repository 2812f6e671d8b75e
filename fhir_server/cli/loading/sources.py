"""Files to resources: JSON (a resource or a Bundle), NDJSON, either gzipped, and folders of them."""

from __future__ import annotations

import gzip
import hashlib
import re
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, cast

import msgspec

from fhir_server.errors import BadRequest, FhirError

LINES = (".ndjson", ".jsonl")
SUFFIXES = (".json", *LINES)
ID = re.compile(r"[A-Za-z0-9\-.]{1,64}\Z")
REFERENCE = re.compile(rb'"reference"\s*:\s*"([^"]+)"')
CONTENT_IDS = uuid.UUID("5d0a4a6e-7a53-5b0e-9e0c-2f6f6f9f3c11")  # namespace of ids made from content


class Request(msgspec.Struct, omit_defaults=True, rename="camel"):
    """Bundle.entry.request. https://hl7.org/fhir/R4/bundle.html"""

    method: str = ""
    url: str = ""
    if_none_match: str = ""
    if_modified_since: str = ""
    if_match: str = ""
    if_none_exist: str = ""


class Entry(msgspec.Struct, omit_defaults=True, rename="camel"):
    full_url: str = ""
    resource: msgspec.Raw = msgspec.Raw(b"")
    request: Request | None = None


class Head(msgspec.Struct, rename="camel"):
    """What must be known of a resource to send it; everything else stays the bytes it is."""

    resource_type: str = ""
    id: str = ""
    identifier: msgspec.Raw = msgspec.Raw(b"")


class Bundle(msgspec.Struct, rename="camel"):
    resource_type: str = ""
    type: str = ""
    entry: list[Entry] = []


class Identifier(msgspec.Struct):
    system: str = ""
    value: str = ""


head_decoder = msgspec.json.Decoder(Head)
bundle_decoder = msgspec.json.Decoder(Bundle)
_identifiers_decoder = msgspec.json.Decoder(list[Identifier] | Identifier)


def files(paths: Iterable[Path]) -> Iterator[Path]:
    """Every file to be loaded, in the order of names. Raises BadRequest for what is not there or cannot be loaded."""
    for path in paths:
        if path.is_dir():
            yield from sorted(item for item in path.rglob("*") if item.is_file() and _kind(item))
        elif not path.exists():
            raise BadRequest(f"There is no {path}")
        elif not _kind(path):
            raise BadRequest(f"{path} is none of {', '.join(SUFFIXES)} (or one of these with .gz)")
        else:
            yield path


def _kind(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def is_lines(path: Path) -> bool:
    return _kind(path) in LINES


def open_file(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.name.lower().endswith(".gz") else path.open("rb")


def read(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read().removeprefix(b"\xef\xbb\xbf")


def head(raw: bytes | msgspec.Raw) -> Head:
    """Raises Unreadable: not JSON, or not a resource."""
    try:
        found = head_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable(f"not valid JSON: {error}") from None
    if not found.resource_type:
        raise Unreadable("not a resource: it has no resourceType")
    return found


def bundle(raw: bytes) -> Bundle:
    try:
        return bundle_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable(f"not a valid Bundle: {error}") from None


class Unreadable(FhirError):
    """A file or a line that cannot be sent; it is named, and the rest goes on."""


def identifiers(found: Head) -> list[str]:
    """`system|value` of each identifier."""
    if not bytes(found.identifier):
        return []
    try:
        decoded = _identifiers_decoder.decode(found.identifier)
    except msgspec.DecodeError:
        return []
    items = decoded if isinstance(decoded, list) else [decoded]
    return [f"{item.system}|{item.value}" for item in items]


def id_of(found: Head, raw: bytes, full_url: str = "") -> str:
    """The resource's own id, else the one in its fullUrl, else one made from its content: always the same."""
    if found.id:
        return found.id
    last = full_url.rpartition(":" if full_url.startswith("urn:") else "/")[2]
    if last and ID.match(last):
        return last
    return str(uuid.uuid5(CONTENT_IDS, hashlib.sha256(raw).hexdigest()))


def with_id(raw: bytes, found: Head, id: str) -> bytes:
    """The resource's bytes with the id in them."""
    if found.id:
        return raw
    body = raw.lstrip()
    return b'{"id":' + msgspec.json.encode(id) + (b"," if body[1:].lstrip()[:1] != b"}" else b"") + body[1:]

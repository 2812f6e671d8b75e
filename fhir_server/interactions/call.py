"""One request and its answer, without a wire: what HTTP, a bundle's entry and a test have in common."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from fhir_server.errors import BadRequest, Issue, TooLarge
from fhir_server.model.resource import Resource
from fhir_server.store.protocol import Stored

Pairs = list[tuple[str, str]]

LONGEST_QUERY = 2_000_000  # 10,000 values of 200 characters

_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:|//")
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_ETAG = re.compile(r'\s*(?:W/)?(?:"([^"]*)"|([^",\s]+))\s*(?:,|$)')


@dataclass(slots=True)
class Call:
    """`path`: segments below the base. `headers`: names in lower case. `resource`: the parsed body, if there was one."""

    method: str
    path: tuple[str, ...]
    query: Pairs = field(default_factory=list)
    headers: Mapping[str, str] = field(default_factory=dict)
    resource: Resource | None = None
    document: bytes | None = None  # a body that is no resource: a JSON Patch

    def header(self, name: str) -> str | None:
        return self.headers.get(name)

    def first(self, name: str) -> str | None:
        """The first value of a query parameter."""
        return next((value for key, value in self.query if key == name), None)


@dataclass(frozen=True, slots=True)
class Packed:
    """A body that is too large for memory: the parts of one gzip stream. `size` is what it unpacks to, in bytes."""

    parts: AsyncIterator[bytes]
    size: int
    packed_size: int


@dataclass(slots=True)
class Answer:
    """Either a stored version, or bytes of FHIR JSON, or a packed body, or only a status and issues."""

    status: int = 200
    stored: Stored | None = None
    body: bytes = b""
    issues: Sequence[Issue] = ()
    location: str = ""  # relative to the base: "Patient/1/_history/2"
    headers: dict[str, str] = field(default_factory=dict)
    media_type: str = ""  # of a body that is not FHIR JSON or XML, and is sent as it is
    packed: Packed | None = None
    empty: bool = False  # there is nothing to say beyond status and headers
    wrote: bool = False  # Prefer: return=… applies
    unread: bool = False  # what was written is not to be read by who wrote it, and not shown
    parts: Sequence[Answer] = ()  # of a bundle, entry by entry; for the audit
    deleted: Sequence[Stored] = ()  # for the audit: the answer to a deletion shows nothing of them


def check_id(id: str) -> str:
    """https://hl7.org/fhir/R4/datatypes.html#id. Raises BadRequest."""
    if _ID.fullmatch(id) is None:
        raise BadRequest(
            f"{id[:100]!r} is not a valid id: 1 to 64 letters, digits, '-' and '.'", expression=["Resource.id"]
        )
    return id


def versions_of(etags: str | None) -> frozenset[str] | None:
    """The versions that If-Match or If-None-Match names: `W/"3"`, `"3"`, `3`, lists of these; `*` stays.

    What is no entity tag at all names no version, so that If-Match fails. https://www.rfc-editor.org/rfc/rfc9110#name-if-match
    """
    if etags is None:
        return None
    found: set[str] = set()
    at = 0
    while at < len(etags):
        match = _ETAG.match(etags, at)
        if match is None:
            return frozenset()
        found.add(match[1] if match[1] is not None else match[2])
        at = match.end()
    return frozenset(found)


def split_url(url: str, base: str = "") -> tuple[tuple[str, ...], Pairs]:
    """A request URL, relative or below `base`, as path segments and decoded query pairs. Raises BadRequest."""
    if base and url.startswith(base) and url[len(base) : len(base) + 1] in ("", "/", "?"):
        url = url[len(base) :]
    head, _, query = url.partition("?")
    if _ABSOLUTE.match(head):
        raise BadRequest(f"The URL {url[:200]!r} is not below {base or 'this server'}; give it relative to the base")
    if "#" in head:
        raise BadRequest(f"The URL {url[:200]!r} has a fragment; a request has none")
    return segments(head), parse_query(query.partition("#")[0])


def segments(path: str) -> tuple[str, ...]:
    """A percent-encoded path in its parts; an encoded slash is no separator. Raises BadRequest."""
    try:
        return tuple(unquote(part, errors="strict") for part in path.split("/") if part)
    except UnicodeDecodeError:
        raise BadRequest("The URL is not percent-encoded UTF-8") from None


def parse_query(text: str) -> Pairs:
    """A query string as pairs; a value that is empty stays, because an empty value is an error to be named."""
    if len(text) > LONGEST_QUERY:  # MongoDB takes no command of 16 MB
        raise TooLarge(f"The search parameters are longer than {LONGEST_QUERY} characters")
    try:
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=2000) if text else []
    except (ValueError, UnicodeDecodeError):
        raise BadRequest("The query string is not valid UTF-8, or has more than 2000 parameters") from None


def parameters(*parts: Mapping[str, Any]) -> Resource:
    """A Parameters resource."""
    return {"resourceType": "Parameters", "parameter": [dict(part) for part in parts]}

"""Bytes and headers in, bytes and headers out. https://hl7.org/fhir/R4/http.html#mime-type

JSON and XML both ways, gzip both ways with a bound on what unpacks, Prefer, ETag, Last-Modified, Location. What may be
decided from a header alone is decided once per header text.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from fhir_server.errors import BadRequest, Malformed, NotAcceptable, TooLarge, UnsupportedMediaType
from fhir_server.http.failures import outcome
from fhir_server.interactions.call import Answer, Pairs
from fhir_server.interactions.write import http_date
from fhir_server.model.resource import Resource, dump, load, pretty
from fhir_server.model.xml import from_xml, indented, to_xml
from fhir_server.search.summary import subset

JSON, XML = "application/fhir+json", "application/fhir+xml"
_JSON = {"json", "application/json", "application/fhir+json", "text/json", "application/json+fhir"}
_XML = {"xml", "text/xml", "application/xml", "application/fhir+xml", "application/xml+fhir"}
_TOKEN = re.compile(r"[a-zA-Z-]+")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # RFC 8259 8.1: a reader may ignore it
COMPRESS_FROM = 1400  # bytes: what fits one packet gains nothing


@dataclass(frozen=True, slots=True)
class Wish:
    """How the client wants its answer."""

    xml: bool = False
    pretty: bool = False
    returning: str = "representation"  # minimal | representation | OperationOutcome
    summary: str | None = None
    elements: tuple[str, ...] = ()
    gzip: bool = False


PLAIN = Wish()


@lru_cache(maxsize=512)
def media_type(accept: str, formatted: str) -> str:
    """`json` or `xml`; `_format` wins over Accept. Raises NotAcceptable (406)."""
    if formatted:
        name = formatted.partition(";")[0].strip().replace(" ", "+").lower()
        if name in _JSON:
            return "json"
        if name in _XML:
            return "xml"
        if name not in ("", "*/*"):
            raise NotAcceptable(f"_format={formatted!r} is not served; ask for {JSON} or {XML}")
    best, kind = 0.0, ""
    for part in accept.split(",") if accept else ():
        name, _, rest = part.strip().partition(";")
        name = name.strip().lower()
        quality = 1.0
        for item in rest.split(";"):
            key, _, value = item.strip().partition("=")
            if key == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
            elif key.lower() == "fhirversion" and value.strip('"') not in ("4.0", "4.0.1"):
                quality = 0.0
        found = "json" if name in _JSON or name in ("*/*", "application/*") else "xml" if name in _XML else ""
        if found and quality > best:
            best, kind = quality, found
    if kind:
        return kind
    if not accept:
        return "json"
    if "text/html" in accept:  # a browser: it can show JSON
        return "json"
    raise NotAcceptable(f"Accept: {accept[:200]} names nothing that is served; ask for {JSON} or {XML}")


@lru_cache(maxsize=512)
def preferences(prefer: str) -> tuple[str, bool, bool]:
    """Prefer (RFC 7240) → (return, handling is lenient, respond-async). What is not understood is ignored."""
    returning, lenient, later = "", False, False
    for part in prefer.replace(";", ",").split(","):
        name, _, value = part.strip().partition("=")
        value = value.strip().strip('"')
        if name == "return" and value in ("minimal", "representation", "OperationOutcome"):
            returning = value
        elif name == "handling":
            lenient = value == "lenient"
        elif name == "respond-async":
            later = True
    return returning, lenient, later


def wish(headers: Mapping[str, str], query: Pairs) -> Wish:
    formatted = summary = ""
    elements: tuple[str, ...] = ()
    nice = False
    for name, value in query:
        if name == "_format":
            formatted = value
        elif name == "_pretty":
            if value not in ("true", "false"):
                raise BadRequest(f"_pretty must be true or false, not {value[:40]!r}")
            nice = value == "true"
        elif name == "_summary":
            summary = value
        elif name == "_elements":
            elements = tuple(part.strip() for part in value.split(",") if part.strip())
    if summary and summary not in ("true", "false", "text", "data", "count"):
        raise BadRequest(f"_summary must be true, text, data, count or false, not {summary[:40]!r}")
    returning = preferences(headers["prefer"])[0] if "prefer" in headers else ""
    return Wish(
        media_type(headers.get("accept", ""), formatted) == "xml",
        nice,
        returning or "representation",
        summary if summary not in ("", "false") else None,
        elements,
        takes_gzip(headers.get("accept-encoding", "")),
    )


@lru_cache(maxsize=512)
def takes_gzip(accept_encoding: str) -> bool:
    """https://www.rfc-editor.org/rfc/rfc9110#name-accept-encoding; the most specific entry decides."""
    taken: dict[str, bool] = {}
    for part in accept_encoding.lower().split(","):
        name, _, rest = part.partition(";")
        quality = rest.partition("q=")[2].strip() or "1"
        taken[name.strip()] = quality.strip("0.") != ""
    return taken.get("gzip", taken.get("x-gzip", taken.get("*", False)))


def unpack(body: bytes, encoding: str, most: int) -> bytes:
    """Content-Encoding undone, never to more than `most` bytes. Raises TooLarge, UnsupportedMediaType, Malformed."""
    if not encoding or encoding == "identity":
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise UnsupportedMediaType(f"Content-Encoding {encoding[:40]!r} is not understood; send gzip, or none")
    stream = zlib.decompressobj(wbits=47 if encoding != "deflate" else 15)
    try:
        unpacked = stream.decompress(body, most + 1)
    except zlib.error:
        raise Malformed(f"The body is not valid {encoding}") from None
    if len(unpacked) > most:
        raise TooLarge(f"The unpacked body is larger than the {most} bytes that this server takes")
    if not stream.eof:
        raise Malformed(f"The {encoding} body ends too early")
    return unpacked


def parse(body: bytes, content_type: str) -> Resource:
    """A resource in the format its Content-Type names. Raises Malformed (400), UnsupportedMediaType (415)."""
    name, _, rest = content_type.partition(";")
    name = name.strip().lower()
    charset = rest.partition("charset=")[2].split(";")[0].strip().strip('"').lower()
    if charset and charset not in ("utf-8", "utf8"):
        raise UnsupportedMediaType(f"charset {charset[:40]!r} is not understood; FHIR is UTF-8")
    if name in _JSON:
        return load(body.removeprefix(BYTE_ORDER_MARK))
    if name in _XML:
        return from_xml(body)
    raise UnsupportedMediaType(
        f"Content-Type {name[:100]!r} is not understood; send {JSON} or {XML}"
        if name
        else f"The request has no Content-Type; send {JSON} or {XML}"
    )


def render(answer: Answer, wanted: Wish, base: str, method: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """The status, headers and body of an answer."""
    headers: list[tuple[bytes, bytes]] = []
    status, stored = answer.status, answer.stored
    if stored is not None:
        headers.append((b"etag", b'W/"%d"' % stored.version))
        headers.append((b"last-modified", http_date(stored.updated).encode()))
    if answer.location:
        headers.append((b"location", f"{base}/{answer.location}".encode()))
        headers.append((b"content-location", headers[-1][1]))
    for name, value in answer.headers.items():
        headers.append((name.lower().encode("latin-1"), value.encode("latin-1")))
    if answer.packed is not None:
        headers.append((b"content-type", answer.media_type.encode()))
        return status, headers, b""
    body = b"" if status in (204, 304) or answer.empty else _body(answer, wanted)
    if not body:
        return status, headers, b""
    if answer.media_type:
        headers.append((b"content-type", answer.media_type.encode()))
    elif wanted.xml:
        body = to_xml(load(body))
        if wanted.pretty:
            body = indented(body)
        headers.append((b"content-type", b"application/fhir+xml; charset=utf-8"))
    else:
        if wanted.pretty:
            body = pretty(body)
        headers.append((b"content-type", b"application/fhir+json; charset=utf-8"))
    if wanted.gzip and len(body) > COMPRESS_FROM:
        body = gzip.compress(body, 4, mtime=0)
        headers.append((b"content-encoding", b"gzip"))
    headers.append((b"vary", b"accept, accept-encoding, prefer"))
    return status, headers, body


def _body(answer: Answer, wanted: Wish) -> bytes:
    if answer.body:
        return answer.body
    if answer.stored is not None:
        if answer.wrote:
            if wanted.returning == "minimal" or (answer.unread and wanted.returning == "representation"):
                return b""
            if wanted.returning == "OperationOutcome":
                return dump(outcome(answer.issues))
        if wanted.summary or wanted.elements:
            return dump(subset(load(answer.stored.raw), wanted.summary or "", wanted.elements))
        return answer.stored.raw
    return dump(outcome(answer.issues))

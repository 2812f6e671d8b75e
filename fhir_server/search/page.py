"""Page → searchset Bundle: stored JSON joined by commas, not parsed and printed again. https://hl7.org/fhir/R4/bundle.html#searchset"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from fhir_server.model.resource import dump, load
from fhir_server.search.execute import Page
from fhir_server.search.query import Query
from fhir_server.search.summary import subset
from fhir_server.store.protocol import Stored


def bundle(
    page: Page, query: Query, *, base: str, path: str, applied: Sequence[tuple[str, str]] | None = None
) -> bytes:
    """`base`: the server's URL; `path`: of this search below it (`Observation`, `Patient/x/Observation`, "").

    `applied`: what the self link says, where that is not what the query says.
    """
    url = f"{base}/{path}" if path else base
    head: dict[str, Any] = {"resourceType": "Bundle", "type": "searchset"}
    if page.total is not None:
        head["total"] = page.total
    pairs = list(query.applied() if applied is None else applied)
    links = [{"relation": "self", "url": _url(url, pairs, query.cursor)}]
    if query.cursor:
        links.append({"relation": "first", "url": _url(url, pairs, "")})
    if page.cursor:
        links.append({"relation": "next", "url": _url(url, pairs, page.cursor)})
    head["link"] = links
    entries = list(_entries(page, query, base))
    text = dump(head)
    if not entries:
        return text
    return text[:-1] + b',"entry":[' + b",".join(entries) + b"]}"


def _entries(page: Page, query: Query, base: str) -> Iterable[bytes]:
    for number, stored in enumerate(page.matches):
        kind = page.contained[number] if page.contained else ""
        if kind and query.contained_type == "contained":
            yield from _contained(stored, query, base, kind)
        else:
            yield _entry(base, stored, "match", _raw(stored.raw, query))
    for stored in page.includes:
        yield _entry(base, stored, "include", _raw(stored.raw, query))
    if page.issues or page.explanation is not None:
        yield _outcome(page)


def _entry(base: str, stored: Stored, mode: str, raw: bytes) -> bytes:
    url = f"{base}/{stored.resource_type}/{stored.id}"
    return b'{"fullUrl":' + dump(url) + b',"resource":' + raw + b',"search":{"mode":"' + mode.encode() + b'"}}'


def _contained(stored: Stored, query: Query, base: str, kind: str) -> Iterable[bytes]:
    for inner in load(stored.raw).get("contained", ()):
        if inner.get("resourceType") == kind:
            url = f"{base}/{stored.resource_type}/{stored.id}#{inner.get('id', '')}"
            yield dump({"fullUrl": url, "resource": inner, "search": {"mode": "match"}})


def _raw(raw: bytes, query: Query) -> bytes:
    if query.summary in ("", "false", "count") and not query.elements:
        return raw
    return dump(subset(load(raw), query.summary, query.elements))


def _outcome(page: Page) -> bytes:
    issues = [issue.as_fhir() for issue in page.issues]
    if page.explanation is not None:
        issues.append(
            {
                "severity": "information",
                "code": "informational",
                "diagnostics": dump(page.explanation).decode(),
            }
        )
    outcome = {"resourceType": "OperationOutcome", "issue": issues}
    return dump({"resource": outcome, "search": {"mode": "outcome"}})


def _url(url: str, pairs: Sequence[tuple[str, str]], cursor: str) -> str:
    found = list(pairs)
    if cursor:
        found.append(("_cursor", cursor))
    return f"{url}?{urlencode(found, quote_via=quote, safe=':,|/$*')}" if found else url

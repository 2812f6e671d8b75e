"""read, vread and history. https://hl7.org/fhir/R4/http.html#read"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from fhir_server.errors import BadRequest, NotFound
from fhir_server.interactions.call import Answer, Call, check_id, versions_of
from fhir_server.interactions.context import Context, Server
from fhir_server.interactions.write import check_type, existing, see
from fhir_server.model import dates
from fhir_server.store.protocol import Stored

HISTORY_CONTROLS = frozenset({"_count", "_since", "_at", "_cursor", "_format", "_pretty", "_summary", "_elements"})


async def read(server: Server, context: Context, resource_type: str, id: str) -> Stored:
    server.policy.may(context.principal, "read", check_type(resource_type))
    stored = await see(server, context, "read", await server.store.read(resource_type, check_id(id)))
    return existing(stored, resource_type, id)


async def vread(server: Server, context: Context, resource_type: str, id: str, version: str) -> Stored:
    server.policy.may(context.principal, "vread", check_type(resource_type))
    stored = None
    if version.isascii() and version.isdigit() and len(version) < 10:
        key = (resource_type, check_id(id))
        if context.principal.everything:
            stored = await server.store.read_version(*key, int(version))
        else:  # both, whatever the first is: what is done does not tell what is there
            stored, current = await asyncio.gather(
                server.store.read_version(*key, int(version)), server.store.read(*key)
            )
            if await see(server, context, "vread", current) is None:
                stored = None
            stored = await see(server, context, "vread", stored)
    if stored is None:
        raise NotFound(f"{resource_type}/{id} has no version {version[:64]!r}")
    return existing(stored, resource_type, id)


def shown(server: Server, context: Context, answer: Answer) -> Answer:
    """The answer to a patch, which brings what its sender did not send: to be shown to who may read or find it."""
    stored, policy = answer.stored, server.policy
    answer.unread = stored is not None and not any(
        policy.sees(context.principal, interaction, stored) for interaction in ("read", "search")
    )
    return answer


def not_modified(call: Call, stored: Stored) -> bool:
    """Conditional read: If-None-Match and If-Modified-Since. https://hl7.org/fhir/R4/http.html#cread"""
    etag = call.header("if-none-match")
    if etag is not None:
        return not {"*", str(stored.version)}.isdisjoint(versions_of(etag) or ())
    since = call.header("if-modified-since")
    if since is None:
        return False
    try:
        if since[:4].isdigit():  # Bundle.entry.request.ifModifiedSince is an instant
            return stored.updated < dates.interval(since)[1]
        moment = parsedate_to_datetime(since)
    except (TypeError, ValueError):
        return False  # RFC 9110 13.1.3: a date that is none is ignored
    if moment.tzinfo is None:
        return False
    return stored.updated // 1000 * 1000 <= dates.milliseconds(moment)


@dataclass(frozen=True, slots=True)
class HistoryAnswer:
    """One page, newest first; `total` is not counted. `cursor` continues behind the last version shown."""

    versions: list[Stored]
    cursor: str | None
    applied: list[tuple[str, str]]


async def history(
    server: Server, context: Context, resource_type: str | None, id: str | None, call: Call
) -> HistoryAnswer:
    """https://hl7.org/fhir/R4/http.html#history; `_at` gives the versions that were current at some time in the period."""
    interaction = "history" if id else "history-type" if resource_type else "history-system"
    server.policy.may(context.principal, interaction, check_type(resource_type) if resource_type else None)
    if not context.lenient:
        unknown = [name for name, _ in call.query if name not in HISTORY_CONTROLS]
        if unknown:
            raise BadRequest(f"History does not know the parameter {unknown[0]!r}")
    count = _count(call.first("_count"), server.settings.default_page, server.settings.max_page)
    since, until, low = _period(call)
    before = _unpack(call.first("_cursor"))
    patients = None
    if not context.principal.everything and resource_type is not None:
        restriction = server.policy.restrict(context.principal, interaction)(resource_type)
        if restriction.nothing:
            return HistoryAnswer([], None, _applied(call, count))
        if all(one.patients is not None for one in restriction.alternatives):  # sooner than looking at each
            patients = frozenset(id for one in restriction.alternatives for id in one.patients or ())
    if id is not None and resource_type is not None:
        current = await server.store.read(resource_type, check_id(id))
        if await see(server, context, interaction, current) is None:
            raise NotFound(f"{resource_type}/{id} does not exist")
    shown: list[Stored] = []
    more = True
    while more and len(shown) <= count:
        page = await server.store.history(
            resource_type, id, since=since, until=until, before=before, limit=count + 1 - len(shown), patients=patients
        )
        more = page.more
        fitting: list[Stored] = []
        for stored in page.versions:
            before = (stored.updated, f"{stored.resource_type}/{stored.id}", stored.version)
            if low is not None and stored.updated <= low and not await _current_at(server, stored, low):
                continue
            if await see(server, context, interaction, stored) is not None:
                fitting.append(stored)
        shown += fitting if id is not None else await _seen_now(server, context, interaction, fitting)
        if not page.versions:
            break
    cursor = None
    if len(shown) > count:
        shown = shown[:count]
        last = shown[-1] if shown else None
        if last is not None:
            cursor = _pack((last.updated, f"{last.resource_type}/{last.id}", last.version))
    return HistoryAnswer(shown, cursor, _applied(call, count))


async def _seen_now(server: Server, context: Context, interaction: str, versions: Sequence[Stored]) -> Sequence[Stored]:
    """Those of resources that may be seen as they are now, too: a label or a correction counts for what was before it."""
    if context.principal.everything or not versions:
        return versions
    current = await server.store.read_many(list({(one.resource_type, one.id) for one in versions}))
    seen = {key for key, one in current.items() if server.policy.sees(context.principal, interaction, one)}
    return [one for one in versions if (one.resource_type, one.id) in seen]


def _applied(call: Call, count: int) -> list[tuple[str, str]]:
    kept = [(name, value) for name, value in call.query if name in ("_since", "_at", "_summary", "_elements")]
    return [*kept, ("_count", str(count))]


def _count(text: str | None, default: int, most: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BadRequest(f"_count must be a whole number from 0 up, not {text[:40]!r}")
    return min(int(text), most)


def _period(call: Call) -> tuple[int | None, int | None, int | None]:
    """(since, until, low): `_since` is an instant, inclusive; `_at` may be partial and covers the interval from low."""
    since = until = low = None
    if (text := call.first("_since")) is not None:
        since = dates.interval(text)[0]
    if (text := call.first("_at")) is not None:
        low, high = dates.interval(text)
        until = high - 1
    return since, until, low


async def _current_at(server: Server, stored: Stored, moment: int) -> bool:
    """Whether the version still was the current one at `moment`: its successor came later, or never."""
    successor = await server.store.read_version(stored.resource_type, stored.id, stored.version + 1)
    return successor is None or successor.updated > moment


def _pack(before: tuple[int, str, int]) -> str:
    return base64.urlsafe_b64encode(json.dumps(before, separators=(",", ":")).encode()).decode().rstrip("=")


def _unpack(cursor: str | None) -> tuple[int, str, int] | None:
    if cursor is None:
        return None
    try:
        updated, key, version = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if isinstance(updated, int) and isinstance(key, str) and isinstance(version, int):
            return updated, key, version
    except (ValueError, TypeError, binascii.Error):
        pass
    raise BadRequest("_cursor is not one that this server made; follow the links of the page as they are")

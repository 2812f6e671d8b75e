"""$export, of everything, of all patients, of a group: the kick-off. https://hl7.org/fhir/uv/bulkdata/STU2/export.html

Everything that can be refused is refused here, while the client listens; the job itself is done later (operations/bulk).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode

from fhir_server.errors import BadRequest, Forbidden, Issue, TooManyRequests, UnknownParameter
from fhir_server.interactions import read
from fhir_server.interactions.call import Answer, Call, Pairs, parse_query
from fhir_server.interactions.context import Context, Server
from fhir_server.interactions.search import parsed
from fhir_server.interactions.write import check_type
from fhir_server.model.dates import DateError, interval, milliseconds
from fhir_server.model.resource import Resource, load
from fhir_server.operations.bulk.request import Level, Message, Request, Who, about, owner_of
from fhir_server.operations.bulk.selection import INTERACTION, types_of_patients
from fhir_server.operations.bulk.worker import exporter_of
from fhir_server.operations.given import pairs_of
from fhir_server.search.parse import RESULT
from fhir_server.search.types import reference

FORMATS = frozenset({"application/fhir+ndjson", "application/ndjson", "ndjson"})
KNOWN = frozenset({"_outputFormat", "_since", "_type", "_typeFilter", "_elements", "patient"})
ONCE = frozenset({"_outputFormat", "_since"})
MOST_KEPT = 20  # finished exports of one client whose files are kept
MOST_FILTERS = 100
BUSY_SECONDS = 30
_NEXT_FILTER = re.compile(r",(?=[A-Z][A-Za-z]*\?)")  # a comma within a query separates values
_ELEMENT = re.compile(r"(?:([A-Z][A-Za-z]*)\.)?([a-z][A-Za-z]*)")


async def export(server: Server, context: Context, call: Call) -> Answer:
    """202 and where to look (Content-Location)."""
    if "respond-async" not in re.split(r"\s*[,;]\s*", call.headers.get("prefer", "").strip()):
        raise BadRequest("An export takes a while: it needs the header Prefer: respond-async")
    pairs = pairs_of(call)
    query, call.query = call.query, pairs  # the audit shows what was asked, also where a body asked it
    request = await _Kickoff(server, context, call, pairs).request()
    job = await _admitted(server, context, request, _url(context, call, query))
    headers = {"Content-Location": f"{context.base}/$export/{job}"}
    text = f"The export has begun; see {headers['Content-Location']}"
    return Answer(202, issues=[Issue("information", "informational", text)], headers=headers)


def _url(context: Context, call: Call, query: Pairs) -> str:
    path = "/".join(quote(part, safe="$") for part in call.path)
    return f"{context.base}/{path}{'?' + urlencode(query) if query and call.resource is None else ''}"


async def _admitted(server: Server, context: Context, request: Request, url: str) -> str:
    """The job's id; raises TooManyRequests. It is counted before it is let in, so that two at once cannot both be the last."""
    exporter, settings = exporter_of(server), server.settings
    id, owner, now = secrets.token_urlsafe(24), owner_of(context.principal), exporter.now()
    moment = milliseconds(server.now())
    await exporter.exports.add(id, owner, about(url, moment, context.principal), request.encoded(), now)
    every, own, kept = await exporter.exports.counts(owner, now)
    busy = ""
    if own > settings.export_client_jobs:
        busy = f"This client has {own - 1} exports under way already; wait for one to end, or cancel it"
    elif every > settings.export_jobs:
        busy = f"{every - 1} exports are under way; try again later"
    elif kept >= MOST_KEPT:
        busy = f"The files of {kept} exports of this client are kept; DELETE what is no longer needed"
    if busy:
        await exporter.exports.refuse(id)
        raise TooManyRequests(busy, retry_after=BUSY_SECONDS)
    await exporter.exports.admit(id)
    exporter.wake()
    return id


class _Kickoff:
    """The parameters, understood or refused."""

    def __init__(self, server: Server, context: Context, call: Call, pairs: Pairs) -> None:
        self._server = server
        self._context = context
        self._call = call
        self._pairs = pairs
        self._messages: list[Message] = []
        self._level: Level = "system" if len(call.path) == 1 else "patient" if call.path[0] == "Patient" else "group"

    async def request(self) -> Request:
        for name, _ in self._pairs:
            if name not in KNOWN:
                self._unless_lenient(
                    name, UnknownParameter(f"Parameter {name[:100]!r}: $export has {', '.join(sorted(KNOWN))}")
                )
            elif name in ONCE and len(self._values(name)) > 1:
                raise BadRequest(f"Parameter {name!r} may be given once only")
        for value in self._values("_outputFormat"):
            if value not in FORMATS and value.replace(" ", "+") not in FORMATS:
                raise BadRequest(
                    f"Parameter '_outputFormat': {value[:100]!r} is not written; {', '.join(sorted(FORMATS))}"
                )
        types = await self._types()
        filters = await self._filters(types)
        patients = await self._patients()
        return Request(
            Who.of(self._context.principal),
            self._context.base,
            self._level,
            tuple(types),
            filters,
            self._since(),
            self._elements(types),
            patients,
            bool(self._values("patient")),
            self._context.lenient,
            tuple(self._messages),
        )

    def _values(self, name: str) -> list[str]:
        return [value for key, value in self._pairs if key == name]

    def _unless_lenient(self, name: str, error: BadRequest) -> None:
        if not self._context.lenient:
            raise error
        self._messages.append(Message("warning", "not-supported", f"Ignored: {error.diagnostics}"))

    def _since(self) -> int:
        for value in self._values("_since"):
            try:
                return max(interval(value)[0], 0)
            except DateError as error:
                raise BadRequest(f"Parameter '_since': {error}") from None
        return -1

    async def _types(self) -> list[str]:
        """Asked for by name: known, in the compartment, permitted; otherwise all that are there and permitted."""
        policy, principal = self._server.policy, self._context.principal
        possible = types_of_patients() if self._level != "system" else None
        asked = [part.strip() for value in self._values("_type") for part in value.split(",")]
        if asked:
            types: list[str] = []
            for name in dict.fromkeys(asked):
                check_type(name)
                if possible is not None and name not in possible:
                    text = f"Parameter '_type': {name} is in no patient's compartment; ask for it at system level"
                    self._unless_lenient("_type", BadRequest(text))
                    continue
                policy.may(principal, INTERACTION, name)
                types.append(name)
            if not types:
                raise BadRequest("Parameter '_type' leaves nothing to be exported")
            return types
        there = await self._server.store.resource_types()
        types = [name for name in there if (possible is None or name in possible) and self._may(name)]
        if not types and not any(self._may(name) for name in possible or there or ("Patient",)):
            raise Forbidden("The token allows no type to be read and searched")
        return types

    def _may(self, resource_type: str) -> bool:
        try:
            self._server.policy.may(self._context.principal, INTERACTION, resource_type)
        except Forbidden:
            return False
        return True

    async def _filters(self, types: Sequence[str]) -> dict[str, list[Pairs]]:
        found: dict[str, list[Pairs]] = {}
        texts = [part for value in self._values("_typeFilter") for part in _NEXT_FILTER.split(value)]
        if len(texts) > MOST_FILTERS:
            raise BadRequest(f"Parameter '_typeFilter': {MOST_FILTERS} searches at most, not {len(texts)}")
        for text in texts:
            name, mark, query = text.strip().partition("?")
            if not mark or not query:
                raise BadRequest(f"Parameter '_typeFilter': {text[:100]!r} is no search like Observation?status=final")
            check_type(name)
            if name not in types:
                said = f"Parameter '_typeFilter': {name} is not exported, so that it cannot be filtered"
                self._unless_lenient("_typeFilter", BadRequest(said))
                continue
            pairs = parse_query(query)
            for key, _ in pairs:
                if key.partition(":")[0] in RESULT:
                    raise BadRequest(
                        f"Parameter '_typeFilter': {key[:60]!r} says how a search is shown, and filters nothing"
                    )
            understood = await parsed(self._server, self._context, name, pairs)
            for key in understood.ignored:
                ignored = f"Ignored: '_typeFilter' of {name}: the parameter {key[:100]!r} is not known"
                self._messages.append(Message("warning", "not-supported", ignored))
            found.setdefault(name, []).append(pairs)
        return found

    def _elements(self, types: Sequence[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for text in [part.strip() for value in self._values("_elements") for part in value.split(",")]:
            match = _ELEMENT.fullmatch(text)
            if match is None:
                raise BadRequest(
                    f"Parameter '_elements': {text[:100]!r} is no element at the top, like Patient.name or id"
                )
            if match[1]:
                check_type(match[1])
            found.setdefault(match[1] or "", []).append(match[2])
        return found

    async def _patients(self) -> tuple[str, ...] | None:
        """Whose records are asked for; None: everybody's."""
        members = None
        if self._level == "group":
            group = await read.read(self._server, self._context, "Group", self._call.path[1])
            members = _members(load(group.raw), self._context.base, milliseconds(self._server.now()))
        asked = self._values("patient")
        if not asked:
            return members
        if self._call.resource is None or self._level == "system":
            raise BadRequest("Parameter 'patient' is for POST, and for exports of patients or a group")
        wanted = dict.fromkeys(_patient(value, self._context.base) for value in asked)
        found = await self._server.store.read_many([("Patient", id) for id in wanted])
        for id in wanted:
            stored = found.get(("Patient", id))
            there = stored is not None and not stored.deleted
            if not (stored and there and self._server.policy.sees(self._context.principal, INTERACTION, stored)):
                raise BadRequest(f"Parameter 'patient': Patient/{id} is not here")
            if members is not None and id not in members:
                raise BadRequest(f"Parameter 'patient': Patient/{id} is no member of the group")
        return tuple(wanted)


def _patient(text: str, base: str) -> str:
    name = reference.local(text, base)[0]
    kind, _, id = name.partition("/")
    if kind != "Patient" or not id or "/" in id:
        raise BadRequest(f"Parameter 'patient': {text[:100]!r} is no reference to a Patient")
    return id


def _members(group: Resource, base: str, now: int) -> tuple[str, ...]:
    """The patients who are members: not inactive, and not only until a time that is past."""
    found: dict[str, None] = {}
    for member in group.get("member") or ():
        name = reference.local(str((member.get("entity") or {}).get("reference", "")), base)[0]
        kind, _, id = name.partition("/")
        if kind == "Patient" and id and "/" not in id and member.get("inactive") is not True and not _over(member, now):
            found[id] = None
    return tuple(found)


def _over(member: Resource, now: int) -> bool:
    end: Any = (member.get("period") or {}).get("end")
    try:
        return isinstance(end, str) and interval(end)[1] <= now
    except DateError:
        return False

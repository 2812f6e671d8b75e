"""Observation/$lastn: the latest results of each kind. https://hl7.org/fhir/R4/observation-operation-lastn.html

A kind is a code: observations that share a coding, directly or through a third one, are of one kind; without codings, those with
the same text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fhir_server.errors import BadRequest
from fhir_server.interactions.call import Answer, Call, Pairs
from fhir_server.interactions.context import Context, Server
from fhir_server.operations.given import pairs_of
from fhir_server.search import execute, page
from fhir_server.search.parse import parse
from fhir_server.search.valuesets import StoredTerminology
from fhir_server.store.protocol import Stored

MOST_CONSIDERED = 100_000  # observations of one question
MOST = 100  # of one kind


async def lastn(server: Server, context: Context, call: Call) -> Answer:
    """`max` (1): how many of each; everything else is a search parameter of Observation. Needs patient or subject."""
    pairs = pairs_of(call)
    most = _most([value for name, value in pairs if name == "max"])
    criteria: Pairs = [(name, value) for name, value in pairs if name != "max"]
    if not any(name.partition(":")[0].partition(".")[0] in ("patient", "subject") for name, _ in criteria):
        raise BadRequest("$lastn needs the parameter patient or subject")
    if any(name == "_sort" for name, _ in criteria):
        raise BadRequest("$lastn has an order of its own: _sort cannot be given")
    query = parse(
        "Observation",
        [*criteria, ("_sort", "-date")],
        registry=server.registry,
        lenient=context.lenient,
        base=context.base,
    )
    restrict = server.policy.restrict(context.principal, "search")
    found = await execute.every(
        server.store,
        server.registry,
        query,
        restrict,
        entries=("code",),
        most=MOST_CONSIDERED,
        terminology=StoredTerminology(server.store),
    )
    keys = [("Observation", stored.id) for stored in latest(found, most)]
    stored = await server.store.read_many(keys)
    matches = [stored[key] for key in keys if key in stored and not stored[key].deleted]
    answer = execute.Page(matches, total=len(matches))
    path = "Observation/$lastn"
    return Answer(body=page.bundle(answer, query, base=context.base, path=path, applied=pairs))


def latest(newest_first: Sequence[Stored], most: int) -> list[Stored]:
    """The first `most` of each kind, the kinds in the order of their newest."""
    kinds = _Kinds()
    named = [(stored, kinds.of(stored.entries)) for stored in newest_first]
    groups: dict[int, list[Stored]] = {}
    for stored, kind in named:
        groups.setdefault(kinds.root(kind), []).append(stored)
    return [stored for group in groups.values() for stored in group[:most]]


class _Kinds:
    """Sets of codings that belong together, as they turn up (union-find)."""

    def __init__(self) -> None:
        self._kind: dict[str, int] = {}  # coding → set
        self._parent: list[int] = []

    def root(self, kind: int) -> int:
        while self._parent[kind] != kind:
            kind = self._parent[kind]
        return kind

    def of(self, entries: Mapping[str, Any]) -> int:
        keys: list[str] = [key for key in entries.get("code", ()) if "|" in key and key[0] not in "!~"]
        keys = keys or [key for key in entries.get("code", ()) if key[0] == "~"] or [""]
        known = sorted({self.root(self._kind[key]) for key in keys if key in self._kind})
        if not known:
            known = [len(self._parent)]
            self._parent.append(known[0])
        for other in known[1:]:
            self._parent[other] = known[0]
        for key in keys:
            self._kind[key] = known[0]
        return known[0]


def _most(given: Sequence[str]) -> int:
    if not given:
        return 1
    if len(given) > 1 or not (given[0].isascii() and given[0].isdigit()) or not 1 <= int(given[0]) <= MOST:
        raise BadRequest(f"Parameter 'max': {given[-1]!r} is not a whole number from 1 to {MOST}")
    return int(given[0])

"""search, and finding the matches of conditional requests. https://hl7.org/fhir/R4/http.html#search"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fhir_server.auth.audit import Audit
from fhir_server.auth.principal import Principal
from fhir_server.errors import BadRequest, Forbidden
from fhir_server.interactions.call import Pairs, check_id
from fhir_server.interactions.context import Context, Server
from fhir_server.interactions.write import check_type
from fhir_server.model.resource import load
from fhir_server.search import execute, page
from fhir_server.search.custom import CustomParameters
from fhir_server.search.match import Candidate, matches
from fhir_server.search.parse import parse
from fhir_server.search.query import Query
from fhir_server.search.valuesets import StoredTerminology
from fhir_server.store.protocol import Stored

RECORDS_AT_MOST = 10_000
CURSOR_KEY = "cursor-key"
COMPARTMENTS = frozenset({"Patient", "Practitioner", "RelatedPerson", "Encounter", "Device"})
RESULT_PARAMETERS = (
    "_sort",
    "_count",
    "_include",
    "_revinclude",
    "_summary",
    "_elements",
    "_total",
    "_explain",
    "_cursor",
)


async def open_search(server: Server) -> None:
    """Custom parameters, and the key that seals cursors: one for the database, so that every process takes all cursors."""
    kept = await server.store.setting(CURSOR_KEY)
    if kept is None:
        await server.store.set_setting(CURSOR_KEY, {"key": secrets.token_hex(32)}, if_absent=True)
        kept = await server.store.setting(CURSOR_KEY)
    server.rooms[CURSOR_KEY] = bytes.fromhex(str((kept or {})["key"]))
    custom = CustomParameters(server.store, server.registry)
    await custom.open()
    server.committed.append(custom.committed)
    server.closing.append(custom.close)
    server.rooms["search-parameters"] = custom


async def search(server: Server, context: Context, resource_type: str | None, pairs: Pairs) -> bytes:
    """A searchset Bundle."""
    if resource_type is not None:
        check_type(resource_type)
    query = await parsed(server, context, resource_type, pairs)
    await _catch_up(server, context, resource_type, pairs)
    return await _bundle(server, context, query, resource_type or "")


async def compartment(server: Server, context: Context, name: str, id: str, resource_type: str, pairs: Pairs) -> bytes:
    """`Patient/x/Observation?…` and `Patient/x/*`. https://hl7.org/fhir/R4/compartmentdefinition.html"""
    if name not in COMPARTMENTS:
        check_type(name)
        raise BadRequest(f"There is no {name} compartment; there are those of {', '.join(sorted(COMPARTMENTS))}")
    wanted = None if resource_type == "*" else check_type(resource_type)
    query = await parsed(server, context, wanted, pairs, (name, check_id(id)))
    await _catch_up(server, context, wanted, pairs)
    return await _bundle(server, context, query, f"{name}/{id}/{resource_type}")


async def _catch_up(server: Server, context: Context, resource_type: str | None, pairs: Pairs) -> None:
    """A search that may show AuditEvents shows what happened before it."""
    audit: Audit | None = server.rooms.get("audit")
    if audit is None or "administrator" not in context.principal.roles:
        return
    if resource_type in (None, "AuditEvent") or any("AuditEvent" in text for pair in pairs for text in pair):
        await audit.flush_everywhere()


async def run(server: Server, context: Context, query: Query, interaction: str = "search") -> execute.Page:
    """A parsed query, narrowed to what the principal may see."""
    return await execute.run(
        server.store,
        server.registry,
        query,
        server.policy.restrict(context.principal, interaction),
        key=server.rooms[CURSOR_KEY],
        terminology=StoredTerminology(server.store),
        slow_ms=server.settings.slow_search_ms,
    )


async def find_matches(
    server: Server, context: Context, interaction: str, resource_type: str, criteria: Pairs, limit: int
) -> list[Stored]:
    """Up to `limit` live resources that match, as the principal may see them for this interaction.

    Criteria are never read leniently: an ignored one would match, and change, what was not meant.
    """
    query = _criteria(server, context, resource_type, criteria, limit)
    return (await run(server, context, query, interaction)).matches[:limit]


def in_memory(server: Server, context: Context, resource_type: str, criteria: Pairs) -> Callable[[Candidate], bool]:
    """The same criteria asked of what is not stored yet; nothing but the resource itself is looked at (no chains)."""
    query = _criteria(server, context, resource_type, criteria, 1)
    return lambda candidate: matches(query, candidate)


def _criteria(server: Server, context: Context, resource_type: str, criteria: Pairs, limit: int) -> Query:
    for name, _ in criteria:
        if name.partition(":")[0] in RESULT_PARAMETERS:
            raise BadRequest(f"{name[:60]!r} cannot be a criterion of a conditional request")
    query = parse(
        resource_type,
        criteria,
        registry=server.registry,
        default_count=limit,
        most_count=max(limit, 1),
        base=context.base,
    )
    if not query.pairs:
        raise BadRequest("The criteria of a conditional request must not be empty")
    return query


async def parsed(
    server: Server, context: Context, resource_type: str | None, pairs: Pairs, within: tuple[str, str] | None = None
) -> Query:
    """A search as it was asked, not yet narrowed. Raises BadRequest."""

    def attempt() -> Query:
        return parse(
            resource_type,
            pairs,
            registry=server.registry,
            lenient=context.lenient,
            compartment=within,
            default_count=server.settings.default_page,
            most_count=server.settings.max_page,
            base=context.base,
        )

    try:
        return attempt()
    except BadRequest:
        # Another process may have been given, or have indexed, the parameter a moment ago.
        if not await server.rooms["search-parameters"].look():
            raise
        return attempt()


async def _bundle(server: Server, context: Context, query: Query, path: str) -> bytes:
    query = _allowed_types(server, context, query)
    if query.explain and not (context.principal.everything or "administrator" in context.principal.roles):
        raise Forbidden("_explain shows how data is kept; it is for administrators")
    found = await run(server, context, query)
    return page.bundle(found, query, base=context.base, path=path)


def _allowed_types(server: Server, context: Context, query: Query) -> Query:
    """Named types must be allowed; a search over all types is over those that are."""
    if query.types and not query.system:
        for resource_type in query.types:
            server.policy.may(context.principal, "search", resource_type)
        return query
    if context.principal.everything:
        return query
    if not context.principal.subject:
        server.policy.may(context.principal, "search", None)
    allowed = []
    for resource_type in query.types or sorted(query.conditions):
        try:
            server.policy.may(context.principal, "search", resource_type)
        except Forbidden:
            continue
        allowed.append(resource_type)
    if not allowed:
        raise Forbidden("The token allows no search of any of these types")
    return replace(query, types=tuple(allowed))


class Records:
    """`auth.reach.Records`: what the policy itself has to look up (care teams, proxies), and what the login pages offer."""

    def __init__(self, server: Server, base: str) -> None:
        self._server = server
        self._base = base

    async def find(
        self, resource_type: str, *parameters: tuple[str, str], limit: int = 0, seen_by: Principal | None = None
    ) -> Sequence[Mapping[str, Any]]:
        context = Context(Principal.automation() if seen_by is None else seen_by, self._base)
        found = await find_matches(
            self._server, context, "search", resource_type, list(parameters), limit or RECORDS_AT_MOST
        )
        return [load(stored.raw) for stored in found]

"""What belongs into an export, type by type: a search's Query, narrowed by the policy exactly as a search is.

Every line of every file comes from here. Where somebody may see some patients only, or only some are asked for, their records
are read one after the other; otherwise a type is read in the order of ids, and may be gone on with after any of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from fhir_server.interactions.context import Context, Server
from fhir_server.interactions.search import parsed
from fhir_server.operations.bulk.request import Request
from fhir_server.search import stream
from fhir_server.search.execute import resolved
from fhir_server.search.operands import Interval
from fhir_server.search.query import All, AnyOf, Condition, Query, Updated
from fhir_server.search.records import memberships
from fhir_server.search.restrict import Restriction
from fhir_server.search.valuesets import StoredTerminology
from fhir_server.store.protocol import Stored

INTERACTION = "operation:$export"


@dataclass(frozen=True, slots=True)
class Selection:
    """`goes_on`: `after` may be the id of any match."""

    matches: AsyncIterator[Stored]
    goes_on: bool


def types_of_patients() -> frozenset[str]:
    """The resource types that may stand in a patient's record, with Patient itself."""
    return frozenset({"Patient", *memberships("Patient")})


async def select(server: Server, context: Context, request: Request, resource_type: str, after: str = "") -> Selection:
    """Raises BadRequest for a filter that leads too far, Forbidden if the type may not be seen any more."""
    server.policy.may(context.principal, INTERACTION, resource_type)
    restrict = server.policy.restrict(context.principal, INTERACTION)
    query = await _query(server, context, request, resource_type)
    terminology = StoredTerminology(server.store)
    found = await resolved(server.store, server.registry, query, restrict, terminology=terminology)
    patients = _patients(request, restrict(resource_type))
    if patients is None:
        of_patients = request.level != "system"
        return Selection(
            stream.by_id(server.store, resource_type, found, after=after, of_patients=of_patients), goes_on=True
        )
    matches = stream.by_patient(server.store, resource_type, found, patients)
    if request.only:
        matches = _of_nobody_else(matches, frozenset(request.patients or ()))
    return Selection(matches, goes_on=False)


async def _query(server: Server, context: Context, request: Request, resource_type: str) -> Query:
    query = await parsed(server, context, resource_type, [])
    conditions: list[Condition] = []
    if request.since >= 0:
        conditions.append(Updated((Interval("ge", request.since + 1, request.since + 2),)))
    searches = [await parsed(server, context, resource_type, pairs) for pairs in request.filters.get(resource_type, ())]
    if searches:
        conditions.append(AnyOf(tuple(All(search.conditions[resource_type]) for search in searches)))
    return replace(query, conditions={resource_type: (*query.conditions[resource_type], *conditions)})


def _patients(request: Request, restriction: Restriction) -> Sequence[str] | None:
    """Whose records are read; None: a type is read through."""
    asked = None if request.patients is None else frozenset(request.patients)
    if not _limited(restriction):
        return None if asked is None else sorted(asked)
    allowed = frozenset().union(*(alternative.patients or () for alternative in restriction.alternatives))
    return sorted(allowed if asked is None else allowed & asked)


def _limited(restriction: Restriction) -> bool:
    """To some patients."""
    return all(alternative.patients is not None for alternative in restriction.alternatives)


async def _of_nobody_else(matches: AsyncIterator[Stored], patients: frozenset[str]) -> AsyncIterator[Stored]:
    async for stored in matches:
        if patients.issuperset(stored.patients):
            yield stored

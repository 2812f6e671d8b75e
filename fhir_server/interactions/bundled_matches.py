"""Conditional references of a transaction, resolved as if it were carried out already. https://hl7.org/fhir/R4/http.html#trules

They come last in the processing order: what the transaction makes can match, what it deletes or replaces no longer does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fhir_server.errors import BadRequest, MultipleMatches
from fhir_server.interactions import write
from fhir_server.interactions.call import Pairs, split_url
from fhir_server.interactions.context import Context, Server
from fhir_server.interactions.search import find_matches, in_memory
from fhir_server.model.resource import Resource
from fhir_server.search.index import index
from fhir_server.search.match import Candidate
from fhir_server.store.protocol import Key


class BundledMatches:
    """`made`: resources by the key they will have; `gone`: keys of current versions that will not be current any more."""

    def __init__(self, server: Server, context: Context, made: Mapping[Key, Resource], gone: Sequence[Key]) -> None:
        self._server, self._context = server, context
        self._made, self._gone = made, frozenset(gone)
        self._candidates: dict[str, list[Candidate]] = {}

    async def sole(self, reference: str) -> str:
        """`Type?criteria` → `Type/id`. Raises BadRequest for no match, MultipleMatches for more than one."""
        (name, *_), criteria = split_url(reference)
        resource_type = write.check_type(name)
        found = await self._stored(resource_type, criteria)
        candidates = self._of_type(resource_type)
        if candidates:
            matches = in_memory(self._server, self._context, resource_type, criteria)
            found |= {candidate.id for candidate in candidates if matches(candidate)}
        if not found:
            raise BadRequest(f"Nothing matches the conditional reference {reference[:200]!r}")
        if len(found) > 1:
            raise MultipleMatches(
                f"More than one {resource_type} matches the conditional reference {reference[:200]!r}"
            )
        return f"{resource_type}/{found.pop()}"

    async def _stored(self, resource_type: str, criteria: Pairs) -> set[str]:
        gone = {id for name, id in self._gone if name == resource_type}
        found = await find_matches(self._server, self._context, "search", resource_type, criteria, 2 + len(gone))
        return {one.id for one in found} - gone

    def _of_type(self, resource_type: str) -> list[Candidate]:
        known = self._candidates.get(resource_type)
        if known is None:
            known = self._candidates[resource_type] = []
            for (name, id), resource in self._made.items():
                body = {**resource, "id": id}
                # What is not valid is refused later on, with everything that is wrong with it.
                if name == resource_type and not any(issue.is_error for issue in self._server.validator.check(body)):
                    known.append(Candidate(name, id, index(self._server.registry, body, base=self._context.base)))
        return known

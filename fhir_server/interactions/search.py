"""search, and finding the matches of conditional requests. https://hl7.org/fhir/R4/http.html#search"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fhir_server.auth.principal import Principal
from fhir_server.interactions.call import Pairs
from fhir_server.interactions.context import Context, Server
from fhir_server.model.resource import load
from fhir_server.store.protocol import Stored

RECORDS_AT_MOST = 10_000


async def find_matches(
    server: Server, context: Context, interaction: str, resource_type: str, criteria: Pairs, limit: int
) -> list[Stored]:
    """Up to `limit` live resources that match, as the principal may see them for this interaction."""
    raise NotImplementedError


async def search(server: Server, context: Context, resource_type: str | None, query: Pairs) -> bytes:
    """A searchset Bundle."""
    raise NotImplementedError


async def compartment(
    server: Server, context: Context, compartment: str, id: str, resource_type: str, query: Pairs
) -> bytes:
    """`Patient/x/Observation?…` and `Patient/x/*`."""
    raise NotImplementedError


class Records:
    """`auth.reach.Records`: what the policy itself has to look up (care teams, proxies), seen by the server, not by a user."""

    def __init__(self, server: Server, base: str) -> None:
        self._server = server
        self._context = Context(Principal.automation(), base)

    async def find(
        self, resource_type: str, *parameters: tuple[str, str], limit: int = 0
    ) -> Sequence[Mapping[str, Any]]:
        found = await find_matches(
            self._server, self._context, "search", resource_type, list(parameters), limit or RECORDS_AT_MOST
        )
        return [load(stored.raw) for stored in found]

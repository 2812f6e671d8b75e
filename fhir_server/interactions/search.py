"""search, and finding the matches of conditional requests. https://hl7.org/fhir/R4/http.html#search"""

from __future__ import annotations

from fhir_server.interactions.call import Pairs
from fhir_server.interactions.context import Context, Server
from fhir_server.store.protocol import Stored


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

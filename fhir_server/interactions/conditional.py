"""Conditional create, update, patch and delete. https://hl7.org/fhir/R4/http.html#ccreate

A search says whether there is a match; a claim on the criteria, taken in the transaction of the write, makes sure that two
equal requests at the same moment cannot both find none. A claim is of no more use once its transaction is over, so one
that is found before a search that finds no match is stale, and is taken over.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable

from fhir_server.errors import BadRequest, Conflict, MultipleMatches, NotFound
from fhir_server.interactions import write
from fhir_server.interactions.call import Pairs, parse_query
from fhir_server.interactions.context import Context, Server
from fhir_server.interactions.search import find_matches
from fhir_server.interactions.write import Written
from fhir_server.model.resource import Resource
from fhir_server.store.protocol import Changed, Claim, Stored

ATTEMPTS = 200
DELETE_AT_MOST = 1000


def criteria_of(header: str) -> Pairs:
    """The value of If-None-Exist: `identifier=http://…|1` (some clients send it with a leading `?` or type)."""
    text = header.split("?", 1)[-1]
    pairs = parse_query(text)
    if not pairs:
        raise BadRequest("If-None-Exist has no search parameters; it would match every resource")
    return pairs


async def sole_match(
    server: Server, context: Context, interaction: str, resource_type: str, criteria: Pairs
) -> Stored | None:
    """The one resource that matches, None if there is none. Raises MultipleMatches (412)."""
    if not criteria:
        raise BadRequest(f"A conditional request on {resource_type} needs search parameters")
    found = await find_matches(server, context, interaction, resource_type, criteria, 2)
    if len(found) > 1:
        raise MultipleMatches(f"More than one {resource_type} matches {_text(criteria)}; nothing was changed")
    return found[0] if found else None


async def create(
    server: Server, context: Context, resource_type: str, resource: Resource | None, criteria: Pairs
) -> Written:
    """If-None-Exist: none → create, one → that one as it is, more → 412."""

    async def attempt(match: Stored | None, claim: Claim) -> Written:
        if match is not None:
            write.check_body(resource, resource_type)
            return Written(match, changed=False)
        return await write.create(server, context, resource_type, resource, claim=claim)

    return await claiming(server, context, "conditional-create", resource_type, criteria, attempt)


async def update(
    server: Server,
    context: Context,
    resource_type: str,
    resource: Resource | None,
    criteria: Pairs,
    *,
    if_match: str | None = None,
) -> Written:
    """None → create (under the body's id, if it has one that is free), one → update it, more → 412."""

    async def attempt(match: Stored | None, claim: Claim) -> Written:
        body = write.check_body(resource, resource_type)
        id = body.get("id")
        if match is not None:
            if id is not None and id != match.id:
                raise BadRequest(
                    f"The criteria match {resource_type}/{match.id}, but the body's id is {str(id)[:100]!r}",
                    expression=[f"{resource_type}.id"],
                )
            body = {**body, "id": match.id}
            return await write.update(server, context, resource_type, match.id, body, if_match=if_match)
        write.check_preconditions(None, resource_type, str(id or "?")[:64], if_match, None)
        if id is None:
            return await write.create(server, context, resource_type, body, claim=claim)
        if not server.policy.may_choose_id(context.principal, resource_type):
            raise server.policy.refuse_write(resource_type)
        if await server.store.read(resource_type, str(id)) is not None:
            raise Conflict(f"Nothing matches {_text(criteria)}, but {resource_type}/{id} exists already")
        return await write.update(server, context, resource_type, str(id), body, claim=claim)

    return await claiming(server, context, "conditional-update", resource_type, criteria, attempt)


async def patch(
    server: Server,
    context: Context,
    resource_type: str,
    change: Callable[[Resource], Resource],
    criteria: Pairs,
    *,
    if_match: str | None = None,
) -> Written:
    server.policy.may(context.principal, "conditional-patch", write.check_type(resource_type))
    match = await sole_match(server, context, "conditional-patch", resource_type, criteria)
    if match is None:
        raise NotFound(f"No {resource_type} matches {_text(criteria)}")
    return await write.patch(server, context, resource_type, match.id, change, if_match=if_match)


async def delete(
    server: Server,
    context: Context,
    resource_type: str,
    criteria: Pairs,
    *,
    multiple: bool = False,
    if_match: str | None = None,
) -> list[Written]:
    """One match is deleted; several only when the client asked for it, and then all in one transaction."""
    server.policy.may(context.principal, "conditional-delete", write.check_type(resource_type))
    if not multiple:
        match = await sole_match(server, context, "conditional-delete", resource_type, criteria)
        return [await write.delete(server, context, resource_type, match.id, if_match=if_match)] if match else []
    if not criteria:
        raise BadRequest(f"A conditional delete of {resource_type} needs search parameters")
    for attempt in range(ATTEMPTS):
        found = await find_matches(server, context, "conditional-delete", resource_type, criteria, DELETE_AT_MOST + 1)
        if len(found) > DELETE_AT_MOST:
            raise MultipleMatches(
                f"More than {DELETE_AT_MOST} {resource_type} match {_text(criteria)}; narrow the criteria. Nothing was deleted"
            )
        # What a search shows may be more than what may be deleted; the rest is as if it were not there.
        fitting = [await write.see(server, context, "delete", one) for one in found]
        puts = [put for one in fitting if (put := write.prepare_delete(server, context, one)) is not None]
        try:
            if puts:
                await write.commit(server, puts)
        except Changed:
            await asyncio.sleep(0.001 * attempt)
            continue
        return [Written(put.stored) for put in puts]
    raise Conflict(f"The matching {resource_type} are being changed by many others at once; try again")


async def claiming(
    server: Server,
    context: Context,
    interaction: str,
    resource_type: str,
    criteria: Pairs,
    attempt: Callable[[Stored | None, Claim], Awaitable[Written]],
) -> Written:
    """Run `attempt` with the match, or with none and a claim that nobody else can hold; again if somebody was faster."""
    server.policy.may(context.principal, interaction, write.check_type(resource_type))
    key = claim_key(resource_type, criteria)
    for number in range(ATTEMPTS):
        holder = await server.store.claim_holder(key)  # before the search: see the module's docstring
        match = await sole_match(server, context, interaction, resource_type, criteria)
        try:
            return await attempt(match, Claim(key, holder))
        except Changed:
            await asyncio.sleep(min(0.1, 0.002 * number) * random.random())
    raise Conflict(f"Many equal conditional requests on {resource_type} at once; try again")


def claim_key(resource_type: str, criteria: Pairs) -> str:
    """Equal criteria in any order give one key."""
    text = "\n".join(f"{name}={value}" for name, value in sorted(criteria))
    return hashlib.sha256(f"{resource_type}\n{text}".encode()).hexdigest()


def _text(criteria: Pairs) -> str:
    return "&".join(f"{name}={value}" for name, value in criteria)[:300]

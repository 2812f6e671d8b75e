"""create, update, patch and delete: the only way to change data. https://hl7.org/fhir/R4/http.html#create

prepare: whose write is it, is it right, how will it be found → a Put; then one commit. Where somebody else wrote first,
a write that named no version is prepared again on top of theirs; one that did (If-Match) is refused with 412.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from typing import Any

from fhir_server.errors import (
    BadRequest,
    Conflict,
    Gone,
    Issue,
    NotFound,
    PreconditionFailed,
    Unavailable,
    Unprocessable,
)
from fhir_server.interactions.belonging import belonging
from fhir_server.interactions.call import check_id, versions_of
from fhir_server.interactions.context import Context, Joined, Server
from fhir_server.model import dates
from fhir_server.model.definitions import RESOURCE_TYPES
from fhir_server.model.resource import Resource, dump, load
from fhir_server.search.index import Indexed, index
from fhir_server.store.protocol import Changed, Claim, Event, Extra, Method, Put, Stored

log = logging.getLogger(__name__)

ATTEMPTS = 50  # of a write that names no version, while others write the same resource


@dataclass(frozen=True, slots=True)
class Written:
    """`changed` is false for an update that changes nothing and for a delete of what is not there."""

    stored: Stored | None
    created: bool = False
    changed: bool = True
    issues: tuple[Issue, ...] = ()  # warnings


def check_type(resource_type: str) -> str:
    if resource_type not in RESOURCE_TYPES:
        raise NotFound(f"{resource_type[:100]!r} is not an R4 resource type")
    return resource_type


def check_body(resource: Resource | None, resource_type: str) -> Resource:
    if resource is None:
        raise BadRequest(f"The request needs a {resource_type} resource as its body")
    found = resource.get("resourceType")
    if found != resource_type:
        raise BadRequest(
            f"The body's resourceType is {str(found)[:100]!r}, but the request is for {resource_type}",
            expression=["resourceType"],
        )
    return resource


async def see(server: Server, context: Context, interaction: str, stored: Stored | None) -> Stored | None:
    """The version if the principal may see it; what may not be seen does not exist."""
    if stored is None or server.policy.sees(context.principal, interaction, stored):
        return stored
    return None


def prepare(
    server: Server,
    context: Context,
    resource: Resource,
    id: str,
    previous: Stored | None,
    *,
    interaction: str = "create",
    method: Method | None = None,
    claim: Claim | None = None,
    checked: bool = False,
    about: Sequence[str] = (),
) -> tuple[Put | None, list[Issue]]:
    """A resource as sent → the Put that stores it, and warnings. No Put: nothing would change.

    `checked`: it is known to be valid. `about`: the patients whose records it is in by what it refers to (belonging.py).
    Raises Unprocessable with every issue found, or what the policy says.
    Pure but for clock; CPU only.
    """
    resource_type = str(resource["resourceType"])
    resource = {**resource, "id": id}
    issues = [] if checked else server.validator.check(resource)
    if any(issue.is_error for issue in issues):
        raise Unprocessable(f"{resource_type} is not valid", issues=issues)
    guard = server.guards.get(resource_type) if not checked else None
    beside: tuple[Extra, ...] = ()
    if guard is not None:
        resource, kept = guard(context, resource)
        beside = (kept,)
    indexed = index(server.registry, resource, base=context.base)
    if about:
        indexed = Indexed(indexed.entries, tuple(dict.fromkeys((*indexed.patients, *about))))
    stored = next_version(server, resource, indexed, previous, method)
    server.policy.check_write(context.principal, interaction, stored, previous)
    if previous is not None and not previous.deleted and not beside:
        same = dump(stamped(resource, previous.version, previous.updated))
        if same == previous.raw:
            return None, issues
    return Put(stored, previous, claim, context.cause, extras=beside), issues


def next_version(
    server: Server, resource: Resource, indexed: Indexed, previous: Stored | None, method: Method | None = None
) -> Stored:
    version = previous.version + 1 if previous is not None else 1
    updated = moment(server, previous)
    return Stored(
        str(resource["resourceType"]),
        str(resource["id"]),
        version,
        updated,
        dump(stamped(resource, version, updated)),
        False,
        method or ("create" if previous is None or previous.deleted else "update"),
        indexed.patients,
        indexed.entries,
    )


def moment(server: Server, previous: Stored | None) -> int:
    """Now in ms, but later than the version it follows, so that history has one order whatever the clocks do."""
    now = dates.milliseconds(server.now())
    return max(now, previous.updated + 1) if previous is not None else now


def stamped(resource: Resource, version: int, updated: int) -> Resource:
    """The resource with id and meta first, as it is stored and served; the client's meta but for what is the server's."""
    result: Resource = {"resourceType": resource["resourceType"], "id": resource["id"]}
    meta: dict[str, Any] = {"versionId": str(version), "lastUpdated": dates.instant(updated)}
    for key, value in (resource.get("meta") or {}).items():
        if key.removeprefix("_") not in ("versionId", "lastUpdated"):
            meta[key] = value
    result["meta"] = meta
    for key, value in resource.items():
        if key not in result:
            result[key] = value
    return result


async def create(
    server: Server, context: Context, resource_type: str, resource: Resource | None, *, claim: Claim | None = None
) -> Written:
    """A new resource under a new id; an id in the body is not kept (http.html#create)."""
    server.policy.may(context.principal, "create", check_type(resource_type))
    body = check_body(resource, resource_type)
    about = await belonging(server, context, "create", body)
    put, issues = prepare(server, context, body, server.new_id(), None, claim=claim, about=about)
    if put is None:
        raise AssertionError("a first version always changes something")
    await commit(server, [put])
    return Written(put.stored, created=True, issues=tuple(issues))


async def update(
    server: Server,
    context: Context,
    resource_type: str,
    id: str,
    resource: Resource | None,
    *,
    if_match: str | None = None,
    if_none_match: str | None = None,
    claim: Claim | None = None,
) -> Written:
    """A new version, or the first one under the client's id. https://hl7.org/fhir/R4/http.html#update"""
    server.policy.may(context.principal, "update", check_type(resource_type))
    body = check_body(resource, resource_type)
    check_body_id(body, check_id(id))
    return await rewrite(
        server,
        context,
        resource_type,
        id,
        lambda current: body,
        interaction="update",
        if_match=if_match,
        if_none_match=if_none_match,
        claim=claim,
    )


def check_body_id(body: Resource, id: str) -> None:
    if "id" not in body:
        raise BadRequest(f"The body must have the id of the URL, {id!r}", expression=[f"{body['resourceType']}.id"])
    if body["id"] != id:
        raise BadRequest(
            f"The body's id {str(body['id'])[:100]!r} is not the id of the URL, {id!r}",
            expression=[f"{body['resourceType']}.id"],
        )


async def patch(
    server: Server,
    context: Context,
    resource_type: str,
    id: str,
    change: Callable[[Resource], Resource],
    *,
    if_match: str | None = None,
) -> Written:
    """`change` maps the current resource to the new one and is applied again if somebody else wrote first."""
    server.policy.may(context.principal, "patch", check_type(resource_type))

    def changed(current: Resource | None) -> Resource:
        if current is None:
            raise NotFound(f"{resource_type}/{id} does not exist")
        body = check_body(change(current), resource_type)
        check_body_id(body, id)
        return body

    return await rewrite(
        server, context, resource_type, check_id(id), changed, interaction="patch", if_match=if_match, must_exist=True
    )


async def rewrite(
    server: Server,
    context: Context,
    resource_type: str,
    id: str,
    change: Callable[[Resource | None], Resource],
    *,
    interaction: str,
    if_match: str | None = None,
    if_none_match: str | None = None,
    must_exist: bool = False,
    claim: Claim | None = None,
) -> Written:
    """Read, change, commit; on top of whoever was faster, unless the caller named the version it saw."""
    for attempt in range(ATTEMPTS):
        previous = await server.store.read(resource_type, id)
        visible = await see(server, context, interaction, previous)
        check_preconditions(visible, resource_type, id, if_match, if_none_match)
        if must_exist:
            existing(visible, resource_type, id)
        if visible is None and (
            previous is not None or not server.policy.may_choose_id(context.principal, resource_type)
        ):
            raise server.policy.refuse_write(resource_type)
        live = previous is not None and not previous.deleted
        if not live:
            server.policy.may(context.principal, "create", resource_type)
        body = change(load(previous.raw) if previous is not None and live else None)
        about = await belonging(server, context, interaction, body)
        put, issues = prepare(server, context, body, id, previous, interaction=interaction, claim=claim, about=about)
        if put is None:
            return Written(previous, changed=False, issues=tuple(issues))
        try:
            await commit(server, [put])
        except Changed as changed:
            if claim is not None and claim.key in changed.claims:
                raise
            await asyncio.sleep(0.001 * attempt)
            continue
        return Written(put.stored, created=not live, issues=tuple(issues))
    raise Conflict(f"{resource_type}/{id} is being changed by many others at once; try again")


async def delete(
    server: Server, context: Context, resource_type: str, id: str, *, if_match: str | None = None
) -> Written:
    """Idempotent: deleting what is deleted, or never was, changes nothing. https://hl7.org/fhir/R4/http.html#delete"""
    server.policy.may(context.principal, "delete", check_type(resource_type))
    check_id(id)
    for attempt in range(ATTEMPTS):
        previous = await see(server, context, "delete", await server.store.read(resource_type, id))
        check_preconditions(previous, resource_type, id, if_match, None)
        put = prepare_delete(server, context, previous)
        if put is None:
            return Written(previous, changed=False)
        try:
            await commit(server, [put])
        except Changed:
            await asyncio.sleep(0.001 * attempt)
            continue
        return Written(put.stored)
    raise Conflict(f"{resource_type}/{id} is being changed by many others at once; try again")


def prepare_delete(server: Server, context: Context, previous: Stored | None) -> Put | None:
    """The tombstone that follows `previous`; it stays in the compartments of what it ends. Raises what the policy says."""
    if previous is None or previous.deleted:
        return None
    updated = moment(server, previous)
    # A tombstone keeps the labels of what it ends: who must not see the one must not see the other.
    labels = (load(previous.raw).get("meta") or {}).get("security") if b'"security"' in previous.raw else None
    raw = dump({"meta": {"security": labels}}) if labels else b""
    stored = Stored(
        previous.resource_type, previous.id, previous.version + 1, updated, raw, True, "delete", previous.patients
    )
    server.policy.check_write(context.principal, "delete", stored, previous)
    return Put(stored, previous, None, context.cause)


def check_preconditions(
    current: Stored | None, resource_type: str, id: str, if_match: str | None, if_none_match: str | None
) -> None:
    """If-Match and If-None-Match of a write. Raises PreconditionFailed."""
    live = current is not None and not current.deleted
    found = str(current.version) if current is not None and live else None
    wanted = versions_of(if_match)
    if wanted is not None and (found is None or wanted.isdisjoint(("*", found))):
        raise PreconditionFailed(
            f"{resource_type}/{id} is at version {found or 'none'}, not at {(if_match or '')[:80]!r} as If-Match says; "
            "read it again"
        )
    unwanted = versions_of(if_none_match)
    if unwanted is not None and found is not None and not unwanted.isdisjoint(("*", found)):
        raise PreconditionFailed(f"{resource_type}/{id} exists already, at version {found}")


def existing(stored: Stored | None, resource_type: str, id: str) -> Stored:
    """The live version, or NotFound, or Gone with the ETag of the tombstone."""
    if stored is None:
        raise NotFound(f"{resource_type}/{id} does not exist")
    if stored.deleted:
        gone = Gone(f"{resource_type}/{id} was deleted")
        gone.headers["ETag"] = f'W/"{stored.version}"'
        gone.headers["Last-Modified"] = http_date(stored.updated)
        raise gone
    return stored


def http_date(updated: int) -> str:
    """Milliseconds → RFC 9110 date, e.g. `Sun, 06 Nov 1994 08:49:37 GMT`."""
    return _http_date(updated // 1000)


@lru_cache(maxsize=4096)
def _http_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


async def commit(server: Server, puts: Sequence[Put], extras: Sequence[Extra] = ()) -> list[Event]:
    """Every write ends here; whoever waits for events is told in process, the outbox tells everybody else."""
    for join in server.joins if not extras else ():
        joined = await join(puts)
        if joined is not None:
            # Whoever asked may go away; what has begun is brought to its end.
            events = await asyncio.shield(asyncio.ensure_future(_commit_joined(server, joined)))
            if events is not None:
                return events
    return _tell(server, puts, await server.store.commit(puts, [*extras, *await _noticed(server, puts)]))


async def _noticed(server: Server, puts: Sequence[Put]) -> list[Extra]:
    """What others want in the transaction of these."""
    return [extra for ask in server.notices if (extra := await ask(puts)) is not None]


async def _commit_joined(server: Server, joined: Joined) -> list[Event] | None:
    """None where it could not be: then the change has to go without what follows from it."""
    try:
        extras = [*joined.extras, *await _noticed(server, joined.puts)]
        events = await server.store.commit(joined.puts, extras)
    except Unavailable:  # alone it would fare no better, and may have been committed after all
        joined.failed()
        raise
    except Exception as error:
        joined.failed()
        log.debug("a change goes without what follows from it: %r", error)
        return None
    joined.committed()
    return _tell(server, joined.puts, events)


def _tell(server: Server, puts: Sequence[Put], events: list[Event]) -> list[Event]:
    for tell in server.committed:
        tell(events)
    for show in server.written:
        show(puts, events)
    return events

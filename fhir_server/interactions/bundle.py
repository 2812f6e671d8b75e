"""batch and transaction. https://hl7.org/fhir/R4/http.html#transaction

A batch is its entries, each for itself. A transaction is one commit: identities first (conditional creates, updates and
references resolved, ids given), then references rewritten, then every resource prepared, then all or nothing.
If somebody else wrote one of its resources meanwhile, the whole of it is worked out again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence

from fhir_server.errors import BadRequest, Conflict, FhirError, Gone, Issue, NotFound, TooLarge, Unprocessable
from fhir_server.interactions import patch_document, read, write
from fhir_server.interactions.belonging import belonging
from fhir_server.interactions.bundled_matches import BundledMatches
from fhir_server.interactions.call import Answer, Call, check_id
from fhir_server.interactions.conditional import claim_key, criteria_of, sole_match
from fhir_server.interactions.context import Context, Server
from fhir_server.interactions.entry import ORDER, Entry, at, entry_of, named, within
from fhir_server.interactions.references import Rewriting, conditional_references, rewritten
from fhir_server.model.definitions import RESOURCE_TYPES
from fhir_server.model.resource import Resource, load
from fhir_server.search.records import THROUGH
from fhir_server.store.protocol import Changed, Claim, Key, Put, Stored

Dispatch = Callable[[Server, Context, Call], Awaitable[Answer]]

INTERACTION = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
ATTEMPTS = 20
BATCH_AT_ONCE = 32
BREATH = 50  # resources prepared before others get a turn of the event loop


async def process(
    server: Server, context: Context, call: Call, dispatch: Dispatch, safely: Dispatch
) -> tuple[str, list[Answer]]:
    """A Bundle of type batch or transaction → the response's type and one answer an entry, in request order.

    `dispatch` carries out one request and raises where it fails, `safely` answers with the failure.
    """
    bundle = call.resource
    if bundle is None or bundle.get("resourceType") != "Bundle":
        raise BadRequest("A POST to the base needs a Bundle of type batch or transaction")
    kind = bundle.get("type")
    if kind not in ("batch", "transaction"):
        raise BadRequest(
            f"Only batch and transaction bundles can be processed, not {kind!r}", expression=["Bundle.type"]
        )
    server.policy.may(context.principal, kind)
    raw = bundle.get("entry", [])
    if not isinstance(raw, list):
        raise BadRequest("Bundle.entry must be an array", expression=["Bundle.entry"])
    most = server.settings.max_bundle_entries
    if len(raw) > most:
        raise TooLarge(f"The Bundle has {len(raw)} entries; this server takes {most} at once")
    if kind == "batch":
        return "batch-response", await _batch(server, context, raw, safely)
    entries = [entry_of(index, item, context) for index, item in enumerate(raw)]
    return "transaction-response", await _transaction(server, context, entries, dispatch, safely)


async def _batch(server: Server, context: Context, raw: list[object], dispatch: Dispatch) -> list[Answer]:
    gate = asyncio.Semaphore(BATCH_AT_ONCE)

    async def one(index: int, item: object) -> Answer:
        async with gate:
            try:
                call = entry_of(index, item, context).call
                if call.method == "PATCH" and call.resource is not None and patch_document.is_wrapped(call.resource):
                    call.document = patch_document.unwrapped(call.resource)
                return await dispatch(server, context, call)
            except FhirError as error:
                return Answer(error.status, issues=error.issues, headers=error.headers)

    return list(await asyncio.gather(*(one(index, item) for index, item in enumerate(raw))))


async def _transaction(
    server: Server, context: Context, entries: list[Entry], dispatch: Dispatch, safely: Dispatch
) -> list[Answer]:
    writes = sorted((entry for entry in entries if ORDER[entry.call.method] < 3), key=lambda e: ORDER[e.call.method])
    reads = [entry for entry in entries if ORDER[entry.call.method] == 3]
    _check_requests(server, context, writes)
    if writes:
        await _rehearse(server, context, reads, dispatch)
    for attempt in range(ATTEMPTS):
        await _identify(server, context, writes)
        puts = await _prepare(server, context, writes)
        try:
            if puts:
                await write.commit(server, puts)
            break
        except Changed:
            await asyncio.sleep(min(0.5, 0.01 * 2**attempt) * random.random())
    else:
        raise Conflict("The resources of this transaction are being changed by others at the same time; try again")
    answers = {entry.index: _answer(server, context, entry) for entry in writes}
    for entry in reads:
        # What is written stays written: a read that fails now must not make it look refused.
        answers[entry.index] = await within(entry, (safely if writes else dispatch)(server, context, entry.call))
    return [answers[entry.index] for entry in entries]


async def _rehearse(server: Server, context: Context, reads: list[Entry], dispatch: Dispatch) -> None:
    """Reads that cannot succeed refuse the transaction before it writes; those of what it will make are let through."""
    for entry in reads:
        try:
            await within(entry, dispatch(server, context, entry.call))
        except (NotFound, Gone):
            if not 2 <= len(entry.call.path) <= 4 or entry.call.path[0] not in RESOURCE_TYPES:
                raise


def _check_requests(server: Server, context: Context, writes: list[Entry]) -> None:
    for entry in writes:
        try:
            _check_request(server, context, entry)
        except FhirError as error:
            raise named(entry, error) from None


def _check_request(server: Server, context: Context, entry: Entry) -> None:
    call = entry.call
    levels = {"POST": (1,), "PUT": (1, 2), "PATCH": (1, 2), "DELETE": (1, 2)}[call.method]
    if len(call.path) not in levels or any(part.startswith("$") for part in call.path):
        raise BadRequest(f"{call.method} {'/'.join(call.path)} cannot be part of a transaction")
    resource_type = write.check_type(call.path[0])
    interaction = INTERACTION[call.method]
    if len(call.path) == 1 and (call.method != "POST" or call.header("if-none-exist") is not None):
        interaction = f"conditional-{interaction}"
    server.policy.may(context.principal, interaction, resource_type)
    if call.method in ("POST", "PUT"):
        write.check_body(call.resource, resource_type)
    if len(call.path) == 2:
        check_id(call.path[1])
    entry.new_id = entry.new_id or server.new_id()


async def _identify(server: Server, context: Context, writes: list[Entry]) -> None:
    """Which resource each entry is about; a resource may be written once only."""
    await asyncio.gather(*(within(entry, _find(server, context, entry)) for entry in writes))
    seen: dict[Key, Entry] = {}
    claims: dict[str, Entry] = {}
    for entry in writes:
        unwritten = entry.call.method == "POST" and entry.match is not None
        if entry.target is not None and not unwritten:
            if entry.target in seen:
                raise _twice(seen[entry.target], entry, "/".join(entry.target))
            seen[entry.target] = entry
        if entry.claim is not None:
            if entry.claim.key in claims:
                raise _twice(claims[entry.claim.key], entry, "what matches the same criteria")
            claims[entry.claim.key] = entry


def _twice(first: Entry, second: Entry, what: str) -> BadRequest:
    return BadRequest(
        f"{first.name} and {second.name} both write {what}; a transaction may write a resource once",
        expression=[first.name, second.name],
    )


async def _find(server: Server, context: Context, entry: Entry) -> None:
    call = entry.call
    resource_type = call.path[0]
    entry.claim = entry.match = entry.put = None
    if len(call.path) == 2:
        entry.target = (resource_type, call.path[1])
        return
    header = call.header("if-none-exist")
    if call.method == "POST" and header is None:
        entry.target = (resource_type, entry.new_id)
        return
    criteria = criteria_of(header) if header is not None else call.query
    interaction = INTERACTION[call.method]
    key = claim_key(resource_type, criteria)
    holder = await server.store.claim_holder(key) if call.method in ("POST", "PUT") else ""
    entry.match = await sole_match(server, context, f"conditional-{interaction}", resource_type, criteria)
    if entry.match is not None:
        entry.target = (resource_type, entry.match.id)
    elif call.method in ("POST", "PUT"):
        own = (call.resource or {}).get("id") if call.method == "PUT" else None
        entry.target = (resource_type, check_id(str(own)) if own is not None else entry.new_id)
        entry.claim = Claim(key, holder)
    else:
        entry.target = None
        if call.method == "PATCH":
            raise BadRequest("Nothing matches the criteria of the patch")


async def _prepare(server: Server, context: Context, writes: list[Entry]) -> list[Put]:
    rewriting = await _rewriting(server, context, writes)
    targets = [entry.target for entry in writes if entry.target is not None and _reads(entry)]
    found = await server.store.read_many(targets)
    puts: list[Put] = []
    problems: list[Issue] = []
    beside: dict[Key, Sequence[str]] = {}
    for number, entry in enumerate(sorted(writes, key=_turn)):
        if number % BREATH == BREATH - 1:
            await asyncio.sleep(0)
        try:
            previous = found.get(entry.target) if entry.target else None
            await _prepare_one(server, context, entry, previous, rewriting, beside)
        except Unprocessable as error:
            problems.extend(at(entry, issue) for issue in error.issues)
        except FhirError as error:
            raise named(entry, error) from None
        if entry.put is not None:
            puts.append(entry.put)
            beside[entry.put.stored.resource_type, entry.put.stored.id] = entry.put.stored.patients
    if any(issue.is_error for issue in problems):
        raise Unprocessable("The transaction was not carried out", issues=problems)
    return puts


def _turn(entry: Entry) -> int:
    """When it is prepared: what is about others after them, and a Provenance last, which may be about a Task."""
    kind = entry.call.path[0]
    return 0 if kind not in THROUGH else 2 if kind == "Provenance" else 1


def _reads(entry: Entry) -> bool:
    return entry.call.method != "POST" and not (
        entry.match is None and len(entry.call.path) == 1 and entry.claim is None
    )


async def _prepare_one(
    server: Server,
    context: Context,
    entry: Entry,
    previous: Stored | None,
    rewriting: Rewriting,
    beside: Mapping[Key, Sequence[str]],
) -> None:
    call = entry.call
    if entry.target is None or (call.method == "POST" and entry.match is not None):
        return
    resource_type, id = entry.target
    interaction = INTERACTION[call.method]
    visible = await write.see(server, context, interaction, previous)
    write.check_preconditions(visible, resource_type, id, call.header("if-match"), call.header("if-none-match"))
    if call.method == "DELETE":
        entry.put = write.prepare_delete(server, context, visible)
        return
    if call.method == "PATCH":
        current = write.existing(visible, resource_type, id)
        body = patch_document.from_entry(call.resource or {})(load(current.raw))
    else:
        free = previous is None and server.policy.may_choose_id(context.principal, resource_type)
        if visible is None and id != entry.new_id and not free:
            raise server.policy.refuse_write(resource_type)
        body = call.resource or {}
        if call.method == "PUT" and len(call.path) == 2:
            write.check_body_id(body, id)
        elif call.method == "PUT" and body.get("id", id) != id:
            raise BadRequest(f"The criteria match {resource_type}/{id}, but the body's id is {body['id']!r}")
        if entry.claim is not None and previous is not None:
            raise Conflict(f"Nothing matches the criteria, but {resource_type}/{id} exists already")
        if previous is None or previous.deleted:
            server.policy.may(context.principal, "create", resource_type)
    body = rewritten(body, rewriting)
    about = await belonging(server, context, interaction, body, beside)
    entry.put, entry.issues = write.prepare(
        server, context, body, id, previous, interaction=interaction, claim=entry.claim, about=about
    )
    if entry.put is None:
        entry.match = previous


async def _rewriting(server: Server, context: Context, writes: list[Entry]) -> Rewriting:
    """What each reference between entries, and each conditional reference, becomes."""
    mapping: dict[str, str] = {}
    for entry in writes:
        if not entry.full_url or entry.target is None:
            continue
        target = "/".join(entry.target)
        if mapping.setdefault(entry.full_url, target) != target:
            raise BadRequest(
                f"{entry.name} has the same fullUrl as another entry", expression=[f"{entry.name}.fullUrl"]
            )
        own = (entry.call.resource or {}).get("id")
        if entry.call.method == "POST" and own and entry.full_url.endswith(f"/{entry.target[0]}/{own}"):
            mapping.setdefault(f"{entry.target[0]}/{own}", target)  # relative to the same base as the fullUrl
    wanted: dict[str, Entry] = {}
    for entry in writes:
        if entry.call.resource is not None and not (entry.call.method == "POST" and entry.match is not None):
            for reference in conditional_references(entry.call.resource):
                wanted.setdefault(reference, entry)

    if wanted:
        made: dict[Key, Resource] = {}
        gone: list[Key] = []
        for entry in writes:
            call = entry.call
            if entry.target is None or (call.method == "POST" and entry.match is not None):
                continue
            if call.resource is not None and call.method in ("POST", "PUT"):
                made[entry.target] = call.resource
            if call.method in ("PUT", "DELETE"):
                gone.append(entry.target)
        bundled = BundledMatches(server, context, made, gone)

        async def resolve(reference: str, entry: Entry) -> None:
            mapping[reference] = await within(entry, bundled.sole(reference))

        await asyncio.gather(*(resolve(reference, entry) for reference, entry in wanted.items()))
    return Rewriting(mapping)


def _answer(server: Server, context: Context, entry: Entry) -> Answer:
    put = entry.put
    if put is None:  # nothing had to change: a conditional create that matched, an equal update, a delete of nothing
        stored = entry.match if entry.call.method != "DELETE" else None
        status = 204 if stored is None else 200
    else:
        stored = put.stored
        live = put.previous is not None and not put.previous.deleted
        status = 204 if stored.deleted else 200 if live else 201
    answer = Answer(status, stored=stored, wrote=True, issues=entry.issues)
    if stored is not None:
        answer.location = f"{stored.resource_type}/{stored.id}/_history/{stored.version}"
    return read.shown(server, context, answer) if entry.call.method == "PATCH" else answer

"""The thin functions behind the URLs: a Call goes in, an Answer comes out; what they do is in `interactions/`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import quote, urlencode

from fhir_server.errors import BadRequest, Issue, MethodNotAllowed, NotFound, UnknownParameter
from fhir_server.http.wire import preferences
from fhir_server.interactions import capabilities, conditional, patch_document, read, search, write
from fhir_server.interactions.call import Answer, Call
from fhir_server.interactions.context import Context, Server
from fhir_server.interactions.write import Written
from fhir_server.model import dates
from fhir_server.model.resource import Resource, dump, load
from fhir_server.operations import find
from fhir_server.search.summary import subset
from fhir_server.store.protocol import Stored

Endpoint = Callable[[Server, Context, Call], Awaitable[Answer]]

FORMAT = frozenset({"_format", "_pretty"})
SHAPE = FORMAT | {"_summary", "_elements"}
DELETE_CONTROLS = frozenset({"_multiple"})


def controls(context: Context, call: Call, known: frozenset[str]) -> None:
    """Unknown parameters are refused by name, unless the client asked for leniency."""
    if call.query and not context.lenient:
        for name, _ in call.query:
            if name not in known:
                raise UnknownParameter(
                    f"The parameter {name[:100]!r} is not known here; known: {', '.join(sorted(known))}",
                )


def written(result: Written) -> Answer:
    stored = result.stored
    status = 201 if result.created else 200
    answer = Answer(status, stored=stored, issues=result.issues, wrote=True)
    if stored is not None:
        answer.location = f"{stored.resource_type}/{stored.id}/_history/{stored.version}"
    return answer


async def do_read(server: Server, context: Context, call: Call) -> Answer:
    if call.query:
        controls(context, call, SHAPE)
    stored = await read.read(server, context, call.path[0], call.path[1])
    if read.not_modified(call, stored):
        return Answer(304, stored=stored)
    return Answer(200, stored=stored)


async def do_vread(server: Server, context: Context, call: Call) -> Answer:
    controls(context, call, SHAPE)
    stored = await read.vread(server, context, call.path[0], call.path[1], call.path[3])
    if read.not_modified(call, stored):
        return Answer(304, stored=stored)
    return Answer(200, stored=stored)


async def do_create(server: Server, context: Context, call: Call) -> Answer:
    controls(context, call, FORMAT)
    criteria = call.header("if-none-exist")
    if criteria is not None:
        pairs = conditional.criteria_of(criteria)
        return written(await conditional.create(server, context, call.path[0], call.resource, pairs))
    return written(await write.create(server, context, call.path[0], call.resource))


async def do_update(server: Server, context: Context, call: Call) -> Answer:
    controls(context, call, FORMAT)
    return written(
        await write.update(
            server,
            context,
            call.path[0],
            call.path[1],
            call.resource,
            if_match=call.header("if-match"),
            if_none_match=call.header("if-none-match"),
        )
    )


async def do_conditional_update(server: Server, context: Context, call: Call) -> Answer:
    criteria = _criteria(call)
    if not criteria:
        raise BadRequest(f"PUT {call.path[0]} needs an id in the URL, or search parameters (conditional update)")
    return written(
        await conditional.update(
            server, context, call.path[0], call.resource, criteria, if_match=call.header("if-match")
        )
    )


async def do_patch(server: Server, context: Context, call: Call) -> Answer:
    controls(context, call, FORMAT)
    change = _change(call)
    result = await write.patch(server, context, call.path[0], call.path[1], change, if_match=call.header("if-match"))
    return read.shown(server, context, written(result))


async def do_conditional_patch(server: Server, context: Context, call: Call) -> Answer:
    criteria = _criteria(call)
    change = _change(call)
    result = await conditional.patch(server, context, call.path[0], change, criteria, if_match=call.header("if-match"))
    return read.shown(server, context, written(result))


async def do_delete(server: Server, context: Context, call: Call) -> Answer:
    controls(context, call, FORMAT)
    result = await write.delete(server, context, call.path[0], call.path[1], if_match=call.header("if-match"))
    return _deleted(call, [result])


async def do_conditional_delete(server: Server, context: Context, call: Call) -> Answer:
    criteria = [pair for pair in _criteria(call) if pair[0] not in DELETE_CONTROLS]
    results = await conditional.delete(
        server,
        context,
        call.path[0],
        criteria,
        multiple=call.first("_multiple") == "true",
        if_match=call.header("if-match"),
    )
    return _deleted(call, results)


def _deleted(call: Call, results: Sequence[Written]) -> Answer:
    """204, or 200 with an OperationOutcome for those who prefer one. https://hl7.org/fhir/R4/http.html#delete"""
    answer = Answer(204)
    if preferences(call.headers.get("prefer", ""))[0] == "OperationOutcome":
        names = [f"{one.stored.resource_type}/{one.stored.id}" for one in results if one.stored and one.changed]
        text = f"Deleted: {', '.join(names[:100])}" if names else "There was nothing to delete"
        more = f" and {len(names) - 100} more" if len(names) > 100 else ""
        answer = Answer(200, issues=[Issue("information", "informational", text + more)])
    answer.deleted = [one.stored for one in results if one.stored is not None]
    if len(results) == 1 and results[0].stored is not None:
        answer.headers["ETag"] = f'W/"{results[0].stored.version}"'
    return answer


async def do_search(server: Server, context: Context, call: Call) -> Answer:
    resource_type = call.path[0] if call.path and call.path[0] != "_search" else None
    return Answer(200, body=await search.search(server, context, resource_type, call.query))


async def do_compartment(server: Server, context: Context, call: Call) -> Answer:
    compartment, id, wanted = call.path[0], call.path[1], call.path[2]
    return Answer(200, body=await search.compartment(server, context, compartment, id, wanted, call.query))


async def do_history(server: Server, context: Context, call: Call) -> Answer:
    path = call.path[:-1]
    if call.first("_summary") == "count":
        raise BadRequest("_summary=count is for searches; a history is not counted")
    resource_type = path[0] if path else None
    id = path[1] if len(path) > 1 else None
    page = await read.history(server, context, resource_type, id, call)
    url = "/".join((context.base, *(quote(part) for part in path), "_history"))
    links = [{"relation": "self", "url": f"{url}?{urlencode(page.applied)}"}]
    if page.cursor is not None:
        links.append({"relation": "next", "url": f"{url}?{urlencode([*page.applied, ('_cursor', page.cursor)])}"})
    head = dump({"resourceType": "Bundle", "type": "history", "link": links})
    entries = b",".join(_history_entry(context.base, stored, call) for stored in page.versions)
    return Answer(200, body=head[:-1] + (b',"entry":[' + entries + b"]}" if entries else b"}"))


def _shown(raw: bytes, call: Call) -> bytes:
    """The part that `_summary` or `_elements` asks for."""
    summary = call.first("_summary") or ""
    elements = [name.strip() for name in (call.first("_elements") or "").split(",") if name.strip()]
    if summary in ("", "false") and not elements:
        return raw
    return dump(subset(load(raw), summary, elements))


def _history_entry(base: str, stored: Stored, call: Call) -> bytes:
    address = f"{stored.resource_type}/{stored.id}"
    method = {"create": "POST", "update": "PUT", "delete": "DELETE"}[stored.method]
    if stored.method == "create" and stored.version > 1:
        method = "PUT"
    status = {"create": "201 Created", "update": "200 OK", "delete": "204 No Content"}[stored.method]
    rest = dump(
        {
            "request": {"method": method, "url": stored.resource_type if method == "POST" else address},
            "response": {
                "status": status,
                "etag": f'W/"{stored.version}"',
                "lastModified": dates.instant(stored.updated),
            },
        }
    )
    body = b"" if stored.deleted else b'"resource":' + _shown(stored.raw, call) + b","
    return b'{"fullUrl":"' + f"{base}/{address}".encode() + b'",' + body + rest[1:]


async def do_metadata(server: Server, context: Context, call: Call) -> Answer:
    controls(context, call, SHAPE | {"mode"})
    return Answer(200, body=_shown(dump(capabilities.statement(server, context, call.first("mode") or "full")), call))


async def do_operation(server: Server, context: Context, call: Call) -> Answer:
    name = next(part for part in reversed(call.path) if part.startswith("$"))
    before = call.path[: call.path.index(name)]
    level = ("system", "type", "instance", "", "version")[len(before)]
    if before:
        write.check_type(before[0])
    operation = find(name[1:], before[0] if before else None, level)
    if operation is None:
        raise NotFound(
            f"The operation {name[:60]} is not known {'for ' + before[0] if before else 'here'} at {level} level"
        )
    if call.method not in ("GET", "POST") or (call.method == "GET" and operation.affects_state):
        raise MethodNotAllowed(f"{name} changes what is stored; it has to be called by POST")
    asked = before[0] if before and not operation.asks else None
    server.policy.may(context.principal, f"operation:{name}", asked)
    if call.resource is not None and call.resource.get("resourceType") == "Parameters":
        _check_parts(call.resource, "parameter", "Parameters")
    return await operation.function(server, context, call)


def _check_parts(owner: Resource, key: str, where: str) -> None:
    """That parameters are objects with names; what is in them is the operation's to judge. Raises BadRequest."""
    parts = owner.get(key, [])
    if not isinstance(parts, list):
        raise BadRequest(f"{where}.{key} must be an array", expression=[f"{where}.{key}"])
    for index, part in enumerate(parts):
        path = f"{where}.{key}[{index}]"
        if not isinstance(part, dict) or not isinstance(part.get("name"), str):
            raise BadRequest(f"{path} must be an object with a name", expression=[path])
        _check_parts(part, "part", path)


def _criteria(call: Call) -> list[tuple[str, str]]:
    return [pair for pair in call.query if pair[0] not in FORMAT]


def _change(call: Call) -> patch_document.Change:
    if call.document is not None:
        return patch_document.json_patch(call.document)
    return patch_document.fhirpath_patch(call.resource)

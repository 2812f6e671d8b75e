"""Every URL of the FHIR base as one literal table. https://hl7.org/fhir/R4/http.html#summary

A path is looked up by its shape: each segment is itself if it is a fixed word, `$` if it names an operation, `*` as it
is, and `{}` otherwise. One dictionary look-up, whatever the number of routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fhir_server.errors import MethodNotAllowed, NotFound, NotSupported
from fhir_server.http import endpoints as do
from fhir_server.http import failures
from fhir_server.http.wire import preferences
from fhir_server.interactions import bundle
from fhir_server.interactions.call import Answer, Call
from fhir_server.interactions.context import Context, Server
from fhir_server.interactions.entry import request_of, response_entry
from fhir_server.model.resource import dump
from fhir_server.operations.bulk import answers

Endpoint = Callable[[Server, Context, Call], Awaitable[Answer]]


async def do_bundle(server: Server, context: Context, call: Call) -> Answer:
    do.controls(context, call, do.FORMAT)
    kind, answers = await bundle.process(server, context, call, dispatch, dispatch_safely)
    returning = preferences(call.headers.get("prefer", ""))[0] or "minimal"
    head = dump({"resourceType": "Bundle", "type": kind})
    parts = []
    entries = (call.resource or {}).get("entry", ())
    for number, (entry, answer) in enumerate(zip(entries, answers, strict=True)):
        bare = request_of(entry).get("method") == "HEAD"
        parts.append(_response_entry(answer, context.base, returning, bare))
        if number % 500 == 499:
            await asyncio.sleep(0)
    body = head[:-1] + (b',"entry":[' + b",".join(parts) + b"]}" if parts else b"}")
    return Answer(200, body=body, parts=answers)


def _response_entry(answer: Answer, base: str, returning: str, bare: bool) -> bytes:
    """`bare`: of a HEAD, whose answer is without the resource."""
    resource = b""
    shown = None
    if answer.packed is not None:
        answer = failures.answer(NotSupported("A file of an export is no entry of a bundle"), "")
    if answer.status >= 400 or (answer.wrote and returning == "OperationOutcome"):
        shown = failures.outcome(answer.issues)
    elif bare or answer.status in (204, 304):
        pass
    elif answer.body:
        resource = answer.body
    elif answer.stored is not None:
        shows = not answer.wrote or (returning == "representation" and not answer.unread)
        resource = answer.stored.raw if shows else b""
    else:  # an operation whose result is an OperationOutcome
        resource = dump(failures.outcome(answer.issues))
    rest = dump(response_entry(answer, base, shown))
    return b'{"resource":' + resource + b"," + rest[1:] if resource else rest


ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    # instance
    ("GET", "{}/{}", do.do_read),
    ("PUT", "{}/{}", do.do_update),
    ("PATCH", "{}/{}", do.do_patch),
    ("DELETE", "{}/{}", do.do_delete),
    ("GET", "{}/{}/_history", do.do_history),
    ("GET", "{}/{}/_history/{}", do.do_vread),
    # type
    ("POST", "{}", do.do_create),
    ("GET", "{}", do.do_search),
    ("POST", "{}/_search", do.do_search),
    ("PUT", "{}", do.do_conditional_update),
    ("PATCH", "{}", do.do_conditional_patch),
    ("DELETE", "{}", do.do_conditional_delete),
    ("GET", "{}/_history", do.do_history),
    # compartment
    ("GET", "{}/{}/{}", do.do_compartment),
    ("GET", "{}/{}/*", do.do_compartment),
    ("POST", "{}/{}/{}/_search", do.do_compartment),
    ("POST", "{}/{}/*/_search", do.do_compartment),
    # system
    ("GET", "metadata", do.do_metadata),
    ("POST", "", do_bundle),
    ("GET", "", do.do_search),
    ("POST", "_search", do.do_search),
    ("GET", "_history", do.do_history),
    # operations
    ("GET", "$", do.do_operation),
    ("POST", "$", do.do_operation),
    ("GET", "{}/$", do.do_operation),
    ("POST", "{}/$", do.do_operation),
    ("GET", "{}/{}/$", do.do_operation),
    ("POST", "{}/{}/$", do.do_operation),
    ("GET", "{}/{}/_history/{}/$", do.do_operation),
    ("POST", "{}/{}/_history/{}/$", do.do_operation),
    # bulk exports under way, and their files
    ("GET", "$/{}", answers.status),
    ("DELETE", "$/{}", answers.cancel),
    ("GET", "$/{}/{}", answers.file),
)

_FIXED = frozenset({"_history", "_search", "metadata", "*"})
_TABLE: dict[str, dict[str, Endpoint]] = {}
for _method, _pattern, _endpoint in ROUTES:
    _TABLE.setdefault(_pattern, {})[_method] = _endpoint


def shape(path: tuple[str, ...]) -> str:
    """`("Patient", "1", "_history")` → `{}/{}/_history`; also what the access log and the metrics show."""
    return "/".join([part if part in _FIXED else "$" if part[0] == "$" else "{}" for part in path])


def known_shape(path: tuple[str, ...]) -> str:
    """The shape, or `other`: the log and the figures have a bounded number of routes, whatever is asked for."""
    found = shape(path)
    return found if found in _TABLE else "other"


async def dispatch(server: Server, context: Context, call: Call) -> Answer:
    """Raises what the interaction raises; NotFound or MethodNotAllowed (with Allow) where no route fits."""
    methods = _TABLE.get(shape(call.path))
    if methods is None:
        raise NotFound(f"No FHIR interaction has the URL {'/'.join(call.path)[:200]!r}")
    endpoint = methods.get("GET" if call.method == "HEAD" else call.method)
    if endpoint is None:
        refused = MethodNotAllowed(f"{call.method[:20]} is not possible here")
        refused.headers["Allow"] = ", ".join(sorted({*methods, *(["HEAD"] if "GET" in methods else [])}))
        raise refused
    return await endpoint(server, context, call)


async def dispatch_safely(server: Server, context: Context, call: Call) -> Answer:
    """For the entries of a batch: a failure is that entry's answer, and no one else's."""
    try:
        return await dispatch(server, context, call)
    except Exception as error:
        return failures.answer(error, context.request_id)

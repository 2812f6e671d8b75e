"""$meta, $meta-add, $meta-delete: tags, profiles and security labels. https://hl7.org/fhir/R4/resource-operation-meta.html"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fhir_server.errors import BadRequest, Forbidden
from fhir_server.interactions import read, write
from fhir_server.interactions.call import Answer, Call, parameters
from fhir_server.interactions.context import Context, Server
from fhir_server.model.resource import Resource, dump, load

LABELS = ("profile", "security", "tag")


async def meta(server: Server, context: Context, call: Call) -> Answer:
    """Of an instance or version, its meta; of a type or the system, every label that is in use."""
    before = call.path[: call.path.index("$meta")]
    if len(before) >= 2:
        if len(before) == 4:
            stored = await read.vread(server, context, before[0], before[1], before[3])
        else:
            stored = await read.read(server, context, before[0], before[1])
        return _answer(load(stored.raw)["meta"])
    types = [write.check_type(before[0])] if before else await server.store.resource_types()
    used: Resource = {}
    for resource_type in types:
        try:
            server.policy.may(context.principal, "search", resource_type)
        except Forbidden:
            if before:
                raise
            continue
        async for stored in server.store.scan(resource_type):
            if await write.see(server, context, "search", stored) is not None:
                used = _added(used, load(stored.raw).get("meta", {}))
    return _answer(used)


async def meta_add(server: Server, context: Context, call: Call) -> Answer:
    given = _given(call)
    return await _change(server, context, call, lambda current: _added(current, given))


async def meta_delete(server: Server, context: Context, call: Call) -> Answer:
    given = _given(call)
    return await _change(server, context, call, lambda current: _removed(current, given))


async def _change(server: Server, context: Context, call: Call, change: Callable[[Resource], Resource]) -> Answer:
    """As an ordinary patch: a new version, if anything changes."""
    resource_type, id = call.path[0], call.path[1]
    await read.read(server, context, resource_type, id)  # what is answered is read
    written = await write.patch(
        server, context, resource_type, id, lambda current: {**current, "meta": change(current.get("meta", {}))}
    )
    if written.stored is None:
        raise AssertionError("a patch always has a current version")
    return _answer(load(written.stored.raw)["meta"])


def _given(call: Call) -> Resource:
    for part in (call.resource or {}).get("parameter", ()):
        if isinstance(part, dict) and part.get("name") == "meta" and isinstance(part.get("valueMeta"), dict):
            found: Resource = part["valueMeta"]
            return found
    raise BadRequest("The Parameters must have a parameter 'meta' of type Meta", expression=["Parameters.parameter"])


def _answer(found: Resource) -> Answer:
    return Answer(200, body=dump(parameters({"name": "return", "valueMeta": found})))


def _key(label: Any) -> object:
    """A Coding is the same label if system and code are (the display does not matter)."""
    return (label.get("system"), label.get("code")) if isinstance(label, dict) else label


def _added(current: Resource, given: Resource) -> Resource:
    result = dict(current)
    for name in LABELS:
        known: list[Any] = list(current.get(name, ()))
        for label in _labels(given, name):
            if _key(label) not in [_key(one) for one in known]:
                known.append(label)
        if known:
            result[name] = known
    return result


def _removed(current: Resource, given: Resource) -> Resource:
    result = dict(current)
    for name in LABELS:
        unwanted = [_key(label) for label in _labels(given, name)]
        kept = [label for label in current.get(name, ()) if _key(label) not in unwanted]
        result.pop(name, None)
        if kept:
            result[name] = kept
    return result


def _labels(meta: Resource, name: str) -> Iterable[Any]:
    found = meta.get(name, [])
    if not isinstance(found, list):
        raise BadRequest(f"meta.{name} must be an array", expression=[f"Meta.{name}"])
    return found

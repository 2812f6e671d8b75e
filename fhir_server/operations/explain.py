"""$explain: why a derived resource, or a patient's tag, is there. docs/hooks.md (Operations)

What is told is what was seen then: it is read from the Provenance that was written with it. What a rule saw is told to those
who may see all that it looked at; to others only which conditions held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fhir_server.automation import worker_of
from fhir_server.automation.proposals import Seen
from fhir_server.automation.provenance import provenance_id, tags_provenance_id
from fhir_server.automation.tags import set_by_rule
from fhir_server.automation.vocabulary import IDENTIFIERS, split_canonical, structure, value
from fhir_server.errors import NotFound
from fhir_server.interactions import read
from fhir_server.interactions.call import Answer, Call, parameters
from fhir_server.interactions.context import Context, Server
from fhir_server.model.resource import Resource, dump, load


async def explain(server: Server, context: Context, call: Call) -> Answer:
    """`[type]/[id]/$explain`; of a Patient: every tag that a rule set."""
    resource_type, id = call.path[0], call.path[1]
    stored = await read.read(server, context, resource_type, id)
    resource = load(stored.raw)
    parts: list[dict[str, Any]] = []
    for id_ in _provenances(resource):
        found = await server.store.read("Provenance", id_)
        if found is not None and not found.deleted:
            provenance = load(found.raw)
            if not _is_about(provenance, f"{resource_type}/{id}"):
                continue
            for section in _sections(provenance):
                inputs = _inputs(section, provenance)
                visible = await _visible(server, context, inputs)
                told = list(_told(server, section, provenance, _tags_of(resource, section), visible))
                parts.append({"name": "explanation", "part": told})
    if not parts:
        raise NotFound(f"{resource_type}/{id} was not derived by a rule of this server")
    return Answer(body=dump(parameters(*parts)))


def _provenances(resource: Resource) -> Iterator[str]:
    """Ids of the Provenances that were written with it."""
    if resource["resourceType"] == "Patient":
        yield tags_provenance_id(resource["id"])
        return
    identifiers = resource.get("identifier", [])
    for identifier in identifiers if isinstance(identifiers, list) else [identifiers]:
        if identifier.get("system") == IDENTIFIERS:
            slot, patient, n = ["", "", *str(identifier.get("value", "")).rsplit("|", 2)][-3:]
            if n.isascii() and n.isdigit() and len(n) < 10:
                yield provenance_id(patient, slot, int(n))


def _is_about(provenance: Resource, reference: str) -> bool:
    """An identifier is whatever was written into the resource: with somebody else's, it leads to somebody else's Provenance."""
    targets = [str(one.get("reference", "")) for one in provenance.get("target", ())]
    return any(target.partition("/_history/")[0] == reference for target in targets)


def _sections(provenance: Resource) -> list[Sequence[Any]]:
    """The extensions of each rule that has something to say."""
    sections = [one["extension"] for one in provenance.get("extension", ()) if one["url"] == structure("rule-applied")]
    return sections or ([provenance["extension"]] if "extension" in provenance else [])


def _tags_of(resource: Resource, section: Sequence[Any]) -> str:
    rule = split_canonical(_values(section, "rule")[0])[0]
    tags = resource.get("meta", {}).get("tag", ())
    return ", ".join(str(tag.get("code")) for tag in tags if split_canonical(set_by_rule(tag))[0] == rule)


def _values(section: Sequence[Any], name: str) -> list[Any]:
    return [value(one) for one in section if one["url"] == structure(name)]


def _inputs(section: Sequence[Any], provenance: Resource) -> list[dict[str, Any]]:
    """References to what the rule looked at."""
    return _values(section, "input") or [
        entity["what"] for entity in provenance.get("entity", ()) if entity.get("role") == "source"
    ]


async def _visible(server: Server, context: Context, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that the principal may see, as they are now."""
    if context.principal.everything:
        return list(inputs)
    keys = [(parts[0], parts[1]) for one in inputs if len(parts := str(one.get("reference", "")).split("/")) > 1]
    found = await server.store.read_many(keys)
    seen = {key for key, stored in found.items() if server.policy.sees(context.principal, "read", stored)}
    return [one for one in inputs if tuple(str(one.get("reference", "")).split("/")[:2]) in seen]


def _told(
    server: Server, section: Sequence[Any], provenance: Resource, tags: str, inputs: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """`inputs`: those that may be shown."""
    rule, event = _values(section, "rule")[0], _values(section, "event")[0]
    seen = [Seen.parse(line) for text in _values(section, "conditions-seen") for line in str(text).splitlines()]
    is_whole = len(inputs) == len(_inputs(section, provenance))
    if not is_whole:
        seen = [one._replace(saw="") for one in seen]
    url, version = split_canonical(rule)
    known = worker_of(server).book.by_url.get(url)
    title = known.title if known is not None else url
    yield {"name": "rule", "valueCanonical": rule}
    yield {"name": "title", "valueString": title}
    if tags:
        yield {"name": "tag", "valueString": tags}
    yield {"name": "version", "valueString": version or "none"}
    if is_whole:
        yield {"name": "event", "valueString": event}
    yield {"name": "recorded", "valueInstant": provenance["recorded"]}
    for one in seen:
        part: list[dict[str, Any]] = [{"name": "expression", "valueString": one.expression}]
        if one.saw:
            part.append({"name": "saw", "valueString": one.saw})
        part.append({"name": "result", "valueBoolean": one.result})
        yield {"name": "condition", "part": part}
    yield from ({"name": "input", "valueReference": what} for what in inputs)
    ended = any(c.get("code") == "ABORT" for c in provenance.get("activity", {}).get("coding", ()))
    lines = [f"{title} (version {version or 'none'}) {'withdrew it' if ended else 'says so'} because:"]
    lines += [f"- {one.expression} is {str(one.result).lower()}{f' ({one.saw})' if one.saw else ''}" for one in seen]
    yield {"name": "text", "valueString": "\n".join(lines)}

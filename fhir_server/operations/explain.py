"""$explain: why a derived resource, or a patient's tag, is there. docs/hooks.md (Operations)

What is told is what was seen then: it is read from the Provenance that was written with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fhir_server.automation import worker_of
from fhir_server.automation.effects import tags_provenance_id
from fhir_server.automation.provenance import provenance_id
from fhir_server.automation.tags import set_by_rule
from fhir_server.automation.vocabulary import IDENTIFIERS, split_canonical, structure
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
    for provenance, tag in _provenances(resource):
        found = await server.store.read("Provenance", provenance)
        if found is not None and not found.deleted:
            parts.append({"name": "explanation", "part": list(_told(server, load(found.raw), tag))})
    if not parts:
        raise NotFound(f"{resource_type}/{id} was not derived by a rule of this server")
    return Answer(body=dump(parameters(*parts)))


def _provenances(resource: Resource) -> Iterator[tuple[str, str]]:
    """(id of a Provenance, the tag it is about or an empty text)."""
    if resource["resourceType"] == "Patient":
        rules: dict[str, list[str]] = {}
        for tag in resource.get("meta", {}).get("tag", ()):
            if set_by_rule(tag):
                rules.setdefault(split_canonical(set_by_rule(tag))[0], []).append(str(tag.get("code")))
        for rule, codes in rules.items():
            yield tags_provenance_id(resource["id"], rule), ", ".join(codes)
        return
    identifiers = resource.get("identifier", [])
    for identifier in identifiers if isinstance(identifiers, list) else [identifiers]:
        if identifier.get("system") == IDENTIFIERS:
            slot, patient, n = str(identifier["value"]).rsplit("|", 2)
            yield provenance_id(patient, slot, int(n)), ""


def _told(server: Server, provenance: Resource, tag: str) -> Iterator[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    rule = event = ""
    for extension in provenance.get("extension", ()):
        url = extension["url"]
        if url == structure("rule"):
            rule = extension["valueCanonical"]
        elif url == structure("event"):
            event = extension["valueString"]
        elif url == structure("condition-seen"):
            seen.append({one["url"]: one.get("valueString", one.get("valueBoolean")) for one in extension["extension"]})
    url, version = split_canonical(rule)
    known = worker_of(server).book.by_url.get(url)
    title = known.title if known is not None else url
    yield {"name": "rule", "valueCanonical": rule}
    yield {"name": "title", "valueString": title}
    if tag:
        yield {"name": "tag", "valueString": tag}
    yield {"name": "version", "valueString": version or "none"}
    yield {"name": "event", "valueString": event}
    yield {"name": "recorded", "valueInstant": provenance["recorded"]}
    for one in seen:
        part = [{"name": "expression", "valueString": one["expression"]}]
        if one.get("saw"):
            part.append({"name": "saw", "valueString": one["saw"]})
        part.append({"name": "result", "valueBoolean": one["result"]})
        yield {"name": "condition", "part": part}
    for entity in provenance.get("entity", ()):
        if entity.get("role") == "source":
            yield {"name": "input", "valueReference": entity["what"]}
    ended = any(c.get("code") == "ABORT" for c in provenance.get("activity", {}).get("coding", ()))
    lines = [f"{title} (version {version or 'none'}) {'withdrew it' if ended else 'says so'} because:"]
    lines += [f"- {one['expression']} is {str(one['result']).lower()}{_saw(one)}" for one in seen]
    yield {"name": "text", "valueString": "\n".join(lines)}


def _saw(one: dict[str, Any]) -> str:
    return f" ({one['saw']})" if one.get("saw") else ""

"""Patient/[id]/$everything: the patient's record, and what it refers to. https://hl7.org/fhir/R4/patient-operation-everything.html

Pages are those of a search over the patient's compartment, each with the practitioners, organizations, medications, … that its
resources refer to. `start` and `end` are dates of care: they concern types that have one, and leave the others in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fhir_server.errors import BadRequest
from fhir_server.interactions import read
from fhir_server.interactions.call import Answer, Call, Pairs
from fhir_server.interactions.context import Context, Server
from fhir_server.interactions.search import run
from fhir_server.model.dates import DateError, interval
from fhir_server.operations.given import pairs_of
from fhir_server.search import page
from fhir_server.search.indexes import TIMELINES
from fhir_server.search.operands import Interval
from fhir_server.search.parse import parse
from fhir_server.search.query import AnyOf, Condition, Include, Match, Missing, Query
from fhir_server.search.types.date import BEGINNING, END

KNOWN = frozenset({"start", "end", "_since", "_type", "_count", "_cursor"})


async def everything(server: Server, context: Context, call: Call) -> Answer:
    id = call.path[1]
    await read.read(server, context, "Patient", id)  # 404 for who is not there or may not be seen
    pairs = pairs_of(call)
    for name, _ in pairs:
        if name not in KNOWN:
            raise BadRequest(f"Parameter {name!r}: $everything has {', '.join(sorted(KNOWN))}")
    search: Pairs = [(name, value) for name, value in pairs if name in ("_type", "_count", "_cursor")]
    search += [("_lastUpdated", f"ge{value}") for name, value in pairs if name == "_since"]
    query = parse(
        None,
        search,
        registry=server.registry,
        compartment=("Patient", id),
        default_count=server.settings.default_page,
        most_count=server.settings.max_page,
        base=context.base,
    )
    query = _in_time(server, query, [(name, value) for name, value in pairs if name in ("start", "end")])
    if not any(name == "_type" for name, _ in pairs):
        query = replace(query, includes=(Include("*", "*", "", False),))
    query = replace(query, pairs=tuple((n, v) for n, v in pairs if n not in ("_count", "_cursor")))
    found = await run(server, context, query)
    return Answer(body=page.bundle(found, query, base=context.base, path=f"Patient/{id}/$everything"))


def _in_time(server: Server, query: Query, bounds: Pairs) -> Query:
    if not bounds:
        return query
    conditions: dict[str, tuple[Condition, ...]] = {}
    for resource_type, found in query.conditions.items():
        conditions[resource_type] = (*found, *_bounded(server, resource_type, bounds))
    return replace(query, conditions=conditions)


def _bounded(server: Server, resource_type: str, bounds: Pairs) -> Sequence[Condition]:
    code = TIMELINES[resource_type][1] if resource_type in TIMELINES else "date"
    parameter = server.registry.parameter(resource_type, code)
    if parameter is None or parameter.type != "date":
        return ()
    undated = Missing(parameter, True)
    return [AnyOf((Match(parameter, (_reach(name, value),)), undated)) for name, value in bounds]


def _reach(name: str, value: str) -> Interval:
    """What has a part after the start (before the end); `ap` is "overlaps"."""
    try:
        lo, hi = interval(value)
    except DateError as error:
        raise BadRequest(f"Parameter {name!r}: {error}") from None
    return Interval("ap", lo, END) if name == "start" else Interval("ap", BEGINNING, hi)

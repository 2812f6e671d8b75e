"""PlanDefinition/$dry-run, $backfill and $apply. https://hl7.org/fhir/R4/plandefinition-operation-apply.html; docs/hooks.md"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from fhir_server.automation import worker_of
from fhir_server.automation.charts import Charts
from fhir_server.automation.definitions import Definitions
from fhir_server.automation.evaluate import Situation, evaluate
from fhir_server.automation.ledger import identity, slot_key
from fhir_server.automation.plans import compile, is_rule
from fhir_server.automation.record import seen
from fhir_server.automation.rehearsal import rehearse
from fhir_server.automation.rulebook import Rulebook
from fhir_server.automation.rules import Rule
from fhir_server.automation.tags import codes
from fhir_server.errors import BadRequest, Unprocessable
from fhir_server.interactions import read
from fhir_server.interactions.call import Answer, Call, check_id, parameters
from fhir_server.interactions.context import Context, Server
from fhir_server.interactions.search import run
from fhir_server.model.dates import DateError, instant, interval, milliseconds
from fhir_server.model.resource import Resource, dump, load
from fhir_server.operations.hooks import given, number
from fhir_server.search.parse import parse

RATE = 50.0  # patients a second


async def dry_run(server: Server, context: Context, call: Call) -> Answer:
    """Who would have matched since `since`, and how much work that makes; drafts can be tried, too."""
    rule, book = await _alone(server, context, call)
    text = given(call, "since")
    try:
        since = interval(text)[0] if text else 0
    except DateError as error:
        raise BadRequest(f"since: {error.diagnostics}") from None
    limit = int(number(call, "limit", 10_000))
    if not 1 <= limit <= 1_000_000:
        raise BadRequest("limit is how many patients are looked at, from 1 to 1000000")
    server.policy.may(context.principal, "search", "Patient")
    charts = Charts(server.store.database, server.registry)  # type: ignore[attr-defined]
    found = await rehearse(server, context, charts, book, since, limit)
    parts: list[dict[str, Any]] = [
        {"name": "rule", "valueCanonical": rule.canonical},
        {"name": "patients", "valueInteger": found.patients},
        {"name": "matched", "valueInteger": found.matched},
        {"name": "tasks", "valueInteger": sum(n for (kind, _, _), n in found.made.items() if kind == "Task")},
    ]
    for (kind, what, priority), count in sorted(found.made.items()):
        part = [{"name": "type", "valueCode": kind}, {"name": "what", "valueString": what or kind}]
        if priority:
            part.append({"name": "priority", "valueCode": priority})
        parts.append({"name": "outcome", "part": [*part, {"name": "count", "valueInteger": count}]})
    for tag, count in sorted(found.tags.items()):
        parts.append(
            {"name": "tag", "part": [{"name": "code", "valueCode": tag}, {"name": "count", "valueInteger": count}]}
        )
    for why, count in sorted(found.failed.items()):
        parts.append(
            {
                "name": "failed",
                "part": [{"name": "error", "valueString": why}, {"name": "count", "valueInteger": count}],
            }
        )
    parts += [{"name": "example", "valueReference": {"reference": f"Patient/{patient}"}} for patient in found.examples]
    return Answer(body=dump(parameters(*parts)))


async def backfill(server: Server, context: Context, call: Call) -> Answer:
    """Queues every patient for this rule, `rate` a second; of a rule that is no longer active: what it wrote is withdrawn."""
    stored = await read.read(server, context, "PlanDefinition", call.path[1])
    plan = load(stored.raw)
    if not is_rule(plan):
        raise Unprocessable(f"PlanDefinition/{call.path[1]} is not of type eca-rule")
    rate = number(call, "rate", RATE)
    if not 0 < rate <= 10_000:
        raise BadRequest("rate is patients a second, above 0 and up to 10000")
    worker = worker_of(server)
    await worker.refresh()
    await worker.backfills.begin(plan["url"], rate)
    patients = await _patients(server, context)
    seconds = {"value": round(Decimal(patients / rate), 1), "unit": "s", "code": "s"}
    return Answer(
        202,
        body=dump(
            parameters(
                {"name": "rule", "valueCanonical": f"{plan['url']}|{plan.get('version', '')}"},
                {"name": "patients", "valueInteger": patients},
                {"name": "expected", "valueQuantity": seconds},
            )
        ),
    )


async def _patients(server: Server, context: Context) -> int:
    """How many the principal may find."""
    found = await run(server, context, parse("Patient", [("_summary", "count")], registry=server.registry))
    return found.total or 0


async def apply(server: Server, context: Context, call: Call) -> Answer:
    """A CarePlan with what the rule would propose for `subject` now, going by what the asker may see; nothing is stored."""
    rule, book = await _alone(server, context, call)
    subject = given(call, "subject") or ""
    if not subject.startswith("Patient/"):
        raise BadRequest("$apply needs a subject such as Patient/123")
    patient = check_id(subject.removeprefix("Patient/"))
    await read.read(server, context, "Patient", patient)
    charts = Charts(server.store.database, server.registry)  # type: ignore[attr-defined]
    now = milliseconds(server.now())
    chart = seen(server, context, (await charts.open(book, [patient], now))[patient])
    situation = Situation(chart, now, book.scores, codes(chart.patient))
    decision = evaluate(rule, situation)
    contained: list[Resource] = []
    for proposal in decision.proposals:
        if proposal.raises:
            id = identity(patient, slot_key(rule.url, proposal.action, proposal.scope))
            contained.append({"resourceType": proposal.resource["resourceType"], "id": id, **proposal.resource})
    request: Resource = {
        "resourceType": "RequestGroup", "id": "requests", "status": "draft", "intent": "proposal",
        "subject": {"reference": subject}, "instantiatesCanonical": [rule.canonical],
        "action": [{"resource": {"reference": f"#{one['id']}"}} for one in contained],
    }  # fmt: skip
    if not contained:
        del request["action"]
    plan: Resource = {
        "resourceType": "CarePlan",
        "contained": [*contained, request],
        "instantiatesCanonical": [rule.canonical],
        "status": "draft",
        "intent": "proposal",
        "title": rule.title,
        "subject": {"reference": subject},
        "created": instant(now),
        "activity": [{"reference": {"reference": "#requests"}}],
    }
    if decision.tags:
        plan["note"] = [{"text": "Tags: " + ", ".join(tag.code for tag in decision.tags)}]
    return Answer(body=dump(plan))


async def _alone(server: Server, context: Context, call: Call) -> tuple[Rule, Rulebook]:
    """The stored PlanDefinition as the only rule, whatever its status. Raises Unprocessable where it does not compile."""
    stored = await read.read(server, context, "PlanDefinition", call.path[1])
    plan = load(stored.raw)
    if not is_rule(plan):
        raise Unprocessable(f"PlanDefinition/{call.path[1]} is not of type eca-rule")
    worker = worker_of(server)
    await worker.refresh()
    known = worker.book.definitions
    rule = compile(plan, known)
    alone = Definitions()
    for resource_type in ("ActivityDefinition", "Library", "ValueSet"):
        for resource in known.all(resource_type):
            alone.add(resource)
    alone.add({**plan, "status": "active"})
    return rule, Rulebook(alone)

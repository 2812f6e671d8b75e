"""Operations on the engine itself: waiting for it, looking at it, running again what was given up. docs/hooks.md (Operations)"""

from __future__ import annotations

import asyncio
import math
import time
from decimal import Decimal
from typing import Any

from fhir_server.automation import worker_of
from fhir_server.automation.ledger import load
from fhir_server.automation.rounds import RULE_EVENT
from fhir_server.errors import BadRequest, Unavailable
from fhir_server.interactions import read
from fhir_server.interactions.call import Answer, Call, check_id, parameters
from fhir_server.interactions.context import Context, Server
from fhir_server.model.dates import instant, milliseconds
from fhir_server.model.resource import Resource, dump

WAIT = 30.0  # seconds $await-hooks waits at most, unless it is told otherwise
LOOK = 0.005  # seconds between two looks


def given(call: Call, name: str) -> str | None:
    """A parameter from the query or the Parameters body, as text."""
    found = call.first(name)
    if found is not None:
        return found
    for part in (call.resource or {}).get("parameter", ()):
        if part.get("name") == name:
            value = next((v for key, v in part.items() if key.startswith("value")), None)
            if isinstance(value, dict):
                value = value.get("reference")
            if value is None or isinstance(value, (dict, list)):
                raise BadRequest(f"The parameter {name} has no value that can be read")
            return str(value)
    return None


def number(call: Call, name: str, default: float) -> float:
    text = given(call, name)
    if text is None:
        return default
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise BadRequest(f"The parameter {name} must be a number, not {text[:50]!r}")
    return found


async def await_hooks(server: Server, context: Context, call: Call) -> Answer:
    """Answers when everything that was committed before, and what came of it, has been dealt with."""
    worker = worker_of(server)
    until = await worker.outbox.newest()
    started = time.monotonic()
    deadline = started + min(number(call, "timeout", WAIT), 600)
    while until and (left := await worker.outbox.undone(until)):
        if time.monotonic() > deadline:
            raise Unavailable(
                f"{left} events are still waiting after {time.monotonic() - started:.0f} s; ask again", retry_after=1
            )
        await asyncio.sleep(LOOK)
    passed = round(Decimal((time.monotonic() - started) * 1000), 1)
    return _answer(parameters({"name": "waited", "valueQuantity": {"value": passed, "unit": "ms", "code": "ms"}}))


async def hook_status(server: Server, context: Context, call: Call) -> Answer:
    """Queue, lag, firings and failures by rule (of this process), dead letters (of all)."""
    worker = worker_of(server)
    depth, oldest = await worker.outbox.depth()
    now = milliseconds(server.now())
    parts: list[dict[str, Any]] = [
        {"name": "queueDepth", "valueInteger": depth},
        {"name": "oldestAge", "valueQuantity": _seconds((now - oldest) / 1000 if oldest is not None else 0)},
        {"name": "rules", "valueInteger": len(worker.book.rules)},
    ]
    for name, share in (("lagMedian", 0.5), ("lagP99", 0.99)):
        lag = worker.metrics.quantile(share)
        if lag is not None:
            parts.append({"name": name, "valueQuantity": _seconds(lag)})
    for url, why in sorted(worker.book.broken.items()):
        parts.append(
            {"name": "broken", "part": [{"name": "rule", "valueCanonical": url}, {"name": "error", "valueString": why}]}
        )
    for rule in worker.book.rules:
        fired, failed = worker.metrics.fired[rule.url], worker.metrics.failed[rule.url]
        if fired or failed:
            counts = [{"name": "firings", "valueInteger": fired}, {"name": "failures", "valueInteger": failed}]
            parts.append({"name": "rule", "part": [{"name": "rule", "valueCanonical": rule.canonical}, *counts]})
    dead = await worker.ledgers.count_dead()
    worker.metrics.depth.set(depth)
    worker.metrics.dead.set(dead)
    letters = await _letters(server, context)
    parts.append({"name": "deadLetters", "valueInteger": dead if context.principal.everything else len(letters)})
    parts += [{"name": "deadLetter", "part": _dead(*letter)} for letter in letters]
    return _answer(parameters(*parts))


async def _letters(server: Server, context: Context) -> list[tuple[str, str, Any]]:
    """(patient, rule, failure) of the dead letters about patients whom the principal may see."""
    dead = await worker_of(server).ledgers.dead()
    found = await server.store.read_many([("Patient", patient) for patient in dead])
    hidden = {id for (_, id), one in found.items() if not server.policy.sees(context.principal, "read", one)}
    return [
        (patient, url, failure)
        for patient, body in dead.items()
        if patient not in hidden
        for url, failure in load(body).failures.items()
        if not failure.at
    ]


def _dead(patient: str, url: str, failure: Any) -> list[dict[str, Any]]:
    return [
        {"name": "patient", "valueReference": {"reference": f"Patient/{patient}"}},
        {"name": "rule", "valueCanonical": url},
        {"name": "error", "valueString": failure.error},
        {"name": "attempts", "valueInteger": failure.attempts},
        {"name": "event", "valueString": failure.event or "time"},
        {"name": "since", "valueInstant": instant(failure.since)},
    ]


async def hook_retry(server: Server, context: Context, call: Call) -> Answer:
    """Runs dead letters again: all of them, or those of one `patient` or `rule`."""
    worker = worker_of(server)
    only_patient, only_rule = given(call, "patient"), given(call, "rule")
    if only_patient is not None:
        only_patient = check_id(only_patient.removeprefix("Patient/"))
    again = []
    for patient, body in (await worker.ledgers.dead(10_000)).items():
        for url, failure in load(body).failures.items():
            if not failure.at and only_patient in (None, patient) and only_rule in (None, url):
                again.append(worker.outbox.event(RULE_EVENT, url, (patient,)))
    await worker.outbox.add(again)
    worker.notify(again)
    return _answer(parameters({"name": "retried", "valueInteger": len(again)}))


async def hook_event(server: Server, context: Context, call: Call) -> Answer:
    """A named event: wakes the rules that wait for `name`, for the patient `subject`."""
    worker = worker_of(server)
    name, subject = given(call, "name"), given(call, "subject")
    if not name or not subject or not subject.startswith("Patient/"):
        raise BadRequest("$hook-event needs a name and a subject such as Patient/123")
    await read.read(server, context, "Patient", check_id(subject.removeprefix("Patient/")))
    rules = [rule for rule in worker.book.rules if any(name in branch.names for branch in rule.branches)]
    events = [worker.outbox.event(RULE_EVENT, rule.url, (subject.removeprefix("Patient/"),)) for rule in rules]
    await worker.outbox.add(events)
    worker.notify(events)
    return _answer(parameters({"name": "woken", "valueInteger": len(events)}))


def _seconds(value: float) -> dict[str, Any]:
    return {"value": round(Decimal(value), 4), "unit": "s", "system": "http://unitsofmeasure.org", "code": "s"}


def _answer(resource: Resource) -> Answer:
    return Answer(body=dump(resource))

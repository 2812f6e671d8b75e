"""A check-up arrives: what the server makes of it, with its reasons and times. The end of `fhir-server demo`.

One transaction Bundle (a DiagnosticReport and its Observations) goes in over the public API; then the record is read again
and again until the hooks have dealt with everything, and what is new is printed with the time since the acknowledgement.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from fhir_server.cli import population
from fhir_server.cli.client import Client
from fhir_server.cli.population import records
from fhir_server.cli.population.course import Dice, visits
from fhir_server.cli.population.people import people
from fhir_server.model.resource import load

PERSON = "sample-08"
SYSTOLIC, DIASTOLIC = 184.0, 112.0  # what a reading has to be to need somebody at once
RESULTS = ("glucose", "hba1c", "cholesterol", "hdl", "ldl", "triglycerides", "creatinine", "uric_acid")
WATCHED = ("Task", "RiskAssessment", "Flag", "CommunicationRequest")
Json = dict[str, Any]
Seen = dict[tuple[str, str, str], Json]


async def show(client: Client) -> str:
    """Posts today's check-up of one of the sample people (once a day) and returns what came of it, to be printed."""
    person = next(one for one in people() if one.id == PERSON)
    today = datetime.now(UTC).date()
    resources = list(_check_up(today))
    if await _has(client, f"Observation?_id={resources[0]['id']}"):
        return f"Today's check-up of {PERSON} is in the record already; the next one arrives tomorrow."
    before = await _watched(client)
    body = population.transaction(resources)
    began = time.perf_counter()
    await client.send("POST", "", body)
    acknowledged = time.perf_counter()
    times = await _follow(client, before, acknowledged)
    after = await _watched(client)
    name = records.patient(person, Dice(population.SEED, person.id, "address"), today)["name"][0]["text"]
    lines = [
        "",
        f"A check-up of {name} ({PERSON}) arrives: a report and {len(resources) - 1} results in one transaction, "
        f"blood pressure {SYSTOLIC:.0f}/{DIASTOLIC:.0f},",
        f"acknowledged after {(acknowledged - began) * 1000:.0f} ms. What came of it, and when it could be read:",
        *_told(before, after, times),
    ]
    lines += await _why(client, [key for key in after if key not in before])
    return "\n".join(lines)


def _check_up(today: date) -> Iterator[Json]:
    person = next(one for one in people() if one.id == PERSON)
    last = list(visits(population.SEED, person, range(population.FIRST_YEAR, today.year + 1), today.year))[-1]
    # The visit's year is part of its resources' ids; a day makes them this day's.
    visit = replace(last, year=int(f"{today:%Y%m%d}"), systolic=SYSTOLIC, diastolic=DIASTOLIC, began=())
    taken = datetime.now(UTC) - timedelta(minutes=20)
    when = taken.strftime("%Y-%m-%dT%H:%M:%SZ")
    yield records.blood_pressure(person, f"{person.id}-{visit.year}-bp", SYSTOLIC, DIASTOLIC, when, encounter=None)
    results = [records.measurement(person, name, visit.values[name], when, visit) for name in RESULTS]
    report = records.report(person, visit, when, results)
    for resource in (*results, report):
        resource.pop("encounter", None)
        yield resource


async def _follow(client: Client, before: Seen, acknowledged: float) -> dict[tuple[str, str, str], float]:
    """Key → milliseconds from the acknowledgement until it was read, as closely as asking again and again can tell."""
    done = asyncio.create_task(client.get("$await-hooks?timeout=30"))
    times: dict[tuple[str, str, str], float] = {}
    while True:
        finished = done.done()
        for key in await _watched(client):
            if key not in before:
                times.setdefault(key, (time.perf_counter() - acknowledged) * 1000)
        if finished:
            await done
            return times


async def _watched(client: Client) -> Seen:
    """The patient's tags, and the derived resources of the record in their current versions."""
    found: Seen = {}
    answers = await asyncio.gather(
        client.get(f"Patient/{PERSON}"), *(client.get(f"{kind}?patient={PERSON}&_count=200") for kind in WATCHED)
    )
    for tag in load(answers[0].body).get("meta", {}).get("tag", ()):
        if tag.get("system", "").endswith("/patient-tags"):
            found["tag", tag["code"], ""] = tag
    for answer in answers[1:]:
        for entry in load(answer.body).get("entry", ()):
            resource = entry["resource"]
            found[resource["resourceType"], resource["id"], resource["meta"]["versionId"]] = resource
    return found


def _told(before: Seen, after: Seen, times: dict[tuple[str, str, str], float]) -> Iterator[str]:
    def at(key: tuple[str, str, str]) -> str:
        return f"{times[key]:6.0f} ms" if key in times else "         "

    new = [key for key in after if key not in before]
    for key in new:
        if key[0] == "tag":
            yield f"  {at(key)}  tag   {key[1]}"
    for key in before:
        if key[0] == "tag" and key not in after:
            yield f"             tag   {key[1]} no longer holds"
    for key in new:
        if key[0] == "RiskAssessment" and after[key].get("status") == "final":
            for prediction in after[key].get("prediction", ()):
                outcome = prediction.get("outcome", {}).get("text", "")
                percent = prediction.get("probabilityDecimal", "?")
                band = (prediction.get("qualitativeRisk", {}).get("coding") or [{}])[0].get(
                    "display", "no class published"
                )
                yield f"  {at(key)}  risk  {after[key]['method']['text']}: {outcome} {percent} %, {band}"
    for key in new:
        if key[0] in ("Task", "Flag", "CommunicationRequest") and key[2] == "1":
            resource = after[key]
            owner = resource.get("owner", {}).get("display", "")
            due = resource.get("restriction", {}).get("period", {}).get("end", "")[:10]
            what = resource.get("description") or resource.get("code", {}).get("text") or key[0]
            details = [resource.get("priority", ""), owner and f"for the {owner.lower()}", due and f"due {due}"]
            yield f"  {at(key)}  {key[0].lower():5} {what} ({', '.join(part for part in details if part)})"


async def _why(client: Client, new: list[tuple[str, str, str]]) -> list[str]:
    """The explanation of one of them: a task that was raised, if there is one."""
    raised = [key for key in new if key[0] == "Task" and key[2] == "1"]
    for kind in ("Task", "RiskAssessment"):
        for key in (*raised, *new):
            if key[0] == kind:
                answer = load((await client.get(f"{key[0]}/{key[1]}/$explain")).body)
                for told in answer.get("parameter", ()):
                    for part in told.get("part", ()):
                        if part["name"] == "text":
                            return ["", f"Why {key[0]}/{key[1]} ($explain):", *_indented(part["valueString"])]
    return []


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]


async def _has(client: Client, query: str) -> bool:
    return bool(load((await client.get(f"{query}&_summary=count")).body)["total"])

"""The sample population: invented people and several years of their check-ups, the same bytes for the same seed.

A generator of transaction Bundles (https://hl7.org/fhir/R4/http.html#transaction): first the clinic, then one Bundle a
person. Ids are given and every entry says `ifNoneMatch: *`, so that loading it again changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

from fhir_server.cli.population import records
from fhir_server.cli.population.course import COURSES, Dice, Visit, visits
from fhir_server.cli.population.people import Person, people, practitioners
from fhir_server.model.resource import dump

Json = dict[str, Any]

SEED = 20261031
TODAY = date(2026, 10, 31)  # fixed, so that the output never depends on the day it is made
FIRST_YEAR = 2019
LABORATORY = (
    "glucose", "hba1c", "cholesterol", "hdl", "ldl", "triglycerides", "creatinine", "uric_acid", "alt", "ast",
    "platelets", "haemoglobin",
)  # fmt: skip
EXAMINATION = ("height", "weight", "bmi", "waist", "heart_rate")
SELF_MEASURING = ("hypertension", "hypertension_diabetes", "kidney")


def bundles(seed: int = SEED, today: date = TODAY) -> Iterator[tuple[str, bytes]]:
    """(name, JSON of a transaction Bundle), the clinic first. `today` is the day the story ends."""
    clinic = [records.organization(), *({**row, "meta": records.TEST_DATA} for row in practitioners())]
    yield "clinic", transaction(clinic)
    for person in people():
        yield person.id, transaction(list(story(person, seed, today)))


def story(person: Person, seed: int, today: date) -> Iterator[Json]:
    """Everything about one person, in an order in which nothing is referred to before it is there."""
    yield records.patient(person, Dice(seed, person.id, "address"), today)
    known: list[str] = []
    last: Visit | None = None
    month = Dice(seed, person.id, "month").whole(3, 9)
    for visit in visits(seed, person, range(FIRST_YEAR, today.year + 1), today.year):
        dice = Dice(seed, person.id, visit.year, "details")
        day = date(visit.year, month, dice.whole(1, 28))
        yield from _check_up(person, visit, day, dice)
        for name in visit.began:
            yield records.condition(person, name, visit, day)
            yield records.prescription(person, name, visit, day + timedelta(days=1))
        known += visit.began
        last = visit
    if last is None:
        return
    for name in known:
        if name not in last.began:
            yield records.taken(person, name, today - timedelta(days=30))
    if person.course in SELF_MEASURING:
        yield from records.home_readings(person, last, today, Dice(seed, person.id, "home"))


def _check_up(person: Person, visit: Visit, day: date, dice: Dice) -> Iterator[Json]:
    when = f"{day}T08:{dice.whole(10, 40)}:00{records.ZONE}"
    reported = f"{day}T15:{dice.whole(10, 50)}:00{records.ZONE}"
    yield records.encounter(person, visit, day)
    visited = f"{person.id}-{visit.year}"
    yield records.blood_pressure(person, f"{visited}-bp", visit.systolic, visit.diastolic, when, encounter=visited)
    for name in EXAMINATION:
        yield records.measurement(person, name, visit.values[name], when, visit)
    results = [records.measurement(person, name, visit.values[name], when, visit) for name in LABORATORY]
    yield from results
    yield records.report(person, visit, reported, results)
    yield records.smoking_status(person, visit, when)
    if person.course == "low_mood" or visit.year == TODAY.year:
        yield records.phq9(person, visit, day, dice, COURSES[person.course].low_mood)


def transaction(resources: list[Json]) -> bytes:
    entries = [
        {
            "fullUrl": f"http://example.org/sample/{resource['resourceType']}/{resource['id']}",
            "resource": resource,
            "request": {
                "method": "PUT",
                "url": f"{resource['resourceType']}/{resource['id']}",
                "ifNoneMatch": "*",
            },
        }
        for resource in resources
    ]
    return dump({"resourceType": "Bundle", "type": "transaction", "entry": entries})

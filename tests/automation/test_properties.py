"""What holds for every history of a patient: the same facts give the same state, however they arrive."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fhir_server.automation.content import definitions
from fhir_server.automation.ledger import dump
from fhir_server.automation.rulebook import Rulebook
from fhir_server.automation.tags import codes
from fhir_server.automation.world import World
from fhir_server.model.dates import DAY, HOUR, instant
from fhir_server.model.resource import Resource

NOW = 1_780_279_200_000
BOOK = Rulebook(definitions())
OPEN = ("requested", "received", "accepted", "in-progress", "active", "final", "amended")


def observation(index: int, kind: str, value: int, hours: int) -> Resource:
    found: Resource = {
        "resourceType": "Observation",
        "id": f"o{index}",
        "status": "final",
        "subject": {"reference": "Patient/p"},
        "effectiveDateTime": instant(NOW - hours * HOUR - index * 1000),
    }
    if kind == "bp":
        found["code"] = coded("85354-9")
        parts = (("8480-6", 100 + value), ("8462-4", 60 + value // 2))
        found["component"] = [{"code": coded(code), "valueQuantity": quantity(v, "mm[Hg]")} for code, v in parts]
    elif kind == "glucose":
        found.update(code=coded("14771-0"), valueQuantity=quantity(Decimal(value) / 10 + 3, "mmol/L"))
    elif kind == "creatinine":
        found.update(code=coded("2160-0"), valueQuantity=quantity(Decimal(value) / 20 + Decimal("0.5"), "mg/dL"))
    else:
        found.update(code=coded("2093-3"), valueQuantity=quantity(value * 3 + 120, "mg/dL"))
    return found


def coded(code: str) -> dict[str, Any]:
    return {"coding": [{"system": "http://loinc.org", "code": code}]}


def quantity(value: Any, unit: str) -> dict[str, Any]:
    return {"value": Decimal(value), "unit": unit, "system": "http://unitsofmeasure.org", "code": unit}


readings = st.lists(
    st.tuples(
        st.sampled_from(["bp", "bp", "glucose", "creatinine", "cholesterol"]), st.integers(0, 99), st.integers(0, 20)
    ),
    min_size=1,
    max_size=7,
).map(lambda rows: [observation(index, *row) for index, row in enumerate(rows)])


def begin() -> World:
    world = World(BOOK, "p", NOW)
    world.write({"resourceType": "Patient", "id": "p", "gender": "male", "birthDate": "1961-03-01"})
    world.settle()
    return world


def state(world: World, *, every: bool = False) -> dict[str, Any]:
    """Tags, and what is open (with `every`: everything that was ever derived), without versions and times of writing."""
    found: dict[str, Any] = {"tags": sorted(codes(world.get(("Patient", "p"))))}
    for key in world.stored:
        resource = world.get(key)
        if resource is None or key[0] in ("Patient", "Provenance"):
            continue
        if every or resource.get("status") in OPEN:
            apart = ("meta", "authoredOn", "lastModified", "period")
            found["/".join(key)] = {name: value for name, value in resource.items() if name not in apart}
    return found


quickly = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quickly
@given(found=readings, data=st.data())
def test_the_order_of_arrival_does_not_matter(found: list[Resource], data: st.DataObject) -> None:
    states = []
    for order in (found, data.draw(st.permutations(found))):
        world = begin()
        for one in order:
            world.write(one)
            world.settle()
        states.append(state(world))
    assert states[0] == states[1]


@quickly
@given(found=readings)
def test_events_seen_again_change_nothing(found: list[Resource]) -> None:
    world = begin()
    for one in found:
        world.write(one)
    events = list(world.outbox)
    world.settle()
    before, ledger = dict(world.stored), dump(world.account.ledger)
    world.outbox = events
    world.settle()
    assert world.stored == before
    assert dump(world.account.ledger) == ledger


@quickly
@given(found=readings, size=st.integers(2, 10))
def test_how_many_events_are_seen_at_once_does_not_matter(found: list[Resource], size: int) -> None:
    """Not even for what was raised and withdrawn on the way."""
    states = []
    for batch in (1, size):
        world = begin()
        for one in found:
            world.write(one)
        world.settle(batch)
        states.append(state(world, every=True))
    assert states[0] == states[1]


@quickly
@given(found=readings, how=st.sampled_from(["delete", "entered-in-error"]))
def test_what_is_taken_back_leaves_nothing_open(found: list[Resource], how: str) -> None:
    world = begin()
    empty = state(world)
    for one in found:
        world.write(one)
        world.settle()
    for one in found:
        if how == "delete":
            world.delete(("Observation", one["id"]))
        else:
            world.write({**one, "status": "entered-in-error"})
        world.settle()
    assert state(world) == empty


@quickly
@given(found=readings)
def test_an_empty_memory_comes_to_the_same_result(found: list[Resource]) -> None:
    states = []
    for forgetful in (False, True):
        world = begin()
        for one in found:
            world.write(one)
            world.settle()
            if forgetful:
                world.restart()
        states.append(state(world, every=True))
    assert states[0] == states[1]


@pytest.mark.parametrize("days", [1, 40])
def test_time_alone_brings_the_same_as_many_looks(days: int) -> None:
    worlds = []
    for looks in (1, days):
        world = begin()
        world.write(observation(1, "bp", 10, 0))
        world.settle()
        for look in range(1, looks + 1):
            world.advance(NOW + days * DAY * look // looks)
        worlds.append(state(world, every=True))
    assert worlds[0] == worlds[1]

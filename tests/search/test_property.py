"""Random resources, random searches: memory and MongoDB find the same, for everyone and for those who may see less.

The pools are small, so that searches hit; the two sides share the entries and nothing else.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any

import pytest

from fhir_server.errors import BadRequest
from fhir_server.interactions.context import Server
from fhir_server.model.resource import dump
from fhir_server.search import execute, parse
from fhir_server.search.index import index
from fhir_server.search.match import Candidate, World, matches
from fhir_server.search.registry import standard
from fhir_server.search.restrict import EVERYTHING, Alternative, Restriction, unrestricted
from fhir_server.store.protocol import Put, Stored

pytestmark = pytest.mark.anyio

Rng = random.Random

DATES = [
    "1980",
    "1980-05",
    "1980-05-01",
    "1980-05-01T10:00:00Z",
    "1980-05-01T10:00:00.250+02:00",
    "2000-02-29",
    "2024-12-31T23:59:60Z",
]
NUMBERS = ["0", "1", "5.4", "5.40", "-3", "126", "1e2", "0.001", "99.5", "100.49"]
UNITS = [
    None,
    ("http://unitsofmeasure.org", "mg"),
    ("http://unitsofmeasure.org", "g"),
    ("http://x", "u"),
    ("http://unitsofmeasure.org", "mmol/L"),
    ("http://unitsofmeasure.org", "mg/dL"),
]
CODES = [
    ("http://loinc.org", "2339-0"),
    ("http://loinc.org", "8480-6"),
    ("http://x", "8480-6"),
    (None, "8480-6"),
    ("http://x", "a|b,c$d\\e"),
    ("http://loinc.org", None),
]
NAMES = ["Müller", "MULLER", "O'Brien", "王小明", "Van der Berg", "Anna", "ann", "a.*b", "Ｗide", "Straße", "$gt"]
PATIENTS = ["p0", "p1", "p2", "p3", "p4", "p5"]


def chance(rng: Rng, most: float, make: Callable[[], Any]) -> Any:
    return make() if rng.random() < most else None


def without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_none(v) for k, v in value.items() if v is not None}
    return [without_none(v) for v in value] if isinstance(value, list) else value


def concept(rng: Rng) -> dict[str, Any]:
    codings = [dict(zip(("system", "code"), rng.choice(CODES), strict=True)) for _ in range(rng.randrange(3))]
    return {"coding": codings or None, "text": chance(rng, 0.5, lambda: rng.choice(NAMES))}


def quantity(rng: Rng) -> dict[str, Any]:
    unit = rng.choice(UNITS)
    system, code = unit or (None, None)
    comparator = chance(rng, 0.2, lambda: rng.choice(["<", "<=", ">", ">="]))
    return {
        "value": Decimal(rng.choice(NUMBERS)),
        "comparator": comparator,
        "unit": code,
        "system": system,
        "code": code,
    }


def period(rng: Rng) -> dict[str, Any]:
    return {"start": chance(rng, 0.7, lambda: rng.choice(DATES)), "end": chance(rng, 0.7, lambda: rng.choice(DATES))}


def reference(rng: Rng) -> dict[str, Any]:
    kind = rng.randrange(10)
    if kind == 0:
        return {"display": "x"}
    if kind == 1:
        return {"identifier": {"system": "http://mrn", "value": "1"}}
    if kind == 2:
        return {"reference": "http://elsewhere/fhir/Patient/p1"}
    version = "/_history/1" if kind == 3 else ""
    return {"reference": f"Patient/{rng.choice(PATIENTS)}{version}"}


def observation(rng: Rng, number: int) -> dict[str, Any]:
    def value() -> dict[str, Any]:
        kind = rng.randrange(5)
        if kind == 0:
            return {"valueQuantity": quantity(rng)}
        if kind == 1:
            return {"valueCodeableConcept": concept(rng)}
        if kind == 2:
            return {"valueString": rng.choice(NAMES)}
        return {"valuePeriod": period(rng)} if kind == 3 else {}

    when = rng.randrange(4)
    return {
        "resourceType": "Observation",
        "id": f"o{number}",
        "status": rng.choice(["final", "amended"]),
        "code": concept(rng),
        "category": [concept(rng) for _ in range(rng.randrange(3))] or None,
        "subject": chance(rng, 0.9, lambda: reference(rng)),
        "performer": [reference(rng) for _ in range(rng.randrange(3))] or None,
        "effectiveDateTime": rng.choice(DATES) if when == 0 else None,
        "effectivePeriod": period(rng) if when == 1 else None,
        "effectiveTiming": {"event": [rng.choice(DATES) for _ in range(2)]} if when == 2 else None,
        "component": [{"code": concept(rng), **value()} for _ in range(rng.randrange(3))] or None,
        "identifier": [{"system": rng.choice(["http://a", None]), "value": rng.choice("12")}],
        **value(),
    }


def patient(rng: Rng, id: str) -> dict[str, Any]:
    return {
        "resourceType": "Patient",
        "id": id,
        "active": chance(rng, 0.5, lambda: rng.random() < 0.5),
        "gender": chance(rng, 0.7, lambda: rng.choice(["male", "female"])),
        "birthDate": chance(rng, 0.7, lambda: rng.choice(DATES[:3])),
        "name": [
            {"family": chance(rng, 0.8, lambda: rng.choice(NAMES)), "given": [rng.choice(NAMES)]}
            for _ in range(rng.randrange(3))
        ]
        or None,
        "telecom": [{"system": rng.choice(["phone", "email"]), "value": rng.choice(["1", "A@b"])}],
        "link": [{"other": reference(rng), "type": "seealso"}] if rng.random() < 0.3 else None,
    }


def encounter(rng: Rng, number: int) -> dict[str, Any]:
    return {
        "resourceType": "Encounter",
        "id": f"e{number}",
        "status": "finished",
        "class": {"code": "AMB"},
        "subject": chance(rng, 0.9, lambda: reference(rng)),
        "period": chance(rng, 0.7, lambda: period(rng)),
        "length": chance(rng, 0.5, lambda: quantity(rng)),
    }


# Searches


def escaped(text: str) -> str:
    return "".join("\\" + c if c in "\\,$|" else c for c in text)


def token(rng: Rng) -> str:
    system, code = rng.choice(CODES)
    kind = rng.randrange(4)
    if code is None or kind == 0:
        return f"{system or 'http://x'}|"
    if kind == 1:
        return escaped(code)
    return f"{system or ''}|{escaped(code)}"


def dated(rng: Rng) -> str:
    return rng.choice(["", "eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap"]) + rng.choice(DATES)


def sized(rng: Rng) -> str:
    unit = rng.choice(UNITS)
    suffix = "" if unit is None else rng.choice([f"|{unit[0]}|{unit[1]}", f"||{unit[1]}"])
    return rng.choice(["", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap"]) + rng.choice(NUMBERS) + suffix


def named(rng: Rng) -> str:
    text = rng.choice(NAMES)
    start = rng.randrange(len(text))
    return escaped(text[start : start + 1 + rng.randrange(4)] if rng.random() < 0.5 else text)


def who(rng: Rng) -> str:
    return (
        rng.choice(["", "Patient/"]) + rng.choice(PATIENTS)
        if rng.random() < 0.8
        else "http://elsewhere/fhir/Patient/p1"
    )


Make = Callable[[Rng], str]
MAYBE_MISSING = ("subject", "patient", "date", "code", "value-quantity", "performer", "combo-code-value-quantity")
PARAMETERS: dict[str, list[tuple[str, Make]]] = {
    "Observation": [
        *((f"{code}", token) for code in ("code", "category", "combo-code", "value-concept")),
        *((f"{code}:not", token) for code in ("code", "category", "combo-code", "value-concept")),
        ("code:text", named),
        ("date", dated),
        ("value-date", dated),
        ("value-quantity", sized),
        ("combo-value-quantity", sized),
        ("value-string", named),
        ("value-string:exact", named),
        ("value-string:contains", named),
        ("subject", who),
        ("patient", who),
        ("performer:Patient", lambda rng: rng.choice(PATIENTS)),
        ("subject:identifier", lambda rng: rng.choice(["http://mrn|1", "1", "2"])),
        ("identifier", lambda rng: rng.choice(["1", "http://a|1", "|2", "http://a|"])),
        ("status", lambda rng: rng.choice(["final", "amended", "final,amended"])),
        ("component-code-value-quantity", lambda rng: f"{token(rng)}${sized(rng)}"),
        ("combo-code-value-quantity", lambda rng: f"{token(rng)}${sized(rng)}"),
        ("combo-code-value-concept", lambda rng: f"{token(rng)}${token(rng)}"),
        ("code-value-string", lambda rng: f"{token(rng)}${named(rng)}"),
        *((f"{code}:missing", lambda rng: rng.choice(["true", "false"])) for code in MAYBE_MISSING),
        ("patient.gender", lambda rng: rng.choice(["male", "female"])),
        ("subject:Patient.name", named),
        ("performer.birthdate", dated),
        ("patient.link.gender", lambda rng: "male"),
        ("patient._has:Encounter:patient:date", dated),
    ],
    "Patient": [
        ("name", named),
        ("family:exact", named),
        ("given:contains", named),
        ("birthdate", dated),
        ("gender:not", lambda rng: "male"),
        ("deceased", lambda rng: "false"),
        ("email", lambda rng: "a@B"),
        ("_has:Observation:patient:code", token),
        ("_has:Observation:performer:value-quantity", sized),
        ("link", who),
        ("_id", lambda rng: ",".join(rng.sample(PATIENTS, 2))),
        ("birthdate:missing", lambda rng: rng.choice(["true", "false"])),
    ],
    "Encounter": [
        ("date", dated),
        ("length", sized),
        ("patient", who),
        ("patient.name", named),
        ("date:missing", lambda rng: "true"),
    ],
}
SORTS = {
    "Observation": ["date", "-date", "-code,date", "value-quantity"],
    "Patient": ["name", "-birthdate"],
    "Encounter": ["date"],
}


def search(rng: Rng) -> tuple[str, list[tuple[str, str]]]:
    kind = rng.choice(["Observation"] * 5 + ["Patient", "Encounter"])
    pairs = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        name, make = rng.choice(PARAMETERS[kind])
        several = rng.random() < 0.3 and not name.endswith((":missing", "_id"))
        pairs.append((name, ",".join(make(rng) for _ in range(2)) if several else make(rng)))
    if rng.random() < 0.3:
        pairs.append(("_sort", rng.choice(SORTS[kind])))
    return kind, pairs


@pytest.fixture(scope="module")
async def world(server: Server) -> AsyncIterator[World]:
    rng = Rng(20260102)
    resources = [patient(rng, id) for id in PATIENTS]
    resources += [observation(rng, number) for number in range(150)]
    resources += [encounter(rng, number) for number in range(40)]
    candidates: dict[str, list[Candidate]] = {}
    puts = []
    for found in resources:
        resource = without_none(found)
        kind, id = resource["resourceType"], resource["id"]
        indexed = index(standard(), resource)
        candidates.setdefault(kind, []).append(Candidate(kind, id, indexed))
        puts.append(Put(Stored(kind, id, 1, 0, dump(resource), patients=indexed.patients, entries=indexed.entries)))
    await server.store.commit(puts)
    yield World(candidates)


async def found(server: Server, query: Any, restrict: Any) -> list[str]:
    page = await execute.run(server.store, server.registry, query, restrict, key=b"k")
    return sorted(stored.id for stored in page.matches)


async def agree(server: Server, world: World, rng: Rng) -> bool:
    """One search; whether it could be asked and found something."""
    kind, pairs = search(rng)
    try:
        query = parse.parse(kind, pairs, registry=server.registry, default_count=1000)
    except BadRequest as error:
        assert "no letter or digit" in error.diagnostics, (pairs, error)
        return False
    expected = sorted(c.id for c in world.candidates[kind] if matches(query, c, world))
    assert await found(server, query, unrestricted) == expected, (kind, pairs)
    return bool(expected)


@pytest.mark.parametrize("seed", range(12))
async def test_memory_and_mongodb_agree(server: Server, world: World, seed: int) -> None:
    rng = Rng(seed)
    hits = [await agree(server, world, rng) for _ in range(50)]
    assert sum(hits) > 10, "searches that find nothing prove little"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 140))
async def test_memory_and_mongodb_agree_at_length(server: Server, world: World, seed: int) -> None:
    rng = Rng(seed)
    for _ in range(500):
        await agree(server, world, rng)


def narrowed(rng: Rng) -> Any:
    """A restriction by type, as tokens make them: some patients, some categories, nothing at all."""

    def alternative(kind: str) -> Alternative:
        patients = frozenset(rng.sample(PATIENTS, 2)) if rng.random() < 0.8 else None
        parameters = (("code", "8480-6"),) if kind == "Observation" and rng.random() < 0.4 else ()
        excluded = frozenset(rng.sample(PATIENTS, 1)) if rng.random() < 0.3 else frozenset()
        return Alternative(patients, parameters, kind, excluded)

    made = {
        kind: Restriction(tuple(alternative(kind) for _ in range(rng.randrange(3))))
        for kind in ("Observation", "Patient", "Encounter")
    }
    return lambda kind: made.get(kind, EVERYTHING)


@pytest.mark.parametrize("seed", range(8))
async def test_nobody_finds_by_what_they_may_not_see(server: Server, world: World, seed: int) -> None:
    """Matches, what they chain through, totals and includes: as if what is hidden did not exist."""
    rng = Rng(1000 + seed)
    for _ in range(40):
        kind, pairs = search(rng)
        restrict = narrowed(rng)
        visible = World(
            {
                k: [c for c in candidates if restrict(k).allows(c.indexed.patients, c.indexed.entries)]
                for k, candidates in world.candidates.items()
            }
        )
        pairs = [*pairs, ("_total", "accurate"), ("_include", f"{kind}:*"), ("_revinclude", "Observation:*")]
        try:
            query = parse.parse(kind, pairs, registry=server.registry, default_count=1000)
        except BadRequest:
            continue
        page = await execute.run(server.store, server.registry, query, restrict, key=b"k")
        expected = sorted(c.id for c in visible.candidates[kind] if matches(query, c, visible))
        assert sorted(stored.id for stored in page.matches) == expected, (kind, pairs)
        assert page.total == len(expected)
        for stored in page.includes:
            assert stored.id in {c.id for c in visible.candidates[stored.resource_type]}

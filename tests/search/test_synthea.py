"""On a real population: every search returns what a scan over the loaded JSON returns. Needs FHIR_SPEC_DATA (synthea/*.json.gz).

The scans are written against the JSON, by hand, and know nothing of entries, operands or indexes.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from fhir_server.interactions.context import Server
from fhir_server.model.resource import dump, load
from fhir_server.search import execute, parse
from fhir_server.search.index import index
from fhir_server.search.registry import standard
from fhir_server.search.restrict import unrestricted
from fhir_server.store.protocol import Put, Stored

pytestmark = pytest.mark.anyio

PATIENTS = 12  # of the folder's, so that loading takes seconds
Resource = dict[str, Any]
World = dict[str, list[Resource]]


def population(folder: Path) -> World:
    bundles = []
    for path in sorted((folder / "synthea").glob("*.json.gz")):
        bundle = load(gzip.decompress(path.read_bytes()))
        kinds = {entry["resource"]["resourceType"] for entry in bundle["entry"]}
        if "Patient" not in kinds or len([b for b in bundles if b[1]]) < PATIENTS:
            bundles.append((bundle, "Patient" in kinds))
    addresses = {
        entry["fullUrl"]: f"{entry['resource']['resourceType']}/{entry['resource']['id']}"
        for bundle, _ in bundles
        for entry in bundle["entry"]
    }
    found: dict[str, Resource] = {}
    for bundle, _ in bundles:
        for entry in bundle["entry"]:
            resource = local(entry["resource"], addresses)
            found[f"{resource['resourceType']}/{resource['id']}"] = resource
    world: World = {}
    for resource in found.values():
        world.setdefault(resource["resourceType"], []).append(resource)
    return world


def local(value: Any, addresses: dict[str, str]) -> Any:
    """With references as the server would have resolved them in a transaction."""
    if isinstance(value, list):
        return [local(item, addresses) for item in value]
    if not isinstance(value, dict):
        return value
    out = {key: local(item, addresses) for key, item in value.items()}
    reference = out.get("reference")
    if isinstance(reference, str):
        kind, _, criteria = reference.partition("?identifier=")
        out["reference"] = f"{kind}/{criteria.rpartition('|')[2]}" if criteria else addresses.get(reference, reference)
    return out


@pytest.fixture(scope="module")
async def world(server: Server, spec_data: Path) -> AsyncIterator[World]:
    found = population(spec_data)
    puts = []
    for resources in found.values():
        for resource in resources:
            indexed = index(standard(), resource)
            kind, id = resource["resourceType"], resource["id"]
            puts.append(Put(Stored(kind, id, 1, 0, dump(resource), patients=indexed.patients, entries=indexed.entries)))
    for start in range(0, len(puts), 500):
        await server.store.commit(puts[start : start + 500])
    yield found


# Scans


def codings(concept: Any) -> Iterator[tuple[str, str]]:
    for item in concept if isinstance(concept, list) else [concept or {}]:
        for coding in item.get("coding", ()):
            yield coding.get("system", ""), coding.get("code", "")


def has_code(resource: Resource, code: str, field: str = "code") -> bool:
    return any(found == code for _, found in codings(resource.get(field)))


def refers(resource: Resource, field: str, to: str) -> bool:
    return bool((resource.get(field) or {}).get("reference") == to)


def day(resource: Resource, field: str = "effectiveDateTime") -> str:
    """The day in UTC: Synthea writes offsets of whole hours."""
    return datetime.fromisoformat(resource[field]).astimezone(UTC).date().isoformat()


def value(resource: Resource) -> float | None:
    quantity = resource.get("valueQuantity")
    return float(quantity["value"]) if quantity else None


def names(patient: Resource) -> list[str]:
    parts: list[str] = []
    for name in patient["name"]:
        parts += [name.get("family", ""), *name.get("given", ()), *name.get("prefix", ())]
    return [re.sub(r"[^a-z0-9]", "", part.lower()) for part in parts]


def pressure(resource: Resource, code: str) -> float | None:
    for component in resource.get("component", ()):
        if has_code(component, code):
            return value(component)
    return None


Scan = Callable[[World, Resource], bool]


def patient_of(world: World, resource: Resource) -> Resource:
    return next(p for p in world["Patient"] if f"Patient/{p['id']}" == resource["subject"]["reference"])


def has_condition(world: World, patient: Resource, code: str) -> bool:
    return any(refers(c, "subject", f"Patient/{patient['id']}") and has_code(c, code) for c in world["Condition"])


CASES: list[tuple[str, Scan]] = [
    ("Patient?gender=female", lambda w, r: r["gender"] == "female"),
    ("Patient?birthdate=lt1970", lambda w, r: r["birthDate"] < "1970"),
    ("Patient?birthdate=ge1970&birthdate=lt1990", lambda w, r: "1970" <= r["birthDate"] < "1990"),
    ("Patient?gender=male&birthdate=gt1980-06", lambda w, r: r["gender"] == "male" and r["birthDate"] > "1980-07"),
    ("Patient?name=m", lambda w, r: any(n.startswith("m") for n in names(r))),
    ("Patient?family:contains=er", lambda w, r: any("er" in n["family"].lower() for n in r["name"])),
    ("Patient?deceased=false", lambda w, r: "deceasedDateTime" not in r),
    (
        "Patient?address-state=massachusetts",
        lambda w, r: any(a.get("state") == "Massachusetts" for a in r["address"]),
    ),
    ("Observation?code=8302-2", lambda w, r: has_code(r, "8302-2")),
    (
        "Observation?code=http://loinc.org|8302-2,http://loinc.org|29463-7",
        lambda w, r: has_code(r, "8302-2") or has_code(r, "29463-7"),
    ),
    (
        "Observation?code:not=8302-2&category=vital-signs",
        lambda w, r: not has_code(r, "8302-2") and has_code(r, "vital-signs", "category"),
    ),
    (
        "Observation?code=8302-2&value-quantity=gt170|http://unitsofmeasure.org|cm",
        lambda w, r: has_code(r, "8302-2") and (value(r) or 0) > 170,
    ),
    (
        "Observation?code=8302-2&value-quantity=gt1.7|http://unitsofmeasure.org|m",
        lambda w, r: has_code(r, "8302-2") and (value(r) or 0) > 170,
    ),
    ("Observation?code-value-quantity=29463-7$lt60", lambda w, r: has_code(r, "29463-7") and (value(r) or 99) < 60),
    ("Observation?component-code-value-quantity=8480-6$gt130", lambda w, r: (pressure(r, "8480-6") or 0) > 130),
    (
        "Observation?component-code-value-quantity=8480-6$gt120&component-code-value-quantity=8462-4$gt80",
        lambda w, r: (pressure(r, "8480-6") or 0) > 120 and (pressure(r, "8462-4") or 0) > 80,
    ),
    ("Observation?date=ge2018-01-01&code=8302-2", lambda w, r: has_code(r, "8302-2") and day(r) >= "2018-01-01"),
    ("Observation?date=2015", lambda w, r: day(r).startswith("2015")),
    ("Observation?date=lt2012-06", lambda w, r: day(r) < "2012-06"),
    (
        "Observation?value-quantity:missing=true",
        lambda w, r: "valueQuantity" not in r and "valueSampledData" not in r,
    ),
    (
        "Observation?patient.gender=male&code=8302-2",
        lambda w, r: has_code(r, "8302-2") and patient_of(w, r)["gender"] == "male",
    ),
    (
        "Observation?subject:Patient.birthdate=lt1960&category=laboratory",
        lambda w, r: has_code(r, "laboratory", "category") and patient_of(w, r)["birthDate"] < "1960",
    ),
    ("Observation?encounter:missing=false&code=8302-2", lambda w, r: "encounter" in r and has_code(r, "8302-2")),
    ("Condition?clinical-status=active", lambda w, r: has_code(r, "active", "clinicalStatus")),
    (
        "Condition?code:text=viral",
        lambda w, r: any(
            t.lower().startswith("viral")
            for t in [r["code"].get("text", ""), *(c.get("display", "") for c in r["code"]["coding"])]
        ),
    ),
    ("Patient?_has:Condition:patient:code=59621000", lambda w, r: has_condition(w, r, "59621000")),
    (
        "Patient?_has:Condition:patient:code=59621000&gender=male",
        lambda w, r: r["gender"] == "male" and has_condition(w, r, "59621000"),
    ),
    ("Encounter?class=AMB", lambda w, r: r["class"]["code"] == "AMB"),
    (
        "Encounter?service-provider.name:contains=hospital",
        lambda w, r: any(
            "hospital" in o["name"].lower() and refers(r, "serviceProvider", f"Organization/{o['id']}")
            for o in w["Organization"]
        ),
    ),
    ("MedicationRequest?status=active,stopped", lambda w, r: r["status"] in ("active", "stopped")),
    (
        "Immunization?vaccine-code=140&status=completed",
        lambda w, r: has_code(r, "140", "vaccineCode") and r["status"] == "completed",
    ),
    ("Procedure?date=sa2019", lambda w, r: day(r["performedPeriod"], "start") >= "2020"),
    ("Condition?_content=sinusitis", lambda w, r: "sinusitis" in r["code"]["text"].lower()),
]


@pytest.mark.parametrize(("query", "scan"), [pytest.param(*case, id=case[0]) for case in CASES])
async def test_a_search_finds_what_a_scan_finds(server: Server, world: World, query: str, scan: Scan) -> None:
    kind, _, text = query.partition("?")
    pairs = [(n, v) for n, v in httpx.QueryParams(text).multi_items() if n != "_count"]
    expected = sorted(resource["id"] for resource in world[kind] if scan(world, resource))
    assert expected, "a search that finds nobody proves nothing"
    found: list[str] = []
    cursor = None
    while True:
        parsed = parse.parse(kind, pairs, registry=server.registry, default_count=137)
        parsed = parsed.with_cursor(cursor) if cursor else parsed
        page = await execute.run(server.store, server.registry, parsed, unrestricted, key=b"k")
        found += [stored.id for stored in page.matches]
        cursor = page.cursor
        if cursor is None:
            break
    assert found == expected

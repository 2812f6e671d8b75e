"""What is not one's own costs what nothing costs: the same commands of the database, which look at the same.

Times are not compared here (they would be noise, or flaky), but what makes them: MongoDB's profiler tells each command's
plan, and how many keys and documents it looked at.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from fhir_server.model.resource import dump
from fhir_server.search.index import index
from fhir_server.store.protocol import Put, Stored
from tests.auth.conftest import Secured, secured_application

pytestmark = pytest.mark.anyio

MANY = 1_500
LOOKED_AT = ("Patient", "Observation", "Encounter", "history")  # by requests; other processes look at other things
LOINC = "http://loinc.org"


def observation(id: str, patient: str, code: str, value: int) -> dict[str, Any]:
    return {
        "resourceType": "Observation", "id": id, "status": "final", "subject": {"reference": f"Patient/{patient}"},
        "code": {"coding": [{"system": LOINC, "code": code}]}, "effectiveDateTime": f"2025-01-{1 + value % 28:02}",
        "valueQuantity": {"value": value}, "identifier": [{"system": "urn:x", "value": id}],
        "encounter": {"reference": f"Encounter/e-{patient}"},
    }  # fmt: skip


@pytest.fixture(scope="module")
async def filled(mongo_url: str, tmp_path_factory: Any, anyio_backend: Any) -> AsyncIterator[Secured]:
    """p1 has 30 observations; `foreign` is a code that 1,500 of others have, `absent` one that nobody has."""
    async with secured_application(mongo_url, tmp_path_factory.mktemp("work"), audit=False) as secured:
        resources = [{"resourceType": "Patient", "id": f"p{n}", "name": [{"family": f"F{n}"}]} for n in range(1, 40)]
        resources += [{"resourceType": "Encounter", "id": f"e-p{n}", "status": "finished", "class": {"code": "AMB"},
                       "subject": {"reference": f"Patient/p{n}"}} for n in range(1, 40)]  # fmt: skip
        resources += [observation(f"mine-{n}", "p1", "own", n) for n in range(30)]
        resources += [observation(f"other-{n}", f"p{2 + n % 38}", "foreign", n) for n in range(MANY)]
        resources += [observation(f"rare-{n}", "p9", "rare", n) for n in range(3)]
        puts = []
        for resource in resources:
            indexed = index(secured.server.registry, resource)
            kind, id = resource["resourceType"], resource["id"]
            stored = Stored(kind, id, 1, 1, dump(resource), patients=indexed.patients, entries=indexed.entries)
            puts.append(Put(stored))
        for start in range(0, len(puts), 500):
            await secured.server.store.commit(puts[start : start + 500])
        await secured.user("ann", "patient", "Patient/p1")
        yield secured


async def work(secured: Secured, method: str, url: str, **more: Any) -> tuple[int, list[tuple[Any, ...]]]:
    """The status, and for each command: what, where, plan, keys and documents looked at."""
    database = secured.server.store.database
    headers = {**await secured.token("patient/*.cruds", user="ann", patient="p1"), **more.pop("headers", {})}
    for _ in range(2):  # with the token known and the plan chosen
        answer = await secured.http.request(method, url, headers=headers, **more)
    await database.command("profile", 2)
    answer = await secured.http.request(method, url, headers=headers, **more)
    await database.command("profile", 0)
    rows = await database["system.profile"].find({"op": {"$ne": "getmore"}}, sort=[("$natural", 1)]).to_list()
    await database["system.profile"].drop()
    return answer.status_code, [
        (row["op"], row["ns"].partition(".")[2], row.get("planSummary", ""), row.get("keysExamined", 0),
         row.get("docsExamined", 0))
        for row in rows if row["ns"].partition(".")[2] in LOOKED_AT
    ]  # fmt: skip


SEARCHES = [
    "Observation?code={}&_summary=count",
    "Observation?code={}&_total=accurate",
    "Observation?code=http://loinc.org|{}&_total=accurate&_sort=-date",
    "Observation?code={}&_sort=-date&_count=5",
    "Observation?patient=p1&code={}&_summary=count",
    "Observation?code={}&date=ge2025&_total=accurate",
    "Patient?_has:Observation:patient:code={}&_total=accurate",
    "Encounter?_has:Observation:encounter:code={}&_summary=count",
    "Patient/p1/Observation?code={}&_summary=count",
]


@pytest.mark.parametrize("search", SEARCHES)
async def test_a_search_looks_at_no_more_for_what_others_have(filled: Secured, search: str) -> None:
    foreign = await work(filled, "GET", search.format("foreign"))
    absent = await work(filled, "GET", search.format("absent"))
    assert foreign == absent


async def test_others_records_are_not_looked_at_at_all(filled: Secured) -> None:
    """However many others there are: the plan starts from one's own record, whatever plan was remembered before."""
    for search in ("Observation?code={}&_summary=count", "Observation?code={}&_sort=-date", "Observation?code={}"):
        for _ in range(5):
            await work(filled, "GET", search.format("absent"))
        for code in ("foreign", "rare", "absent"):
            status, done = await work(filled, "GET", search.format(code))
            assert status == 200
            assert {one[2:] for one in done} == {("IXSCAN { p: 1, t: -1, _id: 1 }", 30, 30)}, (code, done)


@pytest.mark.parametrize("search", ["Observation?patient=p7&_summary=count", "Observation?subject=Patient/p7"])
async def test_another_patient_is_not_looked_up(filled: Secured, search: str) -> None:
    assert await work(filled, "GET", search) == await work(filled, "GET", search.replace("p7", "nobody"))


async def test_ones_own_results_are_read_off_their_timeline(filled: Secured) -> None:
    _, done = await work(filled, "GET", "Observation?patient=p1&code=own&_sort=-date&_count=5")
    assert [one[3] for one in done] == [6], done


INSTANCES = [
    ("GET", "Observation/{}"),
    ("GET", "Observation/{}/_history/1"),
    ("GET", "Observation/{}/_history"),
    ("DELETE", "Observation/{}"),
    ("PUT", "Observation/{}"),
    ("DELETE", "Observation?identifier={}"),
    ("POST", "Observation"),
]


@pytest.mark.parametrize(("method", "url"), INSTANCES)
async def test_an_id_of_another_costs_what_no_ones_does(filled: Secured, method: str, url: str) -> None:
    """The same commands with the same plans; one small document more or less is no measure of anything."""
    found = []
    for id in ("other-7", "nobody-7"):
        more: dict[str, Any] = {}
        if method == "PUT":
            more["json"] = observation(id, "p1", "own", 1)
        if method == "POST":
            more["headers"] = {"If-None-Exist": f"identifier={id}"}
            more["json"] = {**observation("x", "p1", "own", 1), "status": "not a status"}
        status, done = await work(filled, method, url.format(id), **more)
        assert sum(one[4] for one in done) <= 31, done
        found.append((status, [one[:2] for one in done]))
    assert found[0] == found[1]

"""$lastn and $stats of Observation, $everything of Patient."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio

LOINC = "http://loinc.org"
UCUM = "http://unitsofmeasure.org"


def observation(
    id: str, codes: list[str], when: str, value: float | str, unit: str = "mg", **more: Any
) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": id,
        "status": "final",
        "category": [{"coding": [{"code": "laboratory"}]}],
        "code": {"coding": [{"system": LOINC, "code": code} for code in codes]} if codes else {"text": "by ear"},
        "subject": {"reference": "Patient/p"},
        "effectiveDateTime": when,
        "valueQuantity": {"value": value, "unit": unit, "system": UCUM, "code": unit},
        **more,
    }


WORLD: list[dict[str, Any]] = [
    {"resourceType": "Practitioner", "id": "doc"},
    {"resourceType": "Patient", "id": "p", "generalPractitioner": [{"reference": "Practitioner/doc"}]},
    {"resourceType": "Patient", "id": "q"},
    observation("w1", ["A"], "2024-01-01", 10),
    observation("w2", ["A"], "2024-01-11", 20),
    observation("w3", ["A"], "2024-01-21", 0.03, "g"),
    observation("w4", ["A"], "2024-01-31", 100, "mmol"),
    observation("both", ["A", "B"], "2023-01-01", 7),
    observation("b1", ["B"], "2022-01-01", 5),
    observation("c1", ["C"], "2024-05-01", 1),
    observation("t1", [], "2024-01-01", 1),
    observation("t2", [], "2024-02-01", 1),
    observation("other", ["A"], "2024-06-01", 999, subject={"reference": "Patient/q"}),
    {
        "resourceType": "Encounter",
        "id": "e",
        "status": "finished",
        "class": {"code": "AMB"},
        "subject": {"reference": "Patient/p"},
        "period": {"start": "2023-06-01", "end": "2023-06-02"},
    },
    {
        "resourceType": "Flag",
        "id": "f",
        "status": "active",
        "code": {"text": "x"},
        "subject": {"reference": "Patient/p"},
    },
]


@pytest.fixture(scope="module", autouse=True)
async def world(client: httpx.AsyncClient) -> None:
    for resource in WORLD:
        response = await client.put(f"{resource['resourceType']}/{resource['id']}", json=resource)
        assert response.status_code == 201, response.text


async def ids(client: httpx.AsyncClient, url: str, mode: str = "match") -> list[str]:
    response = await client.get(url)
    assert response.status_code == 200, response.text
    return [e["resource"]["id"] for e in response.json().get("entry", ()) if e["search"]["mode"] == mode]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("patient=p", ["c1", "t2", "w4"]),
        ("subject=Patient/p", ["c1", "t2", "w4"]),
        ("patient=p&max=2", ["c1", "t2", "t1", "w4", "w3"]),
        ("patient=p&max=100", ["c1", "t2", "t1", "w4", "w3", "w2", "w1", "both", "b1"]),
        ("patient=p&code=B", ["both"]),
        ("patient=p&code=C", ["c1"]),
        ("patient=p&date=lt2024-01-15&code=A", ["w2"]),
        ("patient=p&category=vital-signs", []),
        ("patient=q", ["other"]),
    ],
)
async def test_lastn(client: httpx.AsyncClient, query: str, found: list[str]) -> None:
    """A and B are one kind, because one observation has both codes."""
    assert await ids(client, f"Observation/$lastn?{query}") == found


@pytest.mark.parametrize(
    "query", ["", "code=A", "patient=p&max=0", "patient=p&max=x", "patient=p&_sort=date", "patient=p&x=y"]
)
async def test_lastn_refuses(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"Observation/$lastn?{query}")).status_code == 400


async def figures(client: httpx.AsyncClient, query: str) -> dict[str, Any]:
    response = await client.get(f"Observation/$stats?{query}")
    assert response.status_code == 200, response.text
    found = response.json()["parameter"][0]["resource"]
    return {c["code"]["coding"][0]["code"]: c.get("valueQuantity", {}).get("value") for c in found["component"]}


async def test_stats(client: httpx.AsyncClient) -> None:
    """10, 20 and 30 mg (0.03 g) at steps of ten days; the newest is in mmol and nothing else can be."""
    every = "average,minimum,maximum,count,total-count,median,sum,std-dev,variance,regression"
    found = await figures(
        client, f"subject=Patient/p&code=A&system={LOINC}&statistic={every}&period=2024-01-01/2024-01-25"
    )
    assert found == {
        "average": 0.02,
        "minimum": 0.01,
        "maximum": 0.03,
        "count": 3,
        "total-count": 3,
        "median": 0.02,
        "sum": 0.06,
        "std-dev": 0.01,
        "variance": 0.0001,
        "regression": 0.001,
    }


async def test_stats_leave_out_what_cannot_be_converted(client: httpx.AsyncClient) -> None:
    found = await figures(client, "subject=Patient/p&code=A&statistic=count,total-count,maximum&period=2024-01-01/")
    assert found == {"count": 1, "total-count": 4, "maximum": 100}


async def test_stats_of_nothing(client: httpx.AsyncClient) -> None:
    found = await figures(client, "subject=Patient/p&code=Z&statistic=average,count,regression")
    assert found == {"average": None, "count": 0, "regression": None}


async def test_stats_by_post_with_their_sources(client: httpx.AsyncClient) -> None:
    body = {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "subject", "valueUri": "Patient/p"},
            {"name": "coding", "valueCoding": {"system": LOINC, "code": "C"}},
            {"name": "statistic", "valueCode": "average"},
            {"name": "include", "valueBoolean": True},
        ],
    }
    response = await client.post("Observation/$stats", json=body)
    assert response.status_code == 200, response.text
    parts = response.json()["parameter"]
    assert [part["name"] for part in parts] == ["statistics", "source"]
    assert parts[1]["resource"]["id"] == "c1"


@pytest.mark.parametrize(
    "query",
    ["subject=Patient/p&code=A", "code=A&statistic=average", "subject=Patient/p&statistic=average",
     "subject=Patient/p&code=A&statistic=kurtosis", "subject=Patient/p&code=A&statistic=sum&duration=x",
     "subject=Patient/p&code=A&statistic=sum&period=2024", "subject=Patient/p&code=A&statistic=sum&colour=red",
     "subject=Patient/p&code=A&statistic=sum&limit=0"],
)  # fmt: skip
async def test_stats_refuse(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"Observation/$stats?{query}")).status_code == 400


RECORD = {"p", "w1", "w2", "w3", "w4", "both", "b1", "c1", "t1", "t2", "e", "f"}


async def test_everything(client: httpx.AsyncClient) -> None:
    assert set(await ids(client, "Patient/p/$everything")) == RECORD
    assert await ids(client, "Patient/p/$everything", "include") == ["doc"]
    assert (await client.get("Patient/nobody/$everything")).status_code == 404


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("_type=Encounter,Flag", {"e", "f"}),
        ("start=2024-01-15", {"p", "w3", "w4", "c1", "t2", "f"}),
        ("end=2023-06-01", {"p", "both", "b1", "e", "f"}),
        ("start=2023-06&end=2024-01-11", {"p", "w1", "w2", "t1", "e", "f"}),
        ("_since=2100-01-01", set()),
        ("_since=2000-01-01", RECORD),
    ],
)
async def test_everything_narrowed(client: httpx.AsyncClient, query: str, found: set[str]) -> None:
    assert set(await ids(client, f"Patient/p/$everything?{query}")) == found


async def test_everything_in_pages(client: httpx.AsyncClient) -> None:
    url: str | None = "Patient/p/$everything?_count=5&start=2000"
    seen: list[str] = []
    pages = 0
    while url:
        bundle = (await client.get(url)).json()
        seen += [e["resource"]["id"] for e in bundle["entry"] if e["search"]["mode"] == "match"]
        url = next((link["url"] for link in bundle["link"] if link["relation"] == "next"), None)
        pages += 1
    assert len(seen) == len(RECORD)
    assert set(seen) == RECORD
    assert pages == 3
    assert (await client.get("Patient/p/$everything?colour=red")).status_code == 400

"""What clients get wrong, by accident or on purpose: 400 that names parameter and value, never 500, nothing dropped."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", autouse=True)
async def world(client: httpx.AsyncClient) -> None:
    for number in range(3):
        body: dict[str, Any] = {
            "resourceType": "Patient",
            "id": f"p{number}",
            "gender": "female",
            "name": [{"family": f"Family{number}"}],
            "identifier": [{"value": str(number)}],
        }
        await client.put(f"Patient/p{number}", json=body)


async def refused(client: httpx.AsyncClient, query: str, *parts: str) -> None:
    response = await client.get(query)
    assert response.status_code == 400, f"{query}: {response.status_code} {response.text[:300]}"
    outcome = response.json()
    assert outcome["resourceType"] == "OperationOutcome"
    for part in parts:
        assert part in outcome["issue"][0]["diagnostics"], f"{query} says {outcome['issue'][0]['diagnostics']!r}"


@pytest.mark.parametrize(
    ("query", "parts"),
    [
        ("Patient?nmae=x", ("'nmae'", "name")),
        ("Patient?birthdate=2024-13", ("'birthdate'", "'2024-13'")),
        ("Patient?birthdate=zz2024", ("'birthdate'", "'zz2024'")),
        ("Patient?_count=-1", ("'_count'", "'-1'")),
        ("Patient?_count=999999999999999999999", ("'_count'",)),
        ("Patient?name=", ("'name'", "empty")),
        ("Patient?name", ("'name'", "empty")),
        ("Patient?=x", ("''",)),
        ("Observation?subject:Organization.name=x", ("'subject:Organization.name'", "Organization")),
        ("Observation?subject.name.given=x", ("'subject.name.given'",)),
        ("Patient?_id:exact=x", ("'_id:exact'",)),
        ("Patient?name:=x&gender:male=x", ("'gender:male'",)),
        ("Patient?_has:x=y", ("'_has:x'",)),
        ("Patient?_sort=-", ("'_sort'",)),
        ("Patient?name=%00", ("'name'",)),
        ("Patient?_filter=((((", ("'_filter'",)),
        ("Patient?_filter=" + "(" * 500 + "name eq x" + ")" * 500, ("'_filter'", "20")),
        ("Patient?_filter=" + " or ".join(["name eq x"] * 3000), ("'_filter'", "200")),
        ("Patient?_filter=" + " or name eq x and ".join(["name eq x"] * 300), ("'_filter'", "20")),
        ("Observation?" + "patient.link." * 12 + "name=x", ("8 links",)),
        ("Patient?_type=Observation,Nonsense", ()),
    ],
)
async def test_refused_by_name(client: httpx.AsyncClient, query: str, parts: tuple[str, ...]) -> None:
    if query.startswith("Patient?_type"):
        query = query.removeprefix("Patient")
    await refused(client, query, *parts)


async def test_a_form_that_no_command_can_carry_is_refused(client: httpx.AsyncClient) -> None:
    for name in ("name", "identifier", "_content"):
        response = await client.post("Patient/_search", data={name: "x" * 1_900_000})
        assert response.status_code == 200, name
        response = await client.post("Patient/_search", data={name: "x" * 9_000_000})
        assert response.status_code == 413, name


async def test_many_tests_in_a_row_are_one_list(client: httpx.AsyncClient) -> None:
    text = " or ".join(["name eq nobody"] * 150)
    response = await client.get("Patient", params={"_filter": f"name eq nobody and birthdate eq 1900 or {text}"})
    assert response.status_code == 200, response.text


async def test_10_000_values_are_served_and_more_are_refused(client: httpx.AsyncClient) -> None:
    values = ",".join(str(number) for number in range(10_000))
    response = await client.post("Patient/_search", data={"identifier": values})
    assert response.status_code == 200
    assert len(response.json()["entry"]) == 3
    response = await client.post("Patient/_search", data={"identifier": values + ",10000"})
    assert response.status_code == 400
    assert "10000" in response.json()["issue"][0]["diagnostics"]
    dates = ",".join(f"{1000 + number}" for number in range(201))
    response = await client.post("Patient/_search", data={"birthdate": dates})
    assert response.status_code == 400
    assert "200" in response.json()["issue"][0]["diagnostics"]


async def test_101_parameters_are_refused(client: httpx.AsyncClient) -> None:
    await refused(client, "Patient?" + "&".join(["name=x"] * 101), "100")


INERT = [
    ".*", "^Family", "Family.", "[a-z]+", "(?i)family", "$where", '{"$gt": ""}', "{$ne: null}", "$ne", "';sleep(9)//",
    "\\", "\\\\", "%", "_", "*", "x\u200b", "\u202e", "\U0001f600", "a" * 5000, "../../etc/passwd", "<script>",
]  # fmt: skip


@pytest.mark.parametrize("text", INERT)
@pytest.mark.parametrize(
    "name", ["name", "name:exact", "name:contains", "identifier", "gender", "_id", "_tag", "_profile", "_text", "link"]
)
async def test_values_are_inert(client: httpx.AsyncClient, name: str, text: str) -> None:
    """Operators and patterns are text: such a value finds nobody, or is refused, but never more than it says."""
    response = await client.get("Patient", params={name: text})
    assert response.status_code in (200, 400), response.text
    if response.status_code == 200:
        found = response.json().get("entry", [])
        allowed = name in ("name", "name:contains") and text in ("^Family", "Family.")  # the word Family itself
        assert allowed or not found, found


@pytest.mark.parametrize("text", [text for text in INERT if text])
async def test_names_are_inert(client: httpx.AsyncClient, text: str) -> None:
    for name in (text, f"name:{text}", f"link.{text}", f"_has:Observation:patient:{text}", f"_has:{text}:x:y"):
        response = await client.get("Patient", params={name: "x"})
        assert response.status_code == 400, (name, response.text[:200])

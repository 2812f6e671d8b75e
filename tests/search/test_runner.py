"""The runner of the tables can fail: without that, its rows would prove nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from fhir_server.errors import BadRequest
from fhir_server.search.registry import standard

from . import tables

WORLD = """
resources:
  Patient:
    ann: {gender: female, birthDate: "1980-05"}
    bob: {gender: male}
rows:
"""


def table(folder: Path, rows: str) -> tables.Table:
    path = folder / "small.yaml"
    path.write_text(WORLD + rows)
    return tables.read(path)


def run(folder: Path, row: str) -> None:
    small = table(folder, row)
    tables.check(small.rows[0], tables.InMemory(standard(), small).find(small.rows[0].query))


def test_a_right_row_passes(tmp_path: Path) -> None:
    run(tmp_path, '  - {query: "Patient?gender=male", finds: [bob], why: "x"}')


@pytest.mark.parametrize("finds", ["[]", "[ann]", "[ann, bob]"])
def test_a_wrong_row_fails(tmp_path: Path, finds: str) -> None:
    with pytest.raises(AssertionError, match="gender=male"):
        run(tmp_path, f'  - {{query: "Patient?gender=male", finds: {finds}, why: "x"}}')


def test_a_refusal_must_say_what_the_row_says(tmp_path: Path) -> None:
    row = table(tmp_path, '  - {query: "Patient?colour=red", refused: "size", why: "x"}').rows[0]
    with pytest.raises(AssertionError):
        tables.check_refused(row, BadRequest("there is no 'colour'"))


def test_includes_are_compared(tmp_path: Path) -> None:
    row = table(tmp_path, '  - {query: "Patient?", finds: [ann], includes: [bob], why: "x"}').rows[0]
    with pytest.raises(AssertionError):
        tables.check(row, (["ann"], []))


@pytest.mark.parametrize(
    "row",
    [
        '{query: "Patient?gender=male", finds: [bob], why: ""}',
        '{query: "Patient?gender=male", finds: [zoe], why: "x"}',
        '{query: "Patient?gender=male", why: "x"}',
        '{query: "Patient?gender=male", finds: [bob], refused: "y", why: "x"}',
    ],
)
def test_rows_that_say_too_little_or_too_much_are_not_read(tmp_path: Path, row: str) -> None:
    with pytest.raises(ValueError, match=r"why|no resources|either"):
        table(tmp_path, f"  - {row}")


def test_decimals_keep_their_digits_and_dates_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("resources: {Observation: {a: {x: 5.40, y: 2013-01-14}}}\nrows: []\n")
    resource = tables.read(path).resources[0]
    assert str(resource["x"]) == "5.40"
    assert resource["y"] == "2013-01-14"

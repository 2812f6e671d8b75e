"""UCUM: conversions, what is refused, and the step between mass and amount of substance."""

from __future__ import annotations

import os
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhir_server.model.content import read_yaml
from fhir_server.terminology import analytes, units
from fhir_server.terminology.build_units import TABLE, build, dump

ROWS = read_yaml((Path(__file__).parent / "units.yaml").read_text(encoding="utf-8"))
UNITS = ["g", "mg/dL", "mmol/L", "mm[Hg]", "Cel", "[degF]", "10*9/L", "%", "kg/m2", "U/L", "[pH]", "mL/min/{1.73_m2}"]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_conversion(row: list[Any]) -> None:
    value, source, target, expected = row
    result = units.convert(value, source, target)
    assert result == (None if expected is None else Decimal(expected))


@pytest.mark.parametrize(
    "text",
    ["", "mg//dL", "m(", "()", "mg dL", "kkg", "m+", "{x", "m{a}{b}", "10*9999", "Cel/min", "Cel2", "µg", "bpm", "m" * 200,
     "(" * 100, "1/0", "m.", "/", "g)"],
)  # fmt: skip
def test_what_is_no_unit(text: str) -> None:
    assert units.parse(text) is None
    assert units.canonical(1, text) is None
    assert units.dimension(text) is None


@given(st.text(alphabet="mgLdl/.()[]{}10*^-+%' kHC", max_size=30))
def test_no_text_breaks_the_parser(text: str) -> None:
    units.parse(text)


@given(st.decimals(-10_000, 10_000, places=4), st.sampled_from(UNITS))
def test_there_and_back(value: Decimal, unit: str) -> None:
    amount, base = units.canonical(value, unit) or (None, "")
    assert amount is not None
    known = units.parse(unit)
    assert known is not None
    assert (amount - known.offset) / known.factor == Fraction(value)
    assert base == units.dimension(unit)


def test_one_amount_has_one_canonical_form() -> None:
    assert units.canonical(1, "g") == units.canonical(1000, "mg") == (Fraction(1), "g")
    assert units.canonical(Decimal("6.2"), "mmol/L") == units.canonical(Decimal("6200"), "umol/L")
    assert units.canonical(1, "mmol/L") != units.canonical(1, "10*9/L")


def test_mass_and_moles_meet_where_the_molar_mass_is_known() -> None:
    glucose = analytes.molar_mass("14771-0")
    assert glucose == Decimal("180.16")
    amount, unit = units.canonical(7, "mmol/L", glucose) or (None, "")
    assert unit == "g.m-3"
    assert amount == Fraction("1261.12")
    assert analytes.convert(7, "mmol/L", "mg/dL", "14771-0") == Decimal("126.112")
    assert analytes.convert(7, "mmol/L", "mg/dL", "777-3") is None
    assert analytes.convert(7, "mmol/L", "mg/dL") is None


@pytest.mark.parametrize(
    ("code", "moles", "unit", "mass"),
    [
        ("2093-3", "1", "mmol/L", "38.67"),
        ("2571-8", "1", "mmol/L", "88.57"),
        ("1558-6", "1", "mmol/L", "18.016"),
        ("2160-0", "88.4", "umol/L", "1.000"),
        ("3084-1", "59.48", "umol/L", "1.000"),
    ],
)
def test_common_factors(code: str, moles: str, unit: str, mass: str) -> None:
    result = analytes.convert(Decimal(moles), unit, "mg/dL", code)
    assert result is not None
    assert round(result, len(mass.partition(".")[2])) == Decimal(mass)


def test_hba1c_follows_its_own_line() -> None:
    """UCUM would call 48 mmol/mol 4.8 %."""
    assert units.convert(48, "mmol/mol", "%") == Decimal("4.8")
    assert analytes.convert(48, "mmol/mol", "%", "59261-8") == Decimal("6.54304")
    assert analytes.convert(Decimal("6.54304"), "%", "mmol/mol", "4548-4") == 48
    assert analytes.convert(48, "mg/dL", "%", "4548-4") is None


def test_every_unit_of_the_table_is_understood() -> None:
    table = units._table()
    assert [code for code in (*table["base"], *table["units"]) if units.parse(code) is None] == []


def test_the_table_is_what_the_script_makes_of_the_official_file() -> None:
    folder = os.environ.get("FHIR_SPEC_DATA")
    if not folder:
        pytest.skip("FHIR_SPEC_DATA names no folder with ucum/ucum-essence.xml")
    assert dump(build((Path(folder) / "ucum" / "ucum-essence.xml").read_bytes())) == TABLE.read_text(encoding="utf-8")

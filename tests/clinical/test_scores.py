"""Every score: worked examples, both sides of every limit, missing and impossible inputs, either unit of an analyte."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from fhir_server.automation.risk import RISK_SCORES
from fhir_server.automation.risk.assessment import InvalidInput, MissingInput, OutOfRange, Result, checked, compute
from fhir_server.automation.risk.specification import specifications
from fhir_server.model.content import read_yaml

HERE = Path(__file__).parent


def table(name: str) -> Any:
    return read_yaml((HERE / name).read_text(encoding="utf-8"), name)


VECTORS = table("vectors.yaml")
BANDS = table("bands.yaml")
RANGES = table("ranges.yaml")
DO_NOT_SHIP = {"stop-bang", "psqi", "mmas-4", "mmas-8", "mmse", "moca", "qrisk3"}
MOLES = {"tc_mgdl": "tc", "hdl_mgdl": "hdl"}


def score(code: str, inputs: dict[str, Any]) -> Result:
    return compute(specifications()[code], inputs)


def example(code: str) -> dict[str, Any]:
    """Inputs of the first worked example of a score, to be varied."""
    return dict(next(row["inputs"] for row in VECTORS if row["score"] == code))


@pytest.mark.parametrize("row", VECTORS, ids=lambda row: f"{row['score']}-{row['expected']}")
def test_worked_example(row: dict[str, Any]) -> None:
    result = score(row["score"], row["inputs"])
    assert abs(result.value - Decimal(row["expected"])) <= Decimal(row["within"]), row["source"]
    if "band" in row:
        assert result.band is not None
        assert result.band.code == row["band"]


def test_every_score_has_a_formula_a_library_and_an_example() -> None:
    assert set(RISK_SCORES) == set(specifications()) == {row["score"] for row in VECTORS}


def test_nothing_is_shipped_whose_owner_forbids_it() -> None:
    assert not DO_NOT_SHIP & set(RISK_SCORES)


@pytest.mark.parametrize("row", BANDS, ids=lambda row: f"{row['score']}-{row.get('when', '')}")
def test_both_sides_of_every_limit(row: dict[str, Any]) -> None:
    specification = specifications()[row["score"]]
    step = Decimal(1).scaleb(-specification.places)
    inputs = {name: Decimal(value) if isinstance(value, int) else value for name, value in row.get("when", {}).items()}

    def band(value: Decimal) -> list[str]:
        return [band.code for band in specification.bands if band.holds(value, inputs)]

    classes, limits = row["classes"][::2], row["classes"][1::2]
    for below, limit, above in zip(classes, limits, classes[1:], strict=False):
        assert band(Decimal(limit) - step) == [below]
        assert band(Decimal(limit)) == [above]


def test_every_class_is_in_the_table_of_limits() -> None:
    shipped = {(code, band.code) for code, item in specifications().items() for band in item.bands}
    assert shipped == {(row["score"], name) for row in BANDS for name in row["classes"][::2]}


@pytest.mark.parametrize("code", RANGES)
def test_ages_outside_the_validated_range_give_no_number(code: str) -> None:
    low, high = RANGES[code]
    inputs = example(code)
    for inside in (low, high):
        score(code, {**inputs, "age": inside})
    for outside in (low - 1, high + 1):
        with pytest.raises(OutOfRange, match=rf"^age is {outside}, outside the validated range {low} to {high} a$"):
            score(code, {**inputs, "age": outside})


@pytest.mark.parametrize("code", sorted(RISK_SCORES))
def test_every_limit_of_every_input_has_two_sides(code: str) -> None:
    specification = specifications()[code]
    inputs = example(code)
    if "outcome" in inputs:
        inputs["outcome"] = "hf"  # the one that reads every input
    for item in specification.inputs:
        if item.name not in inputs or item.kind not in ("quantity", "integer"):
            continue
        assert item.low is not None, item.name
        assert item.high is not None, item.name
        step = Decimal("0.1") if item.kind == "quantity" and item.places is None else Decimal(1)
        checked(specification, {**inputs, item.name: item.low})
        checked(specification, {**inputs, item.name: item.high})
        for outside in (item.low - step, item.high + step):
            with pytest.raises(OutOfRange) as error:
                compute(specification, {**inputs, item.name: outside})
            assert (error.value.name, error.value.low, error.value.high) == (item.name, item.low, item.high)


@pytest.mark.parametrize("code", sorted(RISK_SCORES))
def test_missing_is_not_false(code: str) -> None:
    specification = specifications()[code]
    inputs = example(code)
    needed = [item.name for item in specification.inputs if not item.default and not item.when and item.name in inputs]
    for name in needed:
        with pytest.raises(MissingInput) as error:
            compute(specification, {key: value for key, value in inputs.items() if key != name})
        assert name in error.value.names


def test_every_missing_input_is_named_at_once() -> None:
    with pytest.raises(MissingInput) as error:
        score("china-par-10y", {"age": 50, "sex": "m"})
    assert set(error.value.names) == {
        "sbp", "bp_treated", "tc_mgdl", "hdl_mgdl", "waist_cm", "smoker", "diabetes", "north", "urban", "family_history",
    }  # fmt: skip


def test_women_need_no_urban_and_family_history_for_china_par() -> None:
    inputs = example("china-par-10y") | {"sex": "f"}
    del inputs["urban"], inputs["family_history"]
    assert score("china-par-10y", inputs).value == Decimal("2.40")
    with pytest.raises(MissingInput, match="urban, family_history"):
        score("china-par-10y", inputs | {"sex": "m"})


def test_only_heart_failure_needs_a_body_mass_index() -> None:
    inputs = example("prevent-base-10y")
    del inputs["bmi"]
    score("prevent-base-10y", inputs | {"outcome": "ascvd"})
    with pytest.raises(MissingInput, match="bmi"):
        score("prevent-base-10y", inputs | {"outcome": "hf"})


@pytest.mark.parametrize("row", [row for row in VECTORS if "tc_mgdl" in row["inputs"]], ids=lambda row: row["score"])
def test_mmol_and_mg_of_one_person_give_one_result(row: dict[str, Any]) -> None:
    """The factor is the model's own: 0.02586 for PREVENT, 0.0259 for China-PAR, 1/38.67 elsewhere."""
    factor = {"prevent-base-10y": "0.02586", "prevent-base-30y": "0.02586", "china-par-10y": "0.0259"}.get(row["score"])
    inputs = dict(row["inputs"])
    for name in MOLES:
        in_mass = Decimal(inputs[name])
        in_moles = in_mass * Decimal(factor) if factor else in_mass / Decimal("38.67")
        inputs[name] = {"value": in_moles, "unit": "mmol/L", "code": "mmol/L", "system": "http://unitsofmeasure.org"}
    in_one, in_other = score(row["score"], row["inputs"]), score(row["score"], inputs)
    assert in_one.value == in_other.value
    assert in_one.band == in_other.band


def test_creatinine_in_micromoles() -> None:
    mass = score("ckd-epi-2021", {"sex": "f", "age": 60, "scr_mgdl": {"value": Decimal("0.8"), "code": "mg/dL"}})
    moles = score("ckd-epi-2021", {"sex": "f", "age": 60, "scr_mgdl": {"value": Decimal("70.72"), "code": "umol/L"}})
    assert mass.value == moles.value == 84


def test_a_limit_is_met_in_either_unit() -> None:
    """320 mg/dL is within PCE's range; so is the same amount in mmol/L, whatever its last digits."""
    inputs = example("pce-2013") | {"tc_mgdl": {"value": Decimal(320) / Decimal("38.67"), "code": "mmol/L"}}
    score("pce-2013", inputs)
    with pytest.raises(OutOfRange, match="tc_mgdl"):
        score("pce-2013", inputs | {"tc_mgdl": {"value": Decimal("8.28"), "code": "mmol/L"}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sex": "x"}, "sex: 'x' is not one of m, f"),
        ({"smoker": 2}, "smoker: 2 is neither true nor false"),
        ({"tc_mgdl": "much"}, "tc_mgdl: 'much' is not a number"),
        ({"tc_mgdl": {"value": 5, "code": "mm[Hg]"}}, r"tc_mgdl: a value in 'mm\[Hg\]' cannot be read as 'mg/dL'"),
        ({"age": float("nan")}, "age: nan is not a number"),
        ({"age": True}, "age: True is not a number"),
    ],
)
def test_values_of_another_kind_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        score("pce-2013", example("pce-2013") | change)


def test_answers_are_whole_numbers() -> None:
    with pytest.raises(InvalidInput, match="item1"):
        score("phq-2", {"item1": "1.5", "item2": 0})


def test_men_with_a_wider_waist_have_a_lower_china_par() -> None:
    """The printed coefficient really is negative; a sign turned round would go unnoticed at 80 cm."""
    inputs = example("china-par-10y")
    assert score("china-par-10y", inputs | {"waist_cm": 100}).value < score("china-par-10y", inputs).value


def test_the_class_is_that_of_the_number_reported() -> None:
    """59.5 is reported as 60 and therefore G2."""
    result = score("ckd-epi-2021", {"sex": "m", "age": 50, "scr_mgdl": "1.4262"})
    assert result.value == 60
    assert result.band is not None
    assert result.band.code == "g2"


def test_every_class_and_outcome_has_both_languages() -> None:
    for item in specifications().values():
        assert item.zh, item.code
        for band in item.bands:
            assert band.display, (item.code, band.code)
            assert band.zh, (item.code, band.code)
        for _, english, chinese in item.outcomes:
            assert english, item.code
            assert chinese, item.code

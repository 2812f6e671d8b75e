"""Cardiovascular stratum of a person with raised blood pressure, Chinese hypertension guidelines of 2018 and 2024.

Table of blood pressure grade by risk factors, target-organ damage and disease: Chin J Cardiovasc Med 2019;24:24-56.
Where the printed cell names two strata ("medium/high"), the lower one is given.
"""

from __future__ import annotations

from decimal import Decimal

from fhir_server.automation.risk.inputs import Inputs, flag

# columns: 130-139/85-89, grade 1, grade 2, grade 3; 1 low, 2 medium, 3 high, 4 very high (0: no stratum)
_TABLE = {
    "none": (0, 1, 2, 3),
    "one or two": (1, 2, 2, 4),
    "three or more": (2, 3, 3, 4),
    "disease": (4, 4, 4, 4),
}
_COLUMNS = ((3, 180, 110), (2, 160, 100), (1, 140, 90), (0, 130, 85))


def hypertension_risk_china(inputs: Inputs) -> int:
    """1 low, 2 medium, 3 high, 4 very high; 0 below 130/85 or without any risk factor at 130-139/85-89.

    `organ_damage` includes chronic kidney disease stage 3, `clinical_disease` stages 4 and 5.
    """
    systolic, diastolic = _decimal(inputs, "sbp"), _decimal(inputs, "dbp")
    columns = (column for column, high, low in _COLUMNS if systolic >= high or diastolic >= low)
    column = next(columns, None)
    return 0 if column is None else _TABLE[_row(inputs)][column]


def risk_factors(inputs: Inputs) -> int:
    """How many of: age, smoking, impaired fasting glucose, lipids, premature disease in the family, obesity."""
    male = inputs["sex"] == "m"
    return sum(
        (
            _decimal(inputs, "age") > (55 if male else 65),
            bool(inputs["smoker"]),
            Decimal("6.1") <= _decimal(inputs, "fpg_mmol") < 7,
            _decimal(inputs, "tc_mmol") >= Decimal("5.2")
            or _decimal(inputs, "ldl_mmol") >= Decimal("3.4")
            or _decimal(inputs, "hdl_mmol") < 1,
            bool(inputs["family_history"]),
            _decimal(inputs, "waist_cm") >= (90 if male else 85) or _decimal(inputs, "bmi") >= 28,
        )
    )


def _row(inputs: Inputs) -> str:
    if flag(inputs, "clinical_disease") or flag(inputs, "diabetes_complicated"):
        return "disease"
    factors = risk_factors(inputs)
    if factors >= 3 or flag(inputs, "organ_damage") or flag(inputs, "diabetes"):
        return "three or more"
    return "one or two" if factors else "none"


def _decimal(inputs: Inputs, name: str) -> Decimal:
    value = inputs[name]
    assert isinstance(value, Decimal)
    return value

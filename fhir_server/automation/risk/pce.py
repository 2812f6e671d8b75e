"""Pooled Cohort Equations: ten-year risk of a first hard atherosclerotic cardiovascular event.

Goff DC et al., Circulation 2014;129(25 Suppl 2):S49-S73, doi:10.1161/01.cir.0000437741.48606.98 (coefficients to three decimals).
"""

from __future__ import annotations

from math import exp, log, pow

from fhir_server.automation.risk.inputs import Inputs, flag, number

# ln age, ln age², ln TC, ln age·ln TC, ln HDL, ln age·ln HDL, ln SBP treated, ln age·ln SBP treated, ln SBP untreated,
# ln age·ln SBP untreated, smoker, ln age·smoker, diabetes, mean of the sum, survival at ten years
_EQUATIONS = {
    ("f", False): (
        (-29.799, 4.884, 13.540, -3.114, -13.578, 3.149, 2.019, 0, 1.957, 0, 7.574, -1.665, 0.661),
        -29.18,
        0.9665,
    ),
    ("f", True): (
        (17.114, 0, 0.940, 0, -18.920, 4.475, 29.291, -6.432, 27.820, -6.087, 0.691, 0, 0.874),
        86.61,
        0.9533,
    ),
    ("m", False): (
        (12.344, 0, 11.853, -2.664, -7.990, 1.769, 1.797, 0, 1.764, 0, 7.837, -1.795, 0.658),
        61.18,
        0.9144,
    ),
    ("m", True): ((2.469, 0, 0.302, 0, -0.307, 0, 1.916, 0, 1.809, 0, 0.549, 0, 0.645), 19.54, 0.8954),
}


def pce_2013(inputs: Inputs) -> float:
    """Percent. Total cholesterol and HDL in mg/dL, systolic pressure in mm[Hg]."""
    coefficients, mean, survival = _EQUATIONS[str(inputs["sex"]), inputs["race"] == "black"]
    age, tc, hdl, sbp = (log(number(inputs, name)) for name in ("age", "tc_mgdl", "hdl_mgdl", "sbp"))
    treated, smoker = flag(inputs, "bp_treated"), flag(inputs, "smoker")
    terms = (
        age,
        age * age,
        tc,
        age * tc,
        hdl,
        age * hdl,
        sbp * treated,
        age * sbp * treated,
        sbp * (1 - treated),
        age * sbp * (1 - treated),
        smoker,
        age * smoker,
        flag(inputs, "diabetes"),
    )
    total = sum(c * term for c, term in zip(coefficients, terms, strict=True))
    return 100 * (1 - pow(survival, exp(total - mean)))

"""China-PAR: ten-year risk of atherosclerotic cardiovascular disease in Chinese adults.

Yang X et al., Circulation 2016;134:1430-1440, doi:10.1161/CIRCULATIONAHA.116.022367, supplementary tables 1 and 2.

The printed two-decimal coefficients do not give the paper's own worked examples. Where the printed column
"coefficient x value" determines more digits, those digits stand here; the survival constants are 0.9707 (men, from the
worked formula) and 0.9851 (women, solved from the worked example). Men's waist coefficient is negative, as printed.
"""

from __future__ import annotations

from math import exp, log, pow

from fhir_server.automation.risk.inputs import Inputs, flag, number

MMOL_PER_MGDL = 0.0259  # cholesterol; the factor this model was published with

# ln age, ln SBP treated, ln SBP untreated, ln TC, ln HDL, ln waist, smoker, diabetes, north, ln age·ln SBP treated,
# ln age·ln SBP untreated, and for men urban, family history, ln age·smoker, ln age·family history
_MEN = (
    31.96604, 27.39, 26.14876, 0.62090, -0.69373, -0.71200, 3.96, 0.36, 0.48, -6.02, -5.73074, -0.16, 6.22, -0.94, -1.53,
)  # fmt: skip
_WOMEN = (24.87, 20.71, 19.98, 0.06, -0.22, 1.48, 0.49, 0.57, 0.54, -4.53, -4.36)
_MEAN = {"m": 140.68, "f": 117.26}
_SURVIVAL = {"m": 0.9707, "f": 0.9851}


def china_par_10y(inputs: Inputs) -> float:
    """Percent. Cholesterol in mg/dL, waist in cm; only men's equation reads `urban` and `family_history`."""
    sex = str(inputs["sex"])
    age, sbp = log(number(inputs, "age")), log(number(inputs, "sbp"))
    treated, smoker = flag(inputs, "bp_treated"), flag(inputs, "smoker")
    terms: tuple[float, ...] = (
        age,
        sbp * treated,
        sbp * (1 - treated),
        log(number(inputs, "tc_mgdl")),
        log(number(inputs, "hdl_mgdl")),
        log(number(inputs, "waist_cm")),
        smoker,
        flag(inputs, "diabetes"),
        flag(inputs, "north"),
        age * sbp * treated,
        age * sbp * (1 - treated),
    )
    if sex == "m":
        family = flag(inputs, "family_history")
        terms += (flag(inputs, "urban"), family, age * smoker, age * family)
    total = sum(c * term for c, term in zip(_MEN if sex == "m" else _WOMEN, terms, strict=True))
    return 100 * (1 - pow(_SURVIVAL[sex], exp(total - _MEAN[sex])))

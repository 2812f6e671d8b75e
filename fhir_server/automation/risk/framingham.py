"""Framingham 2008: ten-year risk of general cardiovascular disease, from lipids or from body mass index.

D'Agostino RB et al., Circulation 2008;117:743-753, doi:10.1161/CIRCULATIONAHA.107.699579.
"""

from __future__ import annotations

from math import exp, log, pow

from fhir_server.automation.risk.inputs import Inputs, flag, number

# ln age, ln TC, ln HDL, ln SBP untreated, ln SBP treated, smoker, diabetes; mean of the sum; survival at ten years
_LIPIDS = {
    "m": ((3.06117, 1.12370, -0.93263, 1.93303, 1.99881, 0.65451, 0.57367), 23.9802, 0.88936),
    "f": ((2.32888, 1.20904, -0.70833, 2.76157, 2.82263, 0.52873, 0.69154), 26.1931, 0.95012),
}
# ln age, ln BMI, ln SBP untreated, ln SBP treated, smoker, diabetes; mean; survival
_BMI = {
    "m": ((3.11296, 0.79277, 1.85508, 1.92672, 0.70953, 0.53160), 23.9388, 0.88431),
    "f": ((2.72107, 0.51125, 2.81291, 2.88267, 0.61868, 0.77763), 26.0145, 0.94833),
}


def framingham_2008_lipids(inputs: Inputs) -> float:
    """Percent. Total cholesterol and HDL in mg/dL."""
    body = (log(number(inputs, "tc_mgdl")), log(number(inputs, "hdl_mgdl")))
    return _risk(_LIPIDS[str(inputs["sex"])], body, inputs)


def framingham_2008_bmi(inputs: Inputs) -> float:
    """Percent. Body mass index in kg/m2; no laboratory result is needed."""
    return _risk(_BMI[str(inputs["sex"])], (log(number(inputs, "bmi")),), inputs)


def _risk(equation: tuple[tuple[float, ...], float, float], body: tuple[float, ...], inputs: Inputs) -> float:
    coefficients, mean, survival = equation
    sbp, treated = log(number(inputs, "sbp")), flag(inputs, "bp_treated")
    pressure = (sbp * (1 - treated), sbp * treated)
    terms = (log(number(inputs, "age")), *body, *pressure, flag(inputs, "smoker"), flag(inputs, "diabetes"))
    total = sum(c * term for c, term in zip(coefficients, terms, strict=True))
    return 100 * (1 - pow(survival, exp(total - mean)))

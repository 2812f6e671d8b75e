"""SCORE2, SCORE2-OP and SCORE2-Asia-Pacific: ten-year risk of fatal and non-fatal cardiovascular disease, by region.

SCORE2: Eur Heart J 2021;42:2439-2454, doi:10.1093/eurheartj/ehab309. SCORE2-OP: Eur Heart J 2021;42:2455-2467,
doi:10.1093/eurheartj/ehab312. SCORE2-Asia-Pacific: doi:10.1093/eurheartj/ehae609. For people without diabetes.
"""

from __future__ import annotations

from math import exp, log, pow

from fhir_server.automation.risk.inputs import Inputs, flag, number

# age, smoker, systolic, total cholesterol, HDL, age·smoker, age·systolic, age·total, age·HDL; survival; centre of the sum
_MIDDLE = {
    "m": ((0.3742, 0.6012, 0.2777, 0.1458, -0.2698, -0.0755, -0.0255, -0.0281, 0.0426), 0.9605, 0.0),
    "f": ((0.4648, 0.7744, 0.3131, 0.1002, -0.2606, -0.1088, -0.0277, -0.0226, 0.0613), 0.9776, 0.0),
}
_OLDER = {
    "m": ((0.0634, 0.3524, 0.0094, 0.0850, -0.3564, -0.0247, -0.0005, 0.0073, 0.0091), 0.7576, 0.0929),
    "f": ((0.0789, 0.4921, 0.0102, 0.0605, -0.3040, -0.0255, -0.0004, -0.0009, 0.0154), 0.8082, 0.2290),
}

# recalibration by region and sex: calibrated = 1 - exp(-exp(k1 + k2 · ln(-ln(1 - uncalibrated))))
_SCORE2 = {
    ("low", "m"): (-0.5699, 0.7476),
    ("low", "f"): (-0.7380, 0.7019),
    ("moderate", "m"): (-0.1565, 0.8009),
    ("moderate", "f"): (-0.3143, 0.7701),
    ("high", "m"): (0.3207, 0.9360),
    ("high", "f"): (0.5710, 0.9369),
    ("very high", "m"): (0.5836, 0.8294),
    ("very high", "f"): (0.9412, 0.8329),
}
_SCORE2_OP = {
    ("low", "m"): (-0.34, 1.19),
    ("low", "f"): (-0.52, 1.01),
    ("moderate", "m"): (0.01, 1.25),
    ("moderate", "f"): (-0.10, 1.10),
    ("high", "m"): (0.08, 1.15),
    ("high", "f"): (0.38, 1.09),
    ("very high", "m"): (0.05, 0.70),
    ("very high", "f"): (0.38, 0.69),
}
_ASIA_PACIFIC = {
    ("low", "m"): (-0.375229965, 0.62020875),
    ("low", "f"): (-0.986572446, 0.536743779),
    ("moderate", "m"): (0.284885676, 0.778128607),
    ("moderate", "f"): (0.08278687, 0.718980326),
    ("high", "m"): (0.778231091, 0.844985356),
    ("high", "f"): (0.611474287, 0.703624072),
    ("very high", "m"): (0.608975204, 0.679014197),
    ("very high", "f"): (0.502751798, 0.555577072),
}


def score2(inputs: Inputs) -> float:
    """Percent, ages 40 to 69. Cholesterol in mmol/L."""
    return _calibrated(_middle(inputs), _SCORE2, inputs)


def score2_asia_pacific(inputs: Inputs) -> float:
    """Percent, ages 40 to 69, regions of Asia and the Pacific. Cholesterol in mmol/L."""
    return _calibrated(_middle(inputs), _ASIA_PACIFIC, inputs)


def score2_op(inputs: Inputs) -> float:
    """Percent, ages 70 and over. Cholesterol in mmol/L."""
    age, sbp = number(inputs, "age") - 73, number(inputs, "sbp") - 150
    tc, hdl = number(inputs, "tc_mmol") - 6, number(inputs, "hdl_mmol") - 1.4
    return _calibrated(_uncalibrated(_OLDER[str(inputs["sex"])], (age, sbp, tc, hdl), inputs), _SCORE2_OP, inputs)


def _middle(inputs: Inputs) -> float:
    age, sbp = (number(inputs, "age") - 60) / 5, (number(inputs, "sbp") - 120) / 20
    tc, hdl = number(inputs, "tc_mmol") - 6, (number(inputs, "hdl_mmol") - 1.3) / 0.5
    return _uncalibrated(_MIDDLE[str(inputs["sex"])], (age, sbp, tc, hdl), inputs)


def _uncalibrated(
    equation: tuple[tuple[float, ...], float, float], centred: tuple[float, float, float, float], inputs: Inputs
) -> float:
    coefficients, survival, centre = equation
    age, sbp, tc, hdl = centred
    smoker = flag(inputs, "smoker")
    terms = (age, smoker, sbp, tc, hdl, age * smoker, age * sbp, age * tc, age * hdl)
    total = sum(c * term for c, term in zip(coefficients, terms, strict=True))
    return 1 - pow(survival, exp(total - centre))


def _calibrated(risk: float, scales: dict[tuple[str, str], tuple[float, float]], inputs: Inputs) -> float:
    k1, k2 = scales[str(inputs["region"]), str(inputs["sex"])]
    return 100 * (1 - exp(-exp(k1 + k2 * log(-log(1 - risk)))))

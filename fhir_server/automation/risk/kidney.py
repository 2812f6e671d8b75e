"""Kidney: eGFR by CKD-EPI 2021 (creatinine, without race) and the KDIGO risk map of eGFR and albuminuria.

CKD-EPI 2021: Inker LA et al., N Engl J Med 2021;385:1737-1749, doi:10.1056/NEJMoa2102953.
Risk map: KDIGO 2012 and 2024 guidelines for chronic kidney disease, doi:10.1016/j.kint.2023.10.018.
"""

from __future__ import annotations

from decimal import Decimal
from math import pow

from fhir_server.automation.risk.inputs import Inputs, number, steps

_GFR_BOUNDS = ("15", "30", "45", "60", "90")  # G5, G4, G3b, G3a, G2, G1
# rows G5 to G1, columns A1 to A3: 1 low, 2 moderate, 3 high, 4 very high
_MAP = ((4, 4, 4), (4, 4, 4), (3, 4, 4), (2, 3, 4), (1, 2, 3), (1, 2, 3))


def ckd_epi_2021(inputs: Inputs) -> float:
    """mL/min/{1.73_m2}. Serum creatinine in mg/dL (µmol/L / 88.4)."""
    female = inputs["sex"] == "f"
    kappa, alpha, factor = (0.7, -0.241, 1.012) if female else (0.9, -0.302, 1.0)
    ratio = number(inputs, "scr_mgdl") / kappa
    creatinine = pow(min(ratio, 1), alpha) * pow(max(ratio, 1), -1.2)
    return 142 * creatinine * pow(0.9938, number(inputs, "age")) * factor


def kdigo_heat_map(inputs: Inputs) -> int:
    """1 low to 4 very high. eGFR is staged as a whole number; albuminuria in the unit the laboratory printed."""
    egfr = inputs["egfr"]
    assert isinstance(egfr, Decimal)
    row = steps(egfr.quantize(Decimal(1), "ROUND_HALF_UP"), _GFR_BOUNDS, range(6))
    return _MAP[row][_albuminuria(inputs)]


def _albuminuria(inputs: Inputs) -> int:
    """0, 1, 2 for A1, A2, A3: KDIGO prints 30 and 300 mg/g beside 3 and 30 mg/mmol, which are not the same amounts."""
    name, low, high = ("acr_mgg", 30, 300) if "acr_mgg" in inputs else ("acr_mgmmol", 3, 30)
    value = inputs[name]
    assert isinstance(value, Decimal)
    return 0 if value < low else 1 if value <= high else 2

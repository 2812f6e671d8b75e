"""NoSAS: likelihood of sleep-disordered breathing, from measurements and one question.

Marti-Soler H et al., Lancet Respir Med 2016;4:742-748, doi:10.1016/S2213-2600(16)30075-3.
"""

from __future__ import annotations

from decimal import Decimal

from fhir_server.automation.risk.inputs import Inputs, flag, steps


def nosas(inputs: Inputs) -> int:
    """0 to 17 points: neck above 40 cm, body mass index from 25 and from 30, snoring, age above 55, male sex."""
    neck, age = inputs["neck_cm"], inputs["age"]
    assert isinstance(neck, Decimal)
    assert isinstance(age, Decimal)
    return (
        (4 if neck > 40 else 0)
        + steps(inputs["bmi"], ("25", "30"), (0, 3, 5))
        + flag(inputs, "snoring") * 2
        + (4 if age > 55 else 0)
        + (2 if inputs["sex"] == "m" else 0)
    )

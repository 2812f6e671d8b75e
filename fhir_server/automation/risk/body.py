"""Body mass index from height and weight. WHO Technical Report Series 894 (2000)."""

from __future__ import annotations

from fhir_server.automation.risk.inputs import Inputs, number


def bmi(inputs: Inputs) -> float:
    """kg/m2. Height in cm, weight in kg."""
    return number(inputs, "weight_kg") / (number(inputs, "height_cm") / 100) ** 2

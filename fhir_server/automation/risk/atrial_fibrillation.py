"""Atrial fibrillation: risk of stroke (CHA2DS2-VASc, CHA2DS2-VA) and of bleeding (HAS-BLED).

CHA2DS2-VASc: Lip GYH et al., Chest 2010;137:263-272, doi:10.1378/chest.09-1584; without sex: ESC 2024,
doi:10.1093/eurheartj/ehae176. HAS-BLED: Pisters R et al., Chest 2010;138:1093-1100, doi:10.1378/chest.10-0134.
"""

from __future__ import annotations

from fhir_server.automation.risk.inputs import Inputs, flag, steps


def cha2ds2_vasc(inputs: Inputs) -> int:
    """0 to 9 points."""
    return cha2ds2_va(inputs) + (1 if inputs["sex"] == "f" else 0)


def cha2ds2_va(inputs: Inputs) -> int:
    """0 to 8 points."""
    return (
        steps(inputs["age"], ("65", "75"), (0, 1, 2))
        + flag(inputs, "stroke") * 2
        + sum(flag(inputs, name) for name in ("chf", "hypertension", "diabetes", "vascular"))
    )


def has_bled(inputs: Inputs) -> int:
    """0 to 9 points; `hypertension` means uncontrolled, above 160 mm[Hg] systolic; age counts above 65."""
    single = ("hypertension", "renal", "liver", "stroke", "bleeding", "labile_inr", "antiplatelet", "alcohol")
    return steps(inputs["age"], ("66",), (0, 1)) + sum(flag(inputs, name) for name in single)

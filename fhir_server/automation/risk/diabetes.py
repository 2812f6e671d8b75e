"""Risk of type 2 diabetes by points: FINDRISC (future) and the New Chinese Diabetes Risk Score 2013 (undiagnosed).

FINDRISC: Lindström J, Tuomilehto J, Diabetes Care 2003;26:725-731, doi:10.2337/diacare.26.3.725.
NCDRS: Zhou X et al., Diabetes Care 2013;36:3944-3952, doi:10.2337/dc13-0593; the Qingdao score of 2010 is another one.
"""

from __future__ import annotations

from decimal import Decimal

from fhir_server.automation.risk.inputs import Inputs, flag, steps


def findrisc(inputs: Inputs) -> int:
    """0 to 26 points. Waist 94 and 102 cm (men), 80 and 88 cm (women) still belong to the middle class, as does BMI 30."""
    bounds = ("94", "102") if inputs["sex"] == "m" else ("80", "88")
    return (
        steps(inputs["age"], ("45", "55", "65"), (0, 2, 3, 4))
        + _classes(inputs["bmi"], ("25", "30"), (0, 1, 3))
        + _classes(inputs["waist_cm"], bounds, (0, 3, 4))
        + (1 - flag(inputs, "active")) * 2
        + (1 - flag(inputs, "vegetables"))
        + flag(inputs, "bp_medication") * 2
        + flag(inputs, "high_glucose") * 5
        + {"none": 0, "second": 3, "first": 5}[str(inputs["family"])]
    )


def ncdrs_2013(inputs: Inputs) -> int:
    """0 to 51 points; 25 and more asks for an oral glucose tolerance test."""
    male = inputs["sex"] == "m"
    waist = ("75", "80", "85", "90", "95") if male else ("70", "75", "80", "85", "90")
    return (
        steps(inputs["age"], ("25", "35", "40", "45", "50", "55", "60", "65"), (0, 4, 8, 11, 12, 13, 15, 16, 18))
        + steps(inputs["bmi"], ("22", "24", "30"), (0, 1, 3, 5))
        + steps(inputs["waist_cm"], waist, (0, 3, 5, 7, 8, 10))
        + steps(inputs["sbp"], ("110", "120", "130", "140", "150", "160"), (0, 1, 3, 6, 7, 8, 10))
        + flag(inputs, "first_degree_fh") * 6
        + (2 if male else 0)
    )


def _classes(value: object, bounds: tuple[str, str], points: tuple[int, int, int]) -> int:
    """Below the first bound, from the first to the second (both included), above the second."""
    assert isinstance(value, Decimal)
    return points[0] if value < Decimal(bounds[0]) else points[1] if value <= Decimal(bounds[1]) else points[2]

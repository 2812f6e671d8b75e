"""Sums of answered questionnaires: PHQ-9 and PHQ-2 (depression), GAD-7 (anxiety), AUDIT-C (alcohol), FRAIL (frailty).

PHQ-9: Kroenke K et al., J Gen Intern Med 2001;16:606-613, doi:10.1046/j.1525-1497.2001.016009606.x.
PHQ-2: Kroenke K et al., Med Care 2003;41:1284-1292. GAD-7: Spitzer RL et al., Arch Intern Med 2006;166:1092-1097.
AUDIT-C: Bush K et al., Arch Intern Med 1998;158:1789-1795. FRAIL: Morley JE et al., J Nutr Health Aging 2012;16:601-608.
"""

from __future__ import annotations

from decimal import Decimal

from fhir_server.automation.risk.inputs import Inputs, flag


def phq_9(inputs: Inputs) -> int:
    """0 to 27 points of nine items from 0 to 3."""
    return _sum(inputs, 9)


def phq_2(inputs: Inputs) -> int:
    """0 to 6 points of the first two items of PHQ-9."""
    return _sum(inputs, 2)


def gad_7(inputs: Inputs) -> int:
    """0 to 21 points of seven items from 0 to 3."""
    return _sum(inputs, 7)


def audit_c(inputs: Inputs) -> int:
    """0 to 12 points of three items from 0 to 4."""
    return _sum(inputs, 3)


def frail(inputs: Inputs) -> int:
    """0 to 5 points: fatigue, resistance, ambulation, five or more illnesses, loss of more than 5 % of weight."""
    return sum(flag(inputs, name) for name in ("fatigue", "resistance", "ambulation", "illnesses", "weight_loss"))


def _sum(inputs: Inputs, count: int) -> int:
    total = sum((Decimal(inputs[f"item{n}"]) for n in range(1, count + 1)), Decimal(0))
    return int(total)

"""The risk scores: one file per score with its formula and citation, and this table.

Everything else about a score (inputs, units, ranges, recency, bands, texts, licence) is its Library in resources/risk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fhir_server.automation.risk.atrial_fibrillation import cha2ds2_va, cha2ds2_vasc, has_bled
from fhir_server.automation.risk.body import bmi
from fhir_server.automation.risk.china_par import china_par_10y
from fhir_server.automation.risk.diabetes import findrisc, ncdrs_2013
from fhir_server.automation.risk.fib4 import fib_4
from fhir_server.automation.risk.framingham import framingham_2008_bmi, framingham_2008_lipids
from fhir_server.automation.risk.hypertension import hypertension_risk_china
from fhir_server.automation.risk.inputs import Inputs
from fhir_server.automation.risk.kidney import ckd_epi_2021, kdigo_heat_map
from fhir_server.automation.risk.pce import pce_2013
from fhir_server.automation.risk.prevent import prevent_base_10y, prevent_base_30y
from fhir_server.automation.risk.questionnaires import audit_c, frail, gad_7, phq_2, phq_9
from fhir_server.automation.risk.score2 import score2, score2_asia_pacific, score2_op
from fhir_server.automation.risk.sleep import nosas

Formula = Callable[[Inputs], float]

RISK_SCORES: Mapping[str, Formula] = {
    "pce-2013": pce_2013,
    "prevent-base-10y": prevent_base_10y,
    "prevent-base-30y": prevent_base_30y,
    "framingham-2008-lipids": framingham_2008_lipids,
    "framingham-2008-bmi": framingham_2008_bmi,
    "score2": score2,
    "score2-op": score2_op,
    "score2-asia-pacific": score2_asia_pacific,
    "china-par-10y": china_par_10y,
    "ckd-epi-2021": ckd_epi_2021,
    "kdigo-heat-map": kdigo_heat_map,
    "fib-4": fib_4,
    "findrisc": findrisc,
    "ncdrs-2013": ncdrs_2013,
    "cha2ds2-vasc": cha2ds2_vasc,
    "cha2ds2-va": cha2ds2_va,
    "has-bled": has_bled,
    "phq-9": phq_9,
    "phq-2": phq_2,
    "gad-7": gad_7,
    "audit-c": audit_c,
    "frail": frail,
    "nosas": nosas,
    "hypertension-risk-china": hypertension_risk_china,
    "bmi": bmi,
}

"""A named score for a patient: inputs from facts, the number, and the RiskAssessment or Observation that carries it.

https://hl7.org/fhir/R4/riskassessment.html (probabilityDecimal is a percentage, 0 to 100)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from fhir_server.automation.facts import Facts
from fhir_server.automation.requirements import FactDefinition
from fhir_server.automation.risk.assessment import InvalidInput, MissingInput, OutOfRange, Result, compute, plain
from fhir_server.automation.risk.specification import METHODS, Specification
from fhir_server.automation.vocabulary import BASE, translation
from fhir_server.model.dates import instant
from fhir_server.model.resource import Resource
from fhir_server.terminology import analytes, units

OUTCOMES = f"{BASE}/CodeSystem/risk-outcomes"
BANDS = f"{BASE}/CodeSystem/risk-bands"


@dataclass(frozen=True, slots=True)
class Score:
    """A score ready to be asked: its specification and the facts its inputs come from."""

    specification: Specification
    facts: Mapping[str, tuple[FactDefinition, ...]]

    @property
    def code(self) -> tuple[str, str]:
        """(system, code) that its Observation has, and its RiskAssessment as method."""
        loinc = self.specification.loinc
        if loinc and self.specification.produces == "Observation":
            return (analytes.LOINC, loinc)
        return (METHODS, self.specification.code)


@dataclass(frozen=True, slots=True)
class Assessed:
    """Results by outcome (empty text where a score has one), and what stood in the way of the others."""

    results: tuple[Result, ...]
    missing: tuple[tuple[str, str, str], ...]  # (input, English, Chinese)
    sources: tuple[str, ...]


def assess(score: Score, facts: Facts, outcomes: Sequence[str] = ()) -> Assessed:
    """The score at the moment of `facts`, for each outcome asked for (all by default)."""
    given, sources = inputs(score, facts)
    specification = score.specification
    wanted = outcomes or [outcome for outcome, _, _ in specification.outcomes] or [""]
    results: list[Result] = []
    missing: dict[str, tuple[str, str, str]] = {}
    for outcome in wanted:
        try:
            results.append(compute(specification, {**given, "outcome": outcome} if outcome else given))
        except MissingInput as error:
            for name in error.names:
                missing[name] = _named(specification, name, "", "")
        except OutOfRange as error:
            limits = f"{'' if error.low is None else error.low}–{'' if error.high is None else error.high}"
            said = f"{plain(Decimal(round(error.value, 2)))} {error.unit}".rstrip()
            missing[error.name] = _named(
                specification, error.name, f" ({said}, not within {limits})", f"（{said}，不在 {limits} 之内）"
            )
        except InvalidInput as error:
            missing[error.name] = _named(
                specification, error.name, f" (not usable: {error.reason})", "（现有值无法使用）"
            )
    return Assessed(tuple(results), tuple(missing.values()), sources)


def inputs(score: Score, facts: Facts) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(input name → value, references of what they came from). What has no value is left out."""
    given: dict[str, Any] = {}
    sources: dict[str, None] = {}
    for item in score.specification.inputs:
        if item.name in score.facts:
            found = facts.moment.find(score.facts[item.name])
            if found.values:
                given[item.name] = found.values[-1]
                sources.update((reading.reference, None) for reading in found.sources)
        elif item.name in ("age", "sex"):
            value = facts.moment.builtin(item.name)
            if value is not None and (item.name != "sex" or value in ("male", "female")):
                given[item.name] = value
                sources[f"Patient/{facts.moment.chart.id}"] = None
    return given, tuple(sources)


def _named(specification: Specification, name: str, english: str, chinese: str) -> tuple[str, str, str]:
    item = specification.input(name)
    display, zh = (item.display or name, item.zh or item.display or name) if item is not None else (name, name)
    return (name, display + english, zh + chinese)


def resource(score: Score, assessed: Assessed, patient: str, at: int, rule: str) -> Resource:
    """What carries the results. `at` (ms): the newest input."""
    make = _observation if score.specification.produces == "Observation" else _risk_assessment
    return make(score, assessed, patient, at, rule)


def _risk_assessment(score: Score, assessed: Assessed, patient: str, at: int, rule: str) -> Resource:
    specification = score.specification
    result: Resource = {
        "resourceType": "RiskAssessment",
        "status": "final",
        "method": _concept(METHODS, specification.code, specification.title, specification.zh, specification.version),
        "subject": {"reference": f"Patient/{patient}"},
        "occurrenceDateTime": instant(at),
        "performer": {"reference": "Device/automation"},
        "basis": [{"reference": reference} for reference in assessed.sources],
        "prediction": [_prediction(specification, one) for one in assessed.results],
    }
    if specification.experimental:
        result["note"] = [
            _text(
                "Experimental: the constants of this score are not fully verified.", "试行：该评分的常数尚未完全核实。"
            )
        ]
    return result


def _prediction(specification: Specification, result: Result) -> dict[str, Any]:
    prediction: dict[str, Any] = {}
    names = {outcome: (english, chinese) for outcome, english, chinese in specification.outcomes}
    if result.outcome in names:
        prediction["outcome"] = _concept(OUTCOMES, result.outcome, *names[result.outcome])
    elif len(names) == 1:
        outcome, (english, chinese) = next(iter(names.items()))
        prediction["outcome"] = _concept(OUTCOMES, outcome, english, chinese)
    else:
        prediction["outcome"] = _text(specification.title, specification.zh)
    if specification.unit == "%":
        prediction["probabilityDecimal"] = result.value
    else:
        prediction["rationale"] = f"{plain(result.value)} {specification.unit}"
    if result.band is not None:
        prediction["qualitativeRisk"] = _concept(BANDS, result.band.code, result.band.display, result.band.zh)
    if specification.period:
        years = {"value": specification.period, "unit": "a", "system": units.SYSTEM, "code": "a"}
        prediction["whenRange"] = {"high": years}
    return prediction


def _observation(score: Score, assessed: Assessed, patient: str, at: int, rule: str) -> Resource:
    specification = score.specification
    result = assessed.results[0]
    system, code = score.code
    concept = _concept(system, code, specification.title, specification.zh)
    if system != METHODS:
        concept["coding"].append({"system": METHODS, "code": specification.code})
    observation: Resource = {
        "resourceType": "Observation",
        "status": "final",
        "code": concept,
        "subject": {"reference": f"Patient/{patient}"},
        "effectiveDateTime": instant(at),
        "issued": instant(at),
        "performer": [{"reference": "Device/automation"}],
        "valueQuantity": {
            "value": result.value, "unit": result.unit, "system": units.SYSTEM, "code": result.unit,
        },
        "derivedFrom": [
            {"reference": one} for one in assessed.sources if one.startswith(("Observation/", "QuestionnaireResponse/"))
        ],
    }  # fmt: skip
    observation["performer"] = [{"display": "fhir-server automation"}]  # R4 has no Device among performers
    if not observation["derivedFrom"]:
        del observation["derivedFrom"]
    if result.band is not None:
        observation["interpretation"] = [_concept(BANDS, result.band.code, result.band.display, result.band.zh)]
    return observation


def _concept(system: str, code: str, display: str, chinese: str, version: str = "") -> dict[str, Any]:
    coding: dict[str, Any] = {"system": system, "code": code}
    if version:
        coding["version"] = version
    if display:
        coding["display"] = display
    if chinese:
        coding["_display"] = translation(chinese)
    return {"coding": [coding], "text": display or code}


def _text(english: str, chinese: str) -> dict[str, Any]:
    return {"text": english, "_text": translation(chinese)} if chinese else {"text": english}

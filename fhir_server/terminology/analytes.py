"""What a LOINC code says about converting its results: molar masses and the HbA1c line, from terminology/loinc-supplement.json.

UCUM alone would call 48 mmol/mol of HbA1c 4.8 %, because both are ratios; and it cannot turn mmol/L into mg/dL.
https://hl7.org/fhir/R4/codesystem.html#supplements
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any

from fhir_server.model.content import folder, read
from fhir_server.terminology import units

LOINC = "http://loinc.org"


@dataclass(frozen=True, slots=True)
class Analyte:
    """`unit`: the UCUM unit thresholds are written in; `molar_mass`: g/mol; `slope`, `intercept`: NGSP % of IFCC mmol/mol."""

    code: str
    unit: str = ""
    molar_mass: Decimal | None = None
    slope: Decimal | None = None
    intercept: Decimal = Decimal(0)


@cache
def analytes() -> Mapping[str, Analyte]:
    """LOINC code → what is known about it."""
    found: dict[str, Analyte] = {}
    for concept in read(folder("terminology") / "loinc-supplement.json").get("concept", []):
        facts: dict[str, Any] = {
            p["code"]: p.get("valueDecimal", p.get("valueString")) for p in concept.get("property", [])
        }
        found[concept["code"]] = Analyte(
            concept["code"],
            facts.get("unit", ""),
            facts.get("molar-mass"),
            facts.get("ifcc-slope"),
            facts.get("ifcc-intercept", Decimal(0)),
        )
    return found


def analyte(coding: Iterable[Mapping[str, Any]]) -> Analyte | None:
    """What is known about the first LOINC code of a CodeableConcept's codings that we know."""
    for item in coding:
        if item.get("system") == LOINC and item.get("code") in analytes():
            return analytes()[item["code"]]
    return None


def molar_mass(code: str) -> Decimal | None:
    """Grams per mole of what a LOINC code measures, None where mass and moles may not be converted."""
    known = analytes().get(code)
    return known.molar_mass if known else None


def convert(value: units.Number, from_unit: str, to_unit: str, code: str = "") -> Decimal | None:
    """A result of LOINC `code` in another unit; None where that cannot be done."""
    known = analytes().get(code)
    if known is not None and known.slope is not None:
        return _glycated(Decimal(str(value)), from_unit, to_unit, known.slope, known.intercept)
    return units.convert(value, from_unit, to_unit, molar_mass=known.molar_mass if known else None)


def _glycated(value: Decimal, from_unit: str, to_unit: str, slope: Decimal, intercept: Decimal) -> Decimal | None:
    if from_unit == to_unit:
        return value
    if (from_unit, to_unit) == ("mmol/mol", "%"):
        return value * slope + intercept
    if (from_unit, to_unit) == ("%", "mmol/mol"):
        return (value - intercept) / slope
    return None

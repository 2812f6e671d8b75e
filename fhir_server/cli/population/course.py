"""How a person's numbers move over the years: a plain model with correlated values, not physiology.

Everything is drawn from `Dice`, seeded by words, so that a person's course never depends on who was computed before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from fhir_server.cli.population.people import Person


class Dice:
    """Pseudo-random numbers that are the same on every platform and Python version: built on `random()` alone."""

    def __init__(self, *words: object) -> None:
        self._random = random.Random("/".join(str(word) for word in words))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._random.random()

    def noise(self, spread: float) -> float:
        """Roughly normal, standard deviation `spread`: the sum of twelve uniform draws."""
        return spread * (sum(self._random.random() for _ in range(12)) - 6.0)

    def whole(self, low: int, high: int) -> int:
        return low + int(self._random.random() * (high - low + 1))


@dataclass(frozen=True, slots=True)
class Course:
    """Where a kind of person starts and what changes a year (mmHg, kg/m2, mmol/L, umol/L, g/L)."""

    systolic: float = 118
    systolic_year: float = 0.6
    diastolic: float = 75
    bmi: float = 22.5
    bmi_year: float = 0.08
    glucose: float = 5.1
    glucose_year: float = 0.02
    cholesterol: float = 4.6
    urate: float = 0  # added to what sex and BMI give
    creatinine_year: float = 0.3
    haemoglobin: float = 0
    smoking: str = "never"
    low_mood: float = 2  # expected PHQ-9 total


COURSES = {
    "healthy": Course(),
    "hypertension": Course(systolic=136, systolic_year=2.6, diastolic=85, bmi=25.4, cholesterol=5.0),
    "hypertension_diabetes": Course(
        systolic=138, systolic_year=2.2, diastolic=86, bmi=27.8, glucose=6.4, glucose_year=0.34, cholesterol=5.3
    ),
    "diabetes": Course(systolic=127, systolic_year=1.0, bmi=26.2, glucose=6.3, glucose_year=0.42, cholesterol=5.1),
    "prediabetes": Course(systolic=124, bmi=25.6, bmi_year=0.2, glucose=5.8, glucose_year=0.12, cholesterol=5.0),
    "metabolic": Course(
        systolic=129, systolic_year=1.1, diastolic=83, bmi=28.4, bmi_year=0.25, glucose=5.7, glucose_year=0.1,
        cholesterol=5.6, smoking="former",
    ),
    "kidney": Course(
        systolic=139, systolic_year=1.4, diastolic=82, bmi=24.6, cholesterol=5.1, creatinine_year=7.5, haemoglobin=-14
    ),
    "gout": Course(systolic=126, systolic_year=0.8, diastolic=80, bmi=26.8, cholesterol=5.0, urate=130),
    "lipids": Course(systolic=123, systolic_year=0.7, bmi=24.4, cholesterol=6.6),
    "smoker": Course(systolic=128, systolic_year=1.2, diastolic=80, cholesterol=5.4, smoking="current"),
    "anaemia": Course(systolic=112, diastolic=70, bmi=20.6, haemoglobin=-31),
    "low_mood": Course(bmi=23.6, bmi_year=0.3, low_mood=11),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Visit:
    """What one check-up finds. `values`: by the keys of measures.yaml, molar units; `began`: what is diagnosed at it."""

    year: int
    systolic: float
    diastolic: float
    values: dict[str, float]
    smoking: str
    began: tuple[str, ...] = ()


@dataclass(slots=True)
class _State:
    height: float
    bmi: float
    conditions: dict[str, int] = field(default_factory=dict)  # condition → year of diagnosis
    raised: int = 0  # check-ups in a row with raised blood pressure


def visits(seed: int, person: Person, years: range, today_year: int) -> Iterator[Visit]:
    """One `Visit` a year; treatment begins with the diagnosis and shows from the next visit on."""
    course = COURSES[person.course]
    own = Dice(seed, person.id, "own")
    male = person.gender == "male"
    state = _State(
        height=(170 if male else 158) + own.noise(6) + (4 if person.usual_family == "" else 0),
        bmi=course.bmi + own.noise(0.9),
    )
    offset = {name: own.noise(1.0) for name in ("systolic", "glucose", "cholesterol", "hdl", "alt", "platelets")}
    offset["control"] = own.between(0.25, 1.0)  # how well treatment works, or is taken
    for number, year in enumerate(years):
        dice = Dice(seed, person.id, year)
        yield _visit(person, state, offset, dice, year=year, number=number, age=person.age - (today_year - year))


def _visit(
    person: Person, state: _State, offset: dict[str, float], dice: Dice, *, year: int, number: int, age: int
) -> Visit:
    course = COURSES[person.course]
    male = person.gender == "male"
    treated = {name for name, since in state.conditions.items() if since < year}
    bmi = state.bmi + course.bmi_year * number + dice.noise(0.35) - (0.6 if "diabetes" in treated else 0)
    height = state.height - 0.05 * max(0, age - 60)
    weight = bmi * (height / 100) ** 2
    lowered = offset["control"] if "hypertension" in treated else 0.0
    systolic = course.systolic + 0.25 * (age - 50) + course.systolic_year * number + 3 * offset["systolic"]
    systolic += dice.noise(4.5) - 20 * lowered
    diastolic = course.diastolic + 0.28 * (systolic - course.systolic) + dice.noise(3) - 2 * lowered
    glucose = course.glucose + course.glucose_year * number + 0.18 * offset["glucose"] + dice.noise(0.22)
    if "diabetes" in treated:
        glucose = 6.2 + (1 - 0.75 * offset["control"]) * (glucose - 6.2) + dice.noise(0.3)
    cholesterol = course.cholesterol + 0.25 * offset["cholesterol"] + dice.noise(0.2)
    if "hyperlipidaemia" in treated:
        cholesterol *= 0.74
    triglycerides = max(0.5, 0.55 + 0.11 * (bmi - 19) + 0.2 * (glucose - 5) + dice.noise(0.2))
    hdl = max(0.7, (1.25 if male else 1.5) - 0.018 * (bmi - 22) - 0.08 * (triglycerides - 1.2) + 0.1 * offset["hdl"])
    alt = max(8.0, 17 + 2.1 * (bmi - 22) + 3 * offset["alt"] + dice.noise(3))
    values = {
        "height": height,
        "weight": weight,
        "bmi": bmi,
        "waist": (2.5 * bmi + 26 if male else 2.3 * bmi + 25) + dice.noise(1.2),
        "heart_rate": 71 + dice.noise(6),
        "glucose": glucose,
        "hba1c": 2.7 + 0.52 * glucose + dice.noise(0.12),
        "cholesterol": cholesterol,
        "hdl": hdl,
        "ldl": max(0.9, cholesterol - hdl - triglycerides / 2.2),
        "triglycerides": triglycerides,
        "creatinine": (79 if male else 61) + 0.22 * (age - 50) + course.creatinine_year * number + dice.noise(3),
        "uric_acid": (345 if male else 275) + 6 * (bmi - 23) + course.urate + dice.noise(14)
        - (110 if "gout" in treated else 0),
        "alt": alt,
        "ast": 9 + 0.66 * alt + dice.noise(2),
        "platelets": 228 - 0.5 * (age - 50) + 14 * offset["platelets"] + dice.noise(10),
        "haemoglobin": (150 if male else 131) + course.haemoglobin + dice.noise(3),
    }  # fmt: skip
    began = tuple(_diagnosed(state, systolic, diastolic, values, year))
    smoking = "former" if course.smoking == "current" and number >= 6 else course.smoking
    return Visit(year, systolic, diastolic, values, smoking, began)


def _diagnosed(state: _State, systolic: float, diastolic: float, values: dict[str, float], year: int) -> Iterator[str]:
    """A condition begins when the values say so, by the usual cut-offs, and stays."""
    high = systolic >= 140 or diastolic >= 90
    state.raised = state.raised + 1 if high else 0
    found = {
        "hypertension": state.raised >= 2 or systolic >= 160,
        "diabetes": values["glucose"] >= 7.0 and values["hba1c"] >= 6.2,
        "hyperlipidaemia": values["ldl"] >= 4.1,
        "gout": values["uric_acid"] >= 520,
    }
    for name, holds in found.items():
        if holds and name not in state.conditions:
            state.conditions[name] = year
            yield name

"""What a score asks for and how its result reads: the Library in resources/risk that stands beside each formula.

A Library's `parameter`s are the inputs (kind, unit, validated range), its `dataRequirement`s the facts of the same names
(where a record holds them and how old they may be), its `score-band` extensions the classes of the result.
https://hl7.org/fhir/R4/library.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any

from fhir_server.automation.risk.inputs import Value
from fhir_server.model.content import files, read

BASE = "https://fhir-server.org/fhir"
METHODS = f"{BASE}/CodeSystem/risk-methods"
BANDS = f"{BASE}/CodeSystem/risk-bands"
INPUT = f"{BASE}/StructureDefinition/score-input"
BAND = f"{BASE}/StructureDefinition/score-band"
SCORE = f"{BASE}/StructureDefinition/score"
TRANSLATION = "http://hl7.org/fhir/StructureDefinition/translation"

_WHEN = re.compile(r"(?P<name>\w+)(?P<op>>=|<=|<|>|=)(?P<value>.+)")


@dataclass(frozen=True, slots=True)
class When:
    """A condition on another input: `sex=m`, `age<50`, `outcome=hf`."""

    name: str
    op: str
    value: str

    @classmethod
    def parse(cls, text: str) -> When:
        """Raises ValueError for anything but name, operator, value."""
        found = _WHEN.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"{text!r} is not a condition such as age>=65")
        return cls(found["name"], found["op"], found["value"])

    def holds(self, inputs: Mapping[str, Value]) -> bool:
        value = inputs.get(self.name)
        if value is None:
            return False
        if self.op == "=":
            return str(value) == self.value
        assert isinstance(value, Decimal)
        limit = Decimal(self.value)
        return {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit}[self.op]


@dataclass(frozen=True, slots=True)
class Input:
    """One input. `low` and `high` are included; outside of them there is no result.

    `molar_mass` (g/mol) converts between mmol and mg as the model was published, not as a laboratory would.
    """

    name: str
    kind: str  # quantity | boolean | code
    display: str
    zh: str
    unit: str = ""
    low: Decimal | None = None
    high: Decimal | None = None
    codes: tuple[str, ...] = ()
    molar_mass: Decimal | None = None
    places: int | None = None  # 0 for completed years of age
    alternative: str = ""  # inputs of the same name here replace each other: one of them is enough
    default: str = ""  # only for a choice (which outcome), never for a fact about the patient
    when: tuple[When, ...] = ()

    def wanted(self, inputs: Mapping[str, Value]) -> bool:
        return all(when.holds(inputs) for when in self.when)


@dataclass(frozen=True, slots=True)
class Band:
    """A class of the result: `low` included, `below` not."""

    code: str
    display: str
    zh: str
    low: Decimal | None = None
    below: Decimal | None = None
    when: tuple[When, ...] = ()

    def holds(self, value: Decimal, inputs: Mapping[str, Value]) -> bool:
        return (
            (self.low is None or value >= self.low)
            and (self.below is None or value < self.below)
            and all(when.holds(inputs) for when in self.when)
        )


@dataclass(frozen=True, slots=True)
class Specification:
    """A score without its formula. `produces` RiskAssessment or Observation; `places`: decimals of the reported value."""

    code: str
    url: str
    version: str
    title: str
    zh: str
    unit: str
    places: int
    produces: str
    experimental: bool
    outcomes: tuple[tuple[str, str, str], ...]  # (code, English, Chinese)
    period: int  # years the risk is for, 0 where it is about now
    loinc: str
    inputs: tuple[Input, ...]
    bands: tuple[Band, ...]
    library: Mapping[str, Any]

    def input(self, name: str) -> Input | None:
        return next((item for item in self.inputs if item.name == name), None)


@cache
def specifications() -> Mapping[str, Specification]:
    """Score code → specification, from every Library in resources/risk."""
    found = (read(path) for path in files("resources", "risk"))
    scores = [specification(resource) for resource in found if resource["resourceType"] == "Library"]
    return {item.code: item for item in scores}


def specification(library: Mapping[str, Any]) -> Specification:
    """A Library as the code reads it. Raises KeyError or ValueError where it is not one of a score."""
    score = _parts(next(e for e in library["extension"] if e["url"] == SCORE))
    outcomes = tuple((c["code"], c.get("display", ""), chinese(c, "display")) for c in score.get("outcome", []))
    return Specification(
        code=score["code"][0],
        url=library["url"],
        version=library["version"],
        title=library["title"],
        zh=chinese(library, "title"),
        unit=score["unit"][0],
        places=score["places"][0],
        produces=score["produces"][0],
        experimental=library.get("experimental", False),
        outcomes=outcomes,
        period=score.get("period", [0])[0],
        loinc=score.get("loinc", [""])[0],
        inputs=tuple(_input(parameter) for parameter in library["parameter"]),
        bands=tuple(_band(e) for e in library["extension"] if e["url"] == BAND),
        library=library,
    )


def chinese(element: Mapping[str, Any], name: str) -> str:
    """The Chinese text of a primitive element, from its translation extension; empty if there is none."""
    for extension in element.get(f"_{name}", {}).get("extension", ()):
        if extension["url"] == TRANSLATION:
            parts = _parts(extension)
            if str(parts.get("lang", [""])[0]).startswith("zh"):
                return str(parts["content"][0])
    return ""


def _parts(extension: Mapping[str, Any]) -> dict[str, list[Any]]:
    """A complex extension as name → values."""
    parts: dict[str, list[Any]] = {}
    for part in extension.get("extension", ()):
        value = next((v for key, v in part.items() if key.startswith("value")), part)
        parts.setdefault(part["url"], []).append(value)
    return parts


def _whens(texts: Iterable[str]) -> tuple[When, ...]:
    return tuple(When.parse(text) for text in texts)


def _input(parameter: Mapping[str, Any]) -> Input:
    parts = _parts(next(e for e in parameter["extension"] if e["url"] == INPUT))

    def one(name: str, default: Any = None) -> Any:
        return parts.get(name, [default])[0]

    return Input(
        name=parameter["name"],
        kind=one("kind"),
        display=parameter.get("documentation", ""),
        zh=chinese(parameter, "documentation"),
        unit=one("unit", ""),
        low=_decimal(one("low")),
        high=_decimal(one("high")),
        codes=tuple(parts.get("code", ())),
        molar_mass=_decimal(one("molar-mass")),
        places=one("places"),
        alternative=one("alternative", ""),
        default=one("default", ""),
        when=_whens(parts.get("when", ())),
    )


def _band(extension: Mapping[str, Any]) -> Band:
    parts = _parts(extension)
    coding = parts["band"][0]
    return Band(
        code=coding["code"],
        display=coding.get("display", ""),
        zh=chinese(coding, "display"),
        low=_decimal(parts.get("low", [None])[0]),
        below=_decimal(parts.get("below", [None])[0]),
        when=_whens(parts.get("when", ())),
    )


def _decimal(value: Any) -> Decimal | None:
    return None if value is None else Decimal(str(value))

"""Who lives in the sample population: invented people, read from people.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Person:
    """`family` and `given` as the person writes them; the usual ones are pinyin, empty where the official name is Latin."""

    id: str
    family: str
    given: str
    usual_family: str
    usual_given: str
    gender: str
    age: int
    city: tuple[str, ...]
    course: str

    @property
    def chinese(self) -> bool:
        return self.usual_family != ""


@cache
def table(name: str) -> Any:
    """A YAML file of this folder."""
    return yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))


@cache
def people() -> tuple[Person, ...]:
    file = table("people")
    return tuple(
        Person(
            f"sample-{number:02}",
            family,
            given,
            usual_family,
            usual_given,
            gender,
            age,
            tuple(file["cities"][city]),
            course,
        )
        for number, (family, given, usual_family, usual_given, gender, age, city, course) in enumerate(
            [*file["chinese"], *file["international"]], start=1
        )
    )


def names(family: str, given: str, usual_family: str, usual_given: str) -> list[Json]:
    """HumanName entries: official as written, usual in pinyin (marked SYL, ideographs marked IDE)."""
    if not usual_family:
        return [{"use": "official", "text": f"{given} {family}", "family": family, "given": given.split(" ")}]
    return [
        {
            "extension": [_representation("IDE")],
            "use": "official",
            "text": family + given,
            "family": family,
            "given": [given],
        },
        {
            "extension": [_representation("SYL")],
            "use": "usual",
            "text": f"{usual_family} {usual_given}",
            "family": usual_family,
            "given": [usual_given],
        },
    ]


def _representation(code: str) -> Json:
    return {"url": "http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation", "valueCode": code}


def practitioners() -> list[Json]:
    found = []
    for number, (family, given, usual_family, usual_given, gender) in enumerate(table("people")["practitioners"], 1):
        found.append(
            {
                "resourceType": "Practitioner",
                "id": f"sample-practitioner-{number}",
                "identifier": [{"system": "http://example.org/sample/staff", "value": f"S{number:03}"}],
                "active": True,
                "name": names(family, given, usual_family, usual_given),
                "gender": gender,
            }
        )
    return found

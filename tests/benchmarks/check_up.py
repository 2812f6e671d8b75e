"""A check-up of 40 observations for one patient, all rules on: server CPU from the commit to the last derived resource."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

UCUM = "http://unitsofmeasure.org"
LOINC = "http://loinc.org"
ANSWERS = "https://fhir-server.org/fhir/CodeSystem/score-inputs"
WHEN = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")  # today: what is old raises no task
RESULTS = (
    ("2093-3", 210, "mg/dL"), ("2085-9", 45, "mg/dL"), ("13457-7", 135, "mg/dL"), ("2571-8", 160, "mg/dL"),
    ("1558-6", 118, "mg/dL"), ("4548-4", 5.9, "%"), ("2160-0", 1.0, "mg/dL"), ("9318-7", 35, "mg/g"),
    ("3084-1", 7.4, "mg/dL"), ("718-7", 140, "g/L"), ("777-3", 220, "10*9/L"), ("6690-2", 6.1, "10*9/L"),
    ("1920-8", 25, "U/L"), ("1742-6", 30, "U/L"), ("2823-3", 4.2, "mmol/L"), ("2951-2", 140, "mmol/L"),
    ("2000-8", 2.3, "mmol/L"), ("8302-2", 170, "cm"), ("29463-7", 78, "kg"), ("39156-5", 27, "kg/m2"),
    ("8280-0", 92, "cm"), ("8867-4", 72, "/min"), ("6301-6", 1.0, "1"), ("14879-1", 1.1, "mmol/L"),
    ("2601-3", 0.9, "mmol/L"),
)  # fmt: skip
OTHERS = ("2028-9", "3094-0", "1975-2", "1968-7", "6768-6", "2885-2", "1751-7", "2075-0", "17861-6", "4544-3", "789-8",
          "785-6", "786-4", "787-2")  # fmt: skip
NO = (
    "on-antihypertensives",
    "on-statin",
    "current-smoker",
    "has-diabetes",
    "family-history-ascvd",
    "first-degree-diabetes",
)
YES = ("lives-north-of-yangtze", "lives-in-city")


def person(number: int) -> dict[str, Any]:
    """A patient who has answered what scores ask for."""
    patient = {"resourceType": "Patient", "id": f"check-up-{number}", "gender": "male", "birthDate": "1970-01-01"}
    answers = [
        {**_observation(number, code, ANSWERS), "valueBoolean": value}
        for codes, value in ((NO, False), (YES, True))
        for code in codes
    ]
    return _transaction([patient, *answers])


def check_up(number: int) -> dict[str, Any]:
    """40 observations: 39 results and a blood pressure."""
    results = [
        {**_observation(number, code), "valueQuantity": {"value": value, "unit": unit, "system": UCUM, "code": unit}}
        for code, value, unit in (*RESULTS, *((code, 1, "1") for code in OTHERS))
    ]
    pressure = {
        **_observation(number, "85354-9"),
        "component": [
            {"code": {"coding": [{"system": LOINC, "code": code}]},
             "valueQuantity": {"value": value, "unit": "mm[Hg]", "system": UCUM, "code": "mm[Hg]"}}
            for code, value in (("8480-6", 152), ("8462-4", 94))
        ],
    }  # fmt: skip
    return _transaction([*results, pressure])


def cpu(pid: int) -> float:
    """Seconds of processor time a process has used, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spent(base: str, pid: int, *, people: int, hooks: bool) -> tuple[float, int]:
    """(CPU seconds for one check-up, derived resources of the last one)."""
    with httpx.Client(timeout=60) as client:
        for number in range(people + 3):
            client.post(base, json=person(number)).raise_for_status()
        for number in range(3):  # the first ones compile what is compiled once
            client.post(base, json=check_up(number)).raise_for_status()
        _wait(client, base, hooks)
        before = cpu(pid)
        for number in range(3, people + 3):
            client.post(base, json=check_up(number)).raise_for_status()
            _wait(client, base, hooks)
        used = (cpu(pid) - before) / people
        derived = (
            sum(_count(client, base, kind, people + 2) for kind in ("RiskAssessment", "Task", "Flag")) if hooks else 0
        )
    return used, derived


def _wait(client: httpx.Client, base: str, hooks: bool) -> None:
    if hooks:
        client.get(f"{base}/$await-hooks").raise_for_status()


def _count(client: httpx.Client, base: str, kind: str, number: int) -> int:
    found = client.get(f"{base}/{kind}", params={"patient": f"Patient/check-up-{number}", "_summary": "count"})
    return int(found.raise_for_status().json()["total"])


def _observation(number: int, code: str, system: str = LOINC) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": {"coding": [{"system": system, "code": code}]},
        "subject": {"reference": f"Patient/check-up-{number}"},
        "effectiveDateTime": WHEN,
    }


def _transaction(resources: list[dict[str, Any]]) -> dict[str, Any]:
    entries: Iterator[dict[str, Any]] = (
        {
            "resource": one,
            "request": {"method": "PUT", "url": f"{one['resourceType']}/{one['id']}"}
            if "id" in one
            else {"method": "POST", "url": one["resourceType"]},
        }
        for one in resources
    )
    return {"resourceType": "Bundle", "type": "transaction", "entry": list(entries)}

"""Exactly once under kill -9: what the hooks derive while server, worker and mongod are killed is what they derive undisturbed.

The same readings go to a server that is left alone, and to one (with a second worker beside it) that loses a process in
every round. Writes are PUTs that are repeated until they are acknowledged. Afterwards both have derived the same: nothing
is missing, nothing is there twice, nothing is different but times of writing.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.environment import environment
from tests.faults.serving import Serving

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

PATIENTS = 8
VICTIMS = ("worker", "mongod", "server")
APART = frozenset({"meta", "authoredOn", "lastModified", "recorded", "extension", "entity", "policy", "period"})
KINDS = ("Task", "RiskAssessment", "Flag", "CommunicationRequest", "Provenance", "Patient", "Observation")
SETTINGS = {"FHIR_AUTOMATION": "true", "FHIR_RATE_LIMIT": "0"}
COMMAND = str(Path(sys.executable).with_name("fhir-server"))


def readings(rounds: int, each: int, start: datetime) -> list[list[dict[str, Any]]]:
    """For each round: versions to PUT, in order. Corrections come in later rounds than what they correct."""
    chance = random.Random(7)
    found: list[list[dict[str, Any]]] = []
    number = 0
    for turn in range(rounds):
        found.append([])
        for _ in range(each):
            number += 1
            patient = chance.randrange(PATIENTS)
            at = (start + timedelta(seconds=number)).isoformat()
            kind = chance.choice(["bp", "bp", "glucose", "creatinine"])
            one = observation(f"r{number}", f"p{patient}", kind, chance, at)
            found[turn].append(one)
            if number > 20 and chance.random() < 0.1:
                wrong = chance.choice(found[chance.randrange(turn + 1)])
                found[turn].append({**wrong, "status": "entered-in-error"})
    return found


def observation(id: str, patient: str, kind: str, chance: random.Random, at: str) -> dict[str, Any]:
    one: dict[str, Any] = {"resourceType": "Observation", "id": id, "status": "final", "effectiveDateTime": at}
    one["subject"] = {"reference": f"Patient/{patient}"}
    if kind == "bp":
        values = (("8480-6", chance.randrange(110, 190)), ("8462-4", chance.randrange(65, 115)))
        one["code"] = coded("85354-9")
        one["component"] = [{"code": coded(code), "valueQuantity": quantity(v, "mm[Hg]")} for code, v in values]
    elif kind == "glucose":
        one.update(code=coded("14771-0"), valueQuantity=quantity(chance.randrange(4, 20), "mmol/L"))
    else:
        one.update(code=coded("2160-0"), valueQuantity=quantity(chance.randrange(1, 4), "mg/dL"))
    return one


def coded(code: str) -> dict[str, Any]:
    return {"coding": [{"system": "http://loinc.org", "code": code}]}


def quantity(value: int, unit: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "system": "http://unitsofmeasure.org", "code": unit}


class Ward:
    """A server with its own data, and perhaps a worker beside it."""

    def __init__(self, folder: Path, *, second_worker: bool) -> None:
        self._folder, self._second = folder, second_worker
        self.worker: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        self.server = Serving(self._folder, **SETTINGS)
        self.start_worker()

    def start_worker(self) -> None:
        if self._second:
            words = [COMMAND, "worker", "--data-dir", str(self._folder)]
            self.worker = subprocess.Popen(
                words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, env=environment(**SETTINGS)
            )

    def kill(self, victim: str) -> None:
        if victim == "worker" and self.worker is not None:
            self.worker.kill()
            self.worker.wait()
            self.start_worker()
        elif victim == "mongod":
            os.kill(self.server.mongod(), signal.SIGKILL)  # the server starts it again
        elif victim == "server":
            if self.worker is not None:
                self.worker.kill()
                self.worker.wait()
            self.server.kill()
            self.start()

    def stop(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait()
        self.server.stop()


async def put(ward: Ward, body: dict[str, Any]) -> None:
    """Repeated until it is acknowledged: the same PUT twice is one version."""
    for _ in range(600):
        try:
            async with httpx.AsyncClient(timeout=10) as client:
                answer = await client.put(f"{ward.server.base}/{body['resourceType']}/{body['id']}", json=body)
        except (httpx.TransportError, AttributeError):  # anyio's, where a connection dies in the moment it is made
            await asyncio.sleep(0.05)
            continue
        if answer.status_code in (200, 201):
            return
        assert answer.status_code in (409, 503), answer.text
        await asyncio.sleep(0.05)
    raise AssertionError(f"{body['id']} could not be written")


async def by_patient(ward: Ward, bodies: list[dict[str, Any]]) -> None:
    """Patients side by side, each patient's readings in their order: the facts have a history, too."""
    lanes: dict[str, list[dict[str, Any]]] = {}
    for body in bodies:
        lanes.setdefault(body["subject"]["reference"], []).append(body)

    async def lane(own: list[dict[str, Any]]) -> None:
        for body in own:
            await put(ward, body)

    await asyncio.gather(*(lane(own) for own in lanes.values()))


async def derived(ward: Ward) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with httpx.AsyncClient(base_url=ward.server.base + "/", timeout=60) as client:
        answer = await client.get("$await-hooks?timeout=50")
        assert answer.status_code == 200, answer.text
        for kind in KINDS:
            url: str | None = f"{kind}?_count=500"
            while url:
                bundle = (await client.get(url)).json()
                for entry in bundle.get("entry", ()):
                    one = entry["resource"]
                    tags = sorted(tag["code"] for tag in one["meta"].get("tag", ()))
                    key = f"{kind}/{one['id']}"
                    assert key not in found
                    apart = APART | ({"restriction"} if _asks_for_what_is_missing(one) else frozenset())
                    found[key] = {"tags": tags, **{name: value for name, value in one.items() if name not in apart}}
                url = next((link["url"] for link in bundle.get("link", ()) if link["relation"] == "next"), None)
    return found


def _asks_for_what_is_missing(resource: dict[str, Any]) -> bool:
    """Such a task is due from when it was raised, which is another time in another run."""
    return resource["resourceType"] == "Task" and ".missing|" in resource["identifier"][0]["value"]


async def compare(tmp_path: Path, rounds: int, each: int) -> None:
    start = datetime.now(UTC) - timedelta(hours=2)
    turns = readings(rounds, each, start)
    people = [
        {"resourceType": "Patient", "id": f"p{n}", "gender": "male", "birthDate": "1961-03-01"} for n in range(PATIENTS)
    ]
    results = []
    for disturbed in (False, True):
        ward = Ward(tmp_path / str(disturbed), second_worker=disturbed)
        try:
            for person in people:
                await put(ward, person)
            chance = random.Random(11)
            for number, turn in enumerate(turns):
                writing = asyncio.create_task(by_patient(ward, turn))
                if disturbed:
                    await asyncio.sleep(chance.random() * 0.4)
                    await asyncio.to_thread(ward.kill, VICTIMS[number % len(VICTIMS)])
                await writing
            results.append(await derived(ward))
        finally:
            ward.stop()
    undisturbed, killed = results
    assert len([key for key in undisturbed if key.startswith("Task/")]) >= PATIENTS
    assert killed.keys() == undisturbed.keys(), "something is missing, or there is too much"
    assert killed == undisturbed


@pytest.mark.timeout(200)
async def test_hooks_derive_the_same_under_six_kills(tmp_path: Path) -> None:
    await compare(tmp_path, rounds=6, each=12)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_hooks_derive_the_same_under_twenty_four_kills(tmp_path: Path) -> None:
    await compare(tmp_path, rounds=24, each=12)

"""An export of many Observations from a running server: how fast, how much memory, and what others' reads notice of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvloop

from fhir_server.app import build_server
from fhir_server.settings import Settings
from fhir_server.store.embedded import EmbeddedMongo
from tests.benchmarks.scale import fill, observation
from tests.cli.conftest import Process


@dataclass(frozen=True, slots=True)
class Exported:
    resources: int
    megabytes: float
    seconds: float  # from the kick-off to the manifest
    grown_mb: float  # resident memory of the server at its peak, over what it was before
    read_ms: float  # worst read by id meanwhile
    download_seconds: float


def prepare(folder: Path, count: int) -> None:
    """The database of a server that has so many."""
    mongo = EmbeddedMongo(folder)
    try:
        uvloop.run(_fill(mongo.start(), count))
    finally:
        mongo.stop()


async def _fill(url: str, count: int) -> None:
    server = build_server(Settings(), url)
    await server.store.open()
    await fill(server, observation, range(count))
    await server.store.close()


def export(server: Process) -> Exported:
    own = Path(f"/proc/{server.process.pid}")
    with httpx.Client(timeout=60) as client:
        httpx.get(f"{server.base}/Observation?_count=1000")
        (own / "clear_refs").write_text("5")  # the peak begins anew
        before = _memory(own, "VmRSS")
        began, worst = time.perf_counter(), 0.0
        url = f"{server.base}/$export?_type=Observation"
        location = client.get(url, headers={"Prefer": "respond-async"}).headers["content-location"]
        while (answer := client.get(location)).status_code == 202:
            asked = time.perf_counter()
            client.get(f"{server.base}/Observation/o1")
            worst = max(worst, time.perf_counter() - asked)
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        files, size = answer.json()["output"], 0
        began = time.perf_counter()
        for file in files:
            with client.stream("GET", file["url"], headers={"Accept-Encoding": "identity"}) as body:
                size += sum(map(len, body.iter_raw()))
        downloaded = time.perf_counter() - began
        grown = _memory(own, "VmHWM") - before
        client.delete(location)
    return Exported(sum(f["count"] for f in files), size / 1e6, seconds, grown, worst * 1000, downloaded)


def _memory(process: Path, name: str) -> float:
    line = next(line for line in (process / "status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024

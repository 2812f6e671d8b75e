"""`make bench`: what the promises about cost look like on this machine, as a table.

Each row is one function that yields lines; figures of one run are comparable with each other, not with another machine's.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from fhir_server.cli import population
from fhir_server.model.resource import dump, load
from fhir_server.operations.bulk.job import SETTLE
from fhir_server.search.index import index
from fhir_server.search.registry import standard
from tests.benchmarks import authorized, check_up, exporting, hooks
from tests.benchmarks.load import measure
from tests.cli.conftest import Process, call


@dataclass(frozen=True, slots=True)
class Line:
    what: str
    measured: str
    wanted: str = ""
    good: bool | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    seconds: float
    folder: Path
    data: Path | None  # Synthea bundles

    @contextlib.contextmanager
    def server(self, *words: object, name: str = "data", automation: bool = False) -> Iterator[Process]:
        hooks = () if automation else ("--no-automation",)
        words = ("serve", "--port", 0, "--open", *hooks, "--data-dir", self.folder / name, *words)
        process = Process(*words, FHIR_RATE_LIMIT="0", FHIR_LOG_LEVEL="error")
        try:
            process.line("ready on ")
            yield process
        finally:
            process.stop()


def observation() -> bytes:
    """A blood pressure from the sample population, without an id."""
    _, raw = list(population.bundles())[1]
    found = next(e["resource"] for e in load(raw)["entry"] if e["resource"]["id"].endswith("-bp"))
    return dump({key: value for key, value in found.items() if key not in ("id", "encounter", "performer")})


def read(bench: Bench) -> Iterator[Line]:
    """https://hl7.org/fhir/R4/http.html#read against a bare route under the same uvicorn."""
    bare = Process("bare", module="tests.benchmarks.bare")
    try:
        floor = measure(f"{bare.base}/Patient/sample-01", connections=32, seconds=bench.seconds)
    finally:
        bare.stop()
    with bench.server() as server:
        httpx.put(
            f"{server.base}/Patient/sample-01", json={"resourceType": "Patient", "id": "sample-01", "active": True}
        )
        found = measure(f"{server.base}/Patient/sample-01", connections=32, seconds=bench.seconds)
    share = found.rate / floor.rate
    yield Line("bare Starlette route, 32 connections, 1 worker", f"{floor.rate:,.0f}/s")
    yield Line(
        "read by id, 32 connections, 1 worker",
        f"{found.rate:,.0f}/s = {share:.0%} of it; p50 {found.p50_ms:.1f} ms, p99 {found.p99_ms:.1f} ms",
        "at least 40 % of the bare route",
        share >= 0.4 and not found.failed,
    )


def create(bench: Bench) -> Iterator[Line]:
    """https://hl7.org/fhir/R4/http.html#create: validated, indexed, durable, with its outbox event."""
    body = observation()
    with bench.server("--workers", 2) as server:
        httpx.put(f"{server.base}/Patient/sample-01", json={"resourceType": "Patient", "id": "sample-01"})
        measure(f"{server.base}/Observation", connections=64, seconds=1, method="POST", body=body)
        url = f"{server.base}/Observation"
        found = measure(url, connections=64, seconds=bench.seconds, method="POST", body=body)
    yield Line(
        "create of a blood pressure, 64 connections, 2 workers",
        f"{found.rate:,.0f}/s; p50 {found.p50_ms:.1f} ms, p99 {found.p99_ms:.1f} ms; {found.failed} failed",
        "at least 1,200/s",
        found.rate >= 1200 and not found.failed,
    )


def loading(bench: Bench) -> Iterator[Line]:
    """`fhir-server load` of Synthea's bundles where FHIR_SPEC_DATA has them, else of the sample population."""
    folder = bench.data
    if folder is None:
        folder = bench.folder / "population"
        folder.mkdir()
        for name, raw in population.bundles():
            (folder / f"{name}.json").write_bytes(raw)
    with bench.server("--workers", 2, name="loading") as server:
        for what, wanted in (("load, empty server", 2000), ("load again", 2000)):
            began = time.monotonic()
            loaded = call("load", folder, "--server", server.base)
            took = time.monotonic() - began
            last = loaded.stdout.splitlines()[-1] if loaded.stdout else loaded.stderr
            rate = float(last.split()[0].replace(",", "")) / took if loaded.returncode == 0 else 0.0
            title = f"{what}, 2 workers ({'Synthea' if bench.data else 'sample population'})"
            yield Line(
                title,
                f"{rate:,.0f} resources/s, start of the command included",
                f"at least {wanted:,}/s",
                rate >= wanted,
            )


def ready(bench: Bench) -> Iterator[Line]:
    """From the command to the line "ready on": the data directory exists. And what a worker occupies then."""
    with bench.server(name="ready"):
        pass
    times = []
    for _ in range(3):
        began = time.monotonic()
        with bench.server(name="ready") as server:
            times.append(time.monotonic() - began)
            for _ in range(20):
                httpx.get(f"{server.base}/Patient?_count=50")
            status = Path(f"/proc/{server.process.pid}/status").read_text()
    resident = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024
    best = min(times)
    yield Line(
        "ready, embedded mongod included", f"{best:.2f} s (best of 3; worst {max(times):.2f} s)", "under 3 s", best < 3
    )
    yield Line("resident memory of a worker", f"{resident:,.0f} MiB", "under 150 MiB", resident < 150)


def validation(bench: Bench) -> Iterator[Line]:
    """Of one Observation of blood pressure, in memory."""
    from fhir_server.validation import Validator

    validator, resource = Validator(), load(observation())
    validator.check(resource)
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(200):
            validator.check(resource)
        best = min(best, (time.perf_counter() - began) / 200)
    yield Line("validation of an Observation", f"{best * 1e6:,.0f} µs", "under 100 µs", best < 100e-6)


def search(bench: Bench) -> Iterator[Line]:
    """A searchset page of 50: stored bytes spliced, nothing parsed."""
    with bench.server() as server:
        lines = b"".join(dump({**load(observation()), "id": f"page-{n}", "status": "final"}) + b"\n" for n in range(60))
        (bench.folder / "page.ndjson").write_bytes(lines)
        call("load", bench.folder / "page.ndjson", "--server", server.base)
        path = "Observation?code=http://loinc.org%7C85354-9&_count=50"
        found = measure(f"{server.base}/{path}", connections=8, seconds=bench.seconds)
        size = len(httpx.get(f"{server.base}/{path}").content)
    yield Line(
        "search, page of 50 Observations, 8 connections",
        f"{found.rate:,.0f}/s, {size / 1000:,.0f} kB a page; p50 {found.p50_ms:.1f} ms",
    )


def content(bench: Bench) -> Iterator[Line]:
    """The whole clinical content on: a check-up of 40 observations, against the same bundle without automation."""
    with bench.server(name="content-off") as server:
        without, _ = check_up.spent(server.base, server.process.pid, people=20, hooks=False)
    with bench.server(automation=True, name="content-on") as server:
        used, derived = check_up.spent(server.base, server.process.pid, people=20, hooks=True)
    yield Line(
        "check-up of 40 observations, all rules: CPU after commit",
        f"{(used - without) * 1000:,.0f} ms, {derived} assessments, tasks, flags (bundle itself: {without * 1000:,.0f} ms)",
        "at most 60 ms",
        used - without <= 0.06,
    )


def timeline(bench: Bench) -> Iterator[Line]:
    """What a chronic-care dashboard asks: this patient's results of this code, newest first."""
    with bench.server("--workers", 2, name="timeline") as server:
        for name, body in list(population.bundles())[:4]:
            httpx.post(server.base, content=body, headers={"Content-Type": "application/fhir+json"}, timeout=60)
            assert name
        url = f"{server.base}/Observation?patient=sample-01&code=http://loinc.org%7C85354-9&_sort=-date&_count=20"
        found = measure(url, connections=64, seconds=bench.seconds)
    yield Line(
        "patient + code, newest 20, 64 connections, 2 workers",
        f"{found.rate:,.0f}/s; p50 {found.p50_ms:.1f} ms, p99 {found.p99_ms:.1f} ms",
        "at least 1,000/s",
        found.rate >= 1000 and not found.failed,
    )


def extraction(bench: Bench) -> Iterator[Line]:
    """What finding the search entries takes of the whole time that one worker spends on a create."""
    resource = {**load(observation()), "id": "x"}
    registry = standard()

    def spent(work: Callable[[], object], rounds: int = 3000) -> float:
        work()
        started = time.perf_counter()
        for _ in range(rounds):
            work()
        return (time.perf_counter() - started) / rounds * 1e6

    entries = spent(lambda: index(registry, resource))
    with bench.server(name="extraction") as server:
        url = f"{server.base}/Observation"
        found = measure(url, connections=32, seconds=bench.seconds, method="POST", body=observation())
    whole = 1e6 / found.rate
    yield Line(
        "search entries, share of a create, 1 worker",
        f"{entries:.0f} µs of {whole:.0f} µs = {entries / whole:.0%}",
        "less than 25 %",
        entries < whole / 4,
    )


def growth(bench: Bench) -> Iterator[Line]:
    """Only when asked for: minutes, and some GB of disk (`--only growth`)."""
    command = [sys.executable, "-m", "tests.benchmarks.scale", "--rounds", "100"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    worst = float(told[-1].split()[2].rstrip(";"))
    yield from (Line(line, "") for line in told[2:-1])
    yield Line(
        "20 queries, p50 at 10,000 and at 1,000,000 Observations", f"worst ratio {worst}", "below 1.3", worst < 1.3
    )


def bulk(bench: Bench) -> Iterator[Line]:
    """$export of everything, which ought to cost time and no memory."""
    exporting.prepare(bench.folder / "export", 100_000)
    with bench.server(name="export") as server:
        found = exporting.export(server)
    working = found.seconds - SETTLE
    yield Line(
        f"$export of {found.resources:,} Observations, {found.megabytes:.0f} MB, 1 worker",
        f"{found.resources / working:,.0f}/s, {found.megabytes / working:.0f} MB/s; "
        f"download {found.megabytes / found.download_seconds:.0f} MB/s; worst read meanwhile {found.read_ms:.0f} ms",
    )
    yield Line(
        "    memory of the server at its peak", f"+{found.grown_mb:.0f} MB", "at most +100 MB", found.grown_mb <= 100
    )


def hooked(bench: Bench) -> Iterator[Line]:
    """The hooks: what a reading costs under a steady load, a burst, a backlog, and in commands of the database."""
    for name, seed in (("the first four rules", True), ("the whole content", False)):
        with bench.server(automation=True, name=f"hooks-steady-{seed}") as server:
            if seed:
                hooks.only_seed(server.base)
            lag = hooks.steady(server.base, 200, max(8, bench.seconds))
        yield Line(
            f"hooks, {name}, 200 pressures/s, 1 worker",
            f"acknowledged in {lag.acknowledged[0]:.0f} ms (p99 {lag.acknowledged[1]:.0f}) at {lag.rate:,.0f}/s",
        )
        yield Line(
            "    from there to the effects",
            f"p50 {lag.effect[0]:.0f} ms, p99 {lag.effect[1]:.0f} ms; "
            f"Task in hand p50 {lag.task[0]:.0f} ms, worst {lag.task[1]:.0f} ms",
            "p50 under 20 ms, p99 under 100 ms",
            lag.effect[0] < 20 and lag.effect[1] < 100,
        )
    with bench.server("--workers", 2, automation=True, name="hooks-burst") as server:
        created, done = hooks.burst_with_effects(server.base, 10_000)
    yield Line(
        "hooks, a burst of 10,000, 2 workers",
        f"acknowledged at {created:,.0f}/s, with all effects at {done:,.0f}/s",
        "effects at half the create rate or more",
        done >= created / 2,
    )
    with bench.server("--workers", 2, name="hooks-backlog") as server:
        created = hooks.burst(server.base, 10_000)
    with bench.server("--workers", 2, automation=True, name="hooks-backlog") as server:
        drained = hooks.drain(server.base, 10_000)
    yield Line(
        "hooks, a backlog of 10,000 at the start, 2 workers",
        f"drained at {drained:,.0f}/s (created without hooks at {created:,.0f}/s)",
    )
    counted = hooks.commands(bench.folder / "hooks-commands")
    yield Line(
        "hooks, database commands, the create included",
        f"{counted['one']:.0f} for one reading; {counted['batch']:.1f} a reading of 64 at once",
    )


def authorization(bench: Bench) -> Iterator[Line]:
    """Read by id with a token, and with a token and the audit, against the same with neither."""
    cost = authorized.reads(bench.folder, rounds=8, seconds=max(2, bench.seconds / 2))
    yield Line("read by id, 32 connections, 1 worker: --open", f"{cost.open:,.0f}/s")
    yield Line("... with a token, without audit", f"{cost.token:.0%} of it; by processor time {cost.token_work:.0%}")
    yield Line(
        "... with a token and audit, as `serve` does",
        f"{cost.audit:.0%} of it ({cost.spread}); by processor time {cost.audit_work:.0%}; all moved {cost.whole:.0%}",
        "at least 85 %",
        cost.audit >= 0.85 and not cost.failed,
    )


def hints(bench: Bench) -> Iterator[Line]:
    """Whether the time of an answer tells what others have: by a patient's token, of 3,000 observations of others."""
    for one in authorized.differences(bench.folder):
        yield Line(
            f"{one.what}: others have it, nobody has it",
            f"{one.foreign_ms:.2f} ms, {one.absent_ms:.2f} ms (quartiles {one.spread_ms:.2f} ms apart)",
            "no more apart than half of that",
            one.is_noise,
        )


ROWS: dict[str, Callable[[Bench], Iterator[Line]]] = {
    "validation": validation,
    "ready": ready,
    "read": read,
    "authorization": authorization,
    "hints": hints,
    "search": search,
    "timeline": timeline,
    "extraction": extraction,
    "create": create,
    "load": loading,
    "content": content,
    "hooks": hooked,
    "export": bulk,
    "growth": growth,
}
ON_REQUEST = frozenset({"growth"})


def main() -> int:
    parser = argparse.ArgumentParser("make bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(ROWS), help="may be repeated")
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement under load (default: 5)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    data = Path(os.environ.get("FHIR_SPEC_DATA", "")) / "synthea"
    print(f"{'what':<56} {'measured':<64} wanted")
    with tempfile.TemporaryDirectory(prefix="fhir-bench-") as folder:
        bench = Bench(args.seconds, Path(folder), data if os.environ.get("FHIR_SPEC_DATA") and data.is_dir() else None)
        for name in args.only or [name for name in ROWS if name not in ON_REQUEST]:
            for line in ROWS[name](bench):
                verdict = "" if line.good is None else " ✓" if line.good else " ✗"
                print(f"{line.what:<56} {line.measured:<64} {line.wanted}{verdict}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

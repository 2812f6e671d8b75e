"""What authorization and audit cost a read by id: three servers side by side, measured in turns."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx

from tests.benchmarks.load import Result, measure
from tests.cli.conftest import Process, call

KINDS = ("open", "token", "audit")
PATIENCE_SECONDS = 300
_WAITING = re.compile(r"^fhir_audit_waiting_bytes ([0-9.e+]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians over the rounds. `token` and `audit`: share of the open server's rate in the same round."""

    open: float  # answers a second
    token: float
    audit: float
    spread: str  # of `audit`
    token_work: (
        float  # the open server's processor time for an answer, as a share of this one's: other work disturbs it less
    )
    audit_work: float
    whole: float  # share of the rate if the moving of its AuditEvents afterwards counts as well
    failed: int


def reads(folder: Path, *, rounds: int, seconds: float) -> Cost:
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    work: dict[str, list[float]] = {kind: [] for kind in KINDS}
    whole: list[float] = []
    failed = 0
    with contextlib.ExitStack() as stack:
        servers = {kind: stack.enter_context(_Server.started(folder / f"auth-{kind}", kind)) for kind in KINDS}
        for server in servers.values():
            failed += server.measured(1).failed
        servers["audit"].drain()
        for number in range(rounds):
            for kind in KINDS[:: 1 if number % 2 else -1]:
                servers[kind].measured(1)  # what it did while the others were measured is over then
                before = servers[kind].worked()
                found = servers[kind].measured(seconds)
                work[kind].append(found.rate * seconds / (servers[kind].worked() - before))
                rates[kind].append(found.rate)
                failed += found.failed
                if kind == "audit":  # what is left to do must not disturb the others
                    whole.append(found.rate * (seconds + 1) / (seconds + 1 + servers[kind].drain()))
    shares = {kind: _shares(rates[kind], rates["open"]) for kind in KINDS}
    return Cost(
        open=median(rates["open"]),
        token=median(shares["token"]),
        audit=median(shares["audit"]),
        spread=f"{min(shares['audit']):.0%} to {max(shares['audit']):.0%}",
        token_work=median(_shares(work["token"], work["open"])),
        audit_work=median(_shares(work["audit"], work["open"])),
        whole=median(_shares(whole, rates["open"])),
        failed=failed,
    )


def _shares(rates: Sequence[float], of: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(rates, of, strict=True)]


class _Server:
    def __init__(self, base: str, token: str, folder: Path, pid: int) -> None:
        self._base = base
        self._pid = pid
        self._folder = folder
        self._token = token
        self._http = httpx.Client(headers={"Authorization": f"Bearer {token}"} if token else {}, timeout=30)
        patient = {"resourceType": "Patient", "id": "sample-01", "active": True}
        self._http.put(f"{base}/Patient/sample-01", json=patient).raise_for_status()

    @classmethod
    @contextlib.contextmanager
    def started(cls, folder: Path, kind: str) -> Iterator[_Server]:
        words = ("serve", "--port", 0, "--no-automation", "--data-dir", folder)
        settings = {"FHIR_RATE_LIMIT": "0", "FHIR_LOG_LEVEL": "error", "FHIR_AUDIT": str(kind == "audit").lower()}
        process = Process(*words, *(("--open",) if kind == "open" else ()), **settings)
        try:
            base = process.base
            token = ""
            if kind != "open":
                made = call("token", "--data-dir", folder, "--public-url", base, "--scope", "user/*.cruds")
                token = made.stdout.strip()
                assert token, made.stderr
            yield cls(base, token, folder, process.process.pid)
        finally:
            process.stop()

    def measured(self, seconds: float) -> Result:
        return measure(f"{self._base}/Patient/sample-01", connections=32, seconds=seconds, token=self._token)

    def worked(self) -> float:
        """Seconds of processor time so far, mongod's apart."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def post(self, bundle: dict[str, Any]) -> None:
        self._http.post(self._base, json=bundle).raise_for_status()

    @cached_property
    def _auditor(self) -> httpx.Client:
        call("user", "add", "auditor", "--data-dir", self._folder, "--role", "administrator")
        return self.of("user/*.rs", "--user", "auditor")

    def of(self, scope: str, *more: str) -> httpx.Client:
        """A client with another token."""
        words = ("--data-dir", self._folder, "--public-url", self._base, "--scope", scope, *more)
        token = call("token", *words).stdout.strip()
        assert token
        return httpx.Client(base_url=self._base + "/", headers={"Authorization": f"Bearer {token}"}, timeout=30)

    def drain(self) -> float:
        """Has all AuditEvents moved, as a search of them does; how long, seconds."""
        began = time.monotonic()
        while waiting := self._waiting():
            assert time.monotonic() - began < PATIENCE_SECONDS, f"{waiting} bytes are still waiting"
            self._auditor.get("AuditEvent?_count=1").raise_for_status()
            if self._waiting() < 2_000:  # the search itself
                break
        return time.monotonic() - began

    def _waiting(self) -> float:
        text = self._http.get(f"{self._base.removesuffix('/fhir')}/metrics").text
        found = _WAITING.search(text)
        assert found, "the server does not say how far its audit is behind"
        return float(found[1])


@dataclass(frozen=True, slots=True)
class Difference:
    """Median times of a request for what others have, and for what nobody has."""

    what: str
    foreign_ms: float
    absent_ms: float
    spread_ms: float  # interquartile range of either

    @property
    def is_noise(self) -> bool:
        return abs(self.foreign_ms - self.absent_ms) < self.spread_ms / 2


QUESTIONS = (
    ("read", "Observation/foreign-7", "Observation/absent-7"),
    ("vread", "Observation/foreign-7/_history/1", "Observation/absent-7/_history/1"),
    ("count", "Observation?code=foreign&_summary=count", "Observation?code=absent&_summary=count"),
    ("search with total", "Observation?code=foreign&_total=accurate", "Observation?code=absent&_total=accurate"),
    ("_has", "Patient?_has:Observation:patient:code=foreign", "Patient?_has:Observation:patient:code=absent"),
)


def differences(folder: Path, *, times: int = 400) -> Iterator[Difference]:
    """Asked by one patient, in turns, of a server with 3,000 observations of others."""
    with _Server.started(folder / "auth-differences", "audit") as server:
        for start in range(0, 3_000, 500):
            entries = [_observation(n) for n in range(start, start + 500)]
            bundle = {"resourceType": "Bundle", "type": "batch", "entry": [*map(_patient, range(20)), *entries]}
            server.post(bundle)
        one = server.of("patient/*.rs", "--patient", "p0")
        for what, *urls in QUESTIONS:
            taken: tuple[list[float], list[float]] = ([], [])
            for number in range(times + 20):
                for which in (0, 1) if number % 2 else (1, 0):
                    began = time.perf_counter()
                    one.get(urls[which])
                    if number >= 20:
                        taken[which].append((time.perf_counter() - began) * 1000)
            quarters = quantiles([*taken[0], *taken[1]])
            yield Difference(what, median(taken[0]), median(taken[1]), quarters[2] - quarters[0])


def _put(resource: dict[str, Any]) -> dict[str, Any]:
    return {
        "resource": resource,
        "request": {"method": "PUT", "url": f"{resource['resourceType']}/{resource['id']}"},
    }


def _patient(number: int) -> dict[str, Any]:
    return _put({"resourceType": "Patient", "id": f"p{number}"})


def _observation(number: int) -> dict[str, Any]:
    code = {"coding": [{"system": "http://loinc.org", "code": "foreign" if number >= 30 else "own"}]}
    subject = {"reference": f"Patient/p{1 + number % 19 if number >= 30 else 0}"}
    id = f"foreign-{number - 30}" if number >= 30 else f"own-{number}"
    return _put({"resourceType": "Observation", "id": id, "status": "final", "code": code, "subject": subject})

"""A small FHIR client for the commands: patient with a busy server, exact about what went wrong."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import msgspec

from fhir_server.errors import Unauthorized, Unavailable

PATIENCE_SECONDS = 300.0  # how long one request is tried again while the server says 429 or 503, or does not answer
LONGEST_WAIT = 30.0
GREETINGS = 4


class Refused(Exception):
    """An answer that will not get better by asking again. `status` is 0 if there was no answer at all."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes


class _Issue(msgspec.Struct):
    severity: str = ""
    code: str = ""
    diagnostics: str = ""
    expression: list[str] = []


class _Outcome(msgspec.Struct):
    issue: list[_Issue] = []


_outcome = msgspec.json.Decoder(_Outcome)


class Client:
    """Requests relative to the base URL. Every request opens its own connection, so that workers share the load evenly."""

    def __init__(self, base: str, http: httpx.AsyncClient) -> None:
        self.base = base.rstrip("/")
        self._http = http

    async def greet(self) -> None:
        """Raises FhirError if nobody answers, or the server wants a token: better said once than for every file."""
        error: Exception | None = None
        for attempt in range(GREETINGS):
            try:
                response = await self._http.get(f"{self.base}/Patient?_summary=count")
            except (httpx.TransportError, ssl.SSLError) as raised:
                error = raised
                await asyncio.sleep(0.2 * 2**attempt)
                continue
            if response.status_code == 401:
                raise Unauthorized(
                    f"{self.base} wants a token: give --token, or FHIR_TOKEN; `fhir-server token` makes one "
                    f"({reason(401, response.content)})"
                )
            return
        raise Unavailable(
            f"Nobody answers at {self.base} ({error}); `fhir-server serve` starts one, --server names another"
        )

    async def get(self, path: str) -> Answer:
        return await self.send("GET", path)

    async def send(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """The answer below 400. Raises Refused with the server's own words; waits where the server asks for it."""
        url = path if "://" in path else f"{self.base}/{path}" if path else self.base
        headers = {"Content-Type": "application/fhir+json"} if body is not None else {}
        waited = 0.0
        attempt = 0
        while True:
            attempt += 1
            try:
                response = await self._http.request(method, url, content=body, headers=headers)
            except (httpx.TransportError, ssl.SSLError) as error:
                if isinstance(error, httpx.ConnectError) and attempt >= 8:
                    raise Refused(0, f"no answer from {self.base}: {error or type(error).__name__}") from None
                status, wait, words = 0, min(LONGEST_WAIT, 0.2 * 2**attempt), f"{type(error).__name__}: {error}"
            else:
                status = response.status_code
                if status < 400:
                    return Answer(status, response.content)
                words = reason(status, response.content)
                if status not in (429, 503) and not (status == 409 and attempt <= 5):
                    raise Refused(status, words)
                wait = _pause(response.headers.get("Retry-After"), attempt)
            if waited > PATIENCE_SECONDS:
                raise Refused(status, f"still refused after {waited:.0f} s: {words}")
            wait *= 0.75 + random.random() / 2
            waited += wait
            await asyncio.sleep(wait)


def _pause(asked: str | None, attempt: int) -> float:
    if asked is not None and asked.strip().isdigit():
        return min(LONGEST_WAIT, max(0.1, float(asked)))
    return float(min(LONGEST_WAIT, 0.1 * 2**attempt))


def reason(status: int, body: bytes) -> str:
    """The first issues of an OperationOutcome, in one line; otherwise the status and the first bytes."""
    try:
        issues = [issue for issue in _outcome.decode(body).issue if issue.severity in ("error", "fatal")]
    except msgspec.MsgspecError:
        issues = []
    if not issues:
        return f"HTTP {status} {body[:200].decode('utf-8', 'replace')}".strip()
    words = "; ".join(
        (issue.diagnostics or issue.code) + (f" ({', '.join(issue.expression)})" if issue.expression else "")
        for issue in issues[:3]
    )
    more = f" (and {len(issues) - 3} more)" if len(issues) > 3 else ""
    return f"HTTP {status}: {words}{more}"


@asynccontextmanager
async def connect(base: str, token: str = "") -> AsyncIterator[Client]:
    """A client of a server that answers. Raises FhirError."""
    headers = {"Accept": "application/fhir+json", "Prefer": "return=minimal"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    timeout = httpx.Timeout(600, connect=10)
    # Not httpx's environment: a proxy for the world is none for this machine. SSL_CERT_FILE counts, by OpenSSL's own reading.
    trust = ssl.create_default_context() if base.startswith("https:") else False
    async with httpx.AsyncClient(
        headers=headers, limits=limits, timeout=timeout, trust_env=False, verify=trust
    ) as http:
        client = Client(base, http)
        await client.greet()
        yield client

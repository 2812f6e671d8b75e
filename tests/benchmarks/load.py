"""Requests as fast as a server answers them: wrk where it is installed, else a small generator of our own.

`python -m tests.benchmarks.load URL` is that generator, in a process of its own so that it shares no interpreter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Result:
    rate: float  # answers a second
    p50_ms: float
    p99_ms: float
    failed: int  # answers that were not 2xx


def measure(
    url: str, *, connections: int, seconds: float, method: str = "GET", body: bytes = b"", token: str = ""
) -> Result:
    """`token` goes along as `Authorization: Bearer`."""
    if shutil.which("wrk"):
        return _wrk(url, connections, seconds, method, body, token)
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        words = [sys.executable, "-m", "tests.benchmarks.load", url, "--method", method, "--body", file.name]
        words += ["--connections", str(connections), "--seconds", str(seconds), "--token", token]
        printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return Result(**json.loads(printed))


def _wrk(url: str, connections: int, seconds: float, method: str, body: bytes, token: str) -> Result:
    words = ["wrk", "--latency", "-t", "1", "-c", str(connections), "-d", f"{max(1, round(seconds))}s"]
    if token:
        words += ["-H", f"Authorization: Bearer {token}"]
    with tempfile.TemporaryDirectory() as folder:
        if method != "GET":
            script = Path(folder) / "request.lua"
            script.write_text(
                f'wrk.method = "{method}"\nwrk.headers["Content-Type"] = "application/fhir+json"\n'
                f'wrk.headers["Prefer"] = "return=minimal"\nwrk.body = {json.dumps(body.decode())}\n'
            )
            words += ["-s", str(script)]
        printed = subprocess.run([*words, url], capture_output=True, text=True, check=True).stdout
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", printed)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", printed)
    return Result(
        float(_found(r"Requests/sec:\s+([\d.]+)", printed)),
        _milliseconds(_found(r"50%\s+([\d.]+\w+)", printed)),
        _milliseconds(_found(r"99%\s+([\d.]+\w+)", printed)),
        (int(failed[1]) if failed else 0) + (sum(map(int, errors.groups())) if errors else 0),
    )


def _found(pattern: str, printed: str) -> str:
    match = re.search(pattern, printed)
    assert match, printed
    return match[1]


def _milliseconds(text: str) -> float:
    for unit, factor in (("us", 0.001), ("ms", 1.0), ("s", 1000.0), ("m", 60000.0)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    raise ValueError(text)


class _Connection(asyncio.Protocol):
    """One keep-alive connection that sends the next request when the answer to the last is complete."""

    def __init__(self, request: bytes, until: float, times: list[float], failed: list[int]) -> None:
        self._request = request
        self._until = until
        self._times = times
        self._failed = failed
        self._buffer = b""
        self._sent = 0.0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        fields = self._buffer[:head].lower()
        length = re.search(rb"\r\ncontent-length: *(\d+)", fields)
        end = head + 4 + (int(length[1]) if length else 0)
        if len(self._buffer) < end:
            return
        now = time.perf_counter()
        self._times.append(now - self._sent)
        if self._buffer[9:10] != b"2":
            self._failed.append(1)
        self._buffer = self._buffer[end:]
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self._failed.append(1)
        if not self.over.done():
            self.over.set_result(None)


async def generate(url: str, connections: int, seconds: float, method: str, body: bytes, token: str = "") -> Result:
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}", "Accept: application/fhir+json"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    if body:
        lines += ["Content-Type: application/fhir+json", "Prefer: return=minimal", f"Content-Length: {len(body)}"]
    request = "\r\n".join([*lines, "", ""]).encode() + body
    times: list[float] = []
    failed: list[int] = []
    began = time.perf_counter()
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(
            lambda: _Connection(request, began + seconds, times, failed), parts.hostname, parts.port
        )
        for _ in range(connections)
    ]
    await asyncio.gather(*(protocol.over for _, protocol in made))
    took = time.perf_counter() - began
    times.sort()
    if not times:
        return Result(0, 0, 0, len(failed))
    return Result(len(times) / took, times[len(times) // 2] * 1000, times[len(times) * 99 // 100] * 1000, len(failed))


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--method", default="GET")
    parser.add_argument("--body", type=Path)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--token", default="")
    args = parser.parse_args()
    body = args.body.read_bytes() if args.body else b""
    found = uvloop.run(generate(args.url, args.connections, args.seconds, args.method, body, args.token))
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()

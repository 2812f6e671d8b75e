"""`fhir-server serve` as a process: ready, refusing, stopping, and surviving its workers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

from tests.cli.conftest import RUNNING, Start, call


def children(pid: int) -> dict[int, str]:
    """Process id → command line of the direct children."""
    found: dict[int, str] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found[int(child)] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def workers(pid: int) -> set[int]:
    return {child for child, command in children(pid).items() if "fhir_server.cli.answering" in command}


def eventually(condition: object, seconds: float = 20) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_ready_means_ready_and_stopping_takes_mongod_along(start: Start, tmp_path: Path) -> None:
    server = start("serve", "--port", 0, "--open", "--data-dir", tmp_path)
    assert httpx.get(f"{server.base}/metadata", timeout=10).json()["resourceType"] == "CapabilityStatement"
    mongods = [child for child, command in children(server.process.pid).items() if "mongod" in command]
    assert len(mongods) == 1
    assert [line for line in server.lines if "ready" in line] == [f"ready on {server.base}"]

    second = call("serve", "--port", 0, "--open", "--data-dir", tmp_path)
    assert second.returncode == 2
    assert f"{tmp_path} is in use by another fhir-server" in second.stderr

    assert server.stop() == 0
    assert not alive(mongods[0])


def test_each_request_is_a_line_of_the_log_without_ids_and_search_values(start: Start, base: str) -> None:
    """`base` has two workers, which inherit stderr; each answer's request id finds its line."""
    server = next(process for process in RUNNING if process.base == base)
    answers = [
        httpx.get(f"{base}/Patient/secret-id"),
        httpx.get(f"{base}/Patient", params={"name": "secret-name"}),
        httpx.post(f"{base}/Patient/_search", data={"name": "secret-name"}),
        httpx.get(f"{base}/no/such/secret/place/at/all"),
        httpx.put(f"{base}/Patient/secret-id", json={"resourceType": "Patient", "id": "another"}),
    ]
    for answer, shape in zip(answers, ["{}/{}", "{}", "{}/_search", "other", "{}/{}"], strict=True):
        request = answer.headers["x-request-id"]
        eventually(lambda wanted=request: any(f'"request":"{wanted}"' in line for line in server.lines))
        (line,) = (json.loads(line) for line in server.lines if f'"request":"{request}"' in line)
        assert (line["level"], line["logger"]) == ("info", "fhir_server.access")
        assert (line["method"], line["route"]) == (answer.request.method, shape)
        assert line["status"] == answer.status_code
        assert line["ms"] >= 0
    assert not [line for line in server.lines if "secret" in line]


def test_a_head_without_end_is_cut_off(base: str) -> None:
    url = httpx.URL(base)
    with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
        connection.sendall(b"GET /fhir/Patient/x HTTP/1.1\r\nHost: h\r\nX: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                connection.sendall(b"a" * 65_536)
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 400") or not answer
    assert httpx.get(f"{base}/metadata").status_code == 200


def test_who_hangs_up_is_no_failure_of_ours(start: Start, base: str) -> None:
    server = next(process for process in RUNNING if process.base == base)
    url = httpx.URL(base)
    with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
        head = b"POST /fhir/Patient HTTP/1.1\r\nHost: h\r\nX-Request-Id: hung-up\r\nContent-Type: application/fhir+json\r\n"
        connection.sendall(head + b"Content-Length: 100\r\n\r\n{")
    eventually(lambda: any('"request":"hung-up"' in line for line in server.lines))
    assert '"status":499' in next(line for line in server.lines if '"request":"hung-up"' in line)


def test_a_log_level_that_is_none_is_refused(tmp_path: Path) -> None:
    refused = call("serve", "--log-level", "loud", "--data-dir", tmp_path)
    assert refused.returncode == 2
    assert "--log-level loud: must be one of debug, info, warning, error" in refused.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_open_is_refused_beyond_this_machine(host: str, tmp_path: Path) -> None:
    refused = call("serve", "--open", "--host", host, "--data-dir", tmp_path)
    assert refused.returncode == 2
    assert "without authorization" in refused.stderr


@pytest.mark.parametrize("words", [[], ["--workers", "2"]], ids=["alone", "workers"])
def test_a_port_in_use_is_said_before_anything_starts(words: list[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = call("serve", "--open", "--port", port, "--data-dir", tmp_path / "none", *words)
    assert refused.returncode == 2
    assert f"Cannot listen on 127.0.0.1:{port}: Address already in use; choose another --port" in refused.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "99999"], "--port 99999: must be between 0 and 65535"),
        (["--host", "nowhere.invalid"], "--host nowhere.invalid: no address"),
        (["--host", "192.0.2.1"], "Cannot assign requested address; choose another --host"),
        (["--base-path", "fhir/"], "--base-path fhir/: must be a path such as /fhir"),
        (["--public-url", "example.org/fhir"], "--public-url example.org/fhir: must be an http(s) URL"),
        (["--issuer", "keycloak"], "--issuer keycloak: must be an http(s) URL"),
        (["--issuer-reach", "everybody"], "--issuer-reach everybody: must be care-team or all"),
        (["--auth-key", "secret"], "FHIR_AUTH_KEY must be 64 hexadecimal digits"),
        (["--mongo-url", "http://127.0.0.1"], "No database at --mongo-url: Invalid URI scheme"),
        (["--mongo-url", "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=100"], "No database at --mongo-url: 127.0.0.1:1"),
        (["--data-dir", __file__], f"The data directory {__file__} cannot be used: File exists"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named_before_anything_starts(words: list[str], told: str, tmp_path: Path) -> None:
    refused = call("serve", "--port", "0", "--data-dir", tmp_path / "none", *words)
    assert refused.returncode == 2, refused.stderr
    assert told in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / "none").exists()


def test_a_command_names_a_database_that_is_not_there(tmp_path: Path) -> None:
    nowhere = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=100"
    for words in (["token", "--scope", "system/*.rs"], ["user", "list"], ["worker"]):
        refused = call(*words, "--mongo-url", nowhere, "--data-dir", tmp_path)
        assert refused.returncode == 2, refused.stderr
        assert "No database at --mongo-url: 127.0.0.1:1: [Errno 111] Connect call failed" in refused.stderr or (
            "No database at --mongo-url: 127.0.0.1:1: [Errno 111] Connection refused" in refused.stderr
        )


def test_a_bad_value_is_named() -> None:
    refused = call("serve", FHIR_PORT="many")
    assert refused.returncode == 2
    assert "FHIR_PORT='many' is not a valid value" in refused.stderr


def test_a_killed_worker_is_replaced(start: Start, mongo_url: str) -> None:
    words = ["serve", "--port", 0, "--open", "--workers", 2, "--no-automation", "--database", f"killed{os.getpid()}"]
    server = start(*words, FHIR_MONGO_URL=mongo_url)
    base = server.base
    before = workers(server.process.pid)
    assert len(before) == 2
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: len(workers(server.process.pid) - before) == 1)
    assert "starting another" in server.line(f"fhir-server: worker {victim} ended")
    for _ in range(20):
        assert httpx.get(f"{base}/metadata", timeout=20).status_code == 200
    assert server.stop(signal.SIGINT) == 0
    assert not any(alive(pid) for pid in before)


def test_workers_end_when_their_parent_is_killed(start: Start, tmp_path: Path) -> None:
    server = start("serve", "--port", 0, "--open", "--workers", 2, "--no-automation", "--data-dir", tmp_path)
    assert server.base
    family = children(server.process.pid)
    assert len(family) == 3
    server.stop(signal.SIGKILL)
    eventually(lambda: not any(alive(pid) for pid in family))


def test_a_worker_apart_does_what_the_hooks_want(start: Start, mongo_url: str) -> None:
    """A body mass index becomes tags of the patient, though the server itself runs no automation."""
    place = {"FHIR_MONGO_URL": mongo_url, "FHIR_DATABASE": f"apart{os.getpid()}"}
    base = start("serve", "--port", 0, "--open", "--no-automation", **place).base
    worker = start("worker", **place)
    worker.line("working on ")
    patient = {"resourceType": "Patient", "id": "p", "birthDate": "1970-01-01", "gender": "female"}
    assert httpx.put(f"{base}/Patient/p", json=patient, timeout=20).status_code == 201
    observation = {
        "resourceType": "Observation",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "39156-5"}]},
        "subject": {"reference": "Patient/p"},
        "effectiveDateTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "valueQuantity": {"value": 31.2, "system": "http://unitsofmeasure.org", "code": "kg/m2"},
    }
    assert httpx.post(f"{base}/Observation", json=observation, timeout=20).status_code == 201
    eventually(lambda: "tag" in httpx.get(f"{base}/Patient/p", timeout=20).json()["meta"])
    assert worker.stop() == 0

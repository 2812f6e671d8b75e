"""The database for a command beside a server: the one named, the embedded one that runs, or one started for the while."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from pymongo import AsyncMongoClient, MongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from fhir_server.errors import FhirError, Unavailable
from fhir_server.store.embedded import USER, EmbeddedMongo, _is_mongod_on

START_SECONDS = 20.0


def running(data_dir: Path) -> str:
    """The URL of the embedded mongod that a server runs on this directory; "" if none does."""
    try:
        pid = int((data_dir / "mongo" / "mongod.lock").read_text().strip() or 0)
        if not pid or not _is_mongod_on(pid, data_dir / "mongo"):
            return ""
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        port = int(words[words.index("--port") + 1])
        password = (data_dir / "mongo.password").read_text()
    except (OSError, ValueError, IndexError):
        return ""
    return f"mongodb://{USER}:{quote(password)}@127.0.0.1:{port}/?directConnection=true&authSource=admin"


def reach(mongo_url: str) -> None:
    """Blocking, as long as the URL's serverSelectionTimeoutMS says (30 s). Raises FhirError with what is wrong with it."""
    try:
        with MongoClient[dict[str, object]](mongo_url, appname="fhir-server-cli") as client:
            hello = client.admin.command("hello")
    except (PyMongoError, ValueError) as error:
        reason = str(error).partition(", Timeout:")[0].partition(" (configured timeouts:")[0]
        raise FhirError(f"No database at --mongo-url: {reason}") from None
    if "setName" not in hello and hello.get("msg") != "isdbgrid":
        raise FhirError(
            "--mongo-url is a single mongod: writes need transactions, which need a replica set (--replSet)"
        )


@contextmanager
def database_url(mongo_url: str, data_dir: Path, *, cache_mb: int = 256) -> Iterator[str]:
    """Blocking. Raises Unavailable if the directory is taken, FhirError if the database cannot be found."""
    if mongo_url:
        reach(mongo_url)
        yield mongo_url
        return
    if running(data_dir) and (url := _answering(data_dir)):
        yield url
        return
    mongo = EmbeddedMongo(data_dir, cache_mb=cache_mb)
    try:
        try:
            url = mongo.start()
        except Unavailable:  # a server that has just been started holds the directory before its database answers
            url = _answering(data_dir)
            if not url:
                raise
        yield url
    finally:
        mongo.stop()


def _answering(data_dir: Path) -> str:
    """The URL of the server's mongod on this directory once it takes writes; "" if none does within START_SECONDS."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if url := running(data_dir):
            with (
                contextlib.suppress(PyMongoError),
                MongoClient[dict[str, object]](url, serverSelectionTimeoutMS=500) as client,
            ):
                if client.admin.command("hello").get("isWritablePrimary"):
                    client.admin.command("ping")  # with its user, who may not be there yet
                    return url
        time.sleep(0.2)
    return ""


def connect(url: str, database: str) -> AsyncDatabase[dict[str, object]]:
    """Close its `client` at the end."""
    client: AsyncMongoClient[dict[str, object]] = AsyncMongoClient(url, appname="fhir-server-cli")
    return client.get_database(database, write_concern=WriteConcern(w="majority", j=True))

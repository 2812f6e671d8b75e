"""From the kick-off to the last byte, and what may come between: updates, cancellation, expiry, a worker that dies."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from fhir_server.interactions.context import Server
from fhir_server.operations.bulk import files, worker
from fhir_server.operations.bulk.worker import ROOM, Exporter
from fhir_server.store.exports import GRACE_MS, Exports
from tests.export.asking import export, finished, keys, kick_off, read

pytestmark = pytest.mark.anyio

COUNT = 240


@pytest.fixture(scope="module")
async def filled(client: httpx.AsyncClient) -> httpx.AsyncClient:
    entries = [
        {"resource": one, "request": {"method": "PUT", "url": f"{one['resourceType']}/{one['id']}"}}
        for number in range(COUNT)
        for one in (observation(number), *([{"resourceType": "Patient", "id": f"p{number}"}] if number < 40 else []))
    ]
    answer = await client.post("", json={"resourceType": "Bundle", "type": "transaction", "entry": entries})
    assert answer.status_code == 200, answer.text
    return client


def observation(number: int, note: str = "x" * 500) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": f"o{number:05}",
        "status": "final",
        "code": {"text": f"{number}"},
        "note": [{"text": note}],
        "subject": {"reference": f"Patient/p{number % 40}"},
    }


@pytest.fixture
def exports(server: Server) -> Exports:
    return Exports(server.store.database)  # type: ignore[attr-defined]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_LINES", 50)
    monkeypatch.setattr(files, "PIECE", 4_000)


EVERY = sorted(
    [f"Observation/o{number:05}" for number in range(COUNT)] + [f"Patient/p{number}" for number in range(40)]
)


@pytest.mark.parametrize("_", range(2))
async def test_every_resource_comes_once_and_the_second_time_again(
    filled: httpx.AsyncClient, small: None, _: int
) -> None:
    manifest, resources = await export(filled, "$export")
    assert keys(resources) == EVERY
    assert sum(item["type"] == "Observation" for item in manifest["output"]) == 5, "240 lines in files of 50"
    assert manifest["requiresAccessToken"] is False
    assert manifest["request"] == "http://test/fhir/$export"
    found = {one["id"]: one for one in resources}
    assert found["o00007"] == (await filled.get("Observation/o00007")).json()


async def test_files_are_bounded_by_bytes(filled: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 30_000)
    monkeypatch.setattr(files, "PIECE", 10_000)
    manifest, resources = await export(filled, "Patient/$export?_type=Observation")
    assert len(manifest["output"]) > 4
    assert len(resources) == COUNT


async def test_a_writer_holds_no_more_than_a_piece(
    exports: Exports, monkeypatch: pytest.MonkeyPatch, anyio_backend: Any
) -> None:
    """Lines of 100 kB: however many they are, what waits to be packed is a piece and at most one line more."""
    monkeypatch.setattr(files, "PIECE", 300_000)
    writer = files.Writer(exports, "job", "file", "Binary", "output")
    most = 0
    for number in range(60):
        await writer.add(b"%d" % number + b"x" * 100_000)
        most = max(most, writer._gathered)
    file = await writer.close()
    assert most < 400_000
    assert (file.count, file.pieces > 10, file.packed < file.size) == (60, True, True)
    packed = b"".join([part async for part in files.packed(exports, "job", file)])
    assert len(packed) == file.packed
    assert len(gzip.decompress(packed).splitlines()) == 60
    assert len(gzip.decompress(packed)) == file.size
    await exports.discard("job", ["file"])


async def test_a_file_as_it_is_and_unpacked(filled: httpx.AsyncClient) -> None:
    location = (await kick_off(filled, "$export?_type=Observation")).headers["content-location"]
    url = (await finished(filled, location))["output"][0]["url"]
    plain = await filled.get(url, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert int(plain.headers["content-length"]) == len(plain.content)
    async with filled.stream("GET", url, headers={"Accept-Encoding": "gzip"}) as zipped:
        assert zipped.headers["content-encoding"] == "gzip"
        raw = b"".join([part async for part in zipped.aiter_raw()])
    assert len(raw) == int(zipped.headers["content-length"]) < len(plain.content) / 4
    assert gzip.decompress(raw) == plain.content
    head = await filled.head(url)
    assert (head.status_code, head.content) == (200, b"")
    bundle = {"resourceType": "Bundle", "type": "batch"}
    entry = {"request": {"method": "GET", "url": url.removeprefix("http://test/fhir/")}}
    answer = await filled.post("", json={**bundle, "entry": [entry]})
    assert answer.json()["entry"][0]["response"]["status"].startswith("501")
    assert (await filled.get(url + "x")).status_code == 404
    assert (await filled.put(location, json={})).status_code == 405
    await filled.delete(location)


async def test_since_has_what_changed_and_what_was_deleted(filled: httpx.AsyncClient) -> None:
    for id in ("later", "doomed"):
        await filled.put(f"Basic/{id}", json={"resourceType": "Basic", "id": id, "code": {"text": "a"}})
    manifest, _ = await export(filled, "$export?_type=Basic")
    again, nothing = await export(filled, f"$export?_since={manifest['transactionTime']}")
    assert (again["output"], again["deleted"], nothing) == ([], [], [])
    await filled.put("Basic/later", json={"resourceType": "Basic", "id": "later", "code": {"text": "b"}})
    await filled.delete("Basic/doomed")
    answer = await kick_off(filled, f"$export?_since={manifest['transactionTime']}")
    location = answer.headers["content-location"]
    again = await finished(filled, location)
    assert keys(await read(filled, again)) == ["Basic/later"]
    (bundle,) = await read(filled, again, kind="deleted")
    assert bundle["type"] == "transaction"
    assert bundle["entry"] == [{"request": {"method": "DELETE", "url": "Basic/doomed"}}]
    await filled.delete(location)
    await filled.delete("Basic/later")


@pytest.mark.parametrize("url", ["$export?_type=Observation", "Group/everybody/$export?_type=Observation"])
async def test_what_is_updated_meanwhile_is_not_missing(filled: httpx.AsyncClient, small: None, url: str) -> None:
    """An update replaces the document and moves it in every index; nothing that was there before may fall through."""
    members = [{"entity": {"reference": f"Patient/p{number}"}} for number in range(40)]
    group = {"resourceType": "Group", "id": "everybody", "type": "person", "actual": True, "member": members}
    await filled.put("Group/everybody", json=group)
    location = (await kick_off(filled, url)).headers["content-location"]
    done = asyncio.create_task(finished(filled, location))
    number = 0
    while not done.done():
        changed = observation(number * 7 % COUNT, f"changed {time.monotonic_ns()}")
        assert (await filled.put(f"Observation/{changed['id']}", json=changed)).status_code == 200
        number += 1
    found = keys(await read(filled, await done))
    assert set(found) == {key for key in EVERY if key.startswith("Observation")}
    await filled.delete(location)
    await filled.delete("Group/everybody")


async def test_cancelled_while_it_runs(
    filled: httpx.AsyncClient, small: None, exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def slow(self: Exports, *piece: Any) -> None:
        await write(self, *piece)
        begun.set()
        await asyncio.sleep(0.05)

    write = Exports.put_piece
    monkeypatch.setattr(Exports, "put_piece", slow)
    location = (await kick_off(filled, "$export")).headers["content-location"]
    await begun.wait()
    assert (await filled.delete(location)).status_code == 202
    assert (await filled.get(location)).status_code == 404
    assert (await filled.delete(location)).status_code == 404
    monkeypatch.setattr(Exports, "put_piece", write)
    for _ in range(200):
        left = await exports._pieces.count_documents({})
        if not left:
            break
        await asyncio.sleep(0.02)
    assert left == 0, "nothing of it stays"
    assert keys((await export(filled, "$export"))[1]) == EVERY, "and the worker goes on with others"


async def test_expired(filled: httpx.AsyncClient, server: Server, exports: Exports) -> None:
    location = (await kick_off(filled, "$export?_type=Patient")).headers["content-location"]
    url = (await finished(filled, location))["output"][0]["url"]
    expires = (await filled.get(location)).headers["expires"]
    assert expires.endswith(" GMT")
    assert (await filled.get(url)).status_code == 200
    exporter: Exporter = server.rooms[ROOM]
    await exports.sweep(exporter.now())
    await exports._jobs.update_one({"_id": location.rsplit("/", 1)[1]}, {"$set": {"x": exporter.now() - 1}})
    assert (await filled.get(location)).status_code == 404
    assert (await filled.get(url)).status_code == 404
    assert await exports.sweep(exporter.now()) == 0, "whoever began to read may end"
    assert await exports.sweep(exporter.now() + GRACE_MS) == 1
    assert await exports._pieces.count_documents({}) == await exports._jobs.count_documents({}) == 0


async def test_no_more_than_so_many_at_a_time(filled: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def waits(self: Exporter, job: Any) -> None:
        await asyncio.sleep(0.01)
        await self.exports.release(job.id, self._holder, 0)

    with monkeypatch.context() as patch:
        patch.setattr(Exporter, "_work", waits)
        answers = await asyncio.gather(*(kick_off(filled, "$export") for _ in range(6)))
        admitted = [answer for answer in answers if answer.status_code == 202]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(admitted) <= 2
        assert len(admitted) + len(refused) == 6
        assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    for answer in admitted:
        await finished(filled, answer.headers["content-location"])
        await filled.delete(answer.headers["content-location"])


@pytest.fixture
async def no_worker(server: Server, filled: httpx.AsyncClient) -> AsyncIterator[Exporter]:
    """The server answers, and another process would have to do the work."""
    exporter: Exporter = server.rooms[ROOM]
    await exporter.close()
    yield exporter
    await exporter.open()


async def test_another_goes_on_after_the_last_file(
    filled: httpx.AsyncClient, small: None, no_worker: Exporter, server: Server, exports: Exports,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The first worker writes down a file and part of another, and is heard of no more until its lease has run out."""
    monkeypatch.setattr(worker, "LEASE", 0.3)
    location = (await kick_off(filled, "$export?_type=Patient,Observation")).headers["content-location"]
    first, second = Exporter(server, exports), Exporter(server, exports)
    stuck = asyncio.Event()
    written = 0

    async def stops(self: Exports, id: str, file: str, number: int, data: bytes) -> None:
        nonlocal written
        written += 1
        if written > 30:
            stuck.set()
            await asyncio.Event().wait()
        await put(self, id, file, number, data)

    async def dead(self: Exports, id: str, *_: Any, **__: Any) -> None:
        return None

    put = Exports.put_piece
    with monkeypatch.context() as patch:
        patch.setattr(Exports, "put_piece", stops)
        await first.open()
        await stuck.wait()
        patch.setattr(Exports, "release", dead)
        patch.setattr(Exports, "discard", dead)
        await first.close()
    before = await exports._jobs.find_one({"_id": location.rsplit("/", 1)[1]})
    assert before is not None
    kept = [file["name"] for file in before["fs"]]
    assert len(kept) > 1
    assert before["po"]["after"], "in the middle of a type"
    await second.open()
    manifest = await finished(filled, location)
    resources = await read(filled, manifest)
    assert keys(resources) == EVERY, "each once"
    names = [item["url"].rsplit("/", 1)[1].removesuffix(".ndjson") for item in manifest["output"]]
    assert names[: len(kept)] == kept, "what was written down was not written again"
    assert all("-2-" in name for name in names[len(kept) :])
    assert await exports.save(before["_id"], first._holder, {}, [], moved=True) is False, "the first is told so"
    await filled.delete(location)
    await second.close()
    assert await exports._pieces.count_documents({}) == 0


async def test_what_fails_again_and_again_is_given_up(
    filled: httpx.AsyncClient, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "AGAIN", 0.0)
        patch.setattr(Exports, "put_piece", broken)
        location = (await kick_off(filled, "$export?_type=Patient")).headers["content-location"]
        for _ in range(400):
            answer = await filled.get(location)
            if answer.status_code != 202:
                break
            await asyncio.sleep(0.02)
    assert answer.status_code == 500
    assert "failed repeatedly" in answer.json()["issue"][0]["diagnostics"]
    assert "the disk is full" in caplog.text
    await filled.delete(location)


async def test_a_filter_that_leads_too_far_is_said_in_the_error_file(
    filled: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fhir_server.search import execute

    monkeypatch.setattr(execute, "MOST_REFERENCES", 3)
    url = "$export?_type=Patient,Observation&_typeFilter=Observation%3Fsubject:Patient.active:missing%3Dtrue"
    location = (await kick_off(filled, url)).headers["content-location"]
    manifest = await finished(filled, location)
    assert [item["type"] for item in manifest["output"]] == ["Patient"]
    (outcome,) = await read(filled, manifest, kind="error")
    assert outcome["issue"][0]["code"] == "too-costly"
    await filled.delete(location)

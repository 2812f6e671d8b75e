"""Every access leaves an AuditEvent, in a chain that shows what was taken away. https://profiles.ihe.net/ITI/BALP/"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from pymongo import AsyncMongoClient

from fhir_server.auth.audit import HEAR_SECONDS, Audit, timed_id
from fhir_server.auth.audit_event import Access, audit_event
from fhir_server.auth.chain import chain_key, expected_head, remove_old, seal, verify
from fhir_server.auth.journal import SEGMENT, Journal
from fhir_server.errors import Unavailable
from fhir_server.model.resource import load
from fhir_server.search.registry import standard
from fhir_server.store.audit import AuditLog
from fhir_server.store.credentials import User
from tests.auth.conftest import PASSWORD, REDIRECT, Browser, Secured, Site

pytestmark = pytest.mark.anyio

SECRET = b"k" * 32


@pytest.fixture
async def log(mongo_url: str, anyio_backend: Any) -> AsyncIterator[AuditLog]:
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongo_url)
    name = f"audit{time.monotonic_ns()}"

    async def ensure(resource_type: str) -> None:
        """No search is made of these events."""

    yield AuditLog(client[name], ensure)
    await client.drop_database(name)
    await client.close()


def accesses(count: int, start: int = 0) -> list[Access]:
    return [
        Access(when=1_767_323_045_000 + n, interaction="read", status=200, id=str(n), resource_type="Patient")
        for n in range(start, start + count)
    ]


def left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def filled(log: AuditLog, folder: Path, count: int = 20) -> None:
    audit = Audit(log, standard(), folder, SECRET, now=time.time)
    await audit.open()
    audit.record(*accesses(count))
    await audit.close()


async def test_a_whole_chain_verifies(log: AuditLog, tmp_path: Path) -> None:
    await filled(log, tmp_path)
    verdict = await verify(log, chain_key(SECRET))
    assert (verdict.checked, verdict.problem) == (20, "")
    assert left(tmp_path) == [], "what is in the database is not kept in the journal"
    events = [link async for link in log.links(0)]
    assert [link.number for link in events] == list(range(1, 21))
    assert b'"reference":"Patient/7"' in (events[7].raw or b""), "in the order in which they happened"


async def test_tampering_shows(log: AuditLog, tmp_path: Path) -> None:
    await filled(log, tmp_path)
    key = chain_key(SECRET)
    noted = await log.head()
    links = [link async for link in log.links(0)]
    events, chain, state = log._events, log._chain, log._state

    async def problem(expected: tuple[int, str] | None = None) -> str:
        return (await verify(log, key, expected)).problem

    victim = await events.find_one({"_id": links[4].id})
    assert victim is not None
    await events.delete_one({"_id": victim["_id"]})
    assert "event 5" in await problem() and "removed" in await problem()
    await events.insert_one({**victim, "raw": victim["raw"].replace(b"Patient/4", b"Patient/9")})
    assert "changed" in await problem()
    await events.replace_one({"_id": victim["_id"]}, victim)
    assert await problem() == ""
    for id in ("0-forged", "f-forged"):
        await events.insert_one({**victim, "_id": id})
    assert "2 events were not written by this server (AuditEvent/0-forged)" in await problem()
    await events.delete_many({"_id": {"$in": ["0-forged", "f-forged"]}})
    assert await problem() == ""
    first, second = links[7:9]
    for one, other in ((first, second), (second, first)):
        await chain.update_one({"_id": one.number}, {"$set": {"e": other.id}})
    assert "event 8" in await problem(), "two that changed places"
    for one in (first, second):
        await chain.update_one({"_id": one.number}, {"$set": {"e": one.id}})
    assert await problem() == ""
    row = await chain.find_one({"_id": 5})
    assert row is not None
    await chain.delete_one({"_id": 5})
    assert "5 to 5" in await problem()
    await chain.insert_one(row)
    await chain.update_one({"_id": 6}, {"$set": {"h": "0" * 64}})
    assert "event 6" in await problem()
    await chain.update_one({"_id": 6}, {"$set": {"h": links[5].seal}})
    await chain.delete_many({"_id": {"$gt": 15}})
    assert "ends at 15" in await problem()
    await state.update_one({"_id": "head"}, {"$set": {"n": 15, "h": links[14].seal}})
    assert "5 events were not written" in await problem(), "cut off together with the head, the events left"
    await events.delete_many({"_id": {"$in": [link.id for link in links[15:]]}})
    assert await problem() == "", "cut off together with the head: not seen …"
    assert "cut off" in await problem((noted.number, noted.seal)), "… but against a head that was noted"
    await chain.delete_many({"_id": {"$lte": 3}})
    await state.insert_one({"_id": "start", "n": 3, "h": links[2].seal, "m": "0" * 64})
    assert "not set by this server" in await problem()


def test_a_seal_is_over_the_event_its_place_and_all_before_it() -> None:
    """What is left out of it could be exchanged: with an event of another copy, of another number, of another server."""
    key, raw = chain_key(SECRET), b'{"resourceType":"AuditEvent"}'
    one = seal(key, "before", 1, raw)
    others = [seal(key, "other", 1, raw), seal(key, "before", 2, raw), seal(key, "before", 1, raw + b" ")]
    others += [seal(chain_key(b"o" * 32), "before", 1, raw), seal(key, "", 1, raw), seal(key, "before\n1", 1, raw)]
    assert one not in others
    assert len(set(others)) == len(others)
    assert one == seal(key, "before", 1, raw)


async def test_retention_takes_the_oldest_and_the_chain_still_verifies(log: AuditLog, tmp_path: Path) -> None:
    await filled(log, tmp_path, 12)
    key = chain_key(SECRET)
    await log._events.update_many({}, {"$set": {"t": 1000}})
    await filled(log, tmp_path, 5)
    assert await remove_old(log, key, 2000) == 12
    verdict = await verify(log, key)
    assert (verdict.checked, verdict.problem, verdict.head.number) == (5, "", 17)
    assert await log._events.count_documents({}) == 5


async def test_two_processes_continue_one_chain(log: AuditLog, tmp_path: Path) -> None:
    first = Audit(log, standard(), tmp_path, SECRET, now=time.time)
    second = Audit(log, standard(), tmp_path, SECRET, now=time.time)
    await asyncio.gather(first.open(), second.open())
    for n in range(200):
        (first if n % 2 else second).record(*accesses(3, 3 * n))
        if n % 40 == 0:
            await asyncio.sleep(0.05)
    await asyncio.gather(first.close(), second.close())
    verdict = await verify(log, chain_key(SECRET))
    assert (verdict.checked, verdict.problem) == (600, "")


CHILD = """
import sys
from pathlib import Path
from fhir_server.auth.audit_event import Access
from fhir_server.auth.journal import SEGMENT, Journal
journal = Journal.create(Path(sys.argv[1]))
n = 0
while True:
    journal.append(Access(when=n, interaction="read", status=200, id=str(n), resource_type="Patient"))
    print(n, flush=True)  # "the answer"
    n += 1
"""


@pytest.mark.faults
async def test_what_was_answered_before_a_kill_is_in_the_audit(log: AuditLog, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: ASYNC220 - read blocking on purpose
    assert child.stdout is not None
    answered = -1
    while answered < 2000:
        answered = int(child.stdout.readline())
    os.kill(child.pid, signal.SIGKILL)
    rest = child.stdout.read().split()
    child.stdout.close()
    child.wait()
    answered = int(rest[-2]) if len(rest) > 1 else answered  # the last line may be torn
    audit = Audit(log, standard(), tmp_path, SECRET, now=time.time)
    await audit.open()
    await audit.close()
    verdict = await verify(log, chain_key(SECRET))
    assert verdict.problem == ""
    assert verdict.checked > answered
    ids = [int(load(link.raw or b"")["entity"][0]["what"]["reference"].split("/")[1]) async for link in log.links(0)]
    assert ids == list(range(verdict.checked)), "each once, in order"


async def test_a_torn_line_is_skipped(log: AuditLog, tmp_path: Path) -> None:
    journal = Journal.create(tmp_path)
    journal.append(*accesses(2))
    assert journal._map is not None
    journal._map[journal.end : journal.end + 11] = b'[1,"read",2'
    journal.close()
    audit = Audit(log, standard(), tmp_path, SECRET, now=time.time)
    await audit.open()
    await audit.close()
    assert (await verify(log, chain_key(SECRET))).checked == 2


async def test_nothing_is_too_large_to_be_moved(log: AuditLog, tmp_path: Path) -> None:
    """No document of MongoDB has more than 16 MB; what is refused there would hold up all that comes after it."""
    journal = Journal.create(tmp_path)
    members = tuple(f"member-of-a-large-group-{n}" for n in range(100_000))
    journal.append(*accesses(1), Access(1, "search-type", 401, query="Patient/_search?name=" + "x" * 20_000_000))
    journal.append(Access(2, "read", 200, resource_type="Group", id="g", patients=members), *accesses(1, 1))
    journal.close()
    audit = Audit(log, standard(), tmp_path, SECRET, now=time.time)
    await audit.open()
    assert await audit.flush(60)
    await audit.close()
    verdict = await verify(log, chain_key(SECRET))
    assert (verdict.checked, verdict.problem) == (4, "")


async def test_without_room_for_the_audit_there_is_no_answer(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, journal._descriptor)
    os.close(full)
    with pytest.raises(Unavailable):
        journal.append(*accesses(1))
    journal.close()


def test_a_journal_grows_over_its_segments(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path)
    wide = Access(1, "search-type", 200, query="x" * (SEGMENT + 10_000))
    sent: list[Access] = []
    for n in range(3):
        for one in (*accesses(7_000, 7_000 * n), wide):
            journal.append(one)
            sent.append(one)
    journal._map = None  # the process ends
    os.close(journal._descriptor)
    (again,) = Journal.orphans(tmp_path)
    found: list[Access] = []
    position = 0
    while position < again.end:
        some, position = again.read(position, 250)
        found += some
    again.remove()
    assert found == sent


async def test_many_accesses_wait_until_it_is_quiet_and_a_flush_does_not(log: AuditLog, tmp_path: Path) -> None:
    audit = Audit(log, standard(), tmp_path, SECRET, now=time.time)
    await audit.open()
    audit._busy = 1.0
    audit.record(*accesses(3_000))
    assert audit.waiting > 0
    assert await audit.flush(60)
    assert audit.waiting == 0
    audit.record(*accesses(3_000))
    assert not await audit.flush(0.0), "as long as one may wait, and no longer"
    for _ in range(1_800):  # a busy machine is a busy worker
        if not audit.waiting:
            break
        await asyncio.sleep(0.1)
    assert audit.waiting == 0, "nobody asked, and nothing else was to do"
    await audit.close()
    assert (await verify(log, chain_key(SECRET))).checked == 6_000


async def test_a_search_brings_in_what_every_process_answered(log: AuditLog, tmp_path: Path) -> None:
    """Busy ones, too; one that is dead is waited for once, and not for long."""
    audits = [Audit(log, standard(), tmp_path / str(n), SECRET, now=time.time) for n in range(3)]
    for audit in audits:
        await audit.open()
        audit._busy = 1.0
        audit.record(*accesses(700))
    assert await audits[0].flush_everywhere(30)
    assert [audit.waiting for audit in audits] == [0, 0, 0]
    dead = audits.pop()
    dead.record(*accesses(5))
    assert dead._task is not None
    dead._task.cancel()
    began = time.monotonic()
    audits[1].record(*accesses(300))
    assert await audits[0].flush_everywhere(30), "all that are alive"
    assert audits[1].waiting == 0
    assert time.monotonic() - began > HEAR_SECONDS
    assert dead._journal.name in audits[0]._silent
    audits[1].record(*accesses(300))
    assert await audits[0].flush_everywhere(30)
    assert audits[1].waiting == 0
    dead._journal.close()
    audits.append(Audit(log, standard(), tmp_path / "2", SECRET, now=time.time))
    await audits[-1].open()  # adopts it
    assert await audits[0].flush_everywhere(30)
    for audit in audits:
        await audit.close()
    assert (await verify(log, chain_key(SECRET))).checked == 3 * 700 + 600 + 5
    assert [left(tmp_path / str(n)) for n in range(3)] == [[], [], []]
    assert await log._state.count_documents({"o": {"$exists": True}}) == 0


async def test_neither_the_start_nor_the_end_waits_for_much(
    log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = Audit(log, standard(), tmp_path, SECRET, now=time.time)
    await audit.open()
    audit._busy = 1.0
    audit.record(*accesses(4_000))
    monkeypatch.setattr("fhir_server.auth.audit.CLOSE_SECONDS", 0.05)
    await audit.close()
    assert len(left(tmp_path)) == 1, "it is left for the next start"
    again = Audit(log, standard(), tmp_path, SECRET, now=time.time)
    await again.open()
    assert again.waiting > 0 and len(left(tmp_path)) == 2
    again.record(*accesses(10, 4_000))
    assert await again.flush(60)
    monkeypatch.undo()
    await again.close()
    assert left(tmp_path) == []
    ids = [int(load(link.raw or b"")["entity"][0]["what"]["reference"].split("/")[1]) async for link in log.links(0)]
    assert ids == list(range(4_010)), "each once, in order"
    assert (await verify(log, chain_key(SECRET))).problem == ""


def test_ids_of_events_follow_time() -> None:
    ids = [timed_id(moment, number) for moment in (1, 2, 1_767_323_045_123) for number in range(250)]
    assert ids == sorted(ids)
    assert {(uuid.UUID(id).version, uuid.UUID(id).variant) for id in ids} == {(7, uuid.RFC_4122)}


def test_expected_heads_are_read_as_printed() -> None:
    assert expected_head("") is None
    assert expected_head("12 abc") == (12, "abc")


def test_the_event_is_shaped_after_balp() -> None:
    access = Access(
        when=1_767_323_045_123, interaction="vread", status=404, subject="doctor", client="app", user="Practitioner/d1",
        address="192.0.2.7", request_id="r1", resource_type="Observation", id="o1", version=2, patients=("p1",),
        query="Observation?code=x", purpose="unconscious patient", token_id="j",
    )  # fmt: skip
    event = audit_event(access, "e1", 1_767_323_046_000, "http://example.org/fhir")
    assert event["recorded"] == "2026-01-02T03:04:05.123Z"
    assert (event["action"], event["outcome"], event["subtype"][0]["code"]) == ("R", "4", "vread")
    assert [agent["requestor"] for agent in event["agent"]] == [True, False, False]
    assert event["agent"][1]["network"] == {"address": "192.0.2.7", "type": "2"}
    assert event["agent"][2]["network"] == {"address": "http://example.org/fhir", "type": "5"}
    roles = [agent["type"]["coding"][0]["code"] for agent in event["agent"]]
    assert roles == ["IRCP", "110152", "110153"], "of a read the client is the destination"
    for other in ("search-type", "create", "update", "patch", "delete"):
        agents = audit_event(msgspec.structs.replace(access, interaction=other), "e1", 0)["agent"]
        assert [agent["type"]["coding"][0]["code"] for agent in agents] == ["IRCP", "110153", "110152"]
    assert event["purposeOfEvent"][0]["coding"][0]["code"] == "BTG"
    references = [entity["what"]["reference"] for entity in event["entity"] if "reference" in entity.get("what", {})]
    assert references == ["Observation/o1/_history/2", "Patient/p1"]
    query = next(entity["query"] for entity in event["entity"] if "query" in entity)
    assert base64.b64decode(query) == b"Observation?code=x"


@pytest.mark.parametrize(
    "interaction", ["read", "search-type", "create", "transaction", "operation:$everything", "login"]
)
@pytest.mark.parametrize(
    "who", [{}, {"subject": "a", "client": "a"}, {"subject": "u", "client": "a", "user": "Patient/1"}]
)
def test_the_event_is_valid(secured: Secured, interaction: str, who: dict[str, str]) -> None:
    event = audit_event(Access(when=0, interaction=interaction, status=200, address="::1", **who), "e1", 0)
    assert [issue for issue in secured.server.validator.check(event) if issue.is_error] == []
    assert [agent["requestor"] for agent in event["agent"]].count(True) == 1


async def test_accesses_are_audited_and_administrators_search_them(secured: Secured) -> None:
    http = secured.http
    await secured.user("doctor", "practitioner", "Practitioner/d1", reach="all")
    await secured.user("admin", "administrator")
    doctor = await secured.token("user/*.cruds", user="doctor")
    admin = await secured.token("user/*.cruds", user="admin")
    patient = (await http.put("Patient/p1", json={"resourceType": "Patient", "id": "p1"}, headers=doctor)).json()
    assert patient["id"] == "p1"
    await http.get("Patient/p1", headers={**doctor, "X-Request-Id": "looked1", "X-Break-Glass": "no pulse, no name"})
    await http.get("Patient?name=secret", headers={**doctor, "X-Request-Id": "looked2"})
    await http.get("Patient/p1", headers={"X-Request-Id": "nobody1"})
    await http.post(
        "",
        json={"resourceType": "Bundle", "type": "batch", "entry": [
            {"request": {"method": "GET", "url": "Patient/p1"}}, {"request": {"method": "GET", "url": "Patient/none"}},
        ]},
        headers={**doctor, "X-Request-Id": "bundle1"},
    )  # fmt: skip
    assert (await http.get("AuditEvent", headers=doctor)).status_code == 403
    assert (await http.get("AuditEvent")).status_code == 401
    # No waiting: a search of the audit brings what happened before it.
    found = (await http.get("AuditEvent?entity=Patient/p1&_count=50", headers=admin)).json()
    kinds = [entry["resource"]["subtype"][0]["code"] for entry in found["entry"]]
    assert sorted(kinds) == ["read", "read", "read", "update"]
    everything = (await http.get("AuditEvent?_count=100", headers=admin)).json()
    by_request: dict[str, list[dict[str, Any]]] = {}
    for entry in everything["entry"]:
        event = entry["resource"]
        request_id = event["entity"][-1]["what"]["identifier"]["value"]
        by_request.setdefault(request_id, []).append(event)
    assert by_request["looked1"][0]["purposeOfEvent"][0]["text"] == "no pulse, no name"
    (searched,) = by_request["looked2"]
    assert base64.b64decode(searched["entity"][0]["query"]) == b"Patient?name=secret"
    assert by_request["nobody1"][0]["outcome"] == "4"
    assert sorted((e["subtype"][0]["code"], e["outcome"]) for e in by_request["bundle1"]) == [
        ("batch", "0"), ("read", "0"), ("read", "4"),
    ]  # fmt: skip
    id = everything["entry"][0]["resource"]["id"]
    body = everything["entry"][0]["resource"]
    for method, url in (("PUT", f"AuditEvent/{id}"), ("DELETE", f"AuditEvent/{id}"), ("POST", "AuditEvent"),
                        ("PUT", "AuditEvent?type=rest"), ("DELETE", "AuditEvent?type=rest")):  # fmt: skip
        sent = None if method == "DELETE" else body
        assert (await http.request(method, url, json=sent, headers=admin)).status_code == 403, url
        entry = {"request": {"method": method, "url": url}} | ({"resource": sent} if sent else {})
        bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}
        assert (await http.post("", json=bundle, headers=admin)).status_code == 403, url
    verdict = await verify(secured.server.rooms["audit"]._log, chain_key(secured.authority.secret))
    assert verdict.problem == ""


async def test_a_large_form_without_a_token_does_not_hold_up_the_audit(secured: Secured) -> None:
    await secured.user("admin", "administrator")
    admin = await secured.token("user/*.rs", user="admin")
    sent = {"data": {"name": "x" * 3_000_000}, "headers": {"X-Request-Id": "large1"}}
    assert (await secured.http.post("Patient/_search", **sent)).status_code == 401  # type: ignore[arg-type]
    found = (await secured.http.get("AuditEvent?entity:identifier=large1", headers=admin)).json()
    assert len(found["entry"]) == 1
    assert len(str(found)) < 100_000


OBSERVED = {
    "resourceType": "Observation", "status": "final", "code": {"text": "x"}, "subject": {"reference": "Patient/told1"},
}  # fmt: skip


async def test_each_event_says_who_and_what(secured: Secured) -> None:
    http = secured.http
    await secured.user("doctor", "practitioner", "Practitioner/d1", reach="all")
    await secured.user("admin", "administrator")
    await secured.user("self", "patient", "Patient/told1")
    doctor = await secured.token("user/*.cruds", user="doctor")
    patient = await secured.token("patient/*.rs", user="self", patient="told1")
    admin = await secured.token("user/*.cruds", user="admin")
    await http.put("Patient/told1", json={"resourceType": "Patient", "id": "told1"}, headers=doctor)
    for id in ("told2", "told3", "told4"):
        await http.put(f"Observation/{id}", json={**OBSERVED, "id": id}, headers=doctor)
    entries = [
        {"request": {"method": "GET", "url": "http://test/fhir/Observation?subject=Patient/told1"}},
        {"request": {"method": "GET", "url": "http://elsewhere/fhir/Patient/told1"}},
        {"request": {"method": "POST", "url": "Patient", "ifNoneExist": "identifier=told|1"},
         "resource": {"resourceType": "Patient"}},
        {"request": {"method": "POST", "url": "/"}, "resource": {"resourceType": "Bundle", "type": "batch", "entry": [
            {"request": {"method": "GET", "url": "Patient/told1"}}]}},
    ]  # fmt: skip
    fhir = {"Content-Type": "application/fhir+json"}
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "Observation", {}),
        ("GET", "Patient/told1/Observation", {}),
        ("POST", "Observation/_search", {"data": {"patient": "told1,Patient/told9"}}),
        ("GET", "Observation", {"headers": patient}),
        ("GET", "Observation/_history", {}),
        ("GET", "Observation/told2?%ff=1", {}),
        ("GET", "Observation/$a%00b", {}),
        ("POST", "Observation", {"content": "{", "headers": fhir}),
        ("GET", "Patient/told1", {"headers": {"Accept": "image/png"}}),
        ("GET", "Patient/told1", {"headers": {"X-Break-Glass": "short"}}),
        ("POST", "Patient", {"json": {"resourceType": "Patient"}, "headers": {"If-None-Exist": "identifier=told|2"}}),
        ("DELETE", "Observation/told2", {}),
        ("DELETE", "Observation?_id=told3,told4&_multiple=true", {}),
        ("POST", "", {"json": {"resourceType": "Bundle", "type": "batch", "entry": entries}}),
    ]
    for number, (method, url, more) in enumerate(requests):
        headers = {**doctor, **more.pop("headers", {}), "X-Request-Id": f"told-{number}"}
        await http.request(method, url, headers=headers, **more)

    async def told(number: int) -> list[tuple[str, list[str]]]:
        found = (await http.get(f"AuditEvent?entity:identifier=told-{number}&_sort=_id", headers=admin)).json()
        events = [entry["resource"] for entry in found["entry"]]
        for event in events:
            assert "nobody" not in str(event["agent"]), requests[number]
            assert [issue for issue in secured.server.validator.check(event) if issue.is_error] == []
        return [(event["subtype"][0]["code"], [*map(text, event["entity"][:-1])]) for event in events]

    def text(entity: dict[str, Any]) -> str:
        return base64.b64decode(entity["query"]).decode() if "query" in entity else str(entity["what"]["reference"])

    assert await told(0) == [("search-type", ["Observation"])]
    assert await told(1) == [("search-type", ["Patient/told1", "Patient/told1/Observation"])]
    form = "Observation/_search?patient=told1%2CPatient%2Ftold9"
    assert await told(2) == [("search-type", ["Patient/told1", "Patient/told9", form])]
    assert await told(3) == [("search-type", ["Patient/told1", "Observation"])]
    assert await told(4) == [("history-type", ["Observation/_history"])]
    assert await told(5) == [("operation", ["/fhir/Observation/told2?%ff=1"])]
    assert await told(6) == [("operation", ["Observation/$a\0b"])]
    assert await told(7) == [("create", ["Observation"])]
    assert await told(8) == await told(9) == [("read", ["Patient/told1"])]
    ((create, (_, _, condition)),) = await told(10)
    assert (create, condition) == ("create", "Patient?identifier=told|2")
    assert await told(11) == [("delete", ["Observation/told2/_history/2", "Patient/told1"])]
    assert await told(12) == [
        ("delete", ["Observation?_id=told3%2Ctold4&_multiple=true"]),
        ("delete", ["Observation/told3/_history/2", "Patient/told1"]),
        ("delete", ["Observation/told4/_history/2", "Patient/told1"]),
    ]
    batch = await told(13)
    assert batch[:3] == [
        ("batch", []),
        ("search-type", ["Patient/told1", "Observation?subject=Patient%2Ftold1"]),
        ("operation", ["http://elsewhere/fhir/Patient/told1"]),
    ]
    assert (batch[3][0], batch[3][1][-1]) == ("create", "Patient?identifier=told|1")
    assert batch[4:] == [("batch", []), ("read", ["Patient/told1/_history/1", "Patient/told1"])]


async def test_what_an_access_costs(tmp_path: Path) -> None:
    """Measured: 4 µs on a 2-core virtual machine; the bound only catches a mistake of another order."""
    journal = Journal.create(tmp_path)
    (one,) = accesses(1)
    started = time.perf_counter()
    for _ in range(5000):
        journal.append(one)
    each = (time.perf_counter() - started) / 5000
    journal.remove()
    assert each < 100e-6, f"{each * 1e6:.1f} µs"


async def test_logins_and_failed_ones_are_audited(secured: Secured) -> None:
    browser = Browser(Site("http://test/fhir", secured.authority, secured.authority.now))  # type: ignore[arg-type]
    browser.http = httpx.AsyncClient(transport=httpx.ASGITransport(secured.app), base_url="http://test/fhir/")
    hashed = secured.authority.passwords.hash_now(PASSWORD)
    user = User(name="logs-in", password_hash=hashed, role="patient", fhir_user="Patient/p1")
    await secured.authority.credentials.put_user(user)
    start = await browser.http.get("auth/authorize", params={
        "response_type": "code", "client_id": "app", "redirect_uri": REDIRECT, "scope": "patient/*.rs", "state": "s",
        "aud": "http://test/fhir", "code_challenge": "c" * 43, "code_challenge_method": "S256",
    })  # fmt: skip
    request_id = start.headers["location"].split("request=")[1]
    form = {"request": request_id, "name": "logs-in"}
    for password, status in (("wrong", 401), (PASSWORD, 303)):
        answer = await browser.http.post("auth/login", data={**form, "password": password})
        assert answer.status_code == status
    await browser.http.get("auth/logout", params={"request": request_id})
    await browser.close()
    await secured.user("admin", "administrator")
    admin = await secured.token("user/*.cruds", user="admin")
    found = (await secured.http.get("AuditEvent?type=110114&_sort=date", headers=admin)).json()
    events = [entry["resource"] for entry in found["entry"]]
    told = [(event["subtype"][0]["code"], event["outcome"]) for event in events]
    assert told == [("110122", "4"), ("110122", "0"), ("110123", "0")]
    assert {event["agent"][0]["who"]["identifier"]["value"] for event in events} == {"logs-in"}
    assert PASSWORD not in str(found)


async def test_what_cannot_be_audited_is_not_answered(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = await secured.token("system/*.cruds", client="service")
    body = {"resourceType": "Patient", "id": "unseen", "name": [{"family": "Secret"}]}
    assert (await secured.http.put("Patient/unseen", json=body, headers=headers)).status_code == 201

    def refuse(lines: bytes) -> None:
        raise Unavailable("The audit journal cannot be written", retry_after=30)

    monkeypatch.setattr(secured.server.rooms["audit"], "record_lines", refuse)
    for url in ("Patient/unseen", "Patient?family=Secret", "Patient/unseen/_history", "Patient/unseen/$everything"):
        answer = await secured.http.get(url, headers=headers)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "30"), url
        assert "Secret" not in answer.text


async def test_one_token_from_two_places_is_audited_as_such(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of a token for the journal's lines is remembered for each address."""
    headers = await secured.token("system/*.cruds", client="service")
    await secured.http.put("Patient/twice", json={"resourceType": "Patient", "id": "twice"}, headers=headers)
    lines: list[bytes] = []
    monkeypatch.setattr(secured.server.rooms["audit"], "record_lines", lines.append)
    for address in ("10.0.0.1", "10.0.0.2", "10.0.0.1"):
        transport = httpx.ASGITransport(secured.app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://test/fhir/") as http:
            assert (await http.get("Patient/twice", headers=headers)).status_code == 200
    assert [json.loads(line)[6] for line in lines] == ["10.0.0.1", "10.0.0.2", "10.0.0.1"]

"""One transaction decides: current, history, outbox and claims agree, whatever else happens at the same time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from fhir_server.interactions.context import Server
from fhir_server.store.mongo import MongoStore
from fhir_server.store.outbox import Taken
from fhir_server.store.protocol import Cause, Changed, Claim, Put, Stored

pytestmark = pytest.mark.anyio


def version(id: str, number: int, **more: Any) -> Stored:
    raw = b'{"resourceType":"Basic","id":"%b","n":%d}' % (id.encode(), number)
    return Stored("Basic", id, number, 1_700_000_000_000 + number, raw, **more)


@pytest.fixture
def store(server: Server) -> MongoStore:
    assert isinstance(server.store, MongoStore)
    return server.store


async def test_a_create_writes_current_and_outbox_and_no_history(store: MongoStore) -> None:
    events = await store.commit([Put(version("c", 1, patients=("p",)), cause=Cause(("e1",), "rule|1", "someone"))])
    assert [(event.resource_id, event.version, event.patients, event.cause.rule) for event in events] == [
        ("c", 1, ("p",), "rule|1")
    ]
    assert await store.database["outbox"].count_documents({"_id": events[0].id}) == 1
    assert await store.database["history"].count_documents({"id": "c"}) == 0
    read = await store.read("Basic", "c")
    assert read is not None
    assert (read.version, read.raw, read.patients) == (1, version("c", 1).raw, ("p",))


async def test_an_update_moves_the_version_it_replaces_to_history(store: MongoStore) -> None:
    await store.commit([Put(version("u", 1))])
    await store.commit([Put(version("u", 2), version("u", 1))])
    old = await store.read_version("Basic", "u", 1)
    new = await store.read_version("Basic", "u", 2)
    assert old is not None
    assert new is not None
    assert (old.raw, new.raw) == (version("u", 1).raw, version("u", 2).raw)
    assert await store.read_version("Basic", "u", 3) is None


@pytest.mark.parametrize("previous", [None, version("x", 7)])
async def test_a_precondition_that_fails_writes_nothing_at_all(store: MongoStore, previous: Stored | None) -> None:
    if await store.read("Basic", "x") is None:
        await store.commit([Put(version("x", 1))])
    before = {name: await store.database[name].count_documents({}) for name in ("Basic", "history", "outbox", "claims")}
    fine = Put(version(f"fine-{previous is None}", 1), claim=Claim(f"key-{previous is None}"))
    with pytest.raises(Changed) as changed:
        await store.commit([fine, Put(version("x", 8), previous)])
    assert ("Basic", "x") in changed.value.keys
    after = {name: await store.database[name].count_documents({}) for name in before}
    assert after == before


async def test_in_a_group_each_caller_gets_its_own_answer(store: MongoStore) -> None:
    """Thirty commits that wait together, every third of which cannot be: the others are kept."""
    await store.commit([Put(version("taken", 1))])
    puts = [Put(version("taken" if n % 3 == 0 else f"g{n}", 1)) for n in range(30)]
    results = await asyncio.gather(*(store.commit([put]) for put in puts), return_exceptions=True)
    for number, result in enumerate(results):
        if number % 3 == 0:
            assert isinstance(result, Changed)
        else:
            assert isinstance(result, list)
            assert await store.read("Basic", f"g{number}") is not None


async def test_a_claim_is_taken_once_and_a_stale_one_taken_over_once(store: MongoStore) -> None:
    async def claim(number: int, holder: str) -> list[Any] | BaseException:
        try:
            return await store.commit([Put(version(f"claim{holder}{number}", 1), claim=Claim("criteria", holder))])
        except Changed as changed:
            assert changed.claims == ("criteria",)
            return changed

    first = await asyncio.gather(*(claim(n, "") for n in range(16)))
    assert sum(isinstance(result, list) for result in first) == 1
    holder = await store.claim_holder("criteria")
    second = await asyncio.gather(*(claim(n, holder) for n in range(16)))
    assert sum(isinstance(result, list) for result in second) == 1
    assert await store.claim_holder("criteria") != holder


@dataclass
class Mark:
    """Extra work: a document in `marks`, and then perhaps a failure."""

    marks: Any
    name: str
    error: Exception | None = None

    async def __call__(self, session: Any) -> None:
        await self.marks.insert_one({"_id": self.name}, session=session)
        if self.error is not None:
            raise self.error

    def beside(self, other: Any) -> None:
        return None


async def test_what_fails_beside_others_fails_alone(store: MongoStore) -> None:
    """Commits that share a transaction do not share a failure, whatever it is."""
    marks = store.database["beside"]
    results = await asyncio.gather(
        *(
            store.commit([Put(version(f"b{n}", 1))], [Mark(marks, f"b{n}", Taken("n") if n == 3 else None)])
            for n in range(8)
        ),
        return_exceptions=True,
    )
    assert [type(one) for one in results] == [Taken if n == 3 else list for n in range(8)]
    assert await marks.count_documents({}) == 7
    assert await store.read("Basic", "b3") is None


async def test_versions_that_follow_each_other_may_come_together(store: MongoStore) -> None:
    puts = [Put(version("f", 1)), Put(version("f", 2), version("f", 1)), Put(version("f", 3), version("f", 2))]
    events = await store.commit(puts)
    assert [event.version for event in events] == [1, 2, 3]
    now = await store.read("Basic", "f")
    assert now is not None
    assert now.version == 3
    for number in (1, 2):
        old = await store.read_version("Basic", "f", number)
        assert old is not None
        assert old.raw == version("f", number).raw
    with pytest.raises(Changed):
        await store.commit([Put(version("f", 3), version("f", 2)), Put(version("f", 4), version("f", 3))])
    with pytest.raises(Changed):
        await store.commit([Put(version("g", 1)), Put(version("g", 1))])


async def test_an_extra_is_part_of_the_transaction(store: MongoStore) -> None:
    marks = store.database["marks"]
    await marks.insert_one({"_id": 0})

    await store.commit([Put(version("e1", 1))], [Mark(marks, "kept")])
    with pytest.raises(Changed):
        await store.commit([Put(version("e2", 1))], [Mark(marks, "undone", Changed([("Basic", "extra")]))])
    assert await marks.count_documents({"_id": {"$in": ["kept", "undone"]}}) == 1
    assert await store.read("Basic", "e2") is None


async def test_event_ids_sort_in_the_order_of_commits(store: MongoStore) -> None:
    ids = []
    for number in range(20):
        (event,) = await store.commit([Put(version(f"o{number}", 1))])
        ids.append(event.id)
    assert ids == sorted(ids)
    assert len(set(ids)) == 20


async def test_reads_of_many_at_once_are_each_answered(store: MongoStore) -> None:
    await asyncio.gather(*(store.commit([Put(version(f"r{n}", 1))]) for n in range(40)))
    found = await asyncio.gather(*(store.read("Basic", f"r{n}") for n in range(50)))
    assert [one.id if one else None for one in found] == [f"r{n}" if n < 40 else None for n in range(50)]
    many = await store.read_many([("Basic", "r1"), ("Basic", "none"), ("Group", "r1"), ("Basic", "r1")])
    assert list(many) == [("Basic", "r1")]

"""Calls that wait together are served together, in order, and nobody is forgotten."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from fhir_server.errors import Unavailable
from fhir_server.store.lane import Lane, Waiting

pytestmark = pytest.mark.anyio


class Recorder:
    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[list[Any]] = []
        self.seconds = seconds

    async def __call__(self, batch: list[Waiting[Any, Any]]) -> None:
        self.batches.append([waiting.item for waiting in batch])
        await asyncio.sleep(self.seconds)
        for waiting in batch:
            if not waiting.done.done():
                waiting.done.set_result(waiting.item * 10)


async def test_one_call_leaves_at_once_and_gets_its_answer() -> None:
    serve = Recorder()
    assert await Lane(serve).call(7) == 70
    assert serve.batches == [[7]]


async def test_what_waits_meanwhile_shares_the_next_batch() -> None:
    serve = Recorder(0.02)
    lane: Lane[int, int] = Lane(serve, most=100)
    assert await asyncio.gather(*(lane.call(n) for n in range(30))) == [n * 10 for n in range(30)]
    assert len(serve.batches) == 1
    first = asyncio.create_task(lane.call(100))
    await asyncio.sleep(0.01)
    await asyncio.gather(first, *(lane.call(n) for n in range(10)))
    assert [len(batch) for batch in serve.batches] == [30, 1, 10]


async def test_a_batch_is_bounded_by_count_and_by_bytes() -> None:
    serve = Recorder()
    lane: Lane[int, int] = Lane(serve, most=4, most_bytes=100)
    await asyncio.gather(*(lane.call(n) for n in range(10)))
    assert [len(batch) for batch in serve.batches] == [4, 4, 2]
    serve.batches.clear()
    await asyncio.gather(*(lane.call(n, size=60) for n in range(3)))
    assert [len(batch) for batch in serve.batches] == [1, 1, 1]
    assert await lane.call(1, size=10_000) == 10  # larger than any batch: alone, but served


async def test_calls_on_the_same_key_keep_their_order_and_never_share_a_batch() -> None:
    serve = Recorder(0.001)
    lane: Lane[str, str] = Lane(serve, most=100)
    calls = [("a1", "a"), ("b1", "b"), ("a2", "a"), ("a3", "a"), ("b2", "b"), ("c1", "c")]
    await asyncio.gather(*(lane.call(name, conflicts=[key]) for name, key in calls))
    for batch in serve.batches:
        keys = [item[0] for item in batch]
        assert len(keys) == len(set(keys))
    flat = [item for batch in serve.batches for item in batch]
    for key in "abc":
        own = [item for item in flat if item[0] == key]
        assert own == sorted(own)


async def test_beyond_the_limit_the_answer_is_503() -> None:
    serve = Recorder(0.05)
    lane: Lane[int, int] = Lane(serve, most=1, limit=3)
    calls = [asyncio.create_task(lane.call(n)) for n in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable) as refused:
        await lane.call(9)
    assert refused.value.headers["Retry-After"] == "1"
    assert await asyncio.gather(*calls) == [0, 10, 20]


async def test_a_failing_batch_tells_everybody_and_the_lane_goes_on() -> None:
    answers = [RuntimeError("broken"), None]

    async def serve(batch: list[Waiting[int, int]]) -> None:
        error = answers.pop(0)
        if error is not None:
            raise error
        for waiting in batch:
            waiting.done.set_result(1)

    lane: Lane[int, int] = Lane(serve)
    results = await asyncio.gather(lane.call(1), lane.call(2), return_exceptions=True)
    assert [str(result) for result in results] == ["broken", "broken"]
    assert await lane.call(3) == 1


async def test_nobody_is_forgotten_whatever_the_timing() -> None:
    """Calls arrive while batches end; a lane that misses the moment would leave one waiting for ever."""
    chance = random.Random(4)
    serve = Recorder()
    lane: Lane[int, int] = Lane(serve, width=2, most=3)

    async def caller(number: int) -> None:
        for _ in range(30):
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            assert await lane.call(number) == number * 10

    await asyncio.wait_for(asyncio.gather(*(caller(number) for number in range(8))), 20)


async def test_a_caller_that_gives_up_harms_nobody() -> None:
    serve = Recorder(0.02)
    lane: Lane[int, int] = Lane(serve, most=1)
    first, second, third = (asyncio.create_task(lane.call(n)) for n in (1, 2, 3))
    await asyncio.sleep(0.005)
    second.cancel()
    assert await asyncio.gather(first, third) == [10, 30]
    assert serve.batches == [[1], [3]]

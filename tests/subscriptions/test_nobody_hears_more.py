"""Random records, random tokens that subscribe, random changes: each is told of what it may see, all of it, and nothing else.

The oracle is that of tests/auth/test_nobody_sees_more.py, which reads scopes, labels, consents and compartments again.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.auth.conftest import Secured, secured_application
from tests.auth.records import Records, add_services, change_of_mind, make_world, put
from tests.auth.world import TYPES, Token, Version
from tests.subscriptions.conftest import Receiver, active, subscription

pytestmark = pytest.mark.anyio

SEED = int(os.environ.get("FHIR_POLICY_SEED", "0")) or random.randrange(1, 2**32)
WRITES = int(os.environ.get("FHIR_POLICY_CASES", "2000")) // 20
SUBSCRIBERS, TYPES_EACH = 8, 5
Told = tuple[str, str]  # which of the Subscriptions, and the version: "Observation/o1/_history/2"


@pytest.fixture
async def world(mongo_url: str, tmp_path: Any, anyio_backend: Any, impatient: None) -> AsyncIterator[Secured]:
    async with secured_application(mongo_url, tmp_path, subscription_internal=True, audit=False) as secured:
        await add_services(secured)
        yield secured


async def subscribe(records: Records, receiver: Receiver, chance: random.Random) -> dict[str, tuple[int, str]]:
    """Path of the endpoint → token, type."""
    http = records.secured.http
    found: dict[str, tuple[int, str]] = {}
    for number, (token, headers) in enumerate(records.tokens):
        limited = token.reach is not None or all(scope[0] == "patient" for scope in token.scopes)
        for kind in chance.sample(TYPES, TYPES_EACH):
            name = f"{number}-{kind}"
            body = subscription(kind, f"{receiver.url}/{name}", payload="application/fhir+json")
            may = not limited and (await http.get(f"{kind}?_count=1", headers=headers)).status_code == 200
            if not may:
                answer = await http.post("Subscription", json=body, headers=headers)
                assert answer.status_code == 403, (kind, token, answer.text)
            elif number < SUBSCRIBERS * 2:
                await active(http, body, headers)
                found[name] = (number, kind)
    return found


async def settled(records: Records) -> None:
    """Nothing is waiting to be told."""
    waiting = records.secured.server.store.database["notifications"]
    async with asyncio.timeout(30):
        while await waiting.count_documents({}):  # noqa: ASYNC110 - another task's doing
            await asyncio.sleep(0.01)


def heard(receiver: Receiver) -> Counter[Told]:
    found: Counter[Told] = Counter()
    for method, path, headers, body in receiver.heard:
        assert method == "PUT" and b'"versionId":"' in body
        _, _, name, kind, id = path.split("/")
        version = body.partition(b'"versionId":"')[2].partition(b'"')[0].decode()
        found[name, f"{kind}/{id}/_history/{version}"] += 1
        assert headers["x-event-number"]
    return found


def visible(token: Token, version: Version) -> bool:
    return token.sees(version, "s") and token.sees(version, "r")


@pytest.mark.parametrize("number", range(2))
async def test_no_notification_says_what_is_not_ones_own(world: Secured, receiver: Receiver, number: int) -> None:
    chance = random.Random(SEED + number)
    records = await make_world(world, chance, also="Subscription")
    everything = await world.token("system/*.cruds", client="service")
    subscribed = await subscribe(records, receiver, chance)
    assert len(subscribed) > 5, "nobody listens"
    expected: Counter[Told] = Counter()
    for turn in range(WRITES):
        if chance.random() < 0.2:
            before = len(records.versions)
            await change_of_mind(records, chance)
            written = [one for one in records.versions[before:] if not one.deleted]
        else:
            old = chance.choice([one for one in records.current() if one.resource_type != "Practitioner"])
            resource = records.maker.resource(old.resource_type, old.id)
            await put(records, everything, resource, old.number + 1)
            records.settle()
            written = records.versions[-1:]
        await settled(records)
        for version in written:
            for name, (index, kind) in subscribed.items():
                if version.resource_type == kind and visible(records.tokens[index][0], version):
                    expected[name, f"{version.key}/_history/{version.number}"] += 1
        found = heard(receiver)
        case = f"FHIR_POLICY_SEED={SEED} world {number}, write {turn}"
        assert found == expected, (case, found - expected, expected - found)
    assert expected, "nothing was to be told"
    numbers: dict[str, list[int]] = {}
    for _, path, headers, _ in receiver.heard:
        numbers.setdefault(path.split("/")[2], []).append(int(headers["x-event-number"]))
    for name, given in numbers.items():
        assert given == list(range(1, len(given) + 1)), (name, "a gap hints at what was not told")

"""Sending a plan: several requests in flight, steps in their order, a failure named and the rest going on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import quote

import msgspec

from fhir_server.cli.client import Client, Refused, reason
from fhir_server.cli.loading import sources
from fhir_server.cli.loading.compose import Item, body, compose, single
from fhir_server.cli.loading.plan import Plan, Step
from fhir_server.cli.loading.sources import Unreadable

BATCH_ENTRIES = 200
BATCH_BYTES = 1_000_000
IDS_A_QUESTION = 150  # of a `_id=` search; keeps the URL under 8 kB
TRIES = 4  # of an entry of a batch that the server was too busy for


class Meter(Protocol):
    def advance(self, resources: int) -> None: ...
    def failed(self, name: str, why: str) -> None: ...


@dataclass(slots=True)
class Report:
    created: int = 0
    present: int = 0  # was there already, or was put as it is
    failures: list[tuple[str, str]] = field(default_factory=list)  # (name, reason)


class _Response(msgspec.Struct):
    status: str = ""
    outcome: msgspec.Raw = msgspec.Raw(b"")


class _ResponseEntry(msgspec.Struct):
    response: _Response = msgspec.field(default_factory=_Response)


class _ResponseBundle(msgspec.Struct):
    entry: list[_ResponseEntry] = []


_responses = msgspec.json.Decoder(_ResponseBundle)


class Sender:
    def __init__(self, client: Client, plan: Plan, meter: Meter, concurrency: int) -> None:
        self.client = client
        self.plan = plan
        self.meter = meter
        self.report = Report()
        self._gate = asyncio.Semaphore(concurrency)
        self._over: dict[Step, asyncio.Event] = {}
        self._sent: set[Step] = set()  # bundles whose resources are all on the server

    async def send(self) -> Report:
        for name, why in self.plan.unreadable:
            self._fail(name, why, 0)
        self._over = {step: asyncio.Event() for step in self.plan.steps}
        async with asyncio.TaskGroup() as group:
            for step in self.plan.steps:
                group.create_task(self._step(step))
        return self.report

    async def _step(self, step: Step) -> None:
        for earlier in step.waits_for:
            await self._over[earlier].wait()
        try:
            if step.path is not None:
                async with self._gate:
                    await self._bundle(step)
            else:
                await self._loose(step)
        finally:
            self._over[step].set()

    async def _bundle(self, step: Step) -> None:
        assert step.path is not None

        def sent_before(key: str) -> bool:
            owner = self.plan.owners.get(key)
            return owner is not None and owner is not step and owner in self._sent

        try:
            raw = sources.read(step.path)
            if await self._send_bundle(step.name, raw, sent_before):
                self._sent.add(step)
        except (Refused, Unreadable, OSError) as error:
            self._fail(step.name, str(error), step.resources)

    async def transaction(self, name: str, raw: bytes) -> None:
        """One Bundle that is in memory."""
        async with self._gate:
            try:
                await self._send_bundle(name, raw, lambda _: False)
            except Refused as error:
                self._fail(name, str(error), 0)

    async def _send_bundle(self, name: str, raw: bytes, sent_before: Callable[[str], bool]) -> bool:
        """Whether all of it is on the server now. Raises Refused."""
        composed = compose(raw, name, sent_before)
        if composed.type == "batch":
            failures = len(self.report.failures)
            for part in _parts(composed.items):
                await self._batch(part)
            self._count(0, composed.left_out)
            return len(self.report.failures) == failures
        try:
            await self._transaction(composed.items, composed.left_out)
        except Refused as refused:
            if refused.status != 412:
                raise
            known = await self._existing([item.key for item in composed.items if item.key])
            if not known:
                raise
            composed = compose(raw, name, lambda key: key in known or sent_before(key))
            await self._transaction(composed.items, composed.left_out)
        return True

    async def _transaction(self, items: list[Item], left_out: int) -> None:
        created = 0
        if items:
            answer = await self.client.send("POST", "", body("transaction", items))
            created = sum(entry.response.status.startswith("201") for entry in _responses.decode(answer.body).entry)
        self._count(created, len(items) - created + left_out)

    async def put(self, items: list[Item]) -> None:
        """Single resources that are in memory, in their order."""
        for part in _parts(items):
            await self._batch(part)

    async def _existing(self, keys: list[str]) -> set[str]:
        """Which of these resources the server has."""
        by_type: dict[str, list[str]] = {}
        for key in keys:
            resource_type, _, id = key.partition("/")
            by_type.setdefault(resource_type, []).append(id)
        found: set[str] = set()
        for resource_type, ids in by_type.items():
            for start in range(0, len(ids), IDS_A_QUESTION):
                asked = ids[start : start + IDS_A_QUESTION]
                query = f"{resource_type}?_id={quote(','.join(asked), safe=',')}&_elements=id&_count={len(asked)}"
                answer = await self.client.get(query)
                for entry in sources.bundle(answer.body).entry:
                    head = sources.head(entry.resource)
                    found.add(f"{head.resource_type}/{head.id}")
        return found

    async def _loose(self, step: Step) -> None:
        """Single resources in batches; the next one is read only when there is room to send it."""
        async with asyncio.TaskGroup() as group:
            for part in _parts(self._singles(step)):
                await self._gate.acquire()
                group.create_task(self._batch(part)).add_done_callback(lambda _: self._gate.release())

    def _singles(self, step: Step) -> Iterator[Item]:
        for path in step.parts:
            lines = sources.is_lines(path)
            try:
                with sources.open_file(path) as file:
                    for number, raw in enumerate(file if lines else [sources.read(path)], start=1):
                        if not raw.strip():
                            continue
                        label = f"{path}:{number}" if lines else str(path)
                        try:
                            yield single(raw, label)
                        except Unreadable as error:
                            self._fail(label, str(error), 1)
            except (OSError, EOFError) as error:
                self._fail(str(path), str(error), 0)

    async def _batch(self, items: list[Item]) -> None:
        for attempt in range(TRIES):
            try:
                answer = await self.client.send("POST", "", body("batch", items))
            except Refused as error:
                for item in items:
                    self._fail(item.label, str(error), 1)
                return
            entries = _responses.decode(answer.body).entry
            again: list[Item] = []
            for item, entry in zip(items, entries, strict=True):
                status = int(entry.response.status[:3] or 500)
                if status in (409, 429, 503) and attempt + 1 < TRIES:
                    again.append(item)
                elif status < 400 or (status == 412 and item.key):
                    self._count(int(status == 201), int(status != 201))
                else:
                    self._fail(item.label, reason(status, bytes(entry.response.outcome)), 1)
            if not again:
                return
            items = again
            await asyncio.sleep(0.2 * 2**attempt)

    def _count(self, created: int, present: int) -> None:
        self.report.created += created
        self.report.present += present
        self.meter.advance(created + present)

    def _fail(self, name: str, why: str, resources: int) -> None:
        self.report.failures.append((name, why))
        self.meter.failed(name, why)
        self.meter.advance(resources)


def _parts(items: Iterator[Item] | list[Item]) -> Iterator[list[Item]]:
    part: list[Item] = []
    size = 0
    for item in items:
        if part and (len(part) >= BATCH_ENTRIES or size + len(item.json) > BATCH_BYTES):
            yield part
            part, size = [], 0
        part.append(item)
        size += len(item.json)
    if part:
        yield part

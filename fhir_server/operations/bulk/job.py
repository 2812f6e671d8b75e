"""One job, from where it was left to its end: type by type, file by file, each written down before the next is begun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Literal

from fhir_server.auth.authority import Authority
from fhir_server.auth.principal import Principal
from fhir_server.errors import FhirError, Unauthorized, Unavailable
from fhir_server.interactions.context import Context, Server
from fhir_server.model.resource import dump, load
from fhir_server.operations.bulk.deletions import deletions
from fhir_server.operations.bulk.files import Writer
from fhir_server.operations.bulk.request import Message, Request
from fhir_server.operations.bulk.selection import Selection, select
from fhir_server.search.summary import subset
from fhir_server.store.exports import Exports, Job

SETTLE = 1.0  # seconds from the transaction time to the first read: who has a time stamp by then has committed

Kind = Literal["output", "deleted", "error"]


class Lost(Exception):
    """The job was cancelled, or another process has it now."""


class Doing:
    """One claim of one job. Its position is `type`, the number of the type it is at, and `after`, the id it got to."""

    def __init__(self, server: Server, exports: Exports, job: Job, holder: str, now: Callable[[], float]) -> None:
        self._server = server
        self._exports = exports
        self._job = job
        self._holder = holder
        self._now = now
        self._request = Request.decoded(job.request)
        self._files = [file for file in job.files if file.kind == "output"]
        self._messages = [Message(*one) for one in job.position.get("messages", ())]
        self._begin, self._after = int(job.position.get("type", 0)), str(job.position.get("after", ""))
        self._number = 0
        self._unsaved: list[str] = []  # files that nobody else knows of

    async def run(self) -> None:
        """Raises Lost, Unauthorized, and what may pass if it is tried again."""
        try:
            await self._do()
        except BaseException:
            await self._exports.discard(self._job.id, self._unsaved)
            raise

    async def _do(self) -> None:
        request = self._request
        await self._exports.keep_only(self._job.id, [file.name for file in self._files])
        await asyncio.sleep(max(0.0, self._job.created / 1000 + SETTLE - self._now()))
        context = Context(await self._principal(), request.base, lenient=request.lenient)
        for number, resource_type in enumerate(request.types[self._begin :], self._begin):
            await self._type(context, number, resource_type, self._after if number == self._begin else "")
            await self._save(number + 1, moved=True)
        if request.since >= 0:
            await self._write("Bundle", "deleted", deletions(self._server, context, request))
        await self._write("OperationOutcome", "error", _outcomes([*request.messages, *self._messages]))
        await self._save(len(request.types), moved=True)

    async def _principal(self) -> Principal:
        """Whoever asked, as far as they may see by now."""
        principal = self._request.who.principal()
        authority: Authority | None = self._server.rooms.get("authority")
        if principal.everything or authority is None:
            return principal
        return await authority.tokens.as_now(principal)

    async def _type(self, context: Context, number: int, resource_type: str, after: str) -> None:
        """A type that fails by itself leaves a message and none of its files; what may pass fails the claim."""
        if not after:
            await self._begin_anew(resource_type)
        try:
            selection = await select(self._server, context, self._request, resource_type, after)
            await self._lines(number, resource_type, selection)
        except (Unavailable, Unauthorized):
            raise
        except FhirError as error:
            await self._begin_anew(resource_type)
            self._messages += [
                Message(issue.severity, issue.code, f"{resource_type} is not in this export: {issue.diagnostics}")
                for issue in error.issues
            ]

    async def _lines(self, number: int, resource_type: str, selection: Selection) -> None:
        elements = self._request.elements_of(resource_type)
        writer: Writer | None = None
        try:
            async for stored in selection.matches:
                writer = writer or self._writer(resource_type, "output")
                await writer.add(dump(subset(load(stored.raw), "", elements)) if elements else stored.raw)
                if writer.full:
                    self._files.append(await writer.close())
                    writer = None
                    await self._save(number, stored.id if selection.goes_on else "", moved=selection.goes_on)
            if writer is not None:
                self._files.append(await writer.close())
                writer = None
        finally:
            if writer is not None:
                await writer.abandon()

    async def _begin_anew(self, resource_type: str) -> None:
        gone = [file.name for file in self._files if file.resource_type == resource_type]
        self._files = [file for file in self._files if file.resource_type != resource_type]
        await self._exports.discard(self._job.id, gone)

    async def _write(self, resource_type: str, kind: Kind, lines: AsyncIterator[bytes]) -> None:
        writer: Writer | None = None
        async for line in lines:
            writer = writer or self._writer(resource_type, kind)
            await writer.add(line)
            if writer.full:
                self._files.append(await writer.close())
                writer = None
        if writer is not None:
            self._files.append(await writer.close())

    def _writer(self, resource_type: str, kind: Kind) -> Writer:
        self._number += 1
        name = f"{resource_type}-{self._job.epoch}-{self._number}"
        self._unsaved.append(name)
        return Writer(self._exports, self._job.id, name, resource_type, kind)

    async def _save(self, number: int, after: str = "", *, moved: bool) -> None:
        messages = [[one.severity, one.code, one.text] for one in self._messages]
        position = {"type": number, "after": after, "messages": messages}
        if not await self._exports.save(self._job.id, self._holder, position, self._files, moved=moved):
            raise Lost
        self._unsaved.clear()


async def _outcomes(messages: Iterable[Message]) -> AsyncIterator[bytes]:
    for one in messages:
        issue = {"severity": one.severity, "code": one.code, "diagnostics": one.text}
        yield dump({"resourceType": "OperationOutcome", "issue": [issue]})

"""Bulk exports: what was asked for, who works on it, how far it is, and the files, in pieces.

exports (one collection)
    _id  job id            o   owner                st  state                 at  when it was asked for (ms)
    ab   what a client is told of it, opaque here   rq  what a worker needs, opaque here
    h    holder of the lease                        u   until when it is held (ms)
    e    epoch: counts the claims                   tr  claims since it last got anywhere
    po   position, opaque here                      fs  files, in their order
    er   why it failed                              x   when it ends (ms), once it is finished
export_pieces (one collection)
    _id  "job/file/number"  f  file                 b   bytes: the pieces of a file make one gzip stream

The files are in the database and not in a folder, so that every process of every host can serve them, whoever wrote them.
A holder that lost its lease writes under names of an epoch that nobody will read, and is told so at the next `save`.
Times are milliseconds since 1970 of the processes' own clocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pymongo import ReturnDocument
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.operations import IndexModel

from fhir_server.store.refusals import answering

Document = dict[str, Any]
State = Literal["new", "waiting", "running", "done", "failed", "gone"]
UNDER_WAY = ("new", "waiting", "running")
NEW_SECONDS = 60  # a job that was asked for by a process that then ended is removed after this
GRACE_MS = 600_000  # files outlive their end by this, for downloads that began before it


@dataclass(frozen=True, slots=True)
class File:
    """`size` and `packed`: bytes of NDJSON, and of the gzip stream that is kept of it."""

    name: str
    resource_type: str  # or OperationOutcome, or Bundle of what was deleted
    kind: Literal["output", "deleted", "error"]
    count: int
    size: int
    packed: int
    pieces: int


@dataclass(frozen=True, slots=True)
class Job:
    id: str
    owner: str
    state: State
    created: int
    about: Mapping[str, Any]
    request: bytes  # empty where a client asks
    epoch: int
    attempts: int
    position: Mapping[str, Any]
    files: tuple[File, ...]
    error: str
    expires: int


class Exports:
    def __init__(self, database: AsyncDatabase[Document]) -> None:
        self._jobs = database["exports"]
        self._pieces = database["export_pieces"]

    async def open(self) -> None:
        await self._jobs.create_indexes(
            [IndexModel([("st", 1), ("at", 1)], name="state"), IndexModel([("o", 1), ("st", 1)], name="owner")]
        )

    # The client's side

    @answering
    async def add(self, id: str, owner: str, about: Mapping[str, Any], request: bytes, now: int) -> None:
        """Nobody works on it before `admit`."""
        document: Document = {"_id": id, "o": owner, "st": "new", "at": now, "ab": dict(about), "rq": request}
        await self._jobs.insert_one({**document, "e": 0, "tr": 0, "po": {}, "fs": []})

    @answering
    async def admit(self, id: str) -> None:
        await self._jobs.update_one({"_id": id, "st": "new"}, {"$set": {"st": "waiting", "u": 0}})

    @answering
    async def refuse(self, id: str) -> None:
        await self._jobs.delete_one({"_id": id, "st": "new"})

    @answering
    async def counts(self, owner: str, now: int) -> tuple[int, int, int]:
        """How many are under way in all, how many of this owner's, and how many of this owner's have files."""
        every = await self._jobs.count_documents({"st": {"$in": UNDER_WAY}})
        own = await self._jobs.count_documents({"o": owner, "st": {"$in": UNDER_WAY}})
        return every, own, await self._jobs.count_documents({"o": owner, "st": "done", "x": {"$gt": now}})

    @answering
    async def find(self, id: str, owner: str, now: int) -> Job | None:
        """None for another's, and for what has ended or was taken away."""
        alive = {"$or": [{"x": None}, {"x": {"$gt": now}}], "st": {"$nin": ["new", "gone"]}}
        found = await self._jobs.find_one({"_id": id, "o": owner, **alive}, {"rq": 0})
        return _job(found) if found is not None else None

    @answering
    async def cancel(self, id: str, owner: str) -> bool:
        """From now on it is not there; who works on it notices at the next step."""
        change = {"$set": {"st": "gone", "x": 0}, "$unset": {"h": ""}}
        found = await self._jobs.update_one({"_id": id, "o": owner, "st": {"$nin": ["new", "gone"]}}, change)
        if found.modified_count:
            await self._drop(id)
        return bool(found.modified_count)

    @answering
    async def piece(self, id: str, file: str, number: int) -> bytes | None:
        found = await self._pieces.find_one({"_id": _piece(id, file, number)})
        return found["b"] if found is not None else None

    # The worker's side

    @answering
    async def claim(self, holder: str, now: int, until: int) -> Job | None:
        """The oldest that nobody works on."""
        found = await self._jobs.find_one_and_update(
            {"st": {"$in": ["waiting", "running"]}, "u": {"$lt": now}},
            {"$set": {"st": "running", "h": holder, "u": until}, "$inc": {"e": 1, "tr": 1}},
            sort=[("at", 1)],
            return_document=ReturnDocument.AFTER,
        )
        return _job(found) if found is not None else None

    @answering
    async def renew(self, id: str, holder: str, until: int) -> bool:
        found = await self._jobs.update_one({"_id": id, "h": holder}, {"$set": {"u": until}})
        return bool(found.matched_count)

    @answering
    async def save(
        self, id: str, holder: str, position: Mapping[str, Any], files: Sequence[File], *, moved: bool
    ) -> bool:
        """How far it is, for whoever goes on. `moved`: it would go on from here. False: the lease is lost."""
        change: Document = {"po": dict(position), "fs": [asdict(file) for file in files]}
        if moved:
            change["tr"] = 0
        return bool((await self._jobs.update_one({"_id": id, "h": holder}, {"$set": change})).matched_count)

    @answering
    async def finish(self, id: str, holder: str, expires: int, *, error: str = "") -> bool:
        change = {"$set": {"st": "failed" if error else "done", "er": error, "x": expires}, "$unset": {"h": ""}}
        return bool((await self._jobs.update_one({"_id": id, "h": holder}, change)).matched_count)

    @answering
    async def release(self, id: str, holder: str, until: int) -> None:
        """Anybody may go on with it, from `until` on."""
        await self._jobs.update_one({"_id": id, "h": holder}, {"$set": {"u": until}, "$unset": {"h": ""}})

    @answering
    async def put_piece(self, id: str, file: str, number: int, data: bytes) -> None:
        await self._pieces.insert_one({"_id": _piece(id, file, number), "f": file, "b": data})

    @answering
    async def keep_only(self, id: str, files: Sequence[str]) -> None:
        """Removes pieces of other files of this job."""
        await self._drop(id, {"f": {"$nin": list(files)}})

    @answering
    async def discard(self, id: str, files: Sequence[str]) -> None:
        """Removes pieces of these files."""
        if files:
            await self._drop(id, {"f": {"$in": list(files)}})

    @answering
    async def sweep(self, now: int) -> int:
        """Removes what has ended, files first; returns how many jobs."""
        over = {
            "$or": [
                {"st": {"$in": ["done", "failed", "gone"]}, "x": {"$lt": now - GRACE_MS}},
                {"st": "new", "at": {"$lt": now - NEW_SECONDS * 1000}},
            ]
        }
        removed = 0
        for found in await self._jobs.find(over, {"_id": 1}).to_list():
            await self._drop(found["_id"])
            await self._jobs.delete_one({"_id": found["_id"]})
            removed += 1
        return removed

    async def _drop(self, id: str, more: Mapping[str, Any] | None = None) -> None:
        await self._pieces.delete_many({"_id": {"$gt": f"{id}/", "$lt": f"{id}0"}, **(more or {})})  # "0" follows "/"


def _piece(id: str, file: str, number: int) -> str:
    return f"{id}/{file}/{number:06d}"


def _job(found: Document) -> Job:
    return Job(
        found["_id"],
        found["o"],
        found["st"],
        found["at"],
        found["ab"],
        found.get("rq", b""),
        found["e"],
        found["tr"],
        found["po"],
        tuple(File(**file) for file in found["fs"]),
        found.get("er", ""),
        found.get("x", 0),
    )

"""The store on MongoDB: reads that share a command, finds on indexes, one transaction for whatever is committed together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from bson import Timestamp
from bson.codec_options import CodecOptions
from pymongo import AsyncMongoClient, ReadPreference
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError
from pymongo.operations import UpdateOne
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from fhir_server.store import documents as d
from fhir_server.store.commit import Committer
from fhir_server.store.history import History
from fhir_server.store.indexes import Collections, own_record
from fhir_server.store.lane import Lane, Waiting
from fhir_server.store.protocol import Event, Extra, Find, HistoryPage, Index, Key, Put, Stored
from fhir_server.store.refusals import answering, in_words

Document = dict[str, Any]
DURABLE = WriteConcern(w="majority", j=True)
WITHOUT_ENTRIES = {d.ENTRIES: 0}
WITHOUT_CONTENT = {d.ENTRIES: 0, d.RAW: 0}
BATCH = 500  # of a stream; large ones come fewer at a time, because a reply ends at 16 MB


class MongoStore:
    """`store.protocol.Store` on a replica set or sharded cluster. `indexes` says what a type's collection needs."""

    def __init__(
        self,
        url: str,
        database: str,
        indexes: Callable[[str], Sequence[Index]],
    ) -> None:
        self._url = url
        self._name = database
        self._wanted = indexes
        self.client: AsyncMongoClient[Document]
        self.database: AsyncDatabase[Document]

    async def open(self) -> None:
        """Connects, and returns when every collection has the indexes its searches rely on."""
        self.client = AsyncMongoClient(
            self._url,
            retryWrites=True,
            retryReads=True,
            maxPoolSize=32,
            uuidRepresentation="standard",
            appname="fhir-server",
        )
        self.database = self.client.get_database(
            self._name,
            codec_options=CodecOptions(document_class=dict),
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern("local"),
            write_concern=DURABLE,
        )
        self.collections = Collections(self.database, self._wanted)
        await self.collections.open()
        self._history = History(self.database, self.collections)
        self._committer = Committer(self.client, self.database, self.collections)
        self._reads: dict[str, Lane[str, Stored | None]] = {}

    async def close(self) -> None:
        await self._committer.drain()
        with contextlib.suppress(TimeoutError):  # it would tell a server that has gone that its sessions have ended
            async with asyncio.timeout(2):
                await self.client.close()

    @property
    def process(self) -> str:
        """What the ids of events committed here end in."""
        return self._committer.process

    async def ready(self) -> bool:
        try:
            await asyncio.wait_for(self.client.admin.command("ping"), 2)
        except (PyMongoError, TimeoutError):
            return False
        return True

    # Reads

    @answering
    async def read(self, resource_type: str, id: str) -> Stored | None:
        lane = self._reads.get(resource_type)
        if lane is None:
            lane = self._reads[resource_type] = Lane(self._reader(resource_type), width=2, most=64)
        return await lane.call(id)

    def _reader(self, resource_type: str) -> Callable[[list[Waiting[str, Stored | None]]], Any]:
        collection = self.database[resource_type]

        async def serve(batch: list[Waiting[str, Stored | None]]) -> None:
            ids = {waiting.item for waiting in batch}
            condition = {d.ID: ids.pop()} if len(ids) == 1 else {d.ID: {"$in": list(ids)}}
            found = {
                document[d.ID]: d.stored(resource_type, document)
                for document in await collection.find(condition, WITHOUT_ENTRIES, batch_size=1000).to_list()
            }
            for waiting in batch:
                if not waiting.done.done():
                    waiting.done.set_result(found.get(waiting.item))

        return serve

    @answering
    async def read_many(self, keys: Sequence[Key], *, raw: bool = True) -> dict[Key, Stored]:
        by_type: dict[str, list[str]] = {}
        for resource_type, id in dict.fromkeys(keys):
            by_type.setdefault(resource_type, []).append(id)
        found: dict[Key, Stored] = {}
        for resource_type, ids in by_type.items():
            for start in range(0, len(ids), 1000):
                condition = {d.ID: {"$in": ids[start : start + 1000]}}
                cursor = self.database[resource_type].find(condition, WITHOUT_ENTRIES if raw else WITHOUT_CONTENT)
                async for document in cursor:
                    found[resource_type, document[d.ID]] = d.stored(resource_type, document)
        return found

    @answering
    async def read_version(self, resource_type: str, id: str, version: int) -> Stored | None:
        return await self._history.version(resource_type, id, version)

    @answering
    async def history(
        self,
        resource_type: str | None,
        id: str | None,
        *,
        since: int | None,
        until: int | None,
        before: tuple[int, str, int] | None,
        limit: int,
        patients: frozenset[str] | None,
    ) -> HistoryPage:
        return await self._history.page(
            resource_type, id, since=since, until=until, before=before, limit=limit, patients=patients
        )

    # Writes

    @answering
    async def commit(self, puts: Sequence[Put], extras: Sequence[Extra] = ()) -> list[Event]:
        return await self._committer.commit(puts, extras)

    def events(self, puts: Sequence[Put]) -> list[Event]:
        return self._committer.events(puts)

    @answering
    async def claim_holder(self, key: str) -> str:
        claim = await self.database[d.CLAIMS].find_one({d.ID: key})
        return str(claim["h"]) if claim else ""

    @answering
    async def replace_entries(self, resource_type: str, changes: Sequence[Stored]) -> int:
        if not changes:
            return 0
        await self.collections.ensure(resource_type)
        result = await self.database[resource_type].bulk_write(
            [
                UpdateOne(
                    {d.ID: change.id, d.VERSION: change.version, d.DELETED: None},
                    {"$set": {d.ENTRIES: change.entries, d.PATIENTS: list(change.patients)}},
                )
                for change in changes
            ],
            ordered=False,
        )
        return result.matched_count

    # Finds

    @answering
    async def find(self, find: Find) -> list[Stored]:
        if find.computed:
            return await self._find_computed(find)
        cursor = self._collection(find).find(
            find.filter,
            _projection(find),
            sort=list(find.sort) or None,
            limit=find.limit,
            batch_size=min(find.limit, 1000) + 1 if find.limit else 1000,
            hint=find.hint or own_record(find.filter),
            session=find.snapshot,
        )
        return [d.stored(find.resource_type, document) for document in await cursor.to_list()]

    async def stream(self, find: Find) -> AsyncIterator[Stored]:
        cursor = self._collection(find).find(
            find.filter,
            _projection(find),
            sort=list(find.sort) or None,
            limit=find.limit,
            batch_size=BATCH,
            hint=find.hint or own_record(find.filter),
            session=find.snapshot,
        )
        try:
            async with cursor:
                async for document in cursor:
                    yield d.stored(find.resource_type, document)
        except PyMongoError as error:
            raise in_words(error) from error

    async def _find_computed(self, find: Find) -> list[Stored]:
        cursor = await self._collection(find).aggregate(
            _pipeline(find), allowDiskUse=True, session=find.snapshot, **_hint(find.filter)
        )
        return [d.stored(find.resource_type, document) for document in await cursor.to_list()]

    @answering
    async def distinct(
        self, resource_type: str, path: str, filter: Mapping[str, Any], limit: int, snapshot: Any = None
    ) -> list[Any]:
        collection = self.database[resource_type]
        if snapshot is not None:
            collection = collection.with_options(read_concern=ReadConcern())
        # Not the distinct command: its answer is one document and so ends at 16 MB.
        stages: list[Document] = [
            {"$match": filter},
            {"$project": {"_id": 0, "x": "$" + path}},
            {"$unwind": "$x"},
            {"$group": {"_id": "$x"}},
            {"$limit": limit},
        ]
        cursor = await collection.aggregate(stages, allowDiskUse=True, session=snapshot, **_hint(filter))
        return [document["_id"] async for document in cursor]

    @answering
    async def count(self, resource_type: str, filter: Mapping[str, Any], limit: int = 0) -> int:
        options: dict[str, Any] = {"limit": limit} if limit else {}
        return await self.database[resource_type].count_documents(filter, **options, **_hint(filter))

    @answering
    async def explain(self, find: Find) -> dict[str, Any]:
        """MongoDB's own executionStats for this find."""
        if find.computed:
            aggregate = {"aggregate": find.resource_type, "pipeline": _pipeline(find), "cursor": {}}
            return dict(await self.database.command("explain", aggregate, verbosity="executionStats"))
        command: Document = {"find": find.resource_type, "filter": find.filter}
        projection = _projection(find)
        if projection:
            command["projection"] = projection
        if find.sort:
            command["sort"] = dict(find.sort)
        if find.limit:
            command["limit"] = find.limit
        if hint := find.hint or own_record(find.filter):
            command["hint"] = hint
        answer: dict[str, Any] = await self.database.command("explain", command, verbosity="executionStats")
        return answer

    @asynccontextmanager
    async def snapshot(self, at: str = "") -> AsyncIterator[AsyncClientSession]:
        async with self.client.start_session(snapshot=True) as session:
            if at:
                # PyMongo has no public way to name the moment yet (DRIVERS-2782); without it, the snapshot is of now.
                seconds, _, increment = at.partition(".")
                session._snapshot_time = Timestamp(int(seconds), int(increment))  # type: ignore[assignment]
            yield session

    def moment(self, token: Any) -> str:
        seen = getattr(token, "_snapshot_time", None)
        return f"{seen.time}.{seen.inc}" if isinstance(seen, Timestamp) else ""

    async def scan(
        self, resource_type: str, *, after: str = "", filter: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Stored]:
        condition = {**(filter or {}), **d.LIVE, d.ID: {"$gt": after}}
        async for document in self.database[resource_type].find(
            condition, WITHOUT_ENTRIES, sort=[(d.ID, 1)], hint="_id_"
        ):
            yield d.stored(resource_type, document)

    async def ensure_indexes(self, resource_type: str) -> None:
        await self.collections.build(resource_type)

    @answering
    async def resource_types(self) -> list[str]:
        return await self.collections.types()

    @answering
    async def setting(self, name: str) -> dict[str, Any] | None:
        return await self.database[d.SETTINGS].find_one({d.ID: name})

    @answering
    async def set_setting(self, name: str, value: Mapping[str, Any], *, if_absent: bool = False) -> None:
        change = {"$setOnInsert": dict(value)} if if_absent else {"$set": dict(value)}
        await self.database[d.SETTINGS].update_one({d.ID: name}, change, upsert=True)

    def _collection(self, find: Find) -> AsyncCollection[Document]:
        collection = self.database[find.resource_type]
        # A session that reads one moment brings its own read concern.
        return collection.with_options(read_concern=ReadConcern()) if find.snapshot is not None else collection


def _hint(filter: Mapping[str, Any]) -> dict[str, Any]:
    hint = own_record(filter)
    return {"hint": hint} if hint else {}


def _pipeline(find: Find) -> list[Document]:
    stages: list[Document] = [{"$match": find.filter}, {"$set": dict(find.computed)}]
    if find.after:
        stages.append({"$match": find.after})
    if find.sort:
        stages.append({"$sort": dict(find.sort)})
    if find.limit:
        stages.append({"$limit": find.limit})
    projection = _projection(find)
    if projection:
        stages.append({"$project": projection})
    return stages


def _projection(find: Find) -> Document | None:
    if find.entries == ("*",):
        return None if find.raw else {d.RAW: 0}
    if not find.entries:
        return WITHOUT_ENTRIES if find.raw else WITHOUT_CONTENT
    wanted: Document = dict.fromkeys((d.VERSION, d.UPDATED, d.DELETED, d.METHOD, d.PATIENTS), 1)
    if find.raw:
        wanted[d.RAW] = 1
    wanted.update((d.entry_path(name), 1) for name in find.entries)
    return wanted

"""Collections and their indexes: made on first use, checked at the start; nothing is served without the index it needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import CollectionInvalid
from pymongo.operations import IndexModel

from fhir_server.store import documents as d
from fhir_server.store.protocol import CUSTOM, Index

MOST_INDEXES = 64  # MongoDB's limit for one collection
PATIENT_INDEX = "_patient"
FEW = 20  # patients: with more, their records may be more than what a find looks for
CLAIM_SECONDS = 86_400  # a claim only matters while two equal requests overlap

# What every collection of current versions has, whatever its search parameters.
SYSTEM_INDEXES = (
    Index("_updated", ((d.UPDATED, -1), (d.ID, 1))),
    Index(PATIENT_INDEX, ((d.PATIENTS, 1), (d.UPDATED, -1), (d.ID, 1)), {d.PATIENTS: {"$exists": True}}),
)

_OWN: dict[str, list[IndexModel]] = {
    d.HISTORY: [
        IndexModel([("rt", 1), ("id", 1), (d.VERSION, -1)], name="version"),
        IndexModel([("rt", 1), (d.UPDATED, -1), ("id", 1), (d.VERSION, -1)], name="type"),
        IndexModel([(d.UPDATED, -1), ("rt", 1), ("id", 1), (d.VERSION, -1)], name="system"),
        IndexModel(
            [(d.PATIENTS, 1), (d.UPDATED, -1)], name="patient", partialFilterExpression={d.PATIENTS: {"$exists": True}}
        ),
    ],
    d.OUTBOX: [],
    d.CLAIMS: [IndexModel([("at", 1)], name="at", expireAfterSeconds=CLAIM_SECONDS)],
    d.SETTINGS: [],
}


class Collections:
    """Knows which collections exist with their indexes; `ensure` is free after the first time."""

    def __init__(self, database: AsyncDatabase[dict[str, Any]], wanted: Callable[[str], Sequence[Index]]) -> None:
        self._database = database
        self._wanted = wanted
        self._ready: dict[str, asyncio.Task[None]] = {}

    async def open(self) -> None:
        names = set(await self._database.list_collection_names())
        for name, models in _OWN.items():
            if name not in names:
                await self._create(name)
            if models:
                await self._database[name].create_indexes(models)
        types = [name for name in names if name[:1].isupper()]
        await asyncio.gather(*(self.ensure(name) for name in types))

    async def types(self) -> list[str]:
        return sorted(name for name in await self._database.list_collection_names() if name[:1].isupper())

    async def ensure(self, resource_type: str) -> None:
        task = self._ready.get(resource_type)
        if task is None:
            task = self._ready[resource_type] = asyncio.create_task(self.build(resource_type))
        if not task.done():
            try:
                await asyncio.shield(task)
            except Exception:
                self._ready.pop(resource_type, None)
                raise

    async def build(self, resource_type: str) -> None:
        """Create what is missing, drop what nobody wants any more (ours have names that change with their keys)."""
        wanted = {index.name: index for index in (*SYSTEM_INDEXES, *self._wanted(resource_type))}
        collection = self._database[resource_type]
        await self._create(resource_type)
        present = {index["name"] async for index in await collection.list_indexes()}
        unwanted = sorted(n for n in present - set(wanted) - {"_id_"} if not n.startswith(CUSTOM))
        missing = [_model(index) for name, index in wanted.items() if name not in present]
        # The new ones first, so that no search is ever without an index; unless both would not fit side by side.
        crowded = max(0, len(present) + len(missing) - MOST_INDEXES)
        for name in unwanted[:crowded]:
            await collection.drop_index(name)
        if missing:
            await collection.create_indexes(missing)
        for name in unwanted[crowded:]:
            await collection.drop_index(name)

    async def _create(self, name: str) -> None:
        try:
            await self._database.create_collection(name, check_exists=False)
        except CollectionInvalid:
            return
        except Exception as error:
            if getattr(error, "code", None) != 48:  # NamespaceExists
                raise


def own_record(filter: Mapping[str, Any]) -> str | None:
    """The index to be told to a find that is confined to the compartments of some patients; None: MongoDB chooses.

    It would choose by trying, what takes longer the more others have that fits: whoever may only see some patients could tell
    from the time what there is. Left to choose are finds by id, and of a confined patient's own (its indexes hold no others).
    """
    found: dict[str, Any] = {}
    patients: Sequence[str] = ()
    for part in (filter, *_conjuncts(filter)):
        for path, value in part.items():
            found.setdefault(path, value)
            if path == d.PATIENTS and not patients:
                patients = [value] if isinstance(value, str) else value.get("$in", ())
    id = found.get(d.ID)
    if not 0 < len(patients) <= FEW or isinstance(id, str) or (isinstance(id, Mapping) and "$in" in id):
        return None
    own = {f"Patient/{patient}" for patient in patients}
    if any(
        isinstance(subject := found.get(d.entry_path(name)), str) and subject in own for name in ("subject", "patient")
    ):
        return None
    return PATIENT_INDEX


def _conjuncts(filter: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for part in filter.get("$and", ()):
        yield part
        yield from _conjuncts(part)


def _model(index: Index) -> IndexModel:
    options: dict[str, Any] = {"name": index.name}
    if index.partial is not None:
        options["partialFilterExpression"] = dict(index.partial)
    return IndexModel(list(index.keys), **options)

"""What Subscriptions have to tell, kept until it is told, and what is known of those who want to hear it.

notifications (one collection): what waits
    _id  "subscription/Type/id/version"    s  subscription    rt, id, v  what it is about    t  its lastUpdated (ms)
    n    its number, from the first attempt on
subscribers (one collection; nothing here is served)
    _id  id of the Subscription    o  in whose name (claims, see auth/tokens.py; absent: --open)
    to   endpoint                  h  headers to be sent to it
    n    the last number given     w, u  who delivers, until when (ms)
    a    not before (ms)           f, s  failures in a row, since when (ms)

A notification is written by the transaction of the version it is about: there is none without it, and none is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pymongo import ReturnDocument
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.operations import IndexModel

from fhir_server.store.documents import ID
from fhir_server.store.protocol import Extra
from fhir_server.store.refusals import answering

Document = dict[str, Any]
HIDDEN = "***"  # stands in the resource for what a header says


@dataclass(frozen=True, slots=True)
class Notification:
    """One version that one Subscription wants to hear of. `number` 0: none was given yet."""

    subscription: str
    resource_type: str
    resource_id: str
    version: int
    updated: int  # ms; the order in which they are told
    number: int = 0

    @property
    def id(self) -> str:
        return f"{self.subscription}/{self.resource_type}/{self.resource_id}/{self.version}"


@dataclass(frozen=True, slots=True)
class Subscriber:
    """`owner` None: whoever it was under --open. `since` (ms): of the first of the failures in a row."""

    id: str
    owner: dict[str, Any] | None
    headers: tuple[str, ...]
    failures: int = 0
    since: int = 0


@dataclass(frozen=True, slots=True)
class _Recording:
    collection: AsyncCollection[Document]
    notifications: tuple[Notification, ...]

    async def __call__(self, session: Any) -> None:
        documents = [_document(one) for one in self.notifications]
        await self.collection.insert_many(documents, ordered=False, session=session)

    def beside(self, other: Extra) -> Extra | None:
        if not isinstance(other, _Recording):
            return None
        return replace(self, notifications=(*self.notifications, *other.notifications))


@dataclass(frozen=True, slots=True)
class _Registration:
    collection: AsyncCollection[Document]
    id: str
    owner: dict[str, Any] | None
    endpoint: str
    headers: tuple[str, ...]

    async def __call__(self, session: Any) -> None:
        """What begins anew has no failures. A header that comes back hidden stays what it was, for the same endpoint only:
        nobody gets to know it by having it sent elsewhere."""
        known = await self.collection.find_one({ID: self.id}, session=session) or {}
        before = known.get("h", ()) if known.get("to") == self.endpoint else ()
        secret = {_name(header): header for header in before}
        headers = [secret.get(_name(header)) if _is_hidden(header) else header for header in self.headers]
        document: Document = {
            ID: self.id,
            "to": self.endpoint,
            "h": [one for one in headers if one],
            "n": known.get("n", 0),
        }
        if self.owner is not None:
            document["o"] = self.owner
        await self.collection.replace_one({ID: self.id}, document, upsert=True, session=session)

    def beside(self, other: Extra) -> Extra | None:
        return None


class Notifications:
    def __init__(self, database: AsyncDatabase[Document]) -> None:
        self._notifications = database["notifications"]
        self._subscribers = database["subscribers"]

    @answering
    async def open(self) -> None:
        await self._notifications.create_indexes([IndexModel([("s", 1), ("t", 1), ("v", 1)], name="order")])
        await self._subscribers.create_indexes([IndexModel([("u", 1)], name="lease")])

    # In a commit

    def record(self, notifications: Sequence[Notification]) -> Extra:
        return _Recording(self._notifications, tuple(notifications))

    def register(self, id: str, owner: dict[str, Any] | None, endpoint: str, headers: Sequence[str]) -> Extra:
        return _Registration(self._subscribers, id, owner, endpoint, tuple(headers))

    # Subscribers

    @answering
    async def subscriber(self, id: str) -> Subscriber | None:
        found = await self._subscribers.find_one({ID: id})
        return _subscriber(found) if found is not None else None

    @answering
    async def all_subscribers(self) -> list[str]:
        return [str(one[ID]) async for one in self._subscribers.find({}, {ID: 1})]

    @answering
    async def lease(self, id: str, holder: str, now: int, until: int) -> Subscriber | None:
        """The subscriber if the holder may deliver to it until then (ms), and it is time."""
        free = {"$or": [{"w": holder}, {"u": {"$lt": now}}, {"u": None}]}
        found = await self._subscribers.find_one_and_update(
            {ID: id, **free}, {"$set": {"w": holder, "u": until}}, return_document=ReturnDocument.AFTER
        )
        if found is None or found.get("a", 0) > now:
            return None
        return _subscriber(found)

    @answering
    async def release(self, id: str, holder: str) -> None:
        await self._subscribers.update_one({ID: id, "w": holder}, {"$unset": {"w": "", "u": ""}})

    @answering
    async def went_well(self, id: str) -> None:
        await self._subscribers.update_one({ID: id}, {"$unset": {"f": "", "s": "", "a": ""}})

    @answering
    async def failed(self, id: str, now: int, not_before: int) -> None:
        known = {"s": {"$ifNull": ["$s", now]}, "f": {"$add": [{"$ifNull": ["$f", 0]}, 1]}}
        await self._subscribers.update_one({ID: id}, [{"$set": {**known, "a": not_before}}])

    @answering
    async def forget(self, id: str) -> None:
        """The Subscription is gone, and with it what it had to tell."""
        await self.remove_all(id)
        await self._subscribers.delete_one({ID: id})

    # Notifications

    @answering
    async def waiting_for(self) -> list[str]:
        """The Subscriptions that have something to tell."""
        return [str(one) for one in await self._notifications.distinct("s")]

    @answering
    async def waiting(self, id: str, limit: int) -> list[Notification]:
        """Oldest first."""
        cursor = self._notifications.find({"s": id}, sort=[("t", 1), ("v", 1)], limit=limit)
        return [_notification(one) for one in await cursor.to_list()]

    @answering
    async def number(self, subscriber: Subscriber, holder: str, notification: Notification) -> Notification | None:
        """With its number, durable before it is sent; None if somebody else delivers now."""
        if notification.number:
            return notification
        found = await self._subscribers.find_one_and_update(
            {ID: subscriber.id, "w": holder}, {"$inc": {"n": 1}}, {"n": 1}, return_document=ReturnDocument.AFTER
        )
        if found is None:
            return None
        await self._notifications.update_one({ID: notification.id}, {"$set": {"n": found["n"]}})
        return replace(notification, number=int(found["n"]))

    @answering
    async def remove(self, notification: Notification) -> None:
        """It was told, or nobody may hear of it."""
        await self._notifications.delete_one({ID: notification.id})

    @answering
    async def remove_all(self, id: str) -> None:
        await self._notifications.delete_many({"s": id})


def _document(one: Notification) -> Document:
    about = {"rt": one.resource_type, "id": one.resource_id, "v": one.version, "t": one.updated}
    return {ID: one.id, "s": one.subscription, **about}


def _notification(found: Document) -> Notification:
    return Notification(found["s"], found["rt"], found["id"], found["v"], found["t"], found.get("n", 0))


def _subscriber(found: Document) -> Subscriber:
    return Subscriber(found[ID], found.get("o"), tuple(found.get("h", ())), found.get("f", 0), found.get("s", 0))


def _name(header: str) -> str:
    return header.partition(":")[0].strip().lower()


def _is_hidden(header: str) -> bool:
    return header.partition(":")[2].strip() == HIDDEN

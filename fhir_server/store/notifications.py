"""What Subscriptions have to tell, kept until it is told, and what is known of those who want to hear it.

notifications (one collection)
    _id  "subscription/Type/id/version"       s  subscription       rt, id, v  what it is about     t  its lastUpdated (ms)
    n    its number, from the first attempt on    w  true while it waits    at  when it was delivered (date): removed by TTL
subscribers (one collection; nothing here is served)
    _id  id of the Subscription    o  in whose name (claims, see auth/tokens.py; absent: --open)    h  headers to be sent
    n    the last number given     w, u  who delivers, until when (ms)
    a    not before (ms)           f, s, x  failures in a row, since when (ms), the last one in words

A notification is written by the transaction of the version it is about: there is none without it, and none is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pymongo import ReturnDocument
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.operations import IndexModel

from fhir_server.store.documents import ID
from fhir_server.store.protocol import Extra

Document = dict[str, Any]
KEPT_SECONDS = 7 * 86400  # a delivered notification can be asked for again with $events
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
    waiting: bool = True

    @property
    def id(self) -> str:
        return f"{self.subscription}/{self.resource_type}/{self.resource_id}/{self.version}"


@dataclass(frozen=True, slots=True)
class Subscriber:
    """`owner` None: whoever it was under --open. `since` (ms): of the first of the failures in a row."""

    id: str
    owner: dict[str, Any] | None
    headers: tuple[str, ...]
    number: int = 0
    not_before: int = 0
    failures: int = 0
    since: int = 0
    problem: str = ""


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
    headers: tuple[str, ...]

    async def __call__(self, session: Any) -> None:
        """What begins anew has no failures; a header that came back hidden stays what it was."""
        known = await self.collection.find_one({ID: self.id}, session=session) or {}
        before = {header.partition(":")[0].lower(): header for header in known.get("h", ())}
        headers = [
            before.get(name.lower(), header) if value.strip() == HIDDEN else header
            for header in self.headers
            for name, _, value in [header.partition(":")]
        ]
        document: Document = {ID: self.id, "h": headers, "n": known.get("n", 0)}
        if self.owner is not None:
            document["o"] = self.owner
        await self.collection.replace_one({ID: self.id}, document, upsert=True, session=session)

    def beside(self, other: Extra) -> Extra | None:
        return None


class Notifications:
    def __init__(self, database: AsyncDatabase[Document]) -> None:
        self._notifications = database["notifications"]
        self._subscribers = database["subscribers"]

    async def open(self) -> None:
        waiting = {"partialFilterExpression": {"w": True}}
        await self._notifications.create_indexes(
            [
                IndexModel([("s", 1), ("t", 1), ("v", 1)], name="waiting", **waiting),
                IndexModel([("s", 1), ("n", 1)], name="number"),
                IndexModel([("at", 1)], name="kept", expireAfterSeconds=KEPT_SECONDS),
            ]
        )
        await self._subscribers.create_indexes([IndexModel([("u", 1)], name="lease")])

    # In a commit

    def record(self, notifications: Sequence[Notification]) -> Extra:
        return _Recording(self._notifications, tuple(notifications))

    def register(self, id: str, owner: dict[str, Any] | None, headers: Sequence[str]) -> Extra:
        return _Registration(self._subscribers, id, owner, tuple(headers))

    # Subscribers

    async def subscriber(self, id: str) -> Subscriber | None:
        found = await self._subscribers.find_one({ID: id})
        return _subscriber(found) if found is not None else None

    async def all_subscribers(self) -> list[str]:
        return [str(one[ID]) async for one in self._subscribers.find({}, {ID: 1})]

    async def lease(self, id: str, holder: str, now: int, until: int) -> Subscriber | None:
        """The subscriber if the holder may deliver to it until then (ms), and it is time."""
        free = {"$or": [{"w": holder}, {"u": {"$lt": now}}, {"u": None}]}
        found = await self._subscribers.find_one_and_update(
            {ID: id, **free}, {"$set": {"w": holder, "u": until}}, return_document=ReturnDocument.AFTER
        )
        if found is None or found.get("a", 0) > now:
            return None
        return _subscriber(found)

    async def release(self, id: str, holder: str) -> None:
        await self._subscribers.update_one({ID: id, "w": holder}, {"$unset": {"w": "", "u": ""}})

    async def went_well(self, id: str) -> None:
        await self._subscribers.update_one({ID: id}, {"$unset": {"f": "", "s": "", "x": "", "a": ""}})

    async def failed(self, id: str, problem: str, now: int, not_before: int) -> None:
        known = {"s": {"$ifNull": ["$s", now]}, "f": {"$add": [{"$ifNull": ["$f", 0]}, 1]}}
        change = [{"$set": {**known, "x": {"$literal": problem}, "a": not_before}}]
        await self._subscribers.update_one({ID: id}, change)

    async def forget(self, id: str) -> None:
        """The Subscription is gone, and with it what it had to tell."""
        await self._notifications.delete_many({"s": id})
        await self._subscribers.delete_one({ID: id})

    # Notifications

    async def waiting_for(self) -> list[str]:
        """The Subscriptions that have something to tell."""
        return [str(one) for one in await self._notifications.distinct("s", {"w": True})]

    async def waiting(self, id: str, limit: int) -> list[Notification]:
        """Oldest first."""
        cursor = self._notifications.find({"s": id, "w": True}, sort=[("t", 1), ("v", 1)], limit=limit)
        return [_notification(one) for one in await cursor.to_list()]

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

    async def delivered(self, notification: Notification) -> None:
        at = datetime.now(UTC)
        await self._notifications.update_one({ID: notification.id}, {"$set": {"at": at}, "$unset": {"w": ""}})

    async def drop(self, notifications: Sequence[Notification]) -> None:
        """Nobody may hear of these."""
        await self._notifications.delete_many({ID: {"$in": [one.id for one in notifications]}})

    async def drop_waiting(self, id: str) -> None:
        await self._notifications.delete_many({"s": id, "w": True})

    async def count_waiting(self, id: str) -> int:
        return await self._notifications.count_documents({"s": id, "w": True})

    async def numbered(self, id: str, since: int, until: int, limit: int) -> list[Notification]:
        """Those with a number from `since` to `until`, in order."""
        cursor = self._notifications.find({"s": id, "n": {"$gte": since, "$lte": until}}, sort=[("n", 1)], limit=limit)
        return [_notification(one) for one in await cursor.to_list()]


def _document(one: Notification) -> Document:
    return {
        ID: one.id,
        "s": one.subscription,
        "rt": one.resource_type,
        "id": one.resource_id,
        "v": one.version,
        "t": one.updated,
        "w": True,
    }


def _notification(found: Document) -> Notification:
    return Notification(
        found["s"], found["rt"], found["id"], found["v"], found["t"], found.get("n", 0), found.get("w", False)
    )


def _subscriber(found: Document) -> Subscriber:
    return Subscriber(
        found[ID],
        found.get("o"),
        tuple(found.get("h", ())),
        found.get("n", 0),
        found.get("a", 0),
        found.get("f", 0),
        found.get("s", 0),
        found.get("x", ""),
    )

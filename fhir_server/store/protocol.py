"""What the rest of the server may ask of the store; nothing here knows MongoDB.

A change is a value (`Put`); `Store.commit` decides once: precondition, current version, superseded version to history,
outbox event, all in one transaction.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Key = tuple[str, str]  # (resource type, id)
Entries = Mapping[str, Any]  # search entries: field name under `s` → value; made by search/index.py
Method = Literal["create", "update", "delete"]


@dataclass(frozen=True, slots=True)
class Stored:
    """One version as the store has it. `raw` is the JSON that is served as it is; a deleted version has none."""

    resource_type: str
    id: str
    version: int
    updated: int  # meta.lastUpdated, milliseconds since 1970-01-01 UTC
    raw: bytes
    deleted: bool = False
    method: Method = "create"
    patients: tuple[str, ...] = ()  # ids of the Patients whose compartments hold it
    entries: Entries = field(default_factory=dict)  # only filled where asked for


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a change was made: empty for a client's own write, otherwise the chain of outbox events that led to it."""

    chain: tuple[str, ...] = ()  # event ids, oldest first; longer than 8 stops (hooks: loops)
    rule: str = ""  # canonical|version of the rule that proposed the change
    agent: str = ""  # who wrote: client or user reference, or the automation device


@dataclass(frozen=True, slots=True)
class Claim:
    """A promise that these criteria had no match: `holder` is the stale claim seen before searching, if there was one."""

    key: str
    holder: str = ""


class Extra(Protocol):
    """Work to be done in the very transaction of a commit; made by the store's own modules (outbox, ledgers) for others."""

    async def __call__(self, session: Any) -> None: ...

    def beside(self, other: Extra) -> Extra | None:
        """Both in one, where one command of the database does for both."""


@dataclass(frozen=True, slots=True)
class Put:
    """One version to be written. `previous` is the current version it supersedes (None: nothing may be there).

    A commit may hold several versions of a resource in their order; the last one is what is there afterwards.
    """

    stored: Stored
    previous: Stored | None = None
    claim: Claim | None = None
    cause: Cause = Cause()
    quiet: bool = False  # the hooks have nothing more to do with it: no event is kept in the outbox
    extras: tuple[Extra, ...] = ()  # what has to be so if, and only if, this version is there


@dataclass(frozen=True, slots=True)
class Event:
    """One committed change, as the outbox keeps it until every hook has dealt with it."""

    id: str  # sorts in commit order within one process; 32 hex digits
    resource_type: str
    resource_id: str
    version: int
    method: Method
    updated: int  # ms
    patients: tuple[str, ...]
    cause: Cause
    group: str = ""  # the same for all events of one commit; empty where it had only one


CUSTOM = "custom-"  # names of indexes that stay though nobody wants them at the start


@dataclass(frozen=True, slots=True)
class Index:
    """A MongoDB index wanted on a collection of current versions. `keys`: (path, 1|-1); partial: a filter or None."""

    name: str
    keys: tuple[tuple[str, int], ...]
    partial: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Find:
    """One indexed find over current versions of one type. Filters use the paths of `store/documents.py`."""

    resource_type: str
    filter: Mapping[str, Any]
    sort: tuple[tuple[str, int], ...] = ()
    limit: int = 0
    raw: bool = True  # False: ids, versions and entries only
    entries: tuple[str, ...] = ()  # which entries to return (names under `s`); ("*",) for all
    hint: str | None = None  # index name
    snapshot: Any = None  # opaque token from an earlier Find of the same request: read the same moment
    computed: Mapping[str, Any] = field(default_factory=dict)  # path → expression: added to what `filter` finds …
    after: Mapping[str, Any] = field(default_factory=dict)  # … before this filter, the sort and the limit


@dataclass(frozen=True, slots=True)
class HistoryPage:
    versions: list[Stored]  # newest first
    more: bool


class Changed(Exception):
    """A Put's precondition no longer holds: somebody else wrote first. `keys` says where; the caller decides."""

    def __init__(self, keys: Sequence[Key], claims: Sequence[str] = ()) -> None:
        super().__init__(f"changed meanwhile: {', '.join('/'.join(key) for key in keys)}")
        self.keys = tuple(keys)
        self.claims = tuple(claims)


class SnapshotGone(Exception):
    """The moment that a find wanted to see is no longer kept."""


class Store(Protocol):
    async def open(self) -> None: ...
    async def close(self) -> None: ...
    async def ready(self) -> bool: ...

    async def read(self, resource_type: str, id: str) -> Stored | None:
        """The current version (a deleted one included), None if there never was one. Concurrent reads share one command."""

    async def read_version(self, resource_type: str, id: str, version: int) -> Stored | None: ...

    async def read_many(self, keys: Sequence[Key], *, raw: bool = True) -> dict[Key, Stored]:
        """As `read`, of several; `raw` False: without their bytes. What never was is left out."""

    async def commit(self, puts: Sequence[Put], extras: Sequence[Extra] = ()) -> list[Event]:
        """All or nothing, durable (w: majority, j: true) when it returns. Raises Changed or errors.Unavailable."""

    def events(self, puts: Sequence[Put]) -> list[Event]:
        """What a commit of these is told as; for work that goes into the same commit."""

    async def claim_holder(self, key: str) -> str: ...

    async def find(self, find: Find) -> list[Stored]: ...

    def stream(self, find: Find) -> AsyncIterator[Stored]:
        """The same (without `computed`), one after the other: never more of them in memory than a reply holds, 16 MB."""

    async def count(self, resource_type: str, filter: Mapping[str, Any], limit: int = 0) -> int: ...

    async def distinct(
        self, resource_type: str, path: str, filter: Mapping[str, Any], limit: int, snapshot: Any = None
    ) -> list[Any]:
        """The different values at `path` (of arrays: their elements) in what the filter finds, `limit` at most."""

    async def explain(self, find: Find) -> dict[str, Any]: ...

    def snapshot(self, at: str = "") -> AbstractAsyncContextManager[Any]:
        """`async with store.snapshot() as token:` makes several Finds (their `snapshot=token`) see one moment.

        `at`: a moment that an earlier snapshot saw. Finds raise SnapshotGone if it is too long ago (five minutes).
        """

    def moment(self, token: Any) -> str:
        """The moment a snapshot sees, once something was read in it; "" if it cannot be seen again."""

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
    ) -> HistoryPage: ...

    def scan(
        self, resource_type: str, *, after: str = "", filter: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Stored]:
        """Every live current version with an id above `after`, in id order, streamed; for export and reindex."""

    async def replace_entries(self, resource_type: str, changes: Sequence[Stored]) -> int:
        """Write entries and patients anew (reindex) where `version` is still current; returns how many were."""

    async def ensure_indexes(self, resource_type: str) -> None:
        """Build what the registry wants and the collection lacks; returns when the indexes can be used."""

    async def setting(self, name: str) -> dict[str, Any] | None: ...

    async def set_setting(self, name: str, value: Mapping[str, Any], *, if_absent: bool = False) -> None: ...

    async def resource_types(self) -> list[str]:
        """The types that have (or had) resources."""

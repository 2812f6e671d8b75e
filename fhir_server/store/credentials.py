"""What the authorization server remembers: clients, users, signing keys, grants and everything that is used only once.

Secrets come here already hashed (argon2) or encrypted; codes, refresh tokens and sessions are kept by the SHA-256 of
their value, so that a copy of the database logs nobody in. What has an end is removed by TTL indexes; because MongoDB
sweeps once a minute, every answer is also checked against the caller's clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

import msgspec
from pymongo import ReturnDocument, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError

ClientKind = Literal["public", "confidential-symmetric", "confidential-asymmetric"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A registered app. `scopes` is the most it can ever be given; `roles` and `clearance` serve backend services."""

    id: str
    name: str
    kind: ClientKind
    secret_hash: str = ""
    jwks: dict[str, Any] | None = None
    jwks_uri: str = ""
    redirect_uris: tuple[str, ...] = ()
    grant_types: tuple[str, ...] = ("authorization_code", "refresh_token")
    scopes: tuple[str, ...] = ()
    roles: frozenset[str] = frozenset()
    clearance: str = "N"
    launch_uri: str = ""
    introspects: bool = False  # a resource server that may introspect tokens of other clients
    created: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody who logs in. `reach`: `all` patients, those of one's `care-team`, or `self` (patient, related person)."""

    name: str
    password_hash: str
    role: str
    fhir_user: str = ""  # "Practitioner/1"
    display: str = ""
    reach: str = "self"
    clearance: str = "N"
    disabled: bool = False
    created: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a user allowed one client: the family of all tokens that come from one consent."""

    id: str
    client_id: str
    subject: str
    scopes: tuple[str, ...]
    patient: str | None = None
    encounter: str | None = None
    fhir_context: tuple[dict[str, Any], ...] = ()
    fhir_user: str = ""
    nonce: str = ""
    session: str = ""  # hash of the login session; online_access ends with it
    auth_time: int = 0
    created: int = 0
    expires: int = 0
    revoked: bool = False
    intent: str = ""
    need_patient_banner: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """An authorization code: once, within a minute, for one client, redirect URI and PKCE challenge."""

    hash: str
    grant: Grant
    redirect_uri: str
    challenge: str
    expires: int
    used: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshToken:
    hash: str
    grant_id: str
    expires: int
    used: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """`private` is encrypted. Signs from `created` until a younger one exists; is published until `expires` (0: no end yet).

    `needed`: until when a token needs it that lives longer than tokens usually do.
    """

    kid: str
    algorithm: str
    public: dict[str, Any]
    private: str
    created: int
    expires: int = 0
    needed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Passing:
    """Something short-lived with a free content: an authorization request on its way, a session, a launch."""

    id: str
    kind: str
    expires: int
    content: dict[str, Any] = field(default_factory=dict)


class Credentials:
    """The repository; `open` makes the indexes and may be called again. Times are seconds since 1970."""

    def __init__(self, database: AsyncDatabase[dict[str, Any]]) -> None:
        self._database = database.with_options(write_concern=WriteConcern("majority", j=True))
        self.clients = self._collection("auth_clients")
        self.users = self._collection("auth_users")
        self.keys = self._collection("auth_keys")
        self.grants = self._collection("auth_grants")
        self.codes = self._collection("auth_codes")
        self.refresh_tokens = self._collection("auth_refresh_tokens")
        self.revocations = self._collection("auth_revocations")
        self.passing = self._collection("auth_passing")  # requests, sessions, launches, replay, counters
        self.state = self._collection("auth_state")

    def _collection(self, name: str) -> AsyncCollection[dict[str, Any]]:
        return self._database[name]

    async def open(self) -> None:
        for collection in (self.grants, self.codes, self.refresh_tokens, self.revocations, self.passing):
            await collection.create_index("at", name="at", expireAfterSeconds=0)

    async def note_base(self, base: str) -> None:
        """For commands: who serves this database, and so issues its tokens."""
        await self.state.replace_one({"_id": "base"}, {"_id": "base", "url": base}, upsert=True)

    async def noted_base(self) -> str:
        """Empty if it was never served."""
        found = await self.state.find_one({"_id": "base"})
        return str(found["url"]) if found else ""

    # Clients and users

    async def put_client(self, client: Client) -> None:
        await self.clients.replace_one({"_id": client.id}, _document(client, "id"), upsert=True)

    async def client(self, id: str) -> Client | None:
        return _load(Client, "id", await self.clients.find_one({"_id": id}))

    async def all_clients(self) -> list[Client]:
        return [_some(Client, "id", document) async for document in self.clients.find().sort("_id")]

    async def remove_client(self, id: str) -> bool:
        """The client and everything it was granted."""
        removed = (await self.clients.delete_one({"_id": id})).deleted_count == 1
        async for grant in self.grants.find({"client_id": id}, {"_id": 1, "expires": 1}):
            await self.revoke_grant(grant["_id"], grant["expires"])
        return removed

    async def put_user(self, user: User, *, replace: bool = False) -> bool:
        """False if the name is taken and `replace` was not asked for."""
        if replace:
            await self.users.replace_one({"_id": user.name}, _document(user, "name"), upsert=True)
            return True
        try:
            await self.users.insert_one(_document(user, "name"))
        except DuplicateKeyError:
            return False
        return True

    async def end_user(self, name: str) -> None:
        """Everything the user has granted, and where the user is logged in."""
        await self.passing.delete_many({"kind": "session", "content.user": name})
        async for grant in self.grants.find({"subject": name}, {"_id": 1, "expires": 1}):
            await self.revoke_grant(grant["_id"], grant["expires"])

    async def user(self, name: str) -> User | None:
        return _load(User, "name", await self.users.find_one({"_id": name}))

    async def all_users(self) -> list[User]:
        return [_some(User, "name", document) async for document in self.users.find().sort("_id")]

    # Signing keys

    async def put_key(self, key: SigningKey) -> None:
        await self.keys.replace_one({"_id": key.kid}, _document(key, "kid"), upsert=True)

    async def add_first_key(self, key: SigningKey) -> None:
        """Several processes may start at once: the first one's key stays (all write under one fixed `first` marker)."""
        try:
            await self.passing.insert_one({"_id": "first-key", "kind": "marker", "content": {"kid": key.kid}})
        except DuplicateKeyError:
            return
        await self.put_key(key)

    async def need_key(self, kid: str, until: int) -> None:
        await self.keys.update_one({"_id": kid}, {"$max": {"needed": until}})

    async def all_keys(self) -> list[SigningKey]:
        return [
            _some(SigningKey, "kid", document)
            async for document in self.keys.find().sort([("created", -1), ("_id", 1)])
        ]

    async def remove_key(self, kid: str) -> None:
        await self.keys.delete_one({"_id": kid})

    # Grants, codes, refresh tokens

    async def put_grant(self, grant: Grant) -> None:
        await self.grants.replace_one({"_id": grant.id}, _document(grant, "id", grant.expires), upsert=True)

    async def grant(self, id: str) -> Grant | None:
        return _load(Grant, "id", await self.grants.find_one({"_id": id}))

    async def revoke_grant(self, id: str, until: int) -> None:
        """Ends the whole family: no refresh any more, and its access tokens are refused until the last has expired."""
        await self.grants.update_one({"_id": id}, {"$set": {"revoked": True}})
        await self.refresh_tokens.delete_many({"grant_id": id})
        await self.revoke(id, until)

    async def grants_of_session(self, session: str) -> list[Grant]:
        return [_some(Grant, "id", document) async for document in self.grants.find({"session": session})]

    async def hand_over_session(self, old: str, new: str) -> None:
        await self.grants.update_many({"session": old}, {"$set": {"session": new}})

    async def put_code(self, code: Code) -> None:
        document = _document(code, "hash", code.expires + 600)  # kept past its end: reuse must still be recognized
        await self.codes.insert_one(document)

    async def use_code(self, hash: str) -> Code | None:
        """The code as it was before this use: `used` tells a second use from a first."""
        before = await self.codes.find_one_and_update({"_id": hash}, {"$set": {"used": True}})
        return _load(Code, "hash", before)

    async def put_refresh_token(self, token: RefreshToken) -> None:
        await self.refresh_tokens.insert_one(_document(token, "hash", token.expires))

    async def refresh_token(self, hash: str) -> RefreshToken | None:
        return _load(RefreshToken, "hash", await self.refresh_tokens.find_one({"_id": hash}))

    async def use_refresh_token(self, hash: str) -> RefreshToken | None:
        before = await self.refresh_tokens.find_one_and_update({"_id": hash}, {"$set": {"used": True}})
        return _load(RefreshToken, "hash", before)

    # Revocation of access tokens, by token id or grant id

    async def revoke(self, id: str, until: int) -> None:
        await self.revocations.replace_one({"_id": id}, {"_id": id, "at": _date(until)}, upsert=True)

    async def any_revoked(self, ids: Iterable[str]) -> bool:
        return await self.revocations.find_one({"_id": {"$in": list(ids)}}, {"_id": 1}) is not None

    # What passes: requests, sessions, launches, replay, counters

    async def put_passing(self, item: Passing) -> None:
        await self.passing.replace_one({"_id": item.id}, _document(item, "id", item.expires), upsert=True)

    async def passing_item(self, kind: str, id: str, now: int) -> Passing | None:
        item = _load(Passing, "id", await self.passing.find_one({"_id": id, "kind": kind}))
        return item if item and item.expires > now else None

    async def take_passing(self, kind: str, id: str, now: int) -> Passing | None:
        """Reads and removes it: the second taker gets None."""
        item = _load(Passing, "id", await self.passing.find_one_and_delete({"_id": id, "kind": kind}))
        return item if item and item.expires > now else None

    async def first_use(self, key: str, expires: int) -> bool:
        """Whether this key (a client assertion's `jti`) was never seen before; remembered until `expires`."""
        try:
            await self.passing.insert_one({"_id": f"once:{key}", "kind": "once", "at": _date(expires + 60)})
        except DuplicateKeyError:
            return False
        return True

    async def count(self, key: str, window: int, now: int) -> int:
        """How often this was called with the key in the current window of so many seconds, this call included."""
        slot = now // window
        document = await self.passing.find_one_and_update(
            {"_id": f"count:{key}:{slot}"},
            {"$inc": {"n": 1}, "$setOnInsert": {"kind": "count", "at": _date((slot + 2) * window)}},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        return int(document["n"]) if document else 0

    async def uncount(self, key: str, window: int, now: int) -> None:
        await self.passing.update_one({"_id": f"count:{key}:{now // window}"}, {"$inc": {"n": -1}})

    async def counted(self, key: str, window: int, now: int) -> int:
        document = await self.passing.find_one({"_id": f"count:{key}:{now // window}"})
        return int(document["n"]) if document else 0


def _date(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _document(value: Any, key: str, expires: int = 0) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(value)
    document["_id"] = document.pop(key)
    if expires:
        document["at"] = _date(expires)
    return document


def _some(kind: type[T], key: str, document: dict[str, Any]) -> T:
    fields = {name: value for name, value in document.items() if name not in ("_id", "at")}
    return msgspec.convert({**fields, key: document["_id"]}, kind)


def _load(kind: type[T], key: str, document: dict[str, Any] | None) -> T | None:
    return None if document is None else _some(kind, key, document)

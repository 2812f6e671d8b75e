"""Subscriptions: which committed versions somebody wants to hear of. https://hl7.org/fhir/R4/subscription.html

Every process knows the Subscriptions in force and asks them before each commit, so that what is to be told is recorded by
the transaction that makes it so. A process that has not heard of changes for `STALE` seconds looks before it commits; a
new Subscription becomes active (delivery.py) only after all must have heard of it.

Differs from the spec: only `rest-hook`; criteria are what can be decided from the resource alone: no chains, no `_has`, no
value sets, no includes and no parameters of the answer.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fhir_server.auth.addresses import refused
from fhir_server.auth.tokens import Tokens
from fhir_server.errors import FhirError, Forbidden, Issue, Unprocessable
from fhir_server.interactions.call import split_url
from fhir_server.interactions.context import Context, Server
from fhir_server.model.dates import interval
from fhir_server.model.definitions import RESOURCE_TYPES
from fhir_server.model.resource import Resource, load
from fhir_server.search.entries import Indexed
from fhir_server.search.match import Candidate, alone, matches
from fhir_server.search.parse import parse
from fhir_server.search.query import Query
from fhir_server.search.registry import Registry
from fhir_server.store.notifications import HIDDEN, Notification, Notifications
from fhir_server.store.protocol import Extra, Find, Put, Stored

TYPE = "Subscription"
STALE = 2.0  # seconds after which a process looks again before it commits
IN_FORCE = ("requested", "active")
MOST = 1_000  # in force at once: each is asked at every commit of its type
PAYLOADS = ("application/fhir+json", "application/json")
FOR_SEARCHES = frozenset({"_id", "_lastUpdated", "_tag", "_profile", "_security", "_source", "_filter", "_language"})
_HEADER = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\x20-\x7e]*)")
_OURS = frozenset({"host", "content-length", "transfer-encoding", "connection", "content-type", "upgrade", "te"})


@dataclass(frozen=True, slots=True)
class Subscription:
    """As far as it matters here. `payload`: the resource is sent along. `end` (ms): when it ends by itself."""

    id: str
    version: int
    status: str
    query: Query
    endpoint: str
    payload: bool
    end: int | None

    @property
    def resource_type(self) -> str:
        return self.query.types[0]


def criteria(text: str, registry: Registry) -> Query:
    """Raises FhirError for what cannot be decided from one resource."""
    path, pairs = split_url(text)
    if len(path) != 1 or path[0] not in RESOURCE_TYPES:
        raise Unprocessable(f"The criteria {text[:200]!r} must begin with a resource type, as in Observation?code=x")
    for name, _ in pairs:
        base = name.partition(":")[0]
        if "." in base or (base.startswith("_") and base not in FOR_SEARCHES):
            raise Unprocessable(
                f"The criteria's parameter {name[:100]!r} cannot be used here: criteria are decided from the resource alone"
            )
    query = parse(path[0], pairs, registry=registry)
    for condition in query.conditions.get(path[0], ()):
        if not alone(condition):
            raise Unprocessable(
                f"The criteria {text[:200]!r} need more than the resource itself (a chain or a value set)"
            )
    return query


def read(resource: Resource, registry: Registry, version: int = 0) -> Subscription:
    """Raises FhirError."""
    channel = resource["channel"]
    return Subscription(
        resource["id"],
        version,
        resource["status"],
        criteria(resource["criteria"], registry),
        channel.get("endpoint", ""),
        "payload" in channel,
        interval(resource["end"])[0] if "end" in resource else None,
    )


class Subscribed:
    """The Subscriptions in force, as this process knows them."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.kept = Notifications(server.store.database)  # type: ignore[attr-defined]
        self.internal = server.settings.open or server.settings.subscription_internal
        self.known: dict[str, Subscription] = {}
        self._by_type: dict[str, list[Subscription]] = {}
        self._broken: dict[str, int] = {}  # id → version
        self._looked = -STALE
        self._looking = asyncio.Lock()

    async def open(self) -> None:
        await self.kept.open()
        await self.refresh()

    async def refresh(self, within: float = 0.0) -> None:
        """Learns what has changed, unless that was done `within` so many seconds. Raises Unavailable."""
        async with self._looking:
            if time.monotonic() - self._looked > within:
                await self._refresh()

    async def _refresh(self) -> None:
        began = time.monotonic()
        store = self._server.store
        versions = {one.id: one.version for one in await store.find(Find(TYPE, {"d": None}, raw=False))}
        changed = [
            id
            for id, version in versions.items()
            if self._broken.get(id) != version and (id not in self.known or self.known[id].version != version)
        ]
        known = {id: one for id, one in self.known.items() if versions.get(id) == one.version}
        for stored in (await store.read_many([(TYPE, id) for id in changed])).values():
            if stored.deleted:
                continue
            try:
                known[stored.id] = read(load(stored.raw), self._server.registry, stored.version)
            except FhirError:  # stored before there was a check, or by a parameter that is gone
                self._broken[stored.id] = stored.version
        self.known = known
        self._by_type = {}
        for one in known.values():
            if one.status in IN_FORCE:
                self._by_type.setdefault(one.resource_type, []).append(one)
        self._looked = began

    async def notice(self, puts: Sequence[Put]) -> Extra | None:
        """For `Server.notices`: what these have to record in their transaction. Raises Unavailable."""
        if time.monotonic() - self._looked > STALE:
            await self.refresh(STALE)
        if not self._by_type:
            return None
        found = [
            Notification(one.id, put.stored.resource_type, put.stored.id, put.stored.version, put.stored.updated)
            for put in puts
            for one in self.wanting(put.stored)
        ]
        return self.kept.record(found) if found else None

    def wanting(self, stored: Stored) -> Iterator[Subscription]:
        """Those who want to hear of this version. A deletion is nobody's (R4)."""
        asked = self._by_type.get(stored.resource_type)
        if asked and not stored.deleted:
            indexed = Indexed(dict(stored.entries), stored.patients)
            candidate = Candidate(stored.resource_type, stored.id, indexed, stored.updated)
            for one in asked:
                if matches(one.query, candidate):
                    yield one

    # What is written

    def check(self, resource: Resource, mode: str) -> list[Issue]:
        """For the validator: why this Subscription could not be served."""
        return list(self._problems(resource)) if resource["resourceType"] == TYPE else []

    def _problems(self, resource: Resource) -> Iterator[Issue]:
        def issue(text: str, where: str) -> Issue:
            return Issue("error", "not-supported", text, (f"{TYPE}.{where}",))

        if resource["status"] not in ("requested", "off"):
            text = f"The status is {resource['status']!r}; ask with 'requested' (or stop with 'off'), the rest is the server's"
            yield issue(text, "status")
        others = sum(one.status in IN_FORCE for one in self.known.values() if one.id != resource.get("id"))
        if resource["status"] == "requested" and others >= MOST:
            yield issue(f"{MOST} Subscriptions are in force; turn one off first", "status")
        try:
            criteria(resource["criteria"], self._server.registry)
        except FhirError as error:
            yield issue(error.diagnostics, "criteria")
        channel = resource["channel"]
        if channel["type"] != "rest-hook":
            yield issue(f"The channel is {channel['type']!r}; this server notifies by 'rest-hook' only", "channel.type")
        problem = refused(channel.get("endpoint", ""), guarded=not self.internal)
        if problem:
            yield issue(f"The endpoint cannot be used: {problem}", "channel.endpoint")
        if channel.get("payload", PAYLOADS[0]) not in PAYLOADS:
            yield issue(f"The payload {channel['payload']!r} is not one of {', '.join(PAYLOADS)}", "channel.payload")
        for header in channel.get("header", ()):
            found = _HEADER.fullmatch(header)
            if found is None or found[1].lower() in _OURS:
                yield issue("A header must be 'Name: value', and not one that the connection needs", "channel.header")

    def guard(self, context: Context, resource: Resource) -> tuple[Resource, Extra]:
        """For `Server.guards`: headers are secrets and not served; whose Subscription it is, is kept beside it.

        Raises Forbidden: who may not search for it must not be told of it either.
        """
        principal = context.principal
        if principal.issuer:
            raise Forbidden(
                "A Subscription needs a token of this server: what another issuer's may see cannot be asked later"
            )
        self._server.policy.may(principal, "search", criteria(resource["criteria"], self._server.registry).types[0])
        headers = resource["channel"].get("header", [])
        owner = None if principal.everything else Tokens.standing(principal)
        extra = self.kept.register(resource["id"], owner, resource["channel"]["endpoint"], headers)
        if headers:
            hidden = [f"{header.partition(':')[0]}: {HIDDEN}" for header in headers]
            resource = {**resource, "channel": {**resource["channel"], "header": hidden}}
        return resource, extra

"""Deliveries: what was recorded for Subscriptions is told to their endpoints, at least once, in order, one by one.

Each Subscription is served by itself, by one process at a time (a lease), so that an endpoint that is slow or dead delays
nobody else. A notification is numbered, durably, before it is sent for the first time, and marked when the endpoint has
answered 2xx; who dies in between has it sent again under the same number and id. Whether the subscriber may see what it
is about is asked anew each time: what it may not see is dropped, without a number that would be missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from urllib.parse import quote, urlsplit

import httpx

from fhir_server.auth.addresses import Target, Unreachable, target
from fhir_server.auth.audit_event import Access
from fhir_server.auth.principal import Principal
from fhir_server.auth.tokens import Tokens
from fhir_server.automation.subscriptions import IN_FORCE, STALE, TYPE, Subscribed, Subscription
from fhir_server.automation.vocabulary import DEVICE
from fhir_server.errors import FhirError, Forbidden, Unauthorized
from fhir_server.interactions.context import Context, Server
from fhir_server.interactions.write import commit, prepare
from fhir_server.model.dates import instant, milliseconds
from fhir_server.model.resource import load
from fhir_server.store.notifications import Notification, Subscriber
from fhir_server.store.protocol import Cause, Changed, Event, Put, Stored

log = logging.getLogger(__name__)

LOOK = 0.5  # seconds between looks at what changed and what waits
ACTIVE_AFTER = 2 * STALE  # seconds: by then every process has heard of it, or looks before it commits
LEASE = 6_000  # ms; renewed after a third of it, also while an endpoint takes its time; a crash delays by no more
ANSWER = 10.0  # seconds an endpoint may take
TOGETHER = 20  # notifications looked up at a time
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0  # seconds after a failure; doubled each time
SWEEP = 60.0  # seconds between looks for what deleted Subscriptions left behind
AT_ONCE = 100  # Subscriptions served at a time by one process
NAMESPACE = uuid.UUID("7c7a8e0e-4d4a-5f43-9a59-0f3a1f2f8f0e")


class Deliveries:
    """`tokens` None: --open. `record`: the audit, if there is one."""

    def __init__(
        self, server: Server, subscribed: Subscribed, tokens: Tokens | None, record: Callable[[Access], None] | None
    ) -> None:
        self._server, self._subscribed, self._tokens, self._record = server, subscribed, tokens, record
        self._kept = subscribed.kept
        self._name = secrets.token_hex(6)
        self._context = Context(Principal.automation(), "", cause=Cause((), "", DEVICE))
        self._first_seen: dict[tuple[str, int], float] = {}  # requested (id, version) → when this process heard of it
        self._serving: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._hinted: set[str] = set()
        self._swept = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._server.written.append(self.written)
        self._task = asyncio.create_task(self._run(), name="deliveries")

    async def close(self) -> None:
        if self.written in self._server.written:
            self._server.written.remove(self.written)
        tasks = [one for one in (self._task, *self._serving.values()) if one is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def written(self, puts: Sequence[Put], events: Sequence[Event]) -> None:
        """For `Server.written`: what this process recorded is delivered at once."""
        for put in puts:
            if put.stored.resource_type == TYPE:
                self._wake.set()
            for one in self._subscribed.wanting(put.stored):
                self._hinted.add(one.id)
                self._wake.set()

    async def _run(self) -> None:
        looked = -LOOK
        while True:
            try:
                due, self._hinted = self._hinted, set()
                if time.monotonic() - looked >= LOOK or not due:
                    looked = time.monotonic()
                    await self._look()
                    due |= await self._waiting()
                for id in due:
                    self._serve(id)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.log(_loudness(error), "Subscriptions cannot be looked at: %s", error)
            self._wake.clear()
            if not self._hinted:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK):
                        await self._wake.wait()

    def _serve(self, id: str) -> None:
        one = self._subscribed.known.get(id)
        if one is None or one.status != "active" or id in self._serving or len(self._serving) >= AT_ONCE:
            return
        task = self._serving[id] = asyncio.create_task(self._deliver(one), name=f"Subscription/{id}")
        task.add_done_callback(lambda _: self._serving.pop(id, None))

    # What becomes of a Subscription

    async def _look(self) -> None:
        await self._subscribed.refresh()
        now, wall = time.monotonic(), milliseconds(self._server.now())
        known = self._subscribed.known
        requested = {(one.id, one.version): one for one in known.values() if one.status == "requested"}
        self._first_seen = {key: self._first_seen.get(key, now) for key in requested}
        for key, one in requested.items():
            if now - self._first_seen[key] >= ACTIVE_AFTER:
                await self._activate(one)
        for one in known.values():
            if one.end is not None and one.end <= wall and one.status in IN_FORCE:
                await self._change(one, "off")
        if now - self._swept > SWEEP:
            self._swept = now
            for id in await self._kept.all_subscribers():
                if id not in known and await self._is_over(id, off=False):
                    await self._kept.forget(id)

    async def _waiting(self) -> set[str]:
        """The Subscriptions that have something to tell; what those that are off or gone had is removed."""
        waiting = set(await self._kept.waiting_for())
        for id in waiting:
            known = self._subscribed.known.get(id)
            if (known is None or known.status == "off") and await self._is_over(id):
                await self._kept.remove_all(id)
        return waiting

    async def _is_over(self, id: str, *, off: bool = True) -> bool:
        """Deleted, or (with `off`) turned off, as the store has it now: what is known here may be old."""
        stored = await self._server.store.read(TYPE, id)
        return stored is None or stored.deleted or (off and load(stored.raw)["status"] == "off")

    async def _activate(self, one: Subscription) -> None:
        subscriber = await self._kept.subscriber(one.id)
        if subscriber is None:
            await self._change(one, "error", "It was stored before there were notifications; send it again")
            return
        try:
            await self._principal(subscriber)
        except FhirError as error:
            await self._change(one, "error", error.diagnostics)
        else:
            await self._change(one, "active")

    async def _change(self, one: Subscription, status: str, error: str = "") -> None:
        """Its new status, unless somebody changed it meanwhile."""
        stored = await self._server.store.read(TYPE, one.id)
        if stored is None or stored.deleted or stored.version != one.version:
            return
        resource = {name: value for name, value in load(stored.raw).items() if name != "error"}
        resource["status"] = status
        if error:
            resource["error"] = error[:1000]
        put, _ = prepare(self._server, self._context, resource, one.id, stored, interaction="update", checked=True)
        if put is None:
            return
        try:
            await commit(self._server, [put])
        except Changed:
            return
        await self._subscribed.refresh()
        self._hinted.add(one.id)

    async def _principal(self, subscriber: Subscriber) -> Principal:
        """In whose name, as things are now. Raises Unauthorized."""
        if self._tokens is None:
            return Principal.open()
        if subscriber.owner is None:
            raise Unauthorized("It was made without authorization (--open); send it again with a token")
        return await self._tokens.still(subscriber.owner)

    # Telling

    async def _deliver(self, one: Subscription) -> None:
        """Everything that waits for one Subscription, until its endpoint fails."""
        over = asyncio.Event()
        keeping = asyncio.create_task(self._keep(one.id, over))
        try:
            async with httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=ANSWER) as client:
                while await self._portion(one, client):
                    pass
        except Exception as error:
            log.log(_loudness(error), "Subscription/%s is tried again: %s", one.id, error)
            await asyncio.sleep(LOOK)
        finally:
            over.set()
            await asyncio.gather(keeping, return_exceptions=True)
            with contextlib.suppress(Exception):  # it runs out by itself
                async with asyncio.timeout(1):
                    await self._kept.release(one.id, self._name)

    async def _keep(self, id: str, over: asyncio.Event) -> None:
        """Renews the lease until it is over; not after it was given back."""
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEASE / 3000):
                    await over.wait()
                    return
            with contextlib.suppress(FhirError):
                now = milliseconds(self._server.now())
                await self._kept.lease(id, self._name, now, now + LEASE)

    async def _portion(self, one: Subscription, client: httpx.AsyncClient) -> bool:
        """Some of what waits; False where there is nothing more to be done now."""
        if self._subscribed.known.get(one.id) != one:
            return False
        leased = milliseconds(self._server.now())
        subscriber = await self._kept.lease(one.id, self._name, leased, leased + LEASE)
        if subscriber is None:
            return False
        waiting = await self._kept.waiting(one.id, TOGETHER)
        for notification in waiting:
            if milliseconds(self._server.now()) - leased > LEASE // 3:
                return True  # renew the lease first
            try:
                principal = await self._principal(subscriber)
            except Unauthorized as error:
                await self._change(one, "error", error.diagnostics)
                return False
            stored = await visible(self._server, principal, one.payload, notification)
            if stored is None:
                await self._kept.remove(notification)
                continue
            numbered = await self._kept.number(subscriber, self._name, notification)
            if numbered is None:
                return False
            status, problem = await self._send(client, one, subscriber, numbered, stored)
            self._audit(principal, one, stored, status)
            if problem:
                await self._failed(one, subscriber, problem)
                return False
            await self._kept.remove(numbered)
            if subscriber.failures:
                await self._kept.went_well(one.id)
                subscriber = replace(subscriber, failures=0, since=0)
        return bool(waiting)

    async def _send(
        self,
        client: httpx.AsyncClient,
        one: Subscription,
        subscriber: Subscriber,
        numbered: Notification,
        stored: Stored,
    ) -> tuple[int, str]:
        """(HTTP status or 0, what went wrong or nothing)."""
        url, method, body = one.endpoint, "POST", b""
        headers = {name: value.strip() for name, _, value in (header.partition(":") for header in subscriber.headers)}
        headers |= {
            "X-Subscription": f"{TYPE}/{one.id}",
            "X-Event-Number": str(numbered.number),
            "X-Event-Id": event_id(numbered),
        }
        if one.payload:  # as an update, below the endpoint
            parts = urlsplit(url)
            path = f"{parts.path.rstrip('/')}/{quote(stored.resource_type)}/{quote(stored.id)}"
            url, method, body = parts._replace(path=path).geturl(), "PUT", stored.raw
            headers["Content-Type"] = "application/fhir+json"
        try:
            aim: Target = await target(url, guarded=not self._subscribed.internal)
            request = client.build_request(
                method, aim.url, content=body, headers={**headers, **aim.headers}, extensions=aim.extensions
            )
            async with asyncio.timeout(ANSWER):
                response = await client.send(request, stream=True)
                try:
                    await _read_a_little(response)
                finally:
                    await response.aclose()
        except Unreachable as error:
            return 0, f"The endpoint cannot be used: {error}"
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            return 0, f"The endpoint could not be reached ({type(error).__name__})"
        if response.is_success:
            return response.status_code, ""
        return response.status_code, f"The endpoint answered with status {response.status_code}"

    async def _failed(self, one: Subscription, subscriber: Subscriber, problem: str) -> None:
        """Later again, with growing patience; after `subscription_hours` not any more."""
        now = milliseconds(self._server.now())
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(subscriber.failures, 20)) * (0.75 + random.random() / 2)
        await self._kept.failed(one.id, now, now + int(pause * 1000))
        log.info("Subscription/%s: %s (%d in a row)", one.id, problem, subscriber.failures + 1)
        if subscriber.since and now - subscriber.since > self._server.settings.subscription_hours * 3_600_000:
            await self._change(one, "error", f"{problem}, since {instant(subscriber.since)}; what waits is kept")

    def _audit(self, principal: Principal, one: Subscription, stored: Stored, status: int) -> None:
        if self._record is not None:
            self._record(
                Access(
                    time.time_ns() // 1_000_000,
                    "operation:$notify",
                    status or 504,
                    principal.subject,
                    principal.client_id,
                    principal.fhir_user or "",
                    urlsplit(one.endpoint).hostname or "",
                    f"{TYPE}/{one.id}",
                    stored.resource_type,
                    stored.id,
                    stored.version,
                    stored.patients,
                )
            )


async def visible(server: Server, principal: Principal, read: bool, notification: Notification) -> Stored | None:
    """The version a notification is about, if the principal may find it (and, for `read`, read it), then and now.

    What was deleted meanwhile is not told.
    """
    key = notification.resource_type, notification.resource_id
    current = await server.store.read(*key)
    if current is None or current.deleted:
        return None
    stored: Stored | None = current
    if current.version != notification.version:
        stored = await server.store.read_version(*key, notification.version)
    if stored is None or stored.deleted:
        return None
    policy = server.policy
    for interaction in ("search", "read") if read else ("search",):
        try:
            policy.may(principal, interaction, notification.resource_type)
        except Forbidden:
            return None
        if not all(policy.sees(principal, interaction, one) for one in (current, stored)):
            return None
    return stored


def event_id(notification: Notification) -> str:
    """The same whenever it is sent; says nothing of what it is about."""
    return str(uuid.uuid5(NAMESPACE, notification.id))


async def _read_a_little(response: httpx.Response) -> None:
    """So that the connection can be used again; who says more than that is not listened to."""
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > 65_536:
            return


def _loudness(error: BaseException) -> int:
    return logging.INFO if isinstance(error, FhirError) else logging.ERROR

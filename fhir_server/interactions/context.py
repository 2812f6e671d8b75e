"""Server: the collaborators, built once in app.py or in a test. Context: who asks, when, how strictly."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from fhir_server.auth.policy import Policy, Principal
from fhir_server.model.resource import Resource
from fhir_server.search.registry import Registry
from fhir_server.store.protocol import Cause, Event, Extra, Put, Store

if TYPE_CHECKING:
    from fhir_server.settings import Settings
    from fhir_server.validation import Validator


CLOSE_SECONDS, LEAST_SECONDS = 10.0, 0.5
log = logging.getLogger(__name__)


class Joined(Protocol):
    """A commit with what follows from it: `puts` and `extras` are to be committed instead."""

    puts: list[Put]
    extras: list[Extra]

    def committed(self) -> None: ...

    def failed(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Server:
    """Everything an interaction needs; no globals, no singletons."""

    store: Store
    registry: Registry  # search parameters
    validator: Validator
    policy: Policy
    settings: Settings
    now: Callable[[], datetime]  # aware, UTC
    new_id: Callable[[], str]
    committed: list[Callable[[list[Event]], None]] = field(default_factory=list)  # told after each commit, in process
    written: list[Callable[[Sequence[Put], list[Event]], None]] = field(
        default_factory=list
    )  # told as well, with the versions
    joins: list[Callable[[Sequence[Put]], Awaitable[Joined | None]]] = field(
        default_factory=list
    )  # asked before each commit
    guards: dict[str, Callable[[Context, Resource], tuple[Resource, Extra]]] = field(
        default_factory=dict
    )  # by type: what is stored instead of what was sent, and what is kept beside it
    notices: list[Callable[[Sequence[Put]], Awaitable[Extra | None]]] = field(
        default_factory=list
    )  # asked before each commit for what has to be in it
    closing: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    rooms: dict[str, Any] = field(default_factory=dict)  # collaborators of upper layers, by their module's name

    async def close(self) -> None:
        """Ends what runs beside the requests, newest first: in ten seconds, for the database may have gone for good."""
        deadline = time.monotonic() + CLOSE_SECONDS
        for close in reversed(list(self.closing)):
            try:
                async with asyncio.timeout(max(LEAST_SECONDS, deadline - time.monotonic())):
                    await close()
            except TimeoutError:
                log.warning("%s did not end in time and is left", getattr(close, "__qualname__", close))
            except Exception:
                log.exception("%s did not end well", getattr(close, "__qualname__", close))


@dataclass(frozen=True, slots=True)
class Context:
    """One request (or one act of the automation)."""

    principal: Principal
    base: str  # absolute base URL as the client addressed it, no trailing slash: "http://localhost:8080/fhir"
    request_id: str = ""
    lenient: bool = False  # Prefer: handling=lenient
    cause: Cause = field(default_factory=Cause)

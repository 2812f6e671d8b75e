"""Consent resources that deny: who must not see whose record. https://hl7.org/fhir/R4/consent.html

The denying consents are kept in memory: loaded once, then followed through the history of Consent (which shows deletions,
too), at most every FOLLOW_SECONDS; consents that deny nothing cost no memory.

Whose record a consent is about is what the index says (`stored.patients`), as for everything else. A provision counts when
it is in its period and names the actor or names nobody; a permit has to name the one of this server. Nested provisions
are exceptions: one that applies decides over its parent, and among siblings a denial wins. A denial limited to a class,
code, purpose or piece of data denies the whole record here, and such a permit lifts nothing: both err on the side of not
showing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from fhir_server.errors import BadRequest
from fhir_server.model.dates import interval
from fhir_server.model.resource import load
from fhir_server.search.types.reference import local, type_of
from fhir_server.store.protocol import Store, Stored

FOLLOW_SECONDS = 2.0
OVERLAP_MS = 30_000  # history is asked again for this long: writers' clocks differ, and long transactions end late
PERSONS = frozenset({"Patient", "Practitioner", "RelatedPerson"})
LIMITS = ("action", "securityLabel", "purpose", "class", "code", "data", "dataPeriod")


class Denials:
    def __init__(self, store: Store, *, base: str, now: Callable[[], float]) -> None:
        self._store = store
        self._base = base
        self._now = now
        # consent id → its patients, its provision, whether it names others than persons
        self._denying: dict[str, tuple[tuple[str, ...], Any, bool]] = {}
        self._followed = -1.0
        self._since = 0
        self._lock = asyncio.Lock()

    async def against(
        self, reference: str, also: Callable[[], Awaitable[frozenset[str]]] | None = None
    ) -> frozenset[str]:
        """The patients whose consent keeps this actor out; "" asks for an actor nobody names (a backend service).

        `also`: what else names the actor (a role, an organization, a team), asked for only where a consent names such.
        """
        await self._follow()
        now = self._now()
        needed = also is not None and any(others for _, _, others in self._denying.values())
        names = await also() if also is not None and needed else frozenset()
        return frozenset(
            patient
            for patients, provision, _ in self._denying.values()
            if patients and verdict(provision, reference, now, base=self._base, also=names) == "deny"
            for patient in patients
        )

    def forget(self) -> None:
        """A Consent was committed by this process: look again at the next question."""
        self._followed = -1.0

    async def _follow(self) -> None:
        async with self._lock:
            now = self._now()
            if self._followed >= 0 and 0 <= now - self._followed < FOLLOW_SECONDS:
                return
            if self._followed < 0 and not self._since:
                async for stored in self._store.scan("Consent"):
                    self._take(stored)
            else:
                await self._take_changes()
            self._followed = now
            self._since = int(now * 1000) - OVERLAP_MS

    async def _take_changes(self) -> None:
        before: tuple[int, str, int] | None = None
        seen: set[str] = set()
        while True:
            page = await self._store.history(
                "Consent", None, since=self._since, until=None, before=before, limit=500, patients=None
            )
            for stored in page.versions:
                if stored.id not in seen:  # newest first: what follows is older
                    seen.add(stored.id)
                    self._take(stored)
                before = (stored.updated, f"Consent/{stored.id}", stored.version)
            if not page.more or not page.versions:
                return

    def _take(self, stored: Stored) -> None:
        resource = {} if stored.deleted or b'"deny"' not in stored.raw else load(stored.raw)
        if resource.get("status") == "active":
            provision = resource.get("provision")
            others = any(type_of(actor) not in PERSONS for actor in _actors(provision))
            self._denying[stored.id] = stored.patients, provision, others
        else:
            self._denying.pop(stored.id, None)


def verdict(
    provision: Any, reference: str, now: float, *, base: str, named: bool = False, also: frozenset[str] = frozenset()
) -> str:
    """`permit`, `deny` or "" for this actor at this moment. `named`: only what names the actor counts; `also`: other names."""
    if not isinstance(provision, Mapping) or not _within(provision, now):
        return ""
    kind = str(provision.get("type", ""))
    actors = [str((actor.get("reference") or {}).get("reference", "")) for actor in provision.get("actor") or ()]
    is_named = any(
        _names(actor, one, base) or (kind == "deny" and _ends(actor, one))
        for actor in actors
        for one in (reference, *also)
    )
    if actors and not is_named:
        return ""
    nested = {
        verdict(inner, reference, now, base=base, named=named, also=also) for inner in provision.get("provision") or ()
    }
    for answer in ("deny", "permit"):
        if answer in nested:
            return answer
    if (named and not is_named) or (kind == "permit" and any(provision.get(limit) for limit in LIMITS)):
        return ""
    return kind


def names(provision: Any, reference: str) -> bool:
    """Whether this provision, or an exception to it, names the actor."""
    return any(_ends(actor, reference) for actor in _actors(provision))


def _actors(provision: Any) -> Iterator[str]:
    """Whom this provision names, and the exceptions to it."""
    if isinstance(provision, Mapping):
        for actor in provision.get("actor") or ():
            yield str((actor.get("reference") or {}).get("reference", ""))
        for inner in provision.get("provision") or ():
            yield from _actors(inner)


def patient_of(reference: Any, base: str) -> str:
    """The id in a Reference to a Patient of this server, "" for anything else: one elsewhere is somebody else."""
    text = reference.get("reference") if isinstance(reference, Mapping) else None
    kind, _, id = local(text, base)[0].partition("/") if isinstance(text, str) else ("", "", "")
    return id if kind == "Patient" and "/" not in id else ""


def _names(actor: str, reference: str, base: str) -> bool:
    return bool(reference) and local(actor, base)[0] == reference


def _ends(actor: str, reference: str) -> bool:
    """A denial counts, too, where another server's URL, or an earlier one of ours, names the actor."""
    return bool(reference) and f"/{actor}".partition("/_history/")[0].endswith(f"/{reference}")


def _within(provision: Mapping[str, Any], now: float) -> bool:
    """A period that cannot be read holds for a denial and not for a permit."""
    period = provision.get("period")
    if not isinstance(period, Mapping):
        return True
    moment = int(now * 1000)
    start, end = period.get("start"), period.get("end")
    try:
        begun = start is None or interval(str(start))[0] <= moment
        return begun and (end is None or moment < interval(str(end))[1])
    except (BadRequest, ValueError):
        return provision.get("type") == "deny"

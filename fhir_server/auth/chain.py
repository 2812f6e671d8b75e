"""The chain that AuditEvents are sealed into, and its verification.

A seal is an HMAC over the seal before it, the number and the event's bytes, with a key that is not in the database: who
can only write to the database can neither change, remove nor add an event unseen (`fhir-server audit verify`). Cutting off
the newest ones together with the head shows against a head noted elsewhere; the head is logged every hour for that.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from fhir_server.errors import FhirError
from fhir_server.store.audit import AuditLog, Link


def chain_key(secret: bytes) -> bytes:
    return hmac.digest(secret, b"fhir-server audit chain", hashlib.sha256)


def seal(key: bytes, before: str, number: int, raw: bytes) -> str:
    return hmac.digest(key, f"{before}\n{number}\n".encode() + raw, "sha256").hex()


def mark(key: bytes, link: Link) -> str:
    """Seals where the chain begins after retention."""
    return hmac.new(key, f"start\n{link.number}\n{link.seal}".encode(), hashlib.sha256).hexdigest()


async def remove_old(log: AuditLog, key: bytes, before: int) -> int:
    """Takes away events taken over before that moment (ms), oldest first; how many."""
    removed = 0
    while links := await log.older_than(before, 500):
        await log.remove(links, mark(key, links[-1]))
        removed += len(links)
    return removed


@dataclass(frozen=True, slots=True)
class Verdict:
    """`problem` is empty if the chain is whole."""

    checked: int
    head: Link
    problem: str = ""


async def verify(log: AuditLog, key: bytes, expected: tuple[int, str] | None = None) -> Verdict:
    """Walks the whole chain. `expected`: a head (number, seal) noted earlier that must be part of it."""
    start, head = await log.start(), await log.head()
    last, checked, met = start, 0, expected is None or expected == (start.number, start.seal)
    if start.number and not hmac.compare_digest(start.mark, mark(key, start)):
        return Verdict(0, head, f"the beginning of the chain (after {start.number}) was not set by this server")
    async for link in log.links(start.number):
        if link.number > head.number:
            break  # written while we read
        if link.number != last.number + 1:
            return Verdict(checked, head, f"events {last.number + 1} to {link.number - 1} were removed")
        if link.raw is None:
            return Verdict(checked, head, f"event {link.number} (AuditEvent/{link.id}) was removed")
        if not hmac.compare_digest(link.seal, seal(key, last.seal, link.number, link.raw)):
            return Verdict(checked, head, f"event {link.number} (AuditEvent/{link.id}) was changed")
        last, checked = link, checked + 1
        met = met or expected == (link.number, link.seal)
    if (last.number, last.seal) != (head.number, head.seal):
        return Verdict(checked, head, f"the chain ends at {last.number}, but its head is {head.number}")
    if not met:
        return Verdict(checked, head, "the head that was noted is not part of the chain: newer events were cut off")
    count, id = await log.strays()
    if count:
        return Verdict(checked, head, f"{count} events were not written by this server (AuditEvent/{id})")
    return Verdict(checked, head)


def expected_head(text: str) -> tuple[int, str] | None:
    """`12 ab34…`, as logged and printed."""
    if not text:
        return None
    number, _, value = text.replace(":", " ").partition(" ")
    if not number.isdigit() or not value:
        raise FhirError("An expected head is a number and a seal, as `audit verify` prints them")
    return int(number), value.strip()

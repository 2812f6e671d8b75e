"""What automation has written for one patient, and when it wants to look again: one small document, kept by store/ledger.py."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from fhir_server.automation.vocabulary import BASE
from fhir_server.store.protocol import Key, Stored

State = Literal["open", "closed", "withdrawn"]  # closed: by a person; withdrawn: by automation
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, BASE)


class Slot(msgspec.Struct, omit_defaults=True, rename={"resource_type": "t"}):
    """One proposal's place: the n-th resource made for (rule, action, scope) of this patient."""

    rule: str  # url
    action: str
    scope: str
    resource_type: str
    n: int = 0
    hash: str = ""
    state: State = "open"
    status: str = ""
    focus: str = ""
    focus_at: int = 0
    begun: int = 0  # when this one was raised, ms

    @property
    def key(self) -> str:
        return slot_key(self.rule, self.action, self.scope)


class Failure(msgspec.Struct, omit_defaults=True):
    """A rule that could not be run for this patient. `at`: when it is tried again; 0: it is a dead letter."""

    error: str
    attempts: int = 1
    at: int = 0
    event: str = ""
    since: int = 0


class Ledger(msgspec.Struct, omit_defaults=True):
    """`due`: rule url → the instant (ms) at which time alone may change what it says."""

    slots: dict[str, Slot] = {}
    tags: dict[str, list[list[str]]] = {}  # rule url → [system, code, display]
    due: dict[str, int] = {}
    failures: dict[str, Failure] = {}
    explained: bool = False  # there is a Provenance of the tags

    @property
    def next_due(self) -> int | None:
        times = [*self.due.values(), *(one.at for one in self.failures.values() if one.at)]
        return min(times, default=None)

    @property
    def dead(self) -> int:
        return sum(1 for one in self.failures.values() if not one.at)

    def of_resource(self, patient: str, resource_type: str, id: str) -> Slot | None:
        """The slot whose current resource this is."""
        for slot in self.slots.values():
            if slot.resource_type == resource_type and identity(patient, slot.key, slot.n) == id:
                return slot
        return None

    def of_rule(self, rule: str) -> list[Slot]:
        return [slot for slot in self.slots.values() if slot.rule == rule]


def slot_key(rule: str, action: str, scope: str) -> str:
    return f"{rule}#{action}@{scope}" if scope else f"{rule}#{action}"


def identity(patient: str, slot: str, n: int = 0) -> str:
    """The same proposal has the same id whoever writes it, whenever, in whatever company."""
    return str(uuid.uuid5(NAMESPACE, f"{patient}|{slot}|{n}"))


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Ledger)


def dump(ledger: Ledger) -> bytes:
    return _encoder.encode(ledger)


def load(body: bytes) -> Ledger:
    return _decoder.decode(body) if body else Ledger()


@dataclass(slots=True)
class Account:
    """A patient's ledger in the hands of a worker. `body` is what the database holds."""

    patient: str
    ledger: Ledger = field(default_factory=Ledger)
    body: bytes = b""
    written: dict[Key, Stored] = field(default_factory=dict)  # versions we wrote while the patient was ours
    epoch: int = 0  # of the lease under which it was read
    suspect: bool = False  # something else than the ledger says was found: look before writing

    @classmethod
    def opened(cls, patient: str, body: bytes, epoch: int = 0) -> Account:
        return cls(patient, load(body), body, epoch=epoch)

    def again(self) -> Account:
        """As it is in the database: what was decided since is forgotten."""
        return Account(self.patient, load(self.body), self.body, {}, self.epoch, True)

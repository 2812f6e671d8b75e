"""What this process itself committed, so that the worker need not read it back; bounded, and given up when in doubt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fhir_server.automation.rounds import Happening
from fhir_server.store.protocol import Event

MOST = 5_000  # happenings kept; beyond, the outbox is asked
REMEMBERED = 20_000  # ids of events that were read from the outbox


class News:
    def __init__(self) -> None:
        self._of: dict[str, list[Happening] | None] = {}  # None: ask the outbox
        self._count = 0
        self._seen: dict[str, None] = {}

    def add(self, patient: str, happening: Happening) -> None:
        """Told by the commit itself; events of several patients are left to the outbox, which settles them one by one."""
        if self._count >= MOST or len(happening.event.patients) > 1:
            self.look([patient])
            return
        known = self._of.setdefault(patient, [])
        if known is not None and happening.event.id not in self._seen:
            known.append(happening)
            self._count += 1

    def look(self, patients: Iterable[str]) -> None:
        """What is known of these is not all there is."""
        for patient in patients:
            known = self._of.get(patient)
            if known:
                self._count -= len(known)
            self._of[patient] = None

    def take(self, patients: Sequence[str]) -> dict[str, list[Happening] | None]:
        """The news of each patient, oldest first; None where the outbox has to be asked. They are forgotten here."""
        taken: dict[str, list[Happening] | None] = {}
        for patient in patients:
            known = self._of.pop(patient, None)
            if known:
                self._count -= len(known)
            taken[patient] = known
        return taken

    def seen(self, events: Iterable[Event]) -> None:
        """These were read from the outbox: that we were told of them, or will be, is no news."""
        for event in events:
            self._seen[event.id] = None
            for patient in event.patients:
                known = self._of.get(patient)
                if known:
                    left = [one for one in known if one.event.id != event.id]
                    self._count -= len(known) - len(left)
                    self._of[patient] = left
        while len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]

"""Which resources a rule is about: the newest that matches a trigger, or each of them. docs/hooks.md (What wakes a rule)"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fhir_server.automation.chart import Chart, Reading
from fhir_server.automation.facts import AHEAD
from fhir_server.automation.rules import Branch, Trigger


class Focus:
    """What a rule is about at one moment; looked for when it is asked for, because most conditions do not."""

    __slots__ = ("_chart", "_found", "_known", "_now", "_triggers")

    def __init__(self, triggers: Iterable[Trigger], chart: Chart, now: int, reading: Reading | None = None) -> None:
        self._triggers, self._chart, self._now = triggers, chart, now
        self._found, self._known = reading, reading is not None

    @property
    def reading(self) -> Reading | None:
        if not self._known:
            self._found, self._known = newest(self._triggers, self._chart, self._now), True
        return self._found

    @property
    def resource(self) -> Any:
        """What `%focus` is."""
        return self.reading.resource if self.reading is not None else None


def newest(triggers: Iterable[Trigger], chart: Chart, now: int) -> Reading | None:
    """The triggering resource with the latest time of its own that is not in the future."""
    best: Reading | None = None
    for trigger in triggers:
        reading = _newest(trigger, chart, now)
        if reading is not None and (best is None or best < reading):
            best = reading
    return best


def _newest(trigger: Trigger, chart: Chart, now: int) -> Reading | None:
    known = chart.answers.get(trigger.question, now)
    if known is not None:
        return known[0]  # type: ignore[no-any-return]
    others = trigger.filters[1:] if trigger.indexed is not None else trigger.filters
    best: Reading | None = None
    good_until: int | None = None
    for listed in _lists(trigger, chart):
        for reading in reversed(listed):
            if not reading.usable:
                continue
            if reading.at > now + AHEAD:
                ahead = reading.at - AHEAD - 1
                good_until = ahead if good_until is None else min(good_until, ahead)
            elif all(one.matches(reading) for one in others):
                if best is None or best < reading:
                    best = reading
                break
    chart.answers.keep(trigger.question, (best,), trigger, now, good_until)
    return best


def _lists(trigger: Trigger, chart: Chart) -> list[list[Reading]]:
    """Lists, each oldest first, that hold everything the trigger may match."""
    listed = trigger.indexed
    if listed is None:
        return [chart.of_type(trigger.type)]
    return [found for code in listed if (found := chart.coded(trigger.type, code))]


def candidates(trigger: Trigger, chart: Chart) -> Iterable[Reading]:
    """Everything the trigger may match, once each; whether it does is for the trigger to say."""
    return list({id(reading): reading for found in _lists(trigger, chart) for reading in found}.values())


def foci(branch: Branch, chart: Chart, wanted: frozenset[str] | None) -> Iterable[Reading]:
    """The resources a rule by focus looks at: those of `wanted` (references) that match a trigger, every one if None."""
    for trigger in branch.triggers:
        if wanted is None:
            found: Iterable[Reading] = list(candidates(trigger, chart))
        else:
            keys = (tuple(reference.split("/", 1)) for reference in sorted(wanted))
            found = [one for key in keys if (one := chart.get((key[0], key[1]))) is not None]
        for reading in found:
            if reading.usable and trigger.matches(reading):
                yield reading

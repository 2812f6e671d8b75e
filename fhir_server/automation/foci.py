"""Which resources a rule is about: the newest that matches a trigger, or each of them. docs/hooks.md (What wakes a rule)"""

from __future__ import annotations

from collections.abc import Iterable

from fhir_server.automation.chart import Chart, Reading
from fhir_server.automation.facts import AHEAD
from fhir_server.automation.requirements import indexed
from fhir_server.automation.rules import Branch, Trigger


def newest(triggers: Iterable[Trigger], chart: Chart, now: int) -> Reading | None:
    """The triggering resource with the latest time of its own that is not in the future."""
    best: Reading | None = None
    for trigger in triggers:
        others = trigger.filters[1:] if indexed(trigger.filters) is not None else trigger.filters
        for listed in _lists(trigger, chart):
            for reading in reversed(listed):
                if reading.usable and reading.at <= now + AHEAD and all(one.matches(reading) for one in others):
                    if best is None or best < reading:
                        best = reading
                    break
    return best


def _lists(trigger: Trigger, chart: Chart) -> list[list[Reading]]:
    """Lists, each oldest first, that hold everything the trigger may match."""
    listed = indexed(trigger.filters)
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

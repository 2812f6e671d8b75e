"""Rules in Python: one pure function and one entry point in the group `fhir_server.hooks`. docs/hooks.md shows one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fhir_server.automation.definitions import compiled
from fhir_server.automation.evaluate import Situation, evaluate
from fhir_server.automation.facts import Facts
from fhir_server.automation.proposals import Decision, Interpretation, Proposal, Tag
from fhir_server.automation.proposals import Propose as _Propose
from fhir_server.automation.reconcile import WITHDRAWN
from fhir_server.automation.requirements import FactDefinition, Filter
from fhir_server.automation.rounds import PATIENCE, Deferred
from fhir_server.automation.rules import Rule, Trigger
from fhir_server.automation.terms import Codes
from fhir_server.model.dates import DAY
from fhir_server.model.resource import Resource

__all__ = ["Fact", "Facts", "Interpretation", "Propose", "Tag", "rule"]

GROUP = "fhir_server.hooks"
INLINE = 0.02  # seconds a rule may take within a round; beyond, its answer comes in a later one
SLOW_FOR = 60.0  # seconds a rule that was slow is not waited for
THREADS = 8

log = logging.getLogger(__name__)


def Fact(  # noqa: N802  reads as the value it makes
    name: str,
    type: str = "Observation",
    *,
    codes: Sequence[str] = (),
    days: int = 0,
    limit: int = 0,
    unit: str = "",
    aggregate: str = "last",
    component: str = "",
    where: str = "",
    value: str = "",
) -> FactDefinition:
    """A fact of a rule in Python: what docs/hooks.md (Facts) says, with codes as `system|code`."""
    filters = (Filter("code", Codes(frozenset(_code(code) for code in codes))),) if codes else ()
    return FactDefinition(
        name, type, filters, days * DAY, limit, aggregate,
        Codes(frozenset({_code(component)})) if component else None, unit, None,
        compiled(value, name) if value else None, None, compiled(where, name) if where else None,
    )  # fmt: skip


def Propose(action: str, resource: Any, **options: Any) -> _Propose:  # noqa: N802
    """A resource that should be there: a mapping, or a fhir.resources model."""
    return _Propose(action, _mapping(resource), **options)


def _mapping(resource: Any) -> Resource:
    if isinstance(resource, dict):
        return resource
    found: Resource = resource.model_dump(mode="json", exclude_none=True, by_alias=True)
    found.setdefault("resourceType", type(resource).__name__)
    return found


def _code(text: str) -> tuple[str, str]:
    system, _, code = text.rpartition("|")
    return (system, code)


Function = Callable[[Facts], Iterator[Proposal]]


def rule(
    *, url: str, version: str, facts: Sequence[FactDefinition], title: str = "", wakes: Sequence[FactDefinition] = ()
) -> Callable[[Function], Rule]:
    """Makes a rule of a function. It is woken by every change of its facts; `wakes` (default: all) can be its focus."""

    def decorate(function: Function) -> Rule:
        named: dict[str, tuple[FactDefinition, ...]] = {}
        for fact in facts:
            named[fact.name] = (*named.get(fact.name, ()), fact)
        triggers = tuple(Trigger(frozenset(), fact.type, fact.filters) for fact in (wakes or facts))
        name = title or (function.__doc__ or function.__name__).strip().splitlines()[0]
        return Rule("", url, version, name, facts=named, function=function, triggers=triggers)

    return decorate


def installed() -> list[Rule]:
    """Rules of installed packages. One that cannot be imported is reported in the log and left out."""
    found = []
    for point in entry_points(group=GROUP):
        loaded = _load(point)
        if loaded is not None:
            found.append(loaded)
    return found


def _load(point: EntryPoint) -> Rule | None:
    try:
        loaded = point.load()
    except Exception:
        log.exception("the rule %s could not be imported", point.value)
        return None
    if not isinstance(loaded, Rule):
        log.error(
            "the entry point %s is not a rule: decorate the function with fhir_server.automation.hooks.rule",
            point.value,
        )
        return None
    return loaded


def _within(rule: Rule, situation: Situation, foci: frozenset[str] | None) -> Decision:
    """What the function says, if it keeps to its patient and to what automation writes. Raises ValueError otherwise."""
    decision = evaluate(rule, situation, foci)
    patient = {"reference": f"Patient/{situation.chart.id}"}
    for index, one in enumerate(decision.proposals):
        resource_type = str(one.resource.get("resourceType"))
        if resource_type not in WITHDRAWN:
            raise ValueError(f"a rule writes {', '.join(sorted(WITHDRAWN))}, not {resource_type}")
        subject = "for" if resource_type == "Task" else "subject"
        about = one.resource.get(subject, patient)
        if not isinstance(about, dict) or about.get("reference") != patient["reference"]:
            raise ValueError(f"{resource_type}.{subject} must be the patient that the rule was asked about")
        decision.proposals[index] = replace(one, resource={**one.resource, subject: about})
    for reading in decision.interpretations:
        if situation.chart.get(reading.observation) is None:
            raise ValueError(
                f"{'/'.join(reading.observation)} is not in the record of the patient the rule was asked about"
            )
    return decision


class Functions:
    """Runs rules in Python beside the worker: one that raises or sleeps holds nobody up.

    `ready` is called (from a thread) with the patient when the answer of a slow rule is there.
    """

    def __init__(self, ready: Callable[[str], None]) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="hook")
        self._ready = ready
        self._running: dict[tuple[str, str], tuple[int, Future[Decision], float]] = {}
        self._slow: dict[str, float] = {}

    def call(self, rule: Rule, situation: Situation, foci: frozenset[str] | None) -> Decision:
        """The rule's decision. Raises Deferred where it takes its time, TimeoutError where it took too long already."""
        if rule.function is None:
            return evaluate(rule, situation, foci)
        key = (situation.chart.id, rule.url)
        version = situation.chart.version
        known = self._running.pop(key, None)
        if known is not None and not known[1].done():
            if time.monotonic() - known[2] > PATIENCE / 1000:
                raise TimeoutError("the rule did not finish in time")
            self._running[key] = known  # its answer will be too old by then, and asked for again
            raise Deferred
        if known is not None and known[0] == version:
            return known[1].result()
        future = self._pool.submit(_within, rule, situation, foci)
        if self._slow.get(rule.url, 0.0) < time.monotonic():
            try:
                return future.result(INLINE)
            except TimeoutError:
                if future.done():  # the rule's own TimeoutError
                    raise
                self._slow[rule.url] = time.monotonic() + SLOW_FOR
        self._running[key] = (version, future, time.monotonic())
        future.add_done_callback(lambda _: self._ready(situation.chart.id))
        raise Deferred

    def waiting(self, patient: str) -> list[str]:
        """Rules whose answer for this patient is there and has not been taken."""
        return [url for (one, url), (_, future, _) in self._running.items() if one == patient and future.done()]

    def drop(self, patient: str, rule: str) -> None:
        """Nobody asks for this answer any more."""
        self._running.pop((patient, rule), None)

    @property
    def busy(self) -> list[str]:
        """Patients for whom a slow rule is at work, or has an answer that was not taken."""
        return [patient for patient, _ in self._running]

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

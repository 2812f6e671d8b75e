"""A rule looked at with the facts of one patient at one moment: what should be so. Pure.

The tree of actions is walked once; docs/hooks.md (Whether an action is taken) is the meaning of each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fhir_server.automation import scores
from fhir_server.automation.chart import Chart, Reading
from fhir_server.automation.due import minute, next_period, out_of
from fhir_server.automation.facts import Facts, Moment
from fhir_server.automation.foci import Focus, candidates, newest
from fhir_server.automation.foci import foci as foci_of
from fhir_server.automation.follow_up import Activity, build
from fhir_server.automation.formulas import Formula
from fhir_server.automation.proposals import Decision, Interpretation, Propose, Tag
from fhir_server.automation.rules import Action, Branch, Rule
from fhir_server.automation.scores import Score
from fhir_server.automation.trails import FunctionTrail, Trail
from fhir_server.model.dates import interval


class Begun(Protocol):
    """What is open of a rule's earlier proposals."""

    def __call__(self, rule: str, action: str) -> tuple[int, str] | None:
        """(when it was raised in ms, its status) of what `action` has open."""


def nothing_begun(rule: str, action: str) -> tuple[int, str] | None:
    return None


@dataclass(slots=True)
class Situation:
    """One patient, one pass: `now` and `arrived` in ms; moments are shared by the rules that look from the same time."""

    chart: Chart
    now: int
    scores: Mapping[str, Score]
    tags: frozenset[str] = frozenset()
    arrived: int | None = None  # when the oldest event of this pass was committed: what recency is measured from
    begun: Begun = nothing_begun
    _moments: dict[int | None, Moment] = field(default_factory=dict)

    def moment(self, until: int | None = None) -> Moment:
        found = self._moments.get(until)
        if found is None:
            found = self._moments[until] = Moment(self.chart, self.now if until is None else until, self.tags, until)
        return found

    def tagged(self, tags: frozenset[str]) -> None:
        """Tags were derived that later rules in this pass must see."""
        self.tags = tags
        for moment in self._moments.values():
            moment.tags = tags

    def derived(self) -> None:
        """Facts were derived that later rules in this pass must see."""
        self._moments.clear()


def evaluate(rule: Rule, situation: Situation, foci: frozenset[str] | None = None) -> Decision:
    """What `rule` says. `foci`: for rules by focus, the references to look at; None for every one in the chart.

    Raises FhirPathError and whatever a rule's own function raises.
    """
    decision = Decision(rule.url, rule.version)
    if rule.function is not None:
        _function(rule, situation, decision)
        return decision
    by_focus = False
    for branch in rule.branches:
        if branch.by_focus:
            by_focus = True
            for reading in foci_of(branch, situation.chart, foci):
                decision.looked.append(reading.reference)
                _Walk(rule, branch, situation, decision, reading).through()
            continue
        _Walk(rule, branch, situation, decision).through()
        for periodic in branch.periodic:
            decision.wait_until(next_period(situation.now, periodic.every, periodic.at))
    decision.foci = foci if by_focus else None
    return decision


def _function(rule: Rule, situation: Situation, decision: Decision) -> None:
    """A package's own rule: a function of facts."""
    assert rule.function is not None
    facts = Facts(situation.moment(), rule.facts, rule.parameters)
    focus = newest(rule.triggers, situation.chart, situation.now)
    for trigger in rule.triggers:
        decision.looked.extend(one.reference for one in candidates(trigger, situation.chart) if trigger.matches(one))
    for proposal in rule.function(facts):
        sources = tuple(one.reference for one in facts.sources())
        if isinstance(proposal, Tag):
            decision.tags.append(proposal)
        elif isinstance(proposal, Interpretation):
            decision.interpretations.append(proposal)
        else:
            decision.proposals.append(
                Propose(
                    proposal.action, proposal.resource, proposal.scope,
                    proposal.focus or (focus.reference if focus else ""),
                    proposal.focus_at or (focus.at if focus else 0), proposal.raises,
                    proposal.sources or sources, FunctionTrail(facts, rule.title),
                )
            )  # fmt: skip
    decision.trails.append(FunctionTrail(facts, rule.title))


class _Walk:
    """One walk through the actions of a branch, for the patient or for one focus."""

    def __init__(
        self, rule: Rule, branch: Branch, situation: Situation, decision: Decision, focus: Reading | None = None
    ) -> None:
        self._rule, self._branch, self._situation, self._decision = rule, branch, situation, decision
        self._scope = focus.reference if focus is not None else ""
        self._about = Focus(branch.triggers, situation.chart, situation.now, focus)
        moment = situation.moment(focus.at if focus is not None else None)
        self.facts = Facts(moment, rule.facts, rule.parameters, self._about)
        self._steps: list[tuple[Formula | str, bool]] = []  # on the way to where we are
        self._tried: list[tuple[Formula | str, bool]] = []  # everywhere
        self._anchor: int | None = None
        self._recency: int | None = None

    @property
    def _focus(self) -> Reading | None:
        return self._about.reading

    @property
    def _root(self) -> Any:
        resource = self._about.resource
        return resource if resource is not None else self._situation.chart.patient

    def through(self) -> None:
        """Everything that was tried is told, for an explanation of what was not proposed, too."""
        self.take(self._branch.action)
        self._decision.trails.append(Trail(self.facts, self._tried))

    def take(self, action: Action) -> bool:
        """Whether the action is taken; its outcomes are in the decision then."""
        kept = len(self._steps), self._anchor, self._recency
        taken = self._take(action)
        # Siblings start from what their parent knew.
        del self._steps[kept[0] :]
        self._anchor, self._recency = kept[1], kept[2]
        return taken

    def _note(self, step: Formula | str, result: bool) -> None:
        self._steps.append((step, result))
        self._tried.append((step, result))

    def _take(self, action: Action) -> bool:
        occurs: int | None = None
        if action.after is not None:
            begun = self._begun(action.after[0])
            if begun is None:
                return False
            self.facts.tell(previous_status=begun[1])
            occurs = begun[0] + action.after[1]
        if not self._holds(action):
            return False
        if action.recency is not None:
            self._recency = action.recency if self._recency is None else min(self._recency, action.recency)
        missing = [name for name in action.requires if self.facts.variable(name) in (None, [], "")]
        if missing:
            self._note(f"needs {', '.join(missing)}", False)
            if action.missing is not None:
                self._missing(action, action.missing, *self._rule.called(missing))
            return False
        if action.hysteresis is not None and not self._is_on(action):
            return False
        if action.anchor is not None:
            text = action.anchor.one(self._root, self.facts.variable)
            self._anchor = interval(str(text))[0] if text is not None else None
        if action.delay is not None:
            if self._anchor is None:
                return False
            occurs = self._anchor + action.delay
        if occurs is not None:
            occurs = out_of(action.quiet, occurs)
            if self._situation.now < occurs:
                self._decision.wait_until(occurs)
                self._note(f"not before {minute(occurs)}", False)
                return False
        elif action.quiet is not None:
            occurs = out_of(action.quiet, self._situation.now)
        self._outcomes(action, occurs)
        for child in action.children:
            if self.take(child) and action.only_first:
                break
        return True

    def _holds(self, action: Action) -> bool:
        for condition in action.conditions:
            decided = condition.quickly(self.facts.variable)
            result = condition.holds_by_fhirpath(self._root, self.facts.variable) if decided is None else decided
            self._note(condition, result)
            if not result:
                return False
        return True

    def _is_on(self, action: Action) -> bool:
        """The readings walked in the order of their time: the answer does not depend on the order of their arrival."""
        hysteresis = action.hysteresis
        assert hysteresis is not None
        on = False
        for value in self.facts.find(hysteresis.fact).values:
            if hysteresis.set.holds(value, self.facts.variable):
                on = True
            elif hysteresis.clear.holds(value, self.facts.variable):
                on = False
        self._note(hysteresis.set, on)
        return on

    def _begun(self, action: str) -> tuple[int, str] | None:
        """When `action`, which stands before this one, was raised, and its status; None unless it still holds and is open."""
        for one in self._decision.proposals:
            if one.action == action and one.scope == self._scope:
                return self._situation.begun(self._rule.url, action) or (
                    (self._situation.now, "requested") if one.raises else None
                )
        return None

    @property
    def _raises(self) -> bool:
        if self._recency is None:
            return True
        arrived = self._situation.arrived if self._situation.arrived is not None else self._situation.now
        return self._focus is not None and arrived - self._focus.at <= self._recency

    def _outcomes(self, action: Action, occurs: int | None) -> None:
        if action.tag is not None:
            self._decision.tags.append(Tag(action.tag["system"], action.tag["code"], action.tag.get("display", "")))
        if action.interpretation is not None and self._focus is not None:
            self._decision.interpretations.append(Interpretation(self._focus.key, dict(action.interpretation)))
        if action.activity is not None:
            self._propose(action, action.id, action.activity, occurs)
        if action.assess is not None:
            self._assess(action)

    def _propose(self, action: Action, id: str, activity: Activity, occurs: int | None = None) -> None:
        used = self.facts.sources()
        focus = self._focus
        reference = focus.reference if focus is not None else f"Patient/{self._situation.chart.id}"
        source = used[0].reference if used else reference
        if focus is not None and any(one.key == focus.key for one in used):
            source = focus.reference
        at = focus.at if focus is not None else self._situation.now
        resource = self._built(action, activity, reference, at, source, occurs)
        sources = tuple(one.reference for one in self.facts.sources())
        self._add(id, resource, sources)

    def _built(
        self, action: Action, activity: Activity, focus: str, focus_at: int | None, source: str, occurs: int | None
    ) -> dict[str, Any]:
        return build(
            activity, self.facts, rule=self._rule.canonical, patient=self._situation.chart.id, focus=focus,
            focus_at=focus_at, source=source, dynamic=action.dynamic, occurs=occurs,
        )  # fmt: skip

    def _add(
        self,
        id: str,
        resource: dict[str, Any],
        sources: tuple[str, ...],
        within: int | None = None,
        renewed: bool = True,
    ) -> None:
        focus = self._focus
        self._decision.proposals.append(
            Propose(
                id, resource, self._scope,
                focus.reference if focus is not None else "", focus.at if focus is not None else 0,
                self._raises, sources, Trail(self.facts, self._steps), within, renewed,
            )
        )  # fmt: skip

    def _missing(self, action: Action, activity: Activity, english: list[str], chinese: list[str]) -> None:
        """What is missing is about the patient and due from when it was first missed: no reading renews it."""
        self.facts.tell(missing=english, missing_zh=chinese)
        patient = f"Patient/{self._situation.chart.id}"
        resource = self._built(action, activity, patient, None, patient, None)
        sources = tuple(one.reference for one in self.facts.sources())
        self._add(f"{action.id}.missing", resource, sources, activity.due, renewed=False)

    def _assess(self, action: Action) -> None:
        assert action.assess is not None
        score = self._situation.scores.get(action.assess.code)
        if score is None:
            return
        assessed = scores.assess(score, self.facts, action.assess.outcomes)
        for definitions in score.facts.values():  # what the score read counts as read by the rule
            found = self.facts.moment.find(definitions)
            self.facts.used.setdefault(f"{action.assess.code} {definitions[0].name}", found)
        for index, result in enumerate(assessed.results):
            band = result.band.code if result.band is not None else None
            if index == 0:
                self.facts.tell(score=result.value, band=band)
            if result.outcome:
                self.facts.tell(**{f"score_{result.outcome}": result.value, f"band_{result.outcome}": band})
        if assessed.results:
            said = ", ".join(
                f"{one.outcome or score.specification.code} {one.value} {one.unit}" for one in assessed.results
            )
            self._note(f"{score.specification.code}: {said}", True)
            at = self._newest(assessed.sources)
            resource = scores.resource(score, assessed, self._situation.chart.id, at, self._rule.canonical)
            self._add(action.id, resource, assessed.sources)
        if assessed.missing:
            names = [english for _, english, _ in assessed.missing]
            self._note(f"{score.specification.code} lacks {', '.join(names)}", False)
            if action.assess.missing is not None:
                self._missing(action, action.assess.missing, names, [chinese for _, _, chinese in assessed.missing])

    def _newest(self, sources: Iterable[str]) -> int:
        times = []
        for reference in sources:
            resource_type, _, id = reference.partition("/")
            found = self._situation.chart.get((resource_type, id))
            if found is not None and resource_type != "Patient":
                times.append(found.at)
        if times:
            return max(times)
        return self._focus.at if self._focus is not None else self._situation.now

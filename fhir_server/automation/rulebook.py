"""All rules in force: in the order in which they build on each other, with what wakes each and what they need to see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fhir_server.automation.chart import Reading
from fhir_server.automation.definitions import Definitions, Wrong, version_key
from fhir_server.automation.plans import UNREADABLE, compile, is_rule
from fhir_server.automation.requirements import FactDefinition, Filter
from fhir_server.automation.risk import RISK_SCORES
from fhir_server.automation.risk.specification import specification
from fhir_server.automation.rules import Rule
from fhir_server.automation.scores import Score
from fhir_server.automation.terms import Code
from fhir_server.automation.vocabulary import DEVICE
from fhir_server.errors import FhirError
from fhir_server.model.dates import DAY
from fhir_server.model.resource import Resource
from fhir_server.store.protocol import Cause

Wake = tuple[str, Code | None]  # (type, code); None: whatever its code
TAGS: Code = ("", "tags")  # stands for the patient's tags, which automation itself changes
DEMOGRAPHICS = frozenset({"age", "sex", "patient"})
GRACE = 2 * DAY  # fetched beyond a fact's own window, because clocks and zones differ


@dataclass(slots=True)
class Need:
    """What of one type has to be fetched. `codes` None: all. `within`: ms by code, 0 for any age."""

    codes: dict[Code, int] | None = field(default_factory=dict)
    within: int = -1

    def add(self, codes: Iterable[Code] | None, within: int) -> None:
        if codes is None:
            self.codes = None
            self.within = 0 if within == 0 or self.within == 0 else max(self.within, within)
        elif self.codes is not None:
            for code in codes:
                known = self.codes.get(code, within)
                self.codes[code] = 0 if 0 in (known, within) else max(known, within)


class Rulebook:
    """Immutable once made; a change of content makes a new one."""

    def __init__(self, definitions: Definitions, functions: Iterable[Rule] = ()) -> None:
        self.definitions = definitions
        self.broken: dict[str, str] = {}  # PlanDefinition url → why it does not run
        self.scores = dict(self._scores())
        rules = [*self._compiled(), *functions]
        self.rules: tuple[Rule, ...] = tuple(self._in_order(rules))
        self.by_url: Mapping[str, Rule] = {rule.url: rule for rule in self.rules}
        self.position: Mapping[str, int] = {rule.url: index for index, rule in enumerate(self.rules)}
        self.functions = frozenset(index for index, rule in enumerate(self.rules) if rule.function is not None)
        self._wakes: dict[Wake, set[int]] = {}
        self.needs: dict[str, Need] = {}
        self._derives = [any(kind == "Observation" for kind, _ in self.writes(rule)) for rule in self.rules]
        for index, rule in enumerate(self.rules):
            for wake in self.reads(rule):
                self._wakes.setdefault(wake, set()).add(index)
            self._need(rule)

    def _scores(self) -> Iterator[tuple[str, Score]]:
        """Every score whose Library can be read; others are left out and named in `broken`."""
        for code in sorted(RISK_SCORES):
            library = self.definitions.score(code)
            if library is None:
                continue
            try:
                facts = self.definitions.facts(library.get("dataRequirement", ()), f"{library['url']} dataRequirement")
                yield code, Score(specification(library), facts)
            except (Wrong, *UNREADABLE) as error:
                self.broken[str(library["url"])] = f"{type(error).__name__} {error}"

    def _compiled(self) -> Iterator[Rule]:
        """The newest active version of each rule. One that does not compile is left out and named in `broken`."""
        newest: dict[str, Resource] = {}
        for plan in self.definitions.all("PlanDefinition"):
            if is_rule(plan) and plan.get("status") == "active":
                known = newest.get(plan["url"])
                if known is None or version_key(str(plan["version"])) > version_key(str(known["version"])):
                    newest[plan["url"]] = plan
        for url in sorted(newest):
            try:
                yield compile(newest[url], self.definitions)
            except FhirError as error:
                self.broken[url] = "; ".join(issue.diagnostics for issue in error.issues)

    def reads(self, rule: Rule) -> set[Wake]:
        """Whatever a change of wakes the rule."""
        wakes: set[Wake] = set()
        for trigger in rule.all_triggers():
            wakes |= _wakes(trigger.type, trigger.filters)
        for definition in self._facts(rule):
            wakes |= _wakes(definition.type, definition.filters)
        if rule.names & DEMOGRAPHICS or any(action.assess for action in rule.actions()) or rule.function is not None:
            wakes.add(("Patient", None))
        if "tags" in rule.names or rule.function is not None:
            wakes.add(("Patient", TAGS))
        return wakes

    def _facts(self, rule: Rule) -> Iterator[FactDefinition]:
        yield from rule.used_facts()
        if rule.function is not None:
            for definitions in rule.facts.values():
                yield from definitions
        for action in rule.actions():
            if action.assess is not None and action.assess.code in self.scores:
                for definitions in self.scores[action.assess.code].facts.values():
                    yield from definitions

    def _need(self, rule: Rule) -> None:
        for trigger in rule.all_triggers():
            self._need_of(trigger.type, trigger.filters, 366 * DAY)
        for definition in self._facts(rule):
            within = definition.within + GRACE if definition.within else 0
            self._need_of(definition.type, definition.filters, within)

    def _need_of(self, resource_type: str, filters: tuple[Filter, ...], within: int) -> None:
        coded = next((one.codes for one in filters if one.path == "code"), None)
        listed = coded is not None and not coded.patterns and all(system for system, _ in coded.listed)
        need = self.needs.setdefault(resource_type, Need())
        need.add(coded.listed if listed and coded is not None else None, within)

    def woken_by(self, reading: Reading) -> set[int]:
        """Positions of the rules that a change of this resource concerns."""
        return self.woken(reading.key[0], reading.codes)

    def woken(self, resource_type: str, codes: Iterable[Code]) -> set[int]:
        found = set(self._wakes.get((resource_type, None), ()))
        for code in codes:
            found |= self._wakes.get((resource_type, code), set())
        return found

    def deaf(self, resource_type: str, cause: Cause) -> bool:
        """Whether a change that automation made concerns no rule: known without looking at the resource.

        What a rule derives was seen by the rules after it in the round that derived it.
        """
        if cause.agent != DEVICE:
            return False
        position = self.position.get(cause.rule.partition("|")[0])
        if position is None:
            return False
        if resource_type == "Patient":
            return not any(one <= position for one in self.woken_by_tags())
        if resource_type == "Observation" and not self._derives[position]:
            return True  # we only said how it reads
        return resource_type not in self.needs

    def woken_by_tags(self) -> set[int]:
        return self._wakes.get(("Patient", TAGS), set())

    def writes(self, rule: Rule) -> set[Wake]:
        """What the rule may produce that other rules read."""
        found: set[Wake] = set()
        for action in rule.actions():
            if action.tag is not None:
                found.add(("Patient", TAGS))
            if action.assess is not None and action.assess.code in self.scores:
                score = self.scores[action.assess.code]
                found.add((score.specification.produces, score.code))
            if action.activity is not None:
                found.add((action.activity.creates, None))
        if rule.function is not None:
            found.add(("Patient", TAGS))
        return found

    def _in_order(self, rules: list[Rule]) -> Iterator[Rule]:
        """What produces before what reads; by url where nothing decides. A circle is broken at its first url."""
        rules = sorted(rules, key=lambda rule: rule.url)
        reads = {rule.url: self.reads(rule) for rule in rules}
        writes = {rule.url: self.writes(rule) for rule in rules}
        before = {
            rule.url: [other for other in rules if other is not rule and _meet(writes[other.url], reads[rule.url])]
            for rule in rules
        }
        done: set[str] = set()

        def visit(rule: Rule) -> Iterator[Rule]:
            if rule.url in done:
                return
            done.add(rule.url)
            for other in before[rule.url]:
                yield from visit(other)
            yield rule

        for rule in rules:
            yield from visit(rule)


def _wakes(resource_type: str, filters: tuple[Filter, ...]) -> set[Wake]:
    coded = next((one.codes for one in filters if one.path == "code"), None)
    if coded is None or coded.patterns or not all(system for system, _ in coded.listed):
        return {(resource_type, None)}
    return {(resource_type, code) for code in coded.listed}


def _meet(writes: set[Wake], reads: set[Wake]) -> bool:
    if writes & reads:
        return True
    types = {resource_type for resource_type, code in reads if code is None}
    return any(resource_type in types and code != TAGS for resource_type, code in writes)

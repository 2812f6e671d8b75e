"""PlanDefinition of type eca-rule → Rule: compiled once, refused with every reason if it does not compile.

https://hl7.org/fhir/R4/plandefinition.html; what our extensions mean: docs/hooks.md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import time
from typing import Any

from fhir_server.automation.definitions import Definitions, Wrong, compiled, duration, score_outcomes
from fhir_server.automation.facts import BUILTINS
from fhir_server.automation.follow_up import Activity, Dynamic, activity, dynamics
from fhir_server.automation.formulas import Formula
from fhir_server.automation.requirements import FactDefinition
from fhir_server.automation.risk import RISK_SCORES
from fhir_server.automation.risk.specification import specification
from fhir_server.automation.rules import Action, Assess, Branch, Hysteresis, Periodic, Quiet, Rule, Trigger
from fhir_server.automation.vocabulary import Element, extension, extension_value, extensions, part, parts, value
from fhir_server.errors import Issue, Unprocessable
from fhir_server.model.definitions import RESOURCE_TYPES
from fhir_server.model.resource import Resource

CHANGES: Mapping[str, frozenset[str]] = {
    "data-added": frozenset({"create"}),
    "data-modified": frozenset({"update"}),
    "data-removed": frozenset({"delete"}),
    "data-changed": frozenset({"create", "update", "delete"}),
}


UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration, ArithmeticError)


def is_rule(resource: Element) -> bool:
    """A PlanDefinition that the engine runs: of type eca-rule."""
    return resource.get("resourceType") == "PlanDefinition" and any(
        coding.get("code") == "eca-rule" for coding in resource.get("type", {}).get("coding", ())
    )


def check(resource: Resource, definitions: Definitions) -> list[Issue]:
    """Every reason why this PlanDefinition cannot be run; none for other PlanDefinitions."""
    return _compiled(resource, definitions)[1] if is_rule(resource) else []


def compile(resource: Resource, definitions: Definitions) -> Rule:
    """Raises Unprocessable (422) with every reason."""
    rule, issues = _compiled(resource, definitions)
    if rule is None or issues:
        raise Unprocessable(f"PlanDefinition/{resource.get('id')} cannot be run as a rule", issues=issues)
    return rule


def _compiled(resource: Resource, definitions: Definitions) -> tuple[Rule | None, list[Issue]]:
    try:
        compiler = _Compiler(resource, definitions)
        return compiler.rule, compiler.issues
    except UNREADABLE as error:  # extensions hold whatever FHIR allows, not only what we ask for
        text = f"this cannot be read as a rule: {type(error).__name__} {error}"
        return None, [Issue("error", "processing", text, ("PlanDefinition",))]


class _Compiler:
    def __init__(self, resource: Resource, definitions: Definitions) -> None:
        self._definitions = definitions
        self.issues: list[Issue] = []
        self._ids: set[str] = set()
        self._names: dict[str, str] = {}  # variable → where it is first read
        facts: dict[str, tuple[FactDefinition, ...]] = {}
        parameters: dict[str, Any] = {}
        for name in ("url", "version"):
            if not resource.get(name):
                self._wrong(f"PlanDefinition.{name}", "a rule needs it, because what it writes names it")
        for index, canonical in enumerate(resource.get("library", ())):
            where = f"PlanDefinition.library[{index}]"
            library = self._try(where, self._library, canonical, where)
            if library is not None:
                parameters.update(definitions.parameters(library))
                facts.update(self._try(where, definitions.facts_of, canonical, where) or {})
        parameters.update(definitions.parameters(resource))
        actions = resource.get("action", ())
        for index, element in enumerate(actions):
            where = f"PlanDefinition.action[{index}].input"
            facts.update(self._try(where, definitions.facts, element.get("input", ()), where) or {})
        self._facts = facts
        branches = [self._branch(element, f"PlanDefinition.action[{i}]") for i, element in enumerate(actions)]
        if not branches:
            self._wrong("PlanDefinition.action", "a rule without an action does nothing")
        self._check_names(facts, parameters)
        self._check_references([branch for branch in branches if branch is not None])
        self.rule = Rule(
            id=str(resource.get("id", "")),
            url=str(resource.get("url", "")),
            version=str(resource.get("version", "")),
            title=str(resource.get("title") or resource.get("name") or resource.get("id", "")),
            branches=tuple(branch for branch in branches if branch is not None),
            facts=facts,
            parameters=parameters,
            names=frozenset(self._names),
        )

    def _wrong(self, where: str, why: str) -> None:
        self.issues.append(Issue("error", "processing", f"{where}: {why}", (where,)))

    def _try(self, where: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Wrong as wrong:
            self.issues.append(Issue("error", "processing", str(wrong), (where,)))
        except UNREADABLE as error:
            self._wrong(where, f"cannot be read: {type(error).__name__} {error}")
        return None

    def _library(self, canonical: str, where: str) -> Resource:
        found = self._definitions.find(canonical, "Library")
        if found is None:
            raise Wrong(where, f"the library {canonical} is not known")
        return found

    def _branch(self, element: Element, where: str) -> Branch | None:
        triggers: list[Trigger] = []
        periodic: list[Periodic] = []
        names: set[str] = set()
        for index, one in enumerate(element.get("trigger", ())):
            self._try(
                f"{where}.trigger[{index}]", self._trigger, one, f"{where}.trigger[{index}]", triggers, periodic, names
            )
        if not element.get("trigger"):
            self._wrong(f"{where}.trigger", "a top-level action needs a trigger")
        scope = extension_value(element, "scope") or "patient"
        if scope not in ("patient", "focus"):
            self._wrong(where, f"the scope is patient or focus, not {scope!r}")
        if scope == "focus" and not triggers:
            self._wrong(where, "an action of scope focus needs a data trigger")
        action = self._action(element, where, scope == "focus")
        return Branch(action, tuple(triggers), tuple(periodic), frozenset(names), scope == "focus")

    def _trigger(
        self, element: Element, where: str, triggers: list[Trigger], periodic: list[Periodic], names: set[str]
    ) -> None:
        kind = element.get("type")
        if kind in CHANGES:
            for index, data in enumerate(element.get("data", ())):
                if data.get("type") not in RESOURCE_TYPES:
                    raise Wrong(where, f"{data.get('type')!r} is not a resource type")
                filters = self._definitions.filters(data, f"{where}.data[{index}]")
                triggers.append(Trigger(CHANGES[str(kind)], str(data["type"]), filters))
            if not element.get("data"):
                raise Wrong(where, f"{kind} needs data")
        elif kind == "periodic":
            repeat = element.get("timingTiming", {}).get("repeat", {})
            if "period" not in repeat or "periodUnit" not in repeat:
                raise Wrong(where, "periodic needs timingTiming.repeat with period and periodUnit")
            every = duration({"value": repeat["period"], "unit": repeat["periodUnit"]}, where)
            at = next(iter(repeat.get("timeOfDay", ())), None)
            periodic.append(Periodic(every, _time(at, where) if at else None))
        elif kind == "named-event":
            if not element.get("name"):
                raise Wrong(where, "named-event needs a name")
            names.add(str(element["name"]))
        else:
            raise Wrong(where, f"a trigger of type {kind!r} is not supported")

    def _formula(self, expression: Any, where: str) -> Formula | None:
        found: Formula | None = self._try(where, compiled, expression, where)
        if found is not None:
            for name in found.names:
                self._names.setdefault(name, where)
        return found

    def _read(self, formulas: Sequence[Formula], where: str) -> None:
        for formula in formulas:
            for name in formula.names:
                self._names.setdefault(name, where)

    def _activity(self, canonical: Any, where: str) -> Activity | None:
        found: Activity | None = self._try(where, activity, self._definitions, str(canonical), where)
        if found is not None:
            self._read([*found.holes.values(), *(formula for _, formula in found.dynamic)], f"{where} ({canonical})")
        return found

    def _action(self, element: Element, where: str, by_focus: bool) -> Action:
        conditions = []
        for index, one in enumerate(element.get("condition", ())):
            at = f"{where}.condition[{index}]"
            if one.get("kind", "applicability") != "applicability":
                self._wrong(at, f"only conditions of kind applicability are supported, not {one.get('kind')}")
            conditions.append(self._formula(one.get("expression"), at))
        anchor = extension_value(element, "anchor")
        missing = extension_value(element, "missing")
        recency = extension_value(element, "recency")
        requires = tuple(str(value(one)) for one in extensions(element, "requires"))
        for name in requires:
            self._names.setdefault(name, f"{where} requires")
        if missing:
            for name in requires:
                self._named(name, f"{where} requires")
        definition = element.get("definitionCanonical")
        dynamic: tuple[Dynamic, ...] = self._try(where, dynamics, element, where) or ()
        self._read([formula for _, formula in dynamic], where)
        tag = extension_value(element, "tag")
        if tag is not None and not (tag.get("system") and tag.get("code")):
            self._wrong(f"{where} tag", "a tag needs a system and a code")
        interpretation = extension_value(element, "interpretation")
        if interpretation is not None and not by_focus:
            self._wrong(f"{where} interpretation", "an interpretation belongs to scope focus")
        action = Action(
            id=str(element.get("id", "")),
            title=str(element.get("title", "")),
            conditions=tuple(found for found in conditions if found is not None),
            requires=requires,
            missing=self._activity(missing, f"{where} missing") if missing else None,
            hysteresis=self._hysteresis(element, where),
            anchor=self._formula(anchor, f"{where} anchor") if anchor else None,
            delay=self._duration(element.get("timingDuration"), f"{where}.timingDuration"),
            after=self._after(element, where),
            quiet=self._try(where, self._quiet, element, where),
            recency=self._duration(recency, f"{where} recency"),
            only_first=element.get("selectionBehavior") in ("at-most-one", "exactly-one"),
            tag=tag,
            interpretation=interpretation,
            assess=self._assess(element, where),
            activity=self._activity(definition, f"{where}.definitionCanonical") if definition else None,
            dynamic=dynamic,
            children=tuple(
                self._action(child, f"{where}.action[{index}]", by_focus)
                for index, child in enumerate(element.get("action", ()))
            ),
        )
        if action.activity or action.assess or action.missing:
            if not action.id:
                self._wrong(
                    f"{where}.id", "an action with an outcome needs an id: it is part of what it writes is called"
                )
            elif action.id in self._ids:
                self._wrong(f"{where}.id", f"the id {action.id!r} is used twice")
            self._ids.add(action.id)
        return action

    def _duration(self, element: Element | None, where: str) -> int | None:
        if element is None:
            return None
        found: int | None = self._try(where, duration, element, where)
        return found

    def _hysteresis(self, element: Element, where: str) -> Hysteresis | None:
        found = extension(element, "hysteresis")
        if found is None:
            return None
        at = f"{where} hysteresis"
        on, off = self._formula(part(found, "set"), f"{at} set"), self._formula(part(found, "clear"), f"{at} clear")
        fact = str(part(found, "fact", ""))
        self._names.setdefault(fact, at)
        return Hysteresis(fact, on, off) if on is not None and off is not None else None

    def _after(self, element: Element, where: str) -> tuple[str, int] | None:
        for index, one in enumerate(element.get("relatedAction", ())):
            at = f"{where}.relatedAction[{index}]"
            if one.get("relationship") not in ("after-start", "after"):
                self._wrong(at, f"only after-start is supported, not {one.get('relationship')}")
            offset = self._duration(one.get("offsetDuration"), f"{at}.offsetDuration")
            return (str(one.get("actionId")), offset or 0)
        return None

    def _quiet(self, element: Element, where: str) -> Quiet | None:
        found = extension(element, "quiet-hours")
        if found is None:
            return None
        start, end = _time(part(found, "start"), where), _time(part(found, "end"), where)
        return Quiet(start, end, str(part(found, "zone", "Asia/Shanghai")))

    def _assess(self, element: Element, where: str) -> Assess | None:
        found = extension(element, "assess")
        if found is None:
            return None
        code = str(part(found, "code", ""))
        if code not in RISK_SCORES:
            self._wrong(f"{where} assess", f"there is no score {code!r}")
            return None
        missing = part(found, "missing")
        library = self._definitions.score(code)
        if library is None:
            self._wrong(f"{where} assess", f"no Library in resources/risk says what the score {code!r} needs")
            return None
        known = {coding["code"] for coding in score_outcomes(library)}
        outcomes = tuple(str(one) for one in parts(found, "outcome"))
        for outcome in outcomes:
            if outcome not in known:
                self._wrong(f"{where} assess", f"{code} has no outcome {outcome!r}; it has {', '.join(sorted(known))}")
        found_specification = self._try(f"{where} assess", specification, library)
        for item in found_specification.inputs if found_specification is not None and missing else ():
            if not (item.display and item.zh):
                self._wrong(
                    f"{where} assess",
                    f"the Library of {code} gives its input {item.name} no English or no Chinese name (documentation), "
                    "so that nobody could be asked for it",
                )
        return Assess(code, outcomes, self._activity(missing, f"{where} assess missing") if missing else None)

    def _named(self, name: str, where: str) -> None:
        """What somebody may be asked for has a name in both languages."""
        if not any(one.display and one.zh for one in self._facts.get(name, ())):
            self._wrong(
                where,
                f"%{name} has no English or no Chinese name (part display of its fact), so that nobody could be asked for it",
            )

    def _check_names(self, facts: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
        for name, where in self._names.items():
            base, _, what = name.rpartition("_")
            if name in facts or name in parameters or name in BUILTINS:
                continue
            if base in facts and what in ("at", "source", "count"):
                continue
            if base in ("score", "band") or name.startswith(("score_", "band_")):
                continue
            self._wrong(where, f"%{name} is neither a fact of the rule's libraries, nor a parameter, nor built in")

    def _check_references(self, branches: Sequence[Branch]) -> None:
        ids = {action.id for branch in branches for action in branch.action.walk()}
        for branch in branches:
            for action in branch.action.walk():
                if action.after is not None and action.after[0] not in ids:
                    self._wrong("PlanDefinition.action.relatedAction", f"there is no action {action.after[0]!r}")


def _time(text: Any, where: str) -> time:
    try:
        return time.fromisoformat(str(text))
    except ValueError:
        raise Wrong(where, f"{text!r} is not a time of day") from None

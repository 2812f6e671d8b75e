"""Cases: given, when, then, not. One YAML file a topic; run in memory. docs/hooks.md (Cases) says how they are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fhir_server.automation.drafts import PATIENT, BadCase, Drafts, components, span, value
from fhir_server.automation.expectations import Judge, activities, find
from fhir_server.automation.reconcile import CLOSED
from fhir_server.automation.rulebook import Rulebook
from fhir_server.automation.world import World
from fhir_server.model.content import read_yaml
from fhir_server.model.dates import interval
from fhir_server.validation import Validator

DEFAULT_NOW = "2026-06-01T08:00:00+08:00"


@dataclass(frozen=True, slots=True)
class Case:
    path: Path
    name: str
    rules: tuple[str, ...]
    body: Mapping[str, Any]

    @property
    def parameters(self) -> tuple[tuple[str, Any], ...]:
        """Parameters of its rules' Libraries that it sets: how it is where another guideline is followed."""
        return tuple(sorted(self.body.get("parameters", {}).items()))


@dataclass(slots=True)
class Verdict:
    case: Case
    problems: list[str] = field(default_factory=list)
    world: World | None = None


def cases(path: Path) -> list[Case]:
    """The cases of one file. Raises BadCase."""
    content = read_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(content, dict) or not isinstance(content.get("cases"), list):
        raise BadCase(f"{path}: a file of cases has a list `cases`")
    rules = content.get("rule", content.get("rules", []))
    ids = tuple(rules) if isinstance(rules, list) else (str(rules),)
    found = []
    for body in content["cases"]:
        strange = set(body) - {"name", "now", "given", "when", "then", "not", "rule", "parameters"}
        if strange or "name" not in body:
            raise BadCase(f"{path}: {body.get('name', 'a case without a name')}: unknown {', '.join(sorted(strange))}")
        if "then" not in body and "not" not in body:
            raise BadCase(f"{path}: {body['name']}: without `then` or `not` a case cannot fail")
        own = body.get("rule", [])
        found.append(Case(path, str(body["name"]), tuple(own if isinstance(own, list) else [own]) or ids, body))
    return found


def run(case: Case, book: Rulebook, validator: Validator | None = None) -> Verdict:
    """Plays the case on `book`; every deviation in words."""
    verdict = Verdict(case)
    try:
        player = _Player(case, book, validator)
        verdict.world = player.world
        player.play()
        verdict.problems += player.judge()
    except BadCase as error:
        verdict.problems.append(str(error))
    return verdict


class _Player:
    def __init__(self, case: Case, book: Rulebook, validator: Validator | None) -> None:
        self._case = case
        self._start = interval(str(case.body.get("now", DEFAULT_NOW)))[0]
        self.world = World(book, PATIENT, self._start, validator)
        self._drafts = Drafts(self._start, lambda: self.world.now)

    def play(self) -> None:
        given = list(self._case.body.get("given", ()))
        if not any("patient" in one for one in given):
            given.insert(0, {"patient": {}})
        for one in given:
            self.world.write(self._drafts.make(one))
        self.world.settle()
        for one in self._case.body.get("when", ()):
            self._step(one)
            self.world.settle()

    def _step(self, step: Mapping[str, Any]) -> None:
        if "advance" in step:
            self.world.advance(self.world.now + span(str(step["advance"])))
        elif "correct" in step:
            key, resource = find(self.world, str(step["correct"]))
            fields = {name: value for name, value in step.items() if name != "correct"}
            if "bp" in fields:
                fields["component"] = components(str(fields.pop("bp")))
            if "value" in fields:
                resource = {name: value for name, value in resource.items() if not name.startswith("value")}
                resource.update(value(fields.pop("value")))
            self.world.write({**resource, **fields, "id": key[1]})
        elif "delete" in step:
            self.world.delete(find(self.world, str(step["delete"]))[0])
        elif "close" in step:
            found = [one for one in activities(self.world, str(step["close"])) if one.get("status") not in CLOSED]
            if not found:
                raise BadCase(f"nothing of {step['close']} is open, so that it cannot be closed")
            self.world.write({**found[0], "status": step.get("status", "completed")})
        else:
            self.world.write(self._drafts.make(step))

    def judge(self) -> list[str]:
        return Judge(self.world, self._start).problems(self._case.body)

"""ActivityDefinition → the Task, message, flag or plan it describes. https://hl7.org/fhir/R4/activitydefinition.html

Pure: what is built has no id, identifier or status history; reconcile.py gives it an identity and a life.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from fhir_server.automation.chart import codes
from fhir_server.automation.definitions import Definitions, Wrong, compiled, duration
from fhir_server.automation.facts import Facts
from fhir_server.automation.formulas import Formula
from fhir_server.automation.vocabulary import Element, canonical, extension_value, part, structure
from fhir_server.model.dates import instant
from fhir_server.model.resource import Resource

TYPES = frozenset({"Task", "CommunicationRequest", "ServiceRequest", "CarePlan", "Flag"})
PRIORITIES = ("routine", "urgent", "asap", "stat")

_HOLE = re.compile(r"\{(%[^{}]+)\}")
Dynamic = tuple[str, Formula]


@dataclass(frozen=True, slots=True)
class Activity:
    """An ActivityDefinition, compiled. `due`: ms after the focus."""

    canonical: str
    creates: str
    definition: Element
    role: Element | None
    due: int | None
    holes: Mapping[str, Formula]
    dynamic: tuple[Dynamic, ...]


def activity(definitions: Definitions, reference: str, where: str) -> Activity:
    """Raises Wrong for an unknown definition and for one that says nothing that can be made."""
    definition = definitions.find(reference, "ActivityDefinition")
    if definition is None:
        raise Wrong(where, f"the activity definition {reference} is not known")
    creates = extension_value(definition, "creates") or definition.get("kind")
    if creates not in TYPES:
        raise Wrong(where, f"{reference} creates {creates!r}; known are {', '.join(sorted(TYPES))}")
    role = next((one.get("role") for one in definition.get("participant", ())), None)
    due = definition.get("timingDuration")
    texts = [definition.get("description", ""), *_translations(definition)]
    holes = {text: compiled(text, f"{reference} {text}") for source in texts for text in _HOLE.findall(source)}
    return Activity(
        canonical(definition), str(creates), definition, role,
        None if due is None else duration(due, reference), holes, dynamics(definition, reference),
    )  # fmt: skip


def dynamics(element: Element, where: str) -> tuple[Dynamic, ...]:
    """`dynamicValue` of an ActivityDefinition or an action: (path, formula). Raises Wrong."""
    return tuple(
        (str(one.get("path", "")), compiled(one.get("expression"), f"{where}.dynamicValue {one.get('path')}"))
        for one in element.get("dynamicValue", ())
    )


def build(
    activity: Activity,
    facts: Facts,
    *,
    rule: str,
    patient: str,
    focus: str,
    focus_at: int | None,
    source: str,
    dynamic: tuple[Dynamic, ...] = (),
    occurs: int | None = None,
) -> Resource:
    """The resource as it should be now. `focus_at` (ms): what its due time is counted from; None: from when it is raised.

    `occurs` (ms): when a message may go out.
    """
    text, sibling = _text(activity, facts)
    subject = {"reference": f"Patient/{patient}"}
    since = occurs if occurs is not None else focus_at
    due = instant(since + activity.due) if activity.due is not None and since is not None else None
    resource = _MAKERS[activity.creates](activity, rule, subject, focus, source, due, text, sibling, occurs)
    if activity.creates != "Task":  # R4's Task has an element for it
        resource["extension"] = [{"url": structure("instantiates-activity"), "valueCanonical": activity.canonical}]
    for path, formula in (*activity.dynamic, *dynamic):
        result = formula(facts.variable("focus"), facts.variable)
        if result:
            _set(resource, path, result)
    return {key: content for key, content in resource.items() if content is not None}


def _text(activity: Activity, facts: Facts) -> tuple[str, Element | None]:
    """The description with its holes filled, and its translations likewise, each in its language."""

    def filled(text: str, chinese: bool) -> str:
        def variable(name: str) -> Any:
            return _focus_name(facts, chinese) if name == "focus_name" else facts.variable(_in(name, chinese))

        def fill(match: re.Match[str]) -> str:
            found = activity.holes[match.group(1)](facts.variable("focus"), variable)
            return ("；" if chinese else "; ").join(shown(item) for item in found) or "–"

        return _HOLE.sub(fill, text)

    definition = activity.definition
    text = filled(definition.get("description") or definition.get("title") or "", False)
    sibling = definition.get("_description") or (definition.get("_title") if "description" not in definition else None)
    return text, _translated(sibling, filled) if sibling else None


def _translated(sibling: Element, filled: Callable[[str, bool], str]) -> Element:
    """The extensions beside a text, with their `content` filled."""
    found = []
    for extension in sibling.get("extension", ()):
        chinese = str(part(extension, "lang", "")).startswith("zh")
        parts = [
            {**one, "valueString": filled(one["valueString"], chinese)} if "valueString" in one else one
            for one in extension.get("extension", ())
        ]
        found.append({**extension, "extension": parts} if parts else extension)
    return {**sibling, "extension": found}


def _in(name: str, chinese: bool) -> str:
    """`%missing` is a list of names: each text gets those of its language."""
    return "missing_zh" if name == "missing" and chinese else name


def _focus_name(facts: Facts, chinese: bool) -> str:
    """What the focus is called: as the first fact that it could be is, else as its sender called it."""
    focus = facts.variable("focus") or {}
    for definitions in facts.definitions.values():
        for one in definitions:
            fits = one.type == focus.get("resourceType") and one.filters
            if fits and one.display and all(any(f.codes.has(c) for c in codes(focus, f.path)) for f in one.filters):
                return (one.zh if chinese else "") or one.display
    code = focus.get("code", {})
    return str(code.get("text") or next((c["display"] for c in code.get("coding", ()) if "display" in c), "–"))


def _translations(definition: Element) -> list[str]:
    found: list[str] = []

    def walk(element: Any) -> None:
        if isinstance(element, Mapping):
            for key, item in element.items():
                if key == "valueString":
                    found.append(item)
                else:
                    walk(item)
        elif isinstance(element, list):
            for item in element:
                walk(item)

    walk([definition.get("_description"), definition.get("_title")])
    return found


def shown(item: Any) -> str:
    """A value in a sentence: numbers without needless zeros."""
    if isinstance(item, Decimal):
        whole = round(item, 2).normalize()
        return f"{whole:f}"
    if isinstance(item, Mapping):
        return str(item.get("display") or item.get("text") or item.get("id") or "…")
    return str(item)


def _role(activity: Activity) -> tuple[Element | None, Element | None]:
    """(owner, performerType): a logical reference, because which nurse it is, is decided by people."""
    if activity.role is None:
        return None, None
    coding: Element = next(iter(activity.role.get("coding", ())), {})
    display = coding.get("display") or activity.role.get("text") or coding.get("code")
    owner = {
        "type": "PractitionerRole",
        "identifier": {"system": coding.get("system"), "value": coding.get("code")},
        "display": display,
    }
    if "_display" in coding and display == coding.get("display"):
        owner["_display"] = coding["_display"]
    return owner, activity.role


def _task(
    activity: Activity, rule: str, subject: Any, focus: str, source: str, due: str | None, text: str, sibling: Any,
    occurs: int | None,
) -> Resource:  # fmt: skip
    owner, role = _role(activity)
    return {
        "resourceType": "Task",
        "instantiatesCanonical": rule,
        "instantiatesUri": activity.canonical,
        "status": "requested",
        "intent": "order",
        "priority": activity.definition.get("priority", "routine"),
        "code": activity.definition.get("code"),
        "description": text,
        "_description": sibling,
        "focus": {"reference": focus} if focus else None,
        "for": subject,
        "requester": {"reference": "Device/automation"},
        "performerType": [role] if role else None,
        "owner": owner,
        "reasonReference": {"reference": source} if source else None,
        "restriction": {"period": {"end": due}} if due else None,
    }


def _message(
    activity: Activity, rule: str, subject: Any, focus: str, source: str, due: str | None, text: str, sibling: Any,
    occurs: int | None,
) -> Resource:  # fmt: skip
    owner, role = _role(activity)
    to_patient = role is None or any(c.get("code") == "patient" for c in role.get("coding", ()))
    content: dict[str, Any] = {"contentString": text}
    if sibling:
        content["_contentString"] = sibling
    return {
        "resourceType": "CommunicationRequest",
        "status": "active",
        "category": [activity.definition["code"]] if "code" in activity.definition else None,
        "priority": activity.definition.get("priority", "routine"),
        "subject": subject,
        "about": [{"reference": focus}] if focus else None,
        "payload": [content],
        "occurrenceDateTime": instant(occurs) if occurs is not None else None,
        "requester": {"reference": "Device/automation"},
        "recipient": [subject if to_patient else owner],
        "reasonReference": [{"reference": source}] if source.startswith("Observation/") else None,
    }


def _request(
    activity: Activity, rule: str, subject: Any, focus: str, source: str, due: str | None, text: str, sibling: Any,
    occurs: int | None,
) -> Resource:  # fmt: skip
    _, role = _role(activity)
    return {
        "resourceType": "ServiceRequest",
        "instantiatesCanonical": [rule],
        "status": "active",
        "intent": "proposal",
        "priority": activity.definition.get("priority", "routine"),
        "code": activity.definition.get("code") or {"text": text},
        "subject": subject,
        "occurrenceDateTime": due,
        "requester": {"reference": "Device/automation"},
        "performerType": role,
        "reasonReference": [{"reference": source}] if source.startswith(("Observation/", "Condition/")) else None,
        "patientInstruction": text,
        "_patientInstruction": sibling,
    }


def _plan(
    activity: Activity, rule: str, subject: Any, focus: str, source: str, due: str | None, text: str, sibling: Any,
    occurs: int | None,
) -> Resource:  # fmt: skip
    return {
        "resourceType": "CarePlan",
        "instantiatesCanonical": [rule],
        "status": "active",
        "intent": "plan",
        "title": activity.definition.get("title"),
        "_title": activity.definition.get("_title"),
        "description": text,
        "_description": sibling,
        "category": [activity.definition["code"]] if "code" in activity.definition else None,
        "subject": subject,
        "period": {"start": instant(focus_start)} if (focus_start := occurs) is not None else None,
        "supportingInfo": [{"reference": source}] if source else None,
    }


def _flag(
    activity: Activity, rule: str, subject: Any, focus: str, source: str, due: str | None, text: str, sibling: Any,
    occurs: int | None,
) -> Resource:  # fmt: skip
    code = dict(activity.definition.get("code") or {})
    code["text"] = text or code.get("text")
    if sibling:
        code["_text"] = sibling
    return {
        "resourceType": "Flag",
        "status": "active",
        "category": activity.definition.get("topic"),
        "code": {key: item for key, item in code.items() if item},
        "subject": subject,
        "author": {"reference": "Device/automation"},
    }


_MAKERS: Mapping[str, Any] = {
    "Task": _task, "CommunicationRequest": _message, "ServiceRequest": _request, "CarePlan": _plan, "Flag": _flag,
}  # fmt: skip


def _set(resource: dict[str, Any], path: str, result: list[Any]) -> None:
    """`a.b` of a resource; one value as itself, several as a list."""
    *parents, last = path.split(".")
    target = resource
    for name in parents:
        following = target.get(name)
        if isinstance(following, list) and following:
            following = following[0]
        if not isinstance(following, dict):
            following = target[name] = {}
        target = following
    target[last] = result[0] if len(result) == 1 else result

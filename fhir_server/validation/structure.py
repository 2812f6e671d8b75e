"""Elements, JSON kinds, cardinalities, choices, bindings, invariants: checkers compiled from the definitions. https://hl7.org/fhir/R4/json.html

One closure for each type, made when the type is first met. The way through a right resource makes no path, no message
and no list; whatever is unusual (`_siblings`, a missing key, two types of one choice) is looked at a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from fhir_server.model.definitions import RESOURCE_TYPES, Element, TypeDefinition, type_definition
from fhir_server.validation import codes, invariants, references
from fhir_server.validation.narrative import problems as narrative_problems
from fhir_server.validation.primitives import ACCEPTS, Accepts, explain
from fhir_server.validation.problems import ENOUGH, Check, Problem, Problems, Scope, below, kind, quote

_NULL = "null stands only where the '_' array beside it has an object"


def resource(value: Any, scope: Scope) -> Problems | None:
    """Any resource, by its own resourceType; `scope.root` must be this resource or its container."""
    if type(value) is not dict or not value:
        return [Problem("", "structure", f"Must be a resource (an object with a resourceType), not {_empty(value)}")]
    name = value.get("resourceType")
    if type(name) is not str or name not in RESOURCE_TYPES:
        if name is None:
            return [Problem("", "required", "'resourceType' is missing")]
        hint = scope.hint(str(name), RESOURCE_TYPES)
        return [Problem(".resourceType", "value", f"{quote(name)} is no resource type of R4{hint}")]
    found = checker(name)(value, scope)
    if "contained" in value and value is scope.root:
        unused = references.unreferenced(value)
        if unused:
            found = (found or []) + unused
    return found


@cache
def checker(type_name: str) -> Check:
    """The compiled check of a complex type or resource, by its name or path."""
    return _compile(type_definition(type_name), element=True)


@cache
def _sibling_checker() -> Check:
    return _compile(type_definition("Element"), element=False)


def _compile(definition: TypeDefinition, *, element: bool) -> Check:
    rules: dict[str, Check] = {e.key: _rule(e) for e in definition.elements.values()}
    is_resource = definition.kind == "resource"
    if is_resource:
        rules["resourceType"] = _fine
    rule_of = rules.get
    required = frozenset(e.key for e in definition.elements.values() if e.min and not e.choice)
    complete = required.issubset
    choices = _choices(definition)
    judged = invariants.of_type(definition)
    needs_more_than_id = element and not is_resource
    name = definition.name

    def check(value: Any, scope: Scope) -> Problems | None:
        if type(value) is not dict or not value:
            return [Problem("", "structure", f"Must be an object ({name}), not {_empty(value)}")]
        problems: Problems | None = None
        odd = False
        for key, item in value.items():
            rule = rule_of(key)
            if rule is None:
                odd = True
                continue
            found = rule(item, scope)
            if found is not None:
                if "_" + key in value:
                    found = [p for p in found if p.text is not _NULL]
                if problems is None:
                    problems = found
                else:
                    problems.extend(found)
        if not odd and required and not complete(value):
            odd = True
        if choices and not odd:
            for keys, least in choices:
                if not least <= len(keys.intersection(value)) <= 1:
                    odd = True
        if odd:
            found = _odd(definition, rules, value, scope)
            if found:
                problems = found if problems is None else problems + found
        if needs_more_than_id and len(value) == 1 and "id" in value:
            problems = [*(problems or ()), Problem("", "invariant", "Holds nothing but an id (ele-1)")]
        for invariant, holds in judged:
            try:
                if holds(value, scope):
                    continue
            except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError):
                if problems is not None:
                    continue  # what is broken below is reported already; the rule cannot be judged
                raise
            failed = Problem("", "invariant", f"{invariant.human} ({invariant.key})", invariant.severity)
            problems = [failed] if problems is None else [*problems, failed]
        return problems

    return check


def _fine(_value: Any, _scope: Scope) -> None:
    return None


def _empty(value: Any) -> str:
    return "an empty object" if value == {} else kind(value)


def _choices(definition: TypeDefinition) -> tuple[tuple[frozenset[str], int], ...]:
    groups: dict[str, set[str]] = {}
    least: dict[str, int] = {}
    for element in definition.elements.values():
        if element.choice:
            groups.setdefault(element.name, set()).update((element.key, "_" + element.key))
            least[element.name] = min(element.min, 1)
    return tuple((frozenset(keys), least[name]) for name, keys in groups.items())


# ── one rule for each JSON key ────────────────────────────────────────────────────────────────────────────────────────


def _rule(element: Element) -> Check:
    step = "." + element.name
    accepts = _accepts(element)
    if accepts is not None:
        why = _why(element)
        return _many_primitives(step, element, accepts, why) if element.max != 1 else _one_primitive(step, accepts, why)
    one = _complex(element)
    return _many(step, element, one) if element.max != 1 else _one(step, one)


def _accepts(element: Element) -> Accepts | None:
    accepts = ACCEPTS.get(element.type)
    if accepts is None or not element.binding:
        return accepts
    return codes.accepts(element.binding, accepts)


def _why(element: Element) -> Callable[[Any], Problem]:
    type_name, binding = element.type, element.binding

    def why(value: Any) -> Problem:
        if isinstance(value, list):
            return Problem("", "structure", "Must not be an array: it does not repeat")
        problem = codes.explain(binding, value) if binding and ACCEPTS[type_name](value) else None
        return problem or explain(type_name, value)

    return why


def _one_primitive(step: str, accepts: Accepts, why: Callable[[Any], Problem]) -> Check:
    if step == ".div":
        return _narrative

    def rule(value: Any, _scope: Scope) -> Problems | None:
        return None if accepts(value) else below(step, [why(value)])

    return rule


def _narrative(value: Any, _scope: Scope) -> Problems | None:
    if not ACCEPTS["xhtml"](value):
        return below(".div", [explain("xhtml", value)])
    found = narrative_problems(value)
    return [Problem(".div", "invariant", text) for text in found] if found else None


def _many_primitives(step: str, element: Element, accepts: Accepts, why: Callable[[Any], Problem]) -> Check:
    def rule(value: Any, _scope: Scope) -> Problems | None:
        if type(value) is not list or not value:
            return [Problem(step, "structure", _not_repeated(value))]
        problems: Problems = []
        for index, item in enumerate(value):
            if not accepts(item):
                problem = Problem("", "structure", _NULL) if item is None else why(item)
                problems.append(problem._replace(path=f"{step}[{index}]"))
                if len(problems) > ENOUGH and item is not None:  # a null may be right after all
                    break
        return problems + _too_many(step, element, value) if problems or element.max else None

    return rule


def _one(step: str, one: Check) -> Check:
    def rule(value: Any, scope: Scope) -> Problems | None:
        found = one(value, scope)
        return None if found is None else below(step, found)

    return rule


def _many(step: str, element: Element, one: Check) -> Check:
    largest = element.max

    def rule(value: Any, scope: Scope) -> Problems | None:
        if type(value) is not list or not value:
            return [Problem(step, "structure", _not_repeated(value))]
        problems: Problems | None = None
        index = 0
        for item in value:
            found = one(item, scope)
            if found is not None:
                problems = problems if problems is not None else []
                problems.extend(below(f"{step}[{index}]", found))
                if len(problems) > ENOUGH and any(
                    p.severity == "error" for p in found
                ):  # it is refused, whatever follows
                    break
            index += 1
        if largest is not None and index > largest:
            problems = (problems or []) + _too_many(step, element, value)
        return problems

    return rule


def _not_repeated(value: Any) -> str:
    if value == []:
        return "Must not be an empty array: leave the element out instead"
    return f"Must be an array, even for one value, because it may repeat; this is {kind(value)}"


def _too_many(step: str, element: Element, value: list[Any]) -> Problems:
    if element.max is None or len(value) <= element.max:
        return []
    return [Problem(step, "structure", f"At most {element.max} allowed, {len(value)} given")]


def _complex(element: Element) -> Check:
    """The check of one value of a complex element: its type, then what this element adds."""
    type_name = element.type
    if type_name == "Resource":
        return _contained if element.name == "contained" else _entry
    compiled: Check | None = None  # resolved at first use: types refer to each other in circles

    def plain(value: Any, scope: Scope) -> Problems | None:
        nonlocal compiled
        if compiled is None:
            compiled = checker(type_name)
        return compiled(value, scope)

    if type_name == "Reference":
        return _reference(element, plain)
    more: list[Check] = [invariants.as_check(i, type_name) for i in element.invariants]
    if element.binding and (bound := codes.bound(element.binding, type_name)) is not None:
        more.append(bound)
    if not more:
        return plain

    def with_more(value: Any, scope: Scope) -> Problems | None:
        problems = plain(value, scope)
        if problems is None:
            for check in more:
                found = check(value, scope)
                if found is not None:
                    problems = (problems or []) + found
        return problems

    return with_more


def _reference(element: Element, plain: Check) -> Check:
    targets = element.targets
    judge = references.check

    def rule(value: Any, scope: Scope) -> Problems | None:
        problems = plain(value, scope)
        return judge(value, targets, scope) if problems is None else problems

    return rule


def _contained(value: Any, scope: Scope) -> Problems | None:
    outer = scope.resource
    if outer is not scope.root:
        return [Problem("", "invariant", "A contained resource must not contain resources (dom-2)")]
    scope.resource = value
    try:
        problems = resource(value, scope) or []
    finally:
        scope.resource = outer
    meta = value.get("meta") if isinstance(value, dict) else None
    for key, rule in (("versionId", "dom-4"), ("lastUpdated", "dom-4"), ("security", "dom-5")):
        if isinstance(meta, dict) and key in meta:
            text = f"A contained resource must not have meta.{key} ({rule})"
            problems = [*problems, Problem(f".meta.{key}", "invariant", text)]
    return problems or None


def _entry(value: Any, scope: Scope) -> Problems | None:
    """A whole resource inside a Bundle or Parameters: its own root."""
    inner = Scope(value, scope) if isinstance(value, dict) else scope
    return resource(value, inner)


# ── what the fast way leaves aside ────────────────────────────────────────────────────────────────────────────────────


def _odd(definition: TypeDefinition, rules: dict[str, Check], value: dict[str, Any], scope: Scope) -> Problems:
    problems: Problems = []
    for key in value:
        if key in rules:
            continue
        element = definition.elements.get(key[1:]) if key.startswith("_") else None
        if element is not None and element.type in ACCEPTS:
            problems += _siblings(element, value, scope)
        else:
            problems.append(Problem("." + key, "structure", _unknown(definition, key, scope)))
            if len(problems) > ENOUGH:
                break
    present: dict[str, set[str]] = {}
    for element in definition.elements.values():
        if element.key in value or "_" + element.key in value:
            present.setdefault(element.name, set()).add(element.key)
    for name, keys in present.items():
        if len(keys) > 1:
            text = f"Only one of {', '.join(sorted(keys))} may be given"
            problems.append(Problem("." + name, "structure", text))
    missing = {e.name: e for e in definition.elements.values() if e.min and e.name not in present}
    for name, element in missing.items():
        shown = f"{name}[x]" if element.choice else name
        problems.append(Problem("", "required", f"'{shown}' is required in {definition.name} and missing"))
    return problems


def _unknown(definition: TypeDefinition, key: str, scope: Scope) -> str:
    known = list(definition.elements)
    typed = sorted(e.key for e in definition.elements.values() if e.choice and e.name == key)
    if typed:
        return f"'{key}' must name its type: {', '.join(typed[:12])}"
    if key.startswith("_") and key[1:] in known:
        return f"'{key}' is for primitive elements only; put id and extension into '{key[1:]}' itself"
    return f"{definition.name} has no element {quote(key)}{scope.hint(key, known)}"


def _siblings(element: Element, value: dict[str, Any], scope: Scope) -> Problems:
    """`_key`: id and extensions of a primitive, item by item beside its values."""
    step, sibling, key = "." + element.name, value["_" + element.key], element.key
    if element.max == 1:
        return below(step, _sibling(sibling, key in value, scope))
    if not isinstance(sibling, list) or not sibling:
        return [Problem(step, "structure", f"'_{key}' must be an array beside '{key}', not {_empty(sibling)}")]
    values = value.get(key, [None] * len(sibling))
    if not isinstance(values, list):
        return []
    problems: Problems = []
    if len(values) != len(sibling):
        text = f"'{key}' has {len(values)} items and '_{key}' {len(sibling)}: fill up with null"
        problems.append(Problem(step, "structure", text))
    for index, (item, extra) in enumerate(zip(values, sibling, strict=False)):
        if extra is None and item is None:
            problems.append(Problem(f"{step}[{index}]", "structure", f"'{key}' and '_{key}' are both null here"))
        elif extra is not None:
            problems += below(f"{step}[{index}]", _sibling(extra, item is not None, scope))
        if len(problems) > ENOUGH and problems[-1].severity == "error":
            break
    return problems


def _sibling(sibling: Any, has_value: bool, scope: Scope) -> Problems:
    problems = _sibling_checker()(sibling, scope)
    if problems is None and not has_value and "extension" not in sibling:
        return [Problem("", "invariant", "Has neither a value nor an extension (ele-1)")]
    return problems or []

"""The base invariants: the hot ones by hand, the others by their FHIRPath expression. https://hl7.org/fhir/R4/conformance-rules.html#constraints

A rule is `holds(node, scope) → bool` over a node whose structure is right. `NATIVE` is keyed by the invariant's key.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

from fhir_server.model import fhirpath
from fhir_server.model.dates import interval
from fhir_server.model.definitions import Invariant, TypeDefinition
from fhir_server.validation.problems import Check, Problem, Problems, Scope

Node = dict[str, Any]
Holds = Callable[[Node, Scope], bool]

# Checked where the structure is walked: structure.py, references.py, narrative.py.
ELSEWHERE: Final = frozenset(["ele-1", "dom-2", "dom-3", "dom-4", "dom-5", "ref-1", "txt-1", "txt-2"])

# One warning under 29 keys: adf-0, cpb-0, csd-0, …
_NAMED: Final = "name.matches('[A-Z]([A-Za-z0-9_]){0,254}')"
_NAME: Final = re.compile("[A-Z][A-Za-z0-9_]{0,254}")

# Part of an ElementDefinition.path.
_STEP: Final = r"""[^\s.,:;'"/|?!@#$%&*()\[\]{}]{1,64}"""

_UCUM: Final = "http://unitsofmeasure.org"
_V3: Final = "http://terminology.hl7.org/CodeSystem/"


def _has(node: Node, *names: str) -> bool:
    """Some element of these names exists, be it only as an extension of a missing value."""
    return any(name in node or "_" + name in node for name in names)


def _chosen(node: Node, name: str) -> bool:
    """Some `name[x]` exists."""
    return any(key.startswith((name, "_" + name)) for key in node)


def _coded(concept: Any, system: str, *codes: str) -> bool:
    codings = concept.get("coding", ()) if concept else ()
    return any(c.get("system") == system and c.get("code") in codes for c in codings)


def _needs(dependent: str, *needed: str) -> Holds:
    """`dependent` only together with one of `needed`."""

    def holds(node: Node, _scope: Scope) -> bool:
        return not _has(node, dependent) or _has(node, *needed)

    return holds


def _some_of(*names: str) -> Holds:
    def holds(node: Node, _scope: Scope) -> bool:
        return any(name in node for name in names) or _has(node, *names)

    return holds


def _not_both(first: str, second: str) -> Holds:
    def holds(node: Node, _scope: Scope) -> bool:
        return not (_has(node, first) and _has(node, second))

    return holds


def _ext_1(node: Node, _scope: Scope) -> bool:
    return ("extension" in node) != _chosen(node, "value")


def _dom_6(node: Node, scope: Scope) -> bool:
    return node is not scope.root or "text" in node


def _obs_6(node: Node, _scope: Scope) -> bool:
    return "dataAbsentReason" not in node or not _chosen(node, "value")


def _obs_7(node: Node, scope: Scope) -> bool:
    if "component" not in node or not _chosen(node, "value"):
        return True
    own: dict[Any, list[Node]] = {}  # by code, so that long lists stay cheap
    for coding in scope.resource.get("code", {}).get("coding", ()):
        own.setdefault(coding.get("code"), []).append(coding)
    return not any(
        coding in own.get(coding.get("code"), ())
        for component in node["component"]
        for coding in component.get("code", {}).get("coding", ())
    )


def _per_1(node: Node, _scope: Scope) -> bool:
    start, end = node.get("start"), node.get("end")
    if start is None or end is None:
        return True
    if start[:10] < end[:10]:
        # A day apart in text: only a zone could turn the order round, and it is less than a day and a half.
        return "T" not in start or "T" not in end or interval(start)[0] < interval(end)[1]
    return interval(start)[0] < interval(end)[1]


def _rng_2(node: Node, _scope: Scope) -> bool:
    low, high = node.get("low", {}), node.get("high", {})
    if "value" not in low or "value" not in high:
        return True
    same = all(low.get(key) == high.get(key) for key in ("system", "code", "unit"))
    return not same or bool(low["value"] <= high["value"])


def _rat_1(node: Node, _scope: Scope) -> bool:
    top, bottom = "numerator" in node, "denominator" in node
    return top == bottom and (top or "extension" in node)


def _ucum_quantity(node: Node, _scope: Scope) -> bool:
    if _has(node, "value") and "code" not in node:
        return False
    return bool(node.get("system", _UCUM) == _UCUM)


def _age_1(node: Node, scope: Scope) -> bool:
    return _ucum_quantity(node, scope) and bool(node.get("value", 1) > 0)


def _cnt_3(node: Node, scope: Scope) -> bool:
    value = node.get("value", 0)
    whole = not isinstance(value, Decimal) or "." not in str(value)
    return _ucum_quantity(node, scope) and node.get("code", "1") == "1" and whole


def _drt_1(node: Node, _scope: Scope) -> bool:
    return not _has(node, "code") or (node.get("system") == _UCUM and _has(node, "value"))


def _at_least_zero(name: str) -> Holds:
    def holds(node: Node, _scope: Scope) -> bool:
        return bool(node.get(name, 0) >= 0)

    return holds


def _tim_9(node: Node, _scope: Scope) -> bool:
    if not _has(node, "offset"):
        return True
    when = node.get("when", [])
    return bool(when) and not any(code in ("C", "CM", "CD", "CV") for code in when)


def _con_3(node: Node, _scope: Scope) -> bool:
    # Differs from the expression, which compares a CodeableConcept with a text and so never fails: the wording is meant.
    if _has(node, "clinicalStatus"):
        return True
    if _coded(node.get("verificationStatus"), _V3 + "condition-ver-status", "entered-in-error"):
        return True
    category = _V3 + "condition-category"
    return not any(_coded(concept, category, "problem-list-item") for concept in node.get("category", ()))


def _con_4(node: Node, _scope: Scope) -> bool:
    system = _V3 + "condition-clinical"
    return not _chosen(node, "abatement") or _coded(
        node.get("clinicalStatus"), system, "resolved", "remission", "inactive"
    )


def _con_5(node: Node, _scope: Scope) -> bool:
    wrong = _coded(node.get("verificationStatus"), _V3 + "condition-ver-status", "entered-in-error")
    return not (wrong and _has(node, "clinicalStatus"))


def _ait_1(node: Node, _scope: Scope) -> bool:
    system = _V3 + "allergyintolerance-verification"
    return _has(node, "clinicalStatus") or _coded(node.get("verificationStatus"), system, "entered-in-error")


def _ait_2(node: Node, _scope: Scope) -> bool:
    system = _V3 + "allergyintolerance-verification"
    return not (_has(node, "clinicalStatus") and _coded(node.get("verificationStatus"), system, "entered-in-error"))


def _no_home(node: Node, _scope: Scope) -> bool:
    return node.get("use") != "home"


def _gol_1(node: Node, _scope: Scope) -> bool:
    return not _chosen(node, "detail") or _has(node, "measure")


def _ctm_1(node: Node, _scope: Scope) -> bool:
    member = node.get("member", {})
    target = member.get("type") or member.get("reference", "")
    return not _has(node, "onBehalfOf") or not target or "/" not in target or "Practitioner/" in target + "/"


def _dosed(node: Node, _scope: Scope) -> bool:
    return _has(node, "dose") or _chosen(node, "rate")


def _qrs_1(node: Node, _scope: Scope) -> bool:
    return not ("answer" in node and "item" in node)


def _que_7(node: Node, _scope: Scope) -> bool:
    # Differs from the expression, which asks for FHIRPath's own Boolean: the type of the element is meant.
    return node.get("operator") != "exists" or _has(node, "answerBoolean")


def _named(node: Node, _scope: Scope) -> bool:
    # FHIRPath's matches() is content with a part of the text; the wording of these rules means all of it.
    return "name" not in node or _NAME.fullmatch(node["name"]) is not None


def _path_like(pattern: str) -> Holds:
    match = re.compile(pattern).fullmatch

    def holds(node: Node, _scope: Scope) -> bool:
        return "path" not in node or match(node["path"]) is not None

    return holds


def _sdf_8(node: Node, scope: Scope) -> bool:
    first, *rest = (element["path"] for element in node["element"])
    right = scope.resource.get("kind") == "logical" or first == scope.resource.get("type")
    return right and all(path.startswith(first + ".") for path in rest)


def _sdf_8a(node: Node, scope: Scope) -> bool:
    first, *rest = (element["path"] for element in node["element"])
    right = scope.resource.get("kind") == "logical" or first.startswith(scope.resource.get("type", ""))
    return right and all(path.startswith(first.partition(".")[0] + ".") for path in rest)


NATIVE: Final[dict[str, Holds]] = {
    "age-1": _age_1,
    "ait-1": _ait_1,
    "ait-2": _ait_2,
    "att-1": _needs("data", "contentType"),
    "cnt-3": _cnt_3,
    "con-1": _some_of("summary", "assessment"),
    "con-2": _some_of("code", "detail"),
    "con-3": _con_3,
    "con-4": _con_4,
    "con-5": _con_5,
    "cpl-3": _not_both("detail", "reference"),
    "cpt-2": _needs("value", "system"),
    "ctm-1": _ctm_1,
    "dis-1": _ucum_quantity,
    "dom-6": _dom_6,
    "drt-1": _drt_1,
    "eld-19": _path_like(rf"{_STEP}(?:\.{_STEP}(?:\[x\])?(?::[^\s.]+)?)*"),
    "eld-20": _path_like(r"[A-Za-z][A-Za-z0-9]*(?:\.[a-z][A-Za-z0-9]*(?:\[x])?)*"),
    "exp-1": _some_of("expression", "reference"),
    "ext-1": _ext_1,
    "gol-1": _gol_1,
    "imm-1": _some_of("documentType", "reference"),
    "mad-1": _dosed,
    "obs-3": _some_of("low", "high", "text"),
    "obs-6": _obs_6,
    "obs-7": _obs_7,
    "org-1": _some_of("identifier", "name"),
    "org-2": _no_home,
    "org-3": _no_home,
    "pat-1": _some_of("name", "telecom", "address", "organization"),
    "per-1": _per_1,
    "prr-1": _needs("orderDetail", "code"),
    "qrs-1": _qrs_1,
    "qty-3": _needs("code", "system"),
    "que-7": _que_7,
    "rat-1": _rat_1,
    "rng-2": _rng_2,
    "sdf-8": _sdf_8,
    "sdf-8a": _sdf_8a,
    "sqty-1": lambda node, _scope: not _has(node, "comparator"),
    "tim-1": _needs("duration", "durationUnit"),
    "tim-2": _needs("period", "periodUnit"),
    "tim-4": _at_least_zero("duration"),
    "tim-5": _at_least_zero("period"),
    "tim-6": _needs("periodMax", "period"),
    "tim-7": _needs("durationMax", "duration"),
    "tim-8": _needs("countMax", "count"),
    "tim-9": _tim_9,
    "tim-10": _not_both("timeOfDay", "when"),
}


def of_type(definition: TypeDefinition) -> tuple[tuple[Invariant, Holds], ...]:
    """What is left to judge on a node of this type once its structure has been walked."""
    left = (i for i in definition.invariants if i.key not in ELSEWHERE)
    return tuple((i, _rule(i, definition.name)) for i in left)


def as_check(invariant: Invariant, type_name: str) -> Check:
    """A rule that one element adds to those of its type."""
    holds = _rule(invariant, type_name)

    def check(value: Any, scope: Scope) -> Problems | None:
        if holds(value, scope):
            return None
        return [Problem("", "invariant", f"{invariant.human} ({invariant.key})", invariant.severity)]

    return check


def _rule(invariant: Invariant, type_name: str) -> Holds:
    if invariant.expression == _NAMED:
        return _named
    return NATIVE.get(invariant.key) or _by_expression(invariant, type_name)


def _by_expression(invariant: Invariant, type_name: str) -> Holds:
    compiled: fhirpath.Expression | None = None  # at first use: most types are never met

    def holds(node: Node, scope: Scope) -> bool:
        nonlocal compiled
        try:
            if compiled is None:
                compiled = fhirpath.compile(invariant.expression, type_name)
            # Neither an empty result nor data the expression did not foresee accuse anybody.
            return compiled.holds(node, resource=scope.resource, rootResource=scope.root) is not False
        except fhirpath.FhirPathError:
            return True

    return holds

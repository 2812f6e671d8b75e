"""Required bindings: the codes R4 lists for an element. https://hl7.org/fhir/R4/terminologies.html#required

Value sets that cannot be listed (MIME types, UCUM) are checked by form, or left to the terminology layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fhir_server.model.definitions import codes, codings
from fhir_server.validation.primitives import CURRENCY, LANGUAGE, Accepts
from fhir_server.validation.problems import Check, Problem, Problems, Scope, quote

SHOWN = 12  # codes listed in a message

_BY_FORM: dict[str, tuple[Accepts, str]] = {
    "http://hl7.org/fhir/ValueSet/all-languages": (LANGUAGE, "a BCP 47 language tag, like en or zh-CN"),
    "http://hl7.org/fhir/ValueSet/currencies": (CURRENCY, "an ISO 4217 currency, like CNY"),
}


def accepts(value_set: str, otherwise: Accepts) -> Accepts:
    """For elements of type `code` (or `uri`, `string`): membership, the form, or the type's own rule."""
    listed = codes(value_set)
    if listed is None:
        return _BY_FORM[value_set][0] if value_set in _BY_FORM else otherwise
    members = listed

    def accept(value: Any) -> bool:
        return type(value) is str and value in members

    return accept


def explain(value_set: str, value: Any) -> Problem | None:
    listed = codes(value_set)
    if listed is None:
        form = _BY_FORM.get(value_set)
        return Problem("", "code-invalid", f"{quote(value)} must be {form[1]}") if form else None
    return Problem("", "code-invalid", f"{quote(value)} is not in {value_set} ({_some(sorted(listed))})")


def bound(value_set: str, type_name: str) -> Check | None:
    """For CodeableConcept and Coding; None where nothing can be checked."""
    listed = codings(value_set)
    if listed is None or type_name not in _CODINGS:
        return None
    found_in, members = _CODINGS[type_name], listed

    def check(value: Any, _scope: Scope) -> Problems | None:
        coded = found_in(value)
        if any((c.get("system"), c.get("code")) in members for c in coded):
            return None
        if not coded and "extension" in value and "text" not in value:
            return None  # an extension says why there is no code (data-absent-reason)
        shown = ", ".join(f"{c.get('system', '')}|{c.get('code', '')}" for c in coded) or "no coding"
        known = _some(sorted(f"{system}|{code}" for system, code in members))
        text = f"Needs a coding from {value_set} ({known}); has {quote(shown)}"
        return [Problem("", "code-invalid", text)]

    return check


def _concept(value: dict[str, Any]) -> list[dict[str, Any]]:
    codings: list[dict[str, Any]] = value.get("coding", [])
    return codings


def _coding(value: dict[str, Any]) -> list[dict[str, Any]]:
    return [value] if "code" in value or "system" in value else []


_CODINGS: dict[str, Callable[[dict[str, Any]], list[dict[str, Any]]]] = {"CodeableConcept": _concept, "Coding": _coding}


def _some(listed: list[str]) -> str:
    return ", ".join(listed[:SHOWN]) + (", …" if len(listed) > SHOWN else "")

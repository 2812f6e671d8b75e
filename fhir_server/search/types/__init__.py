"""How each search type is indexed, parsed, asked and matched: one module each. https://hl7.org/fhir/R4/search.html#ptypes"""

from __future__ import annotations

from fhir_server.search.types import date, number, quantity, reference, special, string, token, uri

_FHIR_TYPES: dict[str, frozenset[str]] = {
    "number": frozenset(number.ENTRIES),
    "date": frozenset(date.ENTRIES),
    "string": frozenset(string.ENTRIES),
    "token": frozenset(token.ENTRIES) | {"code"},
    "reference": frozenset({"Reference", "canonical", "uri"}),
    "quantity": frozenset(quantity.ENTRIES),
    "uri": frozenset(uri.ENTRIES),
    "special": frozenset({"Location.position"}),
    "composite": frozenset(),
}
_MODIFIERS: dict[str, frozenset[str]] = {
    "number": number.MODIFIERS,
    "date": date.MODIFIERS,
    "string": string.MODIFIERS,
    "token": token.MODIFIERS,
    "reference": reference.MODIFIERS,
    "quantity": quantity.MODIFIERS,
    "uri": uri.MODIFIERS,
    "special": special.MODIFIERS,
    "composite": frozenset({"missing"}),
}
_TEXTUAL = frozenset({"Coding", "CodeableConcept", "Identifier"})  # token types that carry text


def is_type(search_type: str) -> bool:
    return search_type in _FHIR_TYPES


def fhir_types(search_type: str) -> frozenset[str]:
    """The data types a parameter of this type can look at."""
    return _FHIR_TYPES[search_type]


def modifiers(search_type: str, fhir_types: frozenset[str]) -> frozenset[str]:
    """What may stand after the colon, given what the parameter looks at."""
    known = _MODIFIERS[search_type]
    if search_type == "token":
        if fhir_types and not fhir_types & _TEXTUAL:
            known -= {"text"}
        if fhir_types and "Identifier" not in fhir_types:
            known -= {"of-type"}
    elif search_type == "reference":
        if fhir_types and "Reference" not in fhir_types:
            known -= {"identifier"}
        if fhir_types & {"canonical", "uri"}:
            known |= {"below"}
    return known

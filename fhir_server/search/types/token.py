"""Tokens: codes, identifiers, booleans. https://hl7.org/fhir/R4/search.html#token

One array of keys per parameter; the first characters of a key say what it is, so that one index answers every form:

    !code          a code, whatever its system            |code           a code without system
    <hash>|code    a code of one system                   @<hash>|T|value an identifier of type T (`:of-type`)
    ~text          folded text or display (`:text`)

`<hash>` is 12 characters for the system: a third of the length of a typical system, in the largest indexes there are.
Codes are compared as they are (R4's code systems are case-sensitive); contact points without regard to case.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from fhir_server.errors import BadRequest
from fhir_server.model.definitions import codings
from fhir_server.search.escape import split_escaped
from fhir_server.search.operands import Keys, Members, Operand, Prefixed
from fhir_server.search.text import fold

MODIFIERS = frozenset({"text", "not", "in", "not-in", "above", "below", "of-type", "missing"})
BOOLEAN = "http://hl7.org/fhir/special-values"
CANONICALS_OF_UNITS = "urn:iso:std:iso:4217"  # Money.currency


@lru_cache(maxsize=65_536)
def system_key(system: str) -> str:
    return urlsafe_b64encode(blake2b(system.encode(), digest_size=9).digest()).decode()


@lru_cache(maxsize=65_536)
def _keys(system: str | None, code: str) -> tuple[str, str]:
    return "!" + code, (f"{system_key(system)}|{code}" if system else "|" + code)


@lru_cache(maxsize=16_384)
def _text_key(text: str) -> str:
    return "~" + fold(text)


def coding(value: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    code = value.get("code")
    system = value.get("system")
    if type(code) is str:
        found.extend(_keys(system if type(system) is str else None, code))
    elif type(system) is str:
        found.append(system_key(system) + "|")
    display = value.get("display")
    if type(display) is str:
        found.append(_text_key(display))
    return found


def codeable_concept(value: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for item in value.get("coding", ()):
        if type(item) is dict:
            found.extend(coding(item))
    text = value.get("text")
    if type(text) is str:
        key = _text_key(text)
        if key not in found:
            found.append(key)
    return found


def identifier(value: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    text = value.get("value")
    system = value.get("system")
    if type(text) is str:
        found.extend(_keys(system if type(system) is str else None, text))
    elif type(system) is str:
        found.append(system_key(system) + "|")
    kind = value.get("type")
    if type(kind) is dict:
        if type(text) is str:
            for item in kind.get("coding", ()):
                if type(item) is dict and type(item.get("code")) is str:
                    found.append(of_type_key(str(item.get("system") or ""), item["code"], text))
        if type(kind.get("text")) is str:
            found.append(_text_key(kind["text"]))
    return found


def of_type_key(system: str, code: str, value: str) -> str:
    return f"@{system_key(system)}|{code}|{value}"


def contact_point(value: Mapping[str, Any]) -> list[str]:
    text = value.get("value")
    return list(_keys(None, text.lower())) if type(text) is str else []


def string(value: Any) -> list[str]:
    return list(_keys(None, value)) if type(value) is str else []


def boolean(value: Any) -> list[str]:
    return list(_keys(BOOLEAN, "true" if value else "false")) if type(value) is bool else []


def money(value: Mapping[str, Any]) -> list[str]:
    code = value.get("currency")
    return list(_keys(CANONICALS_OF_UNITS, code)) if type(code) is str else []


def code_of(value_set: str) -> Callable[[Any], list[str]]:
    """Entries for an element of type `code`: its system is the one its required value set takes the code from."""
    systems: dict[str, str] = {code: system for system, code in (codings(value_set) or ())} if value_set else {}

    def code(value: Any) -> list[str]:
        return list(_keys(systems.get(value), value)) if type(value) is str else []

    return code


ENTRIES: dict[str, Callable[[Any], list[str]]] = {
    "Coding": coding,
    "CodeableConcept": codeable_concept,
    "Identifier": identifier,
    "ContactPoint": contact_point,
    "boolean": boolean,
    "Money": money,
    **dict.fromkeys(("string", "uri", "id", "url", "canonical", "oid", "uuid", "markdown", "instant", "date"), string),
}


def parse(text: str, modifier: str, *, fold_case: bool = False) -> Operand:
    """One value as it stands in the URL (escapes still in it) → what it asks for. Raises BadRequest without a name."""
    if modifier == "text":
        folded = fold(split_escaped(text, "")[0])
        if not folded:
            raise BadRequest("has no letter or digit")
        return Prefixed("~" + folded)
    parts = split_escaped(text, "|")
    if modifier == "of-type":
        if len(parts) != 3 or not all(parts[1:]):
            raise BadRequest("must be system|code|value for :of-type")
        return Keys((of_type_key(*parts),))
    if modifier in ("in", "not-in"):
        return Members("in", "|".join(parts))
    if len(parts) > 2:
        raise BadRequest(r"has more than one '|' (write \| for one that belongs to the value)")
    if fold_case:
        parts = [*parts[:-1], parts[-1].lower()]
    if modifier in ("above", "below"):
        if len(parts) != 2 or not all(parts):
            raise BadRequest(f"must be system|code for :{modifier}")
        return Members("above" if modifier == "above" else "below", "|".join(parts))
    if len(parts) == 1:
        return Keys(("!" + parts[0],))
    system, code = parts
    if not system and not code:
        raise BadRequest("names neither a system nor a code")
    if not code:
        return Prefixed(system_key(system) + "|")
    return Keys((key(system, code),))


def key(system: str, code: str) -> str:
    """The key of a code in a system ("" for a code that has none)."""
    return f"{system_key(system)}|{code}" if system else "|" + code

"""Strings: names, addresses, titles. https://hl7.org/fhir/R4/search.html#string

One array per parameter: folded texts (see search/text.py) and, for `:exact`, the originals behind a character that no folded
text holds. Han text of names and addresses is also there from each of its characters on, so that any part of it is a
prefix; names also in pinyin. Names of people have all their endings, behind another such character: `:contains` then
reads a range of the index, where for other texts it looks at each (measured: MongoDB fetches all documents for that). It
asks for names as they are written; pinyin is found from its beginning only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fhir_server.errors import BadRequest
from fhir_server.search.escape import unescape
from fhir_server.search.operands import Containing, Keys, Operand, Prefixed, Words
from fhir_server.search.text import endings, fold, has_han, pinyin, soundex

MODIFIERS = frozenset({"exact", "contains", "missing"})
ENDING = "\U0010fffe"
EXACT = "\U0010ffff"  # sorts after every folded text

_NAME_PARTS = ("family", "text")
_NAME_LISTS = ("given", "prefix", "suffix")
_ADDRESS_PARTS = ("city", "district", "state", "postalCode", "country", "text")


def string(value: Any) -> list[str]:
    if type(value) is not str or not value:
        return []
    folded = fold(value)
    return [folded, EXACT + value] if folded else [EXACT + value]


def name_part(value: Any) -> list[str]:
    """`family` or `given` on its own."""
    found = string(value)
    if found:
        text = found[0]
        if has_han(value):
            found.extend(endings(text))
            found.extend(pinyin(value))
        found.extend(_all_endings(text))
    return found


def _all_endings(folded: str) -> list[str]:
    return [ENDING + folded[at:] for at in range(min(len(folded), 64)) if folded[at] != " "]


def place(value: Any) -> list[str]:
    found = string(value)
    if found and has_han(value):
        found.extend(endings(found[0]))
    return found


def human_name(value: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    family = value.get("family")
    given = [g for g in value.get("given", ()) if type(g) is str]
    for key in _NAME_PARTS:
        found.extend(name_part(value.get(key)))
    for key in _NAME_LISTS:
        for item in value.get(key, ()):
            found.extend(name_part(item))
    if type(family) is str and given:
        if has_han(family) or any(has_han(g) for g in given):
            # Written in one piece, family first, in Chinese, Japanese and Korean.
            whole = family + "".join(given)
            found.append(fold(whole))
            found.extend(pinyin(whole))
            found.extend(_all_endings(fold(whole)))
        together = fold(" ".join((*given, family)))
        found.append(together)
        found.extend(_all_endings(together))
    return list(dict.fromkeys(found))


def address(value: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for line in value.get("line", ()):
        found.extend(place(line))
    for key in _ADDRESS_PARTS:
        found.extend(place(value.get(key)))
    return list(dict.fromkeys(found))


def codeable_concept(value: Mapping[str, Any]) -> list[str]:
    found = string(value.get("text"))
    for coding in value.get("coding", ()):
        if type(coding) is dict:
            found.extend(string(coding.get("display")))
    return found


ENTRIES: dict[str, Callable[[Any], list[str]]] = {
    "HumanName": human_name,
    "Address": address,
    "CodeableConcept": codeable_concept,
    "ContactPoint": lambda value: string(value.get("value")),
    "Annotation": lambda value: string(value.get("text")),
    "Identifier": lambda value: string(value.get("value")),
    **dict.fromkeys(("string", "markdown", "code", "id", "uri", "url", "canonical"), string),
}


def parse(text: str, modifier: str) -> Operand:
    plain = unescape(text)
    if modifier == "exact":
        return Keys((EXACT + plain,))
    folded = fold(plain)
    if not folded:
        raise BadRequest("has no letter or digit (write it with :exact to search for punctuation)")
    return Containing(folded) if modifier == "contains" else Prefixed(folded)


def sounds(value: Mapping[str, Any]) -> list[str]:
    """`phonetic`: how the words of a HumanName sound. The algorithm is the server's choice; this is Soundex."""
    found: list[str] = []
    for text in (value.get("family"), value.get("text"), *value.get("given", ())):
        if type(text) is str:
            found.extend(soundex(word) for word in fold(text).split())
    return list(dict.fromkeys(found))


def phonetic(text: str) -> Operand:
    words = fold(unescape(text)).split()
    if not words:
        raise BadRequest("has no letter or digit")
    return Words(tuple(soundex(word) for word in words))

"""`_text` and `_content`: whole words of the narrative, or of every text a person would read. https://hl7.org/fhir/R4/search.html#content

All words of a value must occur, in any order; alternatives are separated by commas. Han text is kept in pairs of characters.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from fhir_server.errors import BadRequest
from fhir_server.search.escape import unescape
from fhir_server.search.operands import Words
from fhir_server.search.registry import Parameter
from fhir_server.search.text import MOST_WORDS, fold, has_han, plain, words

TEXT, CONTENT = "_text", "_content"

# Keys whose strings are for machines.
_TECHNICAL = frozenset({
    "resourceType", "id", "reference", "system", "url", "code", "unit", "status", "versionId", "lastUpdated",
    "profile", "contentType", "hash", "data", "language", "use", "fhirVersion", "currency", "comparator", "path",
    "expression", "definition", "version", "intent", "instantiatesCanonical", "source", "valueCode", "valueUri",
    "valueUrl", "valueCanonical", "valueId", "valueOid", "valueUuid", "priority", "gender", "role", "type",
})  # fmt: skip


def parameter(resource_type: str, code: str) -> Parameter:
    return Parameter(resource_type, code, "text", "", "", field=code)


def parse(text: str) -> Words:
    value = unescape(text)
    found: list[str] = []
    for word in fold(value).split():
        if has_han(word) and len(word) > 1:
            found.extend(word[i : i + 2] for i in range(len(word) - 1))
        else:
            found.append(word)
    if not found:
        raise BadRequest("has no letter or digit")
    return Words(tuple(dict.fromkeys(found)))


@lru_cache(maxsize=8_192)
def _words(text: str) -> tuple[str, ...]:
    return tuple(words(text))


def narrative(resource: Mapping[str, Any]) -> list[str]:
    div = (resource.get("text") or {}).get("div") if type(resource.get("text")) is dict else None
    return list(words(plain(div)))[:MOST_WORDS] if type(div) is str else []


def content(resource: Mapping[str, Any]) -> list[str]:
    found: dict[str, None] = dict.fromkeys(narrative(resource))
    _collect(resource, found)
    return list(found)[:MOST_WORDS]


def _is_address(text: str) -> bool:
    return "://" in text or text.startswith("urn:")


def _collect(item: Mapping[str, Any], found: dict[str, None]) -> None:
    for key, value in item.items():
        kind = type(value)
        if kind is str:
            if key not in _TECHNICAL and key != "div" and value[:1].isalpha() and not _is_address(value):
                found.update(dict.fromkeys(_words(value) if len(value) < 200 else words(value)))
        elif kind is dict:
            _collect(value, found)
        elif kind is list:
            for each in value:
                if type(each) is dict:
                    _collect(each, found)
                elif type(each) is str and key not in _TECHNICAL and not _is_address(each):
                    found.update(dict.fromkeys(_words(each) if len(each) < 200 else words(each)))

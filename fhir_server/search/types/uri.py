"""URIs: compared whole and as they are, or by path with `:above` and `:below`. https://hl7.org/fhir/R4/search.html#uri"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fhir_server.errors import BadRequest
from fhir_server.search.escape import unescape
from fhir_server.search.operands import Keys, Operand, Prefixed

MODIFIERS = frozenset({"above", "below", "missing"})
TREE = "\U0010ffff"  # behind this stands the URI with a slash at its end, for :below


def uri(value: Any) -> list[str]:
    if type(value) is not str or not value:
        return []
    return [value, TREE + value.rstrip("/") + "/"] if "://" in value else [value]


ENTRIES: dict[str, Callable[[Any], list[str]]] = dict.fromkeys(
    ("uri", "url", "canonical", "oid", "uuid", "string"), uri
)


def parse(text: str, modifier: str) -> Operand:
    """`:below` finds what stands under a URL, itself included; `:above` what it stands under. A segment is never cut."""
    value = unescape(text)
    if modifier in ("above", "below"):
        if "://" not in value:
            raise BadRequest(f"must be a URL for :{modifier}: urn: and the like have no path")
        if modifier == "below":
            return Prefixed(TREE + value.rstrip("/") + "/")
        return Keys(tuple(TREE + part for part in _ancestors(value)))
    return Keys((value,))


def _ancestors(url: str) -> list[str]:
    scheme, _, rest = url.rstrip("/").partition("://")
    segments = rest.split("/")
    return [f"{scheme}://{'/'.join(segments[: n + 1])}/" for n in range(len(segments))]

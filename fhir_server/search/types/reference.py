"""References: `Type/id` within this server, URLs elsewhere, canonicals, identifiers. https://hl7.org/fhir/R4/search.html#reference

Entries are the reference as text: relative for this server, without version; a canonical without and with its
version. Parameters that can hold one reference at most keep it as a plain value, so that compound indexes may start with it.
A version that a reference pins stands beside it (`<code>:version`), as do its identifiers (`<code>:identifier`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fhir_server.errors import BadRequest
from fhir_server.model.definitions import RESOURCE_TYPES
from fhir_server.search.escape import unescape
from fhir_server.search.operands import Keys, Operand

MODIFIERS = frozenset({"identifier", "missing"})  # and the name of any type it may refer to; of canonicals: below
TREE = "\U0010ffff"

_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}", re.ASCII)


def local(reference: str, base: str) -> tuple[str, str]:
    """A literal reference → (`Type/id` or the URL, both without version; version or "")."""
    if base and reference.startswith(base) and reference[len(base) : len(base) + 1] == "/":
        reference = reference[len(base) + 1 :]
    if "/_history/" in reference:
        reference, _, version = reference.partition("/_history/")
        return reference, version
    return reference, ""


def type_of(reference: str) -> str:
    """The resource type a literal reference names by its own text, "" if it names none (`urn:`, `#`, other URLs)."""
    parts = reference.partition("/_history/")[0].rsplit("/", 2)
    if len(parts) >= 2 and parts[-2] in RESOURCE_TYPES and _ID.fullmatch(parts[-1]):
        return parts[-2]
    return ""


def canonical(value: str) -> list[str]:
    """The URL, the URL with its version (nothing after the bar for none), and for :below each beginning of the version."""
    url, _, version = value.partition("|")
    if not version:
        return [url, url + "|"]
    parts = version.split(".")
    return [url, value, *(f"{TREE}{url}|{'.'.join(parts[: n + 1])}" for n in range(len(parts)))]


def parse(text: str, modifier: str, targets: Sequence[str], base: str = "") -> Operand:
    """`modifier`: "" or a resource type. Without a type in the value, every target the parameter allows is meant."""
    value = unescape(text)
    reference, version = local(value, base)
    if modifier in RESOURCE_TYPES:
        if "/" in reference and type_of(reference) != modifier:
            raise BadRequest(f"is not a reference to {modifier}")
        reference = reference if "/" in reference else f"{modifier}/{reference}"
        return Keys((reference + (f"/_history/{version}" if version else ""),))
    if "/" in reference or ":" in reference or "|" in reference or reference.startswith("#"):
        named = type_of(reference)
        if named and "://" not in reference and targets and named not in targets:
            raise BadRequest(f"refers to {named}, but the parameter only to {', '.join(sorted(targets))}")
        return Keys((reference + (f"/_history/{version}" if version else ""),))
    if not _ID.fullmatch(reference):
        raise BadRequest("is no reference: expected Type/id, an id or an absolute URL")
    return Keys(tuple(f"{target}/{reference}" for target in sorted(targets or RESOURCE_TYPES)))


def below(text: str) -> Operand:
    """A canonical's version and those under it: `url|1` finds 1, 1.2 and 1.2.3; without a version, all of them."""
    value = unescape(text)
    return Keys((TREE + value,)) if "|" in value else Keys((value,))

"""A resource is a mapping: exact JSON in, exact JSON out. https://hl7.org/fhir/R4/json.html

Decimals stay `decimal.Decimal` with every digit that was sent (`1.00` is not `1.0`: R4 datatypes, decimal), in the
notation that was sent (`0.0000001` is not made `1E-7`); key order and `_element` siblings are kept. Duplicate keys and
deep nesting are refused, because the first would hide what the second reader sees and the second would exhaust the stack.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from fhir_server.errors import Malformed

Resource = dict[str, Any]

MAX_DEPTH = 100  # no legal R4 resource comes near; recursion in Python stops near 1,000
MAX_INTEGER = 2**63 - 1  # BSON and R4 integers both end before this


class Literal(Decimal):
    """A number that Python would write otherwise than it was sent: `0.0000001`, `1e5`."""

    text: str

    def __new__(cls, text: str | Decimal) -> Literal:
        made = super().__new__(cls, text)
        made.text = str(text)
        return made

    def __str__(self) -> str:
        return self.text


def number(text: str) -> Decimal:
    """A JSON number with a fraction or an exponent. Raises Malformed where the exponent is beyond all measure."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise Malformed(f"The body is not valid JSON: the number {text[:40]} is out of range") from None
    return value if str(value) == text else Literal(text)


def _literal(value: Any) -> msgspec.Raw:
    if isinstance(value, Literal):
        return msgspec.Raw(value.text.encode())
    raise TypeError(f"{type(value).__name__} has no form in JSON")


_decoder = msgspec.json.Decoder(float_hook=number)
_encoder = msgspec.json.Encoder(decimal_format="number", enc_hook=_literal)
_KEY = re.compile(rb'"\s*:')


def load(body: bytes) -> Resource:
    """Bytes of one JSON object → mapping. Raises Malformed (400) naming what is wrong and where."""
    try:
        value = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"The body is not valid JSON: {error}") from None
    except RecursionError:
        raise Malformed(f"The body is nested deeper than {MAX_DEPTH} levels") from None
    if not isinstance(value, dict):
        raise Malformed("The body must be one JSON object")
    # Each key ends in `"` and a colon; a text may hold the same bytes, which only sends us the slow way.
    if len(_KEY.findall(body)) != _count_keys(value, MAX_DEPTH):
        _refuse_duplicates(body)
    return value


def load_any(body: bytes) -> Any:
    """Bytes of any JSON (a JSON Patch is an array), with the same exactness and the same refusals."""
    if body.lstrip()[:1] == b"{":
        return load(body)
    return load(b'{"":' + body + b"}")[""]


def load_stored(raw: bytes) -> Resource:
    """What `dump` made, without looking for what only a client could have put there."""
    resource: Resource = _decoder.decode(raw)
    return resource


def dump(resource: Any) -> bytes:
    """Mapping → compact UTF-8 JSON bytes, digits and key order as they are."""
    return _encoder.encode(resource)


def pretty(raw: bytes) -> bytes:
    """The same JSON, indented (`_pretty=true`)."""
    return msgspec.json.format(raw, indent=2)


def _count_keys(value: dict[str, Any], depth: int) -> int:
    if depth == 0:
        raise Malformed(f"The body is nested deeper than {MAX_DEPTH} levels")
    count = len(value)
    for item in value.values():
        if type(item) is dict:
            count += _count_keys(item, depth - 1)
        elif type(item) is list:
            count += _count_list(item, depth - 1)
    return count


def _count_list(value: list[Any], depth: int) -> int:
    if depth == 0:
        raise Malformed(f"The body is nested deeper than {MAX_DEPTH} levels")
    count = 0
    for item in value:
        if type(item) is dict:
            count += _count_keys(item, depth - 1)
        elif type(item) is list:
            count += _count_list(item, depth - 1)
    return count


def _refuse_duplicates(body: bytes) -> None:
    def unique(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise Malformed(f"The key {key!r} occurs twice in one JSON object")
            seen.add(key)

    json.loads(body, object_pairs_hook=unique, parse_float=str, parse_int=str)

"""Text. https://hl7.org/fhirpath/N1/#string-manipulation; `encode` to `join` are of FHIRPath 2.1"""

from __future__ import annotations

import base64
import binascii
import html
import json
from collections.abc import Callable

from fhir_server.model.fhirpath.failure import FhirPathError
from fhir_server.model.fhirpath.functions.table import Table
from fhir_server.model.fhirpath.patterns import pattern, replacement
from fhir_server.model.fhirpath.values import INTEGER, NOTHING, STRING, Items, Run, integer, text

STRINGS = Table()
_STRING = frozenset({STRING})
_INTEGER = frozenset({INTEGER})


def _made(value: str) -> Items:
    return [(value, STRING, None)]


def _input(found: Items, name: str) -> str | None:
    return text(found, f"The input of {name}()")


def _argument(found: Items, name: str) -> str | None:
    return text(found, f"The argument of {name}()")


def _mapping(name: str, change: Callable[[str], str]) -> None:
    @STRINGS.eager(name, _STRING)
    def mapped(found: Items, run: Run) -> Items:
        value = _input(found, name)
        return NOTHING if value is None else _made(change(value))


_mapping("upper", str.upper)
_mapping("lower", str.lower)
_mapping("trim", str.strip)


def _testing(name: str, test: Callable[[str, str], bool]) -> None:
    @STRINGS.decision(name)
    def tested(found: Items, run: Run, other: Items) -> bool | None:
        value, argument = _input(found, name), _argument(other, name)
        return None if value is None or argument is None else test(value, argument)


_testing("startsWith", str.startswith)
_testing("endsWith", str.endswith)
_testing("contains", str.__contains__)
_testing("matches", lambda value, regex: pattern(regex, value).search(value) is not None)
_testing("matchesFull", lambda value, regex: pattern(regex, value).fullmatch(value) is not None)


@STRINGS.eager("length", _INTEGER)
def length(found: Items, run: Run) -> Items:
    value = _input(found, "length")
    return NOTHING if value is None else [(len(value), INTEGER, None)]


@STRINGS.eager("indexOf", _INTEGER)
def index_of(found: Items, run: Run, part: Items) -> Items:
    value, wanted = _input(found, "indexOf"), _argument(part, "indexOf")
    return NOTHING if value is None or wanted is None else [(value.find(wanted), INTEGER, None)]


@STRINGS.eager("lastIndexOf", _INTEGER)
def last_index_of(found: Items, run: Run, part: Items) -> Items:
    value, wanted = _input(found, "lastIndexOf"), _argument(part, "lastIndexOf")
    return NOTHING if value is None or wanted is None else [(value.rfind(wanted), INTEGER, None)]


@STRINGS.eager("substring", _STRING)
def substring(found: Items, run: Run, start: Items, count: Items | None = None) -> Items:
    value, first = _input(found, "substring"), integer(start, "The start of substring()")
    if value is None or first is None or not 0 <= first < len(value):
        return NOTHING
    size = None if not count else integer(count, "The length of substring()")
    return _made(value[first:] if size is None else value[first : first + max(size, 0)])


@STRINGS.eager("toChars", _STRING)
def to_chars(found: Items, run: Run) -> Items:
    return [(character, STRING, None) for character in _input(found, "toChars") or ""]


@STRINGS.eager("replace", _STRING)
def replace(found: Items, run: Run, old: Items, new: Items) -> Items:
    value, before, after = _input(found, "replace"), _argument(old, "replace"), _argument(new, "replace")
    return NOTHING if value is None or before is None or after is None else _made(value.replace(before, after))


@STRINGS.eager("replaceMatches", _STRING)
def replace_matches(found: Items, run: Run, old: Items, new: Items) -> Items:
    value, regex, after = _input(found, "replaceMatches"), *(_argument(x, "replaceMatches") for x in (old, new))
    if value is None or regex is None or after is None:
        return NOTHING
    return _made(value if not regex else pattern(regex, value).sub(replacement(after), value))


@STRINGS.eager("split", _STRING)
def split(found: Items, run: Run, separator: Items) -> Items:
    value, between = _input(found, "split"), _argument(separator, "split")
    if value is None or between is None:
        return NOTHING
    return [(part, STRING, None) for part in (value.split(between) if between else value)]


@STRINGS.eager("join", _STRING)
def join(found: Items, run: Run, separator: Items | None = None) -> Items:
    between = "" if separator is None else _argument(separator, "join")
    if not found or between is None:
        return NOTHING
    return _made(between.join(_input([entry], "join") or "" for entry in found))


@STRINGS.eager("encode", _STRING)
def encode(found: Items, run: Run, form: Items) -> Items:
    value, name = _input(found, "encode"), _argument(form, "encode")
    if value is None or name is None:
        return NOTHING
    raw = value.encode()
    match name:
        case "base64":
            return _made(base64.b64encode(raw).decode())
        case "urlbase64":
            return _made(base64.urlsafe_b64encode(raw).decode())
        case "hex":
            return _made(raw.hex())
    raise FhirPathError(f"encode() knows base64, urlbase64 and hex, not {name!r}")


@STRINGS.eager("decode", _STRING)
def decode(found: Items, run: Run, form: Items) -> Items:
    value, name = _input(found, "decode"), _argument(form, "decode")
    if value is None or name is None:
        return NOTHING
    decoders: dict[str, Callable[[str], bytes]] = {
        "base64": lambda coded: base64.b64decode(coded, validate=True),
        "urlbase64": base64.urlsafe_b64decode,
        "hex": bytes.fromhex,
    }
    if name not in decoders:
        raise FhirPathError(f"decode() knows base64, urlbase64 and hex, not {name!r}")
    try:
        return _made(decoders[name](value).decode())
    except (binascii.Error, ValueError):
        raise FhirPathError(f"decode() found no text in {name}") from None


@STRINGS.eager("escape", _STRING)
def escape(found: Items, run: Run, form: Items) -> Items:
    value, name = _input(found, "escape"), _argument(form, "escape")
    if value is None or name is None:
        return NOTHING
    match name:
        case "html":
            return _made(html.escape(value))
        case "json":
            return _made(json.dumps(value, ensure_ascii=False)[1:-1])
    raise FhirPathError(f"escape() knows html and json, not {name!r}")


@STRINGS.eager("unescape", _STRING)
def unescape(found: Items, run: Run, form: Items) -> Items:
    value, name = _input(found, "unescape"), _argument(form, "unescape")
    if value is None or name is None:
        return NOTHING
    match name:
        case "html":
            return _made(html.unescape(value))
        case "json":
            try:
                return _made(json.loads(f'"{value}"'))
            except ValueError:
                return _made(value)
    raise FhirPathError(f"unescape() knows html and json, not {name!r}")

"""Primitive values: JSON kind, form, range, and whether a date exists. https://hl7.org/fhir/R4/datatypes.html#primitive

Each primitive type has one `accepts` (fast, true or false) and one sentence for whoever sent something else.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from fhir_server.validation.problems import Problem, kind, quote

LONGEST_STRING = 1024 * 1024  # characters; R4 datatypes, string
LARGEST_INTEGER = 2**31 - 1
LARGEST_EXPONENT = 300  # of a decimal; beyond it no quantity can be compared or stored

# What XML 1.0 cannot carry, no FHIR text may hold: every resource has both forms.
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_UNSPACED = "[^\x00-\x20\ufffe\uffff]"

_YEAR = r"(?:[1-9]\d{3}|0[1-9]\d\d|00[1-9]\d|000[1-9])"
_DAY = r"(?:0[1-9]|1\d|2[0-8])"  # exists in every month
_LATE_DAY = r"(29|3[01])"  # may not exist: captured, so that only these are looked at again
_MONTH = r"(?:0[1-9]|1[0-2])"
_ZONE = r"(?:Z|[+-](?:(?:0\d|1[0-3]):[0-5]\d|14:00))"
_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d+)?"
_DATE = re.compile(rf"{_YEAR}(?:-{_MONTH}(?:-(?:{_DAY}|{_LATE_DAY}))?)?", re.ASCII)
_DATE_TIME = re.compile(rf"{_YEAR}(?:-{_MONTH}(?:-(?:{_DAY}|{_LATE_DAY})(?:T{_CLOCK}{_ZONE})?)?)?", re.ASCII)
_INSTANT = re.compile(rf"{_YEAR}-{_MONTH}-(?:{_DAY}|{_LATE_DAY})T{_CLOCK}{_ZONE}", re.ASCII)
_TIME = re.compile(_CLOCK, re.ASCII)

Accepts = Callable[[Any], Any]  # truthy: fine


def _string(value: Any) -> bool:
    return (
        type(value) is str
        and 0 < len(value) <= LONGEST_STRING
        and (value.isprintable() or _UNWRITABLE.search(value) is None)
    )


def _boolean(value: Any) -> bool:
    return value is True or value is False


def _integer(lowest: int) -> Accepts:
    def accepts(value: Any) -> bool:
        return type(value) is int and lowest <= value <= LARGEST_INTEGER

    return accepts


def _decimal(value: Any) -> bool:
    if isinstance(value, Decimal):
        return value.is_finite() and -LARGEST_EXPONENT <= value.adjusted() <= LARGEST_EXPONENT
    return type(value) is int


def _pattern(pattern: str | re.Pattern[str]) -> Accepts:
    match = re.compile(pattern, re.ASCII).fullmatch if isinstance(pattern, str) else pattern.fullmatch

    def accepts(value: Any) -> bool:
        return type(value) is str and match(value) is not None

    return accepts


def _existing(pattern: re.Pattern[str]) -> Accepts:
    match = pattern.fullmatch

    def accepts(value: Any) -> bool:
        if type(value) is not str:
            return False
        found = match(value)
        return found is not None and (found[1] is None or _exists(value))

    return accepts


def _exists(value: str) -> bool:
    year, month, day = int(value[:4]), int(value[5:7]), int(value[8:10])
    if month == 2:
        return day == 29 and (year % 4 == 0 and (year % 100 != 0 or year % 400 == 0))
    return day <= 30 or month not in (4, 6, 9, 11)


def _base64(value: Any) -> bool:
    if type(value) is not str or not value:
        return False
    if not value.isascii():
        return False
    try:
        binascii.a2b_base64(value, strict_mode=True)
    except binascii.Error:
        try:
            binascii.a2b_base64("".join(value.split()), strict_mode=True)
        except binascii.Error:
            return False
        return not value.isspace()
    return True


ACCEPTS: dict[str, Accepts] = {
    "boolean": _boolean,
    "integer": _integer(-(2**31)),
    "unsignedInt": _integer(0),
    "positiveInt": _integer(1),
    "decimal": _decimal,
    "string": _string,
    "markdown": _string,
    "xhtml": _string,
    "code": _pattern(f"{_UNSPACED}+(?:[ \t\r\n]{_UNSPACED}+)*"),
    "id": _pattern(r"[A-Za-z0-9\-.]{1,64}"),
    "uri": _pattern(f"{_UNSPACED}+"),
    "url": _pattern(f"{_UNSPACED}+"),
    "canonical": _pattern(f"{_UNSPACED}+"),
    "oid": _pattern(r"urn:oid:[0-2](?:\.(?:0|[1-9]\d*))+"),
    "uuid": _pattern(r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"),
    "date": _existing(_DATE),
    "dateTime": _existing(_DATE_TIME),
    "instant": _existing(_INSTANT),
    "time": _pattern(_TIME),
    "base64Binary": _base64,
}

# Checked by form alone, because their value sets cannot be listed.
LANGUAGE = _pattern(r"[A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*")  # BCP 47
CURRENCY = _pattern(r"[A-Z]{3}")  # ISO 4217

_FORM = {
    "boolean": "true or false, without quotes",
    "integer": "a whole number from -2147483648 to 2147483647, without quotes and fraction",
    "unsignedInt": "a whole number from 0 to 2147483647, without quotes and fraction",
    "positiveInt": "a whole number from 1 to 2147483647, without quotes and fraction",
    "decimal": f"a decimal number without quotes, its exponent within ±{LARGEST_EXPONENT}",
    "string": "a text of 1 to 1048576 characters without control characters",
    "markdown": "a text of 1 to 1048576 characters without control characters",
    "xhtml": "an XHTML text",
    "code": "a text without spaces at its ends and with single spaces inside",
    "id": "1 to 64 letters (A-Z, a-z), digits, '-' and '.'",
    "uri": "a text without spaces",
    "url": "a text without spaces",
    "canonical": "a text without spaces",
    "oid": "'urn:oid:' and an OID, like urn:oid:1.2.3",
    "uuid": "'urn:uuid:' and a UUID in lower case",
    "date": "a date that exists: YYYY, YYYY-MM or YYYY-MM-DD",
    "dateTime": "a date that exists: YYYY, YYYY-MM, YYYY-MM-DD or YYYY-MM-DDThh:mm:ss with a time zone",
    "instant": "a moment that exists: YYYY-MM-DDThh:mm:ss with a time zone (Z or ±hh:mm)",
    "time": "a time hh:mm:ss without a time zone",
    "base64Binary": "base64",
}
_NUMBERS = ("integer", "unsignedInt", "positiveInt", "decimal")


def explain(type_name: str, value: Any) -> Problem:
    """Why `ACCEPTS[type_name]` refused the value."""
    expected = "true or false" if type_name == "boolean" else "a number" if type_name in _NUMBERS else "a text"
    if kind(value) != expected:
        return Problem("", "structure", f"Must be {_FORM[type_name]} ({type_name}), not {kind(value)}")
    if value == "":
        return Problem("", "value", "Must not be empty: leave the element out instead")
    if isinstance(value, str) and len(value) > LONGEST_STRING and type_name in ("string", "markdown"):
        return Problem("", "too-long", f"Must not be longer than {LONGEST_STRING} characters; this has {len(value)}")
    return Problem("", "value", f"{quote(value)} is no {type_name}: must be {_FORM[type_name]}")

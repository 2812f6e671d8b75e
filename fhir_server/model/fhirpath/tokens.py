"""The text of an expression cut into tokens. https://hl7.org/fhirpath/N1/#lexical-elements"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from fhir_server.model.fhirpath.failure import FhirPathError

_TOKEN: Final = re.compile(
    r"""
    (?P<space>\s+|//[^\n]*|/\*.*?\*/)
  | (?P<moment>@(?:T\d\d(?::\d\d(?::\d\d(?:\.\d+)?)?)?
              | \d{4}(?:-\d\d(?:-\d\d)?)?(?:T(?:\d\d(?::\d\d(?::\d\d(?:\.\d+)?)?)?(?:Z|[+-]\d\d:\d\d)?)?)?))
  | (?P<number>\d+(?:\.\d+)?)
  | (?P<string>'(?:[^'\\]|\\.)*')
  | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<quoted>`(?:[^`\\]|\\.)*`)
  | (?P<external>%(?:[A-Za-z_][A-Za-z0-9_-]*|`(?:[^`\\]|\\.)*`|'(?:[^'\\]|\\.)*'))
  | (?P<special>\$[A-Za-z]+)
  | (?P<symbol><=|>=|!=|!~|[.()\[\]{},|&*/+\-=~<>])
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_ESCAPE: Final = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPED: Final = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "'": "'", '"': '"', "`": "`", "\\": "\\", "/": "/"}
_UNFINISHED: Final = {"'": "The string is not closed", "`": "The name is not closed", "/": "The comment is not closed"}


class Token(NamedTuple):
    """`kind` names the group of the grammar above; `text` is unescaped and without quotes; `end` closes the list."""

    kind: str
    text: str
    position: int


def tokens(text: str) -> list[Token]:
    """Every token, then one of kind `end`. Raises FhirPathError."""
    found: list[Token] = []
    position, length = 0, len(text)
    while position < length:
        match = _TOKEN.match(text, position)
        if match is None or (match.group() == "/" and text.startswith("/*", position)):
            reason = _UNFINISHED.get(text[position], f"Unexpected character {text[position]!r}")
            raise FhirPathError(reason, position, text)
        kind = match.lastgroup or ""
        if kind != "space":
            found.append(Token(kind, _content(kind, match.group(), position, text), position))
        position = match.end()
    found.append(Token("end", "", length))
    return found


def _content(kind: str, raw: str, position: int, text: str) -> str:
    if kind in ("moment", "special"):
        return raw[1:]
    if kind == "external":
        return _unescaped(raw[2:-1], position, text) if raw[1] in "`'" else raw[1:]
    return _unescaped(raw[1:-1], position, text) if kind in ("string", "quoted") else raw


def _unescaped(raw: str, position: int, text: str) -> str:
    if "\\" not in raw:
        return raw

    def replace(match: re.Match[str]) -> str:
        code, character = match.groups()
        if code is not None:
            return chr(int(code, 16))
        if character not in _ESCAPED:
            raise FhirPathError(f"Unknown escape '\\{character}'", position, text)
        return _ESCAPED[character]

    return _ESCAPE.sub(replace, raw)

r"""Values of a search: `,` separates alternatives, `$` parts, `|` namespaces; `\` keeps the next of them as it is.

https://hl7.org/fhir/R4/search.html#escaping
"""

from __future__ import annotations

ESCAPABLE = frozenset("\\,$|")


def split(text: str, separator: str) -> list[str]:
    """At each unescaped separator; the escapes stay for the next split."""
    if "\\" not in text:
        return text.split(separator)
    parts: list[str] = []
    start = position = 0
    while position < len(text):
        character = text[position]
        if character == "\\" and position + 1 < len(text) and text[position + 1] in ESCAPABLE:
            position += 2
            continue
        if character == separator:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    parts.append(text[start:])
    return parts


def unescape(text: str) -> str:
    r"""`a\,b` → `a,b`. A backslash before anything else is itself."""
    if "\\" not in text:
        return text
    out: list[str] = []
    position = 0
    while position < len(text):
        if text[position] == "\\" and position + 1 < len(text) and text[position + 1] in ESCAPABLE:
            position += 1
        out.append(text[position])
        position += 1
    return "".join(out)


def escape(text: str) -> str:
    return "".join("\\" + c if c in ESCAPABLE else c for c in text)


def split_escaped(text: str, separator: str) -> list[str]:
    """Split and unescape; an empty separator only unescapes."""
    return [unescape(part) for part in split(text, separator)] if separator else [unescape(text)]

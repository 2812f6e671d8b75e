"""Regular expressions whose cost is bounded before they run, since a pattern may come from a client.

Python's engine backtracks and cannot be interrupted, so a repeat within a repeat is taken only where each round of the
outer one starts or ends with a character the inner ones cannot match, and a pattern with several open-ended wildcards
takes short texts only.
"""

from __future__ import annotations

import re
from functools import lru_cache
from re import _constants as op  # type: ignore[attr-defined]  # the parse tree has no public name
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, Final

from fhir_server.model.fhirpath.failure import FhirPathError

MAX_PATTERN: Final = 2_000
MAX_TEXT: Final = (1_000_000, 1_000_000, 20_000, 1_000, 200)  # by number of open-ended wildcards
MAX_TEXT_OF_MANY: Final = 100

_REPEATS: Final = (op.MAX_REPEAT, op.MIN_REPEAT)
_Characters = frozenset[int] | None  # None: any
_ALPHABET: Final = frozenset(range(0x180))  # enough to tell classes apart; what lies beyond counts as its last one
_OTHERS: Final = 0x17F


def pattern(regex: str, value: str) -> re.Pattern[str]:
    """The compiled pattern, `.` matching line ends. Raises FhirPathError if it is wrong or could take too long."""
    compiled, wildcards = _compiled(regex)
    limit = MAX_TEXT[wildcards] if wildcards < len(MAX_TEXT) else MAX_TEXT_OF_MANY
    if len(value) > limit:
        raise FhirPathError(f"The pattern {regex!r} could take too long on a text of {len(value)} characters")
    return compiled


def replacement(text: str) -> str:
    """FHIRPath's `$1` and `${name}` as Python writes them; a dollar sign may be escaped."""
    out = re.sub(r"\\(?!\$)", r"\\\\", text)
    return re.sub(r"(?<!\\)\$(?:(\d)|\{(\w+)\})", lambda m: f"\\g<{m[1] or m[2]}>", out).replace("\\$", "$")


@lru_cache(maxsize=512)
def _compiled(regex: str) -> tuple[re.Pattern[str], int]:
    if len(regex) > MAX_PATTERN:
        raise FhirPathError(f"The pattern is longer than {MAX_PATTERN} characters")
    try:
        tree = parser.parse(regex, re.DOTALL)
        compiled = re.compile(regex, re.DOTALL)
    except (re.error, OverflowError, RecursionError) as error:
        raise FhirPathError(f"The pattern {regex!r} is wrong: {error}") from None
    _refuse_ambiguous(tree, regex)
    return compiled, _wildcards(tree)


def _refuse_ambiguous(tree: Any, regex: str) -> None:
    for code, argument in tree:
        for inner in _parts(code, argument):
            _refuse_ambiguous(inner, regex)
        if code in _REPEATS and argument[1] > 1 and not _unambiguous(list(argument[2])):
            raise FhirPathError(f"The pattern {regex!r} repeats a repeat and could take too long")


def _unambiguous(body: list[Any]) -> bool:
    """Whether a text can be cut into rounds of `body` in one way only, as far as this can be told."""
    if len(body) == 1 and body[0][0] is op.SUBPATTERN:
        return _unambiguous(list(body[0][1][3]))
    if len(body) == 1 and body[0][0] is op.BRANCH:
        branches = [list(branch) for branch in body[0][1][1]]
        firsts = [_characters(branch[:1]) if branch else frozenset[int]() for branch in branches]
        apart = all(
            one is not None and other is not None and not one & other
            for index, one in enumerate(firsts)
            for other in firsts[index + 1 :]
        )
        return apart and all(_unambiguous(branch) for branch in branches)
    if not any(_variable(code, argument) for code, argument in body):
        return True
    for border, rest in ((body[:1], body[1:]), (body[-1:], body[:-1])):
        if border[0][0] in (op.LITERAL, op.IN, op.NOT_LITERAL):
            fence, inside = _characters(border), _characters(rest)
            if fence is not None and inside is not None and not fence & inside and not _repeats_within(rest):
                return True
    return False


def _repeats_within(body: list[Any]) -> bool:
    """Whether neighbours among the parts could take each other's characters."""
    known = [_characters([part]) for part in body if part[0] is not op.AT]
    return any(
        one is None or other is None or (one & other)
        for index, one in enumerate(known)
        for other in known[index + 1 : index + 2]
        if _variable(*body[index]) and _variable(*body[index + 1])
    )


def _variable(code: Any, argument: Any) -> bool:
    if code in _REPEATS:
        return bool(argument[0] != argument[1]) or any(_variable(*part) for part in argument[2])
    return code is op.BRANCH or any(_variable(*part) for inner in _parts(code, argument) for part in inner)


def _parts(code: Any, argument: Any) -> list[Any]:
    if code in _REPEATS or code is getattr(op, "POSSESSIVE_REPEAT", None):
        return [argument[2]]
    if code is op.SUBPATTERN:
        return [argument[3]]
    if code is op.BRANCH:
        return list(argument[1])
    if code in (op.ASSERT, op.ASSERT_NOT):
        return [argument[1]]
    return []


def _characters(body: list[Any]) -> _Characters:
    """Every character the parts can match; None: any."""
    found: frozenset[int] = frozenset()
    for code, argument in body:
        if code is op.LITERAL:
            found |= {min(argument, _OTHERS)}
        elif code is op.NOT_LITERAL:
            found |= _ALPHABET - {argument}
        elif code is op.IN:
            part = _class(argument)
            found |= part
        elif code is op.ANY or code is op.GROUPREF:
            return None
        else:
            for inner in _parts(code, argument):
                part_or_any = _characters(list(inner))
                if part_or_any is None:
                    return None
                found |= part_or_any
    return found


def _class(members: list[Any]) -> frozenset[int]:
    found: frozenset[int] = frozenset()
    negated = False
    for code, argument in members:
        if code is op.NEGATE:
            negated = True
        elif code is op.LITERAL:
            found |= {min(argument, _OTHERS)}
        elif code is op.RANGE:
            found |= frozenset(range(min(argument[0], _OTHERS), min(argument[1], _OTHERS) + 1))
        elif code is op.CATEGORY:
            name = str(argument).rpartition("_")[2].lower()
            test = {"digit": str.isdecimal, "space": str.isspace}.get(name, lambda c: c.isalnum() or c == "_")
            members_of = frozenset(c for c in _ALPHABET if test(chr(c)))
            found |= _ALPHABET - members_of if "_NOT_" in str(argument) else members_of
    return (_ALPHABET - found) | {_OTHERS} if negated else found


def _wildcards(tree: Any) -> int:
    """Repeats without a bound, over anything wider than one character."""
    count = 0
    for code, argument in tree:
        if code in _REPEATS and argument[1] > 1_000 and next(iter(argument[2]))[0] is not op.LITERAL:
            count += 1
        else:
            count += sum(_wildcards(inner) for inner in _parts(code, argument))
    return count

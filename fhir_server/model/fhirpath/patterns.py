"""Regular expressions whose cost is bounded before they run, since a pattern may come from a client.

Python's engine backtracks and cannot be interrupted, so a repeat within a repeat is taken only where each round of the
outer one starts or ends with a character the inner ones cannot match, and a pattern with several repeats that overlap
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
MAX_TEXT: Final = 1_000_000  # characters, for a pattern without long repeats
# With them, by how many could go on into what follows: each multiplies the work by the length, as does every start.
MAX_TEXT_VAGUE: Final = (5_000, 600, 150, 80, 50, 30, 30)
SHORT_REPEAT: Final = 10  # a repeat of so few rounds counts as none

_REPEATS: Final = (op.MAX_REPEAT, op.MIN_REPEAT)
_Characters = frozenset[int] | None  # None: any
_ALPHABET: Final = frozenset(range(0x180))  # enough to tell classes apart; what lies beyond counts as its last one
_OTHERS: Final = 0x17F


def pattern(regex: str, value: str) -> re.Pattern[str]:
    """The compiled pattern, `.` matching line ends. Raises FhirPathError if it is wrong or could take too long."""
    compiled, limit = _compiled(regex)
    if len(value) > limit:
        raise FhirPathError(f"The pattern {regex!r} could take too long on a text of {len(value)} characters")
    return compiled


def replacement(text: str) -> str:
    """FHIRPath's `$1` and `${name}` as Python writes them; a dollar sign may be escaped."""
    out = re.sub(r"\\(?!\$)", r"\\\\", text)
    return re.sub(r"(?<!\\)\$(?:(\d)|\{(\w+)\})", lambda m: f"\\g<{m[1] or m[2]}>", out).replace("\\$", "$")


@lru_cache(maxsize=512)
def _compiled(regex: str) -> tuple[re.Pattern[str], int]:
    """With the length of the longest text it may see."""
    if len(regex) > MAX_PATTERN:
        raise FhirPathError(f"The pattern is longer than {MAX_PATTERN} characters")
    try:
        tree = parser.parse(regex, re.DOTALL)
        compiled = re.compile(regex, re.DOTALL)
    except (re.error, OverflowError, RecursionError) as error:
        raise FhirPathError(f"The pattern {regex!r} is wrong: {error}") from None
    _refuse_ambiguous(tree, regex)
    vague = _vague(list(tree), frozenset())
    if vague >= len(MAX_TEXT_VAGUE):
        raise FhirPathError(f"The pattern {regex!r} has too many repeats that overlap and could take too long")
    return compiled, MAX_TEXT_VAGUE[vague] if _repeats(list(tree)) else MAX_TEXT


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
        return (
            _apart(branches) and not any(_first(branch)[1] for branch in branches) and all(map(_unambiguous, branches))
        )
    if not any(_variable(code, argument) for code, argument in body):
        return True
    if not _settled(body):
        return False
    for border, rest in ((body[:1], body[1:]), (body[-1:], body[:-1])):
        if border[0][0] in (op.LITERAL, op.IN, op.NOT_LITERAL):
            fence, inside = _characters(border), _characters(rest)
            if fence is not None and inside is not None and not fence & inside:
                return True
    return False


def _settled(body: list[Any]) -> bool:
    """Whether within one round each character can belong to one part only."""
    for index, (code, argument) in enumerate(body):
        if code is op.BRANCH and not _apart([list(branch) for branch in argument[1]]):
            return False
        if not all(_settled(list(inner)) for inner in _parts(code, argument)):
            return False
        if _variable(code, argument):
            own, following = _characters([(code, argument)]), _first(body[index + 1 :])[0]
            if own is None or following is None or own & following:
                return False
    return True


def _apart(branches: list[Any]) -> bool:
    """Whether the next character tells which branch it is."""
    firsts = [_first(branch) for branch in branches]
    if sum(empty for _, empty in firsts) > 1:
        return False
    return all(
        one is not None and other is not None and not one & other
        for index, (one, _) in enumerate(firsts)
        for other, _ in firsts[index + 1 :]
    )


def _first(body: list[Any]) -> tuple[_Characters, bool]:
    """The characters a match can start with, and whether it can be empty."""
    found: frozenset[int] = frozenset()
    for code, argument in body:
        if code is op.AT:
            continue
        if code in _REPEATS:
            first, empty = _first(list(argument[2]))
            empty = empty or argument[0] == 0
        elif code is op.SUBPATTERN:
            first, empty = _first(list(argument[3]))
        elif code is op.BRANCH:
            firsts = [_first(list(branch)) for branch in argument[1]]
            known = [first for first, _ in firsts if first is not None]
            first = frozenset[int]().union(*known) if len(known) == len(firsts) else None
            empty = any(empty for _, empty in firsts)
        else:
            first, empty = _characters([(code, argument)]), code in (op.ASSERT, op.ASSERT_NOT, op.GROUPREF)
        if first is None:
            return None, empty
        found |= first
        if not empty:
            return found, False
    return found, True


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


def _vague(body: list[Any], after: _Characters) -> int:
    """Long repeats that could go on into what follows them; `after` is what may follow the body."""
    count = 0
    for index, (code, argument) in enumerate(body):
        following, empty = _first(body[index + 1 :])
        if empty:
            following = None if following is None or after is None else following | after
        if code in _REPEATS:
            inner = list(argument[2])
            own, first = _characters(inner), _first(inner)[0]
            if argument[1] - argument[0] > SHORT_REPEAT:
                count += bool(following) if own is None else following is None or bool(own & following)
            count += _vague(inner, None if following is None or first is None else following | first)
        else:
            count += sum(_vague(list(inner), following) for inner in _parts(code, argument))
    return count


def _repeats(body: list[Any]) -> bool:
    """Whether there is a long repeat at all."""
    return any(
        (code in _REPEATS and argument[1] - argument[0] > SHORT_REPEAT) or any(map(_repeats, _parts(code, argument)))
        for code, argument in body
    )

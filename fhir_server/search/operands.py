"""What a value in a search means once it is parsed: one frozen class per search type, the same for all databases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Prefix = Literal["eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap"]
PREFIXES: tuple[Prefix, ...] = ("eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap")


@dataclass(frozen=True, slots=True)
class Interval:
    """Dates: the half-open interval `[lo, hi)` in ms that the search text covers (for `ap`, already widened)."""

    prefix: Prefix
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class Span:
    """Numbers: `value` exactly and `[lo, hi)`, what the digits that were given leave open (for `ap`, ± 10 %)."""

    prefix: Prefix
    value: float
    lo: float
    hi: float


@dataclass(frozen=True, slots=True)
class Amount:
    """A quantity: the span in the unit that `key` names (see types/quantity.py)."""

    key: str
    span: Span


@dataclass(frozen=True, slots=True)
class Keys:
    """Tokens, references, URIs: any one of these keys is among the entries."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prefixed:
    """Some entry starts with this."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Containing:
    """Some folded entry has this anywhere."""

    text: str


@dataclass(frozen=True, slots=True)
class Ending:
    """Some folded entry ends with this."""

    text: str


@dataclass(frozen=True, slots=True)
class Words:
    """All of these words occur; the last may be the beginning of one if `open`."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Near:
    """Within `km` of a place; degrees."""

    latitude: float
    longitude: float
    km: float


@dataclass(frozen=True, slots=True)
class Parts:
    """A composite value: one operand per component."""

    parts: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Members:
    """Tokens that are (not) in a value set, or above or below a code: looked up in the terminology before the find."""

    relation: Literal["in", "above", "below"]
    target: str  # canonical URL of the value set; system|code


Operand = Interval | Span | Amount | Keys | Prefixed | Containing | Ending | Words | Near | Parts | Members

"""The parts of an expression. `str(node)` is FHIRPath again, and reads back as an equal node. https://hl7.org/fhirpath/N1/

`position` is the offset in the text the node came from and takes no part in equality.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

PRECEDENCE: Final = {
    "implies": 1, "or": 2, "xor": 2, "and": 3, "in": 4, "contains": 4,
    "=": 5, "~": 5, "!=": 5, "!~": 5, "<": 6, "<=": 6, ">": 6, ">=": 6,
    "|": 7, "is": 8, "as": 8, "+": 9, "-": 9, "&": 9, "*": 10, "/": 10, "div": 10, "mod": 10,
}  # fmt: skip
UNARY: Final = 11
POSTFIX: Final = 12

CALENDAR_UNITS: Final = {
    unit + ending: unit
    for unit in ("year", "month", "week", "day", "hour", "minute", "second", "millisecond")
    for ending in ("", "s")
}  # how a text may write a calendar duration → the singular

_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_RESERVED: Final = {"and", "or", "xor", "implies", "div", "mod", "true", "false"}
_ESCAPES: Final = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\f": "\\f"}


@dataclass(frozen=True, slots=True)
class Node:
    """An expression; `level` says how tightly its outermost part binds."""

    position: int = field(default=0, compare=False, kw_only=True, repr=False)

    @property
    def level(self) -> int:
        return POSTFIX


@dataclass(frozen=True, slots=True)
class Empty(Node):
    """`{}`"""

    def __str__(self) -> str:
        return "{}"


@dataclass(frozen=True, slots=True)
class Boolean(Node):
    value: bool

    def __str__(self) -> str:
        return "true" if self.value else "false"


@dataclass(frozen=True, slots=True)
class String(Node):
    value: str

    def __str__(self) -> str:
        return quoted(self.value)


@dataclass(frozen=True, slots=True)
class Number(Node):
    """`value` is an int for an integer, a Decimal for a text with a point; its digits are kept."""

    value: int | Decimal

    def __str__(self) -> str:
        return format(self.value, "f") if isinstance(self.value, Decimal) else str(self.value)


@dataclass(frozen=True, slots=True)
class Moment(Node):
    """A date, dateTime or time literal as written, without its `@`."""

    text: str

    def __str__(self) -> str:
        return f"@{self.text}"


@dataclass(frozen=True, slots=True)
class Quantity(Node):
    """`unit` is a UCUM code, or a calendar duration in the singular if `calendar`."""

    value: int | Decimal
    unit: str
    calendar: bool = False

    def __str__(self) -> str:
        return f"{Number(self.value)} {self.unit if self.calendar else quoted(self.unit)}"


@dataclass(frozen=True, slots=True)
class External(Node):
    """`%name`"""

    name: str

    def __str__(self) -> str:
        return f"%{identifier(self.name)}"


@dataclass(frozen=True, slots=True)
class Special(Node):
    """`$this`, `$index` or `$total`; `name` has no dollar sign."""

    name: str

    def __str__(self) -> str:
        return f"${self.name}"


@dataclass(frozen=True, slots=True)
class Name(Node):
    """An element, or at the start of a path a type."""

    name: str

    def __str__(self) -> str:
        return identifier(self.name)


@dataclass(frozen=True, slots=True)
class Call(Node):
    """A function with its arguments."""

    name: str
    arguments: tuple[Node, ...] = ()

    def __str__(self) -> str:
        return f"{identifier(self.name)}({', '.join(map(str, self.arguments))})"


@dataclass(frozen=True, slots=True)
class Member(Node):
    """`target.step`"""

    target: Node
    step: Name | Call | Special

    def __str__(self) -> str:
        return f"{bracketed(self.target, POSTFIX)}.{self.step}"


@dataclass(frozen=True, slots=True)
class Indexed(Node):
    """`target[index]`"""

    target: Node
    index: Node

    def __str__(self) -> str:
        return f"{bracketed(self.target, POSTFIX)}[{self.index}]"


@dataclass(frozen=True, slots=True)
class Unary(Node):
    """`+operand` or `-operand`"""

    operator: str
    operand: Node

    @property
    def level(self) -> int:
        return UNARY

    def __str__(self) -> str:
        return f"{self.operator}{bracketed(self.operand, UNARY)}"


@dataclass(frozen=True, slots=True)
class Binary(Node):
    operator: str
    left: Node
    right: Node

    @property
    def level(self) -> int:
        return PRECEDENCE[self.operator]

    def __str__(self) -> str:
        level = self.level
        return f"{bracketed(self.left, level)} {self.operator} {bracketed(self.right, level + 1)}"


@dataclass(frozen=True, slots=True)
class TypeTest(Node):
    """`operand is type` or `operand as type`; `type` as written, possibly with its namespace."""

    operator: str
    operand: Node
    type: str

    @property
    def level(self) -> int:
        return PRECEDENCE[self.operator]

    def __str__(self) -> str:
        kind = ".".join(identifier(part) for part in self.type.split("."))
        return f"{bracketed(self.operand, self.level)} {self.operator} {kind}"


def bracketed(node: Node, level: int) -> str:
    return str(node) if node.level >= level else f"({node})"


def quoted(text: str) -> str:
    return "'" + "".join(_ESCAPES.get(character, character) for character in text) + "'"


def identifier(name: str) -> str:
    if _WORD.fullmatch(name) and name not in _RESERVED:
        return name
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"

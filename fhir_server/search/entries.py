"""What is kept of a resource for searches. The store keeps entries under `s`.

One entry for each parameter's field, made by its type's module in search/types; besides,
    <field>:identifier   token keys of a reference's identifier        <field>:version   the reference with its version
    #contained           [{t: type, i: id, p: fields that refer to it, s: its own entries}]
    _text, _content      words (search/fulltext.py)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CONTAINED = "#contained"
IDENTIFIER = ":identifier"
VERSION = ":version"
PARTS = ("1", "2", "3", "4")  # names of a composite's components in its entries


@dataclass(frozen=True, slots=True)
class Indexed:
    """`entries`: name → value, kept under `s` by the store. `patients`: ids, without the type."""

    entries: dict[str, Any]
    patients: tuple[str, ...]

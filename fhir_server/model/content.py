"""Where clinical content lives: the folders `resources`, `profiles` and `terminology`, which are data, not code."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from fhir_server.model.resource import load

PACKAGE = Path(__file__).resolve().parent.parent


@cache
def folder(name: str) -> Path:
    """The folder `name` (resources | profiles | terminology): in the installed package, or beside it in a checkout."""
    installed = PACKAGE / "content" / name
    return installed if installed.is_dir() else PACKAGE.parent / name


def read(path: Path) -> dict[str, Any]:
    """One resource from a file, decimals exact."""
    return load(path.read_bytes())


def files(name: str, below: str = "") -> Iterator[Path]:
    """Every JSON file of a content folder (or of `below` in it), in the order of their names."""
    yield from sorted((folder(name) / below).rglob("*.json"))

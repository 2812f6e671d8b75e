"""Where clinical content lives: the folders `resources`, `profiles` and `terminology`, which are data, not code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fhir_server.errors import Malformed
from fhir_server.model.resource import load

PACKAGE = Path(__file__).resolve().parent.parent


@cache
def folder(name: str) -> Path:
    """The folder `name` (resources | profiles | terminology): in the installed package, or beside it in a checkout."""
    installed = PACKAGE / "content" / name
    return installed if installed.is_dir() else PACKAGE.parent / name


def read(path: Path) -> dict[str, Any]:
    """One resource from a JSON or YAML file, decimals exact."""
    if path.suffix == ".json":
        return load(path.read_bytes())
    value = read_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(value, dict):
        raise Malformed(f"{path} must hold one mapping")
    return value


def read_yaml(text: str, name: str = "YAML") -> Any:
    """YAML as FHIR's JSON would be: digits kept, dates stay text, only `true` and `false` are booleans. Raises Malformed."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a safe loader)
    except yaml.YAMLError as error:
        raise Malformed(f"{name} is not valid YAML: {error}") from None


def files(name: str, below: str = "") -> Iterator[Path]:
    """Every resource file (JSON or YAML) of a content folder, or of `below` in it, in the order of their names."""
    for path in sorted((folder(name) / below).rglob("*")):
        if path.suffix in (".json", ".yaml") and "cases" not in path.parts:
            yield path


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Resolves what JSON knows, and nothing else."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own shape)


_NUMBER = r"-?(0|[1-9][0-9]*)"
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(null|~|)$"), ["n", "~", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(rf"^{_NUMBER}$"), list("-0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(rf"^{_NUMBER}(\.[0-9]+)?([eE][-+]?[0-9]+)?$"), list("-0123456789")
)
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: Decimal(loader.construct_scalar(node)))

"""Settings as command-line options: one option a field, so that the two cannot differ. See docs/settings.md."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from fhir_server.settings import Settings

_KINDS: dict[str, Any] = {"int": int, "str": str, "Path": Path, "float": float}


def configure(parser: argparse.ArgumentParser, *, without: Collection[str] = ()) -> None:
    """Add `--name` for each field. What is not given stays None, so that the environment and the default can speak."""
    for field in fields(Settings):
        if field.name in without:
            continue
        kind = str(field.type)
        default = field.default if field.default is not MISSING else _factory_default(field)
        shown = f"{field.metadata['help']} (FHIR_{field.name.upper()}; default: {default if default != '' else 'none'})"
        option = "--" + field.name.replace("_", "-")
        text = shown.replace("%", "%%")
        if kind == "bool":
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            parser.add_argument(option, type=_KINDS[kind], default=None, metavar=kind.upper(), help=text)


def settings_of(args: argparse.Namespace, **fixed: Any) -> Settings:
    """Environment, then the command line, then what the command itself fixes."""
    names = {field.name for field in fields(Settings)}
    given = {name: value for name, value in vars(args).items() if name in names}
    return Settings.from_environment(**{**given, **fixed})


def _factory_default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else ""

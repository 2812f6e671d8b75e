"""`fhir-server version`: what runs here, in one line a component."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

import fhir_server

COMPONENTS = ("starlette", "uvicorn", "msgspec", "pymongo", "lxml")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="also the versions of Python and of the main libraries")


def run(args: argparse.Namespace) -> int:
    print(f"fhir-server {fhir_server.__version__} (FHIR 4.0.1)")
    if args.all:
        print(f"Python {platform.python_version()} on {platform.platform()}")
        for name in COMPONENTS:
            try:
                print(f"{name} {version(name)}")
            except PackageNotFoundError:
                print(f"{name} missing")
    return 0

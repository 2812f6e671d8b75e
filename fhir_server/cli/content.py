"""`fhir-server content check|load|report`: the clinical content, which is data (resources, profiles, terminology)."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fhir_server.cli.client import connect
from fhir_server.cli.load import CONCURRENCY, add_server, conclude
from fhir_server.cli.loading.compose import Item, single
from fhir_server.cli.loading.meter import meter
from fhir_server.cli.loading.plan import Plan
from fhir_server.cli.loading.sender import Report, Sender
from fhir_server.errors import FhirError
from fhir_server.model import content
from fhir_server.model.resource import dump
from fhir_server.settings import Settings

FOLDERS = ("terminology", "profiles", "resources")  # what others refer to comes first


def configure(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="what", metavar="check|load|report", required=True)
    commands.add_parser("check", help="validate every file and run its cases")
    load = commands.add_parser("load", help="put the content on a running server")
    add_server(load)
    report = commands.add_parser("report", help="list rules and scores with source, version and status, in Markdown")
    report.add_argument("--output", type=Path, help="write to this file (default: standard output)")


def run(args: argparse.Namespace) -> int:
    if args.what == "check":
        return _check()
    return _load(args) if args.what == "load" else _report(args)


def _resources() -> Iterator[tuple[Path, dict[str, Any]]]:
    for folder in FOLDERS:
        for path in content.files(folder):
            yield path, content.read(path)


def _check() -> int:
    """Every file by itself here; what they say to each other, and their cases, in `automation.content`."""
    from fhir_server.automation import content as rules
    from fhir_server.validation import Validator

    validator = Validator()
    problems: list[str] = []
    seen: dict[str, Path] = {}
    count = 0
    for folder in FOLDERS:
        for path in content.files(folder):
            count += 1
            try:
                resource = content.read(path)
            except FhirError:
                continue  # named below
            problems += [
                f"{path}: {issue.diagnostics} ({', '.join(issue.expression)})"
                for issue in validator.check(resource)
                if issue.is_error
            ]
            key = f"{resource.get('resourceType')}/{resource.get('id')}"
            if seen.setdefault(key, path) != path:
                problems.append(f"{path}: {key} is also in {seen[key]}")
    problems += rules.check()
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"content: {count} resources, {len(problems)} problems")
    return 1 if problems else 0


def _load(args: argparse.Namespace) -> int:
    settings = Settings.from_environment()
    base = args.server or settings.base_url
    items = [single(dump(resource), str(path)) for path, resource in _resources()]
    began = time.monotonic()
    report = asyncio.run(_send(items, base, args.token or os.environ.get("FHIR_TOKEN", "")))
    conclude(report, time.monotonic() - began)
    return 1 if report.failures else 0


async def _send(items: list[Item], base: str, token: str) -> Report:
    async with connect(base, token) as client:
        with meter(len(items)) as shown:
            sender = Sender(client, Plan([], {}, []), shown, CONCURRENCY)
            await sender.put(items)
            return sender.report


def _report(args: argparse.Namespace) -> int:
    from fhir_server.automation import content as rules

    text = rules.report()
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0

"""`fhir-server reindex`: has a running server index what it holds for new search parameters, and shows how far it is."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fhir_server.cli.client import Client, Refused, connect
from fhir_server.cli.load import add_server
from fhir_server.settings import Settings

INTERVAL = 0.5  # seconds between questions


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="index every resource anew, not only for new parameters")
    add_server(parser)


def run(args: argparse.Namespace) -> int:
    settings = Settings.from_environment()
    base = args.server or settings.base_url
    try:
        waiting = asyncio.run(_reindex(base, args.token or os.environ.get("FHIR_TOKEN", ""), args.all))
    except Refused as refused:
        print(f"reindex failed: {refused}", file=sys.stderr)
        return 1
    for url in waiting:
        print(f"still not indexed, see the server's log: {url}", file=sys.stderr)
    print("everything is indexed" if not waiting else f"{len(waiting)} parameters wait")
    return 1 if waiting else 0


async def _reindex(base: str, token: str, everything: bool) -> list[str]:
    """URLs of parameters that wait though the run has ended."""
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("{task.percentage:>5.1f} %  {task.fields[rate]}"),
    )
    async with connect(base, token) as client:
        told = await _ask(client, f"all={'true' if everything else 'false'}")
        with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
            bar = shown.add_task("starting", total=100, rate="")
            while told["status"] == ["running"]:
                if "percent" in told:
                    rate = f"{told['rate'][0]:,.0f}/s"
                    shown.update(bar, completed=told["percent"][0], description=told["type"][0] or "done", rate=rate)
                await asyncio.sleep(INTERVAL)
                told = await _ask(client, "start=false")
    return [str(url) for url in told.get("waiting", [])]


async def _ask(client: Client, query: str) -> dict[str, list[Any]]:
    answer = await client.send("POST", f"SearchParameter/$reindex?{query}")
    found: dict[str, list[Any]] = {}
    for part in msgspec.json.decode(answer.body)["parameter"]:
        found.setdefault(part["name"], []).append(next(value for key, value in part.items() if key != "name"))
    return found

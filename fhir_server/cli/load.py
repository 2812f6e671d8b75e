"""`fhir-server load PATH…`: bundles, resources, NDJSON, gzipped or not, and folders of them, to a server."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path

from fhir_server.cli.client import connect
from fhir_server.cli.loading.meter import meter
from fhir_server.cli.loading.plan import Plan, plan
from fhir_server.cli.loading.sender import Report, Sender
from fhir_server.settings import Settings

CONCURRENCY = 6  # requests in flight: enough to keep two workers and their database busy


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file or a folder, any number of them")
    add_server(parser)
    parser.add_argument(
        "--concurrency", type=int, default=CONCURRENCY, help=f"requests in flight (default: {CONCURRENCY})"
    )


def add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server", metavar="URL", help="base URL of the server (default: what FHIR_HOST and FHIR_PORT say)"
    )
    parser.add_argument("--token", help="access token (default: FHIR_TOKEN)")


def run(args: argparse.Namespace) -> int:
    settings = Settings.from_environment()
    base = args.server or settings.base_url
    token = args.token or os.environ.get("FHIR_TOKEN", "")
    began = time.monotonic()
    planned = plan(args.paths)
    report = asyncio.run(_send(planned, base, token, max(1, args.concurrency)))
    conclude(report, time.monotonic() - began)
    return 1 if report.failures else 0


async def _send(planned: Plan, base: str, token: str, concurrency: int) -> Report:
    async with connect(base, token) as client:
        with meter(planned.resources) as shown:
            return await Sender(client, planned, shown, concurrency).send()


def conclude(report: Report, seconds: float) -> None:
    done = report.created + report.present
    rate = f" ({done / seconds:,.0f}/s)" if seconds > 0 else ""
    print(f"{done:,} resources in {seconds:.1f} s{rate}: {report.created:,} created, {report.present:,} already there")
    if report.failures:
        print(f"{len(report.failures):,} failed, each named above", file=sys.stderr)

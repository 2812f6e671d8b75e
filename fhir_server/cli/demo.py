"""`fhir-server demo`: a server on this machine with the sample population in it, and what to try next.

The population goes in over the public API, as anybody's data would; a second start finds it there and keeps it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
import time
from pathlib import Path

import msgspec

from fhir_server.cli import options, population
from fhir_server.cli.answering import base_url
from fhir_server.cli.client import Client, Refused, connect
from fhir_server.cli.load import conclude
from fhir_server.cli.loading.meter import Bar, Plain, meter
from fhir_server.cli.loading.plan import Plan
from fhir_server.cli.loading.sender import Report, Sender
from fhir_server.cli.population.people import people
from fhir_server.cli.serve import check
from fhir_server.cli.supervise import Supervisor
from fhir_server.settings import Settings

DATA_DIR = Path(".demo")

NEXT = """
ready on {base}

The sample population is in it: 36 invented people, Chinese and international, check-ups from 2019 to 2026.
Open in a browser
  {base}/Patient?_count=10&_pretty=true
  {base}/metadata?_pretty=true
or in another terminal
  curl '{base}/Patient?name=wang&_pretty=true'
  curl '{base}/Observation?patient=sample-01&code=http://loinc.org%7C85354-9&_sort=-date&_count=3&_pretty=true'
  curl '{base}/Patient?_has:Condition:patient:code=http://hl7.org/fhir/sid/icd-10%7CI10&_summary=count'
{note}
Ctrl-C stops it; the data stays in {data_dir} and is there at the next start.
"""


class _Count(msgspec.Struct):
    total: int = 0


def configure(parser: argparse.ArgumentParser) -> None:
    options.configure(parser, without=("open",))


def run(args: argparse.Namespace) -> int:
    args.data_dir = args.data_dir or DATA_DIR
    settings = options.settings_of(args, open=True)
    check(settings)
    print(f"starting the server and its MongoDB in {settings.data_dir} …", flush=True)
    supervisor = Supervisor(settings, lambda port: _fill_in_background(settings, port))
    return supervisor.run()


def _fill_in_background(settings: Settings, port: int) -> None:
    threading.Thread(target=_fill, args=(settings, port), name="population", daemon=True).start()


def _fill(settings: Settings, port: int) -> None:
    base = base_url(settings, port)
    try:
        asyncio.run(_load(base))
    except Refused as refused:
        print(f"The sample population could not be loaded: {refused}", file=sys.stderr)
        return
    note = "\nIt serves without authorization, to this machine only. `fhir-server serve` is the real thing."
    print(NEXT.format(base=base, data_dir=settings.data_dir, note=note), flush=True)


async def _load(base: str) -> None:
    async with connect(base) as client:
        if await _is_there(client):
            return
        began = time.monotonic()
        bundles = list(population.bundles())
        total = sum(bundle.count(b'"request":') for _, bundle in bundles)
        with meter(total) as shown:
            report = await _send(client, bundles, shown)
        conclude(report, time.monotonic() - began)


async def _is_there(client: Client) -> bool:
    """Everybody is there, and then so is everything about them: a person is one transaction."""
    ids = [person.id for person in people()]
    answer = await client.get(f"Patient?_id={','.join(ids)}&_summary=count")
    return msgspec.json.decode(answer.body, type=_Count).total == len(ids)


async def _send(client: Client, bundles: list[tuple[str, bytes]], shown: Bar | Plain) -> Report:
    """The clinic first, then people, a few at a time; each Bundle is a transaction, so a person is whole or absent."""
    sender = Sender(client, Plan([], {}, []), shown, concurrency=4)
    clinic, *persons = bundles
    await sender.transaction(*clinic)
    async with asyncio.TaskGroup() as group:
        for person in persons:
            group.create_task(sender.transaction(*person))
    return sender.report

"""`fhir-server demo`: a server on this machine with the sample population in it, and what to try next.

The population goes in over the public API, as anybody's data would; a second start finds it there and keeps it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path

import msgspec

from fhir_server.cli import options, population, showcase
from fhir_server.cli import token as tokens
from fhir_server.cli.authority import with_authority
from fhir_server.cli.client import Client, Refused, connect
from fhir_server.cli.load import conclude
from fhir_server.cli.loading.meter import Bar, Plain, meter
from fhir_server.cli.loading.plan import Plan
from fhir_server.cli.loading.sender import Report, Sender
from fhir_server.cli.population.people import people
from fhir_server.cli.serve import check
from fhir_server.cli.supervise import Supervisor
from fhir_server.errors import FhirError
from fhir_server.settings import Settings

DATA_DIR = Path(".demo")

TOKEN_SECONDS = 7 * 86400
SCOPE = "system/*.cruds"

NEXT = """
ready on {base}

The sample population is in it: 36 invented people, Chinese and international, check-ups from 2019 to 2026.
Try in another terminal
  {curl} '{base}/Patient?name=wang&_pretty=true'
  {curl} '{base}/Observation?patient=sample-01&code=http://loinc.org%7C85354-9&_sort=-date&_count=3&_pretty=true'
  {curl} '{base}/Task?patient=sample-01&_pretty=true'
(people called Wang; the last blood pressures of the first of them; what the rules want done about it), or look at
  {base}/metadata?_pretty=true
{note}
Ctrl-C stops it; the data stays in {data_dir} and is there at the next start.
"""
AUTHORIZED = """
This token, which is in {file}, too, opens everything for a week; each start makes a new one:
  {token}
`fhir-server user` and `fhir-server client` add people and apps: docs/authorization.md.
"""
OPEN_TO_ALL = """
It serves without authorization, to this machine only.
"""


class _Count(msgspec.Struct):
    total: int = 0


def configure(parser: argparse.ArgumentParser) -> None:
    options.configure(parser)


def run(args: argparse.Namespace) -> int:
    args.data_dir = args.data_dir or DATA_DIR
    # A line for each request would bury the progress bar and what to try next.
    args.log_level = args.log_level or os.environ.get("FHIR_LOG_LEVEL") or "warning"
    settings = options.settings_of(args)
    check(settings)
    print(f"starting the server and its MongoDB in {settings.data_dir} …", flush=True)

    def ready(_port: int) -> None:
        threading.Thread(target=_fill, args=(supervisor.settings,), name="population", daemon=True).start()

    supervisor = Supervisor(settings, ready)
    return supervisor.run()


def _fill(settings: Settings) -> None:
    base = settings.base_url
    token, curl, note = "", "curl", OPEN_TO_ALL
    if not settings.open:
        token = _token(settings)
        file = settings.data_dir.resolve() / "token"
        file.touch(mode=0o600)
        file.write_text(token)
        curl = f'curl -H "Authorization: Bearer $(cat {shlex.quote(str(file))})"'
        note = AUTHORIZED.format(file=file, token=token)
    try:
        asyncio.run(_load(base, token))
        shown = asyncio.run(_show(base, token)) if settings.automation else ""
    except (Refused, FhirError) as refused:
        print(f"The sample population could not be loaded: {refused}", file=sys.stderr)
        return
    print(shown)
    print(NEXT.format(base=base, curl=curl, data_dir=settings.data_dir, note=note), flush=True)


def _token(settings: Settings) -> str:
    """What `fhir-server token` prints."""
    wanted = {"scope": SCOPE, "patient": "", "user": "", "ttl": TOKEN_SECONDS}
    args = argparse.Namespace(**{field.name: getattr(settings, field.name) for field in fields(settings)}, **wanted)
    return with_authority(args, lambda authority: tokens.make(authority, args))


async def _load(base: str, token: str) -> None:
    async with connect(base, token) as client:
        if await _is_there(client):
            return
        began = time.monotonic()
        bundles = list(population.bundles())
        total = sum(bundle.count(b'"request":') for _, bundle in bundles)
        with meter(total) as shown:
            report = await _send(client, bundles, shown)
        conclude(report, time.monotonic() - began)


async def _show(base: str, token: str) -> str:
    async with connect(base, token) as client:
        await client.get("$await-hooks?timeout=60")  # what the population itself gave rise to
        return await showcase.show(client)


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

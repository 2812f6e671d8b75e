"""`fhir-server worker`: the hooks engine in a process of its own, beside servers that run with --no-automation.

Any number of them may run: they share the work by patient, with leases (docs/hooks.md).
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from dataclasses import fields

from fhir_server.app import build_server
from fhir_server.automation import engage
from fhir_server.cli import options
from fhir_server.interactions.search import open_search
from fhir_server.settings import Settings
from fhir_server.store.attach import database_url

SETTINGS = frozenset({"data_dir", "mongo_url", "database", "mongo_cache_mb", "log_level"})


def configure(parser: argparse.ArgumentParser) -> None:
    options.configure(parser, without={field.name for field in fields(Settings)} - SETTINGS)


def run(args: argparse.Namespace) -> int:
    settings = options.settings_of(args)
    with database_url(settings.mongo_url, settings.data_dir, cache_mb=settings.mongo_cache_mb) as url:
        asyncio.run(_work(settings, url))
    return 0


async def _work(settings: Settings, url: str) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    server = build_server(settings, url)
    await server.store.open()
    try:
        await open_search(server)
        await engage(server, listen=True)
        try:
            print(f"working on what is committed to {settings.database}", flush=True)
            await stopping.wait()
        finally:
            await server.close()
    finally:
        await server.store.close()

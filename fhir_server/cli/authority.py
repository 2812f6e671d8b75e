"""The authorization server for a command: on the database of a server that runs, or of one that does not at the moment."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import TypeVar

from fhir_server.auth.authority import Authority, build
from fhir_server.cli import options
from fhir_server.settings import Settings
from fhir_server.store.attach import connect, database_url
from fhir_server.store.credentials import Credentials

PLACE = frozenset({"data_dir", "mongo_url", "database"})  # the settings that say which database
ADDRESS = ("public_url", "host", "port", "base_path")  # those that say where it answers
T = TypeVar("T")


def configure(parser: argparse.ArgumentParser, *more: str) -> None:
    """`--data-dir`, `--mongo-url`, `--database`, and the settings named."""
    options.configure(parser, without={field.name for field in fields(Settings)} - PLACE - set(more))


def with_authority(args: argparse.Namespace, act: Callable[[Authority], Awaitable[T]]) -> T:
    """The issuer is the server at the address that was given, or else the one that served this database last."""
    settings = options.settings_of(args)
    given = settings.public_url or any(getattr(args, name, None) is not None for name in ADDRESS)

    async def run(url: str) -> T:
        database = connect(url, settings.database)
        credentials = Credentials(database)
        try:
            noted = "" if given else await credentials.noted_base()
            authority = build(settings, credentials, base=noted or settings.base_url)
            try:
                await authority.open()
                return await act(authority)
            finally:
                authority.close()
        finally:
            await database.client.close()

    with database_url(settings.mongo_url, settings.data_dir, cache_mb=settings.mongo_cache_mb) as url:
        return asyncio.run(run(url))

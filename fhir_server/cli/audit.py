"""`fhir-server audit verify`: is every AuditEvent there, as it was written? Exit code 1 and the place if not."""

from __future__ import annotations

import argparse
import asyncio
import sys

from fhir_server.auth.authority import secret_of
from fhir_server.auth.chain import chain_key, expected_head, verify
from fhir_server.cli import authority as place
from fhir_server.cli import options
from fhir_server.store.attach import connect, database_url
from fhir_server.store.audit import AuditLog


def configure(parser: argparse.ArgumentParser) -> None:
    acts = parser.add_subparsers(dest="act", metavar="ACT", required=True)
    check = acts.add_parser("verify", help="walk the whole chain and recompute every seal")
    check.add_argument("--expect", default="", help="a head noted earlier (number and seal) that must still be there")
    place.configure(check)


def run(args: argparse.Namespace) -> int:
    settings = options.settings_of(args)
    key = chain_key(secret_of(settings))
    expected = expected_head(args.expect)

    async def check(url: str) -> int:
        database = connect(url, settings.database)

        async def nothing(resource_type: str) -> None:
            """Reading needs no indexes made."""

        try:
            verdict = await verify(AuditLog(database, nothing), key, expected)
        finally:
            await database.client.close()
        if verdict.problem:
            print(f"fhir-server: {verdict.problem}", file=sys.stderr)
            return 1
        print(f"{verdict.checked} events, all there and unchanged; head: {verdict.head.number} {verdict.head.seal}")
        return 0

    with database_url(settings.mongo_url, settings.data_dir, cache_mb=settings.mongo_cache_mb) as url:
        return asyncio.run(check(url))

"""`fhir-server keys rotate`: sign with a new key from now on; tokens signed with the old one stay valid to their end."""

from __future__ import annotations

import argparse

from fhir_server.auth.authority import Authority
from fhir_server.cli import authority as place


def configure(parser: argparse.ArgumentParser) -> None:
    acts = parser.add_subparsers(dest="act", metavar="ACT", required=True)
    place.configure(acts.add_parser("rotate", help="make a new signing key"), "token_seconds")


def run(args: argparse.Namespace) -> int:
    print(place.with_authority(args, _rotate))
    return 0


async def _rotate(authority: Authority) -> str:
    return await authority.keys.rotate()

"""`fhir-server export DIR`: every current resource over the public API, as NDJSON, one file a type.

Bytes go from page to file as the server sent them. A type without resources gets no file; a file appears under its name
only when it is complete. What is written while the export runs may or may not be in it.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import os
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import IO, cast

import msgspec

from fhir_server.cli.client import Client, Refused, connect
from fhir_server.cli.load import add_server
from fhir_server.errors import BadRequest
from fhir_server.settings import Settings

PAGE = 1000
AT_ONCE = 4  # types in flight


class _Link(msgspec.Struct):
    relation: str = ""
    url: str = ""


class _Entry(msgspec.Struct):
    resource: msgspec.Raw = msgspec.Raw(b"")


class _Page(msgspec.Struct):
    link: list[_Link] = []
    entry: list[_Entry] = []


class _Type(msgspec.Struct):
    type: str = ""


class _Rest(msgspec.Struct):
    resource: list[_Type] = []


class _Capabilities(msgspec.Struct):
    rest: list[_Rest] = []


_page = msgspec.json.Decoder(_Page)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the files go; made if it is not there")
    parser.add_argument("--type", action="append", default=[], metavar="TYPE", help="only this type; may be repeated")
    parser.add_argument("--gzip", action="store_true", help="write .ndjson.gz")
    add_server(parser)


def run(args: argparse.Namespace) -> int:
    settings = Settings.from_environment()
    base = args.server or settings.base_url
    args.folder.mkdir(parents=True, exist_ok=True)
    if any(args.folder.glob("*.ndjson*")):
        raise BadRequest(f"{args.folder} holds NDJSON files already; choose an empty folder")
    began = time.monotonic()
    try:
        counts = asyncio.run(_export(base, args.token or os.environ.get("FHIR_TOKEN", ""), args))
    except Refused as refused:
        print(f"export failed: {refused}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - began
    for name in sorted(counts):
        print(f"{counts[name]:>10,}  {name}")
    total = sum(counts.values())
    print(f"{total:,} resources of {len(counts)} types in {seconds:.1f} s ({total / max(seconds, 0.001):,.0f}/s)")
    return 0


async def _export(base: str, token: str, args: argparse.Namespace) -> dict[str, int]:
    counts: dict[str, int] = {}
    async with connect(base, token) as client:
        types = args.type or await _types(client)
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(resource_type: str) -> None:
            async with gate:
                count = await _export_type(client, resource_type, args.folder, args.gzip)
                if count:
                    counts[resource_type] = count

        await asyncio.gather(*(one(resource_type) for resource_type in types))
    return counts


async def _types(client: Client) -> list[str]:
    answer = await client.get("metadata")
    capabilities = msgspec.json.decode(answer.body, type=_Capabilities)
    return [item.type for rest in capabilities.rest for item in rest.resource]


async def _export_type(client: Client, resource_type: str, folder: Path, zipped: bool) -> int:
    name = f"{resource_type}.ndjson{'.gz' if zipped else ''}"
    part = folder / f".{name}.part"
    count = 0
    url = f"{resource_type}?_count={PAGE}"
    async with AsyncExitStack() as stack:
        file: IO[bytes] | None = None
        while url:
            page = _page.decode((await client.get(url)).body)
            if page.entry and file is None:
                file = stack.enter_context(_create(part, zipped))
            if file is not None:
                file.writelines(_line(bytes(entry.resource)) for entry in page.entry)
            count += len(page.entry)
            url = next((link.url for link in page.link if link.relation == "next"), "")
    if count:
        part.rename(folder / name)
    return count


def _create(path: Path, zipped: bool) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "wb", compresslevel=4)) if zipped else path.open("wb")


def _line(raw: bytes) -> bytes:
    """One resource as one line: JSON strings hold no line breaks, so only layout can."""
    return (raw if b"\n" not in raw else msgspec.json.format(raw, indent=-1)) + b"\n"

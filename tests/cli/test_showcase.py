"""The demonstration's end: a check-up arrives, and what came of it is told with reasons and times."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fhir_server.cli import population, showcase
from fhir_server.cli.client import connect

Start = Callable[..., Any]


def test_a_check_up_is_told_with_tags_risks_tasks_and_one_reason(start: Start, tmp_path: Path) -> None:
    server = start("serve", "--open", "--port", 0, "--data-dir", tmp_path / "data")
    server.line("ready on ")

    async def run() -> tuple[str, str]:
        async with connect(server.base, "") as client:
            bundles = dict(population.bundles())
            for name in ("clinic", showcase.PERSON):
                await client.send("POST", "", bundles[name])
            await client.get("$await-hooks?timeout=60")
            return await showcase.show(client), await showcase.show(client)

    told, again = asyncio.run(run())
    assert "184/112" in told
    for part in (" ms  risk  Framingham", " %, High", "refer urgently", "for the doctor, due ", "$explain"):
        assert part in told, told
    assert "in the record already" in again

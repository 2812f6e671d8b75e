"""What searches cost, in few words: for `_explain`, and in the log for those that take too long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fhir_server.search.plan import Plan, outline
from fhir_server.store.protocol import Find, Store

log = logging.getLogger(__name__)
explaining: set[asyncio.Task[None]] = set()


def tell(store: Store, plan: Plan, finds: Sequence[Find], elapsed: float) -> None:
    """Logs a slow search once it is answered; one at a time, for to explain a search is to run it again. `elapsed`: ms."""
    if explaining:
        return
    task = asyncio.create_task(_tell(store, plan, finds, elapsed))
    explaining.add(task)
    task.add_done_callback(explaining.discard)


async def _tell(store: Store, plan: Plan, finds: Sequence[Find], elapsed: float) -> None:
    """What it looked for (not for which values), the indexes it read, how much it had to look at."""
    try:
        work = [summary(await store.explain(replace(find, snapshot=None))) for find in finds]
    except Exception as error:
        work = [{"not explained": type(error).__name__}]
    log.warning("slow search: %.0f ms\n%s\n%s", elapsed, outline(plan), "\n".join(map(str, work)))


def summary(explained: Mapping[str, Any]) -> dict[str, Any]:
    """What matters of MongoDB's explanation: stages from the top, indexes, work done."""
    root = explained
    if "stages" in explained:
        root = explained["stages"][0]["$cursor"]
    stats = root.get("executionStats", {})
    stages: list[str] = [next(iter(stage)) for stage in explained.get("stages", ())[1:]][::-1]
    indexes: list[str] = []

    def visit(stage: Mapping[str, Any]) -> None:
        stages.append(stage.get("stage", "?"))
        if "indexName" in stage:
            indexes.append(stage["indexName"])
        for inner in (*stage.get("inputStages", ()), *([stage["inputStage"]] if "inputStage" in stage else ())):
            visit(inner)

    plan = root.get("queryPlanner", {}).get("winningPlan", {})
    visit(plan.get("queryPlan", plan))
    return {
        "stages": stages,
        "indexes": indexes,
        "returned": stats.get("nReturned"),
        "keysExamined": stats.get("totalKeysExamined"),
        "documentsExamined": stats.get("totalDocsExamined"),
        "milliseconds": stats.get("executionTimeMillis"),
    }

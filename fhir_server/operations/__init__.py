"""$operations: one table, one function a row. https://hl7.org/fhir/R4/operations.html

An operation is `async def name(server, context, call) -> Answer`. `call.path` is the whole path below the base, so that an
instance operation finds its type and id there; `call.resource` is the Parameters (or other) resource of a POST.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fhir_server.interactions.call import Answer, Call
from fhir_server.interactions.context import Context, Server
from fhir_server.operations import (
    assess_risk,
    everything,
    explain,
    export,
    hooks,
    lastn,
    meta,
    plans,
    reindex,
    stats,
    validate,
)

Function = Callable[[Server, Context, Call], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One row. `types`: resource types it is for, empty for every type. `affects_state`: POST only."""

    name: str
    function: Function
    definition: str  # canonical of its OperationDefinition
    types: tuple[str, ...] = ()
    system: bool = False
    type: bool = False
    instance: bool = False
    version: bool = False
    affects_state: bool = False
    asks: bool = False  # asks the policy itself for each type it is about to show


_FHIR = "http://hl7.org/fhir/OperationDefinition/"
_BULK = "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/"
_OURS = "https://fhir-server.org/fhir/OperationDefinition/"

OPERATIONS: tuple[Operation, ...] = (
    Operation("validate", validate.validate, _FHIR + "Resource-validate", type=True, instance=True),
    Operation("meta", meta.meta, _FHIR + "Resource-meta", system=True, type=True, instance=True, version=True),
    Operation("meta-add", meta.meta_add, _FHIR + "Resource-meta-add", instance=True, affects_state=True),
    Operation("meta-delete", meta.meta_delete, _FHIR + "Resource-meta-delete", instance=True, affects_state=True),
    Operation("lastn", lastn.lastn, _FHIR + "Observation-lastn", ("Observation",), type=True),
    Operation("stats", stats.stats, _FHIR + "Observation-stats", ("Observation",), type=True),
    Operation("export", export.export, _BULK + "export", system=True, asks=True),
    Operation("export", export.export, _BULK + "patient-export", ("Patient",), type=True, asks=True),
    Operation("export", export.export, _BULK + "group-export", ("Group",), instance=True, asks=True),
    Operation("everything", everything.everything, _FHIR + "Patient-everything", ("Patient",), instance=True),
    Operation(
        "reindex",
        reindex.reindex,
        _OURS + "SearchParameter-reindex",
        ("SearchParameter",),
        type=True,
        affects_state=True,
    ),
    Operation("assess-risk", assess_risk.assess_risk, _OURS + "assess-risk", ("Patient",), system=True, instance=True),
    Operation("explain", explain.explain, _OURS + "explain", instance=True),
    Operation("await-hooks", hooks.await_hooks, _OURS + "await-hooks", system=True),
    Operation("hook-status", hooks.hook_status, _OURS + "hook-status", system=True),
    Operation("hook-retry", hooks.hook_retry, _OURS + "hook-retry", system=True, affects_state=True),
    Operation("hook-event", hooks.hook_event, _OURS + "hook-event", system=True, affects_state=True),
    Operation("dry-run", plans.dry_run, _OURS + "PlanDefinition-dry-run", ("PlanDefinition",), instance=True),
    Operation(
        "backfill",
        plans.backfill,
        _OURS + "PlanDefinition-backfill",
        ("PlanDefinition",),
        instance=True,
        affects_state=True,
    ),
    Operation("apply", plans.apply, _FHIR + "PlanDefinition-apply", ("PlanDefinition",), instance=True),
)


def find(name: str, resource_type: str | None, level: str) -> Operation | None:
    """The row for `$name` at `level` (system, type, instance or version)."""
    for operation in OPERATIONS:
        if (
            operation.name == name
            and getattr(operation, level)
            and (not operation.types or level == "system" or resource_type in operation.types)
        ):
            return operation
    return None

"""What the operations on rules answer to input that makes no sense: 4xx with the reason, never 5xx."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.automation.conftest import Hooks

pytestmark = pytest.mark.anyio

RULE = "PlanDefinition/hypertension-follow-up"
NOBODY = {"name": "subject", "valueReference": {"reference": "Patient/nobody"}}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{RULE}/$dry-run?since=yesterday", 400),
        *((f"{RULE}/$dry-run?limit={limit}", 400) for limit in ("nan", "inf", "1e400", "0", "-1", "many")),
        *((f"{RULE}/$backfill?rate={rate}", 400) for rate in ("nan", "inf", "0", "-1", "fast")),
        (f"{RULE}/$apply", 400),
        (f"{RULE}/$apply?subject=Observation/1", 400),
        (f"{RULE}/$apply?subject=Patient/", 400),
        (f"{RULE}/$apply?subject=Patient/nobody", 404),
        ("PlanDefinition/nothing/$dry-run", 404),
        ("PlanDefinition/nothing/$backfill", 404),
        ("PlanDefinition/nothing/$apply?subject=Patient/nobody", 404),
        ("$await-hooks?timeout=nan", 400),
        ("$await-hooks?timeout=soon", 400),
        ("$hook-event", 400),
        ("$hook-event?name=x&subject=Observation/1", 400),
        ("$hook-event?name=x&subject=Patient/", 400),
        ("$hook-event?name=x&subject=Patient/nobody", 404),
        ("$hook-retry?patient=Patient/a/b", 400),
        ("Patient/nobody/$explain", 404),
    ],
)
async def test_parameters_of_the_query(hooks: Hooks, path: str, status: int) -> None:
    answer = await (hooks.http.get if "$explain" in path else hooks.http.post)(path)
    assert answer.status_code == status, answer.text
    assert answer.json()["resourceType"] == "OperationOutcome"


@pytest.mark.parametrize(
    ("path", "part", "status"),
    [
        (f"{RULE}/$apply", NOBODY, 404),
        (f"{RULE}/$apply", {"name": "subject", "valueReference": {"display": "somebody"}}, 400),
        (f"{RULE}/$apply", {"name": "subject", "resource": {"resourceType": "Patient"}}, 400),
        ("$hook-retry", {"name": "patient", "valueReference": {}}, 400),  # not: everybody
        ("$hook-retry", {"name": "rule"}, 400),
        ("$hook-retry", {"name": "rule", "valueCoding": {"code": "x"}}, 400),
        ("$hook-retry", 1, 400),
    ],
)
async def test_parameters_of_the_body(hooks: Hooks, path: str, part: Any, status: int) -> None:
    body = json.dumps({"resourceType": "Parameters", "parameter": [part]})
    answer = await hooks.http.post(path, content=body, headers={"Content-Type": "application/fhir+json"})
    assert answer.status_code == status, answer.text
    assert answer.json()["resourceType"] == "OperationOutcome"


async def test_a_plan_that_is_no_rule_is_not_run(hooks: Hooks) -> None:
    await hooks.put({"resourceType": "PlanDefinition", "id": "protocol", "status": "active"})
    for operation in ("$dry-run", "$backfill", "$apply?subject=Patient/nobody"):
        assert (await hooks.http.post(f"PlanDefinition/protocol/{operation}")).status_code == 422

"""The generator of requests counts what was answered, and what was refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import uvloop

from tests.benchmarks.load import generate
from tests.cli.conftest import Process


@pytest.fixture(scope="module")
def bare() -> Iterator[str]:
    process = Process(module="tests.benchmarks.bare")
    yield process.base
    process.stop()


def test_answers_are_counted(bare: str) -> None:
    found = uvloop.run(generate(f"{bare}/Patient/1", 4, 0.3, "GET", b""))
    assert found.rate > 10
    assert 0 < found.p50_ms <= found.p99_ms
    assert found.failed == 0


def test_refusals_are_counted(bare: str) -> None:
    found = uvloop.run(generate(f"{bare}/nowhere", 2, 0.2, "GET", b""))
    assert found.failed == pytest.approx(found.rate * 0.2, rel=0.5)
    assert uvloop.run(generate(f"{bare}/Patient/1", 2, 0.2, "POST", b"{}")).failed > 0

"""Exports that begin at once: nothing of what these tests wrote is still on its way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fhir_server.operations.bulk import job, worker


@pytest.fixture(autouse=True, scope="package")
def at_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "SETTLE", 0.0)
        patch.setattr(worker, "LOOK", 0.05)
        yield

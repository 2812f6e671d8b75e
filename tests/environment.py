"""What a process that a test starts finds in its environment."""

from __future__ import annotations

import os


def environment(**settings: str) -> dict[str, str]:
    """This process's own, without settings of the person who runs the tests, and with these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FHIR_") or name == "FHIR_CI_RUN"}
    return {**kept, **settings}

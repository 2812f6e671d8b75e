"""The work of bulk exports, after the kick-off in operations/export.py. docs/export.md

`request` is what a job carries; `selection` finds what belongs into it, narrowed as a search is; `files` writes NDJSON; `worker`
does jobs, in whichever process has time; `answers` are status, files and cancellation.
"""

from __future__ import annotations

from fhir_server.operations.bulk.worker import ROOM, Exporter, engage_exports, exporter_of

__all__ = ["ROOM", "Exporter", "engage_exports", "exporter_of"]

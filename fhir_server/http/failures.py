"""Exception → OperationOutcome: the only place. https://hl7.org/fhir/R4/operationoutcome.html

A FhirError says its own status; anything else is our fault: 500, the stack trace in the log under the request's id,
and that id, nothing more, in the answer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fhir_server.errors import FhirError, Issue
from fhir_server.interactions.call import Answer
from fhir_server.model.resource import Resource

log = logging.getLogger("fhir_server.http")


def answer(error: Exception, request_id: str) -> Answer:
    if isinstance(error, FhirError) and error.status != 500:
        return Answer(error.status, issues=error.issues, headers=dict(error.headers))
    log.error("request %s failed", request_id, exc_info=error, extra={"fields": {"request": request_id}})
    text = f"The server failed to carry out the request; its log has the details under the request id {request_id}"
    return Answer(500, issues=[Issue("fatal", "exception", text)])


def outcome(issues: Sequence[Issue]) -> Resource:
    """An OperationOutcome has at least one issue; where there is nothing to say it says so."""
    shown = list(issues) or [Issue("information", "informational", "All OK")]
    return {"resourceType": "OperationOutcome", "issue": [issue.as_fhir() for issue in shown]}

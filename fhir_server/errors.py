"""What can go wrong, as one tree; each class knows its HTTP status and its FHIR issue code.

FhirError
├─ BadRequest 400 invalid         the request cannot be understood (syntax, parameters, headers)
│  ├─ Malformed 400 structure     the body is not JSON/XML, has duplicate keys, is nested too deep
│  └─ UnknownParameter 400 not-supported
├─ Unauthorized 401 login
├─ Forbidden 403 forbidden
├─ NotFound 404 not-found
├─ MethodNotAllowed 405 not-supported
├─ NotAcceptable 406 not-supported
├─ TooSlow 408 timeout            the body stopped coming
├─ Conflict 409 conflict          somebody else changed it first; trying again may help
├─ Gone 410 deleted
├─ PreconditionFailed 412 conflict
│  └─ MultipleMatches 412 multiple-matches
├─ TooLarge 413 too-long
├─ UnsupportedMediaType 415 not-supported
├─ Unprocessable 422 processing   the resource breaks a rule; carries every issue found
├─ TooManyRequests 429 throttled  (retry_after seconds)
├─ Unavailable 503 transient      (retry_after seconds)
└─ NotSupported 501 not-supported

Raise to stop; validation returns `Issue`s instead. `http/failures.py` is the only place that turns these into responses.
Issue codes: https://hl7.org/fhir/R4/valueset-issue-type.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Issue:
    """One OperationOutcome.issue: what is wrong, where (FHIRPath expressions), in words a person can act on.

    `details` (CodeableConcept): the same words for people who read another language, as translations of its text.
    """

    severity: str  # fatal | error | warning | information
    code: str  # issue-type code, e.g. "required", "value", "structure", "invariant"
    diagnostics: str
    expression: tuple[str, ...] = ()
    details: Mapping[str, Any] | None = None

    @property
    def is_error(self) -> bool:
        return self.severity in ("error", "fatal")

    def as_fhir(self) -> dict[str, Any]:
        issue: dict[str, Any] = {"severity": self.severity, "code": self.code}
        if self.details is not None:
            issue["details"] = dict(self.details)
        issue["diagnostics"] = self.diagnostics
        if self.expression:
            issue["expression"] = list(self.expression)
        return issue


class FhirError(Exception):
    """An answer that is not a success. `issues` never contains patient content beyond what the caller sent."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "exception"

    def __init__(self, diagnostics: str, *, expression: Iterable[str] = (), issues: Iterable[Issue] = ()) -> None:
        super().__init__(diagnostics)
        self.diagnostics = diagnostics
        self.issues: tuple[Issue, ...] = tuple(issues) or (
            Issue("error", type(self).code, diagnostics, tuple(expression)),
        )
        self.headers: dict[str, str] = {}


class BadRequest(FhirError):
    status, code = 400, "invalid"


class Malformed(BadRequest):
    code = "structure"


class UnknownParameter(BadRequest):
    code = "not-supported"


class Unauthorized(FhirError):
    status, code = 401, "login"


class Forbidden(FhirError):
    """The token does not enable it, which is said as https://www.rfc-editor.org/rfc/rfc6750#section-3 demands."""

    status, code = 403, "forbidden"

    def __init__(self, diagnostics: str) -> None:
        super().__init__(diagnostics)
        self.headers["WWW-Authenticate"] = 'Bearer error="insufficient_scope"'


class NotFound(FhirError):
    status, code = 404, "not-found"


class MethodNotAllowed(FhirError):
    status, code = 405, "not-supported"


class NotAcceptable(FhirError):
    status, code = 406, "not-supported"


class TooSlow(FhirError):
    status, code = 408, "timeout"


class Conflict(FhirError):
    status, code = 409, "conflict"


class Gone(FhirError):
    status, code = 410, "deleted"


class PreconditionFailed(FhirError):
    status, code = 412, "conflict"


class MultipleMatches(PreconditionFailed):
    code = "multiple-matches"


class TooLarge(FhirError):
    status, code = 413, "too-long"


class UnsupportedMediaType(FhirError):
    status, code = 415, "not-supported"


class Unprocessable(FhirError):
    status, code = 422, "processing"


class NotSupported(FhirError):
    status, code = 501, "not-supported"


class TooManyRequests(FhirError):
    status, code = 429, "throttled"

    def __init__(self, diagnostics: str, *, retry_after: int = 1) -> None:
        super().__init__(diagnostics)
        self.headers["Retry-After"] = str(retry_after)


class Unavailable(FhirError):
    status, code = 503, "transient"

    def __init__(self, diagnostics: str, *, retry_after: int = 1) -> None:
        super().__init__(diagnostics)
        self.headers["Retry-After"] = str(retry_after)

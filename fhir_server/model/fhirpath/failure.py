"""What is wrong with an expression, and where in its text."""

from __future__ import annotations

from fhir_server.errors import BadRequest


class FhirPathError(BadRequest, ValueError):
    """An expression that cannot be read, compiled or, for these data, evaluated. `position` counts characters from 0."""

    def __init__(self, message: str, position: int | None = None, text: str | None = None) -> None:
        self.reason = message
        self.position = position
        self.text = text
        super().__init__(_in_context(message, position, text))

    def within(self, text: str) -> FhirPathError:
        """The same failure, showing the expression it occurred in."""
        return self if self.text is not None else FhirPathError(self.reason, self.position, text)


def _in_context(message: str, position: int | None, text: str | None) -> str:
    if text is None:
        return f"FHIRPath: {message}"
    if position is None:
        return f"FHIRPath: {message} in {text!r}"
    line = text.count("\n", 0, position) + 1
    column = position - (text.rfind("\n", 0, position) + 1) + 1
    return f"FHIRPath: {message} at line {line}, column {column} of {text!r}"

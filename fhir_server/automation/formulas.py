"""FHIRPath in rules: compiled once, given only the variables it names. https://hl7.org/fhirpath/N1/"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from fhir_server.automation import quick
from fhir_server.model import fhirpath

_VARIABLE = re.compile(r"%(?:`([^`]+)`|([A-Za-z_]\w*))")
_OWN = frozenset({"context", "resource", "rootResource", "ucum", "sct", "loinc", "this"})

Lookup = Callable[[str], Any]


class Formula:
    """One expression. `names` are the variables it reads; a variable that has no value is an empty collection."""

    __slots__ = ("_expression", "_quick", "names", "text")

    def __init__(self, text: str) -> None:
        """Raises a FhirError that says what is wrong with the text."""
        self.text = text
        self._expression = fhirpath.compile(text)
        self._quick = quick.condition(fhirpath.parse(text))
        found = (quoted or plain for quoted, plain in _VARIABLE.findall(text))
        self.names = tuple(dict.fromkeys(name for name in found if name not in _OWN))

    def __call__(self, root: Any, lookup: Lookup) -> list[Any]:
        return self._expression(root, **{name: lookup(name) for name in self.names})

    def holds(self, root: Any, lookup: Lookup) -> bool:
        """True only if the result is exactly true: nothing is not true."""
        decided = self.quickly(lookup)
        return self.holds_by_fhirpath(root, lookup) if decided is None else decided

    def quickly(self, lookup: Lookup) -> bool | None:
        """The same without a look at the root; None where the general way has to decide."""
        if self._quick is None:
            return None
        try:
            return self._quick(lookup) is True
        except quick.Unsure:
            return None

    def holds_by_fhirpath(self, root: Any, lookup: Lookup) -> bool:
        """The same, always the general way."""
        result = self(root, lookup)
        return len(result) == 1 and result[0] is True

    def one(self, root: Any, lookup: Lookup) -> Any:
        return next(iter(self(root, lookup)), None)


def formula(expression: Mapping[str, Any] | None) -> Formula | None:
    """An Expression datatype → Formula. Raises ValueError for any language but FHIRPath."""
    if expression is None:
        return None
    language = expression.get("language", "text/fhirpath")
    if language != "text/fhirpath":
        raise ValueError(f"the language {language!r} is not supported, only text/fhirpath")
    return Formula(str(expression["expression"]))

"""Every function an expression may call, by name."""

from __future__ import annotations

from fhir_server.model.fhirpath.functions.boundaries import BOUNDARIES
from fhir_server.model.fhirpath.functions.collections import COLLECTIONS
from fhir_server.model.fhirpath.functions.conversion import CONVERSION
from fhir_server.model.fhirpath.functions.fhir import FHIR
from fhir_server.model.fhirpath.functions.mathematics import MATHEMATICS
from fhir_server.model.fhirpath.functions.strings import STRINGS
from fhir_server.model.fhirpath.functions.table import Function
from fhir_server.model.fhirpath.functions.utility import UTILITY

FUNCTIONS: dict[str, Function] = {
    **COLLECTIONS, **CONVERSION, **STRINGS, **MATHEMATICS, **BOUNDARIES, **UTILITY, **FHIR,
}  # fmt: skip

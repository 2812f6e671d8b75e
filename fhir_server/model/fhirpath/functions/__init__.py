"""Every function an expression may call, by name."""

from __future__ import annotations

from fhir_server.model.fhirpath.functions.collections import COLLECTIONS
from fhir_server.model.fhirpath.functions.fhir import FHIR
from fhir_server.model.fhirpath.functions.table import Function
from fhir_server.model.fhirpath.functions.utility import UTILITY

FUNCTIONS: dict[str, Function] = {**COLLECTIONS, **FHIR, **UTILITY}

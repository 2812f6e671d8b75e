"""FHIRPath, compiled to closures over JSON resources. https://hl7.org/fhirpath/N1/ and https://hl7.org/fhir/R4/fhirpath.html"""

from __future__ import annotations

from fhir_server.model.fhirpath.expression import Expression, compile
from fhir_server.model.fhirpath.failure import FhirPathError
from fhir_server.model.fhirpath.parser import parse
from fhir_server.model.fhirpath.values import Host

__all__ = ["Expression", "FhirPathError", "Host", "compile", "parse"]

"""From a patch as it was sent to a function on resources. https://hl7.org/fhir/R4/http.html#patch"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any

from fhir_server.errors import BadRequest, Malformed, UnsupportedMediaType
from fhir_server.interactions.patch import apply_fhirpath_patch, apply_json_patch
from fhir_server.model.resource import Resource, load_any

JSON_PATCH = "application/json-patch+json"

Change = Callable[[Resource], Resource]


def json_patch(body: bytes) -> Change:
    """The bytes of an RFC 6902 document. Raises Malformed."""
    operations = load_any(body)
    if not isinstance(operations, list):
        raise Malformed("A JSON Patch is an array of operations (RFC 6902)")
    return lambda resource: apply_json_patch(resource, operations)


def fhirpath_patch(parameters: Resource | None) -> Change:
    """https://hl7.org/fhir/R4/fhirpatch.html"""
    if parameters is None or parameters.get("resourceType") != "Parameters":
        raise BadRequest("A FHIRPath Patch is a Parameters resource")
    return lambda resource: apply_fhirpath_patch(resource, parameters)


def from_entry(resource: dict[str, Any]) -> Change:
    """In a bundle a JSON Patch travels as a Binary, a FHIRPath Patch as its Parameters."""
    return json_patch(unwrapped(resource)) if is_wrapped(resource) else fhirpath_patch(resource)


def is_wrapped(resource: Resource) -> bool:
    return resource.get("resourceType") == "Binary"


def unwrapped(resource: Resource) -> bytes:
    """The JSON Patch in a Binary."""
    if resource.get("contentType") != JSON_PATCH:
        raise UnsupportedMediaType(f"A patch in a Binary must be of contentType {JSON_PATCH}")
    try:
        return base64.b64decode(str(resource.get("data", "")), validate=True)
    except binascii.Error:
        raise Malformed("Binary.data of the patch is not base64") from None

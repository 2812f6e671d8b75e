"""A patch applied to a resource: JSON Patch or FHIRPath Patch. https://hl7.org/fhir/R4/http.html#patch

Pure: the resource given is never changed. A patch that is not understood is 400; one that does not fit the resource
(a path that leads nowhere, a test that fails, another identity) is 422.
"""

from __future__ import annotations

from typing import Any

from fhir_server.errors import BadRequest, Unprocessable
from fhir_server.interactions import fhirpath_patch, json_patch
from fhir_server.interactions.json_tree import copied
from fhir_server.model.resource import Resource


def apply_json_patch(resource: Resource, operations: Any) -> Resource:
    """`operations` is the decoded RFC 6902 document. Raises BadRequest or Unprocessable."""
    return _same(resource, json_patch.patched(copied(resource), operations))


def apply_fhirpath_patch(resource: Resource, parameters: Resource) -> Resource:
    """`parameters` is a Parameters resource of operations. Raises BadRequest or Unprocessable."""
    try:
        return _same(resource, fhirpath_patch.patched(copied(resource), parameters))
    except RecursionError:
        raise BadRequest("An expression of the FHIRPath Patch is nested too deep") from None


def _same(before: Resource, after: Any) -> Resource:
    if not isinstance(after, dict):
        raise Unprocessable("The patch leaves no resource")
    for key in ("resourceType", "id"):
        if after.get(key) != before.get(key):
            raise Unprocessable(f"A patch cannot change {key}", expression=[f"{before.get('resourceType')}.{key}"])
    return after

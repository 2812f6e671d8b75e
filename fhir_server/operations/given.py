"""What an operation was given, by GET or POST. https://hl7.org/fhir/R4/operations.html#executing"""

from __future__ import annotations

from fhir_server.errors import BadRequest
from fhir_server.interactions.call import Call, Pairs
from fhir_server.model.resource import Resource


def pairs_of(call: Call) -> Pairs:
    """Query parameters, and the primitive and Coding parts of a Parameters body, as search pairs."""
    pairs = [(name, value) for name, value in call.query if name not in ("_format", "_pretty")]
    body = call.resource
    if body is None:
        return pairs
    if body.get("resourceType") != "Parameters":
        raise BadRequest(f"The body must be a Parameters resource, not {str(body.get('resourceType'))[:60]!r}")
    for part in body.get("parameter", ()):
        pairs.append((str(part.get("name", "")), _text(part)))
    return pairs


def _text(part: Resource) -> str:
    for key, value in part.items():
        if not key.startswith("value"):
            continue
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, str | int):
            return str(value)
        if key == "valueCoding":
            return f"{value.get('system', '')}|{value.get('code', '')}"
        if key == "valueReference" and "reference" in value:
            return str(value["reference"])
        if key == "valuePeriod":
            return f"{value.get('start', '')}/{value.get('end', '')}"
        if hasattr(value, "as_tuple"):
            return str(value)
    raise BadRequest(f"The parameter {part.get('name')!r} has no value that can be used here")

"""The CapabilityStatement, computed from the tables that do the work. https://hl7.org/fhir/R4/capabilitystatement.html

It never claims what is not there: interactions come from the routes' own rules, search parameters from the registry,
operations from their table (given by the layer above through `Server.rooms`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fhir_server import __version__
from fhir_server.errors import BadRequest
from fhir_server.interactions.context import Context, Server
from fhir_server.model import dates
from fhir_server.model.definitions import RESOURCE_TYPES
from fhir_server.model.resource import Resource

MODES = ("full", "normative", "terminology")
INTERACTIONS = (
    "read",
    "vread",
    "update",
    "patch",
    "delete",
    "history-instance",
    "history-type",
    "create",
    "search-type",
)
NORMATIVE = frozenset(
    {"Binary", "Bundle", "CapabilityStatement", "CodeSystem", "Observation", "OperationDefinition", "OperationOutcome"}
    | {"Parameters", "Patient", "StructureDefinition", "ValueSet"}
)
BULK_DATA = "http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data"
# Differs from the spec, said here and in the statement.
NOTES = (
    "Search parameters that are not known are refused with 400 unless Prefer: handling=lenient is sent.",
    "Conditional delete of several resources needs _multiple=true, and deletes them in one transaction.",
    "References are not checked to exist, and a delete does not look for references to what it deletes.",
)


def statement(server: Server, context: Context, mode: str = "full") -> Resource:
    if mode == "terminology":
        return _terminology(server, context)
    if mode not in MODES:
        raise BadRequest(f"mode must be one of {', '.join(MODES)}, not {mode[:40]!r}")
    types = sorted(RESOURCE_TYPES if mode == "full" else RESOURCE_TYPES & NORMATIVE)
    rest: dict[str, Any] = {
        "mode": "server",
        "documentation": " ".join(NOTES),
        "security": server.rooms.get("security", {"cors": True, "description": "Open: no authorization (--open)"}),
        "resource": [_resource(server, resource_type) for resource_type in types],
        "interaction": [{"code": code} for code in ("transaction", "batch", "history-system", "search-system")],
    }
    system = _operations(server, None)
    if system:
        rest["operation"] = system
    rest["compartment"] = [
        f"http://hl7.org/fhir/CompartmentDefinition/{name.lower()}"
        for name in ("Patient", "Practitioner", "RelatedPerson", "Encounter", "Device")
    ]
    return {
        "resourceType": "CapabilityStatement",
        **_head(server, context),
        "rest": [rest],
    }


def _head(server: Server, context: Context) -> dict[str, Any]:
    return {
        "id": "fhir-server",
        "name": "FhirServer",
        "title": "FHIR R4 server",
        "status": "active",
        "date": dates.instant(server.now())[:10],
        "kind": "instance",
        "instantiates": [BULK_DATA],
        "software": {"name": "fhir-server", "version": __version__},
        "implementation": {"description": "FHIR R4 on MongoDB, with automation", "url": context.base},
        "fhirVersion": "4.0.1",
        "format": ["application/fhir+json", "application/fhir+xml", "json", "xml"],
        "patchFormat": ["application/json-patch+json", "application/fhir+json", "application/fhir+xml"],
    }


def _resource(server: Server, resource_type: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": resource_type,
        "profile": f"http://hl7.org/fhir/StructureDefinition/{resource_type}",
        "interaction": [{"code": code} for code in INTERACTIONS],
        "versioning": "versioned-update",
        "readHistory": True,
        "updateCreate": True,
        "conditionalCreate": True,
        "conditionalRead": "full-support",
        "conditionalUpdate": True,
        "conditionalDelete": "multiple",
        "referencePolicy": ["literal", "logical", "local"],
        "searchInclude": ["*", *_includes(server, resource_type)],
        "searchParam": [
            {"name": parameter.code, "definition": parameter.url, "type": parameter.type}
            for parameter in server.registry.parameters(resource_type).values()
            if parameter.state == "ready"
        ],
    }
    operations = _operations(server, resource_type)
    if operations:
        entry["operation"] = operations
    return entry


def _includes(server: Server, resource_type: str) -> list[str]:
    return [
        f"{resource_type}:{parameter.code}"
        for parameter in server.registry.parameters(resource_type).values()
        if parameter.type == "reference" and parameter.state == "ready"
    ]


def _operations(server: Server, resource_type: str | None) -> list[dict[str, str]]:
    rows: Iterable[Any] = server.rooms.get("operations", ())
    return [
        {"name": row.name, "definition": row.definition}
        for row in rows
        if (
            row.system
            if resource_type is None
            else (row.type or row.instance) and resource_type in (row.types or (resource_type,))
        )
    ]


def _terminology(server: Server, context: Context) -> Resource:
    head = _head(server, context)
    for name in ("instantiates", "software", "implementation", "fhirVersion", "format", "patchFormat"):
        head.pop(name)
    return {
        "resourceType": "TerminologyCapabilities",
        **head,
        "software": {"name": "fhir-server", "version": __version__},
        "implementation": {"description": "FHIR R4 on MongoDB, with automation", "url": context.base},
        "codeSearch": "explicit",
    }

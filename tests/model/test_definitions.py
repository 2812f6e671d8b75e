"""The tables hold what R4 says, come from the package they name, and are made the same way each time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fhir_server.model import definitions
from fhir_server.model.definitions import build, codes, codings, compartment, search_parameters, type_definition

TABLES = Path(definitions.__file__).parent / "r4"


def test_resource_types() -> None:
    assert len(definitions.RESOURCE_TYPES) == 146
    assert {"Patient", "Bundle", "Parameters", "Binary", "SubstanceSpecification"} <= definitions.RESOURCE_TYPES
    assert not {"Resource", "DomainResource", "Quantity", "MetadataResource"} & definitions.RESOURCE_TYPES


def test_every_type_and_every_type_it_names() -> None:
    for name in definitions.type_names():
        for element in type_definition(name).elements.values():
            assert definitions.is_type(element.type), f"{name}.{element.key}"
            assert all(target in definitions.RESOURCE_TYPES for target in element.targets), f"{name}.{element.key}"


def test_inherited_elements_come_first() -> None:
    elements = list(type_definition("Observation").elements)
    assert elements[:8] == [
        "id",
        "meta",
        "implicitRules",
        "language",
        "text",
        "contained",
        "extension",
        "modifierExtension",
    ]
    assert elements[8] == "identifier"
    assert list(type_definition("Age").elements) == list(type_definition("Quantity").elements)


@pytest.mark.parametrize(
    ("type_name", "key", "expected"),
    [
        ("Observation", "valueQuantity", {"name": "value", "type": "Quantity", "choice": True, "min": 0, "max": 1}),
        ("Observation", "status", {"type": "code", "min": 1, "modifier": True, "summary": True}),
        ("Observation", "component", {"type": "Observation.component", "max": None}),
        ("Observation.component", "referenceRange", {"type": "Observation.referenceRange", "max": None}),
        ("Observation", "subject", {"type": "Reference", "targets": ("Device", "Group", "Location", "Patient")}),
        ("Questionnaire.item", "item", {"type": "Questionnaire.item"}),
        ("Patient.contact", "gender", {"binding": "http://hl7.org/fhir/ValueSet/administrative-gender"}),
        ("Patient", "id", {"type": "id"}),
        ("Extension", "url", {"type": "uri", "min": 1}),
        ("HumanName", "id", {"type": "string"}),
        ("Bundle.entry", "resource", {"type": "Resource"}),
        ("Narrative", "div", {"type": "xhtml"}),
        ("QuestionnaireResponse", "questionnaire", {"type": "canonical", "targets": ("Questionnaire",)}),
        ("Provenance", "target", {"type": "Reference", "targets": ()}),
    ],
)
def test_element(type_name: str, key: str, expected: dict[str, object]) -> None:
    element = type_definition(type_name).elements[key]
    assert {field: getattr(element, field) for field in expected} == expected


def test_kinds() -> None:
    kinds = {name: type_definition(name).kind for name in ("Patient", "Quantity", "code", "Patient.contact")}
    assert kinds == {
        "Patient": "resource",
        "Quantity": "complex-type",
        "code": "primitive-type",
        "Patient.contact": "backbone",
    }
    with pytest.raises(KeyError):
        type_definition("Nonsense")


def test_codes() -> None:
    gender = "http://hl7.org/fhir/ValueSet/administrative-gender"
    assert codes(gender) == codes(gender + "|4.0.1") == {"male", "female", "other", "unknown"}
    assert ("http://hl7.org/fhir/administrative-gender", "male") in (codings(gender) or ())
    assert codes("http://hl7.org/fhir/ValueSet/mimetypes") is None
    assert codes("http://example.org/unknown") is None


def test_search_parameters() -> None:
    parameters = {p.url: p for p in search_parameters()}
    assert len(parameters) == 1397
    assert not [url for url in parameters if "example" in url]
    code = parameters["http://hl7.org/fhir/SearchParameter/clinical-code"]
    assert (code.code, code.type) == ("code", "token")
    assert "Observation" in code.base
    pair = parameters["http://hl7.org/fhir/SearchParameter/Observation-code-value-quantity"]
    assert pair.components[0] == ("http://hl7.org/fhir/SearchParameter/clinical-code", "code")
    for parameter in parameters.values():
        assert all(base in definitions.RESOURCE_TYPES | {"Resource", "DomainResource"} for base in parameter.base)


def test_compartments() -> None:
    assert compartment("Patient")["Observation"] == ("subject", "performer")
    assert compartment("Device")["Communication"] == ("sender", "recipient")
    assert compartment("Device")["Observation"] == ("subject", "device")
    known = {(base, p.code) for p in search_parameters() for base in p.base}
    for code in ("Patient", "Practitioner", "RelatedPerson", "Encounter", "Device"):
        assert compartment(code).keys() <= definitions.RESOURCE_TYPES
        assert {(name, parameter) for name, listed in compartment(code).items() for parameter in listed} <= known
    with pytest.raises(KeyError):
        compartment("Group")


def test_operations() -> None:
    found = {(o.code, o.resource) for o in definitions.operations()}
    assert ("everything", ("Patient",)) in found
    assert ("validate", ("Resource",)) in found


def test_the_tables_name_their_source() -> None:
    for file in TABLES.glob("*.json"):
        source = json.loads(file.read_text(encoding="utf-8"))["source"]
        assert source["name"] == "hl7.fhir.r4.core-4.0.1.tgz"
        assert len(source["sha256"]) == 64


def test_the_package_gives_these_tables(spec_data: Path, tmp_path: Path) -> None:
    build.build(spec_data / "fhir" / "hl7.fhir.r4.core-4.0.1.tgz", tmp_path)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == {f.name: f.read_bytes() for f in TABLES.iterdir()}

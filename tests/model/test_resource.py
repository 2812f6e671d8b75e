"""JSON as it was sent. https://hl7.org/fhir/R4/json.html"""

from __future__ import annotations

import copy
from decimal import Decimal

import pytest

from fhir_server.errors import Malformed
from fhir_server.model import fhirpath
from fhir_server.model.resource import dump, load
from fhir_server.model.xml import from_xml, to_xml
from fhir_server.search.types.quantity import quantity
from fhir_server.validation import Validator

NUMBERS = [
    "1.00",
    "-0.0",
    "0.0000001",
    "0.000000000",
    "1e5",
    "1E5",
    "1.0E+2",
    "1.5e-3",
    "0E-10",
    "98765432109876543210.1",
]


@pytest.mark.parametrize("text", [*NUMBERS, "123456789012345678901234567890"])
def test_a_number_keeps_the_notation_it_was_sent_in(text: str) -> None:
    body = b'{"resourceType":"Observation","status":"final","code":{"text":"x"},"valueQuantity":{"value":%b}}'
    body %= text.encode()
    resource = load(body)
    assert dump(resource) == body
    assert dump(copy.deepcopy(resource)) == body
    assert f'<value value="{text}"/>' in to_xml(resource).decode()
    assert dump(from_xml(to_xml(resource))["valueQuantity"]) == b'{"value":%b}' % text.encode()


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_is_a_number_in_every_notation(text: str) -> None:
    value = load(b'{"value":%b}' % text.encode())["value"]
    assert value == Decimal(text)
    assert fhirpath.compile("value + 1", "Quantity", strict=False)({"value": value}) == [Decimal(text) + 1]
    (plain,) = quantity({"value": Decimal(text), "unit": "x"})[:1]
    assert plain == quantity({"value": value, "unit": "x"})[0]
    resource = {
        "resourceType": "Observation",
        "status": "final",
        "code": {"text": "x"},
        "valueQuantity": {"value": value},
    }
    assert not [issue for issue in Validator().check(resource) if issue.is_error]


@pytest.mark.parametrize("text", ["1e99999999999999999999", "1." + "9" * 10 + "E-99999999999999999999", "9" * 5000])
def test_a_number_beyond_all_measure_is_refused(text: str) -> None:
    with pytest.raises(Malformed, match="not valid JSON"):
        load(b'{"value":%b}' % text.encode())

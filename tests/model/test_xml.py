"""XML and JSON say the same; what XML cannot say is refused with its place."""

from __future__ import annotations

from typing import Any

import pytest
from lxml import etree

from fhir_server.errors import Malformed
from fhir_server.model import resource
from fhir_server.model.xml import from_xml, to_xml

HEAD = b'<?xml version="1.0" encoding="UTF-8"?>'

PAIRS = [
    (b'{"resourceType":"Patient","id":"a","active":true}', '<id value="a"/><active value="true"/>'),
    (b'{"resourceType":"Patient","active":false,"id":"a"}', '<id value="a"/><active value="false"/>'),
    (
        b'{"resourceType":"Patient","birthDate":"1980","_birthDate":{"id":"b","extension":[{"url":"x","valueCode":"c"}]}}',
        '<birthDate id="b" value="1980"><extension url="x"><valueCode value="c"/></extension></birthDate>',
    ),
    (
        b'{"resourceType":"Patient","name":[{"id":"n","given":["A",null,"C"],"_given":[null,{"extension":[{"url":"x",'
        b'"valueInteger":7}]},{"id":"c"}]},{"family":"B"}]}',
        '<name id="n"><given value="A"/><given><extension url="x"><valueInteger value="7"/></extension></given>'
        '<given id="c" value="C"/></name><name><family value="B"/></name>',
    ),
    (
        '{"resourceType":"Patient","name":[{"text":"<a> & \\"b\\" \'c\'\\n\\t\\r李😀"}]}'.encode(),
        "<name><text value='&lt;a&gt; &amp; \"b\" &apos;c&apos;&#10;&#9;&#13;李😀'/></name>",
    ),
    (
        b'{"resourceType":"Patient","text":{"status":"generated","div":"<div xmlns=\\"http://www.w3.org/1999/xhtml\\">'
        b"a<br></br> &amp; <b  class='c'>d</b></div>\"}}",
        '<text><status value="generated"/><div xmlns="http://www.w3.org/1999/xhtml">a<br></br> &amp; '
        "<b  class='c'>d</b></div></text>",
    ),
    (
        b'{"resourceType":"Patient","contained":[{"resourceType":"Organization","id":"o"},{"resourceType":"Basic","id":"b"}],'
        b'"managingOrganization":{"reference":"#o"}}',
        '<contained><Organization><id value="o"/></Organization></contained><contained><Basic><id value="b"/></Basic>'
        '</contained><managingOrganization><reference value="#o"/></managingOrganization>',
    ),
]
NUMBERS = [
    "0",
    "-0.0",
    "1",
    "1.0",
    "1.00",
    "1E-18",
    "123456789012345678901234567890.10",
    "1E+10",
    "-2.5E-7",
]


def wrapped(inside: str, name: str = "Patient") -> bytes:
    return HEAD + f'<{name} xmlns="http://hl7.org/fhir">{inside}</{name}>'.encode()


def canonical(body: bytes) -> bytes:
    return etree.tostring(etree.fromstring(body), method="c14n")


@pytest.mark.parametrize(("body", "inside"), PAIRS)
def test_both_ways(body: bytes, inside: str) -> None:
    value = resource.load(body)
    assert canonical(to_xml(value)) == canonical(wrapped(inside))
    assert from_xml(to_xml(value)) == value
    assert from_xml(wrapped(inside)) == value
    assert from_xml(to_xml(value, pretty=True)) == value


@pytest.mark.parametrize("digits", NUMBERS)
def test_digits(digits: str) -> None:
    value = resource.load(
        f'{{"resourceType":"Observation","status":"final","code":{{"text":"a"}},"valueQuantity":{{"value":{digits}}}}}'.encode()
    )
    assert f'<value value="{digits}"/>'.encode() in to_xml(value)
    assert resource.dump(from_xml(to_xml(value))) == resource.dump(value)


def test_the_narrative_keeps_its_bytes() -> None:
    div = (
        '<div xmlns="http://www.w3.org/1999/xhtml" class="a>b"><p/><p></p><!-- c --> &#160;&quot;\n  <i\n>x</i></div >'
    )
    value = {"resourceType": "Patient", "text": {"status": "generated", "div": div}}
    assert from_xml(to_xml(value)) == value
    assert div.encode() in to_xml(value)


def test_a_narrative_whose_namespace_is_declared_outside() -> None:
    body = wrapped('<text><status value="generated"/><h:div>a<h:br/></h:div></text>').replace(
        b"<Patient ", b'<Patient xmlns:h="http://www.w3.org/1999/xhtml" '
    )
    assert from_xml(body)["text"]["div"] == '<h:div xmlns:h="http://www.w3.org/1999/xhtml">a<h:br/></h:div>'


def test_comments_and_instructions_are_dropped() -> None:
    assert from_xml(wrapped('<!-- a --><?b c?>\n <id value="d"/>')) == {"resourceType": "Patient", "id": "d"}


def test_a_schema_location_is_allowed() -> None:
    body = (
        b'<Patient xmlns="http://hl7.org/fhir" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
        b' xsi:schemaLocation="http://hl7.org/fhir patient.xsd"><id value="a"/></Patient>'
    )
    assert from_xml(body) == {"resourceType": "Patient", "id": "a"}


REFUSED: list[tuple[bytes, str, tuple[str, ...]]] = [
    (wrapped("<foo/>"), "no element <foo>", ("Patient",)),
    (wrapped("<contact><nam/></contact>"), "Patient.contact has no element <nam>", ("Patient.contact",)),
    (wrapped('<active value="yes"/>'), "must be true or false", ("Patient.active",)),
    (wrapped('<multipleBirthInteger value="1.5"/>'), "is no integer", ("Patient.multipleBirthInteger",)),
    (wrapped('<active value="true" x="1"/>'), "no attribute 'x'", ("Patient.active",)),
    (wrapped('<name value="a"/>'), "no attribute 'value'", ("Patient.name",)),
    (wrapped("<birthDate/>"), "neither a value nor an extension", ("Patient",)),
    (wrapped('<birthDate id="a"/><active value="true"/>'), "out of order", ("Patient",)),
    (wrapped('<active value="true"/><active value="true"/>'), "does not repeat", ("Patient",)),
    (wrapped("<active>true</active>"), "Text is not allowed", ("Patient.active",)),
    (wrapped("<text><div>a</div></text>"), "namespace", ("Patient.text",)),
    (wrapped('<div xmlns="http://www.w3.org/1999/xhtml">a</div>'), "no element <div>", ("Patient",)),
    (wrapped("<contained/>"), "must hold a resource", ("Patient",)),
    (wrapped("<contained><Basic/><Basic/></contained>"), "one resource, not two", ("Patient.contained",)),
    (wrapped("<contained><Foo/></contained>"), "no resource type", ("Patient.contained",)),
    (wrapped("", "Foo"), "no resource type", ()),
    (wrapped('<extension xmlns="http://example.org" url="a"/>'), "not in the namespace", ("Patient",)),
    (b"<Patient/>", "not in the namespace", ()),
    (b'<Patient xmlns="http://hl7.org/fhir">', "not well-formed", ()),
    (b"", "not well-formed", ()),
    (b'{"resourceType":"Patient"}', "not well-formed", ()),
    (b'<!DOCTYPE Patient [<!ENTITY a "b">]>' + wrapped("")[len(HEAD) :], "document type", ()),
    (
        b'<!DOCTYPE Patient SYSTEM "file:///etc/passwd">' + wrapped("")[len(HEAD) :],
        "document type",
        (),
    ),
    (wrapped('<id value="&nbsp;"/>'), "not well-formed", ()),
    ("<Patient xmlns='http://hl7.org/fhir'/>".encode("utf-16"), "must be UTF-8", ()),
    ("<?xml version='1.0' encoding='latin-1'?><Patient/>".encode("latin-1"), "must be UTF-8", ()),
    (wrapped("<extension url='a'>" * 101), "nested deeper", ("Patient" + ".extension" * 100,)),
    (
        wrapped('<text><status value="generated"/><div xmlns="http://www.w3.org/1999/xhtml">' + "<b>" * 101),
        "nested deeper",
        ("Patient.text",),
    ),
    (wrapped('<multipleBirthInteger value="' + "9" * 5000 + '"/>'), "is no integer", ("Patient.multipleBirthInteger",)),
]


@pytest.mark.parametrize(("body", "says", "expression"), REFUSED)
def test_refused(body: bytes, says: str, expression: tuple[str, ...]) -> None:
    with pytest.raises(Malformed, match=says) as caught:
        from_xml(body)
    assert caught.value.issues[0].expression == expression


@pytest.mark.parametrize("value", [{"resourceType": "Patient", "foo": 1}, {"resourceType": "Foo"}, {}])
def test_what_is_not_defined_is_not_written(value: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        to_xml(value)

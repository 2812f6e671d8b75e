"""A resource as XML and back, from the same definitions as its JSON. https://hl7.org/fhir/R4/xml.html

Writing puts elements into the order of the definitions; reading asks for that order, because XML's schema does. Decimals
keep their digits, primitives their ids and extensions, the narrative's XHTML its bytes.

Differs from the spec: comments and processing instructions are dropped, because JSON has no place for them.
"""

from __future__ import annotations

import codecs
import re
from typing import Any, Final
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

from lxml import etree

from fhir_server.errors import Malformed
from fhir_server.model.definitions import RESOURCE_TYPES, Element, TypeDefinition, type_definition
from fhir_server.model.resource import MAX_DEPTH, Resource, number

FHIR: Final = "http://hl7.org/fhir"
XHTML: Final = "http://www.w3.org/1999/xhtml"
_SCHEMA_LOCATION: Final = "http://www.w3.org/2001/XMLSchema-instance schemaLocation"

_DECLARATION: Final = '<?xml version="1.0" encoding="UTF-8"?>'
# Whitespace that a reader would otherwise turn into spaces inside an attribute.
_KEPT: Final = {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"}
_WHOLE: Final = re.compile(r"-?(?:0|[1-9][0-9]*)")
_DECIMAL: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_START_TAG: Final = re.compile(rb"<[^\s/>]+(?:\s+[^\s=]+\s*=\s*(?:\"[^\"]*\"|'[^']*'))*\s*/?>")
_LONGEST_NUMBER: Final = 400  # digits; reading more costs more than any measured value needs


def to_xml(resource: Resource, *, pretty: bool = False) -> bytes:
    """Mapping → UTF-8 XML. Raises Malformed where the mapping holds what R4 does not define."""
    out: list[str] = [_DECLARATION]
    _Writer(out, pretty).resource(resource, 0, f' xmlns="{FHIR}"')
    return "".join(out).encode()


def indented(document: bytes) -> bytes:
    """What `to_xml` wrote, with a line for each element; the narrative, where spaces are text, stays as it is."""
    root = etree.fromstring(document, etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True))
    _indent(root, "\n")
    return etree.tostring(root, xml_declaration=True, encoding="UTF-8") + b"\n"


def _indent(element: etree._Element, line: str) -> None:
    children = list(element)
    if not children or element.tag == f"{{{XHTML}}}div":
        return
    element.text = line + "  "
    for child in children:
        _indent(child, line + "  ")
        child.tail = line + "  "
    children[-1].tail = line


def from_xml(body: bytes) -> Resource:
    """UTF-8 XML → mapping, as `model.resource.load` gives it. Raises Malformed naming the element and the line."""
    return _Reader(body).read()


def is_primitive(element: Element) -> bool:
    return element.type[0].islower()


# ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Writer:
    def __init__(self, out: list[str], pretty: bool) -> None:
        self.out = out
        self.pretty = pretty

    def line(self, depth: int) -> None:
        if self.pretty:
            self.out.append("\n" + "  " * depth)

    def resource(self, value: Any, depth: int, namespace: str = "") -> None:
        name = value.get("resourceType") if isinstance(value, dict) else None
        if name not in RESOURCE_TYPES:
            raise Malformed(f"{name!r} is no resource type of R4")
        self.line(depth)
        self.out.append(f"<{name}{namespace}>")
        self.children(value, type_definition(name), depth)
        self.line(depth)
        self.out.append(f"</{name}>")

    def children(self, value: dict[str, Any], definition: TypeDefinition, depth: int) -> None:
        elements = definition.elements
        present: dict[str, Element] = {}
        for key in value:
            if key == "resourceType" and definition.kind == "resource":
                continue
            element = elements.get(key) or elements.get(key.removeprefix("_"))
            if element is None:
                raise Malformed(f"{definition.name} has no element {key!r}", expression=(definition.name,))
            present[element.key] = element
        for element in sorted(present.values(), key=_order):
            if not _is_attribute(element, definition):
                self.element(element, value.get(element.key), value.get("_" + element.key), depth + 1)

    def element(self, element: Element, value: Any, sibling: Any, depth: int) -> None:
        repeats = element.max != 1
        values = value if repeats and value is not None else [value]
        if not is_primitive(element):
            for item in values:
                self.complex(element, item, depth)
            return
        siblings = sibling if repeats and sibling is not None else [sibling]
        for index in range(max(len(values), len(siblings))):
            item = values[index] if index < len(values) else None
            self.primitive(element, item, siblings[index] if index < len(siblings) else None, depth)

    def complex(self, element: Element, value: Any, depth: int) -> None:
        self.line(depth)
        if element.type == "Resource":
            self.out.append(f"<{element.key}>")
            self.resource(value, depth + 1)
        else:
            definition = type_definition(element.type)
            self.out.append(f"<{element.key}{_attributes(value, element.type)}>")
            self.children(value, definition, depth)
        self.line(depth)
        self.out.append(f"</{element.key}>")

    def primitive(self, element: Element, value: Any, sibling: Any, depth: int) -> None:
        self.line(depth)
        if element.type == "xhtml":
            self.out.append(str(value))
            return
        extra = sibling or {}
        self.out.append(f"<{element.key}{_attributes(extra, 'Element')}")
        if value is not None:
            self.out.append(f" value={quoteattr(_text(value), _KEPT)}")
        if "extension" in extra:
            self.out.append(">")
            self.children({"extension": extra["extension"]}, type_definition("Element"), depth)
            self.line(depth)
            self.out.append(f"</{element.key}>")
        else:
            self.out.append("/>")


def _order(element: Element) -> int:
    return element.order


def _is_attribute(element: Element, definition: TypeDefinition) -> bool:
    if element.key == "id":
        return definition.kind != "resource"
    return element.key == "url" and definition.name == "Extension"


def _attributes(value: dict[str, Any], type_name: str) -> str:
    """The `id` of any element and the `url` of an Extension."""
    text = f" id={quoteattr(value['id'], _KEPT)}" if "id" in value else ""
    return f"{text} url={quoteattr(value['url'], _KEPT)}" if type_name == "Extension" and "url" in value else text


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Frame:
    """One open element: what it may hold and what it held so far."""

    __slots__ = ("definition", "element", "last", "name", "primitive", "resource", "values", "wrapper")

    def __init__(self, name: str, element: Element | None, definition: TypeDefinition) -> None:
        self.name = name
        self.element = element  # how the parent knows it; None for a resource
        self.definition = definition
        self.wrapper = element is not None and element.type == "Resource"
        self.primitive: Any = None
        self.resource: Resource | None = None
        self.values: dict[str, tuple[Element, list[Any], list[Any]]] = {}  # by key: values and their siblings
        self.last = -1  # order of the last child


class _Reader:
    def __init__(self, body: bytes) -> None:
        self.body = body
        self.frames: list[_Frame] = []
        self.result: Resource | None = None
        self.div_depth = 0  # open elements inside the narrative's div, itself included
        self.div_start = 0
        self.prefixes: dict[str, str] = {}  # declared outside the div
        parser = expat.ParserCreate("UTF-8", " ")
        parser.buffer_text = True
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartNamespaceDeclHandler = self._namespace
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        self.parser = parser

    def read(self) -> Resource:
        if self.body[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise self.refuse("The body must be UTF-8, not UTF-16")
        try:
            self.parser.Parse(self.body, True)
        except expat.ExpatError as error:
            raise Malformed(f"The body is not well-formed XML: {error}") from None
        if self.result is None:
            raise Malformed("The body must be one resource")
        return self.result

    def refuse(self, text: str) -> Malformed:
        path = ".".join(frame.name for frame in self.frames)
        return Malformed(f"{text} (line {self.parser.CurrentLineNumber})", expression=(path,) if path else ())

    def _declaration(self, _version: str, encoding: str | None, _standalone: int) -> None:
        if encoding is not None and encoding.upper() not in ("UTF-8", "US-ASCII"):
            raise self.refuse(f"The body must be UTF-8, not {encoding}")

    def _doctype(self, *_: Any) -> None:
        raise self.refuse("A document type declaration is not allowed")

    def _characters(self, text: str) -> None:
        if not self.div_depth and text.strip():
            raise self.refuse(f"Text is not allowed here: {text.strip()[:40]!r}; values are attributes")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if len(self.frames) + self.div_depth > MAX_DEPTH:
            raise self.refuse(f"The body is nested deeper than {MAX_DEPTH} levels")
        if self.div_depth:
            self.div_depth += 1
            return
        namespace, _, name = tag.rpartition(" ")
        if self.frames and namespace == XHTML and name == "div":
            self._open_div()
            return
        if namespace != FHIR:
            raise self.refuse(f"<{name}> is not in the namespace {FHIR}")
        if not self.frames or self.frames[-1].wrapper:
            self._open_resource(name, attributes)
        else:
            self._open_element(name, attributes)

    def _open_resource(self, name: str, attributes: dict[str, str]) -> None:
        if name not in RESOURCE_TYPES:
            raise self.refuse(f"<{name}> is no resource type of R4")
        if self.frames and self.frames[-1].resource is not None:
            raise self.refuse(f"<{self.frames[-1].name}> holds one resource, not two")
        unknown = [key for key in attributes if key != _SCHEMA_LOCATION]
        if unknown:
            raise self.refuse(f"<{name}> has no attribute {unknown[0]!r}")
        self.frames.append(_Frame(name, None, type_definition(name)))

    def _child(self, name: str) -> Element:
        parent = self.frames[-1]
        element = parent.definition.elements.get(name)
        if element is None or _is_attribute(element, parent.definition):
            raise self.refuse(f"{parent.definition.name} has no element <{name}>")
        known = parent.values.get(name)
        if element.order < parent.last:
            raise self.refuse(f"<{name}> is out of order in {parent.definition.name}")
        if known is not None and element.max == 1:
            raise self.refuse(f"<{name}> does not repeat in {parent.definition.name}")
        parent.last = element.order
        return element

    def _open_element(self, name: str, attributes: dict[str, str]) -> None:
        element = self._child(name)
        if element.type == "xhtml":
            raise self.refuse(f"<div> must be in the namespace {XHTML}")
        primitive = is_primitive(element)
        definition = type_definition("Element" if primitive else element.type)
        frame = _Frame(name, element, definition)
        self.frames.append(frame)
        for key, text in attributes.items():
            if primitive and key == "value":
                frame.primitive = self._value(element.type, text)
            elif key in definition.elements and _is_attribute(definition.elements[key], definition):
                frame.values[key] = (definition.elements[key], [text], [None])
            else:
                raise self.refuse(f"<{name}> has no attribute {key!r}")

    def _value(self, type_name: str, text: str) -> Any:
        if type_name == "boolean":
            if text not in ("true", "false"):
                raise self.refuse(f"{text!r} must be true or false")
            return text == "true"
        if type_name in ("integer", "positiveInt", "unsignedInt", "decimal"):
            if len(text) <= _LONGEST_NUMBER and _WHOLE.fullmatch(text):
                return int(text)
            if type_name != "decimal" or len(text) > _LONGEST_NUMBER or not _DECIMAL.fullmatch(text):
                raise self.refuse(f"{text[:40]!r} is no {type_name}")
            return number(text)
        return text

    def _open_div(self) -> None:
        element = self.frames[-1].definition.elements.get("div")
        if element is None or element.type != "xhtml":
            raise self.refuse(f"{self.frames[-1].definition.name} has no element <div>")
        self._child("div")
        self.div_depth = 1
        self.div_start = self.parser.CurrentByteIndex

    def _end(self, _tag: str) -> None:
        if self.div_depth:
            self.div_depth -= 1
            if not self.div_depth:
                self._close_div()
            return
        frame = self.frames.pop()
        if frame.element is None:
            resource = {"resourceType": frame.name, **_assemble(frame)}
            if self.frames:
                self.frames[-1].resource = resource
            else:
                self.result = resource
            return
        element, parent = frame.element, self.frames[-1]
        _, values, siblings = parent.values.setdefault(element.key, (element, [], []))
        if frame.wrapper:
            if frame.resource is None:
                raise self.refuse(f"<{frame.name}> must hold a resource")
            values.append(frame.resource)
            siblings.append(None)
            return
        content = _assemble(frame)
        if not is_primitive(element):
            values.append(content)
            siblings.append(None)
        elif frame.primitive is None and not content:
            raise self.refuse(f"<{frame.name}> has neither a value nor an extension")
        else:
            values.append(frame.primitive)
            siblings.append(content or None)

    def _close_div(self) -> None:
        end = self.parser.CurrentByteIndex
        tag = _START_TAG.match(self.body, self.div_start)
        end = tag.end() if tag and tag[0].endswith(b"/>") else self.body.index(b">", end) + 1
        text = self.body[self.div_start : end]
        frame = self.frames[-1]
        frame.values["div"] = (frame.definition.elements["div"], [self._alone(text)], [None])

    def _namespace(self, prefix: str | None, uri: str) -> None:
        if not self.div_depth and prefix is not None:
            self.prefixes[prefix] = uri

    def _alone(self, div: bytes) -> str:
        """The div's own bytes; written anew where its namespace was declared further out."""
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
        try:
            if etree.fromstring(div, parser).tag == f"{{{XHTML}}}div":
                return div.decode()
        except etree.XMLSyntaxError:
            pass  # a prefix without its declaration
        declared = "".join(f" xmlns:{prefix}={quoteattr(uri)}" for prefix, uri in self.prefixes.items())
        try:
            around = etree.fromstring(f"<around{declared}>".encode() + div + b"</around>", parser)
        except etree.XMLSyntaxError as error:
            raise self.refuse(f"The narrative is not well-formed XHTML: {error.msg}") from None
        etree.cleanup_namespaces(around)
        return etree.tostring(around[0], encoding="unicode", with_tail=False)


def _assemble(frame: _Frame) -> dict[str, Any]:
    """What an element held, as JSON: arrays where it repeats, `_key` where a primitive had more than a value."""
    content: dict[str, Any] = {}
    for key, (element, values, siblings) in frame.values.items():
        if any(value is not None for value in values):
            content[key] = values[0] if element.max == 1 else values
        if any(sibling is not None for sibling in siblings):
            content["_" + key] = siblings[0] if element.max == 1 else siblings
    return content

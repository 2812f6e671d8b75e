"""XHTML in Narrative.div: well formed, no scripts, nothing loaded from elsewhere. https://hl7.org/fhir/R4/narrative.html#rules

Elements and attributes are those of chapters 7-11 (except section 4 of chapter 9) and 15 of HTML 4.0, `<a>` and `<img>`.
"""

from __future__ import annotations

import re
from typing import Final

from lxml import etree

XHTML: Final = "http://www.w3.org/1999/xhtml"
_PREFIX: Final = f"{{{XHTML}}}"
LARGEST: Final = 4 * 1024 * 1024  # characters


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ELEMENTS: Final = _words(
    "a abbr acronym address b big blockquote br caption cite code col colgroup dd del dfn div dl dt em h1 h2 h3 h4 h5 h6 hr i"
    " img ins kbd li ol p pre q s samp small span strike strong sub sup table tbody td tfoot th thead tr tt u ul var"
    " center font"
)
_EVERYWHERE: Final = _words("class dir id lang style title align {http://www.w3.org/XML/1998/namespace}lang")
_CELL: Final = _words("abbr axis bgcolor char charoff colspan headers height nowrap rowspan scope valign width")
_ATTRIBUTES: Final[dict[str, frozenset[str]]] = {
    "a": _words("accesskey charset coords href hreflang name rel rev shape tabindex type"),
    "img": _words("alt border height hspace longdesc name src usemap vspace width"),
    "table": _words("bgcolor border cellpadding cellspacing frame rules summary width"),
    "td": _CELL,
    "th": _CELL,
    "tr": _words("bgcolor char charoff valign"),
    "thead": _words("char charoff valign"),
    "tbody": _words("char charoff valign"),
    "tfoot": _words("char charoff valign"),
    "col": _words("char charoff span valign width"),
    "colgroup": _words("char charoff span valign width"),
    "blockquote": frozenset(["cite"]),
    "q": frozenset(["cite"]),
    "ins": frozenset(["cite", "datetime"]),
    "del": frozenset(["cite", "datetime"]),
    "ol": frozenset(["compact", "start", "type"]),
    "ul": frozenset(["compact", "type"]),
    "dl": frozenset(["compact"]),
    "li": frozenset(["type", "value"]),
    "br": frozenset(["clear"]),
    "hr": frozenset(["noshade", "size", "width"]),
    "pre": frozenset(["width"]),
    "font": frozenset(["color", "face", "size"]),
}
_LINK: Final = re.compile(r"(?:https?:|mailto:|tel:|urn:|#|[^:/?#]*(?:[/?#]|$))", re.IGNORECASE)
# Differs from the spec: pictures from elsewhere are refused, because showing the record would tell that place about it.
_IMAGE: Final = re.compile(r"(?:#|data:image/|(?!//)[^:/?#]*(?:[/?#]|$))", re.IGNORECASE)
_ACTIVE_STYLE: Final = re.compile(
    r"expression\s*\(|javascript:|@import|behavior\s*:|-moz-binding|url\s*\(|\\", re.IGNORECASE
)
_VISIBLE: Final = re.compile(r"\S")


def problems(div: str) -> list[str]:
    """What is wrong with a Narrative.div, one sentence each; empty when it is right."""
    if len(div) > LARGEST:
        return [f"The narrative is longer than {LARGEST} characters"]
    if "<!DOCTYPE" in div or "<!ENTITY" in div:
        return ["The narrative must not declare a DOCTYPE or entities"]
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(div.encode(), parser)
    except etree.XMLSyntaxError as error:
        return [f"The narrative is not well-formed XHTML: {error.msg}"]
    if root.tag != f"{_PREFIX}div":
        return ['The narrative must be one <div xmlns="http://www.w3.org/1999/xhtml">']
    found: list[str] = []
    content = False
    for element in root.iter():
        if not isinstance(element.tag, str):
            if element.tag is not etree.Comment:
                found.append("The narrative must not hold processing instructions or undeclared entities")
            continue
        name = element.tag.removeprefix(_PREFIX)
        content = content or name == "img" or bool(_VISIBLE.search((element.text or "") + (element.tail or "")))
        if name not in ELEMENTS or not element.tag.startswith(_PREFIX):
            found.append(f"<{name}> is not allowed in a narrative")
            continue
        if element.attrib:
            found += _attributes(name, element)
    if not content:
        found.append("The narrative is empty: it must hold text or an image (txt-2)")
    return found


def _attributes(name: str, element: etree._Element) -> list[str]:
    found: list[str] = []
    for raw_key, raw_value in element.attrib.items():
        key, value = str(raw_key), str(raw_value)
        plain = "".join(value.split())  # browsers skip white space inside "java\nscript:"
        if key not in _EVERYWHERE and key not in _ATTRIBUTES.get(name, ()):
            found.append(f"The attribute {key} is not allowed on <{name}> in a narrative")
        elif (key == "href" and not _LINK.match(plain)) or (key == "src" and not _IMAGE.match(plain)):
            found.append(
                f"{key}='{value[:40]}' on <{name}> could run code or load something: not allowed in a narrative"
            )
        elif key == "style" and _ACTIVE_STYLE.search(plain):
            found.append(f"style on <{name}> could run code or load something: not allowed in a narrative")
    return found

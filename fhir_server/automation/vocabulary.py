"""The names our rules are written with: extensions, code systems, and how to read them. docs/hooks.md explains each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

BASE: Final = "https://fhir-server.org/fhir"
PATIENT_TAGS: Final = f"{BASE}/CodeSystem/patient-tags"
ROLES: Final = f"{BASE}/CodeSystem/roles"
STATUS_REASONS: Final = f"{BASE}/CodeSystem/automation-status-reasons"
IDENTIFIERS: Final = f"{BASE}/NamingSystem/automation"  # of Task.identifier: rule, action, patient, episode
DEVICE: Final = "Device/automation"  # who acts
TRANSLATION: Final = "http://hl7.org/fhir/StructureDefinition/translation"

Element = Mapping[str, Any]


def structure(name: str) -> str:
    """The url of one of our extensions."""
    return f"{BASE}/StructureDefinition/{name}"


def value(element: Element) -> Any:
    """The `value[x]` of an extension (or of anything with one), None without."""
    return next((content for key, content in element.items() if key.startswith("value")), None)


def extensions(element: Element, name: str) -> Iterator[Element]:
    url = structure(name)
    return (one for one in element.get("extension", ()) if one.get("url") == url)


def extension(element: Element, name: str) -> Element | None:
    return next(extensions(element, name), None)


def extension_value(element: Element, name: str) -> Any:
    found = extension(element, name)
    return None if found is None else value(found)


def parts(element: Element, name: str) -> list[Any]:
    """The values of a complex extension's parts called `name`."""
    return [value(one) for one in element.get("extension", ()) if one.get("url") == name]


def part(element: Element, name: str, default: Any = None) -> Any:
    return next(iter(parts(element, name)), default)


def translation(chinese: str) -> dict[str, Any]:
    """What stands beside a text (as `_text`) to say it in Chinese. https://hl7.org/fhir/R4/extension-translation.html"""
    parts = [{"url": "lang", "valueCode": "zh"}, {"url": "content", "valueString": chinese}]
    return {"extension": [{"url": TRANSLATION, "extension": parts}]}


def split_canonical(canonical: str) -> tuple[str, str]:
    """`url|version` → (url, version); the version is empty where none is given."""
    url, _, version = canonical.partition("|")
    return url, version


def canonical(resource: Element) -> str:
    """`url|version` of a definition."""
    return f"{resource['url']}|{resource.get('version', '')}".rstrip("|")

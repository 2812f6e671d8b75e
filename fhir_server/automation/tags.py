"""Tags on the patient: `Patient.meta.tag`, each with the rule that set it. https://hl7.org/fhir/R4/resource.html#Meta"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fhir_server.automation.vocabulary import PATIENT_TAGS, structure
from fhir_server.model.resource import Resource

SET_BY = structure("set-by")


def codes(patient: Resource | None) -> frozenset[str]:
    """What `%tags` is: the codes of the patient's tags in our code system."""
    if patient is None:
        return frozenset()
    return frozenset(
        tag["code"]
        for tag in patient.get("meta", {}).get("tag", ())
        if tag.get("system") == PATIENT_TAGS and "code" in tag
    )


def set_by_rule(tag: Mapping[str, Any]) -> str:
    """The rule (canonical) that set the tag; empty for one a person set."""
    return next((str(e.get("valueCanonical", "")) for e in tag.get("extension", ()) if e.get("url") == SET_BY), "")


def tagged(
    patient: Resource, wanted: Mapping[tuple[str, str], tuple[str, str]], canonicals: Mapping[str, str]
) -> Resource | None:
    """The Patient with exactly the wanted tags of automation; None if it has them. Tags set by people stay as they are."""
    present = list(patient.get("meta", {}).get("tag", ()))
    kept: list[Any] = []
    have: set[tuple[str, str]] = set()
    for tag in present:
        key = (str(tag.get("system", "")), str(tag.get("code", "")))
        if set_by_rule(tag) and key not in wanted:
            continue
        kept.append(tag)
        have.add(key)
    for (system, code), (display, rule) in wanted.items():
        if (system, code) not in have:
            extension = [{"url": SET_BY, "valueCanonical": canonicals.get(rule, rule)}]
            coding: dict[str, Any] = {"extension": extension, "system": system, "code": code}
            kept.append({**coding, "display": display} if display else coding)
    if kept == present:
        return None
    meta = {key: value for key, value in patient.get("meta", {}).items() if key != "tag"}
    if kept:
        meta["tag"] = kept
    return {**patient, "meta": meta}

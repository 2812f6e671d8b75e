"""The database indexes that search parameters want; none is advertised without one.

A parameter's index is partial: only resources that have a value are in it. It ends in `_id`, so that pages in the default
order come out of it sorted. Composites ask their components' indexes. The types that fill up have timelines: "this
patient's results of this code, newest first" is one scan, without sorting. 64 is MongoDB's limit for a collection.
"""

from __future__ import annotations

from hashlib import blake2b

from fhir_server.search.entries import CONTAINED, IDENTIFIER
from fhir_server.search.fulltext import CONTENT, TEXT
from fhir_server.search.registry import Parameter, Registry
from fhir_server.store.documents import ID, entry_path
from fhir_server.store.protocol import CUSTOM, Index

# type → (reference that can occur once, date, what else it is looked up by)
TIMELINES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "Observation": ("subject", "date", ("code", "category")),
    "DiagnosticReport": ("subject", "date", ("code",)),
    "Condition": ("subject", "recorded-date", ("code",)),
    "Procedure": ("subject", "date", ()),
    "Encounter": ("subject", "date", ()),
    "MedicationRequest": ("subject", "authoredon", ()),
    "MedicationAdministration": ("subject", "effective-time", ()),
    "MedicationStatement": ("subject", "effective", ()),
    "Immunization": ("patient", "date", ()),
    "ServiceRequest": ("subject", "authored", ()),
    "RiskAssessment": ("subject", "date", ()),
    "CarePlan": ("subject", "date", ()),
    "DocumentReference": ("subject", "date", ()),
    "QuestionnaireResponse": ("subject", "authored", ()),
    "Communication": ("subject", "sent", ()),
    "Task": ("patient", "authored-on", ()),
}

MOST = 60  # of MongoDB's 64: its own and the store's count as well; what a parameter costs is paid only by who has it


def indexes(registry: Registry, resource_type: str) -> list[Index]:
    """In order of importance."""
    timeline = _timeline(registry, resource_type)
    covered = {timeline[0].keys[0][0]} if timeline else set()
    found: dict[str, Index] = {index.name: index for index in timeline}
    parameters = registry.parameters(resource_type)
    for parameter in parameters.values():
        if not parameter.field or parameter.type == "composite":
            continue
        path = entry_path(parameter.field)
        if path not in covered:
            for keys in _keys(parameter, path):
                # `$elemMatch` on an array implies that the array is there, not that its elements have the key.
                index = _index(keys, keys[0][0] if parameter.single else path, custom=parameter.custom)
                found[index.name] = index
    identifiers = sorted(
        {p.field for p in parameters.values() if p.type == "reference" and "Reference" in p.fhir_types}
    )
    extra = [_index(((f"{entry_path(CONTAINED)}.p", 1), (ID, 1)), entry_path(CONTAINED))]
    extra += [_index(((entry_path(f + IDENTIFIER), 1), (ID, 1)), entry_path(f + IDENTIFIER)) for f in identifiers]
    extra += [_index(((entry_path(words), 1), (ID, 1)), entry_path(words)) for words in (TEXT, CONTENT)]
    for index in extra:
        found.setdefault(index.name, index)
    assert len(found) <= MOST, resource_type
    return list(found.values())


def _keys(parameter: Parameter, path: str) -> list[tuple[tuple[str, int], ...]]:
    if parameter.type == "date":
        found: list[tuple[tuple[str, int], ...]] = [((f"{path}.lo", 1), (ID, 1))]
        if not parameter.short:  # a long period may have begun long before the time that is asked for
            found.append(((f"{path}.hi", 1), (ID, 1)))
        return found
    if parameter.type == "number":
        return [((f"{path}.lo", 1), (ID, 1))]
    if parameter.type == "quantity":
        return [((f"{path}.k", 1), (f"{path}.lo", 1), (ID, 1))]
    if parameter.type == "special":
        return [((f"{path}.lat", 1), (ID, 1))]
    return [((path, 1), (ID, 1))]


def _timeline(registry: Registry, resource_type: str) -> list[Index]:
    if resource_type not in TIMELINES:
        return []
    who, when, whats = TIMELINES[resource_type]
    reference, date = registry.parameter(resource_type, who), registry.parameter(resource_type, when)
    if reference is None or date is None or not (reference.single and date.single):
        return []
    start, end = entry_path(reference.field), f"{entry_path(date.field)}.lo"
    found = [_index(((start, 1), (entry_path(what), 1), (end, 1), (ID, 1)), start) for what in whats]
    return [_index(((start, 1), (end, 1), (ID, 1)), start), *found]


def _index(keys: tuple[tuple[str, int], ...], exists: str, *, custom: bool = False) -> Index:
    """Named by what it is, so that another definition is another index.

    The store drops indexes nobody wants, but not those of custom parameters: it opens before they are known.
    """
    digest = blake2b(repr((keys, exists)).encode(), digest_size=4).hexdigest()
    return Index(f"{CUSTOM if custom else ''}{keys[0][0]}-{digest}", keys, {exists: {"$exists": True}})

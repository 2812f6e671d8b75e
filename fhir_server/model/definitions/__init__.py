"""What R4 says each type holds: elements, codes, rules, search parameters, compartments. https://hl7.org/fhir/R4/

The tables in `r4/` are made by `build.py`; reading them is lazy: a type is decoded when it is first asked for.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec


class Invariant(NamedTuple):
    """A rule of a type or element; `severity` is error or warning, `expression` FHIRPath, true when it holds."""

    key: str
    severity: str
    human: str
    expression: str


class Element(msgspec.Struct, frozen=True):
    """One JSON key of a type. https://hl7.org/fhir/R4/elementdefinition.html"""

    name: str  # the element without its choice of type: "value" for "valueQuantity"
    key: str
    type: str  # one type code; a nested element's is its path
    min: int
    max: int | None  # None for "*"
    choice: bool
    targets: tuple[str, ...]  # resource types a Reference or canonical may name; empty: any
    binding: str  # value set of a required binding, "" otherwise
    order: int  # of the element among its siblings, as XML writes them; types of one choice share it
    summary: bool
    modifier: bool
    invariants: tuple[Invariant, ...]  # beyond those of its type


class TypeDefinition(msgspec.Struct, frozen=True):
    """A type with everything it inherits; `elements` by JSON key in the order of the specification."""

    name: str
    base: str
    kind: str  # resource | complex-type | primitive-type | backbone
    abstract: bool
    elements: dict[str, Element]
    invariants: tuple[Invariant, ...]
    regex: str = ""  # of a primitive type's text


class SearchParameterDefinition(msgspec.Struct, frozen=True):
    """https://hl7.org/fhir/R4/searchparameter.html"""

    url: str
    code: str
    type: str
    base: tuple[str, ...] = ()
    expression: str = ""
    target: tuple[str, ...] = ()
    components: tuple[tuple[str, str], ...] = ()  # (canonical of the part, expression relative to the element)
    comparator: tuple[str, ...] = ()
    modifier: tuple[str, ...] = ()
    multipleOr: bool = True  # noqa: N815  (FHIR's own spelling)
    multipleAnd: bool = True  # noqa: N815


class OperationDefinition(msgspec.Struct, frozen=True):
    """https://hl7.org/fhir/R4/operationdefinition.html; `code` has no dollar sign."""

    url: str
    code: str
    system: bool
    type: bool
    instance: bool
    resource: tuple[str, ...] = ()
    affectsState: bool = False  # noqa: N815


class _Row(msgspec.Struct):
    base: str
    kind: str
    invariants: tuple[Invariant, ...]
    elements: list[list[Any]]
    abstract: bool = False
    regex: str = ""


class _Cells(msgspec.Struct, array_like=True):
    name: str
    min: int
    max: int | None
    types: str
    targets: str = ""
    binding: str = ""
    flags: str = ""
    invariants: tuple[Invariant, ...] = ()


class _Types(msgspec.Struct):
    resources: list[str] = []
    rows: dict[str, msgspec.Raw] = {}


class _Codes(msgspec.Struct):
    rows: dict[str, msgspec.Raw]


class _SearchParameters(msgspec.Struct):
    rows: list[SearchParameterDefinition]


class _Operations(msgspec.Struct):
    rows: list[OperationDefinition]


class _Compartments(msgspec.Struct):
    rows: dict[str, dict[str, tuple[str, ...]]]


def _table(name: str) -> bytes:
    return (Path(__file__).parent / "r4" / name).read_bytes()


_types = msgspec.json.decode(_table("types.json"), type=_Types)  # 1 ms: rows stay text until they are asked for

RESOURCE_TYPES: frozenset[str] = frozenset(_types.resources)  # the 146 that can be instantiated


@cache
def type_definition(name: str) -> TypeDefinition:
    """By type name (`Patient`, `Quantity`, `code`) or path of a nested element (`Patient.contact`); else KeyError."""
    row = msgspec.json.decode(_types.rows[name], type=_Row)
    base = type_definition(row.base) if row.base else None
    elements = dict(base.elements) if base else {}
    order = max((e.order for e in elements.values()), default=-1) + 1
    for cells in row.elements:
        for element in _expand(msgspec.convert(cells, type=_Cells), order):
            elements[element.key] = element
        order += 1
    invariants = (base.invariants if base else ()) + row.invariants
    return TypeDefinition(name, row.base, row.kind, row.abstract, elements, invariants, row.regex)


def _expand(row: _Cells, order: int) -> list[Element]:
    name = row.name.removesuffix("[x]")
    choice = name != row.name
    targets = tuple(row.targets.split())
    return [
        Element(
            name,
            name + code[0].upper() + code[1:] if choice else name,
            code,
            row.min,
            row.max,
            choice,
            targets if code in ("Reference", "canonical") else (),
            row.binding,
            order,
            "s" in row.flags,
            "m" in row.flags,
            row.invariants,
        )
        for code in row.types.split()
    ]


def is_type(name: str) -> bool:
    return name in _types.rows


@cache
def type_names() -> tuple[str, ...]:
    """Every type of the tables, nested ones (`Patient.contact`) included."""
    return tuple(_types.rows)


@cache
def _codes() -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(_table("codes.json"), type=_Codes).rows


@cache
def codings(value_set: str) -> frozenset[tuple[str, str]] | None:
    """(system, code) of a value set some element requires; None where R4 does not list the codes (MIME, UCUM, …)."""
    row = _codes().get(value_set.partition("|")[0])
    systems = msgspec.json.decode(row, type=dict[str, list[str]] | None) if row is not None else None
    if systems is None:
        return None
    return frozenset((system, code) for system, listed in systems.items() for code in listed)


@cache
def codes(value_set: str) -> frozenset[str] | None:
    """The codes alone, for elements of type `code`."""
    found = codings(value_set)
    return None if found is None else frozenset(code for _, code in found)


@cache
def search_parameters() -> tuple[SearchParameterDefinition, ...]:
    """R4's 1,397; those of every resource have the base `Resource` or `DomainResource`. (Its package has three examples more.)"""
    return tuple(msgspec.json.decode(_table("search-parameters.json"), type=_SearchParameters).rows)


@cache
def operations() -> tuple[OperationDefinition, ...]:
    return tuple(msgspec.json.decode(_table("operations.json"), type=_Operations).rows)


@cache
def _compartments() -> dict[str, dict[str, tuple[str, ...]]]:
    return msgspec.json.decode(_table("compartments.json"), type=_Compartments).rows


@cache
def _profiles() -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(_table("profiles.json"), type=_Codes).rows


def profile(url: str) -> dict[str, Any] | None:
    """One of the 43 profiles of resources that R4 brings (vital signs, …), as a StructureDefinition's differential."""
    row = _profiles().get(url.partition("|")[0])
    found: dict[str, Any] | None = msgspec.json.decode(row) if row is not None else None
    return found


def compartment(code: str) -> dict[str, tuple[str, ...]]:
    """Resource type → codes of the reference parameters that put it into the compartment. KeyError if unknown.

    Codes: Patient, Practitioner, RelatedPerson, Encounter, Device.
    """
    return _compartments()[code]

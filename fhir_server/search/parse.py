"""Query string → Query. What is not understood is refused by name, never dropped. https://hl7.org/fhir/R4/search.html

`Prefer: handling=lenient` relaxes one thing: parameters nobody knows are left out, and Query.ignored says which.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fhir_server.errors import BadRequest, UnknownParameter
from fhir_server.model.definitions import RESOURCE_TYPES
from fhir_server.search.conditions import Conditions, choice, shown
from fhir_server.search.query import Condition, Include, InCompartment, Query, Sort
from fhir_server.search.records import memberships
from fhir_server.search.registry import Registry

MOST_PAIRS = 100

RESULT = frozenset(
    [
        "_sort",
        "_count",
        "_include",
        "_revinclude",
        "_summary",
        "_elements",
        "_total",
        "_contained",
        "_containedType",
        "_explain",
        "_cursor",
        "_format",
        "_pretty",
        "_type",
    ]
)
PRESENTATION = frozenset({"_format", "_pretty", "_cursor"})  # not part of what is searched


def parse(
    resource_type: str | None,
    pairs: Iterable[tuple[str, str]],
    *,
    registry: Registry,
    lenient: bool = False,
    compartment: tuple[str, str] | None = None,
    default_count: int = 50,
    most_count: int = 1000,
    base: str = "",
) -> Query:
    """`resource_type` None: a search over types (`_type`); `compartment`: (`Patient`, id) for `Patient/x/…`.

    Raises UnknownParameter or BadRequest, both naming parameter and value.
    """
    return _Parser(registry, lenient, default_count, most_count, base).query(resource_type, list(pairs), compartment)


class _Parser:
    def __init__(self, registry: Registry, lenient: bool, default_count: int, most_count: int, base: str) -> None:
        self.registry = registry
        self.lenient = lenient
        self.default_count = default_count
        self.most_count = most_count
        self._read = Conditions(registry, base)

    def query(
        self, resource_type: str | None, pairs: Sequence[tuple[str, str]], within: tuple[str, str] | None
    ) -> Query:
        if len(pairs) > MOST_PAIRS:
            raise BadRequest(f"A search may have {MOST_PAIRS} parameters at most, not {len(pairs)}")
        if resource_type is not None and resource_type not in RESOURCE_TYPES:
            raise BadRequest(f"{resource_type!r} is not a resource type")
        types_ = (resource_type,) if resource_type else self._types(pairs)
        if within is not None:
            inside = {within[0], *_members(within[0])}
            types_ = tuple(t for t in types_ or sorted(inside) if t in inside)
            if not types_:
                raise BadRequest(f"{resource_type or 'No type asked for'} is in no {within[0]} compartment")
        conditions: dict[str, list[Condition]] = {t: [] for t in types_ or sorted(RESOURCE_TYPES)}
        options: dict[str, Any] = {}
        includes: list[Include] = []
        revincludes: list[Include] = []
        applied: list[tuple[str, str]] = []
        ignored: list[str] = []
        for name, value in pairs:
            if name in PRESENTATION:
                if name == "_cursor":
                    if not value:
                        raise BadRequest("Parameter '_cursor' has an empty value")
                    options["cursor"] = value
                continue
            try:
                if name == "_sort":
                    _once(options, "sort", name)
                    options["sort"] = self._sort(value, conditions)
                elif name.partition(":")[0] in ("_include", "_revinclude"):
                    self._include(name, value, includes, revincludes, tuple(conditions))
                elif name in RESULT:
                    self._option(name, value, options)
                else:
                    found = {t: self._read.condition(t, name, value) for t in conditions}
                    for t, condition in found.items():
                        conditions[t].append(condition)
            except UnknownParameter:
                if not self.lenient:
                    raise
                ignored.append(name)
                continue
            if name != "_count":
                applied.append((name, value))
        if within is not None:
            for t, found_conditions in conditions.items():
                found_conditions.insert(0, self._compartment(within, t))
        sort = options.pop("sort", {})
        return Query(
            types_,
            {t: tuple(found) for t, found in conditions.items()},
            resource_type is None,
            next(iter(sort.values()))[0] if sort else (),
            {t: found for t, (_, found) in sort.items()},
            options.pop("count", self.default_count),
            tuple(includes),
            tuple(revincludes),
            pairs=tuple(applied),
            ignored=tuple(ignored),
            **options,
        )

    def _types(self, pairs: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        found: list[str] = []
        for name, value in pairs:
            if name == "_type":
                for item in value.split(","):
                    if item not in RESOURCE_TYPES:
                        raise BadRequest(f"Parameter '_type': {item!r} is not a resource type")
                    found.append(item)
        return tuple(dict.fromkeys(found))

    def _compartment(self, within: tuple[str, str], resource_type: str) -> Condition:
        code, id = within
        parameters = tuple(
            p for p in self.registry.compartment(code, resource_type) if p.type == "reference" and p.state == "ready"
        )
        return InCompartment(code, id, parameters, code == resource_type)

    def _sort(self, value: str, conditions: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], tuple[Sort, ...]]]:
        written = tuple(part.strip() for part in value.split(","))
        if len(written) > 5:
            raise BadRequest("Parameter '_sort' takes five keys at most")
        found: dict[str, tuple[tuple[str, ...], tuple[Sort, ...]]] = {}
        for resource_type in conditions:
            sorts: list[Sort] = []
            for key in written:
                code, descending = key.removeprefix("-"), key.startswith("-")
                if code in ("_id", "_lastUpdated"):
                    sorts.append(Sort(code, None, descending))
                    continue
                parameter = self._read.parameter(resource_type, code, "_sort")
                if parameter.type in ("composite", "special"):
                    raise BadRequest(f"Parameter '_sort': {code!r} is of type {parameter.type} and has no order")
                sorts.append(Sort(code, parameter, descending))
            found[resource_type] = (written, tuple(sorts))
        return found

    def _option(self, name: str, value: str, options: dict[str, Any]) -> None:
        if name == "_type":
            return
        key = {"_containedType": "contained_type"}.get(name, name[1:])
        _once(options, key, name)
        if name == "_count":
            if not (value.isascii() and value.isdigit() and len(value) < 10):
                raise BadRequest(f"Parameter '_count': {value!r} is not a whole number from 0 on")
            options[key] = min(int(value), self.most_count)
        elif name == "_elements":
            options[key] = tuple(_names(name, value))
        elif name == "_explain":
            options[key] = choice(name, value, ("true", "false")) == "true"
        else:
            options[key] = choice(
                name,
                value,
                {
                    "_summary": ("true", "text", "data", "count", "false"),
                    "_total": ("none", "estimate", "accurate"),
                    "_contained": ("false", "true", "both"),
                    "_containedType": ("container", "contained"),
                }[name],
            )

    def _include(
        self, name: str, value: str, includes: list[Include], revincludes: list[Include], searched: tuple[str, ...]
    ) -> None:
        kind, _, modifier = name.partition(":")
        if modifier not in ("", "iterate"):
            raise BadRequest(f"Parameter {name!r}: the modifier {modifier!r} is not supported; {kind} knows :iterate")
        if value == "*":
            (includes if kind == "_include" else revincludes).append(Include("*", "*", "", modifier == "iterate"))
            return
        source, _, rest = value.partition(":")
        code, _, target = rest.partition(":")
        if source not in RESOURCE_TYPES or not code:
            raise BadRequest(f"Parameter {name!r}: {value!r} is not Type:parameter or Type:parameter:Type")
        if target and target not in RESOURCE_TYPES:
            raise BadRequest(f"Parameter {name!r}: {target!r} is not a resource type")
        if code != "*":
            parameter = self._read.parameter(source, code, name)
            if parameter.type != "reference":
                raise BadRequest(f"Parameter {name!r}: {source}:{code} is of type {parameter.type}, not reference")
            if target and parameter.targets and target not in parameter.targets:
                raise BadRequest(f"Parameter {name!r}: {source}:{code} does not refer to {target}")
        (includes if kind == "_include" else revincludes).append(Include(source, code, target, modifier == "iterate"))


def _members(code: str) -> Mapping[str, tuple[str, ...]]:
    try:
        return memberships(code)
    except KeyError:
        raise BadRequest(f"{code} is no compartment") from None


def _once(options: Mapping[str, Any], key: str, name: str) -> None:
    if key in options:
        raise BadRequest(f"Parameter {name!r} may be given once only")


def _names(name: str, value: str) -> list[str]:
    found = [part.strip() for part in value.split(",")]
    if not all(part.replace(".", "").isidentifier() for part in found):
        raise BadRequest(f"Parameter {name!r}: {shown(value)} is no list of element names")
    return found

"""Query string → Query. What is not understood is refused by name, never dropped. https://hl7.org/fhir/R4/search.html

`Prefer: handling=lenient` relaxes one thing: parameters nobody knows are left out, and Query.ignored says which.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fhir_server.errors import BadRequest, UnknownParameter
from fhir_server.model.definitions import RESOURCE_TYPES, compartment
from fhir_server.search import fulltext
from fhir_server.search.escape import split, unescape
from fhir_server.search.filter import parse_filter
from fhir_server.search.index import IDENTIFIER, VERSION
from fhir_server.search.operands import Interval, Keys, Operand, Parts
from fhir_server.search.query import (
    All,
    AnyOf,
    Chain,
    Condition,
    Has,
    Ids,
    Include,
    InCompartment,
    Listed,
    Match,
    Missing,
    Query,
    Sort,
    Updated,
)
from fhir_server.search.registry import Parameter, Registry
from fhir_server.search.types import date, number, quantity, reference, special, string, token, uri

MOST_VALUES = 10_000  # alternatives of one parameter that are looked up by key
MOST_RANGES = 200  # alternatives that each read a range of an index
DEEPEST = 8  # links of a chain
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


def parse_condition(registry: Registry, resource_type: str, name: str, value: str, base: str = "") -> Condition:
    """One pair, as a condition on one type."""
    return _Parser(registry, False, 50, 1000, base).condition(resource_type, name, value)


class _Parser:
    def __init__(self, registry: Registry, lenient: bool, default_count: int, most_count: int, base: str) -> None:
        self.registry = registry
        self.lenient = lenient
        self.default_count = default_count
        self.most_count = most_count
        self.base = base
        self.now = int(time.time() * 1000)

    # The whole query

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
                    found = {t: self.condition(t, name, value) for t in conditions}
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
                parameter = self._parameter(resource_type, code, "_sort")
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
            options[key] = _choice(name, value, ("true", "false")) == "true"
        else:
            options[key] = _choice(
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
            parameter = self._parameter(source, code, name)
            if parameter.type != "reference":
                raise BadRequest(f"Parameter {name!r}: {source}:{code} is of type {parameter.type}, not reference")
            if target and parameter.targets and target not in parameter.targets:
                raise BadRequest(f"Parameter {name!r}: {source}:{code} does not refer to {target}")
        (includes if kind == "_include" else revincludes).append(Include(source, code, target, modifier == "iterate"))

    # One condition

    def condition(self, resource_type: str, name: str, value: str, depth: int = 0) -> Condition:
        if depth > DEEPEST:
            raise BadRequest(f"Parameter {name!r}: a chain may have {DEEPEST} links at most")
        if value == "":
            raise BadRequest(f"Parameter {name!r} has an empty value")
        if "\x00" in value:
            raise BadRequest(f"Parameter {name!r} has a NUL character in its value")
        if name.startswith("_has:"):
            return self._has(resource_type, name, value, depth)
        head, dot, rest = name.partition(".")
        code, _, modifier = head.partition(":")
        if dot:
            return self._chain(resource_type, name, (code, modifier, rest), value, depth)
        own = _OWN.get(code)
        if own is not None:
            return own(self, resource_type, name, modifier, value)
        parameter = self._parameter(resource_type, code, name)
        if modifier == "missing":
            return Missing(parameter, _choice(name, value, ("true", "false")) == "true")
        self._check_modifier(parameter, name, modifier)
        operands: list[Operand] = []
        suffix = ""
        values = split(value, ",")
        if len(values) > MOST_VALUES:
            raise BadRequest(f"Parameter {name!r} has {len(values)} values; {MOST_VALUES} are served at most")
        for text in values:
            if not text:
                raise BadRequest(f"Parameter {name!r}: {_shown(value)} has an empty value between its commas")
            try:
                operand = self.operand(parameter, modifier, text)
            except BadRequest as error:
                raise _refusal(error, name, text) from None
            operands.append(operand)
        operands = _merged(operands)
        if len(operands) > MOST_RANGES:
            raise BadRequest(
                f"Parameter {name!r} has {len(operands)} values; {MOST_RANGES} of this kind are served at most"
            )
        if modifier == "identifier":
            suffix = IDENTIFIER
        elif parameter.type == "reference":
            return _versions(parameter, operands)
        return Match(parameter, tuple(operands), modifier in ("not", "not-in"), suffix)

    def _check_modifier(self, parameter: Parameter, name: str, modifier: str) -> None:
        if not modifier or modifier in parameter.modifiers:
            return
        if parameter.type == "reference" and modifier in RESOURCE_TYPES:
            if parameter.targets and modifier not in parameter.targets:
                raise BadRequest(f"Parameter {name!r}: {parameter.code} does not refer to {modifier}")
            return
        allowed = ", ".join(":" + m for m in sorted(parameter.modifiers))
        raise BadRequest(
            f"Parameter {name!r}: {parameter.type} parameters like this one have no modifier {modifier!r}; known: {allowed}"
        )

    def operand(self, parameter: Parameter, modifier: str, text: str) -> Operand:
        """One alternative → what it asks. Raises BadRequest whose text completes "the value … "."""
        kind = parameter.type
        if kind == "token":
            folded = parameter.fhir_types == {"ContactPoint"}
            return token.parse(text, modifier, fold_case=folded)
        if kind == "string":
            if parameter.code == "phonetic" and "HumanName" in parameter.fhir_types:
                return string.phonetic(text)
            return string.parse(text, modifier)
        if kind == "date":
            return date.parse(text, modifier, self.now)
        if kind == "reference":
            if modifier == "identifier":
                return token.parse(text, "")
            if modifier == "below":
                return reference.below(text)
            found = reference.parse(text, modifier, parameter.targets, self.base)
            return _of_type(found, parameter.resolves_to)
        if kind == "quantity":
            return quantity.parse(text, modifier)
        if kind == "number":
            return number.parse(text, modifier)
        if kind == "uri":
            return uri.parse(text, modifier)
        if kind == "special":
            return special.parse(text, modifier)
        return self._composite(parameter, text)

    def _composite(self, parameter: Parameter, text: str) -> Operand:
        parts = split(text, "$")
        if len(parts) != len(parameter.components):
            names = "$".join(c.parameter.code for c in parameter.components)
            raise BadRequest(f"must have {len(parameter.components)} parts: {names}")
        found: list[Operand] = []
        for part, component in zip(parts, parameter.components, strict=True):
            if not part:
                raise BadRequest(f"has an empty {component.parameter.code}")
            found.append(self.operand(component.parameter, "", part))
        return Parts(tuple(found))

    def _parameter(self, resource_type: str, code: str, name: str) -> Parameter:
        parameter = self.registry.parameter(resource_type, code)
        if parameter is None:
            known = ", ".join(sorted(self.registry.parameters(resource_type)))
            reason = self.registry.unserved(resource_type).get(code)
            raise UnknownParameter(
                f"Parameter {name!r}: {resource_type} has no search parameter {code!r}"
                + (f" that can be served: it {reason}" if reason else f"; it has {known}")
            )
        if parameter.state != "ready":
            raise BadRequest(
                f"Parameter {name!r}: {parameter.url} is not indexed yet; run SearchParameter/$reindex, then try again"
            )
        return parameter

    def _chain(self, resource_type: str, name: str, head: tuple[str, str, str], value: str, depth: int) -> Condition:
        code, modifier, rest = head
        parameter = self._parameter(resource_type, code, name)
        if parameter.type != "reference":
            raise BadRequest(f"Parameter {name!r}: {code} is of type {parameter.type}, only references can be chained")
        if modifier and modifier not in RESOURCE_TYPES:
            raise BadRequest(f"Parameter {name!r}: {modifier!r} is not a resource type to chain through")
        targets: Sequence[str] = parameter.targets or sorted(RESOURCE_TYPES)
        if modifier:
            if modifier not in targets:
                raise BadRequest(f"Parameter {name!r}: {resource_type}.{code} does not refer to {modifier}")
            targets = (modifier,)
        if not rest:
            raise BadRequest(f"Parameter {name!r} ends in a dot")
        found: list[tuple[str, Condition]] = []
        refusals: list[UnknownParameter] = []
        for target in targets:
            try:
                found.append((target, self._inner(target, name, rest, value, depth)))
            except UnknownParameter as error:
                refusals.append(error)
        if not found:
            if len(refusals) == 1:
                raise refusals[0]
            raise UnknownParameter(
                f"Parameter {name!r}: none of the types it leads to ({', '.join(targets)}) has {rest.partition('.')[0]!r}"
            )
        return Chain(parameter, tuple(found))

    def _has(self, resource_type: str, name: str, value: str, depth: int) -> Condition:
        parts = name.split(":", 3)
        if len(parts) < 4 or not all(parts):
            raise BadRequest(f"Parameter {name!r} is not _has:Type:reference:parameter")
        _, source, code, rest = parts
        if source not in RESOURCE_TYPES:
            raise BadRequest(f"Parameter {name!r}: {source!r} is not a resource type")
        parameter = self._parameter(source, code, name)
        if parameter.type != "reference" or (parameter.targets and resource_type not in parameter.targets):
            raise BadRequest(f"Parameter {name!r}: {source}.{code} does not refer to {resource_type}")
        return Has(resource_type, parameter, self._inner(source, name, rest, value, depth))

    def _inner(self, resource_type: str, name: str, rest: str, value: str, depth: int) -> Condition:
        """The condition at the end of a link; what is wrong with it is said of the whole chain."""
        try:
            return self.condition(resource_type, rest, value, depth + 1)
        except BadRequest as error:
            raise type(error)(error.diagnostics.replace(repr(rest), repr(name), 1)) from None

    # Parameters that are no entries

    def _id(self, resource_type: str, name: str, modifier: str, value: str) -> Condition:
        if modifier not in ("", "not"):
            raise BadRequest(f"Parameter {name!r}: _id has no modifier {modifier!r}")
        ids = tuple(unescape(text) for text in split(value, ","))
        if len(ids) > MOST_VALUES:
            raise BadRequest(f"Parameter {name!r} has {len(ids)} values; {MOST_VALUES} are served at most")
        if not all(ids):
            raise BadRequest(f"Parameter {name!r}: {_shown(value)} has an empty value between its commas")
        return Ids(ids, modifier == "not")

    def _last_updated(self, resource_type: str, name: str, modifier: str, value: str) -> Condition:
        if modifier == "missing":
            return All(()) if _choice(name, value, ("true", "false")) == "false" else AnyOf(())
        if modifier:
            raise BadRequest(f"Parameter {name!r}: date parameters have no modifier {modifier!r}")
        found: list[Interval] = []
        for text in split(value, ","):
            try:
                operand = date.parse(unescape(text), "", self.now)
            except BadRequest as error:
                raise _refusal(error, name, text) from None
            assert isinstance(operand, Interval)
            found.append(operand)
        if len(found) > MOST_RANGES:
            raise BadRequest(f"Parameter {name!r} has {len(found)} values; {MOST_RANGES} are served at most")
        return Updated(tuple(found))

    def _list(self, resource_type: str, name: str, modifier: str, value: str) -> Condition:
        if modifier:
            raise BadRequest(f"Parameter {name!r}: _list has no modifier {modifier!r}")
        found = tuple(Listed(resource_type, id.removeprefix("List/")) for id in split(value, ","))
        return found[0] if len(found) == 1 else AnyOf(found)

    def _words(self, resource_type: str, name: str, modifier: str, value: str) -> Condition:
        if modifier:
            raise BadRequest(f"Parameter {name!r}: {name.partition(':')[0]} has no modifier {modifier!r}")
        try:
            operands = tuple(fulltext.parse(text) for text in split(value, ","))
        except BadRequest as error:
            raise _refusal(error, name, value) from None
        return Match(fulltext.parameter(resource_type, name), operands)

    def _filter(self, resource_type: str, name: str, modifier: str, value: str) -> Condition:
        if modifier:
            raise BadRequest(f"Parameter {name!r}: _filter has no modifier {modifier!r}")
        return parse_filter(self, resource_type, value)


_OWN: dict[str, Callable[[_Parser, str, str, str, str], Condition]] = {
    "_id": _Parser._id,
    "_lastUpdated": _Parser._last_updated,
    "_list": _Parser._list,
    "_text": _Parser._words,
    "_content": _Parser._words,
    "_filter": _Parser._filter,
}


def _members(code: str) -> Mapping[str, tuple[str, ...]]:
    try:
        return {t: names for t, names in compartment(code).items() if names}
    except KeyError:
        raise BadRequest(f"{code} is no compartment") from None


def _once(options: Mapping[str, Any], key: str, name: str) -> None:
    if key in options:
        raise BadRequest(f"Parameter {name!r} may be given once only")


def _choice(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise BadRequest(f"Parameter {name!r}: {_shown(value)} is none of {', '.join(allowed)}")
    return value


def _names(name: str, value: str) -> list[str]:
    found = [part.strip() for part in value.split(",")]
    if not all(part.replace(".", "").isidentifier() for part in found):
        raise BadRequest(f"Parameter {name!r}: {_shown(value)} is no list of element names")
    return found


def _shown(value: str) -> str:
    return repr(value if len(value) <= 100 else value[:97] + "...")


def _refusal(error: BadRequest, name: str, value: str) -> BadRequest:
    return BadRequest(f"Parameter {name!r}: the value {_shown(value)} {error.diagnostics}")


def _merged(operands: list[Operand]) -> list[Operand]:
    """All keys in one operand: one `$in` rather than an OR."""
    keys = [key for operand in operands if isinstance(operand, Keys) for key in operand.keys]
    rest: list[Operand] = [operand for operand in operands if not isinstance(operand, Keys)]
    return [Keys(tuple(dict.fromkeys(keys))), *rest] if keys or not rest else rest


def _of_type(operand: Operand, resolves_to: str) -> Operand:
    """`patient` shares subject's entries: what refers to another type is none of its values."""
    if resolves_to and isinstance(operand, Keys):
        return Keys(tuple(key for key in operand.keys if reference.type_of(key) == resolves_to))
    return operand


def _versions(parameter: Parameter, operands: Sequence[Operand]) -> Condition:
    """References that name a version are looked up among those that do."""
    found: list[Condition] = []
    plain: list[str] = []
    versioned: list[str] = []
    for operand in operands:
        if isinstance(operand, Keys):
            for key in operand.keys:
                (versioned if "/_history/" in key else plain).append(key)
        else:
            found.append(Match(parameter, (operand,)))
    if plain or not (versioned or found):
        found.append(Match(parameter, (Keys(tuple(plain)),)))
    if versioned:
        found.append(Match(parameter, (Keys(tuple(versioned)),), suffix=VERSION))
    return found[0] if len(found) == 1 else AnyOf(tuple(found))

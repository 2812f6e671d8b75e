"""One pair of a search → what it asks: parameter, modifier, chain, values. https://hl7.org/fhir/R4/search.html#modifiers"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from fhir_server.errors import BadRequest, UnknownParameter
from fhir_server.model.definitions import RESOURCE_TYPES
from fhir_server.search import fulltext
from fhir_server.search.entries import IDENTIFIER, VERSION
from fhir_server.search.escape import split, unescape
from fhir_server.search.filter import parse_filter
from fhir_server.search.operands import Interval, Keys, Operand, Parts
from fhir_server.search.query import (
    All,
    AnyOf,
    Chain,
    Condition,
    Has,
    Ids,
    Listed,
    Match,
    Missing,
    Updated,
)
from fhir_server.search.registry import Parameter, Registry
from fhir_server.search.types import date, number, quantity, reference, special, string, token, uri

MOST_VALUES = 10_000  # alternatives of one parameter that are looked up by key
MOST_RANGES = 200  # alternatives that each read a range of an index
DEEPEST = 8  # links of a chain


def parse_condition(registry: Registry, resource_type: str, name: str, value: str, base: str = "") -> Condition:
    """One pair, as a condition on one type. Raises UnknownParameter or BadRequest, both naming parameter and value."""
    return Conditions(registry, base).condition(resource_type, name, value)


class Conditions:
    """Reads pairs; `base` is the server's own URL, references below it are local."""

    def __init__(self, registry: Registry, base: str = "") -> None:
        self.registry = registry
        self.base = base
        self.now = int(time.time() * 1000)

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
        parameter = self.parameter(resource_type, code, name)
        if modifier == "missing":
            return Missing(parameter, choice(name, value, ("true", "false")) == "true")
        self._check_modifier(parameter, name, modifier)
        operands: list[Operand] = []
        suffix = ""
        values = split(value, ",")
        if len(values) > MOST_VALUES:
            raise BadRequest(f"Parameter {name!r} has {len(values)} values; {MOST_VALUES} are served at most")
        for text in values:
            if not text:
                raise BadRequest(f"Parameter {name!r}: {shown(value)} has an empty value between its commas")
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

    def parameter(self, resource_type: str, code: str, name: str) -> Parameter:
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
        parameter = self.parameter(resource_type, code, name)
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
        parameter = self.parameter(source, code, name)
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
            raise BadRequest(f"Parameter {name!r}: {shown(value)} has an empty value between its commas")
        return Ids(ids, modifier == "not")

    def _last_updated(self, resource_type: str, name: str, modifier: str, value: str) -> Condition:
        if modifier == "missing":
            return All(()) if choice(name, value, ("true", "false")) == "false" else AnyOf(())
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


_OWN: dict[str, Callable[[Conditions, str, str, str, str], Condition]] = {
    "_id": Conditions._id,
    "_lastUpdated": Conditions._last_updated,
    "_list": Conditions._list,
    "_text": Conditions._words,
    "_content": Conditions._words,
    "_filter": Conditions._filter,
}


def choice(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise BadRequest(f"Parameter {name!r}: {shown(value)} is none of {', '.join(allowed)}")
    return value


def shown(value: str) -> str:
    return repr(value if len(value) <= 100 else value[:97] + "...")


def _refusal(error: BadRequest, name: str, value: str) -> BadRequest:
    return BadRequest(f"Parameter {name!r}: the value {shown(value)} {error.diagnostics}")


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

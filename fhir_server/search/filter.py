"""`_filter`: a search as one expression. https://hl7.org/fhir/R4/search_filter.html

filter   = logical {("and" | "or") logical}         `and` binds as strongly as `or`: read from left to right
logical  = ["not"] "(" filter ")" | test
test     = path operator value                       path = parameter[.parameter] or parameter[filter].parameter
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fhir_server.errors import BadRequest
from fhir_server.search.escape import escape
from fhir_server.search.operands import Containing, Ending, Keys, Operand, Prefixed
from fhir_server.search.query import All, AnyOf, Condition, Match, Missing, Not
from fhir_server.search.registry import Parameter
from fhir_server.search.text import fold

if TYPE_CHECKING:
    from fhir_server.search.conditions import Conditions

_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[()]|[^\s()"]+)')
_PREFIXED = frozenset({"eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap"})
_ORDERED = frozenset({"date", "number", "quantity"})
OPERATORS = _PREFIXED | {"co", "sw", "ew", "pr", "ss", "sb", "in", "ni", "re", "po"}
DEEPEST = 20
MOST_TESTS = 200  # in a row


def parse_filter(parser: Conditions, resource_type: str, text: str) -> Condition:
    """Raises BadRequest or UnknownParameter that quote the part of the expression that is wrong."""
    return _Filter(parser, resource_type, text).parse()


def _joined(operator: str, found: list[Condition]) -> Condition:
    if not operator:
        return found[0]
    return All(tuple(found)) if operator == "and" else AnyOf(tuple(found))


class _Filter:
    def __init__(self, parser: Conditions, resource_type: str, text: str) -> None:
        self._parser = parser
        self._type = resource_type
        self._tokens: list[str] = []
        position = 0
        text = text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise BadRequest(f"Parameter '_filter': cannot read {text[position : position + 40]!r}")
            self._tokens.append(match.group(1))
            position = match.end()
        self._at = 0

    def parse(self) -> Condition:
        found = self._filter(0)
        if self._at < len(self._tokens):
            raise BadRequest(f"Parameter '_filter': {self._tokens[self._at]!r} is not expected here")
        return found

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        if not token:
            raise BadRequest("Parameter '_filter' ends too early")
        self._at += 1
        return token

    def _filter(self, depth: int) -> Condition:
        if depth > DEEPEST:
            raise BadRequest(f"Parameter '_filter' is nested deeper than {DEEPEST} levels")
        found, joined = [self._logical(depth)], ""
        while self._peek() in ("and", "or"):
            operator = self._next()
            if joined not in ("", operator):  # one level deeper only where it changes
                found, depth = [_joined(joined, found)], depth + 1
                if depth > DEEPEST:
                    raise BadRequest(f"Parameter '_filter' changes between and and or more than {DEEPEST} times")
            joined = operator
            found.append(self._logical(depth))
            if len(found) > MOST_TESTS:
                raise BadRequest(f"Parameter '_filter' joins more than {MOST_TESTS} tests")
        return _joined(joined, found)

    def _logical(self, depth: int) -> Condition:
        negated = self._peek() == "not"
        if negated:
            self._next()
        if self._peek() == "(":
            self._next()
            found = self._filter(depth + 1)
            if self._next() != ")":
                raise BadRequest("Parameter '_filter': a parenthesis is not closed")
        elif negated:
            raise BadRequest("Parameter '_filter': not needs parentheses")
        else:
            found = self._test()
        return Not(found) if negated else found

    def _test(self) -> Condition:
        name, operator, value = self._next(), self._next(), self._next()
        if operator not in OPERATORS:
            raise BadRequest(f"Parameter '_filter': {operator!r} is no operator; known: {', '.join(sorted(OPERATORS))}")
        if "[" in name:
            raise BadRequest(f"Parameter '_filter': filters inside a path are not supported: {name!r}; use a chain")
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        try:
            return self._condition(name, operator, value)
        except BadRequest as error:
            raise type(error)(f"Parameter '_filter': {name} {operator} {value}: {error.diagnostics}") from None

    def _condition(self, name: str, operator: str, value: str) -> Condition:
        parser, resource_type = self._parser, self._type
        if "." in name or name.startswith("_"):
            # Chains and what belongs to every resource: as in a search, with its prefix or modifier.
            return self._as_search(name, operator, value)
        parameter = parser.parameter(resource_type, name, name)
        if operator == "pr":
            if value not in ("true", "false"):
                raise BadRequest("pr takes true or false")
            return Missing(parameter, value == "false")
        if parameter.type in _ORDERED and operator in _PREFIXED:
            quoted = value if parameter.type != "date" else escape(value)
            return Match(parameter, (parser.operand(parameter, "", operator + quoted),))
        if parameter.type == "string":
            return self._string(parameter, operator, value)
        if operator in ("eq", "ne"):
            text = value if parameter.type in ("token", "quantity") else escape(value)
            found = parser.condition(resource_type, name, text)
            return Not(found) if operator == "ne" else found
        modifier = {"ss": "below", "sb": "above", "in": "in", "ni": "not-in"}.get(operator)
        if modifier is not None and modifier in parameter.modifiers:
            return parser.condition(resource_type, f"{name}:{modifier}", value)
        if operator == "re" and parameter.type == "reference":
            return parser.condition(resource_type, name, escape(value))
        raise BadRequest(f"{parameter.type} parameters do not take {operator}")

    def _as_search(self, name: str, operator: str, value: str) -> Condition:
        negated = operator == "ne"
        if name == "_lastUpdated" and operator in _PREFIXED:
            return self._parser.condition(self._type, name, operator + value)
        if operator not in ("eq", "ne"):
            raise BadRequest("takes eq and ne only")
        found = self._parser.condition(self._type, name, value)
        return Not(found) if negated else found

    def _string(self, parameter: Parameter, operator: str, value: str) -> Condition:
        folded = fold(value)
        if not folded:
            raise BadRequest("the text has no letter or digit")
        operands: dict[str, Operand] = {
            "co": Containing(folded),
            "sw": Prefixed(folded),
            "ew": Ending(folded),
        }
        if operator in operands:
            return Match(parameter, (operands[operator],))
        if operator in ("eq", "ne"):
            found = Match(parameter, (Keys((folded,)),))  # the whole text, not only its beginning
            return Not(found) if operator == "ne" else found
        raise BadRequest(f"string parameters do not take {operator}")

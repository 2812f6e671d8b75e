"""Text → expression tree, by operator precedence. https://hl7.org/fhirpath/N1/grammar.html"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from fhir_server.model.fhirpath import ast
from fhir_server.model.fhirpath.failure import FhirPathError
from fhir_server.model.fhirpath.tokens import Token, tokens

MAX_DEPTH: Final = 100  # brackets within brackets; Python's own stack ends near 1,000 calls
MAX_LENGTH: Final = 20_000  # the longest expression of R4 has under 2,000 characters
MAX_DIGITS: Final = 40
_SPECIALS: Final = ("this", "index", "total")


def parse(text: str) -> ast.Node:
    """Raises FhirPathError with the position of the first character that does not fit."""
    if len(text) > MAX_LENGTH:
        raise FhirPathError(f"The expression is longer than {MAX_LENGTH} characters")
    return _Parser(text).expression_to_end()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokens(text)
        self._at = 0
        self._depth = 0

    def expression_to_end(self) -> ast.Node:
        node = self._expression(0)
        if self._next.kind != "end":
            raise self._unexpected("an operator or the end")
        return node

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _take(self) -> Token:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _symbol(self, symbol: str) -> bool:
        """Takes the symbol if it is next."""
        token = self._next
        if token.kind == "symbol" and token.text == symbol:
            self._at += 1
            return True
        return False

    def _expect(self, symbol: str) -> None:
        if not self._symbol(symbol):
            raise self._unexpected(f"'{symbol}'")

    def _unexpected(self, wanted: str) -> FhirPathError:
        token = self._next
        found = "the end" if token.kind == "end" else f"'{token.text}'"
        return FhirPathError(f"Expected {wanted}, found {found}", token.position, self._text)

    def _expression(self, level: int) -> ast.Node:
        """Everything whose operators bind tighter than `level`."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise FhirPathError(f"Nested deeper than {MAX_DEPTH} levels", self._next.position, self._text)
        left = self._prefixed()
        while True:
            token = self._next
            binds = ast.PRECEDENCE.get(token.text, 0) if token.kind in ("symbol", "word") else 0
            if binds <= level:
                break
            self._at += 1
            if token.text in ("is", "as"):
                left = ast.TypeTest(token.text, left, self._type(), position=token.position)
            else:
                left = ast.Binary(token.text, left, self._expression(binds), position=token.position)
        self._depth -= 1
        return left

    def _prefixed(self) -> ast.Node:
        token = self._next
        if token.kind == "symbol" and token.text in ("+", "-"):
            self._at += 1
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise FhirPathError(f"Nested deeper than {MAX_DEPTH} levels", token.position, self._text)
            node = ast.Unary(token.text, self._prefixed(), position=token.position)
            self._depth -= 1
            return node
        return self._postfixed(self._term())

    def _postfixed(self, node: ast.Node) -> ast.Node:
        while True:
            position = self._next.position
            if self._symbol("."):
                node = ast.Member(node, self._step(), position=position)
            elif self._symbol("["):
                node = ast.Indexed(node, self._expression(0), position=position)
                self._expect("]")
            else:
                return node

    def _term(self) -> ast.Node:
        token = self._next
        match token.kind:
            case "number":
                return self._number()
            case "string":
                return ast.String(self._take().text, position=token.position)
            case "moment":
                return ast.Moment(self._take().text, position=token.position)
            case "external":
                return ast.External(self._take().text, position=token.position)
            case "word" if token.text in ("true", "false"):
                return ast.Boolean(self._take().text == "true", position=token.position)
            case "word" | "quoted" | "special":
                return self._step()
        if self._symbol("("):
            node = self._expression(0)
            self._expect(")")
            return node
        if self._symbol("{"):
            self._expect("}")
            return ast.Empty(position=token.position)
        raise self._unexpected("a value, a path or a function")

    def _number(self) -> ast.Node:
        token = self._take()
        if len(token.text) > MAX_DIGITS:
            raise FhirPathError(f"A number of more than {MAX_DIGITS} digits", token.position, self._text)
        value: int | Decimal = Decimal(token.text) if "." in token.text else int(token.text)
        unit = self._next
        if unit.kind == "string":
            self._at += 1
            return ast.Quantity(value, unit.text, position=token.position)
        if unit.kind == "word" and unit.text in ast.CALENDAR_UNITS:
            self._at += 1
            return ast.Quantity(value, ast.CALENDAR_UNITS[unit.text], calendar=True, position=token.position)
        return ast.Number(value, position=token.position)

    def _step(self) -> ast.Name | ast.Call | ast.Special:
        token = self._next
        if token.kind == "special":
            if token.text not in _SPECIALS:
                raise self._unexpected("$this, $index or $total")
            self._at += 1
            return ast.Special(token.text, position=token.position)
        if token.kind not in ("word", "quoted"):
            raise self._unexpected("a name")
        self._at += 1
        if self._symbol("("):
            return ast.Call(token.text, self._arguments(), position=token.position)
        return ast.Name(token.text, position=token.position)

    def _arguments(self) -> tuple[ast.Node, ...]:
        if self._symbol(")"):
            return ()
        found = [self._expression(0)]
        while self._symbol(","):
            found.append(self._expression(0))
        self._expect(")")
        return tuple(found)

    def _type(self) -> str:
        name = self._type_name()
        return f"{name}.{self._type_name()}" if self._symbol(".") else name

    def _type_name(self) -> str:
        if self._next.kind not in ("word", "quoted"):
            raise self._unexpected("a type")
        return self._take().text

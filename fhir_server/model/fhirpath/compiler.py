"""Expression tree → Python closures; nothing of the tree is left when an expression runs."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from difflib import get_close_matches
from typing import Final

from fhir_server.model.dates import DateError
from fhir_server.model.definitions import is_type, type_definition
from fhir_server.model.fhirpath import ast, steps, types
from fhir_server.model.fhirpath.binary import binary
from fhir_server.model.fhirpath.compiled import NOWHERE, Compiled, Invocation, Types, constant, decided
from fhir_server.model.fhirpath.failure import FhirPathError
from fhir_server.model.fhirpath.functions import FUNCTIONS
from fhir_server.model.fhirpath.functions.fhir import reference_type
from fhir_server.model.fhirpath.quantities import Quantity
from fhir_server.model.fhirpath.temporal import Temporal
from fhir_server.model.fhirpath.values import (
    INTEGER,
    NOTHING,
    Frame,
    Items,
    integer,
    items,
    native,
    shown,
    single,
    system,
)

_CONSTANTS: Final = {
    "ucum": "http://unitsofmeasure.org",
    "sct": "http://snomed.info/sct",
    "loinc": "http://loinc.org",
}
_PREFIXES: Final = {"vs-": "http://hl7.org/fhir/ValueSet/", "ext-": "http://hl7.org/fhir/StructureDefinition/"}

_EMPTY_OF_EMPTY: Final = {"where", "select", "as", "ofType", "extension", "resolve", "first", "last", "repeat"}
_ORDERED: Final = {"skip", "take", "tail", "first", "last"}

_THIS: Final = Compiled(lambda frame: frame.this)


class Compiler:
    """Compiles the parts of one expression; `strict` refuses elements that the type of a path does not have."""

    def __init__(self, text: str, strict: bool = False) -> None:
        self.text = text
        self.strict = strict

    def part(self, node: ast.Node, this: Types) -> Compiled:
        """`this`: the types `$this` may have where the part stands. Raises FhirPathError."""
        match node:
            case ast.Name():
                return self._head(node, this)
            case ast.Member():
                return self._member(node, this)
            case ast.Call():
                return self._call(node, Compiled(_THIS.collect, this), None, this)
            case ast.Boolean() | ast.String() | ast.Number():
                return constant([system(node.value)])
            case ast.Binary():
                return binary(node.operator, self.part(node.left, this), self.part(node.right, this))
            case ast.TypeTest():
                return self._type_test(node, this)
            case ast.Special():
                return self._special(node, this)
            case ast.External():
                return _external(node.name)
            case ast.Indexed():
                return self._indexed(node, this)
            case ast.Unary():
                return self._unary(node, this)
            case ast.Quantity():
                return constant([system(self._quantity(node))])
            case ast.Moment():
                return constant([system(self._moment(node))])
        return constant(NOTHING)

    def types(self, node: ast.Node) -> tuple[str, ...]:
        """The types an argument such as that of `ofType` names."""
        name = types.type_name(node)
        return self._resolved(name or str(node), node.position)

    def _resolved(self, name: str, position: int) -> tuple[str, ...]:
        found = types.resolve(name)
        if not found:
            raise FhirPathError(f"'{name}' is no type", position, self.text)
        return found

    def _head(self, node: ast.Name, this: Types) -> Compiled:
        if not (node.name[0].isupper() and is_type(node.name)):
            return self._element(Compiled(_THIS.collect, this), node)
        if this and all(steps.is_a(kind, node.name) for kind in this):
            return Compiled(_THIS.collect, this)
        if this is not None and not any(steps.is_a(kind, node.name) for kind in this):
            if self.strict:
                kinds = " or ".join(sorted(this))
                raise FhirPathError(f"The path starts at {kinds}, not at {node.name}", node.position, self.text)
            return NOWHERE
        return steps.rooted(_THIS, node.name)

    def _member(self, node: ast.Member, this: Types) -> Compiled:
        step = node.step
        if isinstance(step, ast.Special):
            return self.part(node.target, this) if step.name == "this" else self._special(step, this)
        target = self.part(node.target, this)
        if isinstance(step, ast.Name):
            return self._element(target, step)
        return self._call(step, target, node.target, this)

    def _element(self, target: Compiled, node: ast.Name) -> Compiled:
        if target is NOWHERE:
            return NOWHERE
        kinds = target.types
        found: Types = None
        if kinds:
            each = [steps.step_types(kind, node.name) for kind in kinds]
            if None not in each:
                found = frozenset().union(*(part for part in each if part is not None))
            if self.strict and found is not None and not found:
                raise self._no_such_element(node, kinds)
        return steps.member(target, node.name, found)

    def _no_such_element(self, node: ast.Name, kinds: frozenset[str]) -> FhirPathError:
        elements = [element for kind in kinds for element in type_definition(kind).elements.values()]
        hint = ""
        for element in elements:
            if element.choice and element.key == node.name:
                hint = f"; write {element.name}.ofType({element.type})"
                break
        else:
            close = get_close_matches(node.name, {element.name for element in elements}, 1)
            if close:
                hint = f"; did you mean '{close[0]}'?"
        kind = " or ".join(sorted(kinds))
        return FhirPathError(f"{kind} has no element '{node.name}'{hint}", node.position, self.text)

    def _call(self, call: ast.Call, target: Compiled, target_node: ast.Node | None, this: Types) -> Compiled:
        function = FUNCTIONS.get(call.name)
        if function is None:
            close = get_close_matches(call.name, FUNCTIONS, 1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise FhirPathError(f"There is no function '{call.name}'{hint}", call.position, self.text)
        count = len(call.arguments)
        if not function.low <= count <= function.high:
            wanted = str(function.low) if function.low == function.high else f"{function.low} to {function.high}"
            message = f"{call.name}() takes {wanted} argument{'s' if wanted != '1' else ''}, not {count}"
            raise FhirPathError(message, call.position, self.text)
        if self.strict and call.name in _ORDERED and _is_unordered(target_node):
            raise FhirPathError(f"{call.name}() needs an order, which children have none of", call.position, self.text)
        part = function.build(Invocation(self, call, target, target_node, this))
        return NOWHERE if target is NOWHERE and call.name in _EMPTY_OF_EMPTY else part

    def _type_test(self, node: ast.TypeTest, this: Types) -> Compiled:
        kinds = self._resolved(node.type, node.position)
        target = self.part(node.operand, this)
        if node.operator == "is":
            return self.is_type(target, node.operand, kinds, this)
        return self.selected(target, kinds)

    def is_type(self, target: Compiled, node: ast.Node | None, kinds: tuple[str, ...], this: Types) -> Compiled:
        """`resolve() is T` needs no resource: the reference's own text names its type."""
        test = types.is_of(kinds)
        call = node.step if isinstance(node, ast.Member) else node
        if isinstance(call, ast.Call) and call.name == "resolve" and not call.arguments:
            references = self.part(node.target, this) if isinstance(node, ast.Member) else _THIS
            return decided(_resolves_to(references.collect, test))
        source = target.collect

        def decide(frame: Frame) -> bool | None:
            entry = single(source(frame), "The left side of is")
            return None if entry is None else test(entry[1])

        return decided(decide)

    def selected(self, target: Compiled, kinds: tuple[str, ...]) -> Compiled:
        """`as` and `ofType`: the items of these types. R4's search parameters use `as` on many items, so it filters."""
        if target is NOWHERE:
            return NOWHERE
        found = frozenset(kinds) if not steps.DYNAMIC & set(kinds) else None
        test = types.selected_by(kinds)
        if target.element is not None and target.types is not None:
            return steps.member(*target.element, found, kinds)
        source = target.collect

        def collect(frame: Frame) -> Items:
            found = source(frame)
            if not found:
                return NOTHING
            return [entry for entry in found if test(entry[1])]

        return Compiled(collect, found)

    def relaxed(self) -> Compiler:
        """For arguments whose `$this` has types nobody knows beforehand."""
        return Compiler(self.text)

    def _special(self, node: ast.Special, this: Types) -> Compiled:
        if node.name == "this":
            return Compiled(_THIS.collect, this)
        if node.name == "index":
            return Compiled(lambda frame: [(frame.index, INTEGER, None)], frozenset({INTEGER}))
        return Compiled(lambda frame: frame.total)

    def _indexed(self, node: ast.Indexed, this: Types) -> Compiled:
        target, index = self.part(node.target, this), self.part(node.index, this).collect
        source = target.collect

        def collect(frame: Frame) -> Items:
            at = integer(index(frame), "An index")
            found = source(frame)
            return NOTHING if at is None or not 0 <= at < len(found) else [found[at]]

        return Compiled(collect, target.types)

    def _unary(self, node: ast.Unary, this: Types) -> Compiled:
        target = self.part(node.operand, this)
        source, negative, position, text = target.collect, node.operator == "-", node.position, self.text

        def collect(frame: Frame) -> Items:
            entry = single(source(frame), f"What {node.operator} stands before")
            if entry is None:
                return NOTHING
            value = native(entry)
            if isinstance(value, Quantity):
                amount = -value.value if negative else value.value
                return [system(Quantity(amount, value.unit, value.calendar, value.system))]
            if isinstance(value, bool | str | dict | Temporal):
                raise FhirPathError(f"'{node.operator}' stands before a {shown(entry)}", position, text)
            return [system(-value if negative else value)]

        if isinstance(node.operand, ast.Number | ast.Quantity):
            return constant(collect(_NO_FRAME))
        return Compiled(collect, target.types)

    def _quantity(self, node: ast.Quantity) -> Quantity:
        unit = ast.CALENDAR_UNITS.get(node.unit, node.unit) if not node.calendar else node.unit
        return Quantity(Decimal(node.value), unit, node.calendar or node.unit in ast.CALENDAR_UNITS)

    def _moment(self, node: ast.Moment) -> Temporal:
        kind = "Time" if node.text.startswith("T") else "DateTime" if "T" in node.text else "Date"
        try:
            return Temporal.parse(node.text, kind)
        except DateError as error:
            raise FhirPathError(error.diagnostics, node.position, self.text) from None


_NO_FRAME: Final = Frame(NOTHING, None)  # type: ignore[arg-type]  # constants look at no frame


def _is_unordered(node: ast.Node | None) -> bool:
    call = node.step if isinstance(node, ast.Member) else node
    return isinstance(call, ast.Call) and call.name in ("children", "descendants")


def _resolves_to(references: Callable[[Frame], Items], test: Callable[[str], bool]) -> Callable[[Frame], bool | None]:
    def decide(frame: Frame) -> bool | None:
        entry = single(references(frame), "The left side of is")
        if entry is None:
            return None
        kind = reference_type(entry, frame.run)
        return None if kind is None else test(kind)

    return decide


def is_constant(name: str) -> bool:
    """Whether `%name` means the same in every expression, or the resource it runs on."""
    return name in _CONSTANTS or name in ("context", "resource", "rootResource") or name.startswith(tuple(_PREFIXES))


def _external(name: str) -> Compiled:
    if name == "context":
        return Compiled(lambda frame: frame.run.context)
    if name == "resource":
        return Compiled(lambda frame: frame.run.resource)
    if name == "rootResource":
        return Compiled(lambda frame: frame.run.root)
    if name in _CONSTANTS:
        return constant([system(_CONSTANTS[name])])
    for prefix, url in _PREFIXES.items():
        if name.startswith(prefix):
            return constant([system(url + name[len(prefix) :])])

    def collect(frame: Frame) -> Items:
        try:
            value = frame.run.variables[name]
        except KeyError:
            raise FhirPathError(f"There is no variable %{name}") from None
        return items(value)

    return Compiled(collect)

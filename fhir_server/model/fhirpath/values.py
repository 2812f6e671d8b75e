"""What flows through an expression: items, collections of them, and the frame they are evaluated in.

An item is `(value, type, element)`: the JSON value itself, the name of its type, and for a primitive its `_name` sibling
with `id` and `extension`. A value is None when only the sibling exists. The types of FHIRPath's own values start with
`System.`; the type `""` is unknown. A collection handed over is never changed afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from fhir_server.model.dates import DateError
from fhir_server.model.definitions import is_type, type_definition
from fhir_server.model.fhirpath.failure import FhirPathError
from fhir_server.model.fhirpath.quantities import Canonical, Quantity, canonical, of_fhir
from fhir_server.model.fhirpath.temporal import Temporal

Item = tuple[Any, str, Any]
Items = list[Item]

BOOLEAN: Final = "System.Boolean"
STRING: Final = "System.String"
INTEGER: Final = "System.Integer"
DECIMAL: Final = "System.Decimal"
QUANTITY: Final = "System.Quantity"
TYPE_INFO: Final = "System.TypeInfo"  # what type() gives: namespace and name

MAX_STEPS: Final = 2_000_000  # about a second
MAX_INTEGER: Final = 2**63 - 1

TRUE: Final[Items] = [(True, BOOLEAN, None)]
FALSE: Final[Items] = [(False, BOOLEAN, None)]
NOTHING: Final[Items] = []

_SYSTEM_TYPES: Final[dict[type, str]] = {
    bool: BOOLEAN, str: STRING, int: INTEGER, Decimal: DECIMAL, Quantity: QUANTITY,
}  # fmt: skip
TEMPORAL_TYPES: Final = frozenset({"date", "dateTime", "instant", "time"})


@dataclass(frozen=True, slots=True)
class Host:
    """What an expression may ask of its surroundings; a function that needs what is None is empty or fails."""

    resolve: Callable[[str], Any] | None = None  # a reference's text → resource or None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)  # aware
    member_of: Callable[[Any, str], bool | None] | None = None  # (code, Coding or CodeableConcept; value set URL)
    conforms_to: Callable[[Any, str], bool | None] | None = None  # (resource or element; profile URL)
    html_checks: Callable[[str], bool] | None = None  # the XHTML of a narrative
    canonical: Canonical = canonical  # (value, UCUM code) → (value in base units, base units)
    trace: Callable[[str, list[Any]], None] | None = None


DEFAULT_HOST: Final = Host()


class Run:
    """One evaluation: what stays the same in all its parts."""

    __slots__ = ("_left", "_now", "context", "host", "resource", "root", "variables")

    def __init__(self, context: Items, resource: Items, root: Items, host: Host, variables: Mapping[str, Any]) -> None:
        self.context = context  # %context
        self.resource = resource  # %resource
        self.root = root  # %rootResource
        self.host = host
        self.variables = variables
        self._now: datetime | None = None
        self._left = MAX_STEPS

    def spend(self, steps: int) -> None:
        """Counts items visited or made. Raises FhirPathError when an expression goes over a resource again and again."""
        self._left -= steps
        if self._left < 0:
            raise FhirPathError(f"The expression takes more than {MAX_STEPS} steps on these data")

    @property
    def now(self) -> datetime:
        """The same instant however often it is asked for."""
        if self._now is None:
            self._now = self.host.now()
        return self._now


class Frame:
    """What `$this`, `$index` and `$total` are at one place of one evaluation."""

    __slots__ = ("index", "run", "this", "total")

    def __init__(self, this: Items, run: Run) -> None:
        self.this = this
        self.run = run
        self.index = 0
        self.total: Items = NOTHING


def boolean(value: bool | None) -> Items:
    return NOTHING if value is None else TRUE if value else FALSE


def system(value: Any) -> Item:
    """A value of FHIRPath's own → item."""
    kind = _SYSTEM_TYPES.get(type(value)) or (DECIMAL if isinstance(value, Decimal) else None)
    return (value, kind if kind is not None else f"System.{value.kind}", None)


def item(value: Any) -> Item:
    """A value from outside (JSON, or what an expression gave) → item, its type as far as the value tells it."""
    if isinstance(value, dict):
        return (value, value.get("resourceType", ""), None)
    if isinstance(value, float):
        return system(Decimal(repr(value)))
    if isinstance(value, (*_SYSTEM_TYPES, Temporal)):
        return system(value)
    raise FhirPathError(f"A variable cannot be a {type(value).__name__}")


def items(value: Any) -> Items:
    """A variable's value → collection."""
    if value is None:
        return NOTHING
    return [item(part) for part in value] if isinstance(value, list | tuple) else [item(value)]


def native(entry: Item) -> Any:
    """What the item is to operators: dates become Temporal, FHIR quantities Quantity, other values are themselves."""
    value, kind, _ = entry
    if type(value) is str:
        return _temporal(value, kind) if kind in TEMPORAL_TYPES else value
    if type(value) is dict and is_quantity(kind):
        quantity = of_fhir(value)
        return value if quantity is None else quantity
    if kind == "decimal" and type(value) is int:
        return Decimal(value)
    return value


def plain(entry: Item) -> Any:
    """What the item is to the caller: JSON values; a computed date is its text, a computed quantity a FHIR Quantity."""
    value = entry[0]
    if isinstance(value, Temporal):
        return str(value)
    return value.as_fhir() if isinstance(value, Quantity) else value


@lru_cache(maxsize=4096)
def _temporal(text: str, kind: str) -> Temporal | str:
    try:
        return Temporal.parse(text, "Time" if kind == "time" else "Date" if kind == "date" else "DateTime")
    except DateError:
        return text


@lru_cache(maxsize=1024)
def ancestors(kind: str) -> frozenset[str]:
    """The type and all it inherits from; FHIRPath's own types inherit from `System.Any`."""
    if not is_type(kind):
        return frozenset({kind, "System.Any"}) if kind.startswith("System.") else frozenset({kind})
    base = type_definition(kind).base
    return ancestors(base) | {kind} if base else frozenset({kind})


@lru_cache(maxsize=1024)
def is_primitive(kind: str) -> bool:
    return is_type(kind) and type_definition(kind).kind == "primitive-type"


@lru_cache(maxsize=1024)
def is_quantity(kind: str) -> bool:
    return kind == QUANTITY or "Quantity" in ancestors(kind)


def truth(collection: Items, what: str = "A condition") -> bool | None:
    """A collection as a condition: empty is unknown, one item other than a boolean is true. Two raise FhirPathError."""
    if not collection:
        return None
    if len(collection) > 1:
        raise FhirPathError(f"{what} must be one value, not {len(collection)}")
    value = collection[0][0]
    return value if type(value) is bool else True


def single(collection: Items, what: str) -> Item | None:
    """The only item, None if there is none. Two raise FhirPathError."""
    if not collection:
        return None
    if len(collection) > 1:
        raise FhirPathError(f"{what} must be one value, not {len(collection)}")
    return collection[0]


def text(collection: Items, what: str) -> str | None:
    """The only item, which must be a string."""
    entry = single(collection, what)
    if entry is None or entry[0] is None:
        return None
    if type(entry[0]) is not str:
        raise FhirPathError(f"{what} must be a string, not {shown(entry)}")
    return entry[0]


def integer(collection: Items, what: str) -> int | None:
    """The only item, which must be an integer."""
    entry = single(collection, what)
    if entry is None or entry[0] is None:
        return None
    if type(entry[0]) is not int:
        raise FhirPathError(f"{what} must be an integer, not {shown(entry)}")
    return entry[0]


def shown(entry: Item) -> str:
    """An item's type in a message; its value may be private."""
    return entry[1] or type(entry[0]).__name__

"""Existence, filtering, subsetting and combining. https://hl7.org/fhirpath/N1/#functions"""

from __future__ import annotations

from fhir_server.model.fhirpath.compiled import Compiled, Invocation, decided
from fhir_server.model.fhirpath.equality import distinct, identity
from fhir_server.model.fhirpath.failure import FhirPathError
from fhir_server.model.fhirpath.functions.table import SAME, Table
from fhir_server.model.fhirpath.values import INTEGER, NOTHING, Frame, Items, Run, integer

COLLECTIONS = Table()


@COLLECTIONS.compiled("empty")
def empty(call: Invocation) -> Compiled:
    source = call.target.collect
    return decided(lambda frame: not source(frame))


@COLLECTIONS.compiled("exists", 0, 1)
def exists(call: Invocation) -> Compiled:
    source = call.target.collect
    if not call.call.arguments:
        return decided(lambda frame: bool(source(frame)))
    criterion = call.each(0).condition

    def decide(frame: Frame) -> bool:
        inner = Frame(NOTHING, frame.run)
        found = source(frame)
        frame.run.spend(len(found))
        for index, entry in enumerate(found):
            inner.this, inner.index = [entry], index
            if criterion(inner) is True:
                return True
        return False

    return decided(decide)


@COLLECTIONS.compiled("all", 1)
def all_(call: Invocation) -> Compiled:
    source, criterion = call.target.collect, call.each(0).condition

    def decide(frame: Frame) -> bool:
        inner = Frame(NOTHING, frame.run)
        found = source(frame)
        frame.run.spend(len(found))
        for index, entry in enumerate(found):
            inner.this, inner.index = [entry], index
            if criterion(inner) is not True:
                return False
        return True

    return decided(decide)


@COLLECTIONS.compiled("where", 1)
def where(call: Invocation) -> Compiled:
    source, criterion = call.target.collect, call.each(0).condition

    def collect(frame: Frame) -> Items:
        found = source(frame)
        if not found:
            return NOTHING
        frame.run.spend(len(found))
        inner = Frame(NOTHING, frame.run)
        out: Items = []
        for index, entry in enumerate(found):
            inner.this, inner.index = [entry], index
            if criterion(inner) is True:
                out.append(entry)
        return out

    return Compiled(collect, call.target.types)


@COLLECTIONS.compiled("select", 1)
def select(call: Invocation) -> Compiled:
    source, part = call.target.collect, call.each(0)
    projection = part.collect

    def collect(frame: Frame) -> Items:
        inner = Frame(NOTHING, frame.run)
        out: Items = []
        for index, entry in enumerate(source(frame)):
            inner.this, inner.index = [entry], index
            made = projection(inner)
            frame.run.spend(len(made) + 1)
            out.extend(made)
        return out

    return Compiled(collect, part.types)


@COLLECTIONS.compiled("repeat", 1)
def repeat(call: Invocation) -> Compiled:
    source = call.target.collect
    projection = call.compiler.relaxed().part(call.call.arguments[0], None).collect

    def collect(frame: Frame) -> Items:
        inner = Frame(NOTHING, frame.run)
        seen = set()
        out: Items = []
        queue = list(source(frame))
        for entry in queue:
            inner.this = [entry]
            for found in projection(inner):
                # By what they hold, as FHIRPath wants; two equal items have equal descendants.
                key = identity(found)
                if key in seen:
                    continue
                seen.add(key)
                frame.run.spend(1)
                out.append(found)
                queue.append(found)
        return out

    return Compiled(collect)


@COLLECTIONS.compiled("aggregate", 1, 2)
def aggregate(call: Invocation) -> Compiled:
    source, start = call.target.collect, call.value(1)
    step = call.each(0).collect

    def collect(frame: Frame) -> Items:
        inner = Frame(NOTHING, frame.run)
        inner.total = start.collect(frame) if start is not None else NOTHING
        for index, entry in enumerate(source(frame)):
            inner.this, inner.index = [entry], index
            inner.total = step(inner)
            frame.run.spend(len(inner.total) + 1)
        return inner.total

    return Compiled(collect)


@COLLECTIONS.eager("count", frozenset({INTEGER}))
def count(found: Items, run: Run) -> Items:
    return [(len(found), INTEGER, None)]


@COLLECTIONS.eager("distinct", SAME)
def distinct_(found: Items, run: Run) -> Items:
    return distinct(found)


@COLLECTIONS.decision("isDistinct")
def is_distinct(found: Items, run: Run) -> bool:
    return len(distinct(found)) == len(found)


@COLLECTIONS.eager("first", SAME)
def first(found: Items, run: Run) -> Items:
    return found[:1]


@COLLECTIONS.eager("last", SAME)
def last(found: Items, run: Run) -> Items:
    return found[-1:]


@COLLECTIONS.eager("tail", SAME)
def tail(found: Items, run: Run) -> Items:
    return found[1:]


@COLLECTIONS.eager("single", SAME)
def single(found: Items, run: Run) -> Items:
    if len(found) > 1:
        raise FhirPathError(f"single() found {len(found)} items")
    return found


@COLLECTIONS.eager("skip", SAME)
def skip(found: Items, run: Run, number: Items) -> Items:
    count = integer(number, "The argument of skip()")
    return NOTHING if count is None else found[max(count, 0) :]


@COLLECTIONS.eager("take", SAME)
def take(found: Items, run: Run, number: Items) -> Items:
    count = integer(number, "The argument of take()")
    return NOTHING if count is None else found[: max(count, 0)]


@COLLECTIONS.eager("intersect", SAME)
def intersect(found: Items, run: Run, other: Items) -> Items:
    keys = {identity(entry) for entry in other}
    return distinct([entry for entry in found if identity(entry) in keys])


@COLLECTIONS.eager("exclude", SAME)
def exclude(found: Items, run: Run, other: Items) -> Items:
    keys = {identity(entry) for entry in other}
    return [entry for entry in found if identity(entry) not in keys]


@COLLECTIONS.compiled("union", 1)
def union(call: Invocation) -> Compiled:
    source, other = call.target.collect, call.required(0).collect
    return Compiled(lambda frame: distinct([*source(frame), *other(frame)]))


@COLLECTIONS.compiled("combine", 1)
def combine(call: Invocation) -> Compiled:
    source, other = call.target.collect, call.required(0).collect

    def collect(frame: Frame) -> Items:
        found = [*source(frame), *other(frame)]
        frame.run.spend(len(found))
        return found

    return Compiled(collect)


@COLLECTIONS.decision("subsetOf")
def subset_of(found: Items, run: Run, other: Items) -> bool:
    return {identity(entry) for entry in found} <= {identity(entry) for entry in other}


@COLLECTIONS.decision("supersetOf")
def superset_of(found: Items, run: Run, other: Items) -> bool:
    return {identity(entry) for entry in found} >= {identity(entry) for entry in other}


@COLLECTIONS.decision("allTrue")
def all_true(found: Items, run: Run) -> bool:
    return all(_booleans(found, "allTrue"))


@COLLECTIONS.decision("anyTrue")
def any_true(found: Items, run: Run) -> bool:
    return any(_booleans(found, "anyTrue"))


@COLLECTIONS.decision("allFalse")
def all_false(found: Items, run: Run) -> bool:
    return not any(_booleans(found, "allFalse"))


@COLLECTIONS.decision("anyFalse")
def any_false(found: Items, run: Run) -> bool:
    return not all(_booleans(found, "anyFalse"))


def _booleans(found: Items, name: str) -> list[bool]:
    values = [entry[0] for entry in found]
    if any(type(value) is not bool for value in values):
        raise FhirPathError(f"{name}() takes booleans only")
    return values

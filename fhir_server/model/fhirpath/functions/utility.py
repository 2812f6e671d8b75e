"""Conditions, tree navigation, the clock, and looking at types. https://hl7.org/fhirpath/N1/#utility-functions"""

from __future__ import annotations

from fhir_server.model.fhirpath.compiled import BOOLEANS, Compiled, Invocation, decided
from fhir_server.model.fhirpath.functions.table import Table
from fhir_server.model.fhirpath.steps import children
from fhir_server.model.fhirpath.temporal import Temporal
from fhir_server.model.fhirpath.values import NOTHING, TYPE_INFO, Frame, Items, Run, plain, system, text

UTILITY = Table()


@UTILITY.compiled("not")
def not_(call: Invocation) -> Compiled:
    condition = call.target.condition

    def decide(frame: Frame) -> bool | None:
        result = condition(frame)
        return None if result is None else not result

    return decided(decide)


@UTILITY.compiled("iif", 2, 3)
def iif(call: Invocation) -> Compiled:
    source = call.target.collect
    types = call.this if call.target_node is None else call.target.types
    parts = [call.compiler.part(argument, types) for argument in call.call.arguments]
    if parts[0].types is not None and parts[0].types and not parts[0].types & (BOOLEANS | {"boolean"}):
        raise call.failure("the criterion must be a boolean")
    criterion, then = parts[0].condition, parts[1].collect
    otherwise = parts[2].collect if len(parts) > 2 else None
    own_frame = call.target_node is not None

    def collect(frame: Frame) -> Items:
        inner = frame
        if own_frame:
            inner = Frame(source(frame), frame.run)
            inner.index, inner.total = frame.index, frame.total
        if criterion(inner) is True:
            return then(inner)
        return NOTHING if otherwise is None else otherwise(inner)

    return Compiled(collect)


@UTILITY.eager("children")
def children_(found: Items, run: Run) -> Items:
    out = [child for entry in found for child in children(entry)]
    run.spend(len(out))
    return out


@UTILITY.eager("descendants")
def descendants(found: Items, run: Run) -> Items:
    out: Items = []
    level = found
    while level:
        level = [child for entry in level for child in children(entry)]
        run.spend(len(level))
        out.extend(level)
    return out


@UTILITY.compiled("trace", 1, 2)
def trace(call: Invocation) -> Compiled:
    source, name = call.target.collect, call.required(0).collect
    projection = call.each(1).collect if len(call.call.arguments) > 1 else None

    def collect(frame: Frame) -> Items:
        found = source(frame)
        tell = frame.run.host.trace
        if tell is not None:
            shown = found if projection is None else [
                part for entry in found for part in projection(Frame([entry], frame.run))
            ]  # fmt: skip
            tell(text(name(frame), "The name of trace()") or "", [plain(entry) for entry in shown])
        return found

    return Compiled(collect, call.target.types)


@UTILITY.eager("now")
def now(found: Items, run: Run) -> Items:
    return [system(Temporal.of(run.now))]


@UTILITY.eager("today")
def today(found: Items, run: Run) -> Items:
    return [system(Temporal.of(run.now, "Date"))]


@UTILITY.eager("timeOfDay")
def time_of_day(found: Items, run: Run) -> Items:
    return [system(Temporal.of(run.now, "Time"))]


@UTILITY.eager("type")
def type_(found: Items, run: Run) -> Items:
    out: Items = []
    for _, kind, _ in found:
        namespace, _, name = kind.rpartition(".") if kind.startswith("System.") else ("FHIR", "", kind)
        out.append(({"namespace": namespace, "name": name}, TYPE_INFO, None))
    return out

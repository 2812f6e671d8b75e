"""Observation/$stats: figures over the results of one patient. https://hl7.org/fhir/R4/observation-operation-stats.html

Served: average, minimum, maximum, count, total-count, median, std-dev, variance, sum, regression. Values are converted to the
unit of the newest; what cannot be converted counts in total-count only. The slope is by day.
Differs from the specification: other statistic codes (percentiles, skew, …) are refused.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from fhir_server.errors import BadRequest
from fhir_server.interactions.call import Answer, Call, Pairs, parameters
from fhir_server.interactions.context import Context, Server
from fhir_server.model import dates
from fhir_server.model.resource import Resource, dump, load
from fhir_server.operations.given import pairs_of
from fhir_server.search import execute
from fhir_server.search.escape import escape
from fhir_server.search.parse import parse
from fhir_server.terminology import units

MOST = 20_000  # observations of one question
CODES = "http://terminology.hl7.org/CodeSystem/observation-statistics"
KNOWN = frozenset(["subject", "code", "system", "coding", "duration", "period", "statistic", "include", "limit"])


@dataclass(frozen=True, slots=True)
class Point:
    """One value in the common unit; `at` in ms."""

    at: int
    value: float


Figure = Callable[[Sequence[Point]], float | None]


def slope(points: Sequence[Point]) -> float | None:
    """Least squares, per day; None where all are of one moment."""
    if len(points) < 2:
        return None
    days = [point.at / dates.DAY for point in points]
    if len(set(days)) < 2:
        return None
    return statistics.linear_regression(days, [point.value for point in points]).slope


def _of(function: Callable[[list[float]], float], least: int = 1) -> Figure:
    def figure(points: Sequence[Point]) -> float | None:
        return function([point.value for point in points]) if len(points) >= least else None

    return figure


FIGURES: Mapping[str, Figure] = {
    "average": _of(statistics.fmean),
    "minimum": _of(min),
    "maximum": _of(max),
    "count": lambda points: float(len(points)),
    "median": _of(statistics.median),
    "std-dev": _of(statistics.stdev, 2),
    "variance": _of(statistics.variance, 2),
    "sum": _of(sum),
    "regression": slope,
}
_PLAIN = frozenset({"count", "total-count"})  # without unit


async def stats(server: Server, context: Context, call: Call) -> Answer:
    """One Observation of figures for each code; with `include=true` the observations they were made from, too."""
    pairs = pairs_of(call)
    for name, _ in pairs:
        if name not in KNOWN:
            raise BadRequest(f"Parameter {name!r}: $stats has {', '.join(sorted(KNOWN))}")
    given = {name: [value for other, value in pairs if other == name] for name in KNOWN}
    wanted = [code for value in given["statistic"] for code in value.split(",")]
    if not given["subject"] or not wanted:
        raise BadRequest("$stats needs the parameters subject and statistic")
    for code in wanted:
        if code not in FIGURES and code != "total-count":
            raise BadRequest(f"Parameter 'statistic': {code!r} is none of {', '.join([*FIGURES, 'total-count'])}")
    codes = _codes(given)
    limit = _limit(given["limit"])
    parts: list[dict[str, Any]] = []
    for system, code in codes:
        criteria: Pairs = [
            ("subject", given["subject"][0]),
            ("code", f"{system}|{escape(code)}" if system else escape(code)),
        ]
        criteria += _when(server, given)
        observations = await _observations(server, context, criteria, limit)
        parts.append(
            {"name": "statistics", "resource": _figures(observations, system, code, given["subject"][0], wanted)}
        )
        if given["include"] == ["true"]:
            parts += [{"name": "source", "resource": observation} for observation in observations]
    return Answer(body=dump(parameters(*parts)))


async def _observations(server: Server, context: Context, criteria: Pairs, limit: int) -> list[Resource]:
    query = parse("Observation", [*criteria, ("_sort", "-date")], registry=server.registry, base=context.base)
    restrict = server.policy.restrict(context.principal, "search")
    found = await execute.every(server.store, server.registry, query, restrict, most=MOST)
    keys = [("Observation", stored.id) for stored in found[:limit]]
    stored = await server.store.read_many(keys)
    return [load(stored[key].raw) for key in keys if key in stored and not stored[key].deleted]


def _figures(observations: Sequence[Resource], system: str, code: str, subject: str, wanted: Sequence[str]) -> Resource:
    points, unit = _points(observations)
    coding = {"system": system, "code": code} if system else {"code": code}
    result: Resource = {
        "resourceType": "Observation",
        "status": "final",
        "code": {"coding": [coding]},
        "subject": {"reference": subject if "/" in subject else f"Patient/{subject}"},
    }
    if points:
        ends = [dates.instant(at) for at in (min(p.at for p in points), max(p.at for p in points))]
        result["effectivePeriod"] = {"start": ends[0], "end": ends[1]}
    components: list[Resource] = []
    for name in wanted:
        value = float(len(observations)) if name == "total-count" else FIGURES[name](points)
        component: Resource = {"code": {"coding": [{"system": CODES, "code": name}]}}
        if value is None:
            component["dataAbsentReason"] = {"text": f"{len(points)} values are too few"}
        elif name in _PLAIN:
            component["valueQuantity"] = {"value": int(value)}
        else:
            component["valueQuantity"] = {"value": _rounded(value), **_unit(unit, name)}
        components.append(component)
    result["component"] = components
    return result


def _points(observations: Sequence[Resource]) -> tuple[list[Point], Resource]:
    """Newest first; values in the unit of the newest one that has a number and a time."""
    points: list[Point] = []
    unit: Resource = {}
    for observation in observations:
        quantity = observation.get("valueQuantity") or {}
        when = observation.get("effectiveDateTime") or observation.get("effectiveInstant")
        when = when or (observation.get("effectivePeriod") or {}).get("start")
        if "value" not in quantity or "comparator" in quantity or when is None:
            continue
        if not points:
            unit = quantity
        value = _converted(quantity, unit)
        if value is not None:
            points.append(Point(dates.interval(when)[0], value))
    return points, unit


def _converted(quantity: Resource, unit: Resource) -> float | None:
    mine, common = (q.get("code") or q.get("unit") or "" for q in (quantity, unit))
    if mine == common:
        return float(quantity["value"])
    if quantity.get("system") != units.SYSTEM or unit.get("system") != units.SYSTEM:
        return None
    value = units.convert(quantity["value"], mine, common)
    return None if value is None else float(value)


def _unit(unit: Resource, name: str) -> Resource:
    found: Resource = {key: unit[key] for key in ("unit", "system", "code") if key in unit}
    if name == "variance":
        return {"unit": f"({found.get('unit', '')})²"} if found else {}
    if name == "regression" and found:
        text = f"{found.get('unit') or found.get('code')}/d"
        known = found.get("system") == units.SYSTEM and "code" in found
        return {"unit": text, "system": units.SYSTEM, "code": f"{found['code']}/d"} if known else {"unit": text}
    return found


def _rounded(value: float) -> Decimal:
    """Twelve significant digits: what a double has beyond is noise of the arithmetic."""
    return Decimal(f"{value:.12g}")


def _codes(given: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    system = given["system"][0] if given["system"] else ""
    found = [(system, code) for value in given["code"] for code in value.split(",") if code]
    for value in given["coding"]:
        left, _, right = value.rpartition("|")
        found.append((left, right))
    if not found:
        raise BadRequest("$stats needs the parameter code or coding")
    return found


def _when(server: Server, given: Mapping[str, Sequence[str]]) -> Pairs:
    if given["duration"] and given["period"]:
        raise BadRequest("$stats takes duration or period, not both")
    if given["duration"]:
        try:
            hours = Decimal(given["duration"][0])
            start = dates.instant(dates.milliseconds(server.now()) - int(hours * dates.HOUR))
        except ArithmeticError:
            raise BadRequest(f"Parameter 'duration': {given['duration'][0]!r} is no number of hours") from None
        return [("date", f"ge{start}")]
    if not given["period"]:
        return []
    start, slash, end = given["period"][0].partition("/")
    if not slash:
        raise BadRequest("Parameter 'period' is a Period, in a URL written start/end")
    return [("date", prefix + text) for prefix, text in (("ge", start), ("le", end)) if text]


def _limit(given: Sequence[str]) -> int:
    if not given:
        return MOST
    if not (given[0].isascii() and given[0].isdigit()) or int(given[0]) < 1:
        raise BadRequest(f"Parameter 'limit': {given[0]!r} is not a positive whole number")
    return int(given[0])

"""near: places by distance. https://hl7.org/fhir/R4/location.html#positional

`[latitude]|[longitude]|[distance]|[units]`; km where no unit is given, 50 km where no distance is. Distances are along a
sphere of 6,378.1 km radius, which is what MongoDB uses: off by 0.3 % at most.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from fhir_server.errors import BadRequest
from fhir_server.search.escape import split_escaped
from fhir_server.search.operands import Near, Operand
from fhir_server.terminology import units

MODIFIERS = frozenset({"missing"})
RADIUS_KM = 6378.1
DEFAULT_KM = 50.0
_DEGREES = re.compile(r"[+-]?\d{1,3}(\.\d{1,20})?", re.ASCII)
_DISTANCE = re.compile(r"\d{1,9}(\.\d{1,20})?", re.ASCII)


def position(value: Mapping[str, Any]) -> list[dict[str, float]]:
    latitude, longitude = value.get("latitude"), value.get("longitude")
    if not all(isinstance(n, int | Decimal) and type(n) is not bool for n in (latitude, longitude)):
        return []
    north, east = float(str(latitude)), float(str(longitude))
    if not (-90 <= north <= 90 and -180 <= east <= 180):
        return []
    return [{"lon": east, "lat": north}]  # longitude first: MongoDB reads the pair in this order


def parse(text: str, modifier: str) -> Operand:
    parts = split_escaped(text, "|")
    if not 2 <= len(parts) <= 4 or not (_DEGREES.fullmatch(parts[0]) and _DEGREES.fullmatch(parts[1])):
        raise BadRequest("must be latitude|longitude|distance|units")
    latitude, longitude = float(parts[0]), float(parts[1])
    if abs(latitude) > 90 or abs(longitude) > 180:
        raise BadRequest("is no place on earth")
    if len(parts) < 3 or not parts[2]:
        return Near(latitude, longitude, DEFAULT_KM)
    if not _DISTANCE.fullmatch(parts[2]):
        raise BadRequest(f"has a distance that is no number: {parts[2]!r}")
    unit = parts[3] if len(parts) == 4 and parts[3] else "km"
    km = units.convert(Decimal(parts[2]), unit, "km")
    if km is None:
        raise BadRequest(f"has a distance in {unit!r}, which is no unit of length")
    return Near(latitude, longitude, float(km))


def matches(operand: Near, entry: Mapping[str, float]) -> bool:
    return _distance(operand.latitude, operand.longitude, entry["lat"], entry["lon"]) <= operand.km


def _distance(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """Great circle, km (haversine)."""
    a, b = math.radians(lat1), math.radians(lat2)
    h = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * math.sin(math.radians(lon2 - lon1) / 2) ** 2
    return 2 * RADIUS_KM * math.asin(min(1.0, math.sqrt(h)))

"""When something is due: quiet hours, and the grid of periodic rules. docs/hooks.md (Whether an action is taken)"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from fhir_server.automation.rules import Quiet


def out_of(quiet: Quiet | None, instant: int) -> int:
    """The instant itself, or the end of the quiet hours it lies in."""
    if quiet is None:
        return instant
    zone = ZoneInfo(quiet.zone)
    local = datetime.fromtimestamp(instant / 1000, zone)
    clock = local.time().replace(tzinfo=None)
    over_midnight = quiet.start > quiet.end
    inside = (clock >= quiet.start or clock < quiet.end) if over_midnight else quiet.start <= clock < quiet.end
    if not inside:
        return instant
    end = datetime.combine(local.date(), quiet.end, zone)
    if end <= local:
        end = datetime.combine(local.date() + timedelta(days=1), quiet.end, zone)
    return int(end.timestamp() * 1000)


def next_period(now: int, every: int, at: Any) -> int:
    """The next instant of a grid that is the same for every worker: multiples of `every`, at a time of day if there is one."""
    following = (now // every + 1) * every
    if at is None:
        return following
    zone = ZoneInfo("Asia/Shanghai")
    day = datetime.fromtimestamp(following / 1000, zone).date()
    instant = int(datetime.combine(day, at, zone).timestamp() * 1000)
    return instant if instant > now else instant + every


def minute(instant: int) -> str:
    """`2026-06-01T08:00Z` of ms since 1970."""
    return datetime.fromtimestamp(instant / 1000, ZoneInfo("UTC")).strftime("%Y-%m-%dT%H:%MZ")

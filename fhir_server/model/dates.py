"""Dates as FHIR writes them, partial or exact, as half-open intervals of milliseconds. https://hl7.org/fhir/R4/datatypes.html#dateTime

A partial date is all the time it covers: `2024` is the whole year. Times without a zone are UTC, because the stored
text is all we know. Milliseconds since 1970-01-01T00:00Z as int; years 0001 to 9999.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import Final, Literal

from fhir_server.errors import BadRequest

Precision = Literal["year", "month", "day", "minute", "second", "millisecond"]

SECOND: Final = 1_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

_EPOCH: Final = date(1970, 1, 1).toordinal()
_DATE_TIME: Final = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(?:\.(\d+))?)?(Z|[+-]\d\d:\d\d)?)?)?)?", re.ASCII
)
_TIME: Final = re.compile(r"(\d\d):(\d\d)(?::(\d\d)(?:\.(\d+))?)?", re.ASCII)
_LAST_INSTANT: Final = (date.max.toordinal() + 1 - _EPOCH) * DAY - 1
_FIRST_INSTANT: Final = (1 - _EPOCH) * DAY


class DateError(BadRequest, ValueError):
    """A text that is no date, or one that does not exist (30 February)."""

    code = "value"


def interval(text: str) -> tuple[int, int]:
    """`date`, `dateTime` or `instant` → `(lo, hi)`, half-open, in ms. Raises DateError.

    Minutes without seconds are taken, because searches write them. Digits beyond milliseconds are cut; the interval is
    then 1 ms wide. `:60` is the second after `:59`.
    """
    match = _DATE_TIME.fullmatch(text)
    if match is None:
        raise _not_a_date(text)
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    try:
        if day is None:
            return _month_or_year(int(year), month)
        midnight = (date(int(year), int(month), int(day)).toordinal() - _EPOCH) * DAY
    except ValueError:
        raise DateError(f"The date {text!r} does not exist") from None
    if hour is None:
        return midnight, midnight + DAY
    lo, width = _clock(text, hour, minute, second, fraction)
    lo += midnight
    if zone is not None and zone != "Z":
        lo -= _offset(text, zone) * MINUTE
    return lo, lo + width


def time_interval(text: str) -> tuple[int, int]:
    """`time` (`14:30:00`) → `(lo, hi)`, half-open, in ms since midnight. Raises DateError."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise DateError(f"{text!r} is not a time: expected hh:mm:ss")
    lo, width = _clock(text, *match.groups())
    return lo, lo + width


def precision(text: str) -> Precision:
    """How exact a `date`, `dateTime` or `instant` is. Raises DateError for a text of another form."""
    match = _DATE_TIME.fullmatch(text)
    if match is None:
        raise _not_a_date(text)
    _, month, day, hour, _, second, fraction, _ = match.groups()
    if hour is None:
        return "day" if day else "month" if month else "year"
    return "millisecond" if fraction else "second" if second else "minute"


def milliseconds(moment: datetime) -> int:
    """An aware datetime → ms since 1970 UTC; microseconds are cut."""
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return since.days * DAY + since.seconds * SECOND + since.microseconds // 1_000


def instant(moment: datetime | int) -> str:
    """An aware datetime, or ms since 1970 UTC → `2024-05-01T10:00:00.123Z`, the form of `meta.lastUpdated`."""
    total = moment if isinstance(moment, int) else milliseconds(moment)
    if not _FIRST_INSTANT <= total <= _LAST_INSTANT:
        raise DateError(f"{total} ms since 1970 is outside the years 0001 to 9999")
    days, rest = divmod(total, DAY)
    day = date.fromordinal(days + _EPOCH).isoformat()
    hours, rest = divmod(rest, HOUR)
    minutes, rest = divmod(rest, MINUTE)
    seconds, millis = divmod(rest, SECOND)
    return f"{day}T{hours:02}:{minutes:02}:{seconds:02}.{millis:03}Z"


def _month_or_year(year: int, month: str | None) -> tuple[int, int]:
    first = date(year, int(month) if month else 1, 1).toordinal()
    # Not 1 January of the next year: 9999 has none.
    end = (
        date(year, 12, 31).toordinal() + 1 if month in (None, "12") else date(year, int(month or 0) + 1, 1).toordinal()
    )
    return (first - _EPOCH) * DAY, (end - _EPOCH) * DAY


def _clock(text: str, hour: str, minute: str, second: str | None, fraction: str | None) -> tuple[int, int]:
    """`(ms since midnight, width in ms)`."""
    hours, minutes, seconds = int(hour), int(minute), int(second or 0)
    if hours > 23 or minutes > 59 or seconds > 60:
        raise DateError(f"The time in {text!r} does not exist")
    lo = hours * HOUR + minutes * MINUTE + seconds * SECOND
    if second is None:
        return lo, MINUTE
    if fraction is None:
        return lo, SECOND
    width = 10 ** max(0, 3 - len(fraction))
    return lo + int(fraction[:3].ljust(3, "0")), width


def _offset(text: str, zone: str) -> int:
    """`+08:00` → minutes east of UTC."""
    hours, minutes = int(zone[1:3]), int(zone[4:])
    if minutes > 59 or hours * 60 + minutes > 14 * 60:
        raise DateError(f"The zone of {text!r} does not exist: zones run from -14:00 to +14:00")
    offset = hours * 60 + minutes
    return -offset if zone[0] == "-" else offset


def _not_a_date(text: str) -> DateError:
    return DateError(f"{text!r} is not a date: expected YYYY, YYYY-MM, YYYY-MM-DD or YYYY-MM-DDThh:mm:ss with a zone")

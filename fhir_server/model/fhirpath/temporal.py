"""Dates and times in expressions: comparing what is partial, adding durations. https://hl7.org/fhirpath/N1/#datetime

Seconds and milliseconds are one precision, as FHIRPath has it.
"""

from __future__ import annotations

import re
from calendar import monthrange
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Final

from fhir_server.model.dates import DAY, HOUR, MINUTE, SECOND, DateError

EARLIEST_ZONE: Final = 14 * HOUR  # a local time may be this much ahead of UTC
LATEST_ZONE: Final = 12 * HOUR  # or this much behind
SPAN_MS: Final = {"week": 7 * DAY, "day": DAY, "hour": HOUR, "minute": MINUTE, "second": SECOND, "millisecond": 1}

_DATE: Final = r"(?P<year>\d{4})(?:-(?P<month>\d\d)(?:-(?P<day>\d\d))?)?"
_CLOCK: Final = r"(?P<hour>\d\d)(?::(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d+))?)?)?"
_FORMS: Final = {
    "Date": re.compile(_DATE, re.ASCII),
    "DateTime": re.compile(rf"{_DATE}(?:T(?:{_CLOCK})?(?P<zone>Z|[+-]\d\d:\d\d)?)?", re.ASCII),
    "Time": re.compile(rf"T?{_CLOCK}", re.ASCII),
}
_EPOCH: Final = date(1970, 1, 1).toordinal()


@dataclass(frozen=True, slots=True)
class Temporal:
    """A Date, DateTime or Time. `parts` from the largest unit down; a second's fraction is its own last part, in ms.

    Date and DateTime: year, month, day, hour, minute, second, millisecond. Time: from the hour. `zone` in minutes east.
    """

    kind: str
    parts: tuple[int, ...]
    zone: int | None = None
    utc: bool = False  # the zone was written `Z`

    @classmethod
    def parse(cls, text: str, kind: str) -> Temporal:
        """Raises DateError for another form and for dates that do not exist."""
        match = _FORMS[kind].fullmatch(text)
        if match is None:
            raise DateError(f"{text!r} is no {kind}")
        found = match.groupdict()
        names = ("year", "month", "day", "hour", "minute", "second")
        parts = [int(found[name]) for name in names if found.get(name) is not None]
        if found.get("fraction"):
            parts.append(int(found["fraction"][:3].ljust(3, "0")))
        zone = found.get("zone")
        made = cls(kind, tuple(parts), _minutes(zone) if zone else None, zone == "Z")
        made.bounds()
        return made

    @classmethod
    def of(cls, moment: datetime, kind: str = "DateTime") -> Temporal:
        """An aware datetime, in its own zone."""
        day = (moment.year, moment.month, moment.day)
        clock = (moment.hour, moment.minute, moment.second, moment.microsecond // 1000)
        if kind == "Date":
            return cls("Date", day)
        if kind == "Time":
            return cls("Time", clock)
        offset = moment.utcoffset()
        return cls("DateTime", day + clock, int(offset.total_seconds()) // 60 if offset else 0)

    @property
    def _clock(self) -> tuple[int, ...]:
        return self.parts if self.kind == "Time" else self.parts[3:]

    @property
    def precision(self) -> int:
        """Units given, from the year (the hour for a Time); seconds with and without a fraction count alike."""
        return len(self.parts) - (len(self._clock) == 4)

    def bounds(self) -> tuple[int, int]:
        """First and last millisecond, in UTC if there is a zone, else as written; seconds are exact."""
        clock = self._clock
        if any(part > limit for part, limit in zip(clock, (23, 59, 60, 999), strict=False)):
            raise DateError(f"The time {self} does not exist")
        lo = sum(part * unit for part, unit in zip(clock, (HOUR, MINUTE, SECOND, 1), strict=False))
        width = (DAY, HOUR, MINUTE, 1, 1)[len(clock)]
        if self.kind == "Time":
            return lo, lo + width - 1
        if len(self.parts) < 3:
            return self._month_or_year()
        try:
            lo += (date(*self.parts[:3]).toordinal() - _EPOCH) * DAY
        except ValueError:
            raise DateError(f"The date {self} does not exist") from None
        lo -= (self.zone or 0) * MINUTE
        return lo, lo + width - 1

    def _month_or_year(self) -> tuple[int, int]:
        year = self.parts[0]
        first, last = self.parts[1:2] or (1,), self.parts[1:2] or (12,)
        try:
            start = date(year, first[0], 1).toordinal()
            end = date(year, last[0], monthrange(year, last[0])[1]).toordinal()
        except ValueError:
            raise DateError(f"The date {self} does not exist") from None
        return (start - _EPOCH) * DAY, (end + 1 - _EPOCH) * DAY - 1

    def compare(self, other: Temporal) -> int | None:
        """-1, 0, 1; None when the precision, or a zone only one of them has, leaves it open."""
        (lo, hi), (other_lo, other_hi) = self.bounds(), other.bounds()
        vague = (self.zone is None) != (other.zone is None) and self.kind != "Time"
        if vague and not (self._clock and other._clock):  # a day is meant where the other one's clock stands
            lo, hi = (bound + (self.zone or 0) * MINUTE for bound in (lo, hi))
            other_lo, other_hi = (bound + (other.zone or 0) * MINUTE for bound in (other_lo, other_hi))
            vague = False
        if vague and self.zone is None:
            lo, hi = lo - EARLIEST_ZONE, hi + LATEST_ZONE
        elif vague:
            other_lo, other_hi = other_lo - EARLIEST_ZONE, other_hi + LATEST_ZONE
        if hi < other_lo:
            return -1
        if other_hi < lo:
            return 1
        return 0 if not vague and self.precision == other.precision else None

    def plus(self, amount: Decimal, unit: str) -> Temporal:
        """`amount` calendar units later (earlier if negative). Raises DateError beyond the years 1 to 9999.

        What is finer than the precision is cut: 18 months after 2020 is 2021.
        """
        if self.kind == "Time":
            return self._clock_plus(amount, unit)
        if unit in ("year", "month"):
            return self._months_later(int(amount) * (12 if unit == "year" else 1))
        if len(self.parts) < 3:
            days = int(amount * SPAN_MS[unit]) // DAY if amount >= 0 else -(int(-amount * SPAN_MS[unit]) // DAY)
            return self._months_later(int(days / 30) if len(self.parts) == 2 else int(days / 365) * 12)
        change = _exact_ms(amount, unit)
        clock = self._clock
        width = (DAY, HOUR, MINUTE, SECOND, 1)[len(clock)]
        if width > 1 and change % width:
            change = int(Decimal(change) / width) * width if len(clock) < 3 else change
        local = self.bounds()[0] + (self.zone or 0) * MINUTE + change
        days, rest = divmod(local, DAY)
        if not 1 <= days + _EPOCH <= date.max.toordinal():
            raise DateError(f"{self} plus {amount} {unit}s is outside the years 0001 to 9999")
        day = date.fromordinal(days + _EPOCH)
        return self._with((day.year, day.month, day.day, *_clock_parts(rest)))

    def _clock_plus(self, amount: Decimal, unit: str) -> Temporal:
        if unit not in ("hour", "minute", "second", "millisecond"):
            raise DateError(f"A time has no {unit}s to add to")
        width = (0, HOUR, MINUTE, SECOND, 1)[len(self.parts)]
        change = _exact_ms(amount, unit)
        if len(self.parts) < 3:
            change = int(Decimal(change) / width) * width
        return self._with(_clock_parts((self.bounds()[0] + change) % DAY))

    def _months_later(self, months: int) -> Temporal:
        year, month = divmod(self.parts[0] * 12 + (self.parts[1] if len(self.parts) > 1 else 1) - 1 + months, 12)
        if not 1 <= year <= 9999:
            raise DateError(f"{self} plus {months} months is outside the years 0001 to 9999")
        if len(self.parts) < 3:
            return self._with((year, month + 1))
        day = min(self.parts[2], monthrange(year, month + 1)[1])
        return self._with((year, month + 1, day, *self.parts[3:]))

    def _with(self, parts: tuple[int, ...]) -> Temporal:
        length = len(self.parts)
        if len(self._clock) == 3 and len(parts) > length and parts[length]:
            length += 1  # a whole second that gained milliseconds
        return Temporal(self.kind, parts[:length], self.zone, self.utc)

    def as_kind(self, kind: str) -> Temporal:
        """Date ↔ DateTime; a DateTime loses its clock."""
        if kind == self.kind:
            return self
        return Temporal(kind, self.parts[:3]) if kind == "Date" else Temporal(kind, self.parts)

    def __str__(self) -> str:
        day = "" if self.kind == "Time" else "-".join((f"{self.parts[0]:04}", *(f"{p:02}" for p in self.parts[1:3])))
        clock = ":".join(f"{part:02}" for part in self._clock[:3])
        if len(self._clock) == 4:
            clock += f".{self._clock[3]:03}"
        return f"{day}{'T' if day and clock else ''}{clock}{self._zone_text()}"

    def _zone_text(self) -> str:
        if self.zone is None:
            return ""
        if self.utc:
            return "Z"
        return f"{'-' if self.zone < 0 else '+'}{abs(self.zone) // 60:02}:{abs(self.zone) % 60:02}"


def _minutes(zone: str) -> int:
    if zone == "Z":
        return 0
    minutes = int(zone[1:3]) * 60 + int(zone[4:])
    if minutes > 14 * 60 or int(zone[4:]) > 59:
        raise DateError(f"The zone {zone} does not exist")
    return -minutes if zone[0] == "-" else minutes


def _exact_ms(amount: Decimal, unit: str) -> int:
    """Whole units only for days and more, as FHIRPath wants; seconds keep their fraction to the millisecond."""
    if unit == "second":
        return int(amount * SECOND)
    return int(amount) * SPAN_MS[unit]


def _clock_parts(ms: int) -> tuple[int, ...]:
    hours, ms = divmod(ms, HOUR)
    minutes, ms = divmod(ms, MINUTE)
    seconds, ms = divmod(ms, SECOND)
    return hours, minutes, seconds, ms

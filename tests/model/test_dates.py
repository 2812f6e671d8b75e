"""Dates: what a text covers, what does not exist."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fhir_server.model.dates import DAY, DateError, instant, interval, milliseconds, precision, time_interval

MAY_FIRST = 1_714_521_600_000  # date -ud 2024-05-01 +%s


@pytest.mark.parametrize(
    ("text", "lo", "width"),
    [
        ("1970", 0, 365 * DAY),
        ("1970-02", 31 * DAY, 28 * DAY),
        ("2024-05", MAY_FIRST, 31 * DAY),
        ("2024-05-01", MAY_FIRST, DAY),
        ("2024-05-01T10:00", MAY_FIRST + 36_000_000, 60_000),
        ("2024-05-01T10:00:00", MAY_FIRST + 36_000_000, 1_000),
        ("2024-05-01T10:00:00Z", MAY_FIRST + 36_000_000, 1_000),
        ("2024-05-01T10:00:00.1Z", MAY_FIRST + 36_000_100, 100),
        ("2024-05-01T10:00:00.12Z", MAY_FIRST + 36_000_120, 10),
        ("2024-05-01T10:00:00.123Z", MAY_FIRST + 36_000_123, 1),
        ("2024-05-01T10:00:00.1239999Z", MAY_FIRST + 36_000_123, 1),
        ("2024-05-01T18:00:00+08:00", MAY_FIRST + 36_000_000, 1_000),
        ("2024-04-30T20:00:00-14:00", MAY_FIRST + 36_000_000, 1_000),
        ("1969-12-31T23:59:59.999Z", -1, 1),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000, 1_000),
        ("0001", -62_135_596_800_000, 365 * DAY),
        ("9999", 253_370_764_800_000, 365 * DAY),
        ("9999-12", 253_370_764_800_000 + 334 * DAY, 31 * DAY),
    ],
)
def test_an_interval_covers_what_the_text_leaves_open(text: str, lo: int, width: int) -> None:
    assert interval(text) == (lo, lo + width)


@pytest.mark.parametrize(
    "text",
    [
        "", "24", "0000", "2023-02-29", "2024-13", "2024-00", "2024-04-31", "2024-05-01T24:00:00Z", "2024-05-01T10:60Z",
        "2024-05-01T10:00:61Z", "2024-05-01T10Z", "2024-05-01T10:00:00+15:00", "2024-05-01T10:00:00+00:60", "2024-5-1",
        "2024-05-01 10:00:00", "2024-05-01T10:00:00.Z", " 2024", "2024\n", "٢٠٢٤", "2024Z", "2024-05-01Z",
    ],
)  # fmt: skip
def test_what_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(DateError):
        interval(text)


def test_an_invalid_date_is_a_value_error_and_an_answer() -> None:
    with pytest.raises(ValueError, match="2023-02-29") as caught:
        interval("2023-02-29")
    assert isinstance(caught.value, DateError)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("text", "expected"),
    [("00:00", (0, 60_000)), ("14:30:00", (52_200_000, 52_201_000)), ("23:59:59.999", (DAY - 1, DAY))],
)
def test_times_count_from_midnight(text: str, expected: tuple[int, int]) -> None:
    assert time_interval(text) == expected


@pytest.mark.parametrize("text", ["14", "24:00:00", "14:30:00Z", "1:00:00"])
def test_no_such_time(text: str) -> None:
    with pytest.raises(DateError):
        time_interval(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024", "year"),
        ("2024-05", "month"),
        ("2024-05-01", "day"),
        ("2024-05-01T10:00", "minute"),
        ("2024-05-01T10:00:00Z", "second"),
        ("2024-05-01T10:00:00.1Z", "millisecond"),
    ],
)
def test_precision(text: str, expected: str) -> None:
    assert precision(text) == expected


def test_instant() -> None:
    shanghai = timezone(timedelta(hours=8))
    assert instant(datetime(2024, 5, 1, 18, 0, 0, 123_999, tzinfo=shanghai)) == "2024-05-01T10:00:00.123Z"
    assert instant(MAY_FIRST) == "2024-05-01T00:00:00.000Z"
    with pytest.raises(DateError):
        instant(10**15)


@given(st.datetimes(timezones=st.just(UTC)))
def test_an_instant_reads_back_as_itself(moment: datetime) -> None:
    total = milliseconds(moment)
    assert interval(instant(moment)) == (total, total + 1)
    assert instant(total) == instant(moment)


@given(st.dates(), st.integers(-14 * 60, 14 * 60))
def test_a_zone_moves_the_interval(day: date, offset: int) -> None:
    sign = "-" if offset < 0 else "+"
    zone = f"{sign}{abs(offset) // 60:02}:{abs(offset) % 60:02}"
    lo, hi = interval(f"{day.isoformat()}T00:00:00{zone}")
    assert lo == interval(day.isoformat())[0] - offset * 60_000
    assert hi - lo == 1_000

"""When a recurring task is due: cron expressions in time zones whose clocks are moved."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise, product
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dj_queue.operations.schedule import latest_tick, next_tick

pytestmark = pytest.mark.pure  # no database has a part in it

NEW_YORK = "America/New_York"
BERLIN = "Europe/Berlin"
LORD_HOWE = "Australia/Lord_Howe"  # puts its clock forward by half an hour
ZONES = [NEW_YORK, BERLIN, LORD_HOWE]

HOURLY, QUARTERLY = "0 * * * *", "*/15 * * * *"


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


def ticks(expression: str, zone: str, after: datetime, until: datetime) -> list[datetime]:
    found = []
    tick = after
    while (following := next_tick(expression, zone, tick)) and following < until:
        assert following > tick
        assert following.tzinfo is UTC
        found.append(tick := following)
    return found


# (zone, local day, expression, what the clock in UTC shows at each tick)
DST = [
    # New York, 8 March 2026: 02:00 becomes 03:00, at 07:00 UTC. 1 November: 02:00 becomes 01:00, at 06:00.
    (NEW_YORK, (2026, 3, 8), "0 0-4 * * *", ["05:00", "06:00", "07:00", "08:00"]),
    (NEW_YORK, (2026, 3, 8), "30 1 * * *", ["06:30"]),
    (
        NEW_YORK,
        (2026, 3, 8),
        "30 2 * * *",
        ["07:30"],
    ),  # an hour later by the clock, 03:30, as if it were not put forward
    (NEW_YORK, (2026, 3, 8), "0 3 * * *", ["07:00"]),
    (NEW_YORK, (2026, 11, 1), "30 1 * * *", ["05:30"]),  # the first of two 01:30
    (NEW_YORK, (2026, 11, 1), "30 2 * * *", ["07:30"]),
    (NEW_YORK, (2026, 11, 1), "0 0-3 * * *", ["04:00", "05:00", "07:00", "08:00"]),
    # Berlin, 29 March 2026: 02:00 becomes 03:00, at 01:00 UTC. 25 October: 03:00 becomes 02:00, at 01:00.
    (BERLIN, (2026, 3, 29), "30 2 * * *", ["01:30"]),
    (BERLIN, (2026, 3, 29), "30 1 * * *", ["00:30"]),
    (BERLIN, (2026, 3, 29), "30 3 * * *", ["01:30"]),
    (BERLIN, (2026, 3, 29), "30 2,3 * * *", ["01:30"]),  # one instant, one tick
    (BERLIN, (2026, 10, 25), "30 2 * * *", ["00:30"]),
    (BERLIN, (2026, 10, 25), "30 1 * * *", ["23:30"]),
    (BERLIN, (2026, 10, 25), "30 3 * * *", ["02:30"]),
    # Lord Howe, 4 October 2026: 02:00 becomes 02:30, at 15:30 UTC. 5 April: 02:00 becomes 01:30, at 15:00.
    (LORD_HOWE, (2026, 10, 4), "15 2 * * *", ["15:45"]),
    (LORD_HOWE, (2026, 10, 4), "30 2 * * *", ["15:30"]),
    (LORD_HOWE, (2026, 10, 4), "45 1 * * *", ["15:15"]),
    (LORD_HOWE, (2026, 4, 5), "45 1 * * *", ["14:45"]),
    (LORD_HOWE, (2026, 4, 5), "30 1 * * *", ["14:30"]),
    (LORD_HOWE, (2026, 4, 5), "0 2 * * *", ["15:30"]),
    (LORD_HOWE, (2026, 4, 5), "45 * * * *", ["13:45", "14:45", "15:15"]),  # what the clock shows twice, hourly: twice
]


@pytest.mark.parametrize(("zone", "day", "expression", "expected"), DST)
def test_a_day_on_which_the_clock_is_moved(
    zone: str, day: tuple[int, int, int], expression: str, expected: list[str]
) -> None:
    start = datetime(*day, tzinfo=ZoneInfo(zone)).astimezone(UTC)
    hours = 23 if expression[0] not in "45" or "*" not in expression.split()[1] else 2.5
    found = ticks(expression, zone, start - timedelta(seconds=1), start + timedelta(hours=hours))
    assert [f"{tick:%H:%M}" for tick in found] == expected
    for tick in found:
        assert latest_tick(expression, zone, tick) == tick
        assert latest_tick(expression, zone, tick + timedelta(seconds=1)) == tick


@pytest.mark.parametrize(
    ("zone", "moved"),
    [
        (NEW_YORK, utc(2026, 3, 8, 7)),
        (NEW_YORK, utc(2026, 11, 1, 6)),
        (BERLIN, utc(2026, 3, 29, 1)),
        (BERLIN, utc(2026, 10, 25, 1)),
    ],
)
@pytest.mark.parametrize(
    ("expression", "minutes"), [(HOURLY, 60), ("30 * * * *", 60), (QUARTERLY, 15), ("* * * * *", 1)]
)
def test_what_fires_every_hour_keeps_its_pace(zone: str, moved: datetime, expression: str, minutes: int) -> None:
    """A clock moved by an hour changes nothing of it: no gap, nothing twice."""
    around = timedelta(hours=6 if minutes > 1 else 2)
    found = ticks(expression, zone, moved - around, moved + around)
    gaps = {later - earlier for earlier, later in pairwise(found)}
    assert gaps == {timedelta(minutes=minutes)}
    assert len(found) >= 2 * around / timedelta(minutes=minutes) - 1


@cache
def expected_ticks(expression: str, zone: str, year: int) -> list[datetime]:
    """The ticks of a local year by the stated policy: every time on the wall, one by one."""
    fields = zip(expression.split(), (60, 24, 32, 13, 8), strict=True)
    minutes, hours, days, _, weekdays = (_values(text, top) for text, top in fields)
    info = ZoneInfo(zone)
    found = set()
    for number in range((datetime(year + 1, 1, 1) - datetime(year, 1, 1)).days):
        day = datetime(year, 1, 1) + timedelta(days=number)
        if day.day not in days or day.isoweekday() % 7 not in weekdays:
            continue
        for hour, minute in product(hours, minutes):
            wall = day.replace(hour=hour, minute=minute, tzinfo=info)
            found.add(wall.astimezone(UTC))
            again = wall.replace(fold=1)
            if len(hours) == 24 and wall.utcoffset() > again.utcoffset():  # the clock shows it twice
                found.add(again.astimezone(UTC))
    return sorted(found)


def _values(text: str, top: int) -> set[int]:
    if text.startswith("*"):
        return set(range(0, top, int(text[2:] or 1)))
    return {int(number) for number in text.split(",")}


YEARLY_EXPRESSIONS = [HOURLY, "30 2 * * *", "30 1 * * *", "0 0,2,3 * * *", "15 1,2 * * 0", "30 2 1 * *"]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("year", [2026, 2028])
@pytest.mark.parametrize("expression", YEARLY_EXPRESSIONS)
def test_every_tick_of_a_year(expression: str, zone: str, year: int) -> None:
    start, end = (datetime(n, 1, 1, tzinfo=ZoneInfo(zone)).astimezone(UTC) for n in (year, year + 1))
    found = ticks(expression, zone, start - timedelta(seconds=1), end)
    days = 366 if year == 2028 else 365
    expected = {HOURLY: 24 * days, "30 2 * * *": days, "30 1 * * *": days, "30 2 1 * *": 12}
    assert len(found) == expected.get(expression, len(found))
    assert found == expected_ticks(expression, zone, year)


@pytest.mark.parametrize("zone", [*ZONES, "Africa/Casablanca", "America/Caracas", "Asia/Kathmandu", "UTC"])
@hypothesis_settings(max_examples=60, deadline=None, database=None)
@given(
    expression=st.sampled_from([*YEARLY_EXPRESSIONS, QUARTERLY, "59 23 * * *", "0 0 * * 0", "45 * * * *"]),
    at=st.datetimes(datetime(2025, 6, 1), datetime(2027, 6, 1), timezones=st.just(UTC)),
)
@example(expression="30 2 * * *", at=utc(2026, 3, 8, 7, 30))
@example(expression=HOURLY, at=utc(2026, 11, 1, 6))
@example(expression="45 * * * *", at=utc(2026, 4, 4, 15, 15))
def test_the_latest_tick_is_the_greatest_that_is_not_later(zone: str, expression: str, at: datetime) -> None:
    latest = latest_tick(expression, zone, at)
    assert latest is not None
    assert latest <= at < next_tick(expression, zone, latest)
    assert next_tick(expression, zone, latest - timedelta(microseconds=1)) == latest
    assert latest_tick(expression, zone, latest) == latest
    assert latest_tick(expression, zone, latest - timedelta(microseconds=1)) < latest
    nearby = [tick for year in (at.year - 1, at.year, at.year + 1) for tick in expected_ticks(expression, zone, year)]
    assert latest == max(tick for tick in nearby if tick <= at)
    assert next_tick(expression, zone, at) == min(tick for tick in nearby if tick > at)


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("@daily", utc(2026, 1, 1), utc(2026, 1, 2)),
        ("* * * * * */10", utc(2026, 1, 1, 0, 0, 1), utc(2026, 1, 1, 0, 0, 10)),
        ("0 9 * * mon-fri", utc(2026, 1, 2, 9), utc(2026, 1, 5, 9)),
        ("0 0 L * *", utc(2028, 2, 1), utc(2028, 2, 29)),
        ("0 0 29 2 *", utc(2026, 1, 1), utc(2028, 2, 29)),
        ("0 12 1 1 * 0 2035", utc(2026, 1, 1), utc(2035, 1, 1, 12)),
    ],
)
def test_kinds_of_expressions(expression: str, after: datetime, expected: datetime) -> None:
    assert next_tick(expression, "UTC", after) == expected
    assert latest_tick(expression, "UTC", expected) == expected


def test_the_time_zone_of_the_project_is_the_default(settings: Any) -> None:
    for zone, hour in (("UTC", 3), (BERLIN, 1), (NEW_YORK, 7)):
        settings.TIME_ZONE = zone
        assert next_tick("0 3 * * *", None, utc(2026, 7, 1)) == utc(2026, 7, 1, hour)
        assert next_tick("0 3 * * *", "Asia/Kathmandu", utc(2026, 7, 1)) == utc(2026, 7, 1, 21, 15)

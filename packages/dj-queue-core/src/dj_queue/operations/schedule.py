"""When a cron expression fires, in a time zone whose clock is put forward and back.

An expression that names hours follows the clock on the wall: what the clock skips happens as much
later as it was put forward, and what it shows twice happens the first time. An expression for every
hour follows time itself: it fires each hour, also in the hour that the clock shows twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.utils import timezone as zones

# No zone's clock was ever moved further at once, but for changes of the date itself.
_WINDOW = timedelta(hours=4)
_SECOND = timedelta(seconds=1)


def next_tick(expression: str, timezone: str | None, after: datetime) -> datetime | None:
    """Return the first tick later than `after`, in UTC; None if there will be none."""
    zone = _zone(timezone)
    wall = _wall(after, zone)
    found = next(_walls(expression, wall), None)
    if found is not None and _steady(zone, wall, found):
        return _instant(found, zone)
    # The clock moves somewhere near: what it shows and what time it is may be in different orders.
    moved = _moved(zone, wall, found or wall)
    ticks: list[datetime] = []
    for match in _walls(expression, wall - moved):
        if ticks and match > _wall(min(ticks), zone) + moved:
            break
        ticks += [tick for tick in _instants(match, zone, expression) if tick > after]
    return min(ticks, default=None)


def latest_tick(expression: str, timezone: str | None, until: datetime) -> datetime | None:
    """Return the last tick that is not later than `until`, in UTC; None if there was none."""
    zone = _zone(timezone)
    wall = _floor(_wall(until, zone)) + _SECOND
    found = next(_walls(expression, wall, back=True), None)
    if found is not None and _steady(zone, found, wall):
        return _instant(found, zone)
    moved = _moved(zone, found or wall, wall)
    ticks: list[datetime] = []
    for match in _walls(expression, wall + moved, back=True):
        if ticks and match < _wall(max(ticks), zone) - moved:
            break
        ticks += [tick for tick in _instants(match, zone, expression) if tick <= until]
    return max(ticks, default=None)


def aware(time: datetime) -> datetime:
    """A time as models have it. Without USE_TZ, that is the project's local time and does not say so."""
    return time if zones.is_aware(time) else zones.make_aware(time, zones.get_default_timezone())


def as_stored(time: datetime) -> datetime:
    """A time for a model to have."""
    return time if settings.USE_TZ else zones.make_naive(time, zones.get_default_timezone())


def _walls(expression: str, start: datetime, *, back: bool = False) -> Iterator[datetime]:
    """The times on the wall that the expression means, from `start` on or before it."""
    from croniter import CroniterBadDateError

    cron = _cron(expression, start)
    step = cron.get_prev if back else cron.get_next
    with suppress(CroniterBadDateError):  # no more of them
        while True:
            yield step()


def _cron(expression: str, start: datetime) -> Any:
    from croniter import croniter  # a project without recurring tasks does not load it

    return croniter(expression, start, ret_type=datetime)


def _zone(name: str | None) -> ZoneInfo:
    return ZoneInfo(name or settings.TIME_ZONE)


def _wall(instant: datetime, zone: ZoneInfo) -> datetime:
    """What the clock on the wall shows, without a zone."""
    return instant.astimezone(zone).replace(tzinfo=None)


def _floor(wall: datetime) -> datetime:
    return wall.replace(microsecond=0)


def _steady(zone: ZoneInfo, first: datetime, last: datetime) -> bool:
    """Whether the clock is not moved between two times on the wall, nor just before or after."""
    start = (first - _WINDOW).replace(tzinfo=zone)
    end = (last + _WINDOW).replace(tzinfo=zone)
    if last - first > timedelta(days=60):  # long enough to be put forward and back again
        return False
    return start.utcoffset() == end.utcoffset()


def _moved(zone: ZoneInfo, first: datetime, last: datetime) -> timedelta:
    """By how much the clock is moved around these times on the wall."""
    around = (wall + side * _WINDOW for wall in (first, last) for side in (-1, 0, 1))
    offsets = [wall.replace(tzinfo=zone).utcoffset() or timedelta() for wall in around]
    return max(offsets) - min(offsets)


def _instant(wall: datetime, zone: ZoneInfo) -> datetime:
    # For a time that does not exist, the offset from before the change: as much later as it was.
    return wall.replace(tzinfo=zone, fold=0).astimezone(UTC)


def _instants(wall: datetime, zone: ZoneInfo, expression: str) -> Iterator[datetime]:
    first = _instant(wall, zone)
    yield first
    second = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    if second > first and _every_hour(expression):
        yield second


def _every_hour(expression: str) -> bool:
    hours = _cron(expression, datetime(2000, 1, 1)).expanded[1]
    return hours == ["*"] or len(hours) == 24

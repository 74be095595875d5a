"""The database's clock, as an expression for querysets and as SQL."""

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import functions
from django.utils import timezone


def in_utc(connection: BaseDatabaseWrapper) -> bool:
    """Whether Django stores times in UTC, where columns know no zone."""
    return bool(settings.USE_TZ) and connection.timezone_name == "UTC"


def mysql_clock(connection: BaseDatabaseWrapper) -> str:
    """Not Django's own: it leaves a session's time zone alone, and then reads that as the project's."""
    if in_utc(connection):
        return "UTC_TIMESTAMP(6)"
    zone = connection.timezone if settings.USE_TZ else timezone.get_default_timezone()
    offset = datetime.now(zone).utcoffset() or timedelta()
    return f"(UTC_TIMESTAMP(6) + INTERVAL {int(offset.total_seconds())} SECOND)"


class Now(functions.Now):
    """The database's clock, as it compares with the times that Django stores."""

    def as_mysql(self, compiler: Any, connection: BaseDatabaseWrapper, **extra_context: Any) -> tuple[str, Any]:
        return self.as_sql(compiler, connection, template=mysql_clock(connection), **extra_context)


def elapsed(since: datetime, now: datetime) -> float:
    """Seconds from one time to a later one, as columns store them; 0 if it is the later one that comes first.

    Times without a zone are read off a clock that is put forward and back: of what may have passed, the least.
    """
    if timezone.is_aware(now) and timezone.is_aware(since):
        return max(0.0, (now - since).total_seconds())
    now, since = (
        timezone.make_naive(time, timezone.get_default_timezone()) if timezone.is_aware(time) else time
        for time in (now, since)
    )
    # Django stores what the process's clock says on one database, and what the project's zone says on another.
    zones: tuple[tzinfo | None, ...] = (timezone.get_default_timezone(), None)
    possible = [(now - since).total_seconds()]
    for zone in zones:
        times = _instants(now, zone)
        possible += [(end - start).total_seconds() for end in times for start in _instants(since, zone)]
    return min((seconds for seconds in possible if seconds >= 0), default=0.0)


def _instants(time: datetime, zone: tzinfo | None) -> list[datetime]:
    """What a time without a zone may mean: two moments, in the hour that comes twice."""
    return [time.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)]

"""The database's clock, as an expression for querysets and as SQL."""

from datetime import datetime, timedelta
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

"""The database's clock, as an expression for querysets and as SQL."""

from typing import Any

from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import functions


def in_utc(connection: BaseDatabaseWrapper) -> bool:
    """Whether Django stores times in UTC, where columns know no zone."""
    return bool(settings.USE_TZ) and connection.timezone_name == "UTC"


def mysql_clock(connection: BaseDatabaseWrapper) -> str:
    """Not Django's own: it leaves a session's time zone alone, and then reads that as UTC."""
    return "UTC_TIMESTAMP(6)" if in_utc(connection) else "CURRENT_TIMESTAMP(6)"


class Now(functions.Now):
    """The database's clock, as it compares with the times that Django stores."""

    def as_mysql(self, compiler: Any, connection: BaseDatabaseWrapper, **extra_context: Any) -> tuple[str, Any]:
        return self.as_sql(compiler, connection, template=mysql_clock(connection), **extra_context)

"""The only place that knows one database from another."""

from functools import cache

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from dj_queue.dialects.base import (
    Claim,
    Dialect,
    LimitedJob,
    NewJob,
    Outcome,
    QueueCounts,
    Selector,
    SemaphoreState,
    UnblockedJob,
)

__all__ = [
    "Claim",
    "Dialect",
    "LimitedJob",
    "NewJob",
    "Outcome",
    "QueueCounts",
    "Selector",
    "SemaphoreState",
    "UnblockedJob",
    "dialect_for",
]


def dialect_for(database: str) -> Dialect:
    """Return the dialect of a database alias."""
    return _dialect(connections[database].vendor, database)


@cache
def _dialect(vendor: str, database: str) -> Dialect:
    if vendor == "postgresql":
        from dj_queue.dialects.postgresql import PostgreSQL

        return PostgreSQL()
    if vendor == "sqlite":
        from dj_queue.dialects.sqlite import SQLite

        return SQLite()
    raise ImproperlyConfigured(
        f"DATABASES[{database!r}] is a {vendor} database, and dj-queue runs on PostgreSQL and SQLite. "
        "Name one of those as the option database_alias."
    )

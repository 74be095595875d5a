"""The only place that knows one database from another."""

from functools import cache

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from dj_queue.dialects.base import Claim, Dialect, NewJob, Outcome, Selector, UnblockedJob
from dj_queue.dialects.clock import Now

__all__ = ["Claim", "Dialect", "NewJob", "Now", "Outcome", "Selector", "UnblockedJob", "dialect_for"]


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
    if vendor == "mysql":
        from dj_queue.dialects.mysql import MySQL

        return MySQL()
    raise ImproperlyConfigured(
        f"DATABASES[{database!r}] is a {vendor} database, and dj-queue runs on PostgreSQL, MariaDB, MySQL and SQLite. "
        "Name one of those as the option database_alias."
    )

"""The only place that knows one database from another."""

from functools import cache

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from dj_queue.dialects.base import (
    FIRST_WORKERS,
    MOST_WORKERS,
    Claim,
    Dialect,
    LimitedJob,
    LockedSemaphore,
    NewJob,
    Outcome,
    QueueCounts,
    Selector,
    SemaphoreState,
    UnblockedJob,
)
from dj_queue.dialects.clock import elapsed

__all__ = [
    "FIRST_WORKERS",
    "MOST_WORKERS",
    "Claim",
    "Dialect",
    "LimitedJob",
    "LockedSemaphore",
    "NewJob",
    "Outcome",
    "QueueCounts",
    "Selector",
    "SemaphoreState",
    "UnblockedJob",
    "dialect_for",
    "elapsed",
    "has_schemas",
    "in_transaction",
]


# By what their engines have in their names, Django's own and others'.
_DRIVERS = {"postg": '"dj-queue-core[postgres]"', "mysql": "mysqlclient"}


def dialect_for(database: str) -> Dialect:
    """Return the dialect of a database alias; nothing is connected for it.

    Raises `ImproperlyConfigured` if the database has none, or lacks its driver.
    """
    try:
        vendor = connections[database].vendor
    except ImproperlyConfigured as error:
        raise _without_driver(database, error) from error
    return _dialect(vendor, database)


def has_schemas(database: str) -> bool:
    """Whether each tenant has a schema of its own on this database, as with the engine of django-tenants."""
    try:
        return hasattr(connections[database], "set_schema")
    except ImproperlyConfigured:  # it cannot be used at all
        return False


def in_transaction(connection: BaseDatabaseWrapper) -> bool | None:
    """Whether an open connection is inside a transaction, or broken; None where only its server could tell.

    Asks nothing of the server. The connection may be the application's, to a database of any vendor.
    """
    try:
        dialect = _dialect(connection.vendor, connection.alias)
    except ImproperlyConfigured:
        return None
    try:
        return dialect.in_transaction(connection)
    except Exception:  # whatever a driver raises for a connection that the application has closed
        return True


def _without_driver(database: str, error: ImproperlyConfigured) -> ImproperlyConfigured:
    engine = str(connections.settings[database]["ENGINE"])
    reason = str(error).splitlines()[0].rstrip(".")
    for part, package in _DRIVERS.items():
        if part in engine and "loading" in reason:
            return ImproperlyConfigured(
                f"DATABASES[{database!r}] cannot be used: {reason}. Its driver is missing. Run: pip install {package}"
            )
        if part in engine and "newer is required" in reason:
            return ImproperlyConfigured(
                f"DATABASES[{database!r}] cannot be used: {reason}. Run: pip install --upgrade {package}"
            )
    return ImproperlyConfigured(f"DATABASES[{database!r}] cannot be used: {reason}. Correct its ENGINE.")


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

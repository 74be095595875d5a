"""Connections to the queue's database as the runtime uses them: its own, quiet, and watched."""

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from dj_queue.config import BackendConfig
from dj_queue.dialects import dialect_for
from dj_queue.operations import transactions


def to_database(config: BackendConfig, database: str | None = None) -> BaseDatabaseWrapper | None:
    """Open this thread's connection, to the queue's database if no other is named; return it if it is a new one."""
    database = database or config.database_alias
    transactions.dedicate(database)
    connection = connections[database]
    if connection.connection is not None:
        return None
    connection.ensure_connection()
    if config.silence_polling:
        transactions.silence(database)
    dialect_for(database).watch(connection)
    return connection

"""Connections to the queue's database as the runtime uses them: quiet, and watched."""

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from dj_queue.config import BackendConfig
from dj_queue.dialects import dialect_for
from dj_queue.operations import transactions


def connect(config: BackendConfig) -> BaseDatabaseWrapper | None:
    """Open this thread's connection; return it if it is a new one."""
    connection = connections[config.database_alias]
    if connection.connection is not None:
        return None
    connection.ensure_connection()
    if config.silence_polling:
        transactions.silence(config.database_alias)
    dialect_for(config.database_alias).watch(connection)
    return connection

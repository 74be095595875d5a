"""Statements that a session of the runtime's own prepares once: to plan a claim takes longer than to claim.

Only there. What an application's connection has prepared may be unknown to the session that a pooler gives it next.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any
from weakref import WeakSet

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from django.db.backends.utils import CursorWrapper

# For `prepare_session`: the right plan is known, and does not depend on the values.
SETTINGS = {"plan_cache_mode": "force_generic_plan"}

# invalid_sql_statement_name, duplicate_prepared_statement: it is another session by now.
_LOST = {"26000", "42P05"}

_sessions: WeakSet[Any] = WeakSet()


def keep(connection: BaseDatabaseWrapper) -> None:
    """From now on statements may be prepared on this connection, for as long as it stays open."""
    if is_psycopg3:
        # Django turns it off. Its own cursors, which put the values into the text, do not heed it.
        connection.connection.prepare_threshold = 0
        _sessions.add(connection.connection)


def fetch(cursor: CursorWrapper, statement: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Execute a statement, prepared if the session allows it, and return its rows."""
    connection = cursor.db
    # Wrappers change the text, or look at it; and a log of the queries is to show it with its values.
    watched = connection.execute_wrappers or connection.queries_logged
    if connection.connection in _sessions and not watched:
        try:
            with _cursor(connection) as preparing:
                return _rows(preparing, statement, params)
        except DatabaseError as error:
            if getattr(error.__cause__, "sqlstate", None) not in _LOST:
                raise
            _sessions.discard(connection.connection)
            if connection.in_atomic_block:
                raise
    return _rows(cursor, statement, params)


def _rows(cursor: CursorWrapper, statement: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    cursor.execute(statement, params)
    rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows


@cache
def _cursor_class() -> Any:
    from psycopg import Cursor  # which is not there with psycopg2

    class Preparing(Cursor[tuple[Any, ...]]):
        def execute(self, query: Any, params: Any = None, **_: Any) -> "Preparing":
            return super().execute(query, params, prepare=True)

    return Preparing


def _cursor(connection: BaseDatabaseWrapper) -> CursorWrapper:
    return connection.make_cursor(_cursor_class()(connection.connection))

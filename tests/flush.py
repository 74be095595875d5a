"""Empties the database after a test that commits. Costs what the test has left, not what there might be."""

from typing import Any

from django.core.management.color import no_style
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import TransactionTestCase

# What `post_migrate` puts there, and Django's own flush deletes and puts there again.
_KEPT = {"auth_permission", "django_content_type"}
# Rows of a table that are deleted sooner than tables are truncated.
_FEW = 200


def teardown(test: TransactionTestCase) -> None:
    """Instead of the `_fixture_teardown` of a test case."""
    for alias in test._databases_names(include_mirrors=False):  # type: ignore[attr-defined]
        flush(connections[alias])


def flush(connection: BaseDatabaseWrapper) -> None:
    there = connection.introspection.django_table_names(only_existing=True, include_views=False)
    names = sorted(set(there) - _KEPT)
    left = _left(connection, names)
    if not left:
        return
    statements = connection.ops.sql_flush(no_style(), names if max(left.values()) > _FEW else list(left))
    if max(left.values()) <= _FEW and any(statement.startswith("TRUNCATE") for statement in statements):
        # Which makes new files for each table and index, and takes fifty times as long. Keys are checked at commit.
        statements = [f"DELETE FROM {connection.ops.quote_name(name)}" for name in left]
    connection.ops.execute_sql_flush(statements)


def _left(connection: BaseDatabaseWrapper, names: list[str]) -> dict[str, int]:
    """How many rows, up to a few, those tables have that have any."""
    counts = ", ".join(
        f"(SELECT COUNT(*) FROM (SELECT 1 FROM {connection.ops.quote_name(name)} LIMIT {_FEW + 1}) few)"
        for name in names
    )
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {counts}")
        found: Any = cursor.fetchone()
    return {name: count for name, count in zip(names, found, strict=True) if count}

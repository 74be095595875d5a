"""What a worker's autocommit does, inside the transaction of a test case.

`django.test.TestCase` wraps each test in transactions that never commit. A worker's tasks have none around
them: their callbacks of `on_commit` run, and a statement that fails costs no other.
"""

from __future__ import annotations

from typing import Any

from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper


def run_pending() -> None:
    """Run the callbacks of `on_commit` that nothing but a test case's own transaction holds up."""
    for connection in connections.all(initialized_only=True):
        while connection.run_on_commit and connection.in_atomic_block and _all_of_test_case(connection):
            entry: Any = connection.run_on_commit.pop(0)
            _, callback, robust = entry
            try:
                callback()
            except Exception:
                if not robust:
                    raise


class Savepoints:
    """One on each connection that is in a transaction: for what PostgreSQL would not go on after."""

    def __init__(self) -> None:
        open_ones = [each for each in connections.all(initialized_only=True) if each.in_atomic_block]
        self._made = {each.alias: each.savepoint() for each in open_ones if not each.needs_rollback}

    def end(self, *, failed: bool) -> None:
        """Undo what a failed task did on a connection that no longer answers; keep all else."""
        for alias, savepoint in self._made.items():
            connection = connections[alias]
            if savepoint is None or not connection.in_atomic_block:
                continue
            if failed and not _answers(connection):
                connection.needs_rollback = False  # which would refuse the statement that makes it so
                connection.savepoint_rollback(savepoint)
            else:
                connection.savepoint_commit(savepoint)


def _all_of_test_case(connection: BaseDatabaseWrapper) -> bool:
    return all(getattr(block, "_from_testcase", False) for block in connection.atomic_blocks)


def _answers(connection: BaseDatabaseWrapper) -> bool:
    if connection.needs_rollback:
        return False
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        return False
    return True

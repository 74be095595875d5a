"""One unit of work on the queue's database."""

import random
import time
from collections.abc import Callable
from contextlib import ExitStack

from django.db import DatabaseError, OperationalError, connections, transaction
from django.db.backends.utils import CursorWrapper

from dj_queue import events
from dj_queue.dialects import Dialect, dialect_for

_ATTEMPTS = 8
# Seconds before the second attempt, at most; twice as many before each further one.
_FIRST_PAUSE = 0.005


def run[T](database: str, work: Callable[[Dialect, CursorWrapper], T], *, one_statement: bool = False) -> T:
    """Run `work` in one transaction, again if the database says that it only collided.

    With `one_statement`, `work` is a single statement on databases that can, and then is its own
    transaction. Inside a caller's transaction it joins that one, and a collision is the caller's to
    handle, because the database has already given up what the caller did before.
    """
    connection = connections[database]
    dialect = dialect_for(database)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            if one_statement and dialect.one_statement:
                with connection.cursor() as cursor:
                    return work(dialect, cursor)
            if not connection.in_atomic_block:
                dialect.prepare_transaction(connection)
            with transaction.atomic(using=database), connection.cursor() as cursor:
                return work(dialect, cursor)
        except OperationalError as error:
            if connection.in_atomic_block or attempt == _ATTEMPTS or not dialect.is_transient(error):
                _advise(database, dialect, error)
                raise
            events.emit("transaction.retried", attempt=attempt, error=str(error))
        except DatabaseError as error:
            _advise(database, dialect, error)
            raise
        # Those that collided must not meet again. What is waited for here is a few commits, no event.
        time.sleep(random.uniform(0, _FIRST_PAUSE * 2 ** (attempt - 1)))
    raise AssertionError("unreachable")


def dedicate(database: str) -> None:
    """Give this thread a connection of its own where the others share a pool of Django's.

    The runtime keeps its connections for as long as it runs and adjusts them: they must neither take a
    place in the application's pool nor come back to it.
    """
    shared = connections[database]
    if not shared.settings_dict["OPTIONS"].get("pool"):
        return
    shared.close()
    options = {key: value for key, value in shared.settings_dict["OPTIONS"].items() if key != "pool"}
    connections[database] = type(shared)({**shared.settings_dict, "OPTIONS": options}, database)


def silence(database: str) -> None:
    """Keep this thread's statements on the queue's database out of the SQL log and DEBUG's list of queries."""
    connection = connections[database]
    connection.make_debug_cursor = connection.make_cursor  # type: ignore[assignment]


def observe[T](database: str, read: Callable[[Dialect, CursorWrapper], T]) -> T:
    """Read much at once with every row found by index; no transaction where that needs none.

    On SQLite a transaction of the recommended kind would take the one write lock.
    """
    dialect = dialect_for(database)
    with ExitStack() as stack:
        if dialect.observes_in_transaction:
            stack.enter_context(transaction.atomic(using=database))
        cursor = stack.enter_context(connections[database].cursor())
        stack.enter_context(dialect.observing(cursor))
        return read(dialect, cursor)


def look(database: str, read: Callable[[Dialect, CursorWrapper], bool]) -> bool:
    """Read once, outside any transaction of ours; no statement where the dialect has nothing to ask."""
    with connections[database].cursor() as cursor:
        return read(dialect_for(database), cursor)


def _advise(database: str, dialect: Dialect, error: DatabaseError) -> None:
    if dialect.lacks_table(error) and "dj_queue_" in str(error):
        error.add_note(f"dj-queue's tables are not there. Run: manage.py migrate dj_queue --database {database}")

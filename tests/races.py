"""Two transactions at a time: one holds locks, and the other waits for them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.db import connection, connections, transaction

from tests.conftest import wait_until


def in_thread[T](call: Callable[..., T], *args: Any) -> T:
    """Call on another thread, which has its own connection."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(closing, call, *args).result()


def closing[T](call: Callable[..., T], *args: Any) -> T:
    try:
        return call(*args)
    finally:
        connections.close_all()


def while_locked(change: Callable[[], Any], meanwhile: Callable[[], Any]) -> Any:
    """Change something in a transaction, and commit once somebody else waits for its locks."""
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            change()
            other = pool.submit(closing, meanwhile)
            with connection.cursor() as cursor:
                wait_until(lambda: other.done() or waiting_for_locks(cursor), what="the other waits")
            assert not other.done()
        return other.result()


def waiting_for_locks(cursor: Any) -> bool:
    if connection.vendor == "postgresql":
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
    else:
        # Its rows are a copy, made anew only once nobody has looked for a tenth of a second.
        cursor.execute("SELECT SLEEP(0.2)")
        cursor.execute("SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'")
    return bool(cursor.fetchone()[0])

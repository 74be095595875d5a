"""PostgreSQL: each step of the hot path is one statement, and so one transaction."""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from dj_queue.dialects import observation_sql
from dj_queue.dialects import postgresql_sql as sql
from dj_queue.dialects.base import Claim, Dialect, NewJob, Outcome, Selector, UnblockedJob
from dj_queue.serialization import JSONLimits

# deadlock_detected, serialization_failure, lock_not_available
_TRANSIENT = {"40P01", "40001", "55P03"}
# What a server says that was demoted: it is up, and the primary is elsewhere.
_READ_ONLY = "25006"
# What would let the planner choose anything but nested loops over indexes.
_PINS = ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "enable_bitmapscan", "jit")
# The class of what is too large or too deep for this server. The driver calls that operational.
_LIMIT_EXCEEDED = "54"


class PostgreSQL(Dialect):
    vendor = "postgresql"
    # The server's parser allows far more; what bounds nesting first is its stack.
    json_limits = JSONLimits(depth=500, nul=False)
    one_statement = True
    observes_in_transaction = True
    _queue_names = observation_sql.SKIPPED_NAMES
    _capped_count = observation_sql.LIMITED

    def insert(self, cursor: CursorWrapper, jobs: Sequence[NewJob], *, alias: str, notify: bool) -> datetime:
        # By this host's clock: it only decides who is told at once. What is due is decided by the database's.
        now = timezone.now()
        some_ready = any(job.run_after is None or job.run_after <= now for job in jobs)
        some_scheduled = any(job.run_after is not None for job in jobs)
        source, params = sql.new_rows(jobs)
        cursor.execute(
            sql.INSERT.format(
                source=source,
                scheduled=sql.INSERT_SCHEDULED if some_scheduled else "",
                due="WHERE run_after IS NULL OR run_after <= statement_timestamp()" if some_scheduled else "",
                notify=sql.NOTIFY if notify and some_ready else "",
            ),
            {**params, "alias": alias},
        )
        return _time(cursor.fetchone())

    def now(self, cursor: CursorWrapper) -> datetime:
        cursor.execute("SELECT statement_timestamp()")
        return _time(cursor.fetchone())

    def claim(
        self,
        cursor: CursorWrapper,
        *,
        alias: str,
        selectors: Sequence[Selector],
        limit: int,
        process_id: int | None,
        skip_locked: bool,
    ) -> list[Claim]:
        picked, params = sql.picked(selectors, "FOR UPDATE SKIP LOCKED" if skip_locked else "FOR UPDATE")
        cursor.execute(
            sql.CLAIM.format(picked=picked),
            {**params, "alias": alias, "limit": limit, "process": process_id},
        )
        rows = cursor.fetchall()
        orphans = [row[0] for row in rows if row[1] is None]
        if orphans:
            cursor.execute("DELETE FROM dj_queue_claimed_executions WHERE id = ANY (%s)", [orphans])
            rows = [row for row in rows if row[1] is not None]
        # Claim ids were drawn in the order of the pick; a join's output promises no order.
        return sorted(map(Claim._make, rows))

    def finish(
        self, cursor: CursorWrapper, outcomes: Sequence[Outcome], *, worker: str, preserve: bool
    ) -> tuple[datetime, set[int]]:
        some_failed = any(outcome.error for outcome in outcomes)
        cursor.execute(
            sql.FINISH.format(
                failed=sql.FINISH_FAILED if some_failed else "",
                succeeded="" if preserve else sql.DELETE_SUCCEEDED,
                only="" if preserve else "AND gone.exception_class IS NOT NULL",
            ),
            {
                "worker": worker,
                "claims": [outcome.claim_id for outcome in outcomes],
                "values": [outcome.return_value for outcome in outcomes],
                "starts": [outcome.started_at for outcome in outcomes],
                "classes": [outcome.error and outcome.error.exception_class for outcome in outcomes],
                "messages": [outcome.error and outcome.error.message for outcome in outcomes],
                "traces": [outcome.error and outcome.error.traceback for outcome in outcomes],
            },
        )
        finished_at, kept = cursor.fetchone()
        return finished_at, set(kept or ())

    def release(self, cursor: CursorWrapper, claim_ids: Sequence[int], *, alias: str, notify: bool) -> int:
        cursor.execute(
            sql.RELEASE.format(notify=sql.NOTIFY if notify else ""), {"claims": list(claim_ids), "alias": alias}
        )
        return int(cursor.fetchone()[0])

    def promote(
        self, cursor: CursorWrapper, *, alias: str, limit: int, skip_locked: bool, notify: bool
    ) -> tuple[int, list[UUID]]:
        cursor.execute(
            sql.PROMOTE.format(skip="SKIP LOCKED" if skip_locked else "", notify=sql.NOTIFY_IF_ANY if notify else ""),
            {"alias": alias, "limit": limit},
        )
        row = cursor.fetchone()
        return row[0], list(row[1] or ())

    def unblock(self, cursor: CursorWrapper, freed: Mapping[str, int], *, notify: bool) -> list[UnblockedJob]:
        params: dict[str, Any] = {"keys": sorted(freed), "counts": [freed[key] for key in sorted(freed)]}
        cursor.execute("SELECT FROM dj_queue_semaphores WHERE key = ANY (%(keys)s) ORDER BY key FOR UPDATE", params)
        # A statement of its own: its snapshot must be younger than the locks.
        cursor.execute(sql.UNBLOCK.format(notify=sql.NOTIFY_EACH if notify else ""), params)
        return [UnblockedJob(job_id, key) for job_id, key, *_ in cursor.fetchall()]

    def is_transient(self, error: Error) -> bool:
        return _sqlstate(error) in _TRANSIENT

    def is_away(self, error: Error) -> bool:
        code = _sqlstate(error)
        return code == _READ_ONLY or (super().is_away(error) and not code.startswith(_LIMIT_EXCEEDED))

    def prepare_session(self, connection: BaseDatabaseWrapper) -> None:
        _give_up_on_dead_peers(connection)
        # A queue's statistics are stale by nature: a table is analyzed empty and holds a million rows a
        # minute later. Every statement of the runtime has one right plan, by index; this pins it.
        with connection.cursor() as cursor:
            _set(cursor, dict.fromkeys(_PINS, "off"), local=False)

    @contextmanager
    def observing(self, cursor: CursorWrapper) -> Iterator[None]:
        cursor.execute(f"SELECT {', '.join(f"current_setting('{name}')" for name in _PINS)}")
        before = dict(zip(_PINS, cursor.fetchone(), strict=True))
        _set(cursor, dict.fromkeys(_PINS, "off"), local=True)
        yield
        # Not if it failed: the transaction is then rolled back, and this with it.
        _set(cursor, before, local=True)

    def tune_tables(self, schema_editor: BaseDatabaseSchemaEditor) -> None:
        for statement in sql.STORAGE:
            schema_editor.execute(statement)

    def notify(self, cursor: CursorWrapper, alias: str) -> None:
        cursor.execute("SELECT pg_notify(%s, %s)", [sql.CHANNEL, alias])

    def listen(self, connection: BaseDatabaseWrapper) -> bool:
        with connection.cursor() as cursor:
            if not hasattr(connection.connection, "pgconn"):  # psycopg2: polling serves
                return False
            cursor.execute(f"LISTEN {sql.CHANNEL}")
        heard: set[str] = set()
        connection.connection.add_notify_handler(lambda notification: heard.add(notification.payload))
        connection.connection._dj_queue_heard = heard
        return True

    def notified(self, connection: BaseDatabaseWrapper) -> set[str]:
        raw = connection.connection
        heard: set[str] = raw._dj_queue_heard
        raw.pgconn.consume_input()
        while notification := raw.pgconn.notifies():
            heard.add(notification.extra.decode())
        taken = set(heard)
        heard.clear()
        return taken

    def socket(self, connection: BaseDatabaseWrapper) -> int | None:
        return int(connection.connection.pgconn.socket)


def _give_up_on_dead_peers(connection: BaseDatabaseWrapper) -> None:
    """End a connection whose server no longer acknowledges, after half a minute instead of a quarter of an hour."""
    pgconn = getattr(connection.connection, "pgconn", None)
    timeout = getattr(socket, "TCP_USER_TIMEOUT", None)
    if pgconn is None or timeout is None:
        return
    with socket.socket(fileno=os.dup(pgconn.socket)) as peer:
        if peer.family in (socket.AF_INET, socket.AF_INET6):
            peer.setsockopt(socket.IPPROTO_TCP, timeout, 30_000)


def _set(cursor: CursorWrapper, values: Mapping[str, str], *, local: bool) -> None:
    calls = ", ".join(f"set_config('{name}', %s, {'true' if local else 'false'})" for name in values)
    cursor.execute(f"SELECT {calls}", list(values.values()))


def _sqlstate(error: Error) -> str:
    return getattr(error.__cause__, "sqlstate", None) or ""


def _time(row: Sequence[Any] | None) -> datetime:
    assert row is not None
    time = row[0]
    assert isinstance(time, datetime)
    return time

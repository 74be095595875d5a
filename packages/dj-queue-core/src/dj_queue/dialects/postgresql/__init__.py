"""PostgreSQL: each step of the hot path is one statement, and so one transaction."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import Error, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.backends.postgresql.psycopg_any import IsolationLevel, is_psycopg3
from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from dj_queue.dialects import observation_sql
from dj_queue.dialects.base import (
    LOCK_TIMEOUT,
    Claim,
    Dialect,
    LimitedJob,
    LockedSemaphore,
    NewJob,
    Outcome,
    Selector,
    UnblockedJob,
)
from dj_queue.dialects.postgresql import limits as limits
from dj_queue.dialects.postgresql import liveness, pick, prepared
from dj_queue.dialects.postgresql import sql as sql
from dj_queue.serialization import JSONLimits

_LOCK_NOT_AVAILABLE = "55P03"
# deadlock_detected, serialization_failure
_TRANSIENT = {"40P01", "40001", _LOCK_NOT_AVAILABLE}
# Connections, logins, the database itself; and classes of their own: the server stops, or has stopped the session.
_AWAY = (
    "08", "28", "3D", "53300", "57P01", "57P02", "57P03", "57P04", "57P05",
    "25006",  # what a server says that was demoted: it is up, and the primary is elsewhere
    "25P03", "25P04",  # a transaction took too long, and the session was ended for it
)  # fmt: skip
# Collisions; a want of memory, disk or locks; what another holds; a statement that took too long; the system below.
_MAY_PASS = ("40", "53", "55", "57", "58")
# What would let the planner choose anything but nested loops over indexes.
_PINS = ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "enable_bitmapscan", "jit")
_SESSION = {"lock_timeout": f"{LOCK_TIMEOUT}s", "default_transaction_isolation": "read committed"}
_UNDEFINED_COLUMN = "42703"
_UNDEFINED_TABLE = "42P01"
# The drivers' word for a session without a transaction.
_IDLE = 0
_ATTEMPTS = 10


class PostgreSQL(Dialect):
    vendor = "postgresql"
    # The server's parser allows far more; what bounds nesting first is its stack.
    json_limits = JSONLimits(depth=500, nul=False)
    one_statement = True
    lateral = True
    observes_in_transaction = True
    _queue_names = observation_sql.SKIPPED_NAMES
    _capped_count = observation_sql.LIMITED
    _readable_time = sql.READABLE_TIME

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

    def insert_limited(
        self, cursor: CursorWrapper, jobs: Sequence[LimitedJob], *, alias: str, notify: bool
    ) -> tuple[datetime, set[UUID], list[UnblockedJob]]:
        params = {**limits.limited_rows(jobs), "alias": alias, "raised": False}
        statement = limits.INSERT_LIMITED.format(notify=limits.NOTIFY_IF_READY if notify else "")
        if cursor.db.in_atomic_block:
            # Locks outlive the statement here: make what is missing before any is taken, not out of order.
            _make_semaphores(cursor, {each.key: each.limit for each in jobs})
        unblocked: list[UnblockedJob] = []
        for _ in range(_ATTEMPTS):
            cursor.execute(statement, params)
            at, discarded, stored, raised, *_ = cursor.fetchone()
            if stored:
                return at, set(discarded or ()), unblocked
            if raised:
                # Once: what else is meanwhile enqueued with another limit is not to keep this one out.
                unblocked, params["raised"] = self._raise_limits(cursor, jobs, notify=notify), True
            else:
                _make_semaphores(cursor, {each.key: each.limit for each in jobs})
        # Upkeep has deleted a semaphore each time, just after it was made.
        raise OperationalError("dj_queue: the semaphores of a batch could not be locked. Enqueue it again.")

    def _raise_limits(self, cursor: CursorWrapper, jobs: Sequence[LimitedJob], *, notify: bool) -> list[UnblockedJob]:
        """Raise what is lower, and start the jobs that were blocked for that."""
        by_key = {each.key: each.limit for each in jobs}
        unblock, params = limits.unblock(dict.fromkeys(by_key, 0), notify=notify)
        params["limits"] = [by_key[key] for key in params["keys"]]
        statements = [limits.LOCK.format(skip=""), limits.RAISE, unblock]
        if self.finishes_at_once(cursor.db):
            # One message, and so one transaction, where there is none around it.
            cursor.execute(";\n".join(statements), params)
            cursor.nextset()
            cursor.nextset()
        else:
            for statement in statements:
                cursor.execute(statement, params)
        return _unblocked(cursor)

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
        picked, params = pick.picked(selectors, "FOR UPDATE SKIP LOCKED" if skip_locked else "FOR UPDATE")
        rows = prepared.fetch(
            cursor,
            sql.CLAIM.format(picked=picked, **sql.CALENDAR),
            {**params, "alias": alias, "limit": limit, "process": process_id},
        )
        orphans = [row[0] for row in rows if row[1] is None]
        if orphans:
            cursor.execute("DELETE FROM dj_queue_claimed_executions WHERE id = ANY (%s)", [orphans])
            rows = [row for row in rows if row[1] is not None]
        # Claim ids were drawn in the order of the pick; a join's output promises no order.
        return sorted(map(Claim._make, rows))

    def finish(
        self, cursor: CursorWrapper, outcomes: Sequence[Outcome], *, worker: str, preserve: bool
    ) -> tuple[datetime, set[int]]:
        statement = sql.finish(outcomes, worker=worker, preserve=preserve)
        ((finished_at, kept),) = prepared.fetch(cursor, *statement)
        return finished_at, set(kept or ())

    def finish_limited(
        self,
        cursor: CursorWrapper,
        outcomes: Sequence[Outcome],
        keys: Mapping[int, str],
        *,
        worker: str,
        preserve: bool,
        notify: bool,
    ) -> tuple[datetime, set[int], list[UnblockedJob]]:
        finish, params = sql.finish(outcomes, worker=worker, preserve=preserve, keys=keys)
        unblock, more = limits.unblock(dict.fromkeys(keys.values(), 0), notify=notify)
        at_once = self.finishes_at_once(cursor.db)
        # Two statements, as the second must see what the first had to wait for.
        cursor.execute(f"{finish};\n{unblock}" if at_once else finish, {**params, **more} if at_once else params)
        finished_at, kept = cursor.fetchone()
        if at_once:
            cursor.nextset()
        else:
            cursor.execute(unblock, more)
        return finished_at, set(kept or ()), _unblocked(cursor)

    def finishes_at_once(self, connection: BaseDatabaseWrapper) -> bool:
        # The driver puts the values into the text itself, and tells the results apart.
        return is_psycopg3 and not getattr(connection.features, "uses_server_side_binding", False)

    def release(self, cursor: CursorWrapper, claim_ids: Sequence[int], *, alias: str, notify: bool) -> int:
        cursor.execute(
            sql.RELEASE.format(notify=sql.NOTIFY if notify else ""), {"claims": list(claim_ids), "alias": alias}
        )
        return int(cursor.fetchone()[0])

    def promote(
        self,
        cursor: CursorWrapper,
        *,
        alias: str,
        limit: int,
        skip_locked: bool,
        notify: bool,
        except_keys: Collection[str] = (),
    ) -> tuple[int, list[UUID]]:
        cursor.execute(
            sql.PROMOTE.format(
                but=sql.BUT_KEYS if except_keys else "",
                skip="SKIP LOCKED" if skip_locked else "",
                notify=sql.NOTIFY_IF_ANY if notify else "",
            ),
            {"alias": alias, "limit": limit, "except_keys": list(except_keys)},
        )
        row = cursor.fetchone()
        return row[0], list(row[1] or ())

    def lock_semaphores(
        self, cursor: CursorWrapper, keys: Iterable[str], *, skip_locked: bool = False
    ) -> list[LockedSemaphore]:
        cursor.execute(limits.LOCK.format(skip="SKIP LOCKED" if skip_locked else ""), {"keys": list(keys)})
        return [LockedSemaphore._make(row) for row in cursor.fetchall()]

    def make_semaphores(self, cursor: CursorWrapper, limits: Mapping[str, int], now: datetime) -> None:
        _make_semaphores(cursor, limits)

    def unblock(
        self, cursor: CursorWrapper, freed: Mapping[str, int], *, notify: bool, skip_locked: bool = False
    ) -> list[UnblockedJob]:
        statement, params = limits.unblock(freed, notify=notify, skip_locked=skip_locked)
        cursor.execute(limits.LOCK.format(skip=""), params)
        cursor.execute(statement, params)
        return _unblocked(cursor)

    def is_transient(self, error: Error) -> bool:
        return _sqlstate(error) in _TRANSIENT

    def is_lock_timeout(self, error: Error) -> bool:
        return _sqlstate(error) == _LOCK_NOT_AVAILABLE

    def is_away(self, error: Error) -> bool:
        code = _sqlstate(error)
        return code.startswith(_AWAY) if code else super().is_away(error)

    def may_pass(self, error: Error) -> bool:
        return _sqlstate(error).startswith(_MAY_PASS)

    def lacks_table(self, error: Error) -> bool:
        return _sqlstate(error) == _UNDEFINED_TABLE

    def lacks_column(self, error: Error) -> bool:
        return _sqlstate(error) == _UNDEFINED_COLUMN

    @contextmanager
    def beginning(self, connection: BaseDatabaseWrapper, *, again: bool) -> Iterator[None]:
        fresh = again and connection.get_autocommit()
        yield
        # What collided under a stricter level, which cannot be known for free, would collide all over again.
        if fresh:
            # Before all else in the transaction: not through the wrappers that send settings along.
            with connection.wrap_database_errors, connection.cursor() as cursor:
                cursor.cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")

    def watch(self, connection: BaseDatabaseWrapper) -> None:
        liveness.watch(connection)

    def prepare_session(self, connection: BaseDatabaseWrapper) -> None:
        # A queue's statistics are stale by nature: a table is analyzed empty and holds a million rows a
        # minute later. Every statement of the runtime has one right plan, by index; this pins it.
        if _pin_transaction in connection.execute_wrappers:
            connection.execute_wrappers.remove(_pin_transaction)
        pooled = self.is_pooled(connection)
        if is_psycopg3 or not pooled:  # psycopg2 sets it on the session
            connection.connection.isolation_level = IsolationLevel.READ_COMMITTED
        if pooled:
            # What is set on a session stays on it when the pooler lends it to somebody else.
            connection.execute_wrappers.append(_pin_transaction)
            return
        with connection.cursor() as cursor:
            _set(cursor, {**dict.fromkeys(_PINS, "off"), **_SESSION, **prepared.SETTINGS}, local=False)
        prepared.keep(connection)

    @contextmanager
    def bounding_waits(self, connection: BaseDatabaseWrapper, seconds: float) -> Iterator[None]:
        # Sent along with each statement, for its transaction alone: it costs nothing, and leaves nothing behind.
        with connection.execute_wrapper(_sent_along({"lock_timeout": f"{round(seconds * 1000)}ms"})):
            yield

    @contextmanager
    def observing(self, cursor: CursorWrapper) -> Iterator[None]:
        cursor.execute(f"SELECT {', '.join(f"current_setting('{name}')" for name in _PINS)}")
        before = dict(zip(_PINS, cursor.fetchone(), strict=True))
        _set(cursor, dict.fromkeys(_PINS, "off"), local=True)
        yield
        # Not if it failed: the transaction is then rolled back, and this with it.
        _set(cursor, before, local=True)

    def connection_limit(self, cursor: CursorWrapper) -> int | None:
        cursor.execute(sql.CONNECTION_LIMIT)
        return int(cursor.fetchone()[0])

    def tune_tables(self, schema_editor: BaseDatabaseSchemaEditor) -> None:
        for statement in sql.STORAGE:
            schema_editor.execute(statement)

    def notify(self, cursor: CursorWrapper, alias: str) -> None:
        cursor.execute("SELECT pg_notify(%s, %s)", [sql.CHANNEL, alias])

    def in_transaction(self, connection: BaseDatabaseWrapper) -> bool | None:
        return int(connection.connection.info.transaction_status) != _IDLE

    def is_pooled(self, connection: BaseDatabaseWrapper) -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            # The server tells its process as the session begins; a pooler tells a number of its own.
            return bool(cursor.fetchone()[0] != connection.connection.info.backend_pid)

    def place(self, cursor: CursorWrapper) -> object:
        cursor.execute("SELECT current_database(), pg_postmaster_start_time()")
        return cursor.fetchone()

    def deaf(self) -> str | None:
        if is_psycopg3:
            return None
        return 'the driver psycopg2 wakes nobody. Run: pip install "dj-queue-core[postgres]" (psycopg 3)'

    def listen(self, connection: BaseDatabaseWrapper) -> bool:
        if self.deaf():
            return False
        with connection.cursor() as cursor:
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


def _sent_along(settings: Mapping[str, str]) -> Callable[..., Any]:
    """A wrapper that sends settings with each statement, in the same round trip, for its transaction alone."""
    calls = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())

    def send(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        cursor = context["cursor"].cursor
        # Two statements go into one message only where the driver puts the parameters in, as it does unless
        # Django's option server_side_binding is set. A named cursor's text becomes a part of another statement.
        if many or not hasattr(cursor, "mogrify") or getattr(cursor, "name", None):
            return execute(sql, params, many, context)
        result = execute(f"SELECT {calls}; {sql}", params, many, context)
        if is_psycopg3:  # psycopg2 keeps the last result only
            cursor.nextset()
        return result

    return send


_pin_transaction = _sent_along({**dict.fromkeys(_PINS, "off"), "lock_timeout": f"{LOCK_TIMEOUT}s"})


def _set(cursor: CursorWrapper, values: Mapping[str, str], *, local: bool) -> None:
    calls = ", ".join(f"set_config('{name}', %s, {'true' if local else 'false'})" for name in values)
    cursor.execute(f"SELECT {calls}", list(values.values()))


def _make_semaphores(cursor: CursorWrapper, by_key: Mapping[str, int]) -> None:
    cursor.execute(limits.MAKE_SEMAPHORES, {"keys": list(by_key), "limits": list(by_key.values())})


def _unblocked(cursor: CursorWrapper) -> list[UnblockedJob]:
    return [UnblockedJob(job_id, key) for job_id, key, *_ in cursor.fetchall()]


def _sqlstate(error: Error) -> str:
    # As psycopg has it, and as psycopg2 has it.
    return getattr(error.__cause__, "sqlstate", None) or getattr(error.__cause__, "pgcode", None) or ""


def _time(row: Sequence[Any] | None) -> datetime:
    assert row is not None
    time = row[0]
    assert isinstance(time, datetime)
    return time

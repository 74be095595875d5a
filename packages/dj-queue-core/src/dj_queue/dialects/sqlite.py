"""SQLite: one writer at a time, so each step is one short transaction that begins with a write.

SQLite refuses, at once and whatever its timeout, a transaction that has read and then wants to write what
another has changed since. So what is ours begins with the write lock, whatever the project's own do.
The database's clock is this machine's clock: every process that opens a SQLite file runs here.
"""

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from sqlite3 import dbapi2
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import Error, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.db.models import DateTimeField, Expression, Value
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from dj_queue.dialects import observation_sql
from dj_queue.dialects.base import (
    FIRST_WORKERS,
    MOST_WORKERS,
    Claim,
    Dialect,
    LockedSemaphore,
    NewJob,
    Outcome,
    Selector,
    UnblockedJob,
    flawed,
    lasting,
    read_time,
)
from dj_queue.serialization import JSONLimits

# Which has `->>`, and RETURNING.
_OLDEST = (3, 38, 0)


class SQLite(Dialect):
    vendor = "sqlite"
    json_limits = JSONLimits(depth=500)  # JSON_VALID, which guards the columns, stops at 1000
    _queue_names = observation_sql.SKIPPED_NAMES
    _capped_count = observation_sql.LIMITED
    _readable_time = "CAST({0} AS BLOB)"  # the driver would give up all rows for a text that is none

    def insert(self, cursor: CursorWrapper, jobs: Sequence[NewJob], *, alias: str, notify: bool) -> datetime:
        now = timezone.now()
        at = _stored(now)
        cursor.executemany(
            "INSERT INTO dj_queue_jobs (id, task_path, queue_name, priority, payload, backend_alias,"
            " scheduled_at, created_at, updated_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [(job.id.hex, *job[1:5], alias, job.run_after and _stored(job.run_after), at, at) for job in jobs],
        )
        waits = [job.run_after is not None and job.run_after > now for job in jobs]
        cursor.executemany(
            _INSERT_READY,
            [
                (job.id.hex, alias, job.queue_name, job.priority, at)
                for job, later in zip(jobs, waits, strict=True)
                if not later
            ],
        )
        cursor.executemany(
            "INSERT INTO dj_queue_scheduled_executions"
            " (job_id, backend_alias, queue_name, priority, scheduled_at, created_at)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            [
                (job.id.hex, alias, job.queue_name, job.priority, _stored(job.run_after), at)
                for job, later in zip(jobs, waits, strict=True)
                if later and job.run_after
            ],
        )
        return now

    def now(self, cursor: CursorWrapper) -> datetime:
        return timezone.now()

    def clock(self, *, ago: float = 0) -> Expression:
        # Not SQL's: that is UTC, and without USE_TZ the columns are not.
        return Value(timezone.now() - timedelta(seconds=ago), output_field=DateTimeField())

    def unusable(self) -> str | None:
        found = min(sqlite3.sqlite_version_info, dbapi2.sqlite_version_info)
        if found >= _OLDEST:
            return None
        wanted, version = (".".join(map(str, each)) for each in (_OLDEST, found))
        return (
            f"dj-queue needs SQLite {wanted} or later, and this Python has {version}. Use a Python with a newer one,"
            " or a PostgreSQL, MariaDB or MySQL database as the option database_alias"
        )

    def refusal(self, connection: BaseDatabaseWrapper) -> str | None:
        if refusal := self.unusable():
            return refusal
        # Django's `supports_json_field` asks in a transaction that waits for the one writer.
        try:
            with connection.cursor() as cursor:
                cursor.execute(_ASK_JSON)
            return None
        except OperationalError as error:
            if "no such function" not in str(error):
                raise
        return "this SQLite was built without its JSON functions. Use a Python whose SQLite has them"

    def unfit(self, settings: Mapping[str, Any]) -> str | None:
        return "TIME_ZONE set, so that times are not stored as UTC" if settings["TIME_ZONE"] else None

    @contextmanager
    def beginning(self, connection: Any, *, again: bool) -> Iterator[None]:
        connection.ensure_connection()  # which reads the mode from the settings
        mode = connection.transaction_mode
        connection.transaction_mode = _EAGER.get(mode, mode)
        try:
            yield
        finally:
            connection.transaction_mode = mode

    @contextmanager
    def bounding_waits(self, connection: BaseDatabaseWrapper, seconds: float) -> Iterator[None]:
        with connection.cursor() as cursor:
            before = cursor.execute("PRAGMA busy_timeout").fetchone()[0]
            cursor.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")
        raw = connection.connection
        try:
            yield
        finally:
            if connection.connection is raw and raw is not None:
                with suppress(Error), connection.cursor() as cursor:
                    cursor.execute(f"PRAGMA busy_timeout = {before}")

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
        picked: list[tuple[int, str]] = []
        for selector in selectors:
            if len(picked) < limit:
                picked += _take(cursor, alias, selector, limit - len(picked))
        if not picked:
            return []
        now = timezone.now()
        cursor.execute(
            "INSERT INTO dj_queue_claimed_executions (job_id, process_id, position, created_at)"
            " SELECT value ->> 1, %s, value ->> 0, %s FROM json_each(%s) ORDER BY key RETURNING id",
            [process_id, _stored(now), json.dumps(picked)],
        )
        ids = [row[0] for row in cursor.fetchall()]
        cursor.execute(
            # As bytes, whatever is in them: the driver would give up all rows for one that it cannot read.
            f"SELECT claim.id, {_READ}"
            " FROM dj_queue_claimed_executions claim JOIN dj_queue_jobs job ON job.id = claim.job_id"
            " WHERE claim.id IN (SELECT value FROM json_each(%s)) ORDER BY claim.id",
            [json.dumps(ids)],
        )
        claims = [_claim(row, now) for row in cursor.fetchall()]
        orphans = set(ids) - {claim.id for claim in claims}
        cursor.executemany("DELETE FROM dj_queue_claimed_executions WHERE id = %s", [(orphan,) for orphan in orphans])
        return claims

    def finish(
        self, cursor: CursorWrapper, outcomes: Sequence[Outcome], *, worker: str, preserve: bool
    ) -> tuple[datetime, set[int]]:
        now = timezone.now()
        at = _stored(now)
        cursor.execute(
            "DELETE FROM dj_queue_claimed_executions WHERE id IN (SELECT value FROM json_each(%s))"
            " RETURNING id, job_id",
            [json.dumps([outcome.claim_id for outcome in outcomes])],
        )
        # As the row has it: an outcome knows no id that is none.
        job_ids = dict(cursor.fetchall())
        kept = set(job_ids)
        ours = [outcome for outcome in outcomes if outcome.claim_id in kept]
        updates = [outcome for outcome in ours if preserve or outcome.error]
        # Those of one claim began at one time.
        starts = {at: _stored(at) for at in {outcome.started_at for outcome in updates}}
        cursor.executemany(
            "UPDATE dj_queue_jobs SET finished_at = %s, return_value = %s,"
            " started_at = coalesce(started_at, %s), last_attempted_at = %s,"
            f" worker_ids = json_insert({_WORKERS}, '$[#]', %s), updated_at = %s WHERE id = %s",
            [
                (
                    None if outcome.error else at,
                    outcome.return_value,
                    starts[outcome.started_at],
                    starts[outcome.started_at],
                    worker,
                    at,
                    job_ids[outcome.claim_id],
                )
                for outcome in updates
            ],
        )
        cursor.executemany(
            "INSERT INTO dj_queue_failed_executions"
            " (job_id, backend_alias, queue_name, exception_class, message, traceback, created_at)"
            " SELECT id, backend_alias, queue_name, %s, %s, %s, %s FROM dj_queue_jobs WHERE id = %s",
            [(*outcome.error, at, job_ids[outcome.claim_id]) for outcome in ours if outcome.error],
        )
        if not preserve:
            succeeded = [(job_ids[outcome.claim_id],) for outcome in ours if not outcome.error]
            cursor.executemany("UPDATE dj_queue_recurring_executions SET job_id = NULL WHERE job_id = %s", succeeded)
            cursor.executemany("DELETE FROM dj_queue_jobs WHERE id = %s", succeeded)
        return now, kept

    def release(self, cursor: CursorWrapper, claim_ids: Sequence[int], *, alias: str, notify: bool) -> int:
        cursor.execute(
            "DELETE FROM dj_queue_claimed_executions"
            " WHERE id IN (SELECT value FROM json_each(%s)) RETURNING job_id, position, CAST(created_at AS TEXT)",
            [json.dumps(list(claim_ids))],
        )
        gone = cursor.fetchall()
        cursor.executemany(
            "INSERT INTO dj_queue_ready_executions"
            " (id, job_id, backend_alias, queue_name, priority, concurrency_key, created_at)"
            " SELECT %s, id, backend_alias, queue_name, priority, concurrency_key, %s"
            " FROM dj_queue_jobs WHERE id = %s",
            [(position, _text(created_at), job_id) for job_id, position, created_at in gone],
        )
        return len(gone)

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
        at = _stored(timezone.now())
        cursor.execute(
            "DELETE FROM dj_queue_scheduled_executions WHERE id IN (SELECT id FROM dj_queue_scheduled_executions"
            " WHERE backend_alias = %s AND scheduled_at <= %s ORDER BY scheduled_at, priority DESC, id LIMIT %s)"
            " RETURNING CAST(scheduled_at AS TEXT), priority, id, job_id, queue_name,"
            " (SELECT concurrency_key FROM dj_queue_jobs WHERE dj_queue_jobs.id = job_id)",
            [alias, at, limit],
        )
        due = sorted(cursor.fetchall(), key=lambda row: (_text(row[0]), -row[1], row[2]))
        cursor.executemany(
            _INSERT_READY,
            [(job_id, alias, queue, priority, at) for _, priority, _, job_id, queue, key in due if key is None],
        )
        return len(due), [UUID(row[3]) for row in due if row[5] is not None]

    def lock_semaphores(
        self, cursor: CursorWrapper, keys: Iterable[str], *, skip_locked: bool = False
    ) -> list[LockedSemaphore]:
        # What locks is the transaction.
        cursor.execute(
            'SELECT id, key, value, "limit", CAST(expires_at AS BLOB) FROM dj_queue_semaphores'
            " WHERE key IN (SELECT value FROM json_each(%s)) ORDER BY key",
            [json.dumps(list(keys))],
        )
        return [LockedSemaphore._make([*row, read_time(cursor, expires_at)]) for *row, expires_at in cursor.fetchall()]

    def make_semaphores(self, cursor: CursorWrapper, limits: Mapping[str, int], now: datetime) -> None:
        at = _stored(now)
        cursor.executemany(
            'INSERT OR IGNORE INTO dj_queue_semaphores (key, value, "limit", expires_at, created_at, updated_at)'
            " VALUES (%s, %s, %s, %s, %s, %s)",
            [(key, limits[key], limits[key], at, at, at) for key in sorted(limits)],
        )

    def unblock(
        self, cursor: CursorWrapper, freed: Mapping[str, int], *, notify: bool, skip_locked: bool = False
    ) -> list[UnblockedJob]:
        now = timezone.now()
        unblocked: list[UnblockedJob] = []
        for key in sorted(freed):
            cursor.execute(
                'UPDATE dj_queue_semaphores SET value = min("limit", value + %s), updated_at = %s'
                " WHERE key = %s RETURNING value",
                [freed[key], _stored(now), key],
            )
            row = cursor.fetchone()
            free = max(row[0], 0) if row else 0
            unblocked += [UnblockedJob(job_id, key) for job_id in _unblock(cursor, key, free, now)]
        return unblocked

    def any_ready(self, cursor: CursorWrapper, alias: str) -> bool:
        # A transaction would take the one write lock, ten times a second from every idle worker.
        cursor.execute("SELECT 1 FROM dj_queue_ready_executions WHERE backend_alias = %s LIMIT 1", [alias])
        return cursor.fetchone() is not None

    def any_due(self, cursor: CursorWrapper, alias: str) -> bool:
        cursor.execute(
            "SELECT 1 FROM dj_queue_scheduled_executions WHERE backend_alias = %s AND scheduled_at <= %s LIMIT 1",
            [alias, _stored(timezone.now())],
        )
        return cursor.fetchone() is not None

    def in_transaction(self, connection: BaseDatabaseWrapper) -> bool | None:
        return bool(connection.connection.in_transaction)

    def is_transient(self, error: Error) -> bool:
        return "locked" in str(error) or "busy" in str(error)

    def is_lock_timeout(self, error: Error) -> bool:
        return getattr(error.__cause__, "sqlite_errorname", None) == "SQLITE_BUSY"

    def is_away(self, error: Error) -> bool:
        name = getattr(error.__cause__, "sqlite_errorname", None)
        if name is None:  # the driver's own: its connection, or a text in the file that is none
            return super().is_away(error) and "decode" not in str(error)
        return str(name).startswith(_AWAY)

    def may_pass(self, error: Error) -> bool:
        name = str(getattr(error.__cause__, "sqlite_errorname", ""))
        return self.is_transient(error) or name.startswith(_MAY_PASS)


# The mode in which a transaction of ours begins where the project's begin in this one.
_EAGER: dict[str | None, str | None] = {None: "IMMEDIATE", "DEFERRED": "IMMEDIATE"}

_ASK_JSON = "SELECT JSON('{}')"

# The file, and what it is on.
_AWAY = ("SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_NOTADB", "SQLITE_CORRUPT")
_MAY_PASS = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_NOMEM", "SQLITE_INTERRUPT", "SQLITE_PROTOCOL")

_INSERT_READY = (
    "INSERT INTO dj_queue_ready_executions (job_id, backend_alias, queue_name, priority, created_at)"
    " VALUES (%s, %s, %s, %s, %s)"
)


def _take(cursor: CursorWrapper, alias: str, selector: Selector, limit: int) -> list[tuple[int, str]]:
    """Remove ready rows in order; return their ids and their jobs' ids."""
    if not selector.prefix:
        condition, params = "AND queue_name = %s", [selector.name]
    elif selector.name:
        condition, params = f"AND substr(queue_name, 1, {len(selector.name)}) = %s", [selector.name]
    else:
        condition, params = "", []
    cursor.execute(
        "DELETE FROM dj_queue_ready_executions WHERE id IN (SELECT id FROM dj_queue_ready_executions"
        f" WHERE backend_alias = %s {condition}"
        " AND queue_name NOT IN (SELECT queue_name FROM dj_queue_pauses WHERE backend_alias = %s)"
        " ORDER BY priority DESC, id LIMIT %s) RETURNING id, job_id, priority",
        [alias, *params, alias, limit],
    )
    rows = sorted(cursor.fetchall(), key=lambda row: (-row[2], row[0]))
    return [(row[0], row[1]) for row in rows]


def _unblock(cursor: CursorWrapper, key: str, free: int, now: datetime) -> list[UUID]:
    """Give free slots of a semaphore to its next blocked jobs."""
    cursor.execute(
        "DELETE FROM dj_queue_blocked_executions WHERE id IN (SELECT id FROM dj_queue_blocked_executions"
        " WHERE concurrency_key = %s ORDER BY priority DESC, id LIMIT %s)"
        " RETURNING priority, id, job_id, backend_alias, queue_name,"
        " (SELECT concurrency_duration FROM dj_queue_jobs WHERE dj_queue_jobs.id = job_id)",
        [key, free],
    )
    rows = sorted(cursor.fetchall(), key=lambda row: (-row[0], row[1]))
    if not rows:
        return []
    cursor.executemany(
        "INSERT INTO dj_queue_ready_executions"
        " (job_id, backend_alias, queue_name, priority, concurrency_key, created_at)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        [(job_id, alias, queue, priority, key, _stored(now)) for priority, _, job_id, alias, queue, _ in rows],
    )
    expires_at = now + max(lasting(row[5]) for row in rows)
    cursor.execute(
        "UPDATE dj_queue_semaphores SET value = value - %s, expires_at = max(expires_at, %s) WHERE key = %s",
        [len(rows), _stored(expires_at), key],
    )
    return [UUID(row[2]) for row in rows]


_READ = ", ".join(
    f"CAST(job.{name} AS BLOB)"
    for name in (
        "id", "task_path", "queue_name", "priority", "payload", "scheduled_at", "created_at", "started_at",
        "concurrency_key",
    )
)  # fmt: skip

# The names of earlier attempts with room for one more, whatever is stored there: one entry says how many are left out.
_ENTRY = f"json_extract(worker_ids, '$[{FIRST_WORKERS}]')"
_WORKERS = (
    "CASE WHEN worker_ids IS NULL OR NOT json_valid(worker_ids) THEN '[]'"
    " WHEN json_type(worker_ids) <> 'array' THEN '[]'"
    f" WHEN json_array_length(worker_ids) < {MOST_WORKERS} THEN worker_ids"
    f" ELSE json_remove(json_set(worker_ids, '$[{FIRST_WORKERS}]', '[... ' || (1 + CASE"
    f" WHEN {_ENTRY} GLOB '[[]... [0-9]* left out ...]' THEN CAST(substr({_ENTRY}, 6, 15) AS INTEGER) ELSE 1 END)"
    f" || ' left out ...]'), '$[{FIRST_WORKERS + 1}]') END"
)


def _claim(row: Sequence[Any], now: datetime) -> Claim:
    claim_id, job_id = row[:2]
    try:
        text: list[Any] = [None if value is None else value.decode() for value in row[1:]]
        job_id, path, queue, priority, payload, scheduled, created, started, key = text
        return Claim(
            claim_id, UUID(job_id), path, queue, int(priority), payload,
            _read(scheduled), _read(created) or now, _read(started), key, now,
        )  # fmt: skip
    except Exception as error:  # written by something else: it must not keep the others from being read
        if isinstance(job_id, bytes):
            job_id = job_id.decode(errors="replace")
        return flawed(claim_id, now, error, job_id=job_id)


def _stored(time: datetime) -> str:
    """A time as Django writes it: UTC without offset, or the project's local time without USE_TZ."""
    if timezone.is_aware(time):
        time = timezone.make_naive(time, _zone())
    return str(time)


def _read(value: str | datetime | None) -> datetime | None:
    if value is None:
        return None
    time = parse_datetime(value) if isinstance(value, str) else value
    if time is None:
        raise ValueError(f"{value[:80]!r} is no time" if isinstance(value, str) else "no time")
    return timezone.make_aware(time, _zone()) if settings.USE_TZ and timezone.is_naive(time) else time


def _text(value: str | datetime) -> str:
    return value if isinstance(value, str) else str(value)


def _zone() -> Any:
    return UTC if settings.USE_TZ else timezone.get_default_timezone()

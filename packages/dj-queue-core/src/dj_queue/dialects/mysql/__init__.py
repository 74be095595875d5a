"""MySQL and MariaDB: each step is one short transaction of a fixed number of statements.

At READ COMMITTED, where InnoDB locks rows and no gaps between them: workers that claim and finish at the
same time do not wait for each other. Rows are locked with SKIP LOCKED where others may hold them, and
deleted by primary key, in its order. One class, and long: each step is several statements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import zip_longest
from typing import Any
from uuid import UUID

from django.db import DataError, Error, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.backends.utils import CursorWrapper
from django.db.models import Expression

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
    lasting,
    needed,
)
from dj_queue.dialects.clock import Now, in_utc, mysql_clock
from dj_queue.dialects.job_id import collation
from dj_queue.dialects.mysql import liveness
from dj_queue.dialects.mysql import sql as sql
from dj_queue.dialects.mysql.rows import (
    claim_of,
    delete,
    for_each,
    lock_clause,
    of_jobs,
    read_time,
    stored_time,
    write,
)
from dj_queue.serialization import JSONLimits

# The largest statement that is put together of many rows, in characters. One row may be larger.
_STATEMENT = 256 * 1024
# No server takes less, even if each character is escaped; and more than the rest of a statement.
_SURELY_SENDABLE = 64 * 1024
_READ_COMMITTED = "read committed"
_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class _Server:
    descending: bool  # whether the indexes hold priorities as they were declared; MariaDB 10.6 and 10.7 ignore that
    largest_packet: int


class MySQL(Dialect):
    vendor = "mysql"
    # What both store as it is: MariaDB stops at 32 levels, and MySQL rounds integers of more than 64 bits.
    json_limits = JSONLimits(depth=30, wide_integers=False)
    # Two transactions whose inserts met the same row share a lock on it, and then each waits for the other's.
    locks_before_insert = True

    def __init__(self) -> None:
        self._known_server: _Server | None = None
        self._known_names: dict[str, tuple[str, ...]] = {}

    def insert(self, cursor: CursorWrapper, jobs: Sequence[NewJob], *, alias: str, notify: bool) -> datetime:
        now = self.now(cursor)
        stored = partial(stored_time, cursor)
        at = stored(now)
        self._insert_jobs(
            cursor,
            sql.INSERT_JOBS,
            [(job.id.hex, *job[1:5], alias, stored(job.run_after), at, at) for job in jobs],
        )
        waits = [job.run_after is not None and job.run_after > now for job in jobs]
        self._insert_rows(
            cursor,
            sql.INSERT_READY,
            [
                (job.id.hex, alias, job.queue_name, job.priority, None, at)
                for job, later in zip(jobs, waits, strict=True)
                if not later
            ],
        )
        scheduled = [
            (job.id.hex, alias, job.queue_name, job.priority, stored(job.run_after), at)
            for job, later in zip(jobs, waits, strict=True)
            if later
        ]
        self._insert_rows(cursor, sql.INSERT_SCHEDULED, scheduled)
        return now

    def insert_limited(
        self, cursor: CursorWrapper, jobs: Sequence[LimitedJob], *, alias: str, notify: bool
    ) -> tuple[datetime, set[UUID], list[UnblockedJob]]:
        # What is due needs the clock to tell, before any semaphore is locked.
        now = self.now(cursor)
        due = [each for each in jobs if each.job.run_after is None or each.job.run_after <= now]
        slots, unblocked = self._take_slots(cursor, due, now)
        stored = partial(stored_time, cursor)
        at = stored(now)
        ready: list[tuple[Any, ...]] = []
        blocked: list[tuple[Any, ...]] = []
        scheduled: list[tuple[Any, ...]] = []
        discarded: set[UUID] = set()
        for job, key, _, duration, discards in jobs:
            place = (job.id.hex, alias, job.queue_name, job.priority)
            if job.run_after is not None and job.run_after > now:
                scheduled.append((*place, stored(job.run_after), at))
            elif slots[key] > 0:
                slots[key] -= 1
                ready.append((*place, key, at))
            elif discards:
                discarded.add(job.id)
            else:
                blocked.append((*place, key, at, stored(now + timedelta(seconds=duration))))
        self._insert_jobs(
            cursor,
            sql.INSERT_LIMITED_JOBS,
            [
                (
                    job.id.hex, *job[1:5], alias, stored(job.run_after), at, at, at if job.id in discarded else None,
                    key, limit, duration, "discard" if discards else "block",
                )
                for job, key, limit, duration, discards in jobs
            ],
        )  # fmt: skip
        self._insert_rows(cursor, sql.INSERT_READY, ready)
        self._insert_rows(cursor, sql.INSERT_BLOCKED, blocked)
        self._insert_rows(cursor, sql.INSERT_SCHEDULED, scheduled)
        return now, discarded, unblocked

    def now(self, cursor: CursorWrapper) -> datetime:
        cursor.execute(f"SELECT {mysql_clock(cursor.db)}")
        return read_time(cursor, cursor.fetchone()[0])

    def clock(self, *, ago: float = 0) -> Expression:
        return Now() - timedelta(seconds=ago) if ago else Now()

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
        lock = "FOR UPDATE SKIP LOCKED" if skip_locked else "FOR UPDATE"
        picked = self._pick(cursor, alias, needed(selectors), limit, lock)
        if not picked:
            return []
        delete(cursor, "dj_queue_ready_executions", [row[0] for row in picked])
        held_at = f", {mysql_clock(cursor.db)}"
        write(cursor, sql.HOLD, [(job_id, process_id, position) for position, job_id in picked], also=held_at)
        job_ids = [job_id for _, job_id in picked]
        held = sql.HELD.format(ids=sql.marks(job_ids), lock="{lock}")
        cursor.execute(held.format(lock=""), job_ids)
        rows = cursor.fetchall()
        if len(rows) < len(picked):
            # Jobs deleted behind the queue's back; or a caller's transaction, whose snapshot is older than they.
            cursor.execute(held.format(lock="LOCK IN SHARE MODE"), job_ids)
            rows = cursor.fetchall()
            there = {row[1] for row in rows}
            orphans = [job_id for job_id in job_ids if job_id not in there]
            if orphans:
                cursor.execute(sql.DROP_ORPHANS.format(ids=sql.marks(orphans)), orphans)
        # Claim ids were drawn in the order of the pick; a join's output promises no order.
        return sorted(claim_of(cursor, row) for row in rows)

    def finish(
        self, cursor: CursorWrapper, outcomes: Sequence[Outcome], *, worker: str, preserve: bool
    ) -> tuple[datetime, set[int]]:
        now, kept = self._record(cursor, outcomes, worker, preserve)
        delete(cursor, "dj_queue_claimed_executions", kept)
        return now, kept

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
        now, kept = self._record(cursor, outcomes, worker, preserve)
        freed = Counter(keys[claim_id] for claim_id in kept if claim_id in keys)
        return now, kept, self._start_next(cursor, freed, ended=kept)

    def release(self, cursor: CursorWrapper, claim_ids: Sequence[int], *, alias: str, notify: bool) -> int:
        _, locked = self._lock_claims(cursor, claim_ids)
        kept = sorted(row[0] for row in locked)
        if kept:
            cursor.execute(sql.GIVE_BACK, [sql.dump(kept)])
        delete(cursor, "dj_queue_claimed_executions", kept)
        return len(kept)

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
        # Without descending indexes, those due at the same microsecond may be cut off in another order.
        order = "scheduled_at, priority DESC, id" if self._server(cursor).descending else "scheduled_at, priority, id"
        lock = "FOR UPDATE SKIP LOCKED" if skip_locked else "FOR UPDATE"
        clock = mysql_clock(cursor.db)
        if except_keys:
            but = sql.marks(list(except_keys))
            cursor.execute(sql.DUE_BUT.format(now=clock, order=order, but=but), [alias, *except_keys, limit])
            ids = sorted(row[0] for row in cursor.fetchall())
            if not ids:
                return 0, []
            lock = lock_clause(cursor, "scheduled") + (" SKIP LOCKED" if skip_locked else "")
            cursor.execute(sql.DUE_OF.format(now=clock, lock=lock), [sql.dump(ids), alias])
        else:
            cursor.execute(sql.COUNT_DUE.format(now=clock), [alias, limit])
            count = int(cursor.fetchone()[0] or 0)
            if not count:
                return 0, []
            cursor.execute(sql.DUE.format(now=clock, order=order, lock=lock), [alias, count])
        # What others have locked was skipped, and so perhaps some that are not due were locked here.
        found = [row for row in cursor.fetchall() if row[5]]
        if not found:
            return 0, []
        due = sorted(found, key=lambda row: (str(row[4]), -row[3], row[0]))
        at = str(due[0][6])
        keys = of_jobs(cursor, "concurrency_key", [row[1] for row in due])
        delete(cursor, "dj_queue_scheduled_executions", [row[0] for row in due])
        self._insert_rows(
            cursor,
            sql.INSERT_READY,
            [
                (job_id, alias, queue, priority, None, at)
                for _, job_id, queue, priority, *_ in due
                if keys[job_id] is None
            ],
        )
        return len(due), [UUID(row[1]) for row in due if keys[row[1]] is not None]

    def lock_semaphores(
        self, cursor: CursorWrapper, keys: Iterable[str], *, skip_locked: bool = False
    ) -> list[LockedSemaphore]:
        lock = sql.LOCK_SEMAPHORE.format(now="expires_at", skip="SKIP LOCKED" if skip_locked else "")
        rows = for_each(cursor, lock, [(key,) for key in sorted(keys)])
        # The driver makes nothing of a date that is none, such as a session that is not strict stores.
        return [LockedSemaphore._make([*row[1:5], row[5] and read_time(cursor, row[5])]) for row in rows]

    def make_semaphores(self, cursor: CursorWrapper, limits: Mapping[str, int], now: datetime) -> None:
        at = stored_time(cursor, now)
        rows = [(key, limits[key], limits[key], at, at, at) for key in sorted(limits)]
        self._insert_rows(cursor, sql.MAKE_SEMAPHORES, rows)

    def unblock(
        self, cursor: CursorWrapper, freed: Mapping[str, int], *, notify: bool, skip_locked: bool = False
    ) -> list[UnblockedJob]:
        return self._start_next(cursor, freed, ended=(), skip="SKIP LOCKED" if skip_locked else "")

    def any_ready(self, cursor: CursorWrapper, alias: str) -> bool:
        cursor.execute(sql.ANY_READY, [alias])
        return cursor.fetchone() is not None

    def any_due(self, cursor: CursorWrapper, alias: str) -> bool:
        cursor.execute(sql.ANY_DUE.format(now=mysql_clock(cursor.db)), [alias])
        return bool(cursor.fetchone()[0])

    def is_transient(self, error: Error) -> bool:
        return liveness.is_transient(error)

    def is_lock_timeout(self, error: Error) -> bool:
        return liveness.is_lock_timeout(error)

    def is_away(self, error: Error) -> bool:
        return liveness.is_away(error, unnumbered=super().is_away(error))

    def may_pass(self, error: Error) -> bool:
        return liveness.may_pass(error)

    def prepare_session(self, connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
            cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {LOCK_TIMEOUT}")
        connection.isolation_level = _READ_COMMITTED

    @contextmanager
    def bounding_waits(self, connection: BaseDatabaseWrapper, seconds: float) -> Iterator[None]:
        with liveness.bounding_waits(connection, seconds):
            yield

    def watch(self, connection: BaseDatabaseWrapper) -> None:
        liveness.watch(connection)

    def connection_limit(self, cursor: CursorWrapper) -> int | None:
        cursor.execute(sql.CONNECTION_LIMIT)
        return int(cursor.fetchone()[0])

    @contextmanager
    def beginning(self, connection: Any, *, again: bool) -> Iterator[None]:
        connection.ensure_connection()
        # Django's own default. Only a project that asks for another one pays for this.
        if connection.isolation_level != _READ_COMMITTED and connection.get_autocommit():
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        yield

    def refusal(self, connection: Any) -> str | None:
        name, oldest = ("MariaDB", (10, 6)) if connection.mysql_is_mariadb else ("MySQL", (8, 0, 17))
        if connection.mysql_version < oldest:
            wanted, found = (".".join(map(str, version)) for version in (oldest, connection.mysql_version))
            return f"dj-queue needs {name} {wanted} or later, and this is {found}. Upgrade the server"
        if not connection.features.supports_transactions:
            return "its default_storage_engine has no transactions. Set that to InnoDB, and migrate anew"
        return None

    def tune_tables(self, schema_editor: BaseDatabaseSchemaEditor) -> None:
        connection: Any = schema_editor.connection
        for table in sql.TABLES:
            schema_editor.execute(sql.storage(table, collation=collation(connection), utc=in_utc(connection)))

    # ---- enqueue ----

    def _insert_jobs(self, cursor: CursorWrapper, statement: str, values: Sequence[tuple[Any, ...]]) -> None:
        for some in sql.batches(values, [len(row[4]) for row in values], most=_STATEMENT):
            if len(some) == 1:
                self._refuse_unsendable(cursor, some[0][4])
            write(cursor, statement, some)

    def _insert_rows(self, cursor: CursorWrapper, statement: str, values: Sequence[tuple[Any, ...]]) -> None:
        for start in range(0, len(values), 1000):
            write(cursor, statement, values[start : start + 1000])

    def _take_slots(
        self, cursor: CursorWrapper, due: Sequence[LimitedJob], now: datetime
    ) -> tuple[Counter[str], list[UnblockedJob]]:
        """Take as many slots as there are, at most one a job; return how many of each key, and what came first."""
        latest = {each.key: each for each in due}  # of several limits of one key, the last counts
        wanted = Counter(each.key for each in due)
        taken: Counter[str] = Counter()
        changed = []
        rows = self._lock_semaphores(cursor, latest, now)
        raised = [row for row in rows if latest[row.key].limit > row.limit]
        unblocked: list[UnblockedJob] = []
        if raised:
            # Those that the lower limit has blocked come before any new job.
            more = [(row.id, row.value + latest[row.key].limit - row.limit, latest[row.key].limit) for row in raised]
            cursor.execute(sql.CHANGE_SEMAPHORES, [sql.dump(more), stored_time(cursor, now)])
            unblocked = self._start_next(cursor, {row.key: 0 for row in raised}, ended=())
            rows = self.lock_semaphores(cursor, latest)
        for semaphore, key, value, limit, _ in rows:
            free = value + latest[key].limit - limit
            taken[key] = min(wanted[key], max(free, 0))
            expires_at = now + timedelta(seconds=latest[key].duration) if taken[key] else None
            changed.append((semaphore, free - taken[key], latest[key].limit, stored_time(cursor, expires_at)))
        if changed:
            cursor.execute(sql.CHANGE_SEMAPHORES, [sql.dump(changed), stored_time(cursor, now)])
        return taken, unblocked

    def _lock_semaphores(
        self, cursor: CursorWrapper, latest: Mapping[str, LimitedJob], now: datetime
    ) -> list[LockedSemaphore]:
        """The semaphores of these keys, locked; those that are not there are made."""
        found: list[LockedSemaphore] = []
        missing = sorted(latest)
        for attempt in range(_ATTEMPTS):
            # Looked for before they are made: nearly always they are there, and an insert that fails costs an id.
            if attempt:
                self.make_semaphores(cursor, {key: latest[key].limit for key in missing}, now)
            found += self.lock_semaphores(cursor, missing)
            missing = sorted(latest.keys() - {row.key for row in found})
            if not missing:
                return found
        raise OperationalError("dj_queue: the semaphores of a batch could not be locked. Enqueue it again.")

    # ---- claim ----

    def _pick(
        self, cursor: CursorWrapper, alias: str, selectors: Sequence[Selector], limit: int, lock: str
    ) -> list[tuple[int, Any]]:
        """Lock ready rows in the order in which they should start; return their ids and their jobs'."""
        if selectors[0].everything:
            rows = self._first(cursor, "dj_queue_ready_all", sql.NOTHING_PAUSED, [alias, alias], limit, lock)
            if rows or not self._any_paused(cursor, alias):
                return [(row[0], row[1]) for row in rows]
        there = self._names(cursor, alias) if any(selector.prefix for selector in selectors) else []
        unpaused = self._unpaused(cursor, alias, {*there, *(each.name for each in selectors if not each.prefix)})
        picked: list[tuple[int, Any]] = []
        for selector in selectors:
            if len(picked) < limit and unpaused:
                names = [name for name in there if selector.matches(name)] if selector.prefix else [selector.name]
                mine = [name for name in names if name in unpaused]
                rows = self._first_of(cursor, alias, mine, limit - len(picked), lock)
                picked += [(row[0], row[1]) for row in rows]
                # A row that one selector has locked is no obstacle to the next one's transaction: it is the same.
                unpaused.difference_update(mine)
        return picked

    def _any_paused(self, cursor: CursorWrapper, alias: str) -> bool:
        cursor.execute(sql.ANY_PAUSED, [alias])
        return cursor.fetchone() is not None

    def _unpaused(self, cursor: CursorWrapper, alias: str, names: set[str]) -> set[str]:
        if not names:
            return names
        return names - {name for (name,) in for_each(cursor, sql.PAUSED, [(alias, name) for name in sorted(names)])}

    def _first_of(
        self, cursor: CursorWrapper, alias: str, names: Sequence[str], limit: int, lock: str
    ) -> list[tuple[Any, ...]]:
        where = "backend_alias = %s AND queue_name = %s"
        rows: list[tuple[Any, ...]] = []
        if len(names) > 1 and self._server(cursor).descending:
            one = sql.PICK.format(index="dj_queue_ready_queue", where=where, order=_ORDER, lock=lock)
            rows += for_each(cursor, one, [(alias, name, limit) for name in names])
        else:
            for name in names:
                rows += self._first(cursor, "dj_queue_ready_queue", where, [alias, name], limit, lock)
        return sorted(rows, key=lambda row: (-row[2], row[0]))[:limit]

    def _first(
        self, cursor: CursorWrapper, index: str, where: str, params: Sequence[Any], limit: int, lock: str
    ) -> list[tuple[Any, ...]]:
        return list(self._in_order(cursor, sql.PICK, "dj_queue_ready_executions", index, where, params, limit, lock))

    def _in_order(
        self,
        cursor: CursorWrapper,
        statement: str,
        table: str,
        index: str,
        where: str,
        params: Sequence[Any],
        limit: int,
        lock: str,
    ) -> Iterator[tuple[Any, ...]]:
        """Rows by priority, the highest first, then by id."""
        if self._server(cursor).descending:
            cursor.execute(statement.format(index=index, where=where, order=_ORDER, lock=lock), [*params, limit])
            yield from cursor.fetchall()
            return
        # An index that only ascends holds each priority's rows in order: one priority after the other.
        below = ""
        bound: list[int] = []
        while limit > 0:
            cursor.execute(sql.NEXT_PRIORITY.format(table=table, where=where, below=below), [*params, *bound])
            (priority,) = cursor.fetchone()
            if priority is None:
                return
            one = statement.format(index=index, where=f"{where} AND priority = %s", order="id", lock=lock)
            cursor.execute(one, [*params, priority, limit])
            rows = cursor.fetchall()
            limit -= len(rows)
            yield from rows
            below, bound = "AND priority < %s", [priority]

    def _names(self, cursor: CursorWrapper, alias: str) -> list[str]:
        """The names of the queues that hold ready jobs.

        Asked for the next name after each that was there the last time: where no queue is new, that is one
        statement, and one probe of the index a queue.
        """
        found: set[str] = set()
        ask = ["", *self._known_names.get(alias, ())]
        asked: set[str] = set()
        while ask:
            asked.update(ask)
            rows = for_each(cursor, sql.NEXT_NAME, [(alias, name) for name in ask])
            found.update(name for (name,) in rows if name is not None)
            ask = sorted(found - asked)
        names = sorted(found)
        self._known_names[alias] = tuple(names)
        return names

    # ---- finish ----

    def _record(
        self, cursor: CursorWrapper, outcomes: Sequence[Outcome], worker: str, preserve: bool
    ) -> tuple[datetime, set[int]]:
        """Everything about a finish but the end of its claims, which are locked."""
        now, locked = self._lock_claims(cursor, [outcome.claim_id for outcome in outcomes])
        kept = {row[0] for row in locked}
        ours = sorted(outcome for outcome in outcomes if outcome.claim_id in kept)
        self._update_jobs(cursor, [each for each in ours if preserve or each.error], worker, now)
        self._insert_failed(cursor, [each for each in ours if each.error], now)
        if not preserve:
            succeeded = sql.dump([outcome.claim_id for outcome in ours if not outcome.error])
            cursor.execute(sql.FORGET_TICKS, [succeeded])
            cursor.execute(sql.DELETE_SUCCEEDED, [succeeded])
        return now, kept

    def _lock_claims(self, cursor: CursorWrapper, claim_ids: Sequence[int]) -> tuple[datetime, Sequence[Any]]:
        ids = sorted(claim_ids)
        if ids:
            cursor.execute(
                sql.LOCK_CLAIMS.format(now=mysql_clock(cursor.db), lock=lock_clause(cursor, "claim")), [sql.dump(ids)]
            )
            rows = cursor.fetchall()
            if rows:
                return read_time(cursor, rows[0][1]), rows
        return self.now(cursor), ()

    def _update_jobs(self, cursor: CursorWrapper, outcomes: Sequence[Outcome], worker: str, now: datetime) -> None:
        at = stored_time(cursor, now)
        # Those of one claim began at one time.
        starts = {start: stored_time(cursor, start) for start in {each.started_at for each in outcomes}}
        rows = [
            (each.claim_id, starts[each.started_at], int(each.error is not None), each.return_value)
            for each in outcomes
        ]
        sizes = [len(each.return_value or "") for each in outcomes]
        for batch in sql.batches(rows, sizes, most=_STATEMENT):
            cursor.execute(sql.FINISH, [self._table(cursor, batch), at, worker, at])

    def _insert_failed(self, cursor: CursorWrapper, outcomes: Sequence[Outcome], now: datetime) -> None:
        rows = [(each.claim_id, *each.error) for each in outcomes if each.error]
        sizes = [len(row[2]) + len(row[3]) for row in rows]
        for batch in sql.batches(rows, sizes, most=_STATEMENT):
            cursor.execute(sql.FINISH_FAILED, [stored_time(cursor, now), self._table(cursor, batch)])

    def _table(self, cursor: CursorWrapper, rows: Sequence[tuple[Any, ...]]) -> str:
        text = sql.dump(rows)
        if len(rows) == 1:
            self._refuse_unsendable(cursor, text)
        return text

    def _refuse_unsendable(self, cursor: CursorWrapper, text: str) -> None:
        """The server answers a statement that is too large by hanging up, as if it had gone away itself."""
        if len(text) < _SURELY_SENDABLE:
            return
        largest = self._server(cursor).largest_packet
        size = len(cursor.db.connection.literal(text)) + _SURELY_SENDABLE
        if size > largest:
            raise DataError(
                f"a statement of {size} bytes is more than the server's max_allowed_packet of {largest}."
                " Store large data elsewhere and pass its name, or raise max_allowed_packet."
            )

    # ---- unblock ----

    def _start_next(
        self, cursor: CursorWrapper, freed: Mapping[str, int], *, ended: Iterable[int], skip: str = ""
    ) -> list[UnblockedJob]:
        """Give free slots to the next blocked jobs; delete their rows, and the claims that have ended, at once."""
        semaphores, blocked = self._lock_next(cursor, freed, skip)
        started: list[tuple[Any, ...]] = []
        changed = []
        now = read_time(cursor, semaphores[-1][5]) if semaphores else None
        for _, semaphore, key, value, limit, *_ in semaphores:
            assert now is not None
            free = min(limit, value + freed[key])
            next_ones = blocked.get(key, [])[: max(free, 0)]
            started += next_ones
            longest = max((lasting(row[9]) for row in next_ones), default=None)
            expires_at = None if longest is None else now + longest
            changed.append((semaphore, free - len(next_ones), limit, stored_time(cursor, expires_at)))
        if started:
            ids = zip_longest(sorted(ended), sorted(row[1] for row in started))
            cursor.execute(sql.DELETE_ENDED, [sql.dump(list(ids))])
        else:
            delete(cursor, "dj_queue_claimed_executions", ended)
        at = stored_time(cursor, now)
        rows = [(job_id, alias, queue, rank, key, at) for _, _, key, rank, _, _, job_id, alias, queue, _ in started]
        self._insert_rows(cursor, sql.INSERT_READY, rows)
        if changed:
            cursor.execute(sql.CHANGE_SEMAPHORES, [sql.dump(changed), at])
        return [UnblockedJob(UUID(row[6]), row[2]) for row in started]

    def _lock_next(
        self, cursor: CursorWrapper, freed: Mapping[str, int], skip: str
    ) -> tuple[list[tuple[Any, ...]], dict[str, list[tuple[Any, ...]]]]:
        """Lock the semaphores, in the order of their keys, and the next blocked jobs that they have room for."""
        lock = sql.LOCK_SEMAPHORE.format(now=mysql_clock(cursor.db), skip="")
        keys = sorted(freed)
        rows: list[tuple[Any, ...]] = []
        if keys and self._server(cursor).descending:
            # With as many blocked jobs as slots became free: nearly always there is no other free one.
            rows = for_each(
                cursor, f"{lock} UNION ALL {_NEXT_BLOCKED.format(skip=skip)}", [(key, key, freed[key]) for key in keys]
            )
        elif keys:
            rows = for_each(cursor, lock, [(key,) for key in keys])
        semaphores = [row for row in rows if row[0] == 0]
        blocked: dict[str, list[tuple[Any, ...]]] = {}
        for row in rows:
            if row[0] == 1:
                blocked.setdefault(row[2], []).append(row)
        for _, _, key, value, limit, *_ in semaphores:
            found, free = len(blocked.get(key, ())), min(limit, value + freed[key])
            if found < free and (found == freed[key] or not self._server(cursor).descending):
                blocked[key] = self._next_blocked(cursor, key, free, skip)
        return semaphores, blocked

    def _next_blocked(self, cursor: CursorWrapper, key: str, count: int, skip: str) -> list[tuple[Any, ...]]:
        table, index = "dj_queue_blocked_executions", "dj_queue_blocked_next"
        where = "concurrency_key = %s"
        return list(self._in_order(cursor, sql.NEXT_BLOCKED, table, index, where, [key], count, f"FOR UPDATE {skip}"))

    # ---- the server ----

    def _server(self, cursor: CursorWrapper) -> _Server:
        if self._known_server is None:
            cursor.execute(f"SELECT ({sql.DESCENDING}), @@max_allowed_packet")
            descending, packet = cursor.fetchone()
            self._known_server = _Server(descending == 4, packet)
        return self._known_server


_ORDER = "priority DESC, id"
_NEXT_BLOCKED = sql.NEXT_BLOCKED.format(
    index="dj_queue_blocked_next", where="concurrency_key = %s", order=_ORDER, lock="FOR UPDATE {skip}"
)

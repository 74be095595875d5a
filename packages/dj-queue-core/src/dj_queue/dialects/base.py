"""What the operations ask of a database, and the rows that go in and out.

Rows are plain tuples: the hot path builds no model instances. Every method runs in the transaction
of its caller; where `one_statement` is true, each of `insert`, `claim`, `finish`, `release` and
`promote` is a single statement, and needs no transaction around it.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import Error, InterfaceError, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.backends.utils import CursorWrapper
from django.db.models import Expression
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from dj_queue.dialects import observation_sql
from dj_queue.serialization import ErrorRecord, JSONLimits, storable

_LONGEST = 100 * 365 * 86400.0
EMPTY_PAYLOAD = '{"args":[],"kwargs":{}}'


# How many names a job keeps in `worker_ids`, and how many of them are the first.
MOST_WORKERS = 100
FIRST_WORKERS = 10


class NewJob(NamedTuple):
    """A job to store that no concurrency limit holds back."""

    id: UUID
    task_path: str
    queue_name: str
    priority: int
    payload: str
    run_after: datetime | None


class LimitedJob(NamedTuple):
    """A job to store that has a concurrency key."""

    job: NewJob
    key: str
    limit: int
    duration: float  # seconds
    discards: bool  # where there is no room, instead of being blocked


class Claim(NamedTuple):
    """A claimed job, as its worker needs it."""

    id: int  # of the claimed row: the fence
    job_id: UUID
    task_path: str
    queue_name: str
    priority: int
    payload: str
    scheduled_at: datetime | None
    created_at: datetime
    started_at: datetime | None  # of the first attempt
    concurrency_key: str | None
    claimed_at: datetime
    flaw: str | None = None  # what of the job could not be read: it is to fail


class Outcome(NamedTuple):
    """What became of a claim."""

    claim_id: int
    job_id: UUID
    started_at: datetime
    return_value: str | None
    error: ErrorRecord | None


class UnblockedJob(NamedTuple):
    job_id: UUID
    key: str


class QueueCounts(NamedTuple):
    """How many jobs of a queue are in each state; what exceeds its cap is one more than that."""

    name: str
    ready: int
    scheduled: int
    claimed: int
    claimed_capped: bool  # whether there are more claims than the cap, of whatever queue
    blocked: int
    failed: int
    jobs: int | None  # in whatever state; None if one of them exceeds its cap
    paused: bool
    oldest_scheduled_at: datetime | None
    oldest_blocked_at: datetime | None


# Seconds that a statement of the runtime waits for a lock that another transaction holds. Commits of others take
# less; what takes longer may take for ever, and there are other things to do.
LOCK_TIMEOUT = 1


class LockedSemaphore(NamedTuple):
    id: int
    key: str
    value: int
    limit: int
    expires_at: datetime | None  # None if it cannot be read


class SemaphoreState(NamedTuple):
    key: str
    free: int
    limit: int
    expires_at: datetime | None  # None if it cannot be read
    waiters: int


class Selector(NamedTuple):
    """One entry of a worker's `queues`."""

    name: str
    prefix: bool = False

    @classmethod
    def parse(cls, text: str) -> "Selector":
        return cls(text[:-1], prefix=True) if text.endswith("*") else cls(text)

    @property
    def everything(self) -> bool:
        return self.prefix and not self.name

    def matches(self, queue_name: str) -> bool:
        return queue_name.startswith(self.name) if self.prefix else queue_name == self.name


def needed(selectors: Sequence[Selector]) -> list[Selector]:
    """The selectors without those that an earlier one contains: they would pick the same rows once more."""
    needed: list[Selector] = []
    for selector in selectors:
        if not any(
            selector.name.startswith(earlier.name) if earlier.prefix else selector == earlier for earlier in needed
        ):
            needed.append(selector)
    return needed


def lasting(seconds: object) -> timedelta:
    """The duration that a row says, within the calendar, whatever it says."""
    if isinstance(seconds, int | float) and seconds > 0:
        return timedelta(seconds=min(float(seconds), _LONGEST))
    return timedelta()


def flawed(claim_id: int, claimed_at: datetime, error: object, *, job_id: object = None) -> Claim:
    """The claim of a job that cannot be read."""
    try:
        known = job_id if isinstance(job_id, UUID) else UUID(str(job_id))
    except ValueError:
        known = UUID(int=0)
    flaw = storable(f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error))
    return Claim(claim_id, known, "", "", 0, EMPTY_PAYLOAD, None, claimed_at, None, None, claimed_at, flaw)


class Dialect(ABC):
    vendor: str
    json_limits: JSONLimits
    one_statement = False
    # Whether rows that several may insert are first looked for and locked.
    locks_before_insert = False
    # Whether a derived table may refer to those before it.
    lateral = False
    # Whether `observing` needs a transaction around it.
    observes_in_transaction = False
    _queue_names = observation_sql.DISTINCT_NAMES
    _capped_count = observation_sql.PROBED
    # A time of a column, so that one which Python cannot hold keeps no other row from being read.
    _readable_time = "{0}"

    @abstractmethod
    def insert(self, cursor: CursorWrapper, jobs: Sequence[NewJob], *, alias: str, notify: bool) -> datetime:
        """Store `jobs`, ready or scheduled by the database's clock; return that clock's time.

        With `notify`, workers that listen are told of ready jobs when the transaction commits.
        """

    @abstractmethod
    def now(self, cursor: CursorWrapper) -> datetime:
        """The database's clock."""

    def clock(self, *, ago: float = 0) -> Expression:
        """The database's clock, or `ago` seconds before it, for the ORM to write or compare with."""
        return Now() - timedelta(seconds=ago) if ago else Now()

    @abstractmethod
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
        """Move up to `limit` ready jobs to claimed, in the order of the selectors, then priority, then age."""

    @abstractmethod
    def finish(
        self, cursor: CursorWrapper, outcomes: Sequence[Outcome], *, worker: str, preserve: bool
    ) -> tuple[datetime, set[int]]:
        """Record the outcomes whose claimed row still stands; return the time and those claims' ids."""

    @abstractmethod
    def release(self, cursor: CursorWrapper, claim_ids: Sequence[int], *, alias: str, notify: bool) -> int:
        """Give claims that were not started back to ready, each at its old place; return how many."""

    @abstractmethod
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
        """Take up to `limit` due jobs off the schedule, the longest due first, and make them ready.

        Return how many were taken, and which of them have a concurrency key: those were taken, but
        the caller must find them a slot in the same transaction. Jobs of `except_keys` stay where they are.
        """

    @abstractmethod
    def lock_semaphores(
        self, cursor: CursorWrapper, keys: Iterable[str], *, skip_locked: bool = False
    ) -> list[LockedSemaphore]:
        """Lock the semaphores of these keys, those that are there, for the rest of the transaction.

        One after the other in the bytewise order of the keys in UTF-8, which is Python's order of text and no
        collation's: every statement of a dialect that locks semaphores, or makes them, keeps to it.
        """

    @abstractmethod
    def make_semaphores(self, cursor: CursorWrapper, limits: Mapping[str, int], now: datetime) -> None:
        """Make those semaphores of these keys that are not there, all slots free, in the order of the keys."""

    @abstractmethod
    def unblock(
        self, cursor: CursorWrapper, freed: Mapping[str, int], *, notify: bool, skip_locked: bool = False
    ) -> list[UnblockedJob]:
        """Free the given number of slots of each key, and give them to the next blocked jobs.

        Locks the semaphores before it looks for blocked jobs: a job was blocked on a semaphore under that lock,
        so its job is seen. With `skip_locked`, blocked jobs that others hold are passed over.
        """

    def fail_row(self, cursor: CursorWrapper, table: str, row_id: int, error: ErrorRecord) -> None:
        """Record the job of an execution row as failed, whatever else is in that row and in its job's."""
        at = cursor.db.ops.adapt_datetimefield_value(self.now(cursor))
        cursor.execute(
            "INSERT INTO dj_queue_failed_executions"
            " (job_id, backend_alias, queue_name, exception_class, message, traceback, created_at)"
            f" SELECT job_id, backend_alias, queue_name, %s, %s, %s, %s FROM {table} WHERE id = %s",
            [*error, at, row_id],
        )

    def insert_limited(
        self, cursor: CursorWrapper, jobs: Sequence[LimitedJob], *, alias: str, notify: bool
    ) -> tuple[datetime, set[UUID], list[UnblockedJob]] | None:
        """Store jobs that have a concurrency key, and take slots for those that are due.

        Return the database's time, which jobs were discarded, and which started because a limit was raised:
        those that were blocked before come first. None where the caller is to do it, step by step in one
        transaction. Where `one_statement` is true, the jobs are written by one statement.
        """
        return None

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
        """`finish`, and then `unblock` with one slot for each claim that still stood and has a key in `keys`."""
        finished_at, kept = self.finish(cursor, outcomes, worker=worker, preserve=preserve)
        freed = Counter(keys[claim_id] for claim_id in kept if claim_id in keys)
        return finished_at, kept, self.unblock(cursor, freed, notify=notify) if freed else []

    def finishes_at_once(self, connection: BaseDatabaseWrapper) -> bool:
        """Whether `finish_limited` is one round trip on this connection, and so a transaction of its own."""
        return False

    def any_ready(self, cursor: CursorWrapper, alias: str) -> bool:
        """A look without a lock, before a claim or a promotion: False spares the transaction."""
        return True

    def any_due(self, cursor: CursorWrapper, alias: str) -> bool:
        return True

    def is_transient(self, error: Error) -> bool:
        """Whether the same transaction may well succeed if it is simply run again."""
        return False

    def is_lock_timeout(self, error: Error) -> bool:
        """Whether it has waited for a lock of another transaction as long as its connection may wait."""
        return False

    def is_away(self, error: Error) -> bool:
        """Whether it is not the statement that the database refuses: any other would fail as well."""
        return isinstance(error, OperationalError | InterfaceError)

    def is_unanswered(self, error: Exception) -> bool:
        """Whether the database could not be asked, or had no answer for now; else a value of a row cannot be read.

        What only collides, waits for a lock in vain or takes too long says nothing of any row.
        """
        if not isinstance(error, Error):
            return False
        return self.is_away(error) or self.is_transient(error) or self.may_pass(error)

    def may_pass(self, error: Error) -> bool:
        """Whether the statement was refused for what may be over soon: a lock, the load, a want of room.

        Or for its size: a limit on a statement's time says the same of a large one and of one that had to wait.
        """
        return self.is_transient(error)

    def unfit(self, settings: Mapping[str, Any]) -> str | None:
        """Which of a database's settings keep the queue from living there; told without connecting to it."""
        return None

    def unusable(self) -> str | None:
        """Why this process can use no database of the kind, and what to do; told without connecting to one."""
        return None

    def lacks_column(self, error: Error) -> bool:
        """Whether a table is there and a column that the statement names is not: it is another version's."""
        return any(text in str(error) for text in ("has no column named", "no such column", "Unknown column"))

    def lacks_table(self, error: Error) -> bool:
        """Whether what the statement names is not there: migrations were not run."""
        return any(text in str(error) for text in ("no such table", "doesn't exist"))

    def columns(self, cursor: CursorWrapper, table: str) -> set[str]:
        """The names of a table's columns.

        Not from Django's description of a table: on SQLite that opens a transaction, which waits for the one writer.
        """
        cursor.execute(f"SELECT * FROM {cursor.db.ops.quote_name(table)} WHERE 1 = 0")
        return {column[0] for column in cursor.description}

    def watch(self, connection: BaseDatabaseWrapper) -> None:  # noqa: B027
        """Give up on a connection of the runtime once its server no longer answers."""

    def prepare_session(self, connection: BaseDatabaseWrapper) -> None:  # noqa: B027
        """Adjust a connection that only the runtime uses, leaving nothing on a session that a pooler lends."""

    @contextmanager
    def bounding_waits(self, connection: BaseDatabaseWrapper, seconds: float) -> Iterator[None]:
        """Inside, a statement on this connection that waits so long for a lock is refused, and is transient."""
        yield

    def connection_limit(self, cursor: CursorWrapper) -> int | None:
        """How many connections the server allows to this user on this database; None if it sets no limit."""
        return None

    @contextmanager
    def beginning(self, connection: BaseDatabaseWrapper, *, again: bool) -> Iterator[None]:
        """Inside, a transaction of ours begins, in no other, on anybody's connection: adjust that one alone.

        It begins `again` if it collided before.
        """
        yield

    def refusal(self, connection: BaseDatabaseWrapper) -> str | None:
        """Why no queue can live on this server, and what to do; None where it can."""
        return None

    def tune_tables(self, schema_editor: BaseDatabaseSchemaEditor) -> None:  # noqa: B027
        """Set storage parameters once the tables exist."""

    # ---- observation: what monitoring asks, by index and within caps ----

    @contextmanager
    def observing(self, cursor: CursorWrapper) -> Iterator[None]:
        """What runs inside finds its rows by index, whatever the database believes of its tables."""
        yield

    def queue_counts(self, cursor: CursorWrapper, *, alias: str, cap: int, most: int) -> list[QueueCounts]:
        """The first `most` queues, in the order of their names, that have jobs, a pause or a recurring task."""
        cursor.execute(
            observation_sql.queues(self._queue_names, self._capped_count, self._readable_time, cap=cap, most=most),
            {"alias": alias},
        )
        return [
            QueueCounts(
                name, ready, scheduled, claimed or 0, bool(more), blocked, failed, jobs, bool(paused),
                read_time(cursor, scheduled_at), read_time(cursor, blocked_at),
            )
            for name, ready, scheduled, claimed, more, blocked, failed, jobs, paused, scheduled_at, blocked_at
            in cursor.fetchall()
        ]  # fmt: skip

    def waiting_since(self, cursor: CursorWrapper, *, alias: str, look: int) -> dict[str, datetime]:
        """Since when the longest waiting ready job of each queue has waited, among the first of each priority."""
        cursor.execute(
            observation_sql.waiting_since(self._queue_names, self._readable_time, look=look), {"alias": alias}
        )
        times = ((name, read_time(cursor, since)) for name, since in cursor.fetchall())
        return {name: since for name, since in times if since is not None}

    def finished_among_oldest(
        self, cursor: CursorWrapper, *, alias: str, queues: Sequence[str], look: int
    ) -> dict[str, int]:
        """How many of the `look` oldest jobs of each queue are finished."""
        names = {f"queue{n}": name for n, name in enumerate(queues)}
        cursor.execute(observation_sql.finished(len(queues), look=look), {**names, "alias": alias})
        return dict(cursor.fetchall())

    def semaphores(self, cursor: CursorWrapper, *, cap: int, most: int) -> list[SemaphoreState]:
        """The first `most` semaphores of the database, in the order of their keys."""
        quoted = cursor.db.ops.quote_name
        names = quoted("key"), quoted("limit")
        cursor.execute(observation_sql.semaphores(*names, self._capped_count, self._readable_time, cap=cap, most=most))
        return [
            SemaphoreState(key, free, limit, read_time(cursor, expires_at), waiters)
            for key, free, limit, expires_at, waiters in cursor.fetchall()
        ]

    # ---- wake-up: where the database can tell an idle worker of new work ----

    def notify(self, cursor: CursorWrapper, alias: str) -> None:  # noqa: B027
        """Tell the alias's idle workers, when the transaction commits, that there is work."""

    def in_transaction(self, connection: BaseDatabaseWrapper) -> bool | None:
        """Whether the driver knows an open connection to be in a transaction; None if it does not know."""
        return None

    def is_pooled(self, connection: BaseDatabaseWrapper) -> bool:
        """Whether a pooler stands before the server, and may lend its sessions to others between transactions."""
        return False

    def place(self, cursor: CursorWrapper) -> object:
        """What two connections have in common if a notification on one of them reaches the other."""
        return None

    def deaf(self) -> str | None:
        """Why the database could tell, and the driver would not hear it; and what to do."""
        return None

    def listen(self, connection: BaseDatabaseWrapper) -> bool:
        """Start listening for ready jobs on this connection; False where that cannot be had."""
        return False

    def notified(self, connection: BaseDatabaseWrapper) -> set[str]:
        """Take the aliases notified since the last call, without waiting."""
        return set()

    def socket(self, connection: BaseDatabaseWrapper) -> int | None:
        """The file descriptor that turns readable when a notification arrives."""
        return None


def read_time(cursor: CursorWrapper, value: datetime | str | bytes | None) -> datetime | None:
    """A time as a cursor gives it, as Django's own fields read it; None for what is none."""
    try:
        text = value.decode() if isinstance(value, bytes) else value
        time = parse_datetime(text) if isinstance(text, str) else text
        if time is None or not settings.USE_TZ or timezone.is_aware(time):
            return time
        return timezone.make_aware(time, cursor.db.timezone)
    except (ValueError, OverflowError):
        return None

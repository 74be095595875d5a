"""What the operations ask of a database, and the rows that go in and out.

Rows are plain tuples: the hot path builds no model instances. Every method runs in the transaction
of its caller; where `one_statement` is true, each of `insert`, `claim`, `finish`, `release` and
`promote` is a single statement, and needs no transaction around it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from django.db import Error, InterfaceError, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.backends.utils import CursorWrapper

from dj_queue.serialization import ErrorRecord, JSONLimits


class NewJob(NamedTuple):
    """A job to store that no concurrency limit holds back."""

    id: UUID
    task_path: str
    queue_name: str
    priority: int
    payload: str
    run_after: datetime | None


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
    worker_ids: str | None  # of earlier attempts
    errors: str | None
    concurrency_key: str | None
    claimed_at: datetime


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


class Dialect(ABC):
    vendor: str
    json_limits: JSONLimits
    one_statement = False
    # Whether rows that several may insert are first looked for and locked.
    locks_before_insert = False

    @abstractmethod
    def insert(self, cursor: CursorWrapper, jobs: Sequence[NewJob], *, alias: str, notify: bool) -> datetime:
        """Store `jobs`, ready or scheduled by the database's clock; return that clock's time.

        With `notify`, workers that listen are told of ready jobs when the transaction commits.
        """

    @abstractmethod
    def now(self, cursor: CursorWrapper) -> datetime:
        """The database's clock."""

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
        self, cursor: CursorWrapper, *, alias: str, limit: int, skip_locked: bool, notify: bool
    ) -> tuple[int, list[UUID]]:
        """Take up to `limit` due jobs off the schedule, the longest due first, and make them ready.

        Return how many were taken, and which of them have a concurrency key: those were taken, but
        the caller must find them a slot in the same transaction.
        """

    @abstractmethod
    def unblock(self, cursor: CursorWrapper, freed: Mapping[str, int], *, notify: bool) -> list[UnblockedJob]:
        """Free so many slots of each key, and give them to the next blocked jobs.

        Locks the semaphores in the order of their keys before it looks for blocked jobs: whoever
        blocked on a semaphore held that lock, so its job is seen.
        """

    def any_ready(self, cursor: CursorWrapper, alias: str) -> bool:
        """A look without a lock, before a claim or a promotion: False spares the transaction."""
        return True

    def any_due(self, cursor: CursorWrapper, alias: str) -> bool:
        return True

    def is_transient(self, error: Error) -> bool:
        """Whether the same transaction may well succeed if it is simply run again."""
        return False

    def is_away(self, error: Error) -> bool:
        """Whether it is not the statement that the database refuses: any other would fail as well."""
        return isinstance(error, OperationalError | InterfaceError)

    def prepare_session(self, connection: BaseDatabaseWrapper) -> None:  # noqa: B027
        """Adjust a connection that only the runtime uses."""

    def prepare_transaction(self, connection: BaseDatabaseWrapper) -> None:  # noqa: B027
        """Adjust the transaction that is about to begin on anybody's connection."""

    def refusal(self, connection: BaseDatabaseWrapper) -> str | None:
        """Why no queue can live on this server, and what to do; None where it can."""
        return None

    def tune_tables(self, schema_editor: BaseDatabaseSchemaEditor) -> None:  # noqa: B027
        """Set storage parameters once the tables exist."""

    # ---- wake-up: where the database can tell an idle worker of new work ----

    def notify(self, cursor: CursorWrapper, alias: str) -> None:  # noqa: B027
        """Tell the alias's idle workers, when the transaction commits, that there is work."""

    def listen(self, connection: BaseDatabaseWrapper) -> bool:
        """Start listening for ready jobs on this connection; False where that cannot be had."""
        return False

    def notified(self, connection: BaseDatabaseWrapper) -> set[str]:
        """Take the aliases notified since the last call, without waiting."""
        return set()

    def socket(self, connection: BaseDatabaseWrapper) -> int | None:
        """The file descriptor that turns readable when a notification arrives."""
        return None

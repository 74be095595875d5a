"""Recording what became of jobs, whatever the database refuses of it.

A batch that is refused is split. An outcome that is refused alone gives way to something smaller: the job
fails with the database's own words. Where time may help, it is tried again, a bounded number of times. A
connection that breaks with the same outcome again and again, and works before and after, counts as a refusal.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from django.db import Error, IntegrityError, connections
from django.db.backends.utils import CursorWrapper

from dj_queue.config import BackendConfig
from dj_queue.dialects import Claim, Dialect, Outcome, Selector, dialect_for
from dj_queue.operations import deletion, maintenance, transactions
from dj_queue.operations.attempts import Past
from dj_queue.serialization import ErrorRecord, describe
from dj_queue.types import AnyTaskResult

# Where time may help, an outcome of this size is tried this often before the job fails: each takes its time ...
_TRIES = ((1024 * 1024, 2), (8 * 1024, 3))
# ... and a smaller one, whose failure would take no less, so often before it is given up.
_MOST_TRIES = 40
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds between them
# So often a connection may break with an outcome before it is sent alone; and then before it counts as refused.
_TOGETHER, _ALONE = 3, 5
_SHORT = 500  # characters of a message that is to be accepted at last


@dataclass(slots=True, eq=False)
class Job:
    """A claimed job in the hands of a worker."""

    claim: Claim
    received: float  # the worker's monotonic clock when the claim came back
    started_at: datetime | None = None  # None until its task is about to be called
    outcome: Outcome | None = None
    past: Past | None = None  # earlier attempts, where there were any
    result: AnyTaskResult | None = None
    value: Any = None
    exception: BaseException | None = None
    seconds: float = field(default=0.0)
    began: float | None = None  # the same clock when its task was about to be called
    settled: bool = False  # recorded, no longer ours, or given up: nothing is left to be written
    given_up: bool = False  # its claim stands, until its process has ended
    refusal: Exception | None = None  # the database's last
    refusals: int = 0
    waits: int = 0  # for what others held
    losses: int = 0  # of the connection, while this was being recorded
    retry_at: float = 0.0  # on the monotonic clock


class Claiming(NamedTuple):
    """A claim to be made."""

    config: BackendConfig
    selectors: Sequence[Selector]
    limit: int
    process_id: int | None

    def write(self, dialect: Dialect, cursor: CursorWrapper) -> list[Claim]:
        return dialect.claim(
            cursor,
            alias=self.config.alias,
            selectors=self.selectors,
            limit=self.limit,
            process_id=self.process_id,
            skip_locked=self.config.use_skip_locked,
        )


class Recorded(NamedTuple):
    """What a finish changed."""

    jobs: Sequence[Job]
    finished_at: datetime
    kept: set[int]  # the claims that were still ours
    unblocked: list[tuple[str, str]]  # (job id, concurrency key)
    claims: Sequence[Claim] = ()  # made in the same transaction


def record(
    config: BackendConfig,
    jobs: Sequence[Job],
    claiming: Claiming | None,
    *,
    worker: str,
    waits_again: bool | None = True,
    last: bool = False,
) -> list[Recorded]:
    """Record jobs in as few transactions as the database accepts; say of each whether it is `settled`.

    Without `waits_again`, a lock that was waited for in vain is raised as well: then, too, nothing was recorded. With
    None, the batch is split at once: the caller has waited for all of it, and knows no better.
    What others hold says nothing against an outcome: that is recorded as it is, whenever they let go.
    With `last`, what is refused is not left for another time if anything smaller is accepted. Raises the
    database's error if that is away: then nothing was recorded.
    """
    recorder = _Recorder(config, worker, waits_again=waits_again, last=last)
    try:
        for some in list(_batches(jobs, together=recorder.one_writer)):
            recorder.attempt(some, claiming)
            claiming = None
        # Not left for the next upkeep, which may come in minutes, unless this is a stop.
        for key in dict.fromkeys(recorder.left_slots if not last else ()):
            maintenance.repair(config, key)
    except Error:
        if not recorder.recorded:
            raise
        # What was recorded is to be told of; the rest meets the same error the next time.
    return recorder.recorded


def is_away(config: BackendConfig, error: Exception) -> bool:
    return isinstance(error, Error) and dialect_for(config.database_alias).is_away(error)


def _batches(jobs: Sequence[Job], *, together: bool) -> Iterator[list[Job]]:
    """What was refused goes alone, and what has waited but for `together`; what connections broke with goes last."""
    apart = {job.claim.id for job in jobs if job.refusals or (job.waits and not together) or job.losses >= _TOGETHER}
    fresh = [job for job in jobs if job.claim.id not in apart]
    if fresh:
        yield fresh
    yield from ([job] for job in sorted(jobs, key=lambda job: job.losses) if job.claim.id in apart)


class _Recorder:
    def __init__(self, config: BackendConfig, worker: str, *, waits_again: bool | None, last: bool) -> None:
        self._config, self._worker, self._waits_again, self._last = config, worker, waits_again, last
        self._dialect = dialect_for(config.database_alias)
        self._patient = bool(waits_again) and not last
        self.recorded: list[Recorded] = []
        self.left_slots: list[str] = []  # the keys of those that were recorded without giving theirs back
        self.one_writer = not connections[config.database_alias].features.has_select_for_update
        self._writing: Exception | None = None  # what says that another is the one writer

    def is_away(self, error: Exception) -> bool:
        return is_away(self._config, error)

    def attempt(self, jobs: Sequence[Job], claiming: Claiming | None = None) -> None:
        if self._writing is not None:
            self._wait(jobs, self._writing)
            return
        if any(job.waits for job in jobs):
            self._patient = False
        if any(job.losses for job in jobs):
            # A loss counts against an outcome only if the connection worked just before.
            transactions.look(self._config.database_alias, _answers)
            if len(jobs) == 1 and jobs[0].losses >= _ALONE and jobs[0].refusal:
                self._refused(jobs[0], jobs[0].refusal)
                return
        try:
            self._write(jobs, claiming=claiming)
        except Exception as refusal:  # also the driver's own, and memory: one that is too large for either
            if self.is_away(refusal):
                for job in jobs:
                    job.losses += 1
                    job.refusal = refusal
                raise
            waited = isinstance(refusal, Error) and self._dialect.is_lock_timeout(refusal)
            # Of one writer for the whole database, nothing could be recorded without what others hold.
            if waited and not self.one_writer and self._waits_again is False:
                raise
            if self._held(refusal) and self._make_way(jobs, refusal):
                return
            if claiming:  # which may be what is refused
                self.attempt(jobs)
            elif len(jobs) > 1:
                self.attempt(jobs[: len(jobs) // 2])
                self.attempt(jobs[len(jobs) // 2 :])
            else:
                self._refused(jobs[0], refusal)

    def _held(self, refusal: Exception) -> bool:
        """Whether it is only that others hold what is wanted."""
        return isinstance(refusal, Error) and self._dialect.is_transient(refusal)

    def _make_way(self, jobs: Sequence[Job], refusal: Exception) -> bool:
        """Leave jobs for later that others keep from being recorded; False if that may be true of some only."""
        # This has waited as long as there is patience for: its halves wait once each.
        self._patient = False
        if self._last and self._write_without_slots(jobs):
            return True
        if self.one_writer:  # no part of a batch gets more than the whole, nor does another batch
            self._writing = refusal
        elif len(jobs) > 1:
            return False
        self._wait(jobs, refusal)
        return True

    def _wait(self, jobs: Sequence[Job], refusal: Exception) -> None:
        for job in jobs:
            job.waits += 1
            job.refusal = refusal
            job.retry_at = time.monotonic() + _pause(job.waits)

    def _write_without_slots(self, jobs: Sequence[Job]) -> bool:
        """Record, and leave the slots to upkeep, which finds them free: there is no time to wait for semaphores."""
        if not any(job.claim.concurrency_key for job in jobs):
            return False
        try:
            self._write(jobs, with_slots=False)
        except Exception as refusal:
            if self.is_away(refusal):
                raise
            return False
        return True

    def _refused(self, job: Job, refusal: Exception) -> None:
        job.refusals += 1
        job.refusal = refusal
        if job.refusals > _MOST_TRIES:
            job.settled = job.given_up = True
            return
        may_pass = isinstance(refusal, Error) and self._dialect.may_pass(refusal)
        tries = next((tries for size, tries in _TRIES if _size(job) > size), _MOST_TRIES)
        enough = job.refusals >= tries
        if (enough or self._last or not may_pass) and self._write_less(job, refusal):
            return
        job.retry_at = time.monotonic() + _pause(job.refusals)

    def _write_less(self, job: Job, refusal: Exception) -> bool:
        if isinstance(refusal, IntegrityError) and not self._config.preserve_finished_jobs and self._keep(job, refusal):
            return True
        for outcome, with_slot in _lesser(job, refusal):
            if outcome is job.outcome and job.losses >= _ALONE:
                continue
            try:
                self._write([job], outcome=outcome, with_slots=with_slot)
            except Exception as another:
                if self.is_away(another):
                    raise
                if self._held(another):
                    return False
                continue
            if outcome is not job.outcome:
                job.exception, job.outcome = refusal, outcome
            if not with_slot and job.claim.concurrency_key is not None:
                self.left_slots.append(job.claim.concurrency_key)
            return True
        return False

    def _keep(self, job: Job, refusal: IntegrityError) -> bool:
        """Record without deleting the job, where only a row of which Django does not know keeps that."""
        try:
            self._write([job], preserve=True)
        except IntegrityError:
            return False
        deletion.log_kept({job.claim.job_id: deletion.why(refusal)})
        return True

    def _write(
        self,
        jobs: Sequence[Job],
        *,
        claiming: Claiming | None = None,
        outcome: Outcome | None = None,
        with_slots: bool = True,
        preserve: bool | None = None,
    ) -> None:
        outcomes = [outcome or job.outcome for job in jobs if job.outcome is not None]
        keys = {job.claim.id: job.claim.concurrency_key for job in jobs if job.claim.concurrency_key}
        config = self._config
        preserve = not deletion.deletes_when_finished(config) if preserve is None else preserve

        def write(dialect: Dialect, cursor: CursorWrapper) -> Recorded:
            worker = self._worker
            if not keys or not with_slots:
                return Recorded(jobs, *dialect.finish(cursor, outcomes, worker=worker, preserve=preserve), [])
            finished_at, kept, unblocked = dialect.finish_limited(
                cursor, outcomes, keys, worker=worker, preserve=preserve, notify=config.listen_notify
            )
            claims = claiming.write(dialect, cursor) if claiming and unblocked and not dialect.one_statement else ()
            return Recorded(jobs, finished_at, kept, [(str(job.job_id), job.key) for job in unblocked], claims)

        # A slot is freed in the transaction that finishes its job: neither can happen without the other.
        connection = connections[config.database_alias]
        at_once = not keys or not with_slots or self._dialect.finishes_at_once(connection)
        self.recorded.append(
            transactions.run(config.database_alias, write, one_statement=at_once, waits_again=self._patient)
        )
        for job in jobs:
            job.settled = True


def _lesser(job: Job, refusal: Exception) -> Iterator[tuple[Outcome, bool]]:
    """What may be accepted instead, and whether the job's slot is freed with it: else upkeep finds it free."""
    assert job.outcome is not None
    limited = job.claim.concurrency_key is not None
    if limited:  # perhaps it is not the outcome, but the job that is next
        yield job.outcome, False
    errors: list[Callable[[], ErrorRecord]] = [lambda: describe(refusal), lambda: _short(describe(refusal))]
    if (own := job.outcome.error) is not None:
        errors.insert(0, lambda: _short(own, f" [shortened, as the database refused it: {refusal}]"[:_SHORT]))
    for error in errors:
        yield job.outcome._replace(return_value=None, error=error()), True
    if limited:
        yield job.outcome._replace(return_value=None, error=errors[-1]()), False


def _pause(times: int) -> float:
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(times - 1, 10))
    return random.uniform(longest / 2, longest)


def _short(error: ErrorRecord, note: str = "") -> ErrorRecord:
    """In few characters, and such as every character set has."""
    texts = (error.exception_class[:255], error.message[:_SHORT] + note, error.traceback[-_SHORT:])
    return ErrorRecord(*(text.encode("ascii", "backslashreplace").decode() for text in texts))


def _size(job: Job) -> int:
    assert job.outcome is not None
    error = job.outcome.error
    return len(job.outcome.return_value or "") + (len(error.message) + len(error.traceback) if error else 0)


def _answers(dialect: Dialect, cursor: CursorWrapper) -> bool:
    cursor.execute("SELECT 1")
    return cursor.fetchone() is not None

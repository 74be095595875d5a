"""Jobs: enqueue one or many, promote what is due, retry, discard, claim and execute by hand."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextvars import Context
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import DatabaseError, Error
from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from dj_queue import events
from dj_queue.config import BackendConfig, backend_config
from dj_queue.dialects import Dialect, LimitedJob, NewJob, Selector, dialect_for
from dj_queue.exceptions import (
    ArgumentsError,
    EnqueueError,
    NotJSONError,
    NotUTF8Error,
    TaskPathError,
    UndecodableArgumentsError,
)
from dj_queue.identifiers import uuid7
from dj_queue.models import ClaimedExecution, Job, Process, ScheduledExecution
from dj_queue.operations import concurrency, execution, obstacles, readable, results, transactions
from dj_queue.operations.stored import (
    discard_blocked_jobs,
    discard_failed_job,
    discard_failed_jobs,
    discard_ready_jobs,
    discard_scheduled_jobs,
    enqueue_job_again,
    known_id,
    retry_failed_job,
    retry_failed_jobs,
)
from dj_queue.serialization import describe, dump, is_storable, normalize
from dj_queue.types import AnyTask, AnyTaskResult

__all__ = [
    "claim_ready_jobs",
    "discard_blocked_jobs",
    "discard_failed_job",
    "discard_failed_jobs",
    "discard_ready_jobs",
    "discard_scheduled_jobs",
    "enqueue",
    "enqueue_job_again",
    "execute_claimed_job",
    "prepare",
    "promote",
    "promote_scheduled_jobs",
    "retry_failed_job",
    "retry_failed_jobs",
    "store",
    "tell",
    "write",
]

# What every one of the databases holds, less the widest offsets of time zones on both sides.
_EARLIEST, _LATEST = datetime(1000, 1, 3, tzinfo=UTC), datetime(9999, 12, 29, tzinfo=UTC)
_RANGE = "must be a datetime from the year 1000 to the end of 9999, less three days for time zones"

# So often more keys are left out of a promotion at once.
_MOST_LOOKS = 5

type Call = tuple[AnyTask, Sequence[Any], Mapping[str, Any]]


class PreparedJob(NamedTuple):
    """A call that was found fit to be stored."""

    job: NewJob
    task: AnyTask
    payload: dict[str, Any]
    limit: concurrency.Limit | None


def enqueue(config: BackendConfig, calls: Iterable[Call]) -> list[AnyTaskResult]:
    """Store a job for each call, all or none; return their results in the same order.

    The jobs are written at once, within the caller's transaction if it uses the queue's database.
    Raises `EnqueueError` before anything is written.
    """
    return store(config, [prepare(config, *call) for call in calls])


def prepare(config: BackendConfig, task: AnyTask, args: Sequence[Any], kwargs: Mapping[str, Any]) -> PreparedJob:
    """Check a call and take a copy of its arguments, writing nothing. Raises `EnqueueError`."""
    path = task.module_path
    _require_importable(task, path)
    limits = dialect_for(config.database_alias).json_limits
    try:
        payload = {"args": normalize(list(args), limits), "kwargs": normalize(dict(kwargs), limits)}
        text = dump(payload)
    except NotJSONError as error:
        kind = UndecodableArgumentsError if isinstance(error, NotUTF8Error) else ArgumentsError
        raise kind(
            f"{path} cannot be enqueued: in its arguments {error}. Pass plain JSON values: an id instead of"
            " an object, text instead of a date."
        ) from error
    limit = concurrency.limit_of(
        task, payload["args"], payload["kwargs"], default_duration=config.default_concurrency_duration
    )
    job = NewJob(uuid7(), path, task.queue_name, int(task.priority), text, _run_after(task, path))
    return PreparedJob(job, task, payload, limit)


def store(config: BackendConfig, prepared: Sequence[PreparedJob]) -> list[AnyTaskResult]:
    """Write prepared jobs, all or none, and tell of them."""
    if not prepared:
        return []
    # With and without a limit, in one batch, take a statement each.
    mixed = len({each.limit is None for each in prepared}) > 1
    enqueued = transactions.run(
        config.database_alias,
        lambda dialect, cursor: write(config, dialect, cursor, prepared),
        one_statement=not mixed,
    )
    for result in enqueued:
        tell(result)
    return enqueued


def write(
    config: BackendConfig, dialect: Dialect, cursor: CursorWrapper, prepared: Sequence[PreparedJob]
) -> list[AnyTaskResult]:
    """Write prepared jobs in the caller's transaction; the code that commits it tells of them."""
    times: dict[UUID, datetime] = {}
    discarded: set[UUID] = set()
    limited = [each for each in prepared if each.limit is not None]
    if limited:
        at, discarded = _insert_limited(config, dialect, cursor, limited)
        times |= dict.fromkeys((each.job.id for each in limited), at)
    free = [each.job for each in prepared if each.limit is None]
    if free:
        at = dialect.insert(cursor, free, alias=config.alias, notify=config.listen_notify)
        times |= dict.fromkeys((job.id for job in free), at)
    enqueued = []
    for each in prepared:
        at = times[each.job.id]
        result = _result(config, each, at)
        if each.job.id in discarded:
            results.succeed(result, at, None)
        enqueued.append(result)
    return enqueued


def tell(result: AnyTaskResult) -> None:
    """Tell the log, and Django's receivers, that a job was enqueued."""
    task = result.task
    if events.heard("job.enqueued"):
        events.emit(
            "job.enqueued",
            job_id=result.id,
            task_path=task.module_path,
            queue_name=task.queue_name,
            priority=task.priority,
        )
    if result.is_finished and result.enqueued_at is not None:
        # Discarded by its concurrency limit. What this signal shows is the enqueue: by contract, READY.
        result = results.new(task, UUID(result.id), result.args, result.kwargs, enqueued_at=result.enqueued_at)
    # Robust: the row is stored, and a receiver that fails must not make the caller believe otherwise.
    results.send("task_enqueued", result)


def promote(config: BackendConfig, *, limit: int, held: concurrency.HeldKeys | None = None) -> int:
    """Make up to `limit` due scheduled jobs ready, the longest due first; return how many.

    Jobs with a concurrency key become ready, blocked or discarded, as when they are enqueued. With `held`, jobs of
    a key whose semaphore others hold for longer than the connection may wait stay scheduled, and hold up no others.
    """
    using = config.database_alias
    if not transactions.look(using, lambda dialect, cursor: dialect.any_due(cursor, config.alias)):
        return 0
    try:
        return _promote(config, limit, held)
    except Error as refusal:
        if not obstacles.can_be_treated(config, refusal):
            raise
        if limit > 1:
            half = limit // 2
            return promote(config, limit=half, held=held) + promote(config, limit=limit - half, held=held)
        # One job must not hold up those behind it.
        if not obstacles.set_first_due_aside(config, refusal):
            raise
        return 1


def _promote(config: BackendConfig, limit: int, held: concurrency.HeldKeys | None) -> int:
    using = config.database_alias
    if held is None:
        return transactions.run(using, _Promotion(config, limit, set()))
    for _ in range(_MOST_LOOKS):
        move = _Promotion(config, limit, held.now())
        try:
            return transactions.run(using, move, waits_again=False)
        except DatabaseError as error:
            if not move.keys or not dialect_for(using).is_lock_timeout(error):
                raise
            # Nobody says which one. Where none of them is held, it is one that is just being made.
            held.add(transactions.run(using, partial(concurrency.find_held, config, move.keys)) or move.keys)
    return 0


class _Promotion:
    def __init__(self, config: BackendConfig, limit: int, but: Collection[str]) -> None:
        self._config, self._limit, self._but = config, limit, but
        self.keys: set[str] = set()

    def __call__(self, dialect: Dialect, cursor: CursorWrapper) -> int:
        config = self._config
        count, limited = dialect.promote(
            cursor,
            alias=config.alias,
            limit=self._limit,
            skip_locked=config.use_skip_locked,
            notify=config.listen_notify,
            except_keys=self._but,
        )
        if limited:
            # Only what decides: a payload or a date that cannot be read fails its job when that starts.
            found = Job.objects.using(config.database_alias).only(*concurrency.DECIDING).in_bulk(limited)
            jobs = [found[job_id] for job_id in limited if job_id in found]
            self.keys = {job.concurrency_key for job in jobs if job.concurrency_key}
            concurrency.dispatch(config, dialect, cursor, jobs, dialect.now(cursor))
        return count


def promote_scheduled_jobs(*, batch_size: int, backend_alias: str = "default", until: datetime | None = None) -> int:
    """Make up to `batch_size` due scheduled jobs ready; return how many.

    Due by the database's clock, which no test can move. With `until`, for tests, also what is scheduled up to that
    time: `promote_scheduled_jobs(batch_size=100, until=timezone.now())` under a frozen clock.
    """
    config = backend_config(backend_alias)
    if until is not None:
        clock = dialect_for(config.database_alias).clock()
        rows = ScheduledExecution.objects.using(config.database_alias).filter(backend_alias=config.alias)
        rows = rows.filter(scheduled_at__lte=until, scheduled_at__gt=clock)
        transactions.run(config.database_alias, lambda *_: rows.update(scheduled_at=clock))
    return promote(config, limit=batch_size)


def claim_ready_jobs(
    *,
    limit: int,
    queues: Sequence[str] | str | None = None,
    process: Process | None = None,
    backend_alias: str = "default",
) -> list[Job]:
    """Claim up to `limit` ready jobs, as a worker with these queue selectors would; return them in order.

    Raises `ValueError` for a selector that no queue's name can match.
    """
    config = backend_config(backend_alias)
    # One selector alone is text, as in a worker's options; and text is a sequence of letters.
    selectors = [_selector(text) for text in ([queues] if isinstance(queues, str) else queues) or ("*",)]
    claimed = execution.claim(config, selectors, limit, process_id=process.pk if process else None)
    rows = Job.objects.using(config.database_alias).filter(pk__in=[job.claim.job_id for job in claimed])
    readable_ones, lost = readable.read(rows)
    # They are claimed all the same: a job that cannot be read has its id, and fails when it is executed.
    found = {job.pk: job for job in [*readable_ones, *rows.filter(pk__in=lost).only("pk")]}
    return [found[job.claim.job_id] for job in claimed]


def execute_claimed_job(job_id: UUID | str, *, backend_alias: str = "default") -> Job:
    """Run a claimed job here and now, and record what became of it; return the job.

    Raises `ClaimedExecution.DoesNotExist` if it is not claimed, `UnreadableJobError` if its row cannot be read.
    """
    config = backend_config(backend_alias)
    using = config.database_alias
    rows = ClaimedExecution.objects.using(using).select_related("job", "process")
    with readable.named(using, job_id):
        row = readable.whole(rows.get(job_id=known_id(job_id), job__backend_alias=config.alias))
        readable.whole(row.job)
    worker = row.process.name if row.process else ""
    job = execution.reclaimed(row)
    before = transactions.left_open()
    # What the task sets for itself is not for the caller.
    Context().run(execution.run, job, config, worker=worker)
    left = transactions.abandon(before)
    if left:
        transactions.tell_left_open(f"Job {job.claim.job_id} ({job.claim.task_path})", left)
    recorded = execution.finish(config, [job], worker=worker)
    Context().run(execution.announce, recorded)
    if job.refusal is not None and (job.given_up or not job.settled):
        raise job.refusal
    return Job.objects.using(using).get(pk=row.job.id) if config.preserve_finished_jobs else row.job


def _selector(text: str) -> Selector:
    if not is_storable(text):
        raise ValueError(
            f"expected a queue name, or the start of one and a final '*', got {ascii(text)[:80]}."
            " No queue's name has NUL characters or lone surrogates."
        )
    return Selector.parse(text)


# ---- enqueue ----------------------------------------------------------------------------------------


def _insert_limited(
    config: BackendConfig, dialect: Dialect, cursor: CursorWrapper, prepared: Sequence[PreparedJob]
) -> tuple[datetime, set[UUID]]:
    """Store jobs that have a concurrency key; return the time, and which were discarded."""
    limited = [
        LimitedJob(each.job, each.limit.key, each.limit.limit, each.limit.duration, each.limit.discards)
        for each in prepared
        if each.limit
    ]
    inserted = dialect.insert_limited(cursor, limited, alias=config.alias, notify=config.listen_notify)
    if inserted is None:
        return _insert_step_by_step(config, dialect, cursor, prepared)
    at, discarded, unblocked = inserted
    concurrency.tell_unblocked(config, unblocked)
    return at, discarded


def _insert_step_by_step(
    config: BackendConfig, dialect: Dialect, cursor: CursorWrapper, prepared: Sequence[PreparedJob]
) -> tuple[datetime, set[UUID]]:
    now = dialect.now(cursor)
    jobs = [_row(config, each, now) for each in prepared]
    using = config.database_alias
    Job.objects.using(using).bulk_create(jobs)
    ScheduledExecution.objects.using(using).bulk_create(
        ScheduledExecution(
            job=job,
            backend_alias=job.backend_alias,
            queue_name=job.queue_name,
            priority=job.priority,
            scheduled_at=job.scheduled_at,
            created_at=now,
        )
        for job in jobs
        if job.scheduled_at is not None and job.scheduled_at > now
    )
    due = [job for job in jobs if job.scheduled_at is None or job.scheduled_at <= now]
    concurrency.dispatch(config, dialect, cursor, due, now)
    return now, {job.id for job in jobs if job.finished_at is not None}


def _row(config: BackendConfig, prepared: PreparedJob, now: datetime) -> Job:
    job, _, payload, limit = prepared
    assert limit is not None
    return Job(
        id=job.id,
        task_path=job.task_path,
        queue_name=job.queue_name,
        priority=job.priority,
        payload=payload,
        backend_alias=config.alias,
        scheduled_at=job.run_after,
        concurrency_key=limit.key,
        concurrency_limit=limit.limit,
        concurrency_duration=limit.duration,
        on_conflict=limit.on_conflict,
        created_at=now,
        updated_at=now,
    )


def _result(config: BackendConfig, prepared: PreparedJob, at: datetime) -> AnyTaskResult:
    job, task, payload, _ = prepared
    variant = results.variant(task, job.queue_name, job.priority, job.run_after, config.alias)
    return results.new(variant, job.id, payload["args"], payload["kwargs"], enqueued_at=at)


def _run_after(task: AnyTask, path: str) -> datetime | None:
    """When the task is to run, as every database and Python can hold it, in whatever time zone it is read."""
    run_after = task.run_after
    if run_after is None:
        return None
    try:
        aware = run_after if timezone.is_aware(run_after) else timezone.make_aware(run_after)
        at = aware.astimezone(UTC)
    except Exception as error:  # beyond the calendar, a time zone of another's making, or no date at all
        raise EnqueueError(f"{path} cannot be enqueued: its run_after {_RANGE}: {describe(error).message}.") from error
    if not _EARLIEST <= at <= _LATEST:
        raise EnqueueError(f"{path} cannot be enqueued: its run_after {_RANGE}, got {run_after.isoformat()}.")
    # Without USE_TZ, times are the project's local time.
    return timezone.make_naive(aware) if timezone.is_aware(run_after) and not settings.USE_TZ else run_after


def _require_importable(task: AnyTask, path: str) -> None:
    """A worker finds the task by its path: it must lead to a task with this function."""
    try:
        found = results.resolve(path)
    except TaskPathError as error:
        raise EnqueueError(f"{path} cannot be enqueued, because no worker could find it: {error}") from error
    if found.func is not task.func:
        raise EnqueueError(
            f"{path} cannot be enqueued, because a worker would find another task at that path."
            " Give each task function a name of its own in its module."
        )

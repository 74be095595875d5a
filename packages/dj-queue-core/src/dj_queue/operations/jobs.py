"""Jobs from the outside: enqueue one or many, on commit, promote what is due."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.db.backends.utils import CursorWrapper
from django.tasks.signals import task_enqueued

from dj_queue import events
from dj_queue.annotations import AnyTask, AnyTaskResult
from dj_queue.config import BackendConfig
from dj_queue.dialects import Dialect, NewJob, dialect_for
from dj_queue.exceptions import ArgumentsError, EnqueueError, NotJSONError, TaskPathError
from dj_queue.identifiers import uuid7
from dj_queue.models import Job, ScheduledExecution
from dj_queue.operations import concurrency, results, transactions
from dj_queue.serialization import dump, normalize

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
        raise ArgumentsError(
            f"{path} cannot be enqueued: in its arguments {error}. Pass plain JSON values: an id instead of"
            " an object, text instead of a date."
        ) from error
    limit = concurrency.limit_of(
        task, payload["args"], payload["kwargs"], default_duration=config.default_concurrency_duration
    )
    job = NewJob(uuid7(), path, task.queue_name, int(task.priority), text, task.run_after)
    return PreparedJob(job, task, payload, limit)


def store(config: BackendConfig, prepared: Sequence[PreparedJob]) -> list[AnyTaskResult]:
    """Write prepared jobs, all or none, and tell of them."""
    if not prepared:
        return []
    free = [each.job for each in prepared if each.limit is None]
    limited = [each for each in prepared if each.limit is not None]

    def write(dialect: Dialect, cursor: CursorWrapper) -> tuple[dict[UUID, datetime], set[UUID]]:
        times: dict[UUID, datetime] = {}
        discarded: set[UUID] = set()
        if limited:
            for job in _insert_limited(config, dialect, cursor, limited):
                times[job.id] = job.created_at
                if job.finished_at is not None:
                    discarded.add(job.id)
        if free:
            at = dialect.insert(cursor, free, alias=config.alias, notify=config.listen_notify)
            times |= dict.fromkeys((job.id for job in free), at)
        return times, discarded

    times, discarded = transactions.run(config.database_alias, write, one_statement=not limited)
    enqueued = []
    for each in prepared:
        at = times[each.job.id]
        result = _result(config, each, at)
        _tell(result)
        if each.job.id in discarded:
            results.succeed(result, at, None)
        enqueued.append(result)
    return enqueued


def promote(config: BackendConfig, *, limit: int) -> int:
    """Make up to `limit` due scheduled jobs ready, the longest due first; return how many.

    Jobs with a concurrency key become ready, blocked or discarded, as when they are enqueued.
    """

    def move(dialect: Dialect, cursor: CursorWrapper) -> int:
        count, limited = dialect.promote(
            cursor,
            alias=config.alias,
            limit=limit,
            skip_locked=config.use_skip_locked,
            notify=config.listen_notify,
        )
        if limited:
            found = Job.objects.using(config.database_alias).in_bulk(limited)
            jobs = [found[job_id] for job_id in limited if job_id in found]
            concurrency.dispatch(config, dialect, cursor, jobs, dialect.now(cursor))
        return count

    return transactions.run(config.database_alias, move)


# ---- enqueue ----------------------------------------------------------------------------------------


def _insert_limited(
    config: BackendConfig, dialect: Dialect, cursor: CursorWrapper, prepared: Sequence[PreparedJob]
) -> list[Job]:
    """Store jobs that have a concurrency key: scheduled, ready, blocked, or finished at once."""
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
    return jobs


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


def _tell(result: AnyTaskResult) -> None:
    task = result.task
    if events.heard():
        events.emit(
            "job.enqueued",
            job_id=result.id,
            task_path=task.module_path,
            queue_name=task.queue_name,
            priority=task.priority,
        )
    # Robust: the row is stored, and a receiver that fails must not make the caller believe otherwise.
    task_enqueued.send_robust(results.signal_sender(), task_result=result)

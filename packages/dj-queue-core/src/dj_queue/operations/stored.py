"""What operators do to stored jobs: retry, discard, enqueue again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple
from uuid import UUID

from django.db import DatabaseError, connections
from django.db.backends.utils import CursorWrapper
from django.db.models import Model, Q, QuerySet

from dj_queue import events
from dj_queue.config import BackendConfig, backend_config
from dj_queue.dialects import Dialect
from dj_queue.identifiers import uuid7
from dj_queue.models import BlockedExecution, FailedExecution, Job, ReadyExecution, ScheduledExecution
from dj_queue.operations import attempts, batches, concurrency, deletion, readable, retention, transactions

type JobId = UUID | str

DEFAULT_BATCH = 500

_MOST_IDS = 5000


class Discarded(NamedTuple):
    job_ids: list[UUID]
    unblocked: list[tuple[str, str]]  # (job id, concurrency key)
    held: deletion.Kept  # what rows of the application keep


def retry_failed_job(job_id: JobId, *, backend_alias: str = "default") -> Job:
    """Let a failed job run again, under its concurrency limit; its errors so far are kept.

    Raises `FailedExecution.DoesNotExist` if the job is not failed.
    """
    config = backend_config(backend_alias)

    def retry(dialect: Dialect, cursor: CursorWrapper) -> Job:
        failed = _with_jobs(_locked(config, FailedExecution)).get(job_id=known_id(job_id))
        return _retry(config, dialect, cursor, [failed])[0]

    return _tell_retried([transactions.run(config.database_alias, retry)])[0]


def retry_failed_jobs(
    *, job_ids: Iterable[JobId] | None = None, batch_size: int = DEFAULT_BATCH, backend_alias: str = "default"
) -> int:
    """Let failed jobs run again, all of the alias or those given, in batches; return how many.

    What the database refuses of one is raised once the others are retried.
    """
    config = backend_config(backend_alias)
    count = 0
    for jobs in _batches(config, FailedExecution, _among(job_ids), batch_size, partial(_retry, config), related="job"):
        count += len(_tell_retried(jobs))
    return count


def retry_all(queryset: QuerySet[FailedExecution], *, batch_size: int = DEFAULT_BATCH) -> int:
    """Let the failed jobs of a queryset run again, in its order and each under its own alias; return how many."""
    wanted = list(queryset.values_list("job_id", "backend_alias"))
    count = 0
    first_refusal: DatabaseError | None = None
    for alias in sorted({alias for _, alias in wanted}):
        config = backend_config(alias)
        mine = [job_id for job_id, its_alias in wanted if its_alias == alias]
        sizes, start = batches.Batches(config.database_alias, batch_size), 0
        while start < len(mine):
            try:
                taken, jobs = sizes.run(partial(_retry_some, config, mine[start:]))
            except DatabaseError as error:
                if not batches.is_of_the_row(config.database_alias, error):
                    raise
                taken, jobs, first_refusal = 1, [], first_refusal or error
            start += taken
            count += len(_tell_retried(jobs))
    if first_refusal is not None:
        raise first_refusal
    return count


def discard_failed_job(job_id: JobId, *, backend_alias: str = "default") -> int:
    """Delete a failed job; return 1, or 0 if it is not failed."""
    return discard_failed_jobs(job_ids=[job_id], backend_alias=backend_alias)


def discard_failed_jobs(
    *, job_ids: Iterable[JobId] | None = None, batch_size: int = DEFAULT_BATCH, backend_alias: str = "default"
) -> int:
    """Delete failed jobs, all of the alias or those given, in batches; return how many."""
    return _discard(backend_config(backend_alias), FailedExecution, "failed", _among(job_ids), batch_size)


def discard_ready_jobs(
    *, job_ids: Iterable[JobId] | None = None, batch_size: int = DEFAULT_BATCH, backend_alias: str = "default"
) -> int:
    """Delete ready jobs, which frees their concurrency slots; return how many."""
    return _discard(backend_config(backend_alias), ReadyExecution, "ready", _among(job_ids), batch_size)


def discard_scheduled_jobs(
    *, job_ids: Iterable[JobId] | None = None, batch_size: int = DEFAULT_BATCH, backend_alias: str = "default"
) -> int:
    """Delete scheduled jobs; return how many."""
    return _discard(backend_config(backend_alias), ScheduledExecution, "scheduled", _among(job_ids), batch_size)


def discard_blocked_jobs(
    *, job_ids: Iterable[JobId] | None = None, batch_size: int = DEFAULT_BATCH, backend_alias: str = "default"
) -> int:
    """Delete blocked jobs; return how many."""
    return _discard(backend_config(backend_alias), BlockedExecution, "blocked", _among(job_ids), batch_size)


def clear_queue(config: BackendConfig, queue_name: str, *, batch_size: int = DEFAULT_BATCH) -> int:
    """Delete the ready jobs of one queue, which frees their concurrency slots; return how many."""
    return _discard(config, ReadyExecution, "ready", [Q(queue_name=queue_name)], batch_size)


def enqueue_job_again(job_id: JobId, *, backend_alias: str = "default") -> Job:
    """Enqueue a fresh copy of a stored job, whatever its state; return the copy.

    Raises `Job.DoesNotExist`, `UnreadableJobError` if its row cannot be read.
    """
    config = backend_config(backend_alias)
    using = config.database_alias

    def enqueue(dialect: Dialect, cursor: CursorWrapper) -> Job:
        now = dialect.now(cursor)
        with readable.named(using, job_id):
            job = readable.whole(Job.objects.using(using).get(pk=known_id(job_id), backend_alias=config.alias))
        copied = (
            "task_path", "queue_name", "priority", "payload", "backend_alias", "scheduled_at",
            "concurrency_key", "concurrency_limit", "concurrency_duration", "on_conflict",
        )  # fmt: skip
        copy = Job(id=uuid7(), created_at=now, updated_at=now, **{name: getattr(job, name) for name in copied})
        copy.save(using=using, force_insert=True)
        if copy.scheduled_at is not None and copy.scheduled_at > now:
            ScheduledExecution.objects.using(using).create(
                job=copy,
                backend_alias=copy.backend_alias,
                queue_name=copy.queue_name,
                priority=copy.priority,
                scheduled_at=copy.scheduled_at,
            )
        else:
            concurrency.dispatch(config, dialect, cursor, [copy], now)
        return copy

    job = transactions.run(using, enqueue)
    events.emit(
        "job.enqueued",
        job_id=str(job.id),
        task_path=job.task_path,
        queue_name=job.queue_name,
        priority=job.priority,
    )
    return job


# ---- retry ------------------------------------------------------------------------------------------


def _retry(
    config: BackendConfig, dialect: Dialect, cursor: CursorWrapper, failed: Sequence[FailedExecution]
) -> list[Job]:
    using = config.database_alias
    # Not of the rows themselves: what of them cannot be read keeps no job from being tried again.
    past = attempts.past(config, [row.job_id for row in failed])
    jobs = []
    for row in failed:
        job = row.job
        earlier = past.get(job.pk) or attempts.Past([], [])
        job.errors = attempts.with_error(earlier.errors, row.exception_class, row.traceback)
        job.worker_ids = attempts.bounded_workers(earlier.worker_ids)
        job.return_value = job.finished_at = None
        jobs.append(job)
    FailedExecution.objects.using(using).filter(pk__in=[row.pk for row in failed]).delete()
    Job.objects.using(using).filter(pk__in=[job.pk for job in jobs]).update(return_value=None, finished_at=None)
    Job.objects.using(using).bulk_update(jobs, ["errors", "worker_ids"])
    concurrency.dispatch(config, dialect, cursor, jobs, dialect.now(cursor))
    return jobs


def _retry_some(config: BackendConfig, job_ids: Sequence[UUID], size: int) -> tuple[int, list[Job]]:
    batch = job_ids[:size]
    return len(batch), transactions.run(config.database_alias, partial(_retry_in_order, config, batch))


def _retry_in_order(
    config: BackendConfig, job_ids: Sequence[UUID], dialect: Dialect, cursor: CursorWrapper
) -> list[Job]:
    place = {job_id: n for n, job_id in enumerate(job_ids)}
    rows = list(_with_jobs(_locked(config, FailedExecution)).filter(job_id__in=job_ids).order_by("pk"))
    rows.sort(key=lambda row: place[row.job_id])
    return _retry(config, dialect, cursor, rows) if rows else []


def _tell_retried(jobs: list[Job]) -> list[Job]:
    for job in jobs:
        events.emit("job.retried", job_id=str(job.id), queue_name=job.queue_name, priority=job.priority)
    return jobs


# ---- discard ----------------------------------------------------------------------------------------


def _discard(config: BackendConfig, model: type[Model], state: str, among: Iterable[Q], batch_size: int) -> int:
    using = config.database_alias

    def discard(dialect: Dialect, cursor: CursorWrapper, rows: Sequence[Any]) -> Discarded:
        held = deletion.among(using, [row.job_id for row in rows])
        rows = [row for row in rows if row.job_id not in held]
        gone = [row.job_id for row in rows]
        retention.keep_newest_ticks(using, gone)
        model._default_manager.using(using).filter(pk__in=[row.pk for row in rows]).delete()
        deletion.erase(using, gone)
        keys = [row.concurrency_key for row in rows] if state == "ready" else []
        return Discarded(gone, concurrency.release(config, dialect, cursor, keys), held)

    count = 0
    for job_ids, unblocked, held in _batches(config, model, among, batch_size, discard, refused=_refused):
        deletion.log_kept(held)
        count += len(job_ids)
        for job_id in job_ids:
            events.emit("job.discarded", job_id=str(job_id), reason=state)
        for unblocked_id, key in unblocked:
            events.emit("job.unblocked", job_id=unblocked_id, concurrency_key=key)
    return count


def _refused(job_id: UUID, error: Exception) -> Discarded:
    return Discarded([], [], {job_id: deletion.why(error)})


# ---- batches ----------------------------------------------------------------------------------------


def known_id(job_id: JobId) -> UUID:
    """The id; for what cannot be the id of any job, the nil one, which none has."""
    try:
        return job_id if isinstance(job_id, UUID) else UUID(job_id)
    except (ValueError, AttributeError, TypeError):
        return UUID(int=0)


def _among(job_ids: Iterable[JobId] | None) -> Iterator[Q]:
    """Which rows are meant, in as many queries as the databases' limits on parameters ask for."""
    if job_ids is None:
        yield Q()
        return
    known = iter(dict.fromkeys(known_id(job_id) for job_id in job_ids))
    while some := list(islice(known, _MOST_IDS)):
        yield Q(job_id__in=some)


def _batches[T](
    config: BackendConfig,
    model: type[Model],
    among: Iterable[Q],
    batch_size: int,
    work: Callable[[Dialect, CursorWrapper, Sequence[Any]], T],
    *,
    related: str | None = None,
    refused: Callable[[UUID, Exception], T] | None = None,
) -> Iterator[T]:
    """Lock and treat rows, each batch in a transaction of its own, and yield what came of it once that is committed.

    Rows that others hold are left alone. Only rows that are there now: what this starts, a blocked job for a
    discarded one or a retried job that fails again, is not treated in its turn. A batch that the database refuses is
    made smaller, and a row that it refuses alone is passed over, with what `refused` makes of it; without that, its
    error is raised once the others are done.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    rows = model._default_manager.using(config.database_alias).order_by("-pk")
    newest = transactions.read(config.database_alias, rows.values_list("pk", flat=True).first)
    if newest is None:
        return
    first_refusal: DatabaseError | None = None
    for which in among:
        last: int | None = 0
        size = batch_size
        while last is not None:
            found: list[Any] = []
            treat = partial(_treat, config, model, which, (last, newest), size, work, related, found)
            try:
                last, treated = transactions.run(config.database_alias, treat)
                size = min(batch_size, size * 2)
            except DatabaseError as error:
                if not batches.may_be_smaller(config.database_alias, error):
                    raise
                if size > 1:
                    size = max(1, size // 4)
                    continue
                if not found or not batches.is_of_the_row(config.database_alias, error):
                    raise
                last, treated = found[0].pk, refused(found[0].job_id, error) if refused else None
                first_refusal = first_refusal or (None if refused else error)
            if treated is not None:
                yield treated
    if first_refusal is not None:
        raise first_refusal


def _treat[T](
    config: BackendConfig,
    model: type[Model],
    which: Q,
    span: tuple[int, int],
    batch_size: int,
    work: Callable[[Dialect, CursorWrapper, Sequence[Any]], T],
    related: str | None,
    found: list[Any],
    dialect: Dialect,
    cursor: CursorWrapper,
) -> tuple[int | None, T | None]:
    rows = _locked(config, model).filter(which, pk__gt=span[0], pk__lte=span[1]).order_by("pk")
    needed = ("job_id", "concurrency_key") if model is ReadyExecution else ("job_id",)
    found[:] = (_with_jobs(rows) if related else rows.only(*needed))[:batch_size]
    return (found[-1].pk, work(dialect, cursor, found)) if found else (None, None)


def _with_jobs(rows: QuerySet[Any]) -> QuerySet[Any]:
    """With the jobs, as far as a retry needs them: a payload or a time that cannot be read is none of its business."""
    names = ("exception_class", "traceback", *(f"job__{name}" for name in concurrency.DECIDING))
    return rows.select_related("job").only("job_id", "backend_alias", *names)


def _locked(config: BackendConfig, model: type[Model]) -> QuerySet[Any]:
    """Rows of this alias, locked for the rest of the transaction."""
    skip_locked = connections[config.database_alias].features.has_select_for_update_skip_locked
    rows: QuerySet[Any] = model._default_manager.using(config.database_alias)
    of = ("self",) if connections[config.database_alias].features.has_select_for_update_of else ()
    return rows.filter(backend_alias=config.alias).select_for_update(skip_locked=skip_locked, of=of)

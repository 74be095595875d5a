"""What may be deleted, in small batches that hold no lock for long."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from django.db import connections
from django.db.models import Exists, OuterRef, QuerySet

from dj_queue.config import BackendConfig
from dj_queue.dialects import Now
from dj_queue.models import FailedExecution, Job, RecurringExecution
from dj_queue.operations import transactions

BATCH = 500


def delete_finished(
    config: BackendConfig, *, older_than: float, batch_size: int = BATCH, task_path: str | None = None
) -> int:
    """Delete one batch of jobs that finished more than `older_than` seconds ago; return how many."""
    return _delete_jobs(config, finished(config, older_than, task_path), batch_size)


def delete_failed(
    config: BackendConfig, *, older_than: float, batch_size: int = BATCH, task_path: str | None = None
) -> int:
    """Delete one batch of jobs that failed more than `older_than` seconds ago; return how many."""
    using = config.database_alias

    def delete(*_: object) -> int:
        rows = failed(config, older_than, task_path).select_for_update(of=_only(using))
        jobs = list(rows.values_list("job_id", flat=True)[:batch_size])
        if jobs:
            keep_newest_ticks(using, jobs)
            FailedExecution.objects.using(using).filter(job_id__in=jobs).delete()
            Job.objects.using(using).filter(pk__in=jobs).delete()
        return len(jobs)

    return transactions.run(using, delete)


def delete_recurring(
    config: BackendConfig, *, older_than: float, batch_size: int = BATCH, task_key: str | None = None
) -> int:
    """Delete one batch of ticks older than `older_than` seconds, never a task's newest; return how many."""
    using = config.database_alias

    def delete(*_: object) -> int:
        pks = list(recurring(config, older_than, task_key).values_list("pk", flat=True)[:batch_size])
        return RecurringExecution.objects.using(using).filter(pk__in=pks).delete()[0] if pks else 0

    return transactions.run(using, delete)


def keep_newest_ticks(database: str, job_ids: Sequence[UUID]) -> None:
    """Before these jobs are deleted: a task's newest tick must outlive its job. The others go with theirs."""
    ticks = RecurringExecution.objects.using(database)
    # Not in one statement: MySQL updates no table that it reads in a subquery.
    newest = list(ticks.filter(~Exists(_newer()), job_id__in=job_ids).values_list("pk", flat=True))
    if newest:
        ticks.filter(pk__in=newest).update(job=None)


# ---- what would go ----------------------------------------------------------------------------------


def finished(config: BackendConfig, older_than: float, task_path: str | None = None) -> QuerySet[Job]:
    # No index holds finished_at, so that a finish stays cheap. Ids sort by enqueue time: the oldest jobs
    # come first in the primary key, and what finished long ago was enqueued longer ago still.
    rows = Job.objects.using(config.database_alias).filter(
        backend_alias=config.alias,
        finished_at__lte=Now() - timedelta(seconds=older_than),
        created_at__lte=Now() - timedelta(seconds=older_than),
    )
    return (rows.filter(task_path=task_path) if task_path else rows).order_by("pk")


def failed(config: BackendConfig, older_than: float, task_path: str | None = None) -> QuerySet[FailedExecution]:
    rows = FailedExecution.objects.using(config.database_alias).filter(
        job__backend_alias=config.alias, created_at__lte=Now() - timedelta(seconds=older_than)
    )
    return (rows.filter(job__task_path=task_path) if task_path else rows).order_by("created_at", "pk")


def recurring(config: BackendConfig, older_than: float, task_key: str | None = None) -> QuerySet[RecurringExecution]:
    rows = RecurringExecution.objects.using(config.database_alias).filter(
        backend_alias=config.alias, run_at__lte=Now() - timedelta(seconds=older_than)
    )
    if task_key:
        rows = rows.filter(task_key=task_key)
    return rows.filter(Exists(_newer())).order_by("run_at", "pk")


def _newer() -> QuerySet[RecurringExecution]:
    """Later ticks of the same task. A task's newest tick keeps it from firing again, and always stays."""
    return RecurringExecution.objects.filter(
        backend_alias=OuterRef("backend_alias"), task_key=OuterRef("task_key"), run_at__gt=OuterRef("run_at")
    )


def _delete_jobs(config: BackendConfig, jobs: QuerySet[Job], batch_size: int) -> int:
    using = config.database_alias

    def delete(*_: object) -> int:
        pks = list(jobs.values_list("pk", flat=True)[:batch_size])
        if pks:
            keep_newest_ticks(using, pks)
            Job.objects.using(using).filter(pk__in=pks).delete()
        return len(pks)

    return transactions.run(using, delete)


def _only(database: str) -> tuple[str, ...]:
    return ("self",) if connections[database].features.has_select_for_update_of else ()

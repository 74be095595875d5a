"""What may be deleted, in small batches that hold no lock for long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.db import connections
from django.db.models import Exists, Expression, OuterRef, QuerySet

from dj_queue.config import BackendConfig
from dj_queue.dialects import dialect_for
from dj_queue.identifiers import earliest_at
from dj_queue.models import FailedExecution, Job, RecurringExecution
from dj_queue.operations import deletion, transactions

type Tell = Callable[[deletion.Kept], object]

BATCH = 500

_TRIES = 5  # for a batch of which something goes

# Seconds. No scheduler is so late that it would enqueue a tick as old as this while later ones are there.
_SETTLED = 3600.0

_LOOK = 20  # how many jobs a walk passes in one call, at most, for each of a batch
_CLOCKS_DIFFER = timedelta(hours=1)  # an id tells the time of the host that made it
_FIRST, _LAST = UUID(int=0), UUID(int=2**128 - 1)


@dataclass(slots=True)
class Walk:
    """How far a deletion of finished jobs has come.

    No index holds finished_at, so that a finish stays cheap: jobs are walked along the primary key, some
    thousands a call. What stays among the deleted, failed jobs say, is then not read again at every call.
    """

    after: UUID = _FIRST
    ended: bool = False


class Retention:
    """Deletes finished jobs for as long as a scheduler lives, a batch a call.

    Ids sort by enqueue time, and what finished long ago was enqueued longer ago still: those ids are walked
    through at every call. All others, of whatever kind and clock, have their turn a little at a time.
    """

    def __init__(self, config: BackendConfig, older_than: float) -> None:
        self._config, self._older_than = config, older_than
        self._old, self._rest = Walk(), Walk()

    def delete_batch(self, *, batch_size: int = BATCH) -> int:
        now = transactions.run(
            self._config.database_alias, lambda dialect, cursor: dialect.now(cursor), one_statement=True
        )
        border = earliest_at(now - timedelta(seconds=self._older_than) + _CLOCKS_DIFFER)
        return self._step(self._old, batch_size, up_to=border) or self._step(self._rest, batch_size, start=border)

    def _step(self, walk: Walk, batch_size: int, *, start: UUID = _FIRST, up_to: UUID = _LAST) -> int:
        if walk.ended or not start <= walk.after <= up_to:
            walk.after, walk.ended = start, False
        return delete_finished(self._config, older_than=self._older_than, batch_size=batch_size, walk=walk, up_to=up_to)


def delete_finished(
    config: BackendConfig,
    *,
    older_than: float,
    batch_size: int = BATCH,
    task_path: str | None = None,
    walk: Walk | None = None,
    up_to: UUID = _LAST,
    tell: Tell = deletion.log_kept,
) -> int:
    """Delete one batch of jobs that finished more than `older_than` seconds ago; return how many.

    With a `walk`, go on from where it stands, look only so far, and say in it how far that was. What rows of the
    application keep is told, and stays.
    """
    using = config.database_alias
    rows = finished(config, older_than, task_path)
    window = up_to
    if walk is not None:
        ids = Job.objects.using(using).filter(pk__gt=walk.after, pk__lte=up_to).order_by("pk")
        window = ids.values_list("pk", flat=True)[_LOOK * batch_size :].first() or up_to
        rows = rows.filter(pk__gt=walk.after, pk__lte=window)

    def first(job_ids: Sequence[UUID]) -> Sequence[UUID]:
        keep_newest_ticks(using, job_ids)
        return job_ids

    pks, deleted = _delete(config, rows, "pk", batch_size, first, tell)
    if walk is not None:
        walk.after = pks[-1] if len(pks) == batch_size else window
        walk.ended = walk.after == up_to
    return deleted


def delete_recorded(config: BackendConfig, job_ids: Sequence[UUID]) -> None:
    """Delete jobs that have just finished, but for those that rows of the application keep."""
    using = config.database_alias

    def first(ids: Sequence[UUID]) -> Sequence[UUID]:
        keep_newest_ticks(using, ids)
        return ids

    held = deletion.among(using, job_ids)
    _, kept = deletion.delete_jobs(config, [job_id for job_id in job_ids if job_id not in held], first)
    deletion.log_kept({**held, **kept})


def delete_failed(
    config: BackendConfig,
    *,
    older_than: float,
    batch_size: int = BATCH,
    task_path: str | None = None,
    tell: Tell = deletion.log_kept,
) -> int:
    """Delete one batch of jobs that failed more than `older_than` seconds ago; return how many.

    What rows of the application keep is told, and stays.
    """
    using = config.database_alias
    rows = failed(config, older_than, task_path)

    def first(job_ids: Sequence[UUID]) -> Sequence[UUID]:
        # Locked, so that a retry meanwhile is seen here, or sees this.
        skip_locked = connections[using].features.has_select_for_update_skip_locked
        still = rows.filter(job_id__in=job_ids).select_for_update(skip_locked=skip_locked, of=_only(using))
        locked = list(still.values_list("job_id", flat=True))
        keep_newest_ticks(using, locked)
        FailedExecution.objects.using(using).filter(job_id__in=locked).delete()
        return locked

    return _delete(config, rows, "job_id", batch_size, first, tell)[1]


def _delete(
    config: BackendConfig,
    rows: QuerySet[Any],
    job: str,
    batch_size: int,
    first: Callable[[Sequence[UUID]], Sequence[UUID]],
    tell: Tell,
) -> tuple[list[UUID], int]:
    """Delete the jobs of the first rows that nothing is known to keep; return which were tried, and how many went."""
    if held := deletion.protected(rows, config.database_alias, job):
        tell(held)
    ids: list[UUID] = []
    deleted = 0
    for _ in range(_TRIES):
        free = deletion.unprotected(rows, config.database_alias, job)
        ids = transactions.read(config.database_alias, partial(list, free.values_list(job, flat=True)[:batch_size]))
        deleted, kept = deletion.delete_jobs(config, ids, first)
        if kept:
            tell(kept)
        if deleted or not kept:
            break  # else a whole batch is kept, and there may be others behind it
    return ids, deleted


def delete_recurring(
    config: BackendConfig, *, older_than: float, batch_size: int = BATCH, task_key: str | None = None
) -> int:
    """Delete one batch of ticks older than `older_than` seconds, never a task's newest; return how many."""
    using = config.database_alias

    def delete(*_: object) -> int:
        pks = list(recurring(config, older_than, task_key).values_list("pk", flat=True)[:batch_size])
        return RecurringExecution.objects.using(using).filter(pk__in=pks).delete()[0] if pks else 0

    return transactions.run(using, delete)


def delete_jobless_ticks(config: BackendConfig, *, batch_size: int = BATCH) -> int:
    """Delete one batch of ticks whose jobs are gone, where no option keeps them longer; return how many."""
    using = config.database_alias
    # Found by the index on the job, which nearly every other tick has; and without a transaction, as there is
    # seldom any.
    rows = recurring(config, _SETTLED).filter(job=None).order_by()
    pks = list(rows.values_list("pk", flat=True)[:batch_size])
    ticks = RecurringExecution.objects.using(using).filter(pk__in=pks, job=None)
    return transactions.run(using, lambda *_: ticks.delete()[0]) if pks else 0


def keep_newest_ticks(database: str, job_ids: Sequence[UUID]) -> None:
    """Before these jobs are deleted: a task's newest tick must outlive its job. The others go with theirs."""
    ticks = RecurringExecution.objects.using(database)
    # Not in one statement: MySQL updates no table that it reads in a subquery.
    newest = list(ticks.filter(~Exists(_newer(database)), job_id__in=job_ids).values_list("pk", flat=True))
    if newest:
        ticks.filter(pk__in=newest).update(job=None)


# ---- what would go ----------------------------------------------------------------------------------


def finished(config: BackendConfig, older_than: float, task_path: str | None = None) -> QuerySet[Job]:
    rows = Job.objects.using(config.database_alias).filter(
        backend_alias=config.alias,
        finished_at__lte=_before(config, older_than),
        created_at__lte=_before(config, older_than),
    )
    return (rows.filter(task_path=task_path) if task_path else rows).order_by("pk")


def failed(config: BackendConfig, older_than: float, task_path: str | None = None) -> QuerySet[FailedExecution]:
    rows = FailedExecution.objects.using(config.database_alias).filter(
        backend_alias=config.alias, created_at__lte=_before(config, older_than)
    )
    return (rows.filter(job__task_path=task_path) if task_path else rows).order_by("created_at", "pk")


def recurring(config: BackendConfig, older_than: float, task_key: str | None = None) -> QuerySet[RecurringExecution]:
    rows = RecurringExecution.objects.using(config.database_alias).filter(
        backend_alias=config.alias, run_at__lte=_before(config, older_than)
    )
    if task_key:
        rows = rows.filter(task_key=task_key)
    return rows.filter(Exists(_newer(config.database_alias))).order_by("run_at", "pk")


def _before(config: BackendConfig, older_than: float) -> Expression:
    return dialect_for(config.database_alias).clock(ago=older_than)


def _newer(database: str) -> QuerySet[RecurringExecution]:
    """Later ticks of the same task. A task's newest tick keeps it from firing again, and always stays.

    One that lies in the future was enqueued while a clock was wrong, and keeps nothing from firing now.
    """
    return RecurringExecution.objects.filter(
        backend_alias=OuterRef("backend_alias"),
        task_key=OuterRef("task_key"),
        run_at__gt=OuterRef("run_at"),
        run_at__lte=dialect_for(database).clock(),
    )


def _only(database: str) -> tuple[str, ...]:
    return ("self",) if connections[database].features.has_select_for_update_of else ()

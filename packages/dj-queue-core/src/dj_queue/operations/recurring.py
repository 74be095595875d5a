"""Recurring tasks: what is configured, what was scheduled at run time, and one job for each tick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.db import IntegrityError
from django.db.backends.utils import CursorWrapper
from django.tasks.exceptions import InvalidTask

from dj_queue.annotations import AnyTaskResult
from dj_queue.config import BackendConfig, RecurringConfig, backend_config, read_recurring_task
from dj_queue.dialects import Dialect
from dj_queue.exceptions import AlreadyRecorded, EnqueueError, TaskPathError
from dj_queue.models import RecurringExecution, RecurringTask
from dj_queue.operations import jobs, results, transactions
from dj_queue.operations.schedule import as_stored, aware

# What makes a task another task: a change of these is written, and `updated_at` moves with the schedule.
_FIELDS = ("task_path", "payload", "schedule", "timezone", "queue_name", "priority", "description")
_WHEN = ("schedule", "timezone")

# No scheduler is so late that it would enqueue a tick as old as this while later ones are there.
_SETTLED = timedelta(hours=1)


def schedule(
    *,
    key: str,
    task_path: str,
    schedule: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    queue_name: str = "default",
    priority: int = 0,
    description: str = "",
    timezone: str | None = None,
    backend_alias: str = "default",
) -> RecurringTask:
    """Create or change a dynamic recurring task. Raises `ValidationError` with everything that is wrong."""
    config = backend_config(backend_alias)
    options = {
        "task_path": task_path,
        "schedule": schedule,
        "args": args,
        "kwargs": {} if kwargs is None else kwargs,
        "queue_name": queue_name,
        "priority": priority,
        "description": description,
        "timezone": timezone,
    }
    wanted = _checked(config, key, options)

    def save(dialect: Dialect, cursor: CursorWrapper) -> RecurringTask:
        rows = RecurringTask.objects.using(config.database_alias)
        row = rows.select_for_update().filter(backend_alias=config.alias, key=key).first()
        if row is not None and row.static:
            raise ValidationError(
                f"The recurring task {key!r} is configured in the settings, and can be changed only there."
            )
        return _save(config, row, wanted, static=False, now=dialect.now(cursor))

    return transactions.run(config.database_alias, save)


def unschedule(key: str, *, backend_alias: str = "default") -> int:
    """Delete a dynamic recurring task; return 1, or 0 if there is none or it is configured in the settings."""
    config = backend_config(backend_alias)
    rows = RecurringTask.objects.using(config.database_alias)
    rows = rows.filter(backend_alias=config.alias, key=key, static=False)
    return transactions.run(config.database_alias, lambda *_: rows.delete()[0], one_statement=True)


def tasks(config: BackendConfig) -> list[RecurringTask]:
    """Bring the table in line with the settings; return the tasks that are to fire."""

    def sync(dialect: Dialect, cursor: CursorWrapper) -> None:
        now = dialect.now(cursor)
        for wanted in missing:
            _save(config, present.get(wanted.key), wanted, static=True, now=now)
        RecurringTask.objects.using(config.database_alias).filter(pk__in=gone).delete()

    rows = _rows(config)
    present = {row.key: row for row in rows}
    missing = [wanted for wanted in config.recurring if _differs(present.get(wanted.key), wanted)]
    configured = {wanted.key for wanted in config.recurring}
    gone = [row.pk for row in present.values() if row.static and row.key not in configured]
    if missing or gone:
        transactions.run(config.database_alias, sync)
        rows = _rows(config)
    dynamic = config.scheduler is not None and config.scheduler.dynamic_tasks_enabled
    return [row for row in rows if row.static or dynamic]


def enqueue_tick(config: BackendConfig, task: RecurringTask, run_at: datetime) -> AnyTaskResult:
    """Enqueue the job of one tick, once among all schedulers.

    Raises `AlreadyRecorded` if another one has, and what `enqueue` raises if the task is not to be had.
    """
    prepared = _prepared(config, task)

    def enqueue(dialect: Dialect, cursor: CursorWrapper) -> AnyTaskResult:
        # First the row that only one can write, then the job: neither is there without the other.
        rows = RecurringExecution.objects.using(config.database_alias)
        row = rows.create(backend_alias=config.alias, task_key=task.key, run_at=as_stored(run_at))
        result = jobs.write(config, dialect, cursor, [prepared])[0]
        rows.filter(pk=row.pk).update(job_id=result.id)
        if not config.preserve_finished_jobs:
            # The ticks of deleted jobs have no job to go with.
            settled = as_stored(run_at - _SETTLED)
            rows.filter(backend_alias=config.alias, task_key=task.key, run_at__lt=settled, job=None).delete()
        return result

    try:
        result = transactions.run(config.database_alias, enqueue)
    except IntegrityError as error:
        raise AlreadyRecorded(f"{task.key} at {run_at.isoformat()}") from error
    jobs.tell(result)
    return result


def enqueue_now(key: str, *, backend_alias: str = "default") -> AnyTaskResult:
    """Enqueue one job of a recurring task at once; its ticks go on as if nothing had been.

    Raises `RecurringTask.DoesNotExist`, and what `enqueue` raises if the task is not to be had.
    """
    config = backend_config(backend_alias)
    row = RecurringTask.objects.using(config.database_alias).get(backend_alias=config.alias, key=key)
    return jobs.store(config, [_prepared(config, row)])[0]


def was_recorded(config: BackendConfig, task: RecurringTask, run_at: datetime) -> bool:
    """Whether this tick, or a later one, was enqueued."""
    rows = RecurringExecution.objects.using(config.database_alias)
    return rows.filter(backend_alias=config.alias, task_key=task.key, run_at__gte=as_stored(run_at)).exists()


def last_before(config: BackendConfig, task: RecurringTask, run_at: datetime) -> datetime | None:
    """The last recorded tick before this one."""
    rows = RecurringExecution.objects.using(config.database_alias)
    rows = rows.filter(backend_alias=config.alias, task_key=task.key, run_at__lt=as_stored(run_at))
    last = rows.order_by("-run_at").values_list("run_at", flat=True).first()
    return last and aware(last)


def now(config: BackendConfig) -> datetime:
    """The database's clock."""
    time = transactions.run(config.database_alias, lambda dialect, cursor: dialect.now(cursor), one_statement=True)
    return aware(time)


def _prepared(config: BackendConfig, task: RecurringTask) -> jobs.PreparedJob:
    payload = task.payload or {"args": [], "kwargs": {}}
    found = results.resolve(task.task_path)
    wanted = results.variant(found, task.queue_name, task.priority, None, config.alias)
    return jobs.prepare(config, wanted, payload["args"], payload["kwargs"])


def _rows(config: BackendConfig) -> list[RecurringTask]:
    rows = RecurringTask.objects.using(config.database_alias).filter(backend_alias=config.alias)
    return list(rows.order_by("key"))


def _values(wanted: RecurringConfig) -> dict[str, Any]:
    return {
        "task_path": wanted.task_path,
        "payload": {"args": list(wanted.args), "kwargs": dict(wanted.kwargs)},
        "schedule": wanted.schedule,
        "timezone": wanted.timezone,
        "queue_name": wanted.queue_name,
        "priority": wanted.priority,
        "description": wanted.description,
    }


def _differs(row: RecurringTask | None, wanted: RecurringConfig) -> bool:
    if row is None or not row.static:
        return True
    values = _values(wanted)
    return any(getattr(row, name) != values[name] for name in _FIELDS)


def _save(
    config: BackendConfig, row: RecurringTask | None, wanted: RecurringConfig, *, static: bool, now: datetime
) -> RecurringTask:
    rows = RecurringTask.objects.using(config.database_alias)
    values = {**_values(wanted), "static": static}
    if row is None:
        # Another scheduler may be adding the same task just now.
        created, _ = rows.get_or_create(
            backend_alias=config.alias, key=wanted.key, defaults={**values, "created_at": now, "updated_at": now}
        )
        return created
    if any(getattr(row, name) != values[name] for name in _WHEN):
        values["updated_at"] = now  # a new schedule begins with its next tick
    for name, value in values.items():
        setattr(row, name, value)
    row.save(using=config.database_alias)
    return row


def _checked(config: BackendConfig, key: str, options: Mapping[str, Any]) -> RecurringConfig:
    wanted, mistakes = read_recurring_task(key, options)
    try:
        task = results.resolve(options["task_path"])
        if wanted is not None:
            task = task.using(queue_name=wanted.queue_name, priority=wanted.priority, backend=config.alias)
            jobs.prepare(config, task, wanted.args, wanted.kwargs)
    except (TaskPathError, InvalidTask, EnqueueError) as error:
        mistakes.append(str(error))
    if wanted is None or mistakes:
        raise ValidationError(mistakes)
    return wanted

"""Recurring tasks: what is configured, what was scheduled at run time, and one job for each tick."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.db import Error, IntegrityError
from django.db.backends.utils import CursorWrapper
from django.db.models import QuerySet
from django.tasks.exceptions import InvalidTask

from dj_queue.config import BackendConfig, RecurringConfig, SchedulerConfig, backend_config, read_recurring_task
from dj_queue.dialects import Dialect, dialect_for
from dj_queue.error_reporting import report
from dj_queue.exceptions import AlreadyRecorded, EnqueueError, TaskPathError
from dj_queue.models import RecurringExecution, RecurringTask
from dj_queue.operations import jobs, readable, results, schedulers, transactions
from dj_queue.operations.schedule import as_stored, aware, latest_tick
from dj_queue.types import AnyTaskResult

logger = logging.getLogger("dj_queue")

# A change of these moves `updated_at`: a schedule begins with its next tick.
_WHEN = ("schedule", "timezone")


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
    catch_up: str | None = None,
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
        **({} if catch_up is None else {"catch_up": catch_up}),
    }
    wanted = _checked(config, key, options)
    if config.scheduler is not None and not config.scheduler.dynamic_tasks_enabled:
        logger.warning(
            "dj_queue: the recurring task %r (%s) is stored, but does not fire: the alias %r has dynamic tasks off."
            " Set its option scheduler.dynamic_tasks_enabled to True.",
            key,
            task_path,
            config.alias,
        )

    def save(dialect: Dialect, cursor: CursorWrapper) -> RecurringTask:
        rows = RecurringTask.objects.using(config.database_alias)
        found = rows.select_for_update().filter(backend_alias=config.alias, key=key)
        readable_ones, lost = readable.read(found)
        if lost and _repair(found.filter(pk__in=lost, static=False), [wanted], static=False, now=dialect.now(cursor)):
            readable_ones = [found.get()]
        row = readable_ones[0] if readable_ones else None
        if row is None and lost:
            raise ValidationError(
                f"The recurring task {key!r} is configured in the settings, and its row cannot be read. A"
                " scheduler with those settings writes it anew."
            )
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


def tasks(
    config: BackendConfig, *, process_id: int | None = None, tell: Callable[[str], object] = logger.warning
) -> list[RecurringTask]:
    """Bring the table in line with the settings; return the tasks that this scheduler is to fire.

    Those are its own, and dynamic ones if they are enabled. Where living schedulers differ, `schedulers` says
    which of them changes a row, and each difference is told. Who has no process row, and so is not known to the
    others, adds what is missing and removes nothing.
    """
    rows = _rows(config)
    present = {row.key: row for row in rows}
    wanted = {task.key: task for task in config.recurring}
    missing = [task for key, task in wanted.items() if key not in present or not present[key].static]
    differing = [task for key, task in wanted.items() if key in present and _differs(present[key], task)]
    strange = [row for row in rows if row.static and row.key not in wanted]
    if differing or (strange and process_id is not None):
        # Asked after the rows were read: a scheduler that added one of them was known before it did.
        alive = schedulers.living(config)
        changed = [task for task in differing if _is_ours(config, alive, process_id, present[task.key], task, tell)]
        gone = [row for row in strange if process_id is not None and not _is_kept(alive, process_id, row, tell)]
    else:
        changed, gone = [], []
    if missing or changed or gone:
        for task in changed:
            _fire_before_change(config, present[task.key], task)
        transactions.run(
            config.database_alias,
            lambda dialect, cursor: _sync(config, dialect.now(cursor), [*missing, *changed], gone),
        )
        rows = _rows(config)
    dynamic = config.scheduler is not None and config.scheduler.dynamic_tasks_enabled
    return [row for row in rows if (row.key in wanted if row.static else dynamic)]


def enqueue_tick(config: BackendConfig, task: RecurringTask, run_at: datetime) -> AnyTaskResult:
    """Enqueue the job of one tick, once among all schedulers.

    Raises `AlreadyRecorded` if another one has, and what `enqueue` raises if the task cannot be imported.
    """
    prepared = _prepared(config, task)

    def enqueue(dialect: Dialect, cursor: CursorWrapper) -> AnyTaskResult:
        # First the row that only one can write, then the job: neither is there without the other.
        rows = RecurringExecution.objects.using(config.database_alias)
        row = rows.create(backend_alias=config.alias, task_key=task.key, run_at=as_stored(run_at))
        result = jobs.write(config, dialect, cursor, [prepared])[0]
        rows.filter(pk=row.pk).update(job_id=result.id)
        return result

    try:
        result = transactions.run(config.database_alias, enqueue)
    except IntegrityError as error:
        if not _ticks(config, task).filter(run_at=as_stored(run_at)).exists():
            raise  # of another kind: the tick is still to come
        raise AlreadyRecorded(
            f"the tick of the recurring task {task.key!r} at {run_at.isoformat()} was enqueued before"
        ) from error
    jobs.tell(result)
    return result


def enqueue_now(key: str, *, backend_alias: str = "default") -> AnyTaskResult:
    """Enqueue one job of a recurring task at once; its ticks go on as if nothing had been.

    Raises `RecurringTask.DoesNotExist`, and what `enqueue` raises if the task cannot be imported.
    """
    config = backend_config(backend_alias)
    rows = RecurringTask.objects.using(config.database_alias).filter(backend_alias=config.alias, key=key)
    try:
        row = readable.whole(rows.get())
    except (Error, ValueError, TypeError) as error:
        if dialect_for(config.database_alias).is_unanswered(error):
            raise
        raise _unreadable(key, error) from error
    return jobs.store(config, [_prepared(config, row)])[0]


def was_recorded(config: BackendConfig, task: RecurringTask, run_at: datetime, *, until: datetime) -> bool:
    """Whether this tick, or a later one up to `until`, was enqueued.

    What lies beyond was enqueued while a clock was wrong, and says nothing of this one.
    """
    return _ticks(config, task).filter(run_at__gte=as_stored(run_at), run_at__lte=as_stored(until)).exists()


def last_before(config: BackendConfig, task: RecurringTask, run_at: datetime) -> datetime | None:
    """The last recorded tick before this one; None if there is none, or its time cannot be read."""
    rows = _ticks(config, task).filter(run_at__lt=as_stored(run_at))
    last: list[datetime | None] = readable.read(rows.order_by("-run_at").values_list("run_at", flat=True)[:1]).rows
    return aware(last[0]) if last and last[0] else None


def catches_up(config: BackendConfig, task: RecurringTask) -> bool:
    """Whether a tick that was missed is made up for: as the task's settings or its row say, or the scheduler's."""
    policy = next((each.catch_up for each in config.recurring if each.key == task.key), task.catch_up)
    return (policy or (config.scheduler or SchedulerConfig()).catch_up) != "none"


def missed_after(config: BackendConfig) -> timedelta:
    """From which age on a tick was missed; a younger one is only late by a poll or two."""
    polling_interval = (config.scheduler or SchedulerConfig()).polling_interval
    return timedelta(seconds=max(60.0, 2 * polling_interval))


def now(config: BackendConfig) -> datetime:
    """The database's clock."""
    time = transactions.run(config.database_alias, lambda dialect, cursor: dialect.now(cursor), one_statement=True)
    return aware(time)


def _prepared(config: BackendConfig, task: RecurringTask) -> jobs.PreparedJob:
    payload = results.shaped(task.payload or {"args": [], "kwargs": {}})
    if flaw := payload.flaw or (task.payload and not {"args", "kwargs"} <= set(task.payload) and "no args and kwargs"):
        raise _unreadable(task.key, flaw)
    found = results.resolve(task.task_path)
    wanted = results.variant(found, task.queue_name, task.priority, None, config.alias)
    return jobs.prepare(config, wanted, payload.args, payload.kwargs)


def _unreadable(key: str, why: object) -> EnqueueError:
    return EnqueueError(f"the recurring task {key!r} cannot be read: {why}. Schedule it anew, or unschedule it.")


def _rows(config: BackendConfig) -> list[RecurringTask]:
    rows = RecurringTask.objects.using(config.database_alias).filter(backend_alias=config.alias)
    # Of one that cannot be read, nothing is known but that: the others go on.
    found: list[RecurringTask] = readable.read(rows.order_by("key")).rows
    return found


def _ticks(config: BackendConfig, task: RecurringTask) -> QuerySet[RecurringExecution]:
    rows = RecurringExecution.objects.using(config.database_alias)
    return rows.filter(backend_alias=config.alias, task_key=task.key)


# ---- where the table and the settings differ --------------------------------------------------------


def _differs(row: RecurringTask, wanted: RecurringConfig) -> bool:
    values = schedulers.definition(wanted)
    return row.static and any(getattr(row, name) != values[name] for name in schedulers.FIELDS)


def _is_ours(
    config: BackendConfig,
    alive: Sequence[schedulers.Living],
    process_id: int | None,
    row: RecurringTask,
    wanted: RecurringConfig,
    tell: Callable[[str], object],
) -> bool:
    """Whether this scheduler changes a row that is not as its settings have it."""
    values, mine = schedulers.definition(wanted), schedulers.digest(wanted)
    having = [each for each in alive if each.tasks is not None and row.key in each.tasks]
    # Those that were started together have the same, and any of them may write it.
    ours = not having or having[-1].process_id == process_id or having[-1].tasks[row.key] == mine  # type: ignore[index]
    others = [each for each in having if each.process_id != process_id and each.tasks[row.key] != mine]  # type: ignore[index]
    if others:
        fields = ", ".join(field for field in schedulers.FIELDS if getattr(row, field) != values[field])
        tell(
            f"the recurring task {row.key!r} differs between schedulers, in {fields}: its row has the schedule"
            f" {row.schedule!r}, the settings of this one have {wanted.schedule!r}, and {others[-1].label} has other"
            " settings. "
            + (
                "This one was started last, so it changes the row."
                if ours
                else "That one was started later, so the row stays as it is. Deploy the same settings on every node."
            )
        )
    return ours


def _is_kept(
    alive: Sequence[schedulers.Living], process_id: int, row: RecurringTask, tell: Callable[[str], object]
) -> bool:
    """Whether another living scheduler has the task of a row that this one's settings lack."""
    other = next((each for each in reversed(alive) if each.process_id != process_id and each.has(row.key)), None)
    if other is not None:
        tell(
            f"the recurring task {row.key!r} (schedule {row.schedule!r}) is not in the settings of this scheduler,"
            f" but {other.label} runs: the task stays for as long as that one does, and this one does not fire it."
        )
    return other is not None


def _fire_before_change(config: BackendConfig, row: RecurringTask, wanted: RecurringConfig) -> None:
    """Enqueue what is due by the schedule that is about to go: the new one begins only with its next tick.

    As the new definition has it: the old one's task may no longer be there.
    """
    if all(getattr(row, name) == schedulers.definition(wanted)[name] for name in _WHEN):
        return
    time = now(config)
    try:
        due = latest_tick(row.schedule, row.timezone, time)
    except Exception:  # a row with a schedule that is none has nothing due
        return
    if due is None or due <= aware(row.updated_at) or was_recorded(config, row, due, until=time):
        return
    if not catches_up(config, row) and time - due > missed_after(config):
        return
    task = RecurringTask(backend_alias=config.alias, key=row.key, **schedulers.definition(wanted))
    try:
        enqueue_tick(config, task, due)
    except AlreadyRecorded:
        return
    except Exception as error:
        if isinstance(error, Error) and dialect_for(config.database_alias).is_away(error):
            raise
        report(config, error, f"scheduler.run:{row.key}")


def _sync(
    config: BackendConfig, now: datetime, wanted: Sequence[RecurringConfig], gone: Sequence[RecurringTask]
) -> None:
    rows = RecurringTask.objects.using(config.database_alias).filter(backend_alias=config.alias)
    keys = [task.key for task in wanted]
    locked = rows.filter(key__in=keys).order_by("key").select_for_update()
    found, lost = readable.read(locked)
    if lost and _repair(rows.filter(pk__in=lost), wanted, static=True, now=now):
        found = readable.read(locked).rows
    present = {row.key: row for row in found}
    for task in wanted:
        _save(config, present.get(task.key), task, static=True, now=now)
    rows.filter(pk__in=[row.pk for row in gone]).delete()


def _save(
    config: BackendConfig, row: RecurringTask | None, wanted: RecurringConfig, *, static: bool, now: datetime
) -> RecurringTask:
    rows = RecurringTask.objects.using(config.database_alias)
    values = {**schedulers.definition(wanted), "static": static, "catch_up": None if static else wanted.catch_up}
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


def _repair(rows: QuerySet[RecurringTask], wanted: Sequence[RecurringConfig], *, static: bool, now: datetime) -> int:
    """Write rows anew that cannot be read, where it is known what they are to be; return how many."""
    repaired = 0
    for task in wanted:
        values = {**schedulers.definition(task), "static": static, "created_at": now, "updated_at": now}
        values["catch_up"] = None if static else task.catch_up
        repaired += rows.filter(key=task.key).update(**values)
    return repaired


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

"""A time that Python cannot hold, in any column of any table, stops nothing that does not need it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.db import connection
from django.db.models import DateTimeField
from django.utils import timezone

from dj_queue.api import QueueInfo
from dj_queue.config import SchedulerConfig, backend_config
from dj_queue.models import (
    FailedExecution,
    Pause,
    Process,
    ReadyExecution,
    RecurringExecution,
    Semaphore,
)
from dj_queue.operations import jobs, maintenance, observation, processes, recovery, recurring, retention
from tests.project import tasks
from tests.working import claim, name_case, run, work

pytestmark = pytest.mark.django_db(transaction=True)

TIMES: dict[str, list[Any]] = {
    "postgresql": ["infinity", "-infinity"],
    "sqlite": ["2026-13-45 00:00:00", b"\xff\xfe"],
    # What a session that is not strict stores; and the last moment, which has no place in most time zones.
    "mysql": ["0000-00-00 00:00:00", "9999-12-31 23:59:59.999999"],
}
COLUMNS = {
    model._meta.db_table: [field.column for field in model._meta.concrete_fields if isinstance(field, DateTimeField)]
    for model in apps.get_app_config("dj_queue").get_models()
    if model._meta.managed
}


def poison(table: str, value: Any, *columns: str) -> None:
    """Write it into these times, or all, of the oldest row of the table."""
    columns = columns or tuple(COLUMNS[table])
    stored = "CAST(%s AS TEXT)" if isinstance(value, bytes) else "%s"
    key = "CAST(id AS TEXT)" if connection.vendor == "postgresql" else "id"
    with connection.cursor() as cursor:
        if connection.vendor == "mysql":
            cursor.execute("SELECT @@SESSION.sql_mode")
            (mode,) = cursor.fetchone()
            cursor.execute("SET SESSION sql_mode = ''")
        cursor.execute(f"SELECT min({key}) FROM {table}")
        sets = ", ".join(f"{column} = {stored}" for column in columns)
        cursor.execute(f"UPDATE {table} SET {sets} WHERE {key} = %s", [*[value] * len(columns), *cursor.fetchone()])
        assert cursor.rowcount == 1
        if connection.vendor == "mysql":
            cursor.execute("SET SESSION sql_mode = %s", [mode])


@pytest.fixture
def world() -> None:
    """Something in every table, and in every state."""
    failing = tasks.fail.enqueue("x")
    work()
    assert FailedExecution.objects.filter(job_id=failing.id).exists()
    tasks.add.enqueue(0, 0)
    work()
    tasks.add.enqueue(1, 1)
    claim()
    for number in range(3):
        tasks.one_per_key.enqueue("a", number)
    tasks.add.using(run_after=timezone.now() + timedelta(hours=1)).enqueue(3, 3)
    tasks.add.using(queue_name="paused").enqueue(4, 4)
    QueueInfo("paused").pause()
    recurring.schedule(key="each", task_path="tests.project.tasks.add", schedule="* * * * *", args=[1, 2])
    for minutes in (0, 1, 2):
        RecurringExecution.objects.create(task_key="each", run_at=timezone.now() - timedelta(days=1, minutes=minutes))
    for kind in Process.Kind:
        Process.objects.create(name=kind.lower(), kind=kind, pid=1, metadata={"worker_count": 1})


def upkeep() -> None:
    list(maintenance.maintain(backend_config()))


def schedule() -> None:
    config = replace(backend_config(), recurring=(), scheduler=SchedulerConfig(dynamic_tasks_enabled=True))
    now = recurring.now(config)
    for task in recurring.tasks(config):
        tick = now.replace(second=0, microsecond=0)
        recurring.was_recorded(config, task, tick, until=now)
        recurring.enqueue_tick(config, task, tick)
        recurring.last_before(config, task, tick)


def recover() -> None:
    recovery.prune(backend_config())
    recovery.settle_missing(backend_config())


def retain() -> None:
    config = backend_config()
    retention.Retention(config, 0).delete_batch()
    retention.delete_finished(config, older_than=0)
    retention.delete_failed(config, older_than=0)
    retention.delete_recurring(config, older_than=0)
    retention.delete_jobless_ticks(config)


def overview() -> None:
    seen = observation.observe(backend_config())
    assert {each.name for each in seen.queues} == {"default", "paused"}
    for name in ("default", "paused"):
        assert QueueInfo(name).latency >= 0


def health() -> None:
    processes.count_fresh(backend_config(), max_age=60)
    processes.lacks_workers(backend_config())


def resume() -> None:
    QueueInfo("paused").resume()
    assert not Pause.objects.exists()


def operate() -> None:
    jobs.retry_failed_jobs()
    jobs.discard_scheduled_jobs()
    jobs.discard_blocked_jobs()
    QueueInfo("default").clear()
    assert not ReadyExecution.objects.filter(queue_name="default").exists()


def limited_work() -> None:
    tasks.one_per_key.enqueue("a", 9)
    tasks.one_per_key.using(run_after=timezone.now() - timedelta(seconds=1)).enqueue("a", 10)
    jobs.promote_scheduled_jobs(batch_size=10, until=timezone.now() + timedelta(hours=2))
    run(claim())
    work()


STEPS: list[Callable[[], None]] = [
    upkeep, schedule, recover, retain, overview, health, resume, limited_work, operate,
]  # fmt: skip


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("value", TIMES[connection.vendor], ids=name_case)
@pytest.mark.parametrize("table", COLUMNS)
def test_everything_goes_on(table: str, value: Any) -> None:
    poison(table, value)
    failures = []
    for step in STEPS:
        try:
            step()
        except Exception as error:
            failures.append(f"{step.__name__}: {type(error).__name__}: {error}")
    assert not failures


@pytest.mark.usefixtures("world")
def test_upkeep_repairs_a_semaphore() -> None:
    before = Semaphore.objects.get()
    poison("dj_queue_semaphores", TIMES[connection.vendor][0], "expires_at")
    upkeep()
    row = Semaphore.objects.get()
    assert (row.value, row.limit) == (before.value, before.limit)
    assert abs(row.expires_at - timezone.now()) < timedelta(hours=1)

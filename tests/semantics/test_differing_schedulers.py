"""Nodes of one alias with other recurring tasks, as in each deploy: no tick is lost, each difference is told once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.db import IntegrityError
from django.db.models import F

from dj_queue import api
from dj_queue.config import BackendConfig, load_config
from dj_queue.exceptions import AlreadyRecorded
from dj_queue.models import Job, Process, RecurringExecution, RecurringTask
from dj_queue.operations import jobs, recurring, schedulers
from dj_queue.runtime.scheduler import Scheduler
from tests.project.tasks import add

pytestmark = pytest.mark.django_db(transaction=True)

ADD = "tests.project.tasks.add"
ECHO = "tests.project.tasks.echo"
START = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


class Clock:
    def __init__(self) -> None:
        self.now = START


@pytest.fixture
def clock(monkeypatch: Any) -> Clock:
    """The database's clock, as schedulers see it for their ticks; heartbeats keep the real one."""
    clock = Clock()
    monkeypatch.setattr(recurring, "now", lambda config: clock.now)
    return clock


@pytest.fixture
def node() -> Iterator[Any]:
    """Start a scheduler on a node with these recurring tasks, and with a supervisor's row as a real one has."""
    made: list[Scheduler] = []

    def start(tasks: dict[str, Any], *, supervisor: Process | None = None, **options: Any) -> Scheduler:
        config = read(tasks, **options)
        if supervisor is None:
            supervisor = Process.objects.create(kind="Supervisor", pid=1, name="supervisor-1")
        assert config.scheduler is not None
        runner = Scheduler(config, config.scheduler, "scheduler-1", supervisor.pk)
        runner._register()
        made.append(runner)
        return runner

    yield start
    for runner in made:
        runner.wakeup.close()


def read(tasks: dict[str, Any], **options: Any) -> BackendConfig:
    backend = "dj_queue.backend.DjQueueBackend"
    options = {"recurring": tasks, **options}
    return load_config(tasks={"default": {"BACKEND": backend, "QUEUES": [], "OPTIONS": options}})


def sync(runner: Scheduler) -> None:
    """What a poll does first."""
    recurring.tasks(runner.config, process_id=runner.process_id)


def leave(runner: Scheduler) -> None:
    runner._deregister()


def die(runner: Scheduler, ago: float = 301) -> None:
    Process.objects.filter(pk=runner.process_id).update(
        last_heartbeat_at=F("last_heartbeat_at") - timedelta(seconds=ago)
    )


def minutely(**more: Any) -> dict[str, Any]:
    return {"task_path": ADD, "schedule": "* * * * *", "args": [1, 2], **more}


def since(when: datetime) -> None:
    RecurringTask.objects.update(created_at=when, updated_at=when)


def fired(key: str = "m") -> list[datetime]:
    return list(RecurringExecution.objects.filter(task_key=key).order_by("run_at").values_list("run_at", flat=True))


def minutes(count: int) -> list[datetime]:
    return [START.replace(second=0) + n * MINUTE for n in range(count)]


def warnings(caplog: Any) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# ---- a task that one node has and another lacks -----------------------------------------------------


@pytest.mark.parametrize("order", ["with first", "without first"])
def test_a_node_without_the_task_takes_no_tick_from_one_that_has_it(
    order: str, node: Any, clock: Clock, caplog: Any
) -> None:
    kinds = [{"m": minutely()}, {}]
    runners = [node(tasks) for tasks in (kinds if order == "with first" else reversed(kinds))]
    sync(runners[order != "with first"])
    since(START - MINUTE)
    with caplog.at_level("WARNING", "dj_queue"):
        for _ in range(10):
            for runner in runners:
                runner.step()
            clock.now += MINUTE
    assert fired() == minutes(10)
    (told,) = warnings(caplog)  # once, and by the one that lacks it
    assert "'m'" in told
    assert "* * * * *" in told
    assert "scheduler-1 on" in told


def test_a_task_goes_with_the_last_scheduler_that_has_it(node: Any, clock: Clock) -> None:
    first, second, without = node({"m": minutely()}), node({"m": minutely()}), node({})
    for runner in (first, second, without):
        runner.step()
    leave(first)
    without.step()
    assert RecurringTask.objects.filter(key="m").exists()
    die(second, ago=290)  # silent for long, but within process_alive_threshold
    without.step()
    assert RecurringTask.objects.filter(key="m").exists()
    die(second, ago=20)
    without.step()
    assert not RecurringTask.objects.exists()


def test_a_scheduler_fires_its_own_tasks_only(node: Any, clock: Clock) -> None:
    having, without = node({"m": minutely()}), node({}, scheduler={"dynamic_tasks_enabled": True})
    sync(having)
    RecurringTask.objects.create(key="d", task_path=ADD, schedule="* * * * *", payload={"args": [1, 2], "kwargs": {}})
    since(START - HOUR)
    without.step()
    assert fired("m") == []
    assert fired("d") == minutes(1)
    having.step()
    assert fired("m") == minutes(1)


def test_one_that_does_not_tell_its_tasks_may_have_any(node: Any, clock: Clock) -> None:
    """A version without that line in its metadata: its tasks stay."""
    having, without = node({"m": minutely()}), node({})
    having.step()
    row = Process.objects.get(pk=having.process_id)
    del row.metadata[schedulers.STATIC_TASKS]
    row.save()
    without.step()
    assert RecurringTask.objects.filter(key="m").exists()
    row.metadata["static_task_count"] = 0
    row.save()
    without.step()
    assert not RecurringTask.objects.exists()


def test_another_alias_keeps_nothing(node: Any, clock: Clock) -> None:
    having, without = node({"m": minutely()}), node({})
    having.step()
    Process.objects.filter(pk=having.process_id).update(backend_alias="other")
    without.step()
    assert not RecurringTask.objects.exists()


def test_who_is_not_registered_removes_nothing(node: Any, clock: Clock) -> None:
    node({"m": minutely()}).step()
    Process.objects.all().delete()
    recurring.tasks(read({}))
    assert RecurringTask.objects.filter(key="m").exists()


# ---- a task that two nodes have otherwise -----------------------------------------------------------


def test_the_node_that_was_started_last_decides(node: Any, clock: Clock, caplog: Any) -> None:
    old = node({"m": minutely(schedule="*/2 * * * *")})
    sync(old)
    new = node({"m": minutely(args=[3, 4])})
    told: list[str] = []
    for _ in range(4):
        for runner in (old, new):
            recurring.tasks(runner.config, process_id=runner.process_id, tell=told.append)
    row = RecurringTask.objects.get()
    assert (row.schedule, row.payload["args"]) == ("* * * * *", [3, 4])
    since(START - MINUTE)
    with caplog.at_level("WARNING", "dj_queue"):
        for _ in range(10):
            for runner in (old, new):
                runner.step()
            clock.now += MINUTE
    assert fired() == minutes(10)
    assert RecurringTask.objects.get().updated_at == START - MINUTE  # not written to and fro
    assert len(set(told)) == 2  # each of them
    assert len(warnings(caplog)) == 1  # the old one, once
    for text in (*told, *warnings(caplog)):
        assert "'m'" in text
        assert "payload, schedule" in text
        assert "'*/2 * * * *'" in text
        assert "'* * * * *'" in text
        assert "scheduler-1 on" in text


def test_a_replaced_scheduler_has_the_settings_of_its_node(node: Any, clock: Clock) -> None:
    """The old node's scheduler crashes, and its supervisor starts another: its settings are no newer for that."""
    supervisor = Process.objects.create(kind="Supervisor", pid=7, name="supervisor-7")
    old = node({"m": minutely(priority=1)}, supervisor=supervisor)
    old.step()
    new = node({"m": minutely(priority=2)})
    new.step()
    leave(old)
    node({"m": minutely(priority=1)}, supervisor=supervisor).step()
    assert RecurringTask.objects.get().priority == 2
    leave(new)
    old = node({"m": minutely(priority=1)}, supervisor=Process.objects.create(kind="Supervisor", pid=8, name="s-8"))
    old.step()
    assert RecurringTask.objects.get().priority == 1


def test_the_old_one_takes_over_when_the_new_one_is_gone(node: Any, clock: Clock) -> None:
    old, new = node({"m": minutely(priority=1)}), node({"m": minutely(priority=2)})
    for runner in (old, new, old):
        runner.step()
    assert RecurringTask.objects.get().priority == 2
    die(new)
    old.step()
    assert RecurringTask.objects.get().priority == 1


def test_a_row_that_another_makes_anew_takes_no_tick(node: Any, clock: Clock) -> None:
    """An old version deletes it at each poll, and this one makes it anew: it goes on as if nothing had been."""
    runner = node({"m": minutely()})
    sync(runner)
    since(START - HOUR)
    for _ in range(5):
        runner.step()
        RecurringTask.objects.all().delete()
        clock.now += MINUTE - SECOND
        runner.step()
        clock.now += SECOND
    runner.step()
    assert fired() == minutes(6)


# ---- what was due when its row changed --------------------------------------------------------------


def test_a_changed_schedule_takes_no_tick_that_was_due(node: Any, clock: Clock) -> None:
    sync(node({"m": minutely(schedule="0 12 * * *")}))
    since(START - DAY)
    new = node({"m": minutely(schedule="30 13 * * *", args=[5, 6])})  # half a minute after noon
    new.step()
    new.step()
    assert fired() == [START.replace(second=0)]
    assert Job.objects.get().payload["args"] == [5, 6]
    RecurringTask.objects.update(updated_at=clock.now)
    clock.now += 2 * HOUR
    new.step()
    assert fired() == [START.replace(second=0), START.replace(hour=13, minute=30, second=0)]


@pytest.mark.parametrize("before", ["recorded", "older than its row", "no schedule at all", "its task is gone"])
def test_a_changed_schedule_fires_nothing_else(before: str, node: Any, clock: Clock) -> None:
    old = node({"m": minutely(schedule="0 12 * * *")})
    sync(old)
    since(START - DAY if before != "older than its row" else START)
    if before == "recorded":
        old.step()
    if before == "no schedule at all":
        RecurringTask.objects.update(schedule="every tuesday")
    count = len(fired())
    path = "gone.away.task" if before == "its task is gone" else ADD
    node({"m": minutely(schedule="30 13 * * *", task_path=path)}).step()
    assert len(fired()) == count
    assert RecurringTask.objects.get().schedule == "30 13 * * *"


# ---- clocks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [DAY, HOUR, 40 * DAY], ids=str)
@pytest.mark.parametrize("restarted", [False, True])
def test_a_clock_that_was_ahead_for_one_poll(step: timedelta, restarted: bool, node: Any, clock: Clock) -> None:
    runner = node({"m": minutely()})
    sync(runner)
    since(START - MINUTE)
    runner.step()
    clock.now += step
    runner.step()
    ahead = clock.now.replace(second=0)
    assert fired() == [START.replace(second=0), ahead]
    clock.now -= step
    if restarted:
        runner = node({"m": minutely()})
    for _ in range(10):
        runner.step()
        runner.step()
        clock.now += MINUTE
    assert fired() == [*minutes(10), ahead]  # none lost, none twice
    assert Job.objects.count() == 11


def test_a_row_that_was_written_while_the_clock_was_ahead(node: Any, clock: Clock) -> None:
    runner = node({"m": minutely()})
    recurring.tasks(runner.config)
    since(START + 30 * DAY)
    for _ in range(5):
        runner.step()
        clock.now += MINUTE
    assert fired() == minutes(5)[1:]


def test_a_clock_that_steps_back_by_moments_fires_nothing_twice(node: Any, clock: Clock) -> None:
    runner = node({"m": minutely()})
    sync(runner)
    since(START - MINUTE)
    for n in range(20):
        clock.now += (17 if n % 2 else -3) * SECOND
        runner.step()
    assert len(fired()) == Job.objects.count() == len(set(fired()))
    assert fired() == minutes(len(fired()))


# ---- refusals ---------------------------------------------------------------------------------------


def test_another_refusal_is_no_recorded_tick(node: Any, clock: Clock, monkeypatch: Any, caplog: Any) -> None:
    runner = node({"m": minutely(), "z": minutely(task_path=ECHO)})
    sync(runner)
    since(START - MINUTE)
    write = jobs.write

    def refuse(config: Any, dialect: Any, cursor: Any, prepared: Any) -> Any:
        if prepared[0].job.task_path == ADD:
            raise IntegrityError("a trigger of the project's says no")
        return write(config, dialect, cursor, prepared)

    with monkeypatch.context() as patched:
        patched.setattr(jobs, "write", refuse)
        runner.step()
        with pytest.raises(IntegrityError):
            recurring.enqueue_tick(runner.config, RecurringTask.objects.get(key="m"), START.replace(second=0))
    assert (fired("m"), fired("z")) == ([], minutes(1))
    (told,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert told.thread_error_context == "scheduler.run:m"
    assert "a trigger of the project's says no" in told.getMessage()
    clock.now += MINUTE  # it is tried again
    runner.step()
    assert fired("m") == [minutes(2)[-1]]
    with pytest.raises(AlreadyRecorded):
        recurring.enqueue_tick(runner.config, RecurringTask.objects.get(key="m"), minutes(2)[-1])


# ---- silence ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("enabled", [False, True])
def test_a_task_that_is_stored_and_does_not_fire_is_told_of(enabled: bool, settings: Any, caplog: Any) -> None:
    options = {"scheduler": {"dynamic_tasks_enabled": enabled}}
    settings.TASKS = {"default": {"BACKEND": "dj_queue.backend.DjQueueBackend", "QUEUES": [], "OPTIONS": options}}
    with caplog.at_level("WARNING", "dj_queue"):
        api.schedule_recurring_task(key="report", task_path=ADD, schedule="0 0 * * *", args=[1, 2])
    assert RecurringTask.objects.filter(key="report", static=False).exists()
    told = warnings(caplog)
    assert len(told) == (not enabled)
    for text in told:
        assert "'report'" in text
        assert ADD in text
        assert "scheduler.dynamic_tasks_enabled" in text


# ---- schedules with seconds -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    ["* * * * * *", "* * * * * */10", "0 3 * * * 15", "0 3 * * * 0,30", "0 3 * * * 0-59", "0 12 1 1 * 0 2035"],
)
def test_a_sixth_field_that_can_only_be_seconds(schedule: str) -> None:
    api.schedule_recurring_task(key="m", task_path=ADD, schedule=schedule, args=[1, 2])
    assert RecurringTask.objects.get().schedule == schedule


@pytest.mark.parametrize(
    "schedule",
    ["*/10 * * * * *", "0 */5 * * * *", "0 0 9 * * 1", "0 0 9 * * 1-5", "30 0 9 * * 0", "0 0 12 * * 1 2035"],
)
def test_a_sixth_field_that_may_be_a_weekday(schedule: str) -> None:
    with pytest.raises(ValidationError, match="the sixth field"):
        api.schedule_recurring_task(key="m", task_path=ADD, schedule=schedule, args=[1, 2])
    with pytest.raises(ImproperlyConfigured, match="the sixth field"):
        read({"m": minutely(schedule=schedule)})


# ---- a frozen clock ---------------------------------------------------------------------------------


def test_a_promotion_can_be_told_the_time() -> None:
    later = datetime.now(UTC) + DAY
    first, second = (add.using(run_after=later + n * HOUR).enqueue(1, 2).id for n in range(2))
    assert jobs.promote_scheduled_jobs(batch_size=10) == 0
    assert jobs.promote_scheduled_jobs(batch_size=10, until=later - SECOND) == 0
    assert jobs.promote_scheduled_jobs(batch_size=10, until=later) == 1
    assert [str(pk) for pk in Job.objects.ready().values_list("pk", flat=True)] == [first]
    assert [str(pk) for pk in Job.objects.scheduled().values_list("pk", flat=True)] == [second]

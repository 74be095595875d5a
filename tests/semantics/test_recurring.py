"""Recurring tasks: when they fire, once, whoever is there to fire them, and nothing of it silently lost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.db import DatabaseError, connection, connections
from django.tasks import default_task_backend
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from dj_queue import api
from dj_queue.config import backend_config
from dj_queue.exceptions import AlreadyRecorded
from dj_queue.models import FailedExecution, Job, ReadyExecution, RecurringExecution, RecurringTask
from dj_queue.operations import jobs, recurring, retention
from dj_queue.runtime.scheduler import Scheduler
from tests.conftest import wait_until
from tests.working import states, work

BERLIN = "Europe/Berlin"
ADD = "tests.project.tasks.add"
ECHO = "tests.project.tasks.echo"


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


# ---- a scheduler and its clock ----------------------------------------------------------------------

START = utc(2026, 6, 1, 12, 0, 30)
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


class Clock:
    """The database's clock, as recurring tasks see it."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __iadd__(self, delta: timedelta) -> Clock:
        self.now += delta
        return self


@pytest.fixture
def clock(monkeypatch: Any) -> Clock:
    clock = Clock(START)
    monkeypatch.setattr(recurring, "now", lambda config: clock.now)
    return clock


_made: list[Scheduler] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while _made:
        _made.pop().wakeup.close()


def scheduler(alias: str = "default") -> Scheduler:
    config = backend_config(alias)
    assert config.scheduler is not None
    _made.append(Scheduler(config, config.scheduler, "scheduler-1"))
    return _made[-1]


def registered(alias: str = "default") -> Scheduler:
    """One with a process row, so that others know which tasks it has."""
    made = scheduler(alias)
    made._register()
    return made


def since(when: datetime) -> None:
    """Make every recurring task as old as this."""
    RecurringTask.objects.update(created_at=when, updated_at=when)


def fired(key: str | None = None, alias: str = "default") -> list[datetime]:
    rows = RecurringExecution.objects.filter(backend_alias=alias).order_by("run_at")
    return list((rows.filter(task_key=key) if key else rows).values_list("run_at", flat=True))


def minutely(**more: Any) -> dict[str, Any]:
    return {"task_path": ADD, "schedule": "* * * * *", "args": [1, 2], **more}


database = pytest.mark.django_db(transaction=True)


@database
def test_a_new_task_waits_for_its_next_occurrence(configure: Any, clock: Clock) -> None:
    configure(recurring={"m": minutely()})
    runner = scheduler()
    recurring.tasks(runner.config)
    since(START)
    for _ in range(3):
        runner.step()
    assert fired() == []
    clock += 29 * SECOND
    runner.step()
    assert fired() == []
    clock += SECOND
    runner.step()
    runner.step()
    assert fired() == [START.replace(minute=1, second=0)]
    assert states() == {"ready": 1}


@database
def test_each_tick_fires_once(configure: Any, clock: Clock) -> None:
    configure(recurring={"m": minutely()})
    runners = [scheduler() for _ in range(3)]
    recurring.tasks(runners[0].config)
    since(START)
    for _ in range(120):
        for runner in runners:
            runner.step()
        clock += 7 * SECOND
    assert fired() == [START.replace(second=0) + n * MINUTE for n in range(1, 15)]
    assert Job.objects.count() == 14
    assert RecurringExecution.objects.filter(job=None).count() == 0


@database
def test_threads_that_enqueue_the_same_tick(configure: Any) -> None:
    configure(recurring={"m": minutely()})
    config = backend_config()
    (task,) = recurring.tasks(config)
    barrier = threading.Barrier(8)

    def enqueue(n: int) -> int:
        won = 0
        try:
            for minute in range(10):
                barrier.wait()
                try:
                    recurring.enqueue_tick(config, task, START + minute * MINUTE)
                    won += 1
                except AlreadyRecorded:
                    pass
        finally:
            connections.close_all()
        return won

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(enqueue, range(8))) == 10
    assert len(fired()) == Job.objects.count() == 10
    assert states() == {"ready": 10}


@database
def test_a_tick_and_its_job_are_one_transaction(configure: Any, monkeypatch: Any) -> None:
    configure(recurring={"m": minutely()})
    config = backend_config()
    (task,) = recurring.tasks(config)

    def refuse(*args: Any) -> None:
        raise DatabaseError("no")

    with monkeypatch.context() as patched:
        patched.setattr(jobs, "write", refuse)
        with pytest.raises(DatabaseError):
            recurring.enqueue_tick(config, task, START)
    assert fired() == []
    recurring.enqueue_tick(config, task, START)
    with pytest.raises(AlreadyRecorded):
        recurring.enqueue_tick(config, task, START)
    assert Job.objects.count() == len(fired()) == 1


@database
def test_two_aliases_with_the_same_key(configure: Any, clock: Clock) -> None:
    configure(recurring={"m": minutely()}, other={"recurring": {"m": minutely(task_path=ECHO)}})
    runners = [scheduler(), scheduler("other")]
    for runner in runners:
        recurring.tasks(runner.config)
    since(START)
    for runner in runners:
        runner.step()
    clock += MINUTE
    for runner in runners:
        runner.step()
    assert fired() == fired(alias="other") == [START.replace(minute=1, second=0)]
    assert set(Job.objects.values_list("backend_alias", "task_path")) == {("default", ADD), ("other", ECHO)}
    assert RecurringTask.objects.count() == 2


@database
def test_everything_reaches_the_job(configure: Any, clock: Clock) -> None:
    options = {
        "task_path": ECHO, "schedule": "* * * * *", "args": [1, "ä", None], "kwargs": {"k": {"deep": [1.5]}},
        "queue_name": "reports", "priority": -7, "description": "what it is for", "timezone": BERLIN,
    }  # fmt: skip
    configure(recurring={"m": options})
    runner = scheduler()
    recurring.tasks(runner.config)
    since(START - HOUR)
    runner.step()
    job = Job.objects.get()
    assert (job.task_path, job.queue_name, job.priority, job.scheduled_at) == (ECHO, "reports", -7, None)
    assert job.payload == {"args": [1, "ä", None], "kwargs": {"k": {"deep": [1.5]}}}
    assert job.recurring_execution.task_key == "m"
    row = RecurringTask.objects.get()
    assert (row.description, row.timezone, row.static) == ("what it is for", BERLIN, True)
    (done,) = work()
    assert done.value == {"args": [1, "ä", None], "kwargs": {"k": {"deep": [1.5]}}}


@database
def test_a_recurring_task_respects_its_concurrency_limit(configure: Any, clock: Clock) -> None:
    configure(recurring={"m": minutely(task_path="tests.project.tasks.one_or_none", args=["k"])})
    runner = scheduler()
    recurring.tasks(runner.config)
    since(START - HOUR)
    for _ in range(3):
        runner.step()
        clock += MINUTE
    assert states() == {"ready": 1, "finished": 2}
    assert len(fired()) == 3


# ---- missed ticks -----------------------------------------------------------------------------------


def noon(**more: Any) -> dict[str, Any]:
    return {"noon": minutely(schedule="0 12 * * *", **more)}


@database
def test_a_missed_tick_is_made_up_for_once(configure: Any, clock: Clock) -> None:
    configure(recurring=noon())
    recurring.tasks(backend_config())
    since(START - 10 * DAY)
    clock += 5 * HOUR
    for runner in (scheduler(), scheduler()):
        for _ in range(3):
            runner.step()
    # The latest one, and none of the nine before.
    assert fired() == [utc(2026, 6, 1, 12)]
    assert Job.objects.count() == 1


@database
@pytest.mark.parametrize("late", [10 * MINUTE, DAY + SECOND, 6 * DAY], ids=str)
@pytest.mark.parametrize("where", ["task", "scheduler", "dynamic task"])
@pytest.mark.parametrize("catch_up", ["latest", "none"])
def test_a_missed_tick_is_made_up_for_however_long_ago(
    late: timedelta, where: str, catch_up: str, configure: Any, clock: Clock, caplog: Any
) -> None:
    policy = {"catch_up": catch_up}
    weekly = minutely(schedule="0 12 * * 1", **({} if where == "scheduler" else policy))  # 1 June 2026 is a Monday
    if where == "dynamic task":
        configure(scheduler={"dynamic_tasks_enabled": True, "catch_up": "none" if catch_up == "latest" else "latest"})
        api.schedule_recurring_task(key="weekly", **weekly)
    else:
        configure(recurring={"weekly": weekly}, scheduler=policy if where == "scheduler" else {})
        recurring.tasks(backend_config())
    since(START - 30 * DAY)
    clock.now = utc(2026, 6, 1, 12) + late
    with caplog.at_level("WARNING", "dj_queue"):
        for runner in (scheduler(), scheduler()):
            runner.step()
            runner.step()
    assert fired() == ([utc(2026, 6, 1, 12)] if catch_up == "latest" else [])
    skips = [record for record in caplog.records if "catch_up is none" in record.getMessage()]
    assert len(skips) == (0 if catch_up == "latest" else 2)  # each scheduler, once
    assert all("weekly, missed at 2026-06-01 12:00:00+00:00" in record.getMessage() for record in skips)
    clock.now = utc(2026, 6, 8, 12)
    runner.step()
    assert fired()[-1] == utc(2026, 6, 8, 12)


@database
def test_without_catching_up_a_tick_may_be_late_by_a_poll(configure: Any, clock: Clock) -> None:
    configure(recurring={"m": minutely(catch_up="none")})
    runner = scheduler()
    recurring.tasks(runner.config)
    since(START - DAY)
    clock.now = START.replace(second=50)
    runner.step()
    assert fired() == [START.replace(second=0)]


@database
def test_ticks_that_a_busy_scheduler_missed_are_logged(configure: Any, clock: Clock, caplog: Any) -> None:
    configure(recurring={"m": minutely()})
    runner = scheduler()
    recurring.tasks(runner.config)
    since(START)
    runner.step()
    clock += 5 * MINUTE
    with caplog.at_level("WARNING", "dj_queue"):
        runner.step()
    assert fired() == [START.replace(second=0) + 5 * MINUTE]
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "m" in record.getMessage()
    assert "2026-06-01 12:01:00+00:00" in record.getMessage()


@database
def test_a_changed_schedule_begins_with_its_next_tick(configure: Any, clock: Clock) -> None:
    configure(recurring=noon())
    recurring.tasks(backend_config())
    since(START - 10 * DAY)
    scheduler().step()
    assert len(fired()) == 1
    configure(recurring={"noon": minutely(schedule="0 11 * * *")})
    runner = scheduler()
    recurring.tasks(runner.config)
    assert RecurringTask.objects.get().updated_at > START - 10 * DAY
    since(START)
    runner.step()
    assert len(fired()) == 1  # not the 11:00 of today, which it never had
    clock.now = utc(2026, 6, 2, 11)
    runner.step()
    assert fired()[-1] == utc(2026, 6, 2, 11)


# ---- static tasks -----------------------------------------------------------------------------------


def table(alias: str = "default") -> dict[str, tuple[Any, ...]]:
    rows = RecurringTask.objects.filter(backend_alias=alias)
    return {row.key: (row.schedule, row.task_path, row.payload, row.static) for row in rows}


@database
def test_static_tasks_are_added_changed_and_removed(configure: Any, clock: Clock) -> None:
    configure(recurring={"a": minutely(), "b": minutely()}, other={"recurring": {"a": minutely()}})
    registered("other").step()
    first = registered()
    first.step()
    first._deregister()
    assert set(table()) == {"a", "b"}
    since(START - DAY)
    payload = {"args": [1, 2], "kwargs": {}}
    configure(recurring={"b": minutely(schedule="0 * * * *"), "c": minutely(args=[3, 4])})
    second = registered()
    second.step()
    second._deregister()
    assert table() == {
        "b": ("0 * * * *", ADD, payload, True),
        "c": ("* * * * *", ADD, {"args": [3, 4], "kwargs": {}}, True),
    }
    assert set(table("other")) == {"a"}
    configure()
    registered().step()
    assert table() == {}


@database
def test_a_change_of_anything_else_keeps_the_schedule_going(configure: Any, clock: Clock) -> None:
    configure(recurring={"m": minutely()})
    recurring.tasks(backend_config())
    since(START - DAY)
    configure(recurring={"m": minutely(priority=5, queue_name="q", description="d", args=[5, 6])})
    (row,) = recurring.tasks(backend_config())
    assert row.updated_at == START - DAY
    assert (row.priority, row.queue_name, row.description, row.payload["args"]) == (5, "q", "d", [5, 6])


@database
@pytest.mark.parametrize(
    "arguments",
    [{}, {"args": ((1, 2), {"x": (3,)})}, {"kwargs": {"k": (1, (2,))}}, {"args": [1e300, 1e16, 0.1]},
     {"args": [True, None, "ü"]}],
    ids=str,
)  # fmt: skip
def test_a_second_look_writes_nothing(arguments: Any, configure: Any) -> None:
    configure(recurring={"m": {"task_path": ECHO, "schedule": "* * * * *", **arguments}})
    recurring.tasks(backend_config())
    with CaptureQueriesContext(connection) as captured:
        recurring.tasks(backend_config())
    assert [query["sql"] for query in captured if not query["sql"].startswith("SELECT")] == []
    assert len(captured) == 1


@database
def test_a_static_task_takes_a_dynamic_one_s_place(configure: Any) -> None:
    api.schedule_recurring_task(key="m", task_path=ECHO, schedule="0 0 * * *")
    api.schedule_recurring_task(key="dynamic", task_path=ECHO, schedule="0 0 * * *")
    configure(recurring={"m": minutely()})
    assert [row.key for row in recurring.tasks(backend_config())] == ["m"]
    assert {key: row[3] for key, row in table().items()} == {"m": True, "dynamic": False}


@database
@pytest.mark.parametrize("text", ["nul \0 in it", "lone \udc80 surrogate"], ids=["NUL", "surrogate"])
@pytest.mark.parametrize("place", ["args", "kwargs", "description", "key"])
def test_text_that_cannot_be_stored_stops_only_its_task(
    place: str, text: str, configure: Any, clock: Clock, caplog: Any
) -> None:
    bad = {"args": {"args": [text]}, "kwargs": {"kwargs": {"k": text}}, "description": {"description": text}}.get(
        place, {}
    )
    key = text if place == "key" else "bad"
    configure(recurring={key: minutely(**bad), "good": minutely()})
    try:
        runner = scheduler()
    except ImproperlyConfigured:
        return  # said at start
    runner.step()
    since(START - HOUR)
    runner.step()
    assert START.replace(second=0) in fired("good")


# ---- rows that are wrong ----------------------------------------------------------------------------

BAD_ROWS = {
    "task gone": {"task_path": "gone.away.task"},
    "not a task": {"task_path": "tests.project.tasks.not_a_task"},
    "cron garbage": {"schedule": "every tuesday"},
    "no such zone": {"timezone": "Mars/Olympus"},
    "payload of another shape": {"payload": {"something": 1}},
    "payload not a mapping": {"payload": [1]},
    "arguments that do not fit the key": {"task_path": "tests.project.tasks.one_per_key", "payload": None},
}


@database
@pytest.mark.parametrize("bad", BAD_ROWS)
def test_a_bad_row_stops_only_itself(bad: str, configure: Any, clock: Clock, caplog: Any) -> None:
    configure(recurring={"a-good": minutely(), "z-good": minutely()}, scheduler={"dynamic_tasks_enabled": True})
    row = {"key": "m", "task_path": ADD, "schedule": "* * * * *", "payload": {"args": [1, 2], "kwargs": {}}}
    RecurringTask.objects.create(**{**row, **BAD_ROWS[bad]})
    runner = scheduler()
    recurring.tasks(runner.config)
    since(START - HOUR)
    for _ in range(4):
        runner.step()
        runner.step()
        clock += MINUTE
    expected = [START.replace(second=0) + n * MINUTE for n in range(4)]
    assert fired("a-good") == fired("z-good") == expected
    assert fired("m") == []
    told = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert told
    assert {record.thread_error_context for record in told} == {"scheduler.run:m"}
    assert len(told) <= 5, "told at every poll"


@database
def test_a_tick_that_could_not_be_enqueued_comes_when_its_task_is_back(configure: Any, clock: Clock) -> None:
    configure(recurring={"noon": minutely(schedule="0 12 * * *", task_path="tests.project.tasks.soon_there")})
    runner = scheduler()
    recurring.tasks(runner.config)
    since(START - DAY)
    runner.step()
    assert fired() == []
    RecurringTask.objects.update(task_path=ADD)  # another process deploys it
    configure(recurring=noon())
    runner.config = backend_config()
    clock += 2 * MINUTE
    runner.step()
    runner.step()
    assert fired() == [utc(2026, 6, 1, 12)]


@database
@pytest.mark.parametrize(("year", "expected"), [(2020, []), (2026, [utc(2026, 7, 1)]), (2035, [])])
def test_a_schedule_of_one_year(year: int, expected: list[datetime], configure: Any, clock: Clock, caplog: Any) -> None:
    """Before its year and after it there is nothing to do, and nothing wrong."""
    configure(recurring={"m": minutely(schedule=f"0 0 1 7 * 0 {year}")})
    runner = scheduler()
    recurring.tasks(runner.config)
    since(START - 300 * DAY)
    for _ in range(3):
        runner.step()
    clock.now = utc(2026, 7, 1, 0, 0, 3)
    runner.step()
    clock.now = utc(2026, 9, 1)
    scheduler().step()
    runner.step()
    assert fired() == expected
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


# ---- dynamic tasks ----------------------------------------------------------------------------------


def dynamic(**more: Any) -> RecurringTask:
    return api.schedule_recurring_task(
        **{"key": "m", "task_path": ADD, "schedule": "* * * * *", "args": [1, 2], **more}
    )


@database
def test_schedule_change_and_unschedule() -> None:
    first = dynamic()
    assert (first.key, first.static, first.backend_alias) == ("m", False, "default")
    since(START)
    second = dynamic(
        task_path=ECHO, kwargs={"k": [1]}, args=(3,), queue_name="q", priority=9, description="d", timezone=BERLIN
    )
    assert second.pk == first.pk
    row = RecurringTask.objects.get()
    assert row.updated_at > START  # the time zone is part of the schedule
    assert (row.task_path, row.payload, row.queue_name, row.priority, row.description, row.timezone) == (
        ECHO, {"args": [3], "kwargs": {"k": [1]}}, "q", 9, "d", BERLIN,
    )  # fmt: skip
    assert api.unschedule_recurring_task("m") == 1
    assert api.unschedule_recurring_task("m") == 0
    assert not RecurringTask.objects.exists()


@database
def test_the_async_forms() -> None:
    row = async_to_sync(api.aschedule_recurring_task)(key="m", task_path=ADD, schedule="@daily", args=[1, 2])
    assert RecurringTask.objects.get() == row
    assert async_to_sync(api.aunschedule_recurring_task)("m") == 1
    with pytest.raises(ValidationError):
        async_to_sync(api.aschedule_recurring_task)(key="m", task_path=ADD, schedule="no")


@database
@pytest.mark.parametrize("enabled", [True, False])
def test_dynamic_tasks_fire_if_enabled(enabled: bool, configure: Any, clock: Clock) -> None:
    configure(scheduler={"dynamic_tasks_enabled": enabled}, recurring={"static": minutely()})
    dynamic()
    runner = scheduler()
    recurring.tasks(runner.config)
    since(START - HOUR)
    runner.step()
    assert len(fired("static")) == 1
    assert len(fired("m")) == enabled
    assert RecurringTask.objects.filter(key="m").exists()
    api.unschedule_recurring_task("m")
    clock += MINUTE
    runner.step()
    assert len(fired("m")) == enabled


@database
def test_a_running_scheduler_finds_what_is_scheduled(configure: Any, clock: Clock) -> None:
    configure(scheduler={"dynamic_tasks_enabled": True})
    runner = scheduler()
    runner.step()
    dynamic()
    since(START)
    runner.step()
    assert fired() == []
    clock += MINUTE
    runner.step()
    assert len(fired()) == 1
    dynamic(schedule="0 0 * * *")
    since(clock.now)
    clock += 5 * MINUTE
    runner.step()
    assert len(fired()) == 1


@database
def test_static_keys_are_refused(two_aliases: None, configure: Any) -> None:
    configure(recurring={"m": minutely()})
    recurring.tasks(backend_config())
    before = table()
    with pytest.raises(ValidationError, match="settings"):
        dynamic(schedule="0 0 * * *")
    assert api.unschedule_recurring_task("m") == 0
    assert table() == before
    dynamic(backend_alias="other")
    assert api.unschedule_recurring_task("m", backend_alias="other") == 1
    assert table() == before


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "cron garbage": ({"schedule": "every tuesday"}, "every tuesday"),
    "cron empty": ({"schedule": ""}, "schedule"),
    "cron never fires": ({"schedule": "0 0 30 2 *"}, "never fires"),
    "cron random": ({"schedule": "R * * * *"}, "random"),
    "cron of seven letters": ({"schedule": "1 2 3 4 5 6 7 8"}, "schedule"),
    "cron None": ({"schedule": None}, "schedule"),
    "cron a number": ({"schedule": 5}, "schedule"),
    "cron too long": (
        {"schedule": ",".join(map(str, range(60))) + f" {','.join(map(str, range(24)))}" * 2 + " * *"},
        "255",
    ),
    "cron with NUL": ({"schedule": "* * * * *\0"}, "schedule"),
    "zone unknown": ({"timezone": "Mars/Olympus"}, "Mars/Olympus"),
    "zone empty": ({"timezone": ""}, "timezone"),
    "zone a path": ({"timezone": "../../etc/passwd"}, "timezone"),
    "zone a folder": ({"timezone": "Europe"}, "timezone"),
    "zone a number": ({"timezone": 5}, "timezone"),
    "path not importable": ({"task_path": "gone.away.task"}, "gone.away.task"),
    "path of no task": ({"task_path": "tests.project.tasks.not_a_task"}, "not a task"),
    "path of a module": ({"task_path": "tests.project.tasks"}, "tests.project.tasks"),
    "path empty": ({"task_path": ""}, "task"),
    "path None": ({"task_path": None}, "task"),
    "path too long": ({"task_path": "a." + "b" * 300}, "task_path"),
    "key empty": ({"key": ""}, "key"),
    "key too long": ({"key": "k" * 256}, "255"),
    "key None": ({"key": None}, "key"),
    "key with NUL": ({"key": "a\0b"}, "key"),
    "key with a lone surrogate": ({"key": "a\udc80b"}, "key"),
    "args not JSON": ({"args": [object()]}, "JSON"),
    "args NaN": ({"args": [float("nan")]}, "JSON"),
    "args text": ({"args": "abc"}, "args"),
    "args a number": ({"args": 5}, "args"),
    "args a mapping": ({"args": {"a": 1}}, "args"),
    "kwargs a list": ({"kwargs": [1]}, "kwargs"),
    "kwargs a number": ({"kwargs": 5}, "kwargs"),
    "kwargs not text": ({"kwargs": {1: 2}}, "names"),
    "kwargs not JSON": ({"kwargs": {"a": {1}}}, "JSON"),
    "priority too high": ({"priority": 101}, "priority"),
    "priority text": ({"priority": "high"}, "priority"),
    "queue too long": ({"queue_name": "q" * 65}, "queue_name"),
    "queue empty": ({"queue_name": ""}, "queue_name"),
    "queue None": ({"queue_name": None}, "queue_name"),
    "description None": ({"description": None}, "description"),
    "description with NUL": ({"description": "a\0b"}, "description"),
    "arguments that do not fit the key": ({"task_path": "tests.project.tasks.one_per_key", "args": []}, "one_per_key"),
}


@database
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_validation_errors(mistake: str) -> None:
    wrong, said = MISTAKES[mistake]
    with pytest.raises(ValidationError) as caught:
        dynamic(**wrong)
    assert said in str(caught.value)
    assert not RecurringTask.objects.exists()


@database
def test_all_mistakes_are_said_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        dynamic(key="", schedule="no", timezone="Mars", task_path="gone.task")
    said = caught.value.messages
    assert len(said) == 4
    for place in ("key", "schedule", "timezone", "gone.task"):
        assert any(place in each for each in said)


@database
@pytest.mark.parametrize("key", ["k" * 255, "ключ 🔑 / with%_* anything"])
def test_keys_that_are_right(key: str) -> None:
    dynamic(key=key, description="ü" * 1000)
    assert api.unschedule_recurring_task(key) == 1


@database
def test_two_that_schedule_the_same_key_at_once() -> None:
    barrier = threading.Barrier(6)

    def add(n: int) -> int:
        barrier.wait()
        try:
            return dynamic(priority=n).pk
        finally:
            connections.close_all()

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(add, range(6)))) == 1
    assert RecurringTask.objects.count() == 1


# ---- reservations -----------------------------------------------------------------------------------


def reservations(*ages: timedelta, key: str = "m", with_jobs: bool = True) -> None:
    """Ticks so long ago, by the real clock, and their jobs."""
    for age in ages:
        job = Job.objects.get(pk=default_task_backend.enqueue(_add(), [1, 2], {}).id) if with_jobs else None
        RecurringExecution.objects.create(task_key=key, run_at=timezone.now() - age, job=job)


def _add() -> Any:
    from tests.project.tasks import add

    return add


@database
@pytest.mark.parametrize("batch", [1, 2, 500])
def test_cleanup_keeps_the_newest_reservation(batch: int, configure: Any) -> None:
    configure(other={})
    reservations(4 * DAY, 3 * DAY, 2 * DAY, key="old")
    reservations(4 * DAY, MINUTE, key="new")
    RecurringExecution.objects.create(backend_alias="other", task_key="old", run_at=timezone.now() - 9 * DAY)
    newest = max(fired("old"))
    config = backend_config()
    while retention.delete_recurring(config, older_than=0, batch_size=batch):
        pass
    assert fired("old") == [newest]
    assert len(fired("new")) == 1
    assert len(fired("old", "other")) == 1
    assert Job.objects.count() == 5


def _delete_finished() -> None:
    work()
    Job.objects.update(created_at=timezone.now() - DAY, finished_at=timezone.now() - DAY)
    assert retention.delete_finished(backend_config(), older_than=60) == 3


def _delete_failed() -> None:
    Job.objects.update(task_path="tests.project.tasks.fail", payload={"args": [], "kwargs": {}})
    work()
    FailedExecution.objects.update(created_at=timezone.now() - DAY)
    assert retention.delete_failed(backend_config(), older_than=60) == 3


def _discard_failed() -> None:
    Job.objects.update(task_path="tests.project.tasks.fail", payload={"args": [], "kwargs": {}})
    work()
    assert api.discard_failed_jobs() == 3


def _discard_ready() -> None:
    assert jobs.discard_ready_jobs() == 3


def _clear() -> None:
    assert api.QueueInfo("default").clear() == 3


def _finish_without_keeping() -> None:
    assert len(work()) == 3


GOES = [_delete_finished, _delete_failed, _discard_failed, _discard_ready, _clear, _finish_without_keeping]


@database
@pytest.mark.parametrize("go", GOES)
def test_a_tick_whose_job_is_deleted_does_not_fire_again(go: Callable[[], None], configure: Any, clock: Clock) -> None:
    configure(recurring={"m": minutely()}, preserve_finished_jobs=go is not _finish_without_keeping)
    runner, another = scheduler(), scheduler()
    recurring.tasks(runner.config)
    since(START)
    runner.step()
    another.step()
    for _ in range(3):
        clock += MINUTE
        runner.step()
    newest = max(fired())
    go()
    assert states() == {}
    assert newest in fired()
    another.step()  # later than the first, and its tick is long done
    scheduler().step()
    assert states() == {}
    assert max(fired()) == newest


@database
def test_a_scheduler_that_cleans_at_every_poll_fires_each_tick_once(configure: Any, clock: Clock) -> None:
    configure(
        recurring={"m": minutely()},
        clear_recurring_executions_after=0.001,
        clear_finished_jobs_after=0.001,
        clear_failed_jobs_after=0.001,
    )
    runner = scheduler()
    recurring.tasks(runner.config)
    since(START)
    count = 0
    for _ in range(30):
        runner._clean_at = 0
        runner.step()
        count += len(work())
        clock += 20 * SECOND
    assert count == len({START.replace(second=0) + n * MINUTE for n in range(1, 11)}) == 10


# ---- a real one -------------------------------------------------------------------------------------


@database
def test_a_real_scheduler_fires_and_works(runtime: Any) -> None:
    options = {
        "recurring": {"s": {"task_path": "tests.project.tasks.add", "schedule": "* * * * * *", "args": [1, 2]}},
        "scheduler": {"polling_interval": 5},
    }
    runtime(options=options, rows=3)
    wait_until(lambda: Job.objects.finished().count() >= 4, what="four ticks")
    found = fired("s")
    assert found == [found[0] + n * SECOND for n in range(len(found))]
    assert all(job.return_value == 3 for job in Job.objects.finished())
    for row in RecurringExecution.objects.all():
        assert timedelta() <= row.created_at - row.run_at < SECOND
    assert ReadyExecution.objects.count() <= 1

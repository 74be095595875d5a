"""Django's contract for task backends, and what contract.md adds to it."""

import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import IntegrityError, connection, transaction
from django.tasks import TaskResult, TaskResultStatus, default_task_backend, task_backends
from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist, TaskResultMismatch
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.utils import timezone

from dj_queue.api import aenqueue_on_commit, enqueue_on_commit
from dj_queue.backend import DjQueueBackend
from dj_queue.config import backend_config
from dj_queue.dialects import dialect_for
from dj_queue.exceptions import EnqueueError, TaskPathError
from dj_queue.models import ClaimedExecution, Job, Process, ReadyExecution, ScheduledExecution
from dj_queue.operations import execution
from tests.project import tasks
from tests.project.tasks import add, add_async, describe_context, echo, fail
from tests.working import WORKER, claim, name_case, run, states, work

pytestmark = pytest.mark.django_db

BACKEND = "dj_queue.backend.DjQueueBackend"
# What `TaskResult.refresh()` copies.
REFRESHED = (
    "errors",
    "_return_value",
    "finished_at",
    "started_at",
    "last_attempted_at",
    "status",
    "enqueued_at",
    "worker_ids",
)
EVERYTHING = (*REFRESHED, "id", "args", "kwargs", "backend", "task")


def fields(result: TaskResult, names: tuple[str, ...] = EVERYTHING) -> dict[str, Any]:
    return {name: getattr(result, name) for name in names}


def fetch(result: TaskResult) -> TaskResult:
    return task_backends[result.backend].get_result(result.id)


@pytest.fixture
def aliases(settings: Any) -> Callable[..., None]:
    """Set TASKS: `aliases(default={"QUEUES": []})`, all of them dj-queue's own."""

    def configure(**given: dict[str, Any]) -> None:
        settings.TASKS = {alias: {"BACKEND": BACKEND, **params} for alias, params in given.items()}

    return configure


def test_supports_everything_that_django_asks_for() -> None:
    backend = default_task_backend
    assert backend.supports_async_task is True
    assert backend.supports_defer is True
    assert backend.supports_get_result is True
    assert backend.supports_priority is True


# ---- enqueue ----------------------------------------------------------------------------------------


def test_enqueue_stores_a_ready_job() -> None:
    result = add.using(queue_name="email", priority=7).enqueue(1, b=2)
    job = Job.objects.get()
    assert (str(job.id), job.status) == (result.id, "ready")
    assert job.task_path == "tests.project.tasks.add"
    assert (job.queue_name, job.priority, job.backend_alias) == ("email", 7, "default")
    assert job.payload == {"args": [1], "kwargs": {"b": 2}}
    assert job.scheduled_at is job.finished_at is job.concurrency_key is None
    assert (job.ready_execution.queue_name, job.ready_execution.priority) == ("email", 7)


def test_enqueue_returns_what_is_then_fetched() -> None:
    result = add.enqueue(1, b=2)
    assert result.status == TaskResultStatus.READY
    assert result.id == str(uuid.UUID(result.id))
    assert fields(fetch(result)) == fields(result)
    assert result.attempts == 0
    assert result.is_finished is False
    with pytest.raises(ValueError, match="not finished"):
        result.return_value  # noqa: B018


def test_the_arguments_returned_are_those_fetched_and_those_passed_to_the_task() -> None:
    result = echo.enqueue((1, (2,)), b"text", {"k": (3,)}, None, 1.5, name={"deep": [b"x"]})
    assert result.args == [[1, [2]], "text", {"k": [3]}, None, 1.5]
    assert result.kwargs == {"name": {"deep": ["x"]}}
    assert (fetch(result).args, fetch(result).kwargs) == (result.args, result.kwargs)
    work()
    assert fetch(result).return_value == {"args": result.args, "kwargs": result.kwargs}


def test_arguments_changed_after_enqueue_change_nothing() -> None:
    items = [1]
    result = echo.enqueue(items)
    items.append(2)
    assert result.args == fetch(result).args == [[1]]


def test_async_verbs() -> None:
    async def scenario() -> tuple[TaskResult, TaskResult, TaskResult, list[TaskResult]]:
        backend = default_task_backend
        result = await add.aenqueue(1, b=2)
        mine = await add.aget_result(result.id)
        fetched = await backend.aget_result(result.id)
        many = await backend.aenqueue_all([(add, [i], {"b": i}) for i in range(3)])
        return result, mine, fetched, many

    result, mine, fetched, many = async_to_sync(scenario)()
    assert fields(result) == fields(mine) == fields(fetched)
    assert [each.args for each in many] == [[0], [1], [2]]
    assert states() == {"ready": 4}


def test_async_errors_are_those_of_the_sync_verbs() -> None:
    with pytest.raises(EnqueueError):
        async_to_sync(add.aenqueue)({1}, 2)
    with pytest.raises(EnqueueError):
        async_to_sync(default_task_backend.aenqueue_all)([(add, [{1}], {})])
    with pytest.raises(TaskResultDoesNotExist):
        async_to_sync(default_task_backend.aget_result)("nonsense")


# ---- enqueue_all ------------------------------------------------------------------------------------


def test_enqueue_all_keeps_the_order_of_the_calls() -> None:
    """Also where jobs go to different states and tables."""
    later = timezone.now() + timedelta(hours=1)
    calls = [
        (add, [1, 2], {}),
        (add.using(run_after=later), [3], {"b": 4}),
        (tasks.one_per_key, ["k"], {}),
        (echo.using(priority=5, queue_name="other"), [], {"x": 1}),
        (tasks.one_per_key, ["k"], {}),
    ]
    results = default_task_backend.enqueue_all(calls)
    assert [(each.args, each.kwargs) for each in results] == [(args, kwargs) for _, args, kwargs in calls]
    assert [each.task.func for each in results] == [task.func for task, _, _ in calls]
    assert [each.id for each in results] == sorted(each.id for each in results)
    for each in results:
        assert fields(fetch(each)) == fields(each)
    assert states() == {"ready": 3, "scheduled": 1, "blocked": 1}


@pytest.mark.parametrize("bad", [0, 1, 2], ids=["first", "middle", "last"])
@pytest.mark.parametrize(
    ("call", "error"),
    [
        ((add, [{1}, 2], {}), EnqueueError),
        ((tasks.renamed, [], {}), EnqueueError),
        ((tasks.one_per_key, [], {}), EnqueueError),
    ],
    ids=["arguments", "path", "concurrency key"],
)
def test_enqueue_all_stores_nothing_when_one_call_is_bad(call: Any, error: Any, bad: int) -> None:
    calls: list[Any] = [(add, [1, 2], {}), (tasks.one_per_key, ["k"], {})]
    calls.insert(bad, call)
    with pytest.raises(error):
        default_task_backend.enqueue_all(calls)
    assert Job.objects.count() == 0


def test_enqueue_all_stores_nothing_when_one_task_is_invalid(aliases: Callable[..., None]) -> None:
    email = add.using(queue_name="email")
    aliases(default={"QUEUES": ["default"]})
    with pytest.raises(InvalidTask):
        default_task_backend.enqueue_all([(add, [1, 2], {}), (email, [1, 2], {})])
    assert Job.objects.count() == 0


@pytest.mark.django_db(transaction=True)
def test_enqueue_all_stores_nothing_when_the_database_fails_half_way(monkeypatch: Any) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise IntegrityError("no")

    monkeypatch.setattr(dialect_for("default"), "insert", refuse)
    with pytest.raises(IntegrityError):
        default_task_backend.enqueue_all([(tasks.one_per_key, ["k"], {}), (add, [1, 2], {})])
    assert Job.objects.count() == 0


def test_enqueue_all_of_nothing() -> None:
    assert default_task_backend.enqueue_all([]) == []
    assert default_task_backend.enqueue_all(iter(())) == []


def test_enqueue_all_takes_a_generator() -> None:
    results = default_task_backend.enqueue_all((add, (i, i), {}) for i in range(4))
    assert [each.args for each in results] == [[i, i] for i in range(4)]


def test_enqueue_all_stores_nothing_when_the_generator_fails() -> None:
    def calls() -> Iterator[Any]:
        yield add, [1, 2], {}
        raise LookupError("no more")

    with pytest.raises(LookupError):
        default_task_backend.enqueue_all(calls())
    assert Job.objects.count() == 0


def test_enqueue_all_of_5000_jobs() -> None:
    results = default_task_backend.enqueue_all((add, [i, i], {}) for i in range(5000))
    stored = Job.objects.filter(ready_execution__isnull=False).order_by("ready_execution__id")
    assert [(str(job.id), job.payload["args"]) for job in stored] == [(each.id, each.args) for each in results]
    assert len(results) == 5000


# ---- run_after, priority, queue_name ----------------------------------------------------------------


def test_run_after_in_the_future_schedules() -> None:
    later = timezone.now() + timedelta(hours=1)
    result = add.using(run_after=later, priority=4, queue_name="email").enqueue(1, 2)
    job = Job.objects.get()
    row = job.scheduled_execution
    assert (job.status, job.scheduled_at, row.scheduled_at) == ("scheduled", later, later)
    assert (row.priority, row.queue_name, row.backend_alias) == (4, "email", "default")
    assert result.status == fetch(result).status == TaskResultStatus.READY
    assert result.task.run_after == fetch(result).task.run_after == later
    assert work() == []


@pytest.mark.parametrize("limited", [False, True], ids=["free", "limited"])
def test_run_after_in_the_past_is_ready_at_once(limited: bool) -> None:
    earlier = timezone.now() - timedelta(hours=1)
    task, args = (tasks.one_per_key, ["k"]) if limited else (add, [1, 2])
    result = task.using(run_after=earlier).enqueue(*args)
    assert states() == {"ready": 1}
    assert not ScheduledExecution.objects.exists()
    assert fetch(result).task.run_after == earlier
    assert len(work()) == 1


def test_run_after_in_another_zone_is_the_same_moment() -> None:
    later = datetime(2100, 1, 1, 12, tzinfo=UTC)
    shifted = later.astimezone(timezone.get_fixed_timezone(timedelta(hours=-7)))
    result = add.using(run_after=shifted).enqueue(1, 2)
    assert fetch(result).task.run_after == later
    assert Job.objects.get().scheduled_execution.scheduled_at == later


@pytest.mark.parametrize(("given", "stored"), [(True, 1), (3.0, 3), (-100, -100), (100, 100), (0, 0), (False, 0)])
def test_priority_is_stored_as_an_int(given: Any, stored: int) -> None:
    result = add.using(priority=given).enqueue(1, 2)
    row = ReadyExecution.objects.get()
    priorities = [row.job.priority, row.priority, result.task.priority, fetch(result).task.priority]
    assert priorities == [stored] * 4
    assert {type(each) for each in priorities} == {int}


@pytest.mark.parametrize("priority", [-101, 101, 1.5, 10**9])
def test_priority_out_of_range(priority: Any) -> None:
    with pytest.raises(InvalidTask):
        add.using(priority=priority)


@pytest.mark.parametrize(
    ("params", "allowed", "refused"),
    [
        ({}, ["default"], ["email", "Default"]),
        ({"QUEUES": []}, ["default", "email", "a/b c"], []),
        ({"QUEUES": ["email", "sms"]}, ["email", "sms"], ["default", "e"]),
    ],
    ids=["absent", "empty", "named"],
)
def test_queues_that_are_allowed(
    aliases: Callable[..., None], params: dict[str, Any], allowed: list[str], refused: list[str]
) -> None:
    named = {name: add.using(queue_name=name) for name in allowed + refused}
    aliases(default=params)
    for name in allowed:
        assert add.using(queue_name=name).enqueue(1, 2).task.queue_name == name
    for name in refused:
        with pytest.raises(InvalidTask):
            add.using(queue_name=name)
        with pytest.raises(InvalidTask):  # made before the setting changed
            named[name].enqueue(1, 2)
    assert sorted(Job.objects.values_list("queue_name", flat=True)) == sorted(allowed)


@pytest.mark.parametrize("name", ["", "q" * 65, "nul\0", "surrogate\udc80", 5, b"bytes", True, ("a",)], ids=name_case)
def test_queue_names_that_no_database_can_store(name: Any) -> None:
    with pytest.raises(InvalidTask):
        add.using(queue_name=name)


@pytest.mark.parametrize("name", ["q" * 64, "ö" * 64, "\U0001f600" * 64, " ", "a/b?c=d&e", "%s %(x)s {y}"])
def test_queue_names_that_can_be_stored(name: str) -> None:
    result = add.using(queue_name=name).enqueue(1, 2)
    assert fetch(result).task.queue_name == name
    assert [job.result.id for job in work(queues=[name]) if job.result] == [result.id]


def test_a_naive_run_after_is_refused() -> None:
    with pytest.raises(InvalidTask):
        add.using(run_after=datetime(2100, 1, 1))


def test_validation_is_repeated_at_enqueue(aliases: Callable[..., None]) -> None:
    email = add.using(queue_name="email")
    aliases(default={"QUEUES": ["default"]})
    for enqueue in (email.enqueue, async_to_sync(email.aenqueue)):
        with pytest.raises(InvalidTask):
            enqueue(1, 2)
    assert Job.objects.count() == 0


# ---- results ----------------------------------------------------------------------------------------


def test_a_running_result() -> None:
    result = add.enqueue(1, 2)
    process = Process.objects.create(kind="Worker", pid=1, name="worker-7")
    claim(process_id=process.pk)
    running = fetch(result)
    assert running.status == TaskResultStatus.RUNNING
    assert running.started_at == running.last_attempted_at is not None
    assert running.worker_ids == ["worker-7"]
    assert running.attempts == 1
    assert running.finished_at is None
    with pytest.raises(ValueError, match="not finished"):
        running.return_value  # noqa: B018


def test_a_running_result_whose_worker_is_gone() -> None:
    result = add.enqueue(1, 2)
    claim()
    assert fetch(result).status == TaskResultStatus.RUNNING


def test_a_successful_result() -> None:
    result = add.enqueue(1, 2)
    (job,) = work()
    done = fetch(result)
    assert (done.status, done.return_value, done.is_finished) == (TaskResultStatus.SUCCESSFUL, 3, True)
    assert (done.worker_ids, done.attempts, done.errors) == ([WORKER], 1, [])
    assert done.started_at == done.last_attempted_at is not None
    assert job.result is not None
    assert fields(job.result) == fields(done)
    assert states() == {"finished": 1}


def test_a_failed_result() -> None:
    result = fail.enqueue("on purpose")
    (job,) = work()
    done = fetch(result)
    assert (done.status, done.is_finished) == (TaskResultStatus.FAILED, True)
    assert (done.worker_ids, done.attempts) == ([WORKER], 1)
    assert done.started_at == done.last_attempted_at is not None
    (error,) = done.errors
    assert error.exception_class is ValueError
    assert error.traceback.rstrip().endswith("ValueError: on purpose")
    assert "tests/project/tasks.py" in error.traceback
    assert "dj_queue/operations" not in error.traceback
    with pytest.raises(ValueError, match="failed"):
        done.return_value  # noqa: B018
    assert job.result is not None
    assert fields(job.result) == fields(done)
    assert states() == {"failed": 1}


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}, [None], {"": None}], ids=name_case)
def test_return_values_that_look_like_nothing(value: Any) -> None:
    result = tasks.return_given.enqueue(value)
    work()
    assert fetch(result).return_value == value
    assert type(fetch(result).return_value) is type(value)


def test_a_blocked_result_is_ready() -> None:
    _, second = (tasks.one_per_key.enqueue("k", value) for value in (1, 2))
    assert states() == {"ready": 1, "blocked": 1}
    assert second.status == fetch(second).status == TaskResultStatus.READY


def test_a_job_discarded_at_enqueue_is_successful() -> None:
    _, second = (tasks.one_or_none.enqueue("k") for _ in range(2))
    assert states() == {"ready": 1, "finished": 1}
    assert fields(fetch(second)) == fields(second)
    assert (second.status, second.return_value) == (TaskResultStatus.SUCCESSFUL, None)
    assert (second.attempts, second.started_at) == (0, None)
    assert second.finished_at is not None


@pytest.mark.parametrize("asynchronous", [False, True], ids=["refresh", "arefresh"])
@pytest.mark.parametrize(("task", "failed"), [(add, False), (fail, True)], ids=["successful", "failed"])
def test_refresh_brings_all_eight_attributes(task: Any, failed: bool, asynchronous: bool) -> None:
    result = task.enqueue(*["text"] if failed else [1, 2])
    refresh = async_to_sync(result.arefresh) if asynchronous else result.refresh
    before = fields(result, REFRESHED)
    jobs = claim()
    refresh()
    assert result.status == TaskResultStatus.RUNNING
    assert fields(result, REFRESHED) == fields(fetch(result), REFRESHED)
    execution.finish(backend_config(), run(jobs), worker=WORKER)
    refresh()
    after = fields(result, REFRESHED)
    assert after == fields(fetch(result), REFRESHED)
    changed = {name for name in REFRESHED if before[name] != after[name]}
    only = "errors" if failed else "_return_value"
    assert changed == {"status", "started_at", "finished_at", "last_attempted_at", "worker_ids", only}


UNKNOWN = "9c2bf384-e420-4e90-bb19-832ab49d083c"


@pytest.mark.parametrize(
    "result_id",
    [
        "",
        "nonsense",
        UNKNOWN,
        "0" * 32,
        "0" * 5000,
        "a\0b",
        "\udc80",
        "é" * 36,
        None,
        5,
        b"x",
        [],
    ],
    ids=name_case,
)
def test_ids_that_nobody_has(result_id: Any) -> None:
    add.enqueue(1, 2)
    with pytest.raises(TaskResultDoesNotExist):
        default_task_backend.get_result(result_id)
    with pytest.raises(TaskResultDoesNotExist):
        add.get_result(result_id)


def test_the_result_of_another_task() -> None:
    result = add.enqueue(1, 2)
    assert add.get_result(result.id).id == result.id
    with pytest.raises(TaskResultMismatch):
        echo.get_result(result.id)
    with pytest.raises(TaskResultMismatch):
        async_to_sync(echo.aget_result)(result.id)


def test_aliases_do_not_see_each_other(aliases: Callable[..., None]) -> None:
    aliases(default={"QUEUES": []}, other={"QUEUES": ["mail"]})
    here = add.enqueue(1, 2)
    there = add.using(backend="other", queue_name="mail").enqueue(3, 4)
    assert (here.backend, there.backend) == ("default", "other")
    with pytest.raises(TaskResultDoesNotExist):
        task_backends["default"].get_result(there.id)
    with pytest.raises(TaskResultDoesNotExist):
        task_backends["other"].get_result(here.id)
    fetched = fetch(there)
    assert (fetched.backend, fetched.task.backend, fetched.task.queue_name) == ("other", "other", "mail")
    assert [job.claim.job_id for job in work()] == [uuid.UUID(here.id)]
    there.refresh()
    assert there.status == TaskResultStatus.READY
    work(alias="other")
    there.refresh()
    assert there.return_value == 7


@pytest.mark.parametrize(
    "path",
    ["no_such_module.task", "tests.project.tasks.no_such_task", "tests.project.tasks.not_a_task", "nodots"],
)
@pytest.mark.parametrize("finished", [False, True], ids=["ready", "finished"])
def test_a_result_outlives_its_task(path: str, finished: bool) -> None:
    result = add.using(queue_name="email", priority=3).enqueue(1, 2)
    if finished:
        work()
    Job.objects.update(task_path=path)
    fetched = fetch(result)
    assert fetched.status == (TaskResultStatus.SUCCESSFUL if finished else TaskResultStatus.READY)
    assert (fetched.args, fetched.task.queue_name, fetched.task.priority) == ([1, 2], "email", 3)
    assert fetched.task.name == path.rpartition(".")[2]
    if "." in path:
        assert fetched.task.module_path == path
    fetched.refresh()
    with pytest.raises(TaskResultMismatch):
        add.get_result(result.id)
    with pytest.raises(TaskPathError):
        fetched.task.call(1, 2)
    with pytest.raises(EnqueueError):
        fetched.task.enqueue(1, 2)


def test_a_stored_job_whose_queue_is_no_longer_allowed(aliases: Callable[..., None]) -> None:
    result = add.using(queue_name="old", priority=9).enqueue(1, 2)
    aliases(default={"QUEUES": ["default"]})
    assert fetch(result).task.queue_name == "old"
    work()
    result.refresh()
    assert result.return_value == 3
    assert fetch(result).task.priority == 9


def test_finished_jobs_that_are_not_preserved(aliases: Callable[..., None]) -> None:
    aliases(default={"QUEUES": [], "OPTIONS": {"preserve_finished_jobs": False}})
    kept, gone = fail.enqueue(), add.enqueue(1, 2)
    jobs = work()
    assert states() == {"failed": 1}
    assert fetch(kept).status == TaskResultStatus.FAILED
    with pytest.raises(TaskResultDoesNotExist):
        fetch(gone)
    assert [job.result and job.result.status for job in jobs] == ["FAILED", "SUCCESSFUL"]


def test_times_are_aware_and_in_order() -> None:
    before = timezone.now() - timedelta(seconds=1)
    for result in (add.enqueue(1, 2), fail.enqueue()):
        work()
        done = fetch(result)
        times = [done.enqueued_at, done.started_at, done.last_attempted_at, done.finished_at]
        assert all(timezone.is_aware(time) for time in times if time)
        assert before <= times[0] <= times[1] <= times[2] <= times[3] <= timezone.now() + timedelta(seconds=1)


# ---- execution --------------------------------------------------------------------------------------


def test_async_tasks() -> None:
    result = add_async.enqueue(1, b=2)
    work()
    assert fetch(result).return_value == 3


@pytest.mark.parametrize("task", ["echo_names", "echo_names_async", "echo_names_with_context"])
def test_keywords_of_any_name_reach_the_task(task: str) -> None:
    names = ("function", "self", "task", "event", "awaitable", "args", "kwargs", "using")
    given = dict.fromkeys(names, 1)
    result = default_task_backend.enqueue(getattr(tasks, task), [], given)
    work()
    result.refresh()
    assert result.status is TaskResultStatus.SUCCESSFUL, result.errors
    assert result.return_value == sorted(given)


def test_a_task_that_takes_its_context() -> None:
    result = describe_context.enqueue(label="x")
    work()
    assert fetch(result).return_value == {"label": "x", "attempt": 1, "id": result.id}


# ---- signals ----------------------------------------------------------------------------------------


@pytest.fixture
def receive() -> Iterator[Callable[..., None]]:
    """Connect receivers for the time of a test: `receive(task_started, function)`."""
    connected: list[tuple[Any, Any]] = []

    def connect(signal: Any, receiver: Any) -> None:
        signal.connect(receiver, weak=False)
        connected.append((signal, receiver))

    yield connect
    for signal, receiver in connected:
        signal.disconnect(receiver)


@pytest.fixture
def heard(receive: Callable[..., None]) -> list[tuple[str, type, dict[str, Any]]]:
    """Every signal sent: its name, its sender, and the result's fields at that moment."""
    sent: list[tuple[str, type, dict[str, Any]]] = []

    def listen(name: str, signal: Any) -> None:
        def note(sender: type, task_result: TaskResult, **kwargs: Any) -> None:
            copies = {key: list(v) if isinstance(v, list) else v for key, v in fields(task_result).items()}
            sent.append((name, sender, {**copies, "exc_info": sys.exc_info()[1]}))

        receive(signal, note)

    listen("enqueued", task_enqueued)
    listen("started", task_started)
    listen("finished", task_finished)
    return sent


@pytest.mark.parametrize(
    ("task", "args", "status"),
    [(add, [1, 2], TaskResultStatus.SUCCESSFUL), (fail, ["x"], TaskResultStatus.FAILED)],
    ids=["successful", "failed"],
)
def test_signals_of_a_job(heard: list[Any], task: Any, args: list[Any], status: TaskResultStatus) -> None:
    result = task.enqueue(*args)
    work()
    names, senders, snapshots = zip(*heard, strict=True)
    assert names == ("enqueued", "started", "finished")
    assert set(senders) == {DjQueueBackend}
    assert {each["id"] for each in snapshots} == {result.id}
    enqueued, started, finished = snapshots
    assert (enqueued["status"], enqueued["worker_ids"]) == (TaskResultStatus.READY, [])
    assert (started["status"], started["worker_ids"]) == (TaskResultStatus.RUNNING, [WORKER])
    assert started["started_at"] == started["last_attempted_at"] is not None
    assert started["finished_at"] is None
    assert {name: finished[name] for name in EVERYTHING} == fields(fetch(result))
    assert finished["status"] == status


def test_finished_signals_of_failures_are_sent_inside_the_exception(heard: list[Any]) -> None:
    for task in (fail, add, tasks.raise_system_exit):
        task.enqueue(*([1, 2] if task is add else []))
    jobs = work()
    finished = [each["exc_info"] for name, _, each in heard if name == "finished"]
    assert [type(each) for each in finished] == [ValueError, type(None), SystemExit]
    assert finished == [job.exception for job in jobs]
    assert sys.exc_info()[1] is None


def test_django_logs_the_failure(caplog: Any) -> None:
    fail.enqueue("on purpose")
    with caplog.at_level("ERROR", logger="django.tasks"):
        work()
    (record,) = [each for each in caplog.records if each.name == "django.tasks"]
    assert record.exc_info[0] is ValueError
    assert "tests/project/tasks.py" in record.exc_text


def test_a_receiver_that_fails_breaks_nothing(receive: Callable[..., None], heard: list[Any]) -> None:
    def break_down(**kwargs: Any) -> None:
        raise RuntimeError("a receiver failed")

    for signal in (task_enqueued, task_started, task_finished):
        receive(signal, break_down)
    result = add.enqueue(1, 2)
    work()
    assert fetch(result).return_value == 3
    assert [name for name, _, _ in heard] == ["enqueued", "started", "finished"]


def test_bulk_enqueue_signals_each_job_in_order(heard: list[Any]) -> None:
    results = default_task_backend.enqueue_all([(add, [i, i], {}) for i in range(5)])
    assert [(name, each["id"]) for name, _, each in heard] == [("enqueued", each.id) for each in results]


def test_a_job_discarded_at_enqueue_was_enqueued_and_never_ran(heard: list[Any]) -> None:
    _, discarded = (tasks.one_or_none.enqueue("k") for _ in range(2))
    sent = [(name, each["status"]) for name, _, each in heard if each["id"] == discarded.id]
    assert sent == [("enqueued", TaskResultStatus.READY)]


def test_a_bad_call_is_not_signalled(heard: list[Any]) -> None:
    with pytest.raises(EnqueueError):
        default_task_backend.enqueue_all([(add, [1, 2], {}), (add, [{1}, 2], {})])
    assert heard == []


def in_another_connection(look: Callable[[], Any]) -> Any:
    seen: list[Any] = []

    def run_and_close() -> None:
        try:
            seen.append(look())
        finally:
            connection.close()

    thread = threading.Thread(target=run_and_close)
    thread.start()
    thread.join()
    return seen[0]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("limited", [False, True], ids=["free", "limited"])
def test_signals_are_sent_when_everybody_can_see_the_row(receive: Callable[..., None], limited: bool) -> None:
    """`task_enqueued` and `task_finished` come after the commit, not inside the transaction."""
    seen: dict[str, Any] = {}

    def look_up(name: str) -> Callable[..., None]:
        def look(task_result: TaskResult, **kwargs: Any) -> None:
            def status() -> str | None:
                return Job.objects.get(pk=task_result.id).status

            seen[name] = in_another_connection(status)

        return look

    receive(task_enqueued, look_up("enqueued"))
    receive(task_started, look_up("started"))
    receive(task_finished, look_up("finished"))
    if limited:
        tasks.one_per_key.enqueue("k")
    else:
        add.enqueue(1, 2)
    work()
    assert seen == {"enqueued": "ready", "started": "claimed", "finished": "finished"}


def test_a_lost_claim_is_not_announced(heard: list[Any]) -> None:
    """Whoever took the claim away has said what became of the job."""
    add.enqueue(1, 2)
    jobs = run(claim())
    ClaimedExecution.objects.all().delete()
    assert execution.finish(backend_config(), jobs, worker=WORKER) == []
    assert Job.objects.get().finished_at is None
    assert "finished" not in [name for name, _, _ in heard]


# ---- transactions -----------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("limited", [False, True], ids=["free", "limited"])
def test_enqueue_joins_the_transaction_of_its_caller(limited: bool) -> None:
    task, args = (tasks.one_per_key, ["k"]) if limited else (add, [1, 2])
    with transaction.atomic():
        task.enqueue(*args)
        assert Job.objects.count() == 1
        assert in_another_connection(Job.objects.count) == 0
        transaction.set_rollback(True)
    assert Job.objects.count() == ReadyExecution.objects.count() == 0
    with transaction.atomic():
        task.enqueue(*args)
    assert states() == {"ready": 1}


@pytest.mark.django_db(transaction=True)
def test_enqueue_writes_at_once_outside_a_transaction() -> None:
    add.enqueue(1, 2)
    assert in_another_connection(Job.objects.count) == 1


def test_a_bad_call_does_not_break_the_transaction_of_its_caller() -> None:
    with transaction.atomic():
        with pytest.raises(EnqueueError):
            add.enqueue({1}, 2)
        add.enqueue(1, 2)
    assert states() == {"ready": 1}


on_commit_verbs = pytest.mark.parametrize(
    "on_commit", [enqueue_on_commit, async_to_sync(aenqueue_on_commit)], ids=["sync", "async"]
)


@pytest.mark.django_db(transaction=True)
@on_commit_verbs
class TestEnqueueOnCommit:
    def test_commit(self, on_commit: Any, heard: list[Any]) -> None:
        with transaction.atomic():
            assert on_commit(add.using(priority=5), 1, b=2) is None
            assert Job.objects.count() == 0
            assert heard == []
        job = Job.objects.get()
        assert (job.priority, job.payload) == (5, {"args": [1], "kwargs": {"b": 2}})
        assert [name for name, _, _ in heard] == ["enqueued"]
        assert states() == {"ready": 1}

    def test_keywords_of_any_name(self, on_commit: Any) -> None:
        on_commit(tasks.echo_names, task=1, function=2)
        assert Job.objects.get().payload["kwargs"] == {"task": 1, "function": 2}

    def test_rollback(self, on_commit: Any) -> None:
        with transaction.atomic():
            on_commit(add, 1, 2)
            transaction.set_rollback(True)
        assert Job.objects.count() == 0

    def test_rollback_to_a_savepoint(self, on_commit: Any) -> None:
        with transaction.atomic():
            on_commit(add, 1, 2)
            with transaction.atomic():
                on_commit(add, 3, 4)
                transaction.set_rollback(True)
        assert [job.payload["args"] for job in Job.objects.all()] == [[1, 2]]

    def test_no_transaction(self, on_commit: Any) -> None:
        on_commit(add, 1, 2)
        assert states() == {"ready": 1}

    def test_mistakes_are_raised_at_the_call(self, on_commit: Any, aliases: Callable[..., None]) -> None:
        email = add.using(queue_name="email")
        with transaction.atomic():
            with pytest.raises(EnqueueError):
                on_commit(add, {1}, 2)
            with pytest.raises(EnqueueError):
                on_commit(tasks.renamed)
            with pytest.raises(EnqueueError):
                on_commit(tasks.one_per_key)
            aliases(default={"QUEUES": ["default"]})
            with pytest.raises(InvalidTask):
                on_commit(email, 1, 2)
        assert Job.objects.count() == 0

    def test_arguments_are_copied_at_the_call(self, on_commit: Any) -> None:
        items, options = [1], {"a": 1}
        with transaction.atomic():
            on_commit(echo, items, options=options)
            items.append(2)
            options["b"] = 2
        assert Job.objects.get().payload == {"args": [[1]], "kwargs": {"options": {"a": 1}}}

    def test_using_names_the_database_whose_commit_counts(self, on_commit: Any) -> None:
        with transaction.atomic():
            on_commit(add, 1, 2, using="default")
            assert Job.objects.count() == 0
        assert Job.objects.count() == 1
        with pytest.raises(Exception, match="no_such_database"):
            on_commit(add, 1, 2, using="no_such_database")

    def test_a_task_of_another_backend(self, on_commit: Any, settings: Any) -> None:
        dummy = {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}
        settings.TASKS = {"default": {"BACKEND": BACKEND, "QUEUES": []}, "dummy": dummy}
        with transaction.atomic():
            on_commit(add.using(backend="dummy"), 1, b=2)
            assert task_backends["dummy"].results == []
        (result,) = task_backends["dummy"].results
        assert (result.args, result.kwargs) == ([1], {"b": 2})
        assert Job.objects.count() == 0

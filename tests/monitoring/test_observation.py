"""What an observation says, and what it costs."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from dj_queue.api import QueueInfo, schedule_recurring_task
from dj_queue.config import backend_config
from dj_queue.dialects import dialect_for
from dj_queue.models import Job, Pause, Process, ReadyExecution, RecurringExecution, RecurringTask, Semaphore
from dj_queue.operations import execution, observation
from dj_queue.operations.observation import Observation, ObservedQueue, observe
from tests.project.tasks import add, fail, one_per_key
from tests.working import claim, work

pytestmark = pytest.mark.django_db(transaction=True)


def look(**options: Any) -> Observation:
    return observe(backend_config(), **options)


def queue(name: str, **options: Any) -> ObservedQueue:
    (found,) = [each for each in look(**options).queues if each.name == name]
    return found


def counts(seen: ObservedQueue) -> dict[str, int]:
    states = ("ready", "scheduled", "claimed", "blocked", "failed", "finished")
    return {state: getattr(seen, state) for state in states if getattr(seen, state)}


def fill(name: str, count: int, task: Any = add, args: tuple[Any, ...] = (1, 2)) -> None:
    task = task.using(queue_name=name)
    task.get_backend().enqueue_all((task, args, {}) for _ in range(count))


# ---- queues -----------------------------------------------------------------------------------------


def test_nothing_at_all() -> None:
    seen = look()
    assert (seen.queues, seen.processes, seen.recurring, seen.semaphores) == ((), (), (), ())
    assert (seen.semaphore_count, seen.capped, seen.backend_alias, seen.database_alias) == (0, (), "default", "default")
    assert abs(seen.now - timezone.now()) < timedelta(minutes=1)


def test_every_state_of_a_queue() -> None:
    fill("q", 2)
    work(2, queues=["q"])
    fill("q", 1, fail, ())
    work(1, queues=["q"])
    fill("q", 5)
    claim(2, queues=["q"])
    add.using(queue_name="q", run_after=timezone.now() + timedelta(hours=1)).enqueue(1, 2)
    for _ in range(3):
        one_per_key.using(queue_name="q").enqueue("k")
    seen = queue("q")
    assert counts(seen) == {"ready": 4, "claimed": 2, "scheduled": 1, "blocked": 2, "failed": 1, "finished": 2}
    assert seen.capped == ()
    assert seen.oldest_scheduled_at == Job.objects.scheduled().get().scheduled_at
    assert seen.oldest_blocked_at is not None
    assert seen.oldest_blocked_at <= look().now


def test_queues_of_other_aliases_are_not_listed(settings: Any) -> None:
    settings.TASKS = {**settings.TASKS, "mail": settings.TASKS["default"]}
    add.using(backend="mail", queue_name="letters").enqueue(1, 2)
    fill("mine", 1)
    claim(1, queues=["letters"], alias="mail")
    assert [each.name for each in look().queues] == ["mine"]
    (letters,) = observe(backend_config("mail")).queues
    assert (letters.name, counts(letters)) == ("letters", {"claimed": 1})


def test_a_queue_is_listed_for_a_job_a_pause_or_a_recurring_task() -> None:
    fill("a job", 1)
    work()
    QueueInfo("a pause").pause()
    schedule_recurring_task(
        key="r", task_path="tests.project.tasks.add", args=(1, 2), schedule="0 3 * * *", queue_name="a recurring task"
    )
    QueueInfo("a job").pause()
    seen = look().queues
    assert [(each.name, each.paused) for each in seen] == [
        ("a job", True),
        ("a pause", True),
        ("a recurring task", False),
    ]
    assert counts(seen[0]) == {"finished": 1}


@pytest.mark.parametrize("name", ["a/b", "ünïcödé", "q'uote\"", "100%", "a\\b", " "])
def test_any_queue_name(name: str) -> None:
    fill(name, 1)
    assert counts(queue(name)) == {"ready": 1}
    assert counts(queue(name, cap=1)) == {"ready": 1}


def test_finished_jobs_that_are_not_preserved_do_not_count(settings: Any) -> None:
    settings.TASKS = {"default": {**settings.TASKS["default"], "OPTIONS": {"preserve_finished_jobs": False}}}
    fill("q", 2)
    work(1)
    assert counts(queue("q")) == {"ready": 1}


# ---- caps -------------------------------------------------------------------------------------------


def test_a_count_at_its_cap_is_exact_and_beyond_it_a_lower_bound() -> None:
    fill("q", 3)
    exact = queue("q", cap=3)
    assert (counts(exact), exact.capped) == ({"ready": 3}, ())
    bound = queue("q", cap=2)
    assert (bound.ready, bound.capped) == (2, ("ready", "finished"))


def test_finished_beyond_the_cap() -> None:
    fill("q", 4)
    work()
    seen = queue("q", cap=3)
    assert (counts(seen), seen.capped) == ({"finished": 3}, ("finished",))
    seen = queue("q", cap=4)
    assert (counts(seen), seen.capped) == ({"finished": 4}, ())
    seen = queue("q", cap=1)
    assert (counts(seen), seen.capped) == ({"finished": 1}, ("finished",))


def test_finished_jobs_are_never_overstated() -> None:
    """While another state is beyond the cap, the difference says nothing of them: the oldest jobs are looked at."""
    fill("q", 2)
    work()
    fill("q", 8)
    seen = queue("q", cap=4)
    assert (counts(seen), seen.capped) == ({"ready": 4, "finished": 2}, ("ready", "finished"))
    seen = queue("q", cap=1)
    assert (counts(seen), seen.capped) == ({"ready": 1, "finished": 1}, ("ready", "finished"))


@pytest.mark.parametrize("cap", [1, 2, 3, 5, 8, 20])
def test_no_count_exceeds_what_is_there(cap: int) -> None:
    fill("q", 4)
    work()
    fill("q", 3, fail, ())
    work()
    fill("q", 6)
    claim(2, queues=["q"])
    there = {"ready": 4, "claimed": 2, "failed": 3, "finished": 4}
    seen = queue("q", cap=cap)
    for state, count in counts(seen).items():
        assert count <= there[state], seen
        assert state in seen.capped or count == there[state], seen


def test_claims_beyond_the_cap_are_said_of_every_queue() -> None:
    fill("a", 3)
    fill("b", 1)
    claim(4)
    seen = look(cap=2)
    assert all("claimed" in each.capped for each in seen.queues)
    assert sum(each.claimed for each in seen.queues) == 2


def test_lists_that_are_cut_short_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUEUES", "PROCESSES", "RECURRING", "SEMAPHORES"):
        monkeypatch.setattr(observation, f"MOST_{name}", 2)
    for n in range(3):
        fill(f"q{n}", 1)
        Process.objects.create(kind="Worker", pid=n, name=f"worker-{n}")
        RecurringTask.objects.create(key=f"r{n}", task_path="x.y", schedule="* * * * *", queue_name="q0")
        one_per_key.using(queue_name="q0").enqueue(str(n))
    seen = look()
    assert seen.capped == ("processes", "queues", "recurring", "semaphores")
    assert [each.name for each in seen.queues] == ["q0", "q1"]
    assert [each.key for each in seen.recurring] == ["r0", "r1"]
    assert (len(seen.processes), len(seen.semaphores), seen.semaphore_count) == (2, 2, 3)


# ---- latency ----------------------------------------------------------------------------------------


def aged(queue_name: str, seconds: float, **values: Any) -> None:
    ReadyExecution.objects.filter(queue_name=queue_name).update(
        created_at=timezone.now() - timedelta(seconds=seconds), **values
    )


def test_latency_is_of_the_longest_waiting_job_whatever_its_priority() -> None:
    for priority in (100, 0, -100):
        add.using(queue_name="q", priority=priority).enqueue(1, 2)
    ReadyExecution.objects.filter(priority=-100).update(created_at=timezone.now() - timedelta(seconds=600))
    assert queue("q").latency_seconds == pytest.approx(600, abs=30)


def test_no_latency_without_ready_jobs_or_while_paused() -> None:
    fill("q", 1)
    aged("q", 600)
    assert queue("q").latency_seconds == pytest.approx(600, abs=30)
    QueueInfo("q").pause()
    assert queue("q").latency_seconds is None
    Pause.objects.update(created_at=timezone.now() - timedelta(seconds=500))
    QueueInfo("q").resume()
    assert queue("q").latency_seconds == pytest.approx(100, abs=30)
    work()
    assert queue("q").latency_seconds is None


def test_a_job_that_was_given_back_to_the_front_hides_no_older_one() -> None:
    fill("q", 3)
    aged("q", 600)
    execution.release(backend_config(), claim(1, queues=["q"]))
    ReadyExecution.objects.filter(pk=ReadyExecution.objects.earliest("pk").pk).update(created_at=timezone.now())
    assert queue("q").latency_seconds == pytest.approx(600, abs=30)


# ---- processes, recurring tasks, semaphores ---------------------------------------------------------


def worker(name: str, *queues: str, age: float = 0, kind: str = "Worker") -> Process:
    row = Process.objects.create(kind=kind, pid=1, name=name, metadata={"queues": list(queues)})
    Process.objects.filter(pk=row.pk).update(last_heartbeat_at=timezone.now() - timedelta(seconds=age))
    return row


def test_live_workers_of_a_queue() -> None:
    worker("worker-1", "*")
    worker("worker-2", "em*", "x")
    worker("worker-3", "email", "*")
    worker("worker-4", "*", age=10_000)
    worker("dispatcher-1", "*", kind="Dispatcher")
    for name in ("email", "emails", "Email", "x"):
        fill(name, 1)
    found = {each.name: each.live_worker_count for each in look().queues}
    assert found == {"email": 3, "emails": 3, "Email": 2, "x": 3}


def test_processes() -> None:
    supervisor = worker("supervisor-1", kind="Supervisor")
    row = worker("worker-1", "*", age=10_000)
    Process.objects.filter(pk=row.pk).update(supervisor=supervisor)
    first, second = look().processes
    assert (first.id, first.kind, first.live, first.supervisor_id) == (supervisor.pk, "Supervisor", True, None)
    assert (second.name, second.live, second.supervisor_id) == ("worker-1", False, supervisor.pk)
    assert second.metadata == {"queues": ["*"]}


def test_recurring_tasks() -> None:
    schedule_recurring_task(
        key="r", task_path="tests.project.tasks.add", args=(1, 2), schedule="0 3 * * *", timezone="Europe/Zurich"
    )
    RecurringTask.objects.create(key="broken", task_path="x.y", schedule="nonsense")
    ticks = [timezone.now() - timedelta(days=n) for n in (2, 1, 3)]
    RecurringExecution.objects.bulk_create(RecurringExecution(task_key="r", run_at=tick) for tick in ticks)
    broken, seen = look().recurring
    assert (broken.key, broken.last_run_at, broken.next_run_at) == ("broken", None, None)
    assert (seen.key, seen.static, seen.last_run_at) == ("r", False, max(ticks))
    assert seen.next_run_at is not None
    assert timedelta(0) < seen.next_run_at - look().now <= timedelta(days=1)


def test_semaphores_and_who_waits_for_them() -> None:
    for _ in range(4):
        one_per_key.enqueue("k")
    one_per_key.enqueue("other")
    first, second = look().semaphores
    assert (first.key, first.available_slots, first.limit, first.blocked_waiters) == ("one:k", 0, 1, 3)
    assert (first.capped, first.expires_at) == (False, Semaphore.objects.get(key="one:k").expires_at)
    assert (second.key, second.blocked_waiters) == ("one:other", 0)
    assert [(each.blocked_waiters, each.capped) for each in look(cap=2).semaphores] == [(2, True), (0, False)]


# ---- cost -------------------------------------------------------------------------------------------


def statements(**options: Any) -> int:
    with CaptureQueriesContext(connection) as ran:
        look(**options)
    return len(ran)


@pytest.mark.parametrize("cap", [2, observation.CAP], ids=["beyond the cap", "counted"])
def test_as_many_statements_for_a_thousand_queues_as_for_ten(cap: int) -> None:
    def enqueue(first: int, last: int) -> None:
        backend = add.get_backend()
        tasks = [add.using(queue_name=f"queue-{n}") for n in range(first, last)]
        backend.enqueue_all((task, (1, 2), {}) for task in tasks for _ in range(3))

    enqueue(0, 10)
    few = statements(cap=cap)
    assert len(look().queues) == 10
    enqueue(10, 1000)
    assert statements(cap=cap) == few
    assert few <= 14
    assert len(look().queues) == 1000


def test_the_callers_transaction_is_left_as_it_was() -> None:
    fill("q", 1)
    with transaction.atomic():
        settings = _planner()
        seen = look()
        assert _planner() == settings
        fill("q", 1)
    assert (seen.queues[0].ready, queue("q").ready) == (1, 2)
    assert _planner() == settings


def _planner() -> list[Any]:
    if not dialect_for("default").observes_in_transaction:
        return []
    with connection.cursor() as cursor:
        cursor.execute("SELECT name, setting FROM pg_settings WHERE name LIKE 'enable%' OR name = 'jit' ORDER BY name")
        return list(cursor.fetchall())

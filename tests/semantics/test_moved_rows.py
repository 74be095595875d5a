"""A row that is changed between the look at it and its lock is moved once, as it is by then, or stays."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import connection, transaction
from django.utils import timezone

from dj_queue import api
from dj_queue.config import backend_config
from dj_queue.models import (
    BlockedExecution,
    ClaimedExecution,
    FailedExecution,
    Job,
    Pause,
    Process,
    ReadyExecution,
    ScheduledExecution,
    Semaphore,
)
from dj_queue.operations import execution, jobs, queues
from tests.project import tasks
from tests.races import in_thread, while_locked
from tests.working import claim, run, states, work

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.needs("row locks")]

# Columns that indexes hold: an update of one of them moves a row to another place in each.
CHANGES = [{"priority": 50}, {"priority": -50}, {"queue_name": "b"}]


@pytest.fixture(autouse=True)
def waits_for_locks(settings: Any) -> None:
    """With skipped locks the same happens in a moment too short for a test to meet."""
    settings.TASKS = {"default": {**settings.TASKS["default"], "OPTIONS": {"use_skip_locked": False}}}


def enqueue(count: int, task: Any = tasks.add, *args: Any, **using: Any) -> list[UUID]:
    return [UUID(task.using(**using).enqueue(*(args or (n, n))).id) for n in range(count)]


def schedule(count: int, task: Any = tasks.add, *args: Any) -> list[UUID]:
    ids = enqueue(count, task, *args, run_after=timezone.now() + timedelta(hours=1))
    ScheduledExecution.objects.update(scheduled_at=timezone.now() - timedelta(minutes=1))
    return ids


def promote() -> int:
    return jobs.promote(backend_config(), limit=100)


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("queues", [["*"], ["default", "b"], ["def*", "b*"]], ids=",".join)
def test_a_ready_job_that_is_changed_is_claimed_once(changes: dict[str, Any], queues: list[str]) -> None:
    enqueue(3)
    claimed = while_locked(lambda: ReadyExecution.objects.update(**changes), lambda: claim(queues=queues))
    again = claim(queues=queues)
    assert len(claimed) + len(again) == 3
    assert states() == {"claimed": 3}
    assert execution.release(backend_config(), [*claimed, *again]) == 3
    assert len(claim()) == 3


def test_a_ready_job_that_leaves_what_is_claimed_stays() -> None:
    enqueue(3)
    change = lambda: ReadyExecution.objects.update(queue_name="b")  # noqa: E731
    assert while_locked(change, lambda: claim(queues=["default"])) == []
    assert states() == {"ready": 3}
    assert len(claim(queues=["b"])) == 3


def test_a_ready_job_that_goes_to_another_alias_stays() -> None:
    enqueue(3)
    assert while_locked(lambda: ReadyExecution.objects.update(backend_alias="other"), claim) == []
    assert states() == {"ready": 3}


def test_a_ready_job_that_is_deleted_is_not_claimed() -> None:
    gone, *_ = enqueue(3)

    def discard() -> None:
        ReadyExecution.objects.filter(job_id=gone).delete()
        Job.objects.filter(pk=gone).delete()

    assert len(while_locked(discard, claim)) == 2
    assert states() == {"claimed": 2}


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_a_scheduled_job_that_is_changed_is_promoted_once(changes: dict[str, Any]) -> None:
    schedule(3)
    promoted = while_locked(lambda: ScheduledExecution.objects.update(**changes), promote)
    assert promoted + promote() == 3
    assert states() == {"ready": 3}
    assert all(row[name] == value for row in ReadyExecution.objects.values() for name, value in changes.items())


def test_a_scheduled_job_that_is_put_off_stays() -> None:
    schedule(3)
    later = timezone.now() + timedelta(hours=1)
    assert while_locked(lambda: ScheduledExecution.objects.update(scheduled_at=later), promote) == 0
    assert states() == {"scheduled": 3}


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_a_blocked_job_that_is_changed_starts_once(changes: dict[str, Any]) -> None:
    enqueue(2, tasks.one_per_key, "k")
    (done,) = run(claim())
    finished = while_locked(
        lambda: BlockedExecution.objects.update(**changes),
        lambda: execution.finish(backend_config(), [done], worker="w"),
    )
    assert len(finished) == 1
    assert states() == {"finished": 1, "ready": 1}
    ready = ReadyExecution.objects.values().get()
    assert all(ready[name] == value for name, value in changes.items())
    assert Semaphore.objects.get().value == 0
    assert len(work()) == 1


def test_a_blocked_job_that_is_deleted_leaves_its_turn_to_the_next() -> None:
    _, gone, _ = enqueue(3, tasks.one_per_key, "k")
    (done,) = run(claim())

    def discard() -> None:
        BlockedExecution.objects.filter(job_id=gone).delete()
        Job.objects.filter(pk=gone).delete()

    while_locked(discard, lambda: execution.finish(backend_config(), [done], worker="w"))
    assert states() == {"finished": 1, "ready": 1}
    assert Semaphore.objects.get().value == 0


@pytest.mark.parametrize(
    "step",
    [
        lambda done: len(execution.finish(backend_config(), done, worker="w")),
        lambda done: execution.release(backend_config(), done),
    ],
    ids=["finish", "release"],
)
@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "keyed"])
def test_a_claim_that_is_changed_ends_once(step: Callable[[list[execution.Job]], int], keyed: bool) -> None:
    """As by the removal of a process's row, which leaves its claims without one."""
    process = Process.objects.create(kind="Worker", name="w", pid=1)
    enqueue(2, tasks.two_per_key, "k") if keyed else enqueue(2)
    done = run(claim(process_id=process.pk))
    assert while_locked(lambda: ClaimedExecution.objects.update(process=None), lambda: step(done)) == 2
    assert not ClaimedExecution.objects.exists()
    assert sum(states().values()) == 2


def test_a_job_that_moves_to_another_queue_fails_there() -> None:
    enqueue(2, tasks.fail, "no")
    done = run(claim())
    while_locked(
        lambda: Job.objects.update(queue_name="b"), lambda: execution.finish(backend_config(), done, worker="w")
    )
    assert states() == {"failed": 2}
    assert set(FailedExecution.objects.values_list("queue_name", flat=True)) == {"b"}


def test_a_resumed_queue_waits_for_no_ready_job_and_stops_no_claim() -> None:
    """A ready row that a long transaction holds, and batches smaller than the queue."""
    held, *_ = enqueue(5)
    queue = api.QueueInfo("default")
    queue.pause()
    with transaction.atomic():
        ReadyExecution.objects.select_for_update().get(job_id=held)
        in_thread(queue.resume)
        assert not queue.paused
        assert ReadyExecution.objects.filter(latency_started_at__isnull=False).count() == 4


def test_a_resume_holds_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "_BATCH", 2)
    for priority in (0, 5, -5):
        enqueue(3, priority=priority)
    before = ReadyExecution.objects.get(pk=ReadyExecution.objects.order_by("pk").values("pk")[:1])
    queue = api.QueueInfo("default")
    queue.pause()
    Pause.objects.update(created_at=before.created_at + timedelta(microseconds=1))
    largest = 0

    def measure(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal largest
        result = execute(sql, params, many, context)
        if sql.startswith("UPDATE"):
            largest = max(largest, context["cursor"].rowcount)
        return result

    with connection.execute_wrapper(measure):
        queue.resume()
    assert largest == 2
    assert ReadyExecution.objects.filter(latency_started_at__isnull=False).count() == 9
    assert queue.latency < 5

"""A limit that changes: what was blocked before takes the new slots first, in its order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.tasks import default_task_backend
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from dj_queue import events
from dj_queue.config import backend_config
from dj_queue.models import FailedExecution, Job, ScheduledExecution, Semaphore
from dj_queue.operations import jobs
from tests.project import tasks
from tests.working import states, work

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    yield
    set_limit(1)


def set_limit(limit: int) -> None:
    """As the next deploy does."""
    tasks.one_per_key.func.concurrency_limit = limit


def enqueue(count: int = 1, key: str = "k", **using: Any) -> list[Job]:
    task = tasks.one_per_key.using(**using)
    return [Job.objects.get(pk=task.enqueue(key).id) for _ in range(count)]


def status(some: list[Job]) -> list[str | None]:
    return [Job.objects.get(pk=job.pk).status for job in some]


def slots(key: str = "k") -> tuple[int, int]:
    return Semaphore.objects.values_list("value", "limit").get(key=f"one:{key}")


@pytest.mark.parametrize("within", [False, True], ids=["on its own", "in a transaction"])
def test_a_raised_limit_starts_what_was_blocked_first(within: bool) -> None:
    before = enqueue(4)
    set_limit(3)
    told: list[str] = []
    hear = lambda _, fields: told.append(fields["job_id"])  # noqa: E731
    events.subscribe(hear, "job.unblocked")
    try:
        with transaction.atomic() if within else nullcontext():
            new = enqueue(1)
            assert not (within and told)
    finally:
        events.unsubscribe(hear)
    assert status(before) == ["ready", "ready", "ready", "blocked"]
    assert status(new) == ["blocked"]
    assert slots() == (0, 3)
    assert told == [str(job.pk) for job in before[1:3]]


def test_by_priority_and_of_several_keys() -> None:
    for key in "ab":
        enqueue(1, key)
    low, high = enqueue(1, "a", priority=-5), enqueue(1, "a", priority=5)
    other = enqueue(1, "b")
    set_limit(2)
    default_task_backend.enqueue_all((tasks.one_per_key, [key], {}) for key in "abc")
    assert status(high + low + other) == ["ready", "blocked", "ready"]
    assert [slots(key) for key in "abc"] == [(0, 2), (0, 2), (1, 2)]


def test_what_is_left_goes_to_the_new_ones() -> None:
    before = enqueue(2)
    set_limit(4)
    new = enqueue(3)
    assert status(before + new) == ["ready", "ready", "ready", "ready", "blocked"]


def test_a_lowered_limit_takes_nothing_from_what_runs_and_lets_nothing_more_start() -> None:
    set_limit(3)
    before = enqueue(4)
    set_limit(1)
    new = enqueue(1)
    assert status(before + new) == ["ready", "ready", "ready", "blocked", "blocked"]
    assert slots() == (-2, 1)
    work(1)
    work(1)
    assert states() == {"finished": 2, "ready": 1, "blocked": 2}
    work(1)
    assert status(before + new) == ["finished", "finished", "finished", "ready", "blocked"]
    assert slots() == (0, 1)


@pytest.mark.parametrize("comes", ["promoted", "retried", "enqueued again"])
def test_a_limit_that_another_way_raises(comes: str) -> None:
    """What is promoted, retried or copied has the limit of its enqueue."""
    set_limit(3)
    if comes == "retried":
        (job,) = enqueue()
        FailedExecution.objects.create(job=job)
        job.ready_execution.delete()
        Semaphore.objects.all().delete()
    else:
        (job,) = enqueue(run_after=timezone.now() + timedelta(hours=1))
    set_limit(1)
    before = enqueue(4)
    ScheduledExecution.objects.update(scheduled_at=timezone.now() - timedelta(minutes=1))
    if comes == "promoted":
        assert jobs.promote(backend_config(), limit=10) == 1
    elif comes == "retried":
        jobs.retry_failed_job(job.pk)
    else:
        Job.objects.update(scheduled_at=None)
        job = jobs.enqueue_job_again(job.pk)
    assert status(before) == ["ready", "ready", "ready", "blocked"]
    assert status([job]) == ["blocked"]
    assert slots() == (0, 3)


def test_an_unchanged_limit_costs_no_statement() -> None:
    enqueue(2)
    with CaptureQueriesContext(connection) as usual:
        tasks.one_per_key.enqueue("k")
    set_limit(2)
    tasks.one_per_key.enqueue("k")
    with CaptureQueriesContext(connection) as after:
        tasks.one_per_key.enqueue("k")
    assert len(usual) == len(after)

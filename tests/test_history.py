"""What happened over time, against jobs whose story is known."""

import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.utils import timezone

from dj_queue.config import backend_config
from dj_queue.identifiers import earliest_at, time_of, uuid7
from dj_queue.models import ClaimedExecution, FailedExecution, Job
from dj_queue.operations import history
from dj_queue.operations.history import RANGES, History
from tests.plans import reader

pytestmark = pytest.mark.django_db

HOUR, *_, WEEK = RANGES


def job_at(at: datetime, **fields: Any) -> Job:
    """A job that was enqueued at a time."""
    return Job(
        id=UUID(int=earliest_at(at).int | random.getrandbits(60)),
        task_path="tests.project.tasks.add",
        created_at=at,
        **fields,
    )


def store(jobs: Iterable[Job]) -> None:
    Job.objects.bulk_create(jobs, batch_size=500)


def look(within: Any = HOUR, queue_name: str | None = None) -> History:
    return history.history_of(backend_config(), within, queue_name=queue_name)


def total(found: History, name: str) -> int:
    return sum(getattr(step, name) for step in found.steps)


def test_nothing_happened() -> None:
    found = look()
    assert len(found.steps) == 60
    assert {(step.enqueued, step.finished, step.failed, step.waiting) for step in found.steps} == {(0, 0, 0, 0)}
    assert not found.estimated
    assert found.steps[-1].start <= timezone.now() < found.steps[-1].end


def test_few_jobs_are_exact() -> None:
    now = timezone.now()
    at = (now - timedelta(minutes=30)).replace(second=0, microsecond=0)  # all begin in one step
    second = timedelta(seconds=1)
    waits = [1, 2, 3, 4, 50]
    store(job_at(at, started_at=at + wait * second, finished_at=at + 600 * second, worker_ids=["w"]) for wait in waits)
    found = look()
    assert not found.estimated
    (enqueued,) = (step for step in found.steps if step.enqueued)
    assert enqueued.start <= at < enqueued.end
    assert enqueued.enqueued == 5
    (finished,) = (step for step in found.steps if step.finished)
    assert finished.finished == 5
    assert finished.start <= at + 600 * second < finished.end
    started = [step for step in found.steps if step.median_wait is not None]
    assert started[0].median_wait in {2, 3}
    assert max(step.longest_wait or 0 for step in started) == 50


def test_waiting_at_the_end_of_each_step() -> None:
    now = timezone.now()
    minute = timedelta(minutes=1)
    jobs = [
        job_at(now - 90 * minute),  # has waited all along
        job_at(now - 30 * minute, started_at=now - 10 * minute, finished_at=now - 5 * minute),
        job_at(now - 30 * minute, scheduled_at=now - 20 * minute),  # waits only since it was due
        job_at(now - 30 * minute, scheduled_at=now + 20 * minute),
    ]
    claimed, failed = job_at(now - 40 * minute), job_at(now - 40 * minute)
    store([*jobs, claimed, failed])
    ClaimedExecution.objects.create(job=claimed)
    ClaimedExecution.objects.update(created_at=now - 35 * minute)
    FailedExecution.objects.create(job=failed, exception_class="x.Y", created_at=now - 35 * minute)
    found = look()

    def waiting(ago: int) -> int:
        return next(step.waiting for step in found.steps if step.start <= now - ago * minute < step.end)

    assert [waiting(ago) for ago in (50, 38, 32, 25, 15, 2, 0)] == [1, 3, 1, 2, 3, 2, 2]


def test_failures_are_counted_by_the_time_they_failed() -> None:
    now = timezone.now()
    jobs = [job_at(now - timedelta(days=3), queue_name=name) for name in ("a", "a", "b")]
    other = job_at(now - timedelta(days=3), backend_alias="other")
    store([*jobs, other])
    FailedExecution.objects.bulk_create(
        FailedExecution(
            job=job, backend_alias=job.backend_alias, queue_name=job.queue_name, exception_class="x.Y", created_at=now
        )
        for job in [*jobs, other]
    )
    assert total(look(), "failed") == look().steps[-1].failed == 3
    assert total(look(queue_name="a"), "failed") == 2


def fail(count: int, at: datetime, alias: str) -> None:
    jobs = [job_at(at, backend_alias=alias) for _ in range(count)]
    store(jobs)
    FailedExecution.objects.bulk_create(
        (FailedExecution(job=job, backend_alias=alias, exception_class="x.Y", created_at=at) for job in jobs),
        batch_size=500,
    )


def test_the_failures_of_another_backend_do_not_use_up_the_cap() -> None:
    now = timezone.now()
    fail(history.FAILURES_CAP, now - timedelta(seconds=1), "other")
    fail(2, now, "default")
    found = look()
    assert total(found, "failed") == 2
    assert not found.failures_capped


@pytest.mark.needs("plans")
def test_failures_outside_of_the_range_are_not_read() -> None:
    if reason := reader().unknown:
        pytest.skip(reason)
    fail(2000, timezone.now() - timedelta(days=30), "default")
    *_, failures = [plan for plan in reader().plans(look) if "failed_executions WHERE" in plan.sql]
    assert failures.rows_read < 1000, failures


def test_a_queue_and_a_backend_see_their_own() -> None:
    now = timezone.now() - timedelta(minutes=10)
    store([job_at(now, queue_name="a"), job_at(now, queue_name="b"), job_at(now, backend_alias="other")])
    assert total(look(), "enqueued") == 2
    assert total(look(queue_name="b"), "enqueued") == 1
    assert total(look(queue_name="none"), "enqueued") == 0


@pytest.mark.parametrize("count", [2000, 15000])
def test_many_are_estimated_closely(count: int) -> None:
    now = timezone.now()
    start = now - timedelta(minutes=40)
    store(
        job_at(at, started_at=at + timedelta(seconds=1), finished_at=at + timedelta(seconds=2))
        for at in (start + timedelta(minutes=20) * (n / count) for n in range(count))
    )
    found = look()
    assert found.estimated
    assert total(found, "enqueued") == pytest.approx(count, rel=0.15)
    assert total(found, "finished") == pytest.approx(count, rel=0.15)


@pytest.mark.parametrize("queue_name", [None, "default"])
def test_what_finished_is_counted(monkeypatch: pytest.MonkeyPatch, queue_name: str | None) -> None:
    """Not what samples did: the first of each minute finish, the others go on."""
    now = timezone.now()
    start = now - timedelta(minutes=40)
    times = [start + timedelta(minutes=20) * (n / 3000) for n in range(3000)]
    store(job_at(at, started_at=at, finished_at=at + timedelta(seconds=n % 2000) if n % 150 < 31 else None)
          for n, at in enumerate(times))  # fmt: skip
    store(job_at(at, started_at=at, finished_at=at, backend_alias="other") for at in times[:500])
    found = look(queue_name=queue_name)
    assert found.estimated
    assert not found.finished_estimated
    ended = [at + timedelta(seconds=n % 2000) for n, at in enumerate(times) if n % 150 < 31]
    for step in found.steps:
        assert step.finished == sum(step.start <= at < step.end for at in ended)
    monkeypatch.setattr(history, "READ", 100)
    assert look(queue_name=queue_name).finished_estimated


@pytest.mark.parametrize("bursts", [1, 2, 5])
def test_bursts_are_never_absurd(monkeypatch: pytest.MonkeyPatch, bursts: int) -> None:
    """Thousands at once, then nothing: density says little there, and may not run wild."""
    start = timezone.now() - timedelta(days=3)
    size = 2500
    store(
        job_at(start + timedelta(minutes=17 * burst, microseconds=10 * n), finished_at=start)
        for burst in range(bursts)
        for n in range(size)
    )
    assert total(look(WEEK), "enqueued") == bursts * size  # few such spans: counted on
    monkeypatch.setattr(history, "RECOUNTED", 0)
    assert 2 * history.CAP <= total(look(WEEK), "enqueued") <= 1.5 * bursts * size


def test_five_statements_however_many_jobs() -> None:
    now = timezone.now()
    counts = set()
    for count in (0, 1, 7000):
        store(job_at(now - timedelta(seconds=n % 120)) for n in range(count))
        ran: list[str] = []

        def note(execute: Any, sql: str, params: Any, many: bool, context: Any, ran: list[str] = ran) -> Any:
            ran.append(sql)
            return execute(sql, params, many, context)

        # Not Django's own list of queries: a runner in this process may have silenced that.
        with connection.execute_wrapper(note):
            look()
        counts.add(sum("dj_queue_" in sql for sql in ran))
    assert counts == {3, 5}


def test_ids_and_times() -> None:
    before = datetime.now(UTC)
    job_id = uuid7()
    after = datetime.now(UTC)
    slack = timedelta(milliseconds=2)
    assert before - slack <= time_of(job_id) <= after + slack
    assert earliest_at(before - slack) <= job_id < earliest_at(after + slack)
    assert time_of(earliest_at(before)) <= before < time_of(earliest_at(before)) + slack

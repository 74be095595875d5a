"""What operators and retention do stays cheap and small where many jobs are stored.

DJ_QUEUE_TEST_LONG=1: a million jobs instead of twenty thousand. What was measured is printed: pytest -rP
"""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection

from dj_queue.api import QueueInfo
from dj_queue.config import backend_config
from dj_queue.dialects import dialect_for
from dj_queue.models import BlockedExecution, FailedExecution, Job, ReadyExecution, ScheduledExecution
from dj_queue.operations import jobs, retention
from tests.plans import reader

MANY = 1_000_000 if os.environ.get("DJ_QUEUE_TEST_LONG") == "1" else 20_000
DAY = 86400
LOOK = MANY // 20  # how many rows one call for finished jobs looks at

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.timeout(900),
    pytest.mark.needs("executed plans"),
]

# Job n was enqueued n seconds after a day in the past, and its id says so. Of ten: three failed, and the oldest of
# all; five finished; one ready in one full queue, one blocked.
_AT = "to_timestamp(1700000000 + n)"
_ID = "(lpad(to_hex((1700000000 + n)::bigint * 1000), 12, '0') || '70008' || lpad(to_hex(n), 15, '0'))::uuid"
_FILL = f"""
INSERT INTO dj_queue_jobs (id, task_path, queue_name, priority, payload, backend_alias, created_at, finished_at)
SELECT {_ID}, 'tests.project.tasks.add', 'full', n %% 3, '{{"args": [1, 2], "kwargs": {{}}}}', 'default', {_AT},
  CASE WHEN n > %(many)s * 3 / 10 AND n <= %(many)s * 8 / 10 THEN {_AT} END
FROM generate_series(1, %(many)s) n;
INSERT INTO dj_queue_failed_executions
  (job_id, backend_alias, queue_name, exception_class, message, traceback, created_at)
SELECT {_ID}, 'default', 'full', 'builtins.ValueError', '', '', {_AT} FROM generate_series(1, %(many)s * 3 / 10) n;
INSERT INTO dj_queue_ready_executions (job_id, backend_alias, queue_name, priority, created_at)
SELECT {_ID}, 'default', 'full', n %% 3, {_AT} FROM generate_series(%(many)s * 8 / 10 + 1, %(many)s * 9 / 10) n;
INSERT INTO dj_queue_blocked_executions
  (job_id, backend_alias, queue_name, priority, concurrency_key, expires_at, created_at)
SELECT {_ID}, 'default', 'full', 0, 'hot', now(), {_AT} FROM generate_series(%(many)s * 9 / 10 + 1, %(many)s) n;
INSERT INTO dj_queue_recurring_executions (backend_alias, task_key, run_at, created_at)
SELECT 'default', 'task-' || n %% 50, {_AT}, {_AT} FROM generate_series(1, %(many)s) n"""

TABLES = ["jobs", "failed_executions", "ready_executions", "blocked_executions", "recurring_executions"]


@pytest.fixture(scope="module")
def full(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    everything = ", ".join(f"dj_queue_{table}" for table in TABLES)
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(_FILL, {"many": MANY})
        cursor.execute("ANALYZE")
    yield
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {everything} CASCADE")
        cursor.execute("ANALYZE")


@pytest.fixture(scope="class")
def prepared(full: None, django_db_blocker: Any) -> Iterator[None]:
    """A connection as the runtime has them: prepared before any transaction begins, that of a test too."""
    with django_db_blocker.unblock():
        dialect_for("default").prepare_session(connection)
    yield
    with django_db_blocker.unblock():
        connection.close()


@pytest.fixture(autouse=True)
def short_looks(monkeypatch: Any) -> None:
    monkeypatch.setattr(retention, "_LOOK", LOOK // retention.BATCH)


def reads(step: Callable[[], Any]) -> float:
    """How many rows a step looks at."""
    return sum(plan.rows_read for plan in reader().plans(step))


# ---- retention --------------------------------------------------------------------------------------


class Batches:
    @pytest.mark.parametrize(
        "delete",
        [
            lambda: retention.delete_failed(backend_config(), older_than=DAY),
            lambda: retention.delete_recurring(backend_config(), older_than=DAY),
        ],
        ids=["failed", "recurring"],
    )
    def test_a_batch_reads_what_it_deletes(self, delete: Callable[[], int]) -> None:
        assert reads(delete) < 40 * retention.BATCH


@pytest.mark.usefixtures("full")
class TestAnySession(Batches):
    pass


@pytest.mark.usefixtures("prepared")
class TestSessionOfTheRuntime(Batches):
    def test_finished_jobs_are_found_behind_all_that_stays(self) -> None:
        """A third of the table, and the oldest of it, failed, and is kept: it is passed once, not at every call."""
        work = retention.Retention(backend_config(), DAY)
        calls, longest = 0, 0.0
        while True:
            began = time.perf_counter()
            deleted = work.delete_batch()
            longest = max(longest, time.perf_counter() - began)
            calls += 1
            if deleted:
                break
        assert calls <= MANY * 3 / 10 / LOOK + 2
        assert deleted <= retention.BATCH
        counted = []
        for _ in range(10):
            began = time.perf_counter()
            counted.append(work.delete_batch())
            longest = max(longest, time.perf_counter() - began)
        assert counted == [retention.BATCH] * 10
        found = reads(work.delete_batch)
        print(
            f"{MANY:,} jobs: the first after {calls} calls, then {found:,.0f} rows read a call; longest {longest:.3f} s"
        )
        assert found < 2 * LOOK + 40 * retention.BATCH

    @pytest.mark.parametrize("kind", ["finished", "failed", "recurring"])
    def test_a_poll_with_nothing_due_reads_little(self, kind: str) -> None:
        old = 100 * 365 * DAY
        match kind:
            case "finished":
                work = retention.Retention(backend_config(), old)
                assert reads(work.delete_batch) <= LOOK + 40 * retention.BATCH
                # The rest has its turn a little at a time, and then again.
                assert not any(work.delete_batch() for _ in range(MANY // LOOK + 3))
            case "failed":
                assert reads(lambda: retention.delete_failed(backend_config(), older_than=old)) < 100
            case _:
                assert reads(lambda: retention.delete_recurring(backend_config(), older_than=old)) < 100


@pytest.mark.parametrize("dry", [True, False])
def test_prune_in_bounded_memory(dry: bool, full: None) -> None:
    batch = min(2000, MANY // 25)
    out, err = StringIO(), StringIO()
    began = time.monotonic()
    tracemalloc.start()
    try:
        flags = ["--older-than", "0", "--batch-size", str(batch), *(["--dry-run"] if dry else [])]
        call_command("dj_queue_prune", *flags, stdout=out, stderr=err)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    told = len(err.getvalue().splitlines())
    print(
        f"{'dry ' * dry}{out.getvalue().strip()}: {time.monotonic() - began:.1f} s, {peak:.1f} MiB, told {told} times"
    )
    assert f" {MANY // 2} finished jobs" in out.getvalue()
    assert Job.objects.finished().count() == (MANY // 2 if dry else 0)
    assert peak < 32
    if not dry:
        assert told == MANY // 2 // (20 * batch)


# ---- operators --------------------------------------------------------------------------------------


def test_queue_info(full: None) -> None:
    Job.objects.filter(pk=Job.objects.earliest("pk").pk).update(queue_name="small")
    job = Job.objects.latest("pk")
    ReadyExecution.objects.create(job=job, queue_name="small")
    for name in ("full", "small"):
        info = QueueInfo(name)
        assert reads(lambda: info.latency) <= 4  # noqa: B023
        assert info.latency > (DAY if name == "full" else -1)
        assert reads(lambda: info.paused) <= 1  # noqa: B023
        assert reads(lambda: info.size) <= info.size + 1  # noqa: B023
    assert reads(QueueInfo.all) <= ReadyExecution.objects.count()
    small = QueueInfo("small")
    small.pause()
    assert reads(small.resume) < 10
    assert reads(small.clear) < 20


def test_one_of_many_is_found_by_its_id(full: None) -> None:
    for model, act in (
        (FailedExecution, jobs.retry_failed_jobs),
        (FailedExecution, jobs.discard_failed_jobs),
        (ReadyExecution, jobs.discard_ready_jobs),
        (BlockedExecution, jobs.discard_blocked_jobs),
    ):
        ids = list(model.objects.order_by("-pk").values_list("job_id", flat=True)[10:13])
        assert reads(lambda: act(job_ids=ids)) < 100, act  # noqa: B023
    assert not ScheduledExecution.objects.exists()


def test_many_failed_jobs_are_retried_by_their_ids(full: None) -> None:
    began = time.monotonic()
    count = jobs.retry_failed_jobs(job_ids=FailedExecution.objects.values_list("job_id", flat=True)[:20_000])
    print(f"retried {count:,} in {time.monotonic() - began:.1f} s")
    assert count == min(20_000, MANY * 3 // 10)

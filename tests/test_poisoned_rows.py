"""Whatever a row contains, it fails its own job, visibly, and keeps no other from running."""

import json
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.tasks import TaskResultStatus, default_task_backend
from django.utils import timezone

from dj_queue.config import backend_config
from dj_queue.models import FailedExecution, Job, ScheduledExecution
from dj_queue.operations import attempts, jobs, recovery
from tests.project import tasks
from tests.working import claim, run, states, work

pytestmark = pytest.mark.django_db(transaction=True)

POSTGRESQL, SQLITE = connection.vendor == "postgresql", connection.vendor == "sqlite"

# What is stored in a column of a job; and whether it keeps the job from running.
POISON: dict[str, tuple[str, Any, bool]] = {
    "payload: a number": ("payload", "1", True),
    "payload: a list": ("payload", "[1, 2]", True),
    "payload: null": ("payload", "null", True),
    "payload: args no list": ("payload", '{"args": 7, "kwargs": {}}', True),
    "payload: kwargs no object": ("payload", '{"args": [], "kwargs": [1]}', True),
    "task_path: none": ("task_path", "", True),
    "task_path: nonsense": ("task_path", "..\n'; --", True),
    "task_path: no task": ("task_path", "os.path.join", True),
    "worker_ids: a number": ("worker_ids", "7", False),
    "worker_ids: an object": ("worker_ids", '{"a": 1}', False),
    "worker_ids: numbers": ("worker_ids", "[1, null]", False),
    "errors: a number": ("errors", "7", False),
    "errors: no pairs": ("errors", '["a", ["b"], [1, 2], null]', False),
}
if POSTGRESQL or SQLITE:  # the others refuse it themselves
    POISON["payload: too deep"] = ("payload", '{"args": [' + "[" * 900 + "]" * 900 + '], "kwargs": {}}', True)
if POSTGRESQL:
    for column in ("created_at", "started_at", "scheduled_at"):
        for value in ("infinity", "-infinity", "0044-03-15 BC", "20000-01-01"):
            POISON[f"{column}: {value}"] = (column, value, True)
if SQLITE:
    for column in ("created_at", "started_at", "scheduled_at"):
        for value in ("nonsense", "2026-13-45 00:00:00", b"\xff\xfe"):
            POISON[f"{column}: {value!r}"] = (column, value, True)
    POISON["payload: no text"] = ("payload", b"\xff\xfe", True)
    POISON["task_path: no text"] = ("task_path", b"\xff\xfe", True)


def store(job_id: str, column: str, value: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA ignore_check_constraints = ON" if SQLITE else "SELECT 1")
        stored = "CAST(%s AS TEXT)" if isinstance(value, bytes) else "%s"
        key = Job._meta.pk.get_db_prep_value(Job._meta.pk.to_python(job_id), connection)
        cursor.execute(f"UPDATE dj_queue_jobs SET {column} = {stored} WHERE id = %s", [value, key])


@pytest.fixture
def poisoned(request: pytest.FixtureRequest) -> tuple[str, bool]:
    column, value, fatal = POISON[request.param]
    before = tasks.add.enqueue(1, 1)
    result = tasks.add.enqueue(2, 2)
    after = tasks.add.enqueue(3, 3)
    assert before.id < result.id < after.id
    store(result.id, column, value)
    return result.id, fatal


@pytest.mark.parametrize("poisoned", POISON, indirect=True)
class TestOneRow:
    def test_a_claim_fails_it_and_no_other(self, poisoned: tuple[str, bool]) -> None:
        job_id, fatal = poisoned
        assert len(work()) == 3
        with connection.cursor() as cursor:
            cursor.execute("SELECT COUNT(*) FROM dj_queue_claimed_executions")
            assert cursor.fetchone()[0] == 0
        assert FailedExecution.objects.count() == fatal
        assert Job.objects.filter(finished_at__isnull=False).count() == 3 - fatal
        if fatal:
            failed = FailedExecution.objects.get()
            assert str(failed.job_id) == job_id
            assert failed.message

    def test_its_result_can_be_read(self, poisoned: tuple[str, bool]) -> None:
        job_id, fatal = poisoned
        assert default_task_backend.get_result(job_id).status is TaskResultStatus.READY
        work()
        result = default_task_backend.get_result(job_id)
        assert result.status is (TaskResultStatus.FAILED if fatal else TaskResultStatus.SUCCESSFUL)
        assert result.attempts >= 1
        if fatal:
            assert result.errors

    def test_it_can_be_tried_again_and_again(self, poisoned: tuple[str, bool]) -> None:
        job_id, fatal = poisoned
        if not fatal:
            pytest.skip("it does not fail")
        for _ in range(2):
            work()
            assert jobs.retry_failed_jobs() == 1
        work()
        result = default_task_backend.get_result(job_id)
        assert len(result.errors) == 3
        assert jobs.retry_failed_job(job_id).pk == Job._meta.pk.to_python(job_id)
        work()
        assert jobs.discard_failed_job(job_id) == 1

    def test_recovery_fails_it(self, poisoned: tuple[str, bool]) -> None:
        claim()
        recovered = recovery.settle_missing(backend_config())
        assert len(recovered.failed) == 3
        assert FailedExecution.objects.count() == 3


@pytest.mark.parametrize("poison", [name for name in POISON if name.startswith(("payload", "created", "started"))])
def test_a_promotion_moves_it(poison: str) -> None:
    column, value, _ = POISON[poison]
    later = timezone.now() + timezone.timedelta(hours=1)
    results = [task.using(run_after=later).enqueue("k") for task in (tasks.one_per_key, tasks.fail)]
    for result in results:
        store(result.id, column, value)
    ScheduledExecution.objects.update(scheduled_at=timezone.now() - timezone.timedelta(hours=1))
    assert jobs.promote_scheduled_jobs(batch_size=10) == 2
    assert len(work()) == 2
    assert FailedExecution.objects.count() == 2


@pytest.mark.skipif(POSTGRESQL, reason="the database stores ids as what they are")
def test_an_id_that_is_none() -> None:
    if connection.features.has_native_uuid_field:
        pytest.skip("the database stores ids as what they are")
    results = [tasks.add.enqueue(n, n) for n in range(3)]
    with connection.cursor() as cursor:
        cursor.execute("SET FOREIGN_KEY_CHECKS = 0" if not SQLITE else "PRAGMA foreign_keys = OFF")
        for table, column in (("dj_queue_jobs", "id"), ("dj_queue_ready_executions", "job_id")):
            old = results[1].id.replace("-", "")
            cursor.execute(f"UPDATE {table} SET {column} = %s WHERE {column} = %s", ["nonsense", old])
    assert len(work()) == 3
    with connection.cursor() as cursor:
        cursor.execute("SELECT job_id, message FROM dj_queue_failed_executions")
        ((job_id, message),) = cursor.fetchall()
        assert job_id == "nonsense"
        assert message
        cursor.execute("DELETE FROM dj_queue_failed_executions")
        cursor.execute("DELETE FROM dj_queue_jobs WHERE id = 'nonsense'")
    connection.close()


class TestBounds:
    def test_attempts_without_end(self) -> None:
        """By SQL, or an older version: the lists stay within their bounds at each finish."""
        job_id = tasks.add.enqueue(1, 1).id
        names = [f"worker-{n}" for n in range(100)]
        store(job_id, "worker_ids", json.dumps(names))
        for n in range(3):
            run_once(job_id, f"late-{n}")
        found = Job.objects.get().worker_ids
        assert len(found) == 100
        assert found[:10] == names[:10]
        assert found[10] == "[... 4 left out ...]"
        assert found[-4:] == ["worker-99", "late-0", "late-1", "late-2"]

    def test_retries_without_end(self) -> None:
        job_id = tasks.fail.enqueue("on purpose").id
        store(job_id, "errors", json.dumps([["builtins.ValueError", f"error {n}"] for n in range(1000)]))
        store(job_id, "worker_ids", json.dumps([f"worker-{n}" for n in range(1000)]))
        for _ in range(2):
            work()
            jobs.retry_failed_job(job_id)
        job = Job.objects.get()
        assert len(job.errors) == attempts.FIRST_ERRORS + 1 + attempts.LAST_ERRORS
        assert job.errors[attempts.FIRST_ERRORS][1] == "[... 982 left out ...]"
        assert [text for _, text in job.errors[:5]] == [f"error {n}" for n in range(5)]
        assert len(job.worker_ids) == 100
        result = default_task_backend.get_result(job_id)
        assert all(issubclass(error.exception_class, Exception) for error in result.errors)

    def test_a_claim_of_a_fresh_job_reads_no_attempts(self, django_assert_num_queries: Any) -> None:
        from django.test.utils import CaptureQueriesContext

        tasks.add.enqueue(1, 1)
        with CaptureQueriesContext(connection) as captured:
            claim()
        assert not [query for query in captured if "errors" in query["sql"]]

    def test_a_job_that_is_tried_again_knows_its_attempts(self) -> None:
        result = tasks.describe_context.enqueue("x")
        store(result.id, "started_at", "2026-01-01 00:00:00")
        store(result.id, "worker_ids", '["a", "b"]')
        store(result.id, "errors", '[["builtins.ValueError", "t"]]')
        (job,) = run(claim())
        assert job.result is not None
        assert job.result.worker_ids == ["a", "b", "worker-1"]
        assert job.result.errors[0].traceback == "t"


def run_once(job_id: str, worker: str) -> None:
    from dj_queue.models import ReadyExecution

    Job.objects.update(finished_at=None)
    ReadyExecution.objects.filter(job_id=job_id).delete()
    ReadyExecution.objects.create(job_id=job_id)
    work(worker=worker)


def test_a_running_result_shows_the_time_that_its_task_is_told() -> None:
    tasks.add.enqueue(1, 1)
    (job,) = run(claim())
    assert job.result is not None
    other = default_task_backend.get_result(job.result.id)
    assert other.status is TaskResultStatus.RUNNING
    assert other.started_at == job.result.started_at == other.last_attempted_at
    assert other.started_at is not None


def test_an_unknown_id_is_still_unknown() -> None:
    from django.tasks.exceptions import TaskResultDoesNotExist

    with pytest.raises(TaskResultDoesNotExist):
        default_task_backend.get_result(str(uuid4()))
    assert states() == {}

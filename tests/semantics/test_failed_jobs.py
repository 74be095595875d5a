"""What operators do to stored jobs: retry, discard, enqueue again, and the worker's steps by hand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from asgiref.sync import async_to_sync
from django.db import OperationalError, connections
from django.tasks import TaskResultStatus, default_task_backend, task_backends
from django.tasks.exceptions import TaskResultDoesNotExist
from django.utils import timezone

from dj_queue import api
from dj_queue.dialects import dialect_for
from dj_queue.exceptions import DjQueueError, UndiscardableError
from dj_queue.models import (
    BlockedExecution,
    ClaimedExecution,
    FailedExecution,
    Job,
    Process,
    ReadyExecution,
    ScheduledExecution,
)
from dj_queue.operations import jobs
from tests import plans
from tests.project import tasks
from tests.working import claim, states, work

pytestmark = pytest.mark.django_db(transaction=True)

UNKNOWN = "01900000-0000-7000-8000-000000000000"
MALFORMED = ["", "nonsense", "123", UNKNOWN + "0"]


def failed(count: int = 1, *, alias: str = "default", queue: str = "default") -> list[Job]:
    """Store jobs that have failed."""
    task = tasks.fail.using(backend=alias, queue_name=queue)
    ids = [result.id for result in task_backends[alias].enqueue_all([(task, [f"no {n}"], {}) for n in range(count)])]
    assert len(work(count, alias=alias)) == count
    return [Job.objects.get(pk=job_id) for job_id in ids]


def told(caplog: Any, event: str) -> list[dict[str, Any]]:
    return [record.dj_queue for record in caplog.records if record.msg == event]


def later(seconds: float = 60) -> Any:
    return timezone.now() + timedelta(seconds=seconds)


# ---- retry ------------------------------------------------------------------------------------------


def test_retry(caplog: Any) -> None:
    (job,) = failed()
    with caplog.at_level("INFO", "dj_queue"):
        retried = jobs.retry_failed_job(job.pk)
    assert retried == job
    assert retried.status == "ready"
    assert told(caplog, "job.retried") == [{"job_id": str(job.pk), "queue_name": "default", "priority": 0}]
    assert not FailedExecution.objects.exists()
    assert states() == {"ready": 1}
    stored = Job.objects.get()
    assert (stored.finished_at, stored.return_value, stored.payload) == (None, None, job.payload)
    assert not Job.objects.filter(return_value__isnull=False).exists()


@pytest.mark.parametrize("retry", [jobs.retry_failed_job, api.retry_failed_job, async_to_sync(api.aretry_failed_job)])
def test_the_ways_to_retry_one(retry: Any) -> None:
    (job,) = failed()
    assert retry(str(job.pk)).status == "ready"


def test_attempts_and_errors_are_kept_oldest_first() -> None:
    result_id = tasks.raise_given.enqueue("ValueError", "first").id
    work(worker="worker-1")
    Job.objects.update(payload={"args": ["KeyError", "second"], "kwargs": {}})
    jobs.retry_failed_job(result_id)
    waiting = default_task_backend.get_result(result_id)
    assert waiting.status is TaskResultStatus.READY
    assert (waiting.attempts, [each.exception_class_path for each in waiting.errors]) == (1, ["builtins.ValueError"])
    work(worker="worker-2")
    result = default_task_backend.get_result(result_id)
    assert result.status is TaskResultStatus.FAILED
    assert [each.exception_class_path for each in result.errors] == ["builtins.ValueError", "builtins.KeyError"]
    assert "first" in result.errors[0].traceback
    assert "second" in result.errors[1].traceback
    assert (result.attempts, result.worker_ids) == (2, ["worker-1", "worker-2"])
    assert result.started_at < result.last_attempted_at
    Job.objects.update(task_path="tests.project.tasks.add", payload={"args": [1, 2], "kwargs": {}})
    jobs.retry_failed_job(result_id)
    work(worker="worker-3")
    result.refresh()
    assert (result.status, result.return_value, result.attempts) == (TaskResultStatus.SUCCESSFUL, 3, 3)
    assert len(result.errors) == 2


@pytest.mark.parametrize("job_id", [UNKNOWN, *MALFORMED])
def test_retry_of_what_is_not_there(job_id: str) -> None:
    with pytest.raises(FailedExecution.DoesNotExist):
        jobs.retry_failed_job(job_id)
    assert jobs.retry_failed_jobs(job_ids=[job_id]) == 0


@pytest.mark.parametrize("state", ["ready", "scheduled", "claimed", "blocked", "finished"])
def test_retry_of_what_has_not_failed(state: str) -> None:
    job = in_state(state)
    before = states()
    with pytest.raises(FailedExecution.DoesNotExist):
        jobs.retry_failed_job(job.pk)
    assert jobs.retry_failed_jobs(job_ids=[job.pk]) == jobs.discard_failed_job(job.pk) == 0
    assert states() == before


def test_retry_twice() -> None:
    (job,) = failed()
    jobs.retry_failed_job(job.pk)
    with pytest.raises(FailedExecution.DoesNotExist):
        jobs.retry_failed_job(job.pk)
    assert states() == {"ready": 1}


def test_another_alias_has_no_such_job(two_aliases: None) -> None:
    (job,) = failed(alias="other")
    with pytest.raises(FailedExecution.DoesNotExist):
        jobs.retry_failed_job(job.pk)
    assert jobs.discard_failed_job(job.pk) == jobs.retry_failed_jobs() == jobs.discard_failed_jobs() == 0
    with pytest.raises(Job.DoesNotExist):
        jobs.enqueue_job_again(job.pk)
    assert jobs.retry_failed_job(job.pk, backend_alias="other").status == "ready"


@pytest.mark.parametrize("batch", [1, 2, 500])
def test_retry_of_many(batch: int, two_aliases: None, caplog: Any) -> None:
    mine, theirs = failed(5), failed(2, alias="other")
    with caplog.at_level("INFO", "dj_queue"):
        assert jobs.retry_failed_jobs(job_ids=[mine[0].pk, mine[3].pk, theirs[0].pk, UNKNOWN], batch_size=batch) == 2
    assert [each["job_id"] for each in told(caplog, "job.retried")] == [str(mine[0].pk), str(mine[3].pk)]
    assert jobs.retry_failed_jobs(batch_size=batch) == 3
    assert states() == {"ready": 5, "failed": 2}
    assert jobs.retry_failed_jobs(job_ids=[], batch_size=batch, backend_alias="other") == 0
    assert [str(job.claim.job_id) for job in claim()] == [str(mine[n].pk) for n in (0, 3, 1, 2, 4)]


def test_retry_all_of_a_queryset(two_aliases: None) -> None:
    mine, theirs = failed(4), failed(2, alias="other")
    rows = FailedExecution.objects.filter(job__in=[*mine[:3], *theirs])
    assert FailedExecution.retry_all(rows) == 5
    assert states() == {"ready": 5, "failed": 1}
    assert len(claim(alias="other")) == 2
    assert FailedExecution.retry_all(FailedExecution.objects.none()) == 0
    assert FailedExecution.retry_all(FailedExecution.objects.order_by("job_id")[:1]) == 1


def test_retry_all_keeps_the_order_of_the_queryset() -> None:
    stored = failed(5)
    assert FailedExecution.retry_all(FailedExecution.objects.order_by("-pk")) == 5
    assert [job.claim.job_id for job in claim()] == [job.pk for job in reversed(stored)]


def test_the_row_s_own_verbs(two_aliases: None) -> None:
    failed(1)
    failed(1, alias="other")
    first, second = FailedExecution.objects.order_by("pk")
    retried = first.retry()
    assert isinstance(retried, Job)
    assert retried.status == "ready"
    assert second.discard() == 1
    assert second.discard() == 0
    with pytest.raises(FailedExecution.DoesNotExist):
        first.retry()
    assert states() == {"ready": 1}


def test_operators_who_retry_at_once() -> None:
    """Each job is retried once, whoever does it."""
    failed(60)

    def retry(n: int) -> int:
        try:
            return jobs.retry_failed_jobs(batch_size=7) if n % 2 else jobs.discard_failed_jobs(batch_size=7)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(retry, range(4)))
    assert sum(done) + FailedExecution.objects.count() == 60
    assert states()["ready"] == done[1] + done[3]


def test_what_fails_again_at_once_is_not_retried_for_ever(monkeypatch: Any) -> None:
    failed(3)
    rounds = 0

    def fail_again(retried: list[Job]) -> None:
        nonlocal rounds
        rounds += 1
        work()

    dispatch = jobs.concurrency.dispatch
    monkeypatch.setattr(
        jobs.concurrency,
        "dispatch",
        lambda config, dialect, cursor, batch, now: (dispatch(config, dialect, cursor, batch, now), fail_again(batch)),
    )
    assert jobs.retry_failed_jobs(batch_size=1) == rounds == 3
    assert states() == {"failed": 3}


# ---- discard ----------------------------------------------------------------------------------------

MODELS = {
    "ready": ReadyExecution, "scheduled": ScheduledExecution, "blocked": BlockedExecution, "failed": FailedExecution,
}  # fmt: skip


def in_state(state: str, alias: str = "default") -> Job:
    match state:
        case "failed":
            return failed(alias=alias)[0]
        case "blocked":
            tasks.one_per_key.using(backend=alias, queue_name="holder").enqueue(f"k-{alias}")
            result = tasks.one_per_key.using(backend=alias).enqueue(f"k-{alias}")
        case "scheduled":
            result = tasks.add.using(backend=alias, run_after=later()).enqueue(1, 2)
        case _:
            result = tasks.add.using(backend=alias).enqueue(1, 2)
    if state == "claimed":
        claim(alias=alias)
    elif state == "finished":
        work(alias=alias)
    job = Job.objects.get(pk=result.id)
    assert job.status == state
    return job


@pytest.mark.parametrize("state", MODELS)
def test_discard(state: str, two_aliases: None, caplog: Any) -> None:
    mine = [in_state(state) for _ in range(3)]
    theirs = in_state(state, "other")
    discard = getattr(jobs, f"discard_{state}_jobs")
    with caplog.at_level("INFO", "dj_queue"):
        assert discard(job_ids=[mine[0].pk, str(mine[1].pk), theirs.pk, UNKNOWN]) == 2
    assert told(caplog, "job.discarded") == [{"job_id": str(job.pk), "reason": state} for job in mine[:2]]
    assert discard(job_ids=[mine[0].pk]) == discard(job_ids=[]) == 0
    assert set(Job.objects.filter(pk__in=[job.pk for job in [*mine, theirs]])) == {mine[2], theirs}
    assert Job.objects.get(pk=theirs.pk).status == state
    with pytest.raises(TaskResultDoesNotExist):
        default_task_backend.get_result(str(mine[0].pk))


@pytest.mark.parametrize("batch", [1, 2, 3, 500])
@pytest.mark.parametrize("state", MODELS)
def test_discard_all_in_batches(state: str, batch: int, two_aliases: None) -> None:
    for alias in ("other", "default", "other"):
        for _ in range(3):
            in_state(state, alias)
    before = MODELS[state].objects.filter(job__backend_alias="default").count()
    assert before >= 3
    assert MODELS[state].discard_all_in_batches(batch_size=batch) == before
    assert not MODELS[state].objects.filter(job__backend_alias="default").exists()
    assert MODELS[state].objects.filter(job__backend_alias="other").count() >= 6
    assert MODELS[state].discard_all_in_batches(batch_size=batch, backend_alias="other") >= 6


def test_running_jobs_cannot_be_discarded() -> None:
    assert issubclass(UndiscardableError, DjQueueError)
    for _ in range(2):
        with pytest.raises(UndiscardableError, match="running"):
            ClaimedExecution.discard_all_in_batches()
        in_state("claimed")
    assert states() == {"claimed": 2}


@pytest.mark.parametrize("job_id", [UNKNOWN, *MALFORMED])
@pytest.mark.parametrize("state", MODELS)
def test_discard_of_what_is_not_there(state: str, job_id: str) -> None:
    assert getattr(jobs, f"discard_{state}_jobs")(job_ids=[job_id]) == 0
    assert jobs.discard_failed_job(job_id) == 0


# ---- enqueue again ----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["ready", "scheduled", "claimed", "blocked", "failed", "finished"])
def test_enqueue_again(state: str, caplog: Any) -> None:
    job = in_state(state)
    caplog.clear()
    with caplog.at_level("INFO", "dj_queue"):
        copy = jobs.enqueue_job_again(job.pk)
    assert copy.pk != job.pk
    assert Job.objects.get(pk=job.pk).status == state
    stored = Job.objects.get(pk=copy.pk)
    for name in ("task_path", "queue_name", "priority", "payload", "backend_alias", "scheduled_at", "concurrency_key"):
        assert getattr(stored, name) == getattr(job, name), name
    assert stored.status == (state if state in ("scheduled", "blocked") else "ready")
    assert (stored.return_value, stored.started_at, stored.worker_ids, stored.errors) == (None, None, None, None)
    assert stored.created_at >= job.created_at
    (event,) = told(caplog, "job.enqueued")
    assert event["job_id"] == str(copy.pk)


def test_a_copy_of_a_copy_works() -> None:
    job = in_state("finished")
    copy = jobs.enqueue_job_again(jobs.enqueue_job_again(str(job.pk)).pk)
    assert len(work()) == 2
    assert default_task_backend.get_result(str(copy.pk)).return_value == 3


def test_a_copy_of_a_job_that_was_scheduled_is_ready() -> None:
    job = in_state("scheduled")
    Job.objects.update(scheduled_at=later(-60))
    copy = jobs.enqueue_job_again(job.pk)
    assert copy.status == "ready"
    assert copy.scheduled_at is not None


@pytest.mark.parametrize("job_id", [UNKNOWN, *MALFORMED])
def test_a_copy_of_nothing(job_id: str) -> None:
    with pytest.raises(Job.DoesNotExist):
        jobs.enqueue_job_again(job_id)


def test_code_that_is_gone_can_be_retried_copied_and_discarded() -> None:
    job = in_state("failed")
    Job.objects.update(task_path="gone.away.task")
    assert jobs.enqueue_job_again(job.pk).status == "ready"
    assert jobs.retry_failed_job(job.pk).status == "ready"
    assert len(work()) == 2
    assert states() == {"failed": 2}
    assert jobs.discard_failed_jobs() == 2


# ---- by hand ----------------------------------------------------------------------------------------


def test_one_selector_is_text() -> None:
    ids = [tasks.add.using(queue_name=name).enqueue(1, 2).id for name in ("email", "e")]
    assert [str(job.pk) for job in jobs.claim_ready_jobs(limit=10, queues="email")] == ids[:1]


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_without_rows_is_refused(batch_size: int) -> None:
    """It would say that there is nothing left to discard."""
    tasks.add.enqueue(1, 2)
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        jobs.discard_ready_jobs(batch_size=batch_size)
    assert states() == {"ready": 1}


def test_claim_ready_jobs() -> None:
    process = Process.objects.create(kind="Worker", name="by hand", pid=1, hostname="h")
    low, high, other = (
        tasks.add.using(queue_name=queue, priority=priority).enqueue(1, 2).id
        for queue, priority in (("a", 0), ("a", 5), ("b", 9))
    )
    assert jobs.claim_ready_jobs(limit=10, queues=["nothing"]) == []
    first = jobs.claim_ready_jobs(limit=1, queues=["a"], process=process)
    assert [str(job.pk) for job in first] == [high]
    assert isinstance(first[0], Job)
    assert first[0].claimed_execution.process == process
    assert [str(job.pk) for job in jobs.claim_ready_jobs(limit=10, queues=("a", "b"))] == [low, other]
    assert jobs.claim_ready_jobs(limit=10) == []
    assert states() == {"claimed": 3}


def test_execute_claimed_job() -> None:
    process = Process.objects.create(kind="Worker", name="by hand", pid=1, hostname="h")
    good, bad = tasks.add.enqueue(1, 2).id, tasks.fail.enqueue().id
    jobs.claim_ready_jobs(limit=10, process=process)
    done = jobs.execute_claimed_job(good)
    assert (done.status, done.return_value) == ("finished", 3)
    assert jobs.execute_claimed_job(bad).status == "failed"
    result = default_task_backend.get_result(good)
    assert (result.attempts, result.worker_ids, result.return_value) == (1, ["by hand"], 3)
    for job_id in (good, bad, UNKNOWN, *MALFORMED):
        with pytest.raises(ClaimedExecution.DoesNotExist):
            jobs.execute_claimed_job(job_id)
    assert states() == {"finished": 1, "failed": 1}


def test_execute_starts_who_waits() -> None:
    first, second = (tasks.one_per_key.enqueue("k").id for _ in range(2))
    jobs.claim_ready_jobs(limit=10)
    jobs.execute_claimed_job(first)
    assert Job.objects.get(pk=second).status == "ready"


@pytest.mark.parametrize("batch", [1, 2, 3, 500])
def test_promote_scheduled_jobs_in_order(batch: int, two_aliases: None) -> None:
    due = {}
    now = timezone.now()
    for name, minutes, priority in (("c", 1, 9), ("a", 3, -9), ("b2", 2, 0), ("b1", 2, 1), ("b3", 2, 0)):
        job_id = tasks.add.using(run_after=later(), priority=priority).enqueue(1, 2).id
        ScheduledExecution.objects.filter(job_id=job_id).update(scheduled_at=now - timedelta(minutes=minutes))
        due[job_id] = name
    tasks.add.using(run_after=later()).enqueue(1, 2)
    tasks.add.using(run_after=later(), backend="other").enqueue(1, 2)
    ScheduledExecution.objects.filter(job__backend_alias="other").update(scheduled_at=later(-60))
    promoted = []
    while count := jobs.promote_scheduled_jobs(batch_size=batch):
        promoted.append(count)
    assert promoted == [batch] * (5 // batch) + [5 % batch] * bool(5 % batch)
    order = [due[str(pk)] for pk in ReadyExecution.objects.order_by("pk").values_list("job_id", flat=True)]
    assert order == ["a", "b1", "b2", "b3", "c"]
    assert states() == {"ready": 5, "scheduled": 2}


@pytest.mark.parametrize("batch", [100, 700, 3000])
@pytest.mark.parametrize("count", [700, 3000])
def test_many_due_jobs_become_ready_in_the_order_in_which_they_are_due(count: int, batch: int) -> None:
    """In any session: nothing here has told the planner how to join."""
    soon = later()
    ids = [
        result.id
        for result in default_task_backend.enqueue_all([(tasks.add.using(run_after=soon), [1, 2], {})] * count)
    ]
    order = sorted(ids, key=lambda job_id: job_id[-12:])  # at random
    rows = {str(row.job_id): row for row in ScheduledExecution.objects.all()}
    for minutes, job_id in enumerate(order):
        rows[job_id].scheduled_at = later(60 * (minutes - 2 * count))
    ScheduledExecution.objects.bulk_update(rows.values(), ["scheduled_at"], batch_size=500)
    with connections["default"].cursor() as cursor:
        if reader := plans.reader():
            reader.analyze(cursor)
    while jobs.promote_scheduled_jobs(batch_size=batch):
        pass
    found = ReadyExecution.objects.order_by("pk").values_list("job_id", flat=True)
    assert [str(job_id) for job_id in found] == order


def test_dispatchers_that_promote_at_once() -> None:
    default_task_backend.enqueue_all([(tasks.add.using(run_after=later()), [1, 2], {})] * 300)
    ScheduledExecution.objects.update(scheduled_at=later(-60))

    def promote(n: int) -> int:
        total = 0
        try:
            while count := jobs.promote_scheduled_jobs(batch_size=9):
                total += count
        finally:
            connections.close_all()
        return total

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(promote, range(4))) == 300
    assert states() == {"ready": 300}


# ---- batches ----------------------------------------------------------------------------------------


def test_more_ids_than_a_statement_takes_parameters() -> None:
    jobs_ = [tasks.fail.enqueue().id for _ in range(3)]
    work()
    many = [*(str(uuid4()) for _ in range(40_000)), *jobs_]
    assert jobs.retry_failed_jobs(job_ids=many[1:]) == 3
    work()
    assert jobs.discard_failed_jobs(job_ids=(each for each in many)) == 3
    assert states() == {}


def test_a_batch_that_collides_is_told_of_once(monkeypatch: Any, caplog: Any) -> None:
    """The transaction runs again; what it had said before it was rolled back must not count."""
    first, _, third = [tasks.one_per_key.enqueue("k").id for _ in range(3)]
    dialect = type(dialect_for("default"))
    unblock, is_transient = dialect.unblock, dialect.is_transient
    collided: list[OperationalError] = []

    def unblock_and_collide(*args: Any, **kwargs: Any) -> Any:
        unblocked = unblock(*args, **kwargs)
        if not collided:
            collided.append(OperationalError("collided"))
            raise collided[0]
        return unblocked

    monkeypatch.setattr(dialect, "unblock", unblock_and_collide)
    monkeypatch.setattr(dialect, "is_transient", lambda self, error: error in collided or is_transient(self, error))
    caplog.clear()
    with caplog.at_level("INFO", "dj_queue"):
        assert jobs.discard_ready_jobs() == 1
    assert [record.msg for record in caplog.records].count("transaction.retried") == 1
    told = [(each.msg, each.dj_queue["job_id"]) for each in caplog.records if each.msg != "transaction.retried"]
    assert [each for each, _ in told] == ["job.discarded", "job.unblocked"]
    assert told[0][1] == first
    assert third not in dict(told).values()

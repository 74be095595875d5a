"""Concurrency limits: never more than the limit, nobody forgotten, and whatever went wrong heals."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import ProgrammingError, connection, transaction
from django.db.models import Count, Model, Q
from django.tasks import TaskResultStatus, default_task_backend, task_backends
from django.utils import timezone

from dj_queue import api
from dj_queue.config import DispatcherConfig, WorkerConfig, backend_config
from dj_queue.dialects import dialect_for
from dj_queue.exceptions import EnqueueError
from dj_queue.models import BlockedExecution, ClaimedExecution, FailedExecution, Job, Process, ReadyExecution, Semaphore
from dj_queue.operations import execution, jobs, maintenance, recovery
from dj_queue.runtime.dispatcher import Dispatcher
from dj_queue.runtime.worker import Worker
from tests import databases
from tests.conftest import lines, wait_until
from tests.project import tasks
from tests.races import closing, in_thread, while_locked
from tests.working import claim, run, states, work

pytestmark = pytest.mark.django_db(transaction=True)

row_locks = pytest.mark.needs("row locks")

SOON = timedelta(seconds=60)


def enqueue(task: Any, *args: Any, **using: Any) -> Job:
    if using:
        task = task.using(**using)
    return Job.objects.get(pk=task.enqueue(*args).id)


def fresh(job: Job) -> Job:
    return Job.objects.get(pk=job.pk)


def status(*jobs_: Job) -> list[str | None]:
    return [fresh(job).status for job in jobs_]


def semaphore(key: str) -> Semaphore:
    return Semaphore.objects.get(key=key)


def assert_sums() -> None:
    """Every semaphore's value is its limit less who holds it, and nobody waits for a free slot."""
    held = Counter(
        ReadyExecution.objects.filter(concurrency_key__isnull=False).values_list("concurrency_key", flat=True)
    )
    held += Counter(
        ClaimedExecution.objects.filter(job__concurrency_key__isnull=False).values_list(
            "job__concurrency_key", flat=True
        )
    )
    blocked = Counter(BlockedExecution.objects.values_list("concurrency_key", flat=True))
    rows = {row.key: row for row in Semaphore.objects.all()}
    assert held.keys() | blocked.keys() <= rows.keys()
    for key, row in rows.items():
        assert row.value == row.limit - held[key], f"{row}: {held[key]} hold it"
        assert not (blocked[key] and row.value > 0), f"{row}: {blocked[key]} wait"
    states()


def maintain(alias: str = "default") -> int:
    return sum(maintenance.maintain(backend_config(alias)))


def expire(*, blocked: bool = False) -> None:
    past = timezone.now() - SOON
    Semaphore.objects.update(expires_at=past)
    if blocked:
        BlockedExecution.objects.update(expires_at=past)


# ---- saying it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [tasks.two_per_key, tasks.two_or_none], ids=["outside @task", "inside @task"])
def test_the_decorator_works_on_either_side_of_task(task: Any) -> None:
    assert task.func.concurrency_key == "two:{key}"
    assert task.func.concurrency_limit == 2
    placed = Counter(status(*[enqueue(task, "k") for _ in range(5)]))
    kept_out = "finished" if task is tasks.two_or_none else "blocked"
    assert placed == {"ready": 2, kept_out: 3}


def test_the_decorator_says_the_same_as_attributes() -> None:
    def function(key: str) -> None: ...

    assert api.concurrency(key="k", limit=4, duration=timedelta(hours=1), on_conflict="discard")(function) is function
    assert vars(function) == {
        "concurrency_key": "k",
        "concurrency_limit": 4,
        "concurrency_duration": timedelta(hours=1),
        "on_conflict": "discard",
    }


@pytest.mark.parametrize(
    "wrong", [{"limit": 0}, {"limit": -1}, {"on_conflict": "replace"}, {"key": "{nothing}"}, {"key": "k" * 256},
              {"duration": 0}],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_with_the_decorator_is_said_at_enqueue(wrong: dict[str, Any], monkeypatch: Any) -> None:
    for name in ("concurrency_key", "concurrency_limit", "concurrency_duration", "on_conflict"):
        monkeypatch.setattr(tasks.add.func, name, None, raising=False)
    api.concurrency(**{"key": "{a}", **wrong})(tasks.add)
    with pytest.raises(EnqueueError, match=r"tests\.project\.tasks\.add"):
        tasks.add.enqueue(1, 2)
    assert not Job.objects.exists()
    assert not Semaphore.objects.exists()


@pytest.mark.parametrize(
    ("key", "args", "kwargs", "resolved"),
    [
        ("{a}:{b}", [1, 2], {}, "1:2"),
        ("{a}:{b}", [1], {"b": 2}, "1:2"),
        ("{a}:{b}", [], {"b": 2, "a": 1}, "1:2"),
        ("{a[x]}", [{"x": 7}, 2], {}, "7"),
        (lambda a, b: f"{b}-{a}", [1], {"b": 2}, "2-1"),
        (lambda *args, **kwargs: f"{args}{kwargs}", [1], {"b": 2}, "(1,){'b': 2}"),
        ("ключ 🔑 {a}", [1, 2], {}, "ключ 🔑 1"),
    ],
)
def test_keys(key: Any, args: list[Any], kwargs: dict[str, Any], resolved: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(tasks.add.func, "concurrency_key", key, raising=False)
    monkeypatch.setattr(tasks.add.func, "concurrency_limit", 1, raising=False)
    first = tasks.add.enqueue(*args, **kwargs)
    second = tasks.add.enqueue(*args, **kwargs)
    found = {str(job.pk): (job.concurrency_key, job.status) for job in Job.objects.all()}
    assert found == {first.id: (resolved, "ready"), second.id: (resolved, "blocked")}
    assert semaphore(resolved).limit == 1


def test_the_key_of_a_task_with_any_keywords(monkeypatch: Any) -> None:
    monkeypatch.setattr(tasks.echo.func, "concurrency_key", "{tenant}:{args[0]}", raising=False)
    monkeypatch.setattr(tasks.echo.func, "concurrency_limit", 1, raising=False)
    tasks.echo.enqueue(5, tenant="acme")
    assert Job.objects.get().concurrency_key == "acme:5"


def test_a_callable_gets_the_arguments_without_the_context(monkeypatch: Any) -> None:
    seen = []

    def key(*args: Any, **kwargs: Any) -> str:
        seen.append((args, kwargs))
        return "k"

    monkeypatch.setattr(tasks.describe_context.func, "concurrency_key", key, raising=False)
    monkeypatch.setattr(tasks.describe_context.func, "concurrency_limit", 1, raising=False)
    tasks.describe_context.enqueue(label="x")
    assert seen == [((), {"label": "x"})]
    (job,) = work()
    assert job.value["label"] == "x"


def test_a_limited_call_is_stored_with_its_limit() -> None:
    job = enqueue(tasks.two_or_none, "k")
    assert (job.concurrency_key, job.concurrency_limit, job.on_conflict) == ("two:k", 2, "discard")
    assert job.concurrency_duration == 180


def test_the_default_duration_is_an_option(configure: Callable[..., None]) -> None:
    configure(default_concurrency_duration=7)
    assert enqueue(tasks.one_per_key, "k").concurrency_duration == 7
    row = semaphore("one:k")
    assert row.expires_at - row.updated_at == timedelta(seconds=7)


# ---- block, discard ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "key", "limit"), [(tasks.one_per_key, "one:k", 1), (tasks.three_per_key, "three:k", 3)]
)
def test_block(task: Any, key: str, limit: int) -> None:
    stored = [enqueue(task, "k") for _ in range(limit + 2)]
    assert status(*stored) == ["ready"] * limit + ["blocked"] * 2
    assert (semaphore(key).value, semaphore(key).limit) == (0, limit)
    assert enqueue(task, "another").status == "ready"
    assert len(claim()) == limit + 1  # blocked jobs cannot be claimed
    assert status(*stored) == ["claimed"] * limit + ["blocked"] * 2
    assert_sums()


def test_discard() -> None:
    first, second = enqueue(tasks.one_or_none, "k"), enqueue(tasks.one_or_none, "k")
    assert status(first, second) == ["ready", "finished"]
    result = default_task_backend.get_result(str(second.pk))
    assert result.status is TaskResultStatus.SUCCESSFUL
    assert result.return_value is None
    assert result.attempts == 0
    assert result.finished_at == result.enqueued_at
    assert len(work()) == 1
    assert enqueue(tasks.one_or_none, "k").status == "ready"
    assert_sums()


def test_enqueue_all_shares_the_slots_in_order() -> None:
    calls = [(tasks.two_or_none, ["k"], {}), (tasks.add, [1, 2], {})] * 4
    results = default_task_backend.enqueue_all(calls)
    assert [result.status for result in results[0::2]] == ["READY", "READY", "SUCCESSFUL", "SUCCESSFUL"]
    assert states() == {"ready": 6, "finished": 2}
    assert_sums()


def test_a_limit_rolls_back_with_the_transaction() -> None:
    with transaction.atomic():
        enqueue(tasks.one_per_key, "k")
        transaction.set_rollback(True)
    assert not Semaphore.objects.exists()
    assert enqueue(tasks.one_per_key, "k").status == "ready"


def test_blocked_jobs_start_by_priority_and_then_in_turn() -> None:
    enqueue(tasks.one_per_key, "k", priority=-100)
    waiting = {
        (priority, n): enqueue(tasks.one_per_key, "k", priority=priority).pk
        for n in (1, 2)
        for priority in (0, 50, -50)
    }
    work()
    order = [work()[0].claim.job_id for _ in waiting]
    expected = [(50, 1), (50, 2), (0, 1), (0, 2), (-50, 1), (-50, 2)]
    assert order == [waiting[each] for each in expected]
    assert_sums()


# ---- slots come back --------------------------------------------------------------------------------


def succeed(job: Job) -> None:
    execution.finish(backend_config(), run(claim()), worker="w")


def fail(job: Job) -> None:
    Job.objects.filter(pk=job.pk).update(task_path="tests.project.tasks.fail", payload={"args": [], "kwargs": {}})
    execution.finish(backend_config(), run(claim()), worker="w")
    assert FailedExecution.objects.filter(job=job).exists()


def discard(job: Job) -> None:
    assert jobs.discard_ready_jobs(job_ids=[job.pk]) == 1


def clear(job: Job) -> None:
    assert api.QueueInfo("default").clear() == 1


def crash(job: Job) -> None:
    process = Process.objects.create(kind="Worker", name="w", pid=1, hostname="h")
    claim(process_id=process.pk)
    assert recovery.process_ended(backend_config(), process.pk).failed == [str(job.pk)]


def prune(job: Job) -> None:
    long_ago = timezone.now() - timedelta(hours=1)
    process = Process.objects.create(kind="Worker", name="w", pid=1, hostname="h", last_heartbeat_at=long_ago)
    claim(process_id=process.pk)
    assert recovery.prune(backend_config()) == 1


def go_missing(job: Job) -> None:
    claim(process_id=12345)
    assert recovery.settle_missing(backend_config()).failed == [str(job.pk)]


ENDS = [succeed, fail, discard, clear, crash, prune, go_missing]


@pytest.mark.parametrize("preserve", [True, False], ids=["finished jobs kept", "finished jobs deleted"])
@pytest.mark.parametrize("end", ENDS)
def test_the_next_starts_without_upkeep(
    end: Callable[[Job], None], preserve: bool, configure: Any, caplog: Any
) -> None:
    configure(preserve_finished_jobs=preserve)
    first, second, third = (enqueue(tasks.one_per_key, "k") for _ in range(3))
    assert status(first, second, third) == ["ready", "blocked", "blocked"]
    with caplog.at_level("INFO", "dj_queue"):
        end(first)
    assert status(second, third) == ["ready", "blocked"]
    (told,) = [record.dj_queue for record in caplog.records if record.msg == "job.unblocked"]
    assert told == {"job_id": str(second.pk), "concurrency_key": "one:k"}
    assert_sums()


@pytest.mark.parametrize("end", ENDS)
def test_the_last_one_leaves_a_free_slot(end: Callable[[Job], None]) -> None:
    end(enqueue(tasks.one_per_key, "k"))
    assert semaphore("one:k").value == 1
    assert enqueue(tasks.one_per_key, "k").status == "ready"
    assert_sums()


def test_several_slots_of_several_keys_at_once() -> None:
    stored = [enqueue(tasks.three_per_key, key) for key in "ab" for _ in range(7)]
    assert len(work(100)) == 6
    assert states() == {"finished": 6, "ready": 6, "blocked": 2}
    assert_sums()
    assert len(work(100)) == 6
    assert len(work(100)) == 2
    assert status(*stored) == ["finished"] * 14
    assert_sums()


def test_a_claim_given_back_keeps_its_slot() -> None:
    first, second = enqueue(tasks.one_per_key, "k"), enqueue(tasks.one_per_key, "k")
    assert execution.release(backend_config(), claim()) == 1
    assert status(first, second) == ["ready", "blocked"]
    assert_sums()
    assert [job.claim.job_id for job in work()] == [first.pk]
    assert status(second) == ["ready"]


def test_a_late_finish_frees_nothing() -> None:
    first, second, third = (enqueue(tasks.one_per_key, "k") for _ in range(3))
    late = run(claim(process_id=12345))
    recovery.settle_missing(backend_config())
    assert status(first, second, third) == ["failed", "ready", "blocked"]
    assert execution.finish(backend_config(), late, worker="w") == []
    assert status(first, second, third) == ["failed", "ready", "blocked"]
    assert_sums()


@pytest.mark.parametrize("state", ["blocked", "scheduled"])
def test_discarding_who_holds_no_slot_frees_none(state: str) -> None:
    first, second = enqueue(tasks.one_per_key, "k"), enqueue(tasks.one_per_key, "k")
    later = enqueue(tasks.one_per_key, "k", run_after=timezone.now() + SOON)
    third = enqueue(tasks.one_per_key, "k")
    gone = second if state == "blocked" else later
    assert getattr(jobs, f"discard_{state}_jobs")(job_ids=[gone.pk]) == 1
    assert status(first, third) == ["ready", "blocked"]
    assert_sums()


@pytest.mark.parametrize("batch", [1, 2, 500])
def test_discarding_ready_jobs_discards_no_blocked_one(batch: int) -> None:
    stored = [enqueue(tasks.two_per_key, "k") for _ in range(6)]
    assert jobs.discard_ready_jobs(batch_size=batch) == 2
    assert list(Job.objects.order_by("pk")) == stored[2:]
    assert status(*stored[2:]) == ["ready", "ready", "blocked", "blocked"]
    assert ReadyExecution.discard_all_in_batches(batch_size=batch) == 2
    assert api.QueueInfo("default").clear(batch_size=batch) == 2
    assert states() == {}
    assert semaphore("two:k").value == 2


# ---- retry, promotion, copies -----------------------------------------------------------------------


def test_retry_respects_the_limit() -> None:
    failed = enqueue(tasks.one_per_key, "k")
    fail(failed)
    running = enqueue(tasks.one_per_key, "k")
    assert jobs.retry_failed_job(failed.pk).status == "blocked"
    assert status(failed, running) == ["blocked", "ready"]
    assert_sums()
    Job.objects.filter(pk=failed.pk).update(task_path=running.task_path, payload=running.payload)
    assert [job.claim.job_id for job in work() + work()] == [running.pk, failed.pk]
    assert status(failed) == ["finished"]


def test_retry_of_many_respects_the_limit() -> None:
    stored = [enqueue(tasks.three_per_key, "k") for _ in range(7)]
    Job.objects.update(task_path="tests.project.tasks.fail", payload={"args": [], "kwargs": {}})
    for _ in range(3):
        work()
    assert states() == {"failed": 7}
    assert jobs.retry_failed_jobs(batch_size=2) == 7
    assert status(*stored) == ["ready"] * 3 + ["blocked"] * 4
    assert_sums()


def test_retry_of_what_is_discarded_on_conflict() -> None:
    failed = enqueue(tasks.one_or_none, "k")
    fail(failed)
    enqueue(tasks.one_or_none, "k")
    assert jobs.retry_failed_job(failed.pk).status == "finished"
    result = default_task_backend.get_result(str(failed.pk))
    assert result.status is TaskResultStatus.SUCCESSFUL
    assert [error.exception_class_path for error in result.errors] == ["builtins.ValueError"]
    assert_sums()


def make_due(*stored: Job) -> None:
    for minutes, job in enumerate(reversed(stored), 1):
        job.scheduled_execution.scheduled_at = timezone.now() - timedelta(minutes=minutes)
        job.scheduled_execution.save()


def test_a_scheduled_job_takes_its_slot_when_it_is_due() -> None:
    later = timezone.now() + SOON
    stored = [enqueue(tasks.one_per_key, "k", run_after=later) for _ in range(2)]
    singles = [enqueue(tasks.one_or_none, "k", run_after=later) for _ in range(2)]
    assert status(*stored, *singles) == ["scheduled"] * 4
    assert not Semaphore.objects.exists()
    now = enqueue(tasks.one_per_key, "k")
    assert now.status == "ready"
    make_due(*stored, *singles)
    assert jobs.promote_scheduled_jobs(batch_size=500) == 4
    assert status(now, *stored, *singles) == ["ready", "blocked", "blocked", "ready", "finished"]
    assert_sums()
    assert len(work()) == 2
    assert status(*stored) == ["ready", "blocked"]


def test_promotion_shares_slots_by_due_time_then_priority() -> None:
    later = timezone.now() + SOON
    low, high, early = (enqueue(tasks.one_per_key, "k", run_after=later, priority=n) for n in (1, 2, 0))
    due = timezone.now() - SOON
    for job, at in ((low, due), (high, due), (early, due - SOON)):
        job.scheduled_execution.scheduled_at = at
        job.scheduled_execution.save()
    assert jobs.promote_scheduled_jobs(batch_size=500) == 3
    assert status(early, high, low) == ["ready", "blocked", "blocked"]


def test_a_copy_respects_the_limit() -> None:
    first = enqueue(tasks.one_per_key, "k")
    assert jobs.enqueue_job_again(first.pk).status == "blocked"
    single = enqueue(tasks.one_or_none, "k")
    assert jobs.enqueue_job_again(single.pk).status == "finished"
    assert_sums()


# ---- the limit changes ------------------------------------------------------------------------------


def limit(monkeypatch: Any, value: int) -> None:
    monkeypatch.setattr(tasks.one_per_key.func, "concurrency_limit", value)


def test_a_raised_limit_counts_from_the_next_enqueue(monkeypatch: Any) -> None:
    first, second = enqueue(tasks.one_per_key, "k"), enqueue(tasks.one_per_key, "k")
    limit(monkeypatch, 3)
    third = enqueue(tasks.one_per_key, "k")
    assert semaphore("one:k").limit == 3
    assert status(first, second, third) == ["ready", "ready", "ready"]
    assert maintain() == 0
    assert_sums()
    assert enqueue(tasks.one_per_key, "k").status == "blocked"


def test_a_finish_starts_all_that_a_raised_limit_has_room_for(monkeypatch: Any) -> None:
    stored = [enqueue(tasks.one_per_key, "k") for _ in range(4)]
    limit(monkeypatch, 3)
    stored.append(enqueue(tasks.one_per_key, "k"))
    work(1)
    assert states() == {"finished": 1, "ready": 3, "blocked": 1}
    assert_sums()


def test_a_lowered_limit_waits_until_there_is_room(monkeypatch: Any) -> None:
    limit(monkeypatch, 3)
    for _ in range(3):
        enqueue(tasks.one_per_key, "k")
    limit(monkeypatch, 1)
    last = enqueue(tasks.one_per_key, "k")
    assert last.status == "blocked"
    assert (semaphore("one:k").value, semaphore("one:k").limit) == (-2, 1)
    for left in (2, 1):
        work(1)
        assert states()["ready"] == left
        assert fresh(last).status == "blocked"
        maintain()
        assert fresh(last).status == "blocked"
    work(1)
    assert fresh(last).status == "ready"
    assert_sums()


# ---- expiry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["ready", "claimed", "blocked"])
def test_an_expired_semaphore_stays_while_it_is_needed(state: str) -> None:
    enqueue(tasks.one_per_key, "k")
    if state == "claimed":
        claim()
    elif state == "blocked":
        enqueue(tasks.one_per_key, "k")
    expire()
    assert maintain() == 0
    assert semaphore("one:k").value == 0
    assert enqueue(tasks.one_per_key, "k").status == "blocked"
    assert_sums()


@pytest.mark.parametrize("expired", [True, False])
def test_a_semaphore_that_nobody_needs_goes_when_it_expires(expired: bool) -> None:
    enqueue(tasks.one_per_key, "k")
    work()
    if expired:
        expire()
    maintain()
    assert Semaphore.objects.exists() is not expired
    assert enqueue(tasks.one_per_key, "k").status == "ready"
    assert_sums()


def test_an_overdue_blocked_job_does_not_exceed_the_limit() -> None:
    enqueue(tasks.one_per_key, "k")
    claim()
    waiting = enqueue(tasks.one_per_key, "k")
    expire(blocked=True)
    assert maintain() == 0
    assert fresh(waiting).status == "blocked"
    assert fresh(waiting).blocked_execution.expires_at > timezone.now()


def test_every_taker_moves_the_expiry(monkeypatch: Any) -> None:
    monkeypatch.setattr(tasks.one_per_key.func, "concurrency_duration", 1000, raising=False)
    enqueue(tasks.one_per_key, "k")
    waiting = enqueue(tasks.one_per_key, "k")
    now = timezone.now()
    assert abs(fresh(waiting).blocked_execution.expires_at - now - timedelta(seconds=1000)) < SOON
    expire()
    work()
    assert abs(semaphore("one:k").expires_at - now - timedelta(seconds=1000)) < SOON


# ---- leaks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-3, 0, 1, 2, 7])
def test_a_wrong_value_is_counted_anew(value: int) -> None:
    enqueue(tasks.two_per_key, "k")
    Semaphore.objects.update(value=value)
    maintain()
    assert semaphore("two:k").value == 1
    assert_sums()


def test_a_leaked_slot_starts_who_waits_for_it() -> None:
    Semaphore.objects.create(key="two:k", value=0, limit=2, expires_at=timezone.now() + SOON)
    stored = [enqueue(tasks.two_per_key, "k", priority=n) for n in range(3)]
    assert status(*stored) == ["blocked"] * 3
    assert maintain() == 2
    assert status(*stored) == ["blocked", "ready", "ready"]
    assert_sums()


def test_a_semaphore_that_is_gone_comes_back_for_who_waits() -> None:
    stored = [enqueue(tasks.three_per_key, "k") for _ in range(5)]
    claim(1)
    Semaphore.objects.all().delete()
    assert maintain() == 0
    assert (semaphore("three:k").limit, semaphore("three:k").value) == (3, 0)
    work()
    assert states()["blocked"] == 0
    assert status(stored[0]) == ["claimed"]
    assert_sums()


def test_upkeep_reaches_every_key(monkeypatch: Any) -> None:
    monkeypatch.setattr(maintenance, "_BATCH", 3)
    keys = [*"abcABC", "a b", "ä", "Z", "é", "🔑", "10", "9", "_", "%", "a_b", "a-b", "aB", "Ab"]
    for key in keys:
        enqueue(tasks.one_per_key, key)
    waiting = [enqueue(tasks.one_per_key, key) for key in keys[::2]]
    Semaphore.objects.filter(key__in=[f"one:{key}" for key in keys[::4]]).delete()
    Semaphore.objects.update(value=1)
    jobs.discard_blocked_jobs(job_ids=[waiting[-1].pk])
    assert maintain() == 0
    assert not Semaphore.objects.exclude(value=0).exists()
    assert_sums()
    ReadyExecution.objects.all().delete()  # behind the queue's back
    assert maintain() == len(waiting) - 1
    assert set(status(*waiting[:-1])) == {"ready"}


def test_upkeep_walks_the_keys_in_the_order_of_the_database(monkeypatch: Any) -> None:
    """Whatever that order is: here, one that Python does not have."""
    monkeypatch.setattr(maintenance, "_BATCH", 2)
    with keys_collated(connection.features.test_collations.get("non_default")):
        keys = ["a1", "a2", "a3", "B1", "B2", "B3"]
        for key in keys:
            enqueue(tasks.one_per_key, key)
        found = Semaphore.objects.order_by("key").values_list("key", flat=True)
        assert list(found) == [f"one:{key}" for key in keys]  # and not sorted()
        waiting = [enqueue(tasks.one_per_key, key) for key in keys if key.startswith("B")]
        Semaphore.objects.update(value=-5)
        maintain()
        assert_sums()
        assert set(status(*waiting)) == {"blocked"}


def test_due_jobs_do_not_wait_for_upkeep_of_many_keys(monkeypatch: Any) -> None:
    monkeypatch.setattr(maintenance, "_BATCH", 2)
    for n in range(6):
        enqueue(tasks.one_per_key, str(n))
    Semaphore.objects.update(value=-5)
    config = backend_config()
    dispatcher = Dispatcher(config, DispatcherConfig(), "dispatcher-1")
    promoted = []
    for _ in range(3):
        later = enqueue(tasks.add, 1, 2, run_after=timezone.now() + SOON)
        make_due(later)
        assert dispatcher.step() == 0  # there is more upkeep
        promoted.append((fresh(later).status, Semaphore.objects.filter(value=0).count()))
    assert promoted == [("ready", 2), ("ready", 4), ("ready", 6)]
    assert dispatcher.step() == dispatcher.options.polling_interval
    assert dispatcher.step() == dispatcher.options.polling_interval
    dispatcher.wakeup.close()


@contextmanager
def keys_collated(collation: str | None) -> Iterator[None]:
    def alter(model: type[Model], name: str, *, back: bool) -> None:
        usual = model._meta.get_field(name)
        other = usual.clone()
        other.db_collation = collation
        other.set_attributes_from_name(name)
        other.model = model
        with connection.schema_editor() as editor:
            editor.alter_field(model, *((other, usual) if back else (usual, other)))

    columns: list[tuple[type[Model], str]] = [(Semaphore, "key"), (BlockedExecution, "concurrency_key")]
    if not collation:
        pytest.skip("no collation is known whose order is not Python's")
    changed = []
    try:
        for column in columns:
            try:
                alter(*column, back=False)
            except ProgrammingError as error:
                pytest.skip(f"the server lacks the collation: {error}")
            changed.append(column)
        yield
    finally:
        for column in changed:
            alter(*column, back=True)


# ---- two aliases, and code that is gone -------------------------------------------------------------


def test_two_aliases_share_a_key(two_aliases: None) -> None:
    mine = enqueue(tasks.one_per_key, "k")
    theirs = enqueue(tasks.one_per_key, "k", backend="other")
    mine_too = enqueue(tasks.one_per_key, "k")
    assert status(mine, theirs, mine_too) == ["ready", "blocked", "blocked"]
    assert claim(alias="other") == []
    work()
    assert status(theirs, mine_too) == ["ready", "blocked"]
    assert claim() == []
    assert len(work(alias="other")) == 1
    assert status(mine_too) == ["ready"]
    assert len(work()) == 1
    assert_sums()


@pytest.mark.parametrize("alias", ["default", "other"])
def test_upkeep_of_one_alias_serves_both(alias: str, two_aliases: None) -> None:
    Semaphore.objects.create(key="two:k", value=0, limit=2, expires_at=timezone.now() + SOON)
    stored = [enqueue(tasks.two_per_key, "k", backend=each) for each in ("default", "other")]
    assert maintain(alias) == 2
    assert status(*stored) == ["ready", "ready"]
    assert [row.backend_alias for row in ReadyExecution.objects.order_by("pk")] == ["default", "other"]
    assert_sums()


def test_code_that_is_gone_stops_neither_promotion_nor_upkeep() -> None:
    later = timezone.now() + SOON
    stored = [enqueue(tasks.two_per_key, "k", run_after=later) for _ in range(4)]
    Job.objects.filter(pk__in=[job.pk for job in stored[:2]]).update(task_path="gone.away.task")
    for job in stored:
        make_due(job)
    assert jobs.promote_scheduled_jobs(batch_size=500) == 4
    assert status(*stored) == ["ready", "ready", "blocked", "blocked"]
    Job.objects.update(task_path="gone.away.task")
    ReadyExecution.objects.all().delete()  # behind the queue's back
    Job.objects.filter(pk__in=[job.pk for job in stored[:2]]).delete()
    assert maintain() == 2
    assert status(*stored[2:]) == ["ready", "ready"]
    assert len(work()) == 2
    assert states() == {"failed": 2}
    assert_sums()


# ---- at the same time -------------------------------------------------------------------------------


def test_many_enqueue_at_once() -> None:
    barrier = threading.Barrier(8)

    def enqueue_some() -> list[str]:
        barrier.wait()
        return [tasks.three_per_key.enqueue("k").id for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        for each in [pool.submit(closing, enqueue_some) for _ in range(8)]:
            each.result()
    assert states() == {"ready": 3, "blocked": 37}
    assert_sums()


@row_locks
def test_a_semaphore_that_upkeep_deletes_just_now() -> None:
    """Who enqueues meanwhile waits for the row, and then there is none."""
    enqueue(tasks.one_per_key, "k")
    work()
    key = Semaphore.objects.get().key
    waits = threading.Event()

    def say(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "FOR UPDATE" in sql:
            waits.set()
        return execute(sql, params, many, context)

    def enqueue_meanwhile() -> list[str | None]:
        with connection.execute_wrapper(say):
            return [enqueue(task, "k").status for task in (tasks.one_per_key, tasks.one_per_key)]

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            row = Semaphore.objects.select_for_update().get(key=key)
            found = pool.submit(closing, enqueue_meanwhile)
            assert waits.wait(20)
            row.delete()
        assert found.result() == ["ready", "blocked"]
    assert_sums()


def each_of(keys: str) -> list[Any]:
    return [(tasks.two_per_key, [key], {}) for key in keys]


@row_locks
def test_enqueueing_several_keys_while_their_slots_are_taken() -> None:
    """What waited for the locks counts what was taken meanwhile, of each key, whatever its snapshot shows."""
    for key in "bc":
        enqueue(tasks.two_per_key, key)
    work()  # all slots are free again
    enqueue(tasks.two_per_key, "a")
    while_locked(
        lambda: default_task_backend.enqueue_all(each_of("abc")),
        lambda: default_task_backend.enqueue_all(each_of("abcabc")),
    )
    ready, blocked = (
        Counter(model.objects.values_list("concurrency_key", flat=True)) for model in (ReadyExecution, BlockedExecution)
    )
    assert ready == {"two:a": 2, "two:b": 2, "two:c": 2}
    assert blocked == {"two:a": 2, "two:b": 1, "two:c": 1}
    assert_sums()


@row_locks
def test_finishing_several_keys_while_others_block_on_them() -> None:
    """Who blocked while the finish waited for its lock is started by that finish."""
    default_task_backend.enqueue_all(each_of("aabbcc"))
    done = run(claim())
    assert len(done) == 6
    recorded = while_locked(
        lambda: default_task_backend.enqueue_all(each_of("aabbcc")),
        lambda: execution.finish(backend_config(), done, worker="w"),
    )
    assert len(recorded) == 6
    assert states() == {"finished": 6, "ready": 6}
    assert_sums()


@row_locks
@pytest.mark.parametrize("first", ["claimed", "ready"])
def test_jobs_that_move_while_upkeep_counts_them(first: str) -> None:
    """Claiming and giving back take no lock on the semaphore: the count must not see a job twice, or not at all."""
    enqueue(tasks.one_per_key, "k")
    enqueue(tasks.one_per_key, "k")
    held = in_thread(claim) if first == "claimed" else []
    moved = 0

    def move() -> None:
        nonlocal held
        if held:
            execution.release(backend_config(), held)
            held = []
        else:
            held = claim()

    def move_after(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal moved
        result = execute(sql, params, many, context)
        in_thread(move)
        moved += 1
        return result

    with connection.execute_wrapper(move_after):
        assert maintain() == 0
    assert moved > 3
    assert_sums()


@pytest.mark.timeout(180)
def test_limits_hold_whatever_happens_at_once(two_aliases: None, monkeypatch: Any) -> None:
    """Threads enqueue, work, give back, crash, retry, discard and keep up; one looks, in one statement."""
    dialect = type(dialect_for("default"))
    collisions: list[str] = []
    is_transient = dialect.is_transient
    monkeypatch.setattr(
        dialect, "is_transient", lambda self, error: collisions.append(str(error)) or is_transient(self, error)
    )
    deadline = time.monotonic() + 4
    limits = {"one:a": 1, "two:a": 2, "two:b": 2, "three:a": 3}
    looks = 0
    highest: Counter[str] = Counter()

    def until_deadline(step: Callable[[random.Random], Any], seed: int) -> int:
        chance, steps = random.Random(seed), 0
        while time.monotonic() < deadline or steps < 6:  # a busy machine may starve one of them
            step(chance)
            steps += 1
        return steps

    def produce(chance: random.Random) -> None:
        calls = [
            (tasks.one_per_key, ["a"], {}),
            (tasks.two_per_key, ["a"], {}),
            (tasks.two_or_none, ["b"], {}),
            (tasks.two_per_key, ["b"], {}),
            (tasks.three_per_key, ["a"], {}),
        ]
        alias = chance.choice(["default", "other"])
        some = [(task.using(backend=alias), args, kwargs) for task, args, kwargs in chance.sample(calls, 3)]
        if BlockedExecution.objects.count() < 100:
            task_backends[alias].enqueue_all(some)
        else:
            jobs.discard_blocked_jobs(batch_size=20, backend_alias=alias)

    def consume(chance: random.Random) -> None:
        alias = chance.choice(["default", "other"])
        config = backend_config(alias)
        claimed = claim(chance.randint(1, 5), alias=alias, process_id=1)
        for job in claimed:
            if chance.random() < 0.3:
                job.claim = job.claim._replace(task_path="tests.project.tasks.fail", payload='{"args":[],"kwargs":{}}')
        match chance.randrange(5):
            case 0:
                execution.release(config, claimed)
            case 1:
                pass  # left behind
            case _:
                execution.finish(config, run(claimed, alias=alias), worker="w")

    def operate(chance: random.Random) -> None:
        alias = chance.choice(["default", "other"])
        match chance.randrange(5):
            case 0:
                jobs.retry_failed_jobs(batch_size=3, backend_alias=alias)
            case 1:
                jobs.discard_failed_jobs(batch_size=3, backend_alias=alias)
            case 2:
                recovery.settle_missing(backend_config(alias))
            case 3:
                jobs.discard_ready_jobs(batch_size=3, backend_alias=alias)
            case 4:
                key = chance.choice(sorted(limits))
                Semaphore.objects.filter(key=key).update(expires_at=timezone.now() - SOON)
                maintain(alias)

    def look(chance: random.Random) -> None:
        nonlocal looks
        holding = Job.objects.filter(Q(ready_execution__isnull=False) | Q(claimed_execution__isnull=False))
        for key, count in holding.values_list("concurrency_key").annotate(Count("pk")):
            highest[key] = max(highest[key], count)
            assert count <= limits[key], f"{count} jobs hold {key}"
        looks += 1

    roles = [produce, produce, consume, consume, operate, look]
    with ThreadPoolExecutor(len(roles)) as pool:
        running = [pool.submit(closing, until_deadline, role, seed) for seed, role in enumerate(roles)]
        steps = [each.result() for each in running]
    print(f"[{databases.VENDOR}] steps {steps}, highest {dict(highest)}, {len(collisions)} collisions {collisions[:1]}")
    assert highest == limits
    for alias in ("default", "other"):
        recovery.settle_missing(backend_config(alias))
    assert_sums()
    wait_until(lambda: not (work() + work(alias="other")), seconds=60, what="everything done")
    assert set(states()) <= {"finished", "failed"}
    assert_sums()


def test_a_worker_looks_at_once_for_what_it_unblocked(monkeypatch: Any) -> None:
    """Not only where the database can notify it: no poll lies between two jobs of a key."""
    stored = [enqueue(tasks.one_per_key, "k") for _ in range(3)]
    config = backend_config()
    worker = Worker(config, WorkerConfig(threads=1), "worker-1")
    monkeypatch.setattr(worker, "_hear", lambda: False)
    try:
        for n in range(len(stored)):
            wait_until(lambda: (worker.step(), status(*stored)[n] == "finished")[1], what=f"job {n}")  # noqa: B023
            assert (worker._next_claim == 0.0 or bool(worker._held)) is (n < 2)
    finally:
        worker.drain()
        worker.wakeup.close()


# ---- real runtimes ----------------------------------------------------------------------------------


@pytest.fixture
def all_finished() -> Callable[..., None]:
    def wait(count: int, seconds: float = 60) -> None:
        wait_until(lambda: Job.objects.finished().count() == count, seconds=seconds, what=f"{count} jobs finished")

    return wait


def test_never_more_than_two_at_once(runtime: Any, tmp_path: Any, all_finished: Any) -> None:
    record = tmp_path / "record"
    runtime(options={"workers": {"threads": 4, "processes": 2, "polling_interval": 0.02}}, rows=4)
    default_task_backend.enqueue_all([(tasks.record_overlap, ["k", str(record), 0.05], {})] * 24)
    all_finished(24)
    moments = sorted((int(at), kind) for kind, at in (line.split() for line in lines(record)))
    assert len(moments) == 48
    running = most = 0
    for _, kind in moments:
        running += 1 if kind == "+" else -1
        most = max(most, running)
    assert most == 2
    assert_sums()


@pytest.mark.timeout(240)
def test_a_hot_key_drains(runtime: Any, tmp_path: Any, all_finished: Any) -> None:
    """2,000 jobs, one at a time, and no upkeep: each starts the next; more than a thousand a minute."""
    ran = tmp_path / "ran"
    default_task_backend.enqueue_all([(tasks.hot, [str(ran), str(n)], {}) for n in range(2000)])
    assert states() == {"ready": 1, "blocked": 1999}
    options = {
        "workers": {"threads": 2, "processes": 2, "polling_interval": 0.05},
        "dispatchers": {"concurrency_maintenance": False},
    }
    runtime(options=options, rows=3)
    began = time.monotonic()
    all_finished(2000, seconds=120)
    seconds = time.monotonic() - began
    first, *_, last = Job.objects.order_by("finished_at").values_list("finished_at", flat=True)
    rate = 2000 / (last - first).total_seconds() * 60
    print(f"[{databases.VENDOR}] hot key: 2000 jobs in {seconds:.1f} s, {rate:,.0f} a minute")
    assert lines(ran) == [str(n) for n in range(2000)]
    assert rate > 1000
    assert_sums()

"""Semaphores are locked in one order, whatever table, index or collation says; and upkeep waits for none."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.tasks import default_task_backend
from django.utils import timezone

from dj_queue import events
from dj_queue.config import backend_config
from dj_queue.dialects import dialect_for
from dj_queue.models import BlockedExecution, FailedExecution, ScheduledExecution, Semaphore
from dj_queue.operations import execution, jobs, maintenance
from tests.project import tasks
from tests.races import closing, in_thread
from tests.working import claim, run, states, work

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.needs("row locks")]

# Made in another order than that of their names, and sorted by most collations in another one than by bytes.
KEYS = random.Random(1).sample([*"aBcDeFéßZz_0", "ö", "\u4e00", "\uffee", "\U0001f600"], 16)


def enqueue_some(keys: list[str]) -> None:
    default_task_backend.enqueue_all((tasks.two_per_key, [key], {}) for key in keys)


def test_the_order_is_that_of_bytes() -> None:
    enqueue_some(KEYS)
    dialect = dialect_for("default")
    with transaction.atomic(), connection.cursor() as cursor:
        keys = [f"two:{key}" for key in KEYS]
        locked = [row.key for row in dialect.lock_semaphores(cursor, keys)]
    assert locked == sorted(keys) == sorted(keys, key=str.encode)


def test_nothing_that_locks_semaphores_deadlocks() -> None:
    """In a transaction of the caller's a deadlock would end that one: no second attempt is allowed here."""
    retried: list[object] = []
    hear = lambda _, fields: retried.append(fields)  # noqa: E731
    config = backend_config()
    enqueue_some(KEYS)
    over = time.monotonic() + 6

    def enqueue() -> None:
        if BlockedExecution.objects.count() > 300:
            return
        with transaction.atomic():
            enqueue_some(random.sample(KEYS, 6))

    def enqueue_due() -> None:
        later = tasks.two_per_key.using(run_after=timezone.now() + timedelta(hours=1))
        default_task_backend.enqueue_all((later, [key], {}) for key in random.sample(KEYS, 4))
        ScheduledExecution.objects.update(scheduled_at=timezone.now())
        jobs.promote(config, limit=20)

    def finish() -> None:
        if done := run(claim(20)):
            execution.finish(config, done, worker="w")

    def upkeep() -> None:
        list(maintenance.maintain(config))

    def discard() -> None:
        jobs.discard_ready_jobs(job_ids=[row.job_id for row in BlockedExecution.objects.all()[:3]])

    def repeat(step: Callable[[], None]) -> int:
        count = 0
        while time.monotonic() < over or not count:
            step()
            count += 1
        return count

    events.subscribe(hear, "transaction.retried")
    try:
        with ThreadPoolExecutor(7) as pool:
            steps = (enqueue, enqueue, enqueue_due, finish, finish, upkeep, discard)
            counts = [pool.submit(closing, repeat, step) for step in steps]
            assert all(count.result() for count in counts)
    finally:
        events.unsubscribe(hear)
    assert retried == []
    while work():
        pass
    list(maintenance.maintain(config))
    while work():
        pass
    assert set(states()) == {"finished"}
    assert not FailedExecution.objects.exists()


def test_missing_semaphores_are_made_in_the_same_order() -> None:
    """As by a promotion and an enqueue at the same time, of keys that none has used before."""
    later = timezone.now() + timedelta(hours=1)
    retried: list[object] = []
    hear = lambda _, fields: retried.append(fields)  # noqa: E731
    events.subscribe(hear, "transaction.retried")
    try:
        for n in range(5):
            keys = [f"{key}{n}" for key in KEYS]
            task = tasks.two_per_key.using(run_after=later)
            default_task_backend.enqueue_all((task, [key], {}) for key in keys)
            ScheduledExecution.objects.update(scheduled_at=timezone.now() - timedelta(minutes=1))
            barrier = threading.Barrier(2)

            def enqueue(keys: list[str] = keys, barrier: threading.Barrier = barrier) -> None:
                barrier.wait(20)
                with transaction.atomic():
                    enqueue_some(random.sample(keys, len(keys)))

            def promote(barrier: threading.Barrier = barrier) -> None:
                barrier.wait(20)
                jobs.promote(backend_config(), limit=100)

            with ThreadPoolExecutor(2) as pool:
                for each in [pool.submit(closing, step) for step in (enqueue, promote)]:
                    each.result()
    finally:
        events.unsubscribe(hear)
    assert retried == []


# ---- upkeep -----------------------------------------------------------------------------------------


def test_upkeep_passes_over_what_others_hold() -> None:
    """A transaction that enqueues under one key, or discards a blocked job, and stays open."""
    enqueue_some([*"abc"] * 3)
    Semaphore.objects.update(value=5)  # a fault that upkeep heals
    blocked = BlockedExecution.objects.get(concurrency_key="two:c")
    with transaction.atomic():
        enqueue_some(["b"])
        BlockedExecution.objects.select_for_update().get(pk=blocked.pk)
        in_thread(lambda: list(maintenance.maintain(backend_config())))
        seen = in_thread(lambda: dict(Semaphore.objects.values_list("key", "value")))
        assert seen == {"two:a": 0, "two:b": 5, "two:c": 0}
    list(maintenance.maintain(backend_config()))
    assert dict(Semaphore.objects.values_list("key", "value")) == {"two:a": 0, "two:b": -1, "two:c": 0}


def test_upkeep_holds_few_semaphores_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "_BATCH", 2)
    enqueue_some([*"abcde"])
    with transaction.atomic():
        enqueue_some(["c"])
        steps = in_thread(lambda: list(maintenance.maintain(backend_config())))
    # Three of two keys and less, and what was held once more for each look.
    assert len(steps) == 3 + maintenance._MORE_LOOKS

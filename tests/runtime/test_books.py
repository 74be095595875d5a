"""A worker's books: what it has claimed leaves them recorded or given back, whatever gets in the way."""

import threading
import time
from typing import Any

import pytest
from django.db import OperationalError, ProgrammingError

from dj_queue.config import WorkerConfig, backend_config
from dj_queue.dialects import dialect_for
from dj_queue.models import ClaimedExecution, FailedExecution, Semaphore
from dj_queue.operations import attempts, concurrency, execution
from dj_queue.runtime import worker as workers
from dj_queue.runtime.pool import Pool
from dj_queue.runtime.worker import Worker
from tests.conftest import wait_until
from tests.project import tasks
from tests.runtime.test_refusals import LARGE, Refusing, finish, returning
from tests.working import WORKER, claim, run, states

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def worker() -> Any:
    worker = Worker(backend_config(), WorkerConfig(threads=1, polling_interval=0.01), "worker-1")
    worker._register()
    yield worker
    worker._pool.close()
    worker._listener.close()
    worker.wakeup.close()


class Held(Refusing):
    """What would be recorded is held by another transaction."""

    def __init__(self, monkeypatch: Any, matches: Any) -> None:
        error = OperationalError("held by another")
        super().__init__(monkeypatch, error, matches, passing=True)
        for name in ("is_transient", "is_lock_timeout"):
            monkeypatch.setattr(type(dialect_for("default")), name, lambda this, found: found is error)


class TestHeld:
    def test_a_large_outcome_stays_what_it_is(self, monkeypatch: Any) -> None:
        tasks.return_text.enqueue(len(LARGE) - 2)
        done = run(claim())
        with monkeypatch.context() as patch:
            held = Held(patch, lambda outcome: True)
            for _ in range(50):  # more than any refusal is tried
                finish(done)
            # The first time it has waited as long as there is patience for, and once at each further time.
            assert len(held.asked) <= 50 + 7
        assert not done[0].settled
        finish(done)
        assert states() == {"finished": 1}

    @pytest.mark.needs("row locks")
    def test_a_batch_waits_for_one_of_its_rows_as_seldom_as_it_can(self, monkeypatch: Any) -> None:
        for n in range(8):
            tasks.return_given.enqueue(n)
        done = run(claim(8))
        held = Held(monkeypatch, returning("5"))
        finish(done)
        assert states() == {"claimed": 1, "finished": 7}
        assert len(held.asked) <= 8 + 2 * 3  # eight times whole, and then each half once

    def test_at_the_end_the_slot_is_left_to_upkeep(self, monkeypatch: Any) -> None:
        tasks.two_per_key.enqueue("k")
        done = run(claim())
        error = OperationalError("held by another")

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise error

        dialect = type(dialect_for("default"))
        monkeypatch.setattr(dialect, "finish_limited", refuse)
        monkeypatch.setattr(dialect, "is_away", lambda *_: False)
        monkeypatch.setattr(dialect, "is_transient", lambda this, found: found is error)
        monkeypatch.setattr(dialect, "is_lock_timeout", lambda this, found: found is error)
        recorded, _ = execution.finish_and_claim(backend_config(), done, None, worker=WORKER, last=True)
        assert recorded == done
        assert states() == {"finished": 1}
        assert Semaphore.objects.get().value == 1


def test_a_crashed_loop_records_whatever_was_refused_before(monkeypatch: Any, worker: Worker) -> None:
    tasks.add.enqueue(1, 1)
    worker._claim()
    wait_until(lambda: worker._pool.done)
    for _ in range(5):
        worker._whole.refused(ProgrammingError("permission denied"))  # it rests for a second or more

    def crash() -> float:
        raise AssertionError

    monkeypatch.setattr(worker, "_register", lambda: 0.0)
    monkeypatch.setattr(worker, "step", crash)
    monkeypatch.setattr(worker, "attempt", _crash_first(worker.attempt))
    with pytest.raises(AssertionError):
        worker.run()
    assert states() == {"finished": 1}


def _crash_first(attempt: Any) -> Any:
    calls: list[Any] = []

    def first(call: Any) -> Any:
        calls.append(call)
        return call() if len(calls) == 1 else attempt(call)

    return first


def test_what_is_refused_while_it_drains_is_told_once(monkeypatch: Any, worker: Worker, caplog: Any) -> None:
    asked = []

    def refuse(*args: Any) -> Any:
        asked.append(args)
        raise ProgrammingError("permission denied")

    tasks.two_per_key.enqueue("k")
    worker._unrecorded += run(claim())
    monkeypatch.setattr(worker, "config", worker.config)
    monkeypatch.setattr(concurrency.HeldKeys, "now", refuse)
    object.__setattr__(worker.config, "shutdown_timeout", 1.0)
    worker.request_stop()
    worker.drain()
    assert 1 < len(asked) < 10
    assert sum("permission denied" in record.getMessage() for record in caplog.records) == 1
    assert states() == {"finished": 1}


def test_a_claim_that_cannot_be_read_is_given_back(monkeypatch: Any, worker: Worker) -> None:
    worker._look_for_strays_at = float("inf")
    tasks.add.enqueue(1, 1)

    def unreadable(*args: Any) -> Any:
        raise ValueError("not what it was")

    with monkeypatch.context() as patch:
        patch.setattr(attempts, "past", unreadable)
        worker.step()
        assert states() == {"claimed": 1}
        worker.step()
        assert states() == {"ready": 1}
    wait_until(lambda: worker.step() is not None and states() == {"finished": 1})
    assert not ClaimedExecution.objects.exists()


def test_a_claim_that_can_never_be_read_fails_and_the_others_run(monkeypatch: Any, worker: Worker) -> None:
    """Whatever it is that Python makes nothing of: it is found by claiming one by one."""
    ids = [tasks.add.enqueue(n, 1).id for n in range(9)]
    real = type(dialect_for("default")).claim

    def claims(*args: Any, **kwargs: Any) -> Any:
        found = real(*args, **kwargs)
        if any(str(each.job_id) == ids[4] for each in found):
            raise ValueError("not what it was")
        return found

    monkeypatch.setattr(type(dialect_for("default")), "claim", claims)
    wait_until(lambda: worker.step() is not None and states() == {"finished": 8, "failed": 1})
    failure = FailedExecution.objects.get()
    assert (str(failure.job_id), "not what it was" in failure.message) == (ids[4], True)


def test_what_waits_to_be_recorded_leaves_the_loop_asleep(monkeypatch: Any, worker: Worker) -> None:
    tasks.add.enqueue(1, 1)
    (job,) = run(claim())
    job.retry_at = time.monotonic() + 1000
    worker._unrecorded.append(job)
    monkeypatch.setattr(workers, "_MOST_UNRECORDED", 1)
    assert worker.step() > 0


def test_what_is_done_stays_on_the_books_though_no_thread_can_start(monkeypatch: Any) -> None:
    tasks.add.enqueue(1, 1)
    job, other = claim()[0], object()
    told = threading.Event()

    def die(job: Any) -> None:
        job.started_at = job.claim.claimed_at
        raise SystemExit

    pool = Pool(1, run=die, may_start=lambda job: True, on_done=told.set, on_error=lambda error: None, name="p")
    pool.submit(job)
    wait_until(lambda: pool._threads and pool._threads[0].ended)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    pool._following.add(lambda: other)
    assert pool.collect() == [job]
    with pytest.raises(RuntimeError, match="new thread"):
        pool.look_after()

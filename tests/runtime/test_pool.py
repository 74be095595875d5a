"""The threads' books: whatever ends a thread, at whatever moment, no job leaves them but done, failed or taken back."""

import ctypes
import logging
import random
import threading
import time
from datetime import UTC, datetime
from unittest import mock
from uuid import uuid4

import pytest

from dj_queue.dialects import Claim, Outcome
from dj_queue.operations import execution
from dj_queue.runtime.pool import Pool
from tests.conftest import wait_until

pytestmark = pytest.mark.pure  # no database has a part in it

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class LateError(BaseException):
    """As a library raises it in a thread, to end a call that takes too long."""


def raise_in(thread_id: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(LateError))


def make_jobs(count: int) -> list[execution.Job]:
    def claim(n: int) -> Claim:
        return Claim(n, uuid4(), "tests.nothing", "default", 0, "{}", None, NOW, None, None, NOW)

    return [execution.Job(claim(n), 0.0) for n in range(count)]


def finish(job: execution.Job) -> None:
    job.started_at = NOW
    job.outcome = Outcome(job.claim.id, job.claim.job_id, NOW, None, None)


@pytest.fixture
def errors():
    return []


@pytest.fixture
def make_pool(errors):
    made = []

    def make(size=1, run=finish, may_start=lambda job: True):
        pool = Pool(size, run=run, may_start=may_start, on_done=lambda: None, on_error=errors.append, name="worker")
        made.append(pool)
        return pool

    yield make
    for pool in made:
        pool.close()


def collect(pool, count, *, seconds=20):
    """What the owner does at each step, until so many jobs are done."""
    done = []

    def step():
        done.extend(pool.collect())
        pool.look_after()
        return len(done) >= count

    wait_until(step, seconds=seconds)
    return done


class TestRefusedToStart:
    def test_it_stays_on_the_books_and_can_be_taken_back(self, make_pool):
        asked = threading.Event()
        pool = make_pool(may_start=lambda job: asked.set() or False)
        jobs = make_jobs(3)
        for job in jobs:
            pool.submit(job)
        assert asked.wait(20)
        assert pool.unfinished == 3
        assert pool.take_back() == jobs
        assert pool.unfinished == pool.waiting == 0
        assert pool.collect() == []

    def test_it_starts_once_it_may(self, make_pool):
        asked, may = threading.Event(), threading.Event()
        pool = make_pool(2, may_start=lambda job: asked.set() or may.is_set())
        jobs = make_jobs(50)
        for job in jobs:
            pool.submit(job)
        wait_until(lambda: asked.is_set() and pool._tickets.empty())
        may.set()
        assert set(collect(pool, 50)) == set(jobs)


class TestDeadThread:
    def test_one_that_dies_idle_takes_no_job_with_it(self, make_pool, errors):
        seen = []
        pool = make_pool(run=lambda job: seen.append(threading.get_ident()) or finish(job))
        for job in make_jobs(5):
            pool.submit(job)
            assert collect(pool, 1) == [job]
            raise_in(seen[-1])  # raised as the next job wakes it
        assert len(set(map(type, errors))) == 1
        assert isinstance(errors[0], LateError)
        assert "it is replaced" in errors[0].__notes__[0]

    def test_what_it_had_started_fails(self, make_pool, errors):
        def run(job):
            job.started_at = NOW
            raise LateError

        pool = make_pool(run=run)
        (job,) = jobs = make_jobs(1)
        pool.submit(job)
        assert collect(pool, 1) == jobs
        assert job.outcome.error.exception_class.endswith("LateError")
        assert isinstance(job.exception, LateError)
        assert pool.unfinished == 0
        assert len(errors) == 1
        assert str(job.claim.job_id) in errors[0].__notes__[0]

    def test_what_it_had_finished_counts_as_it_ended(self, make_pool):
        def run(job):
            finish(job)
            raise LateError

        pool = make_pool(run=run)
        (job,) = jobs = make_jobs(1)
        pool.submit(job)
        assert collect(pool, 1) == jobs
        assert job.outcome.error is None

    def test_what_it_had_not_started_starts_in_another(self, make_pool):
        tries = []

        def run(job):
            tries.append(job)
            if len(tries) == 1:
                raise LateError
            finish(job)

        pool = make_pool(run=run)
        jobs = make_jobs(3)
        for job in jobs:
            pool.submit(job)
        assert set(collect(pool, 3)) == set(jobs)
        assert [job.outcome.error for job in jobs] == [None] * 3

    def test_what_ends_each_thread_before_it_starts_fails(self, make_pool, errors):
        def run(job):
            raise LateError

        pool = make_pool(run=run)
        (job,) = jobs = make_jobs(1)
        pool.submit(job)
        assert collect(pool, 1) == jobs
        assert job.outcome.error
        assert len(errors) == 2

    # It may hit a callback of the garbage collector, where it is no news of ours.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_exceptions_at_any_moment_lose_and_double_nothing(self, make_pool):
        """Also those between two instructions of the pool's own."""
        size, count = 3, 3000
        pool = make_pool(size, run=finish)
        jobs = make_jobs(count)
        over = threading.Event()

        def disturb():
            while not over.is_set():
                for thread in list(pool._threads):
                    if thread.ident and random.random() < 0.3:
                        raise_in(thread.ident)
                time.sleep(random.uniform(0, 0.002))

        disturbing = threading.Thread(target=disturb)
        disturbing.start()
        done = []
        with mock.patch("threading.excepthook"):
            try:
                for start in range(0, count, 50):
                    for job in jobs[start : start + 50]:
                        pool.submit(job)
                    done += collect(pool, 50 if start + 50 < count else 0)
            finally:
                over.set()
                disturbing.join()
            done += collect(pool, count - len(done), seconds=60)
        assert len(done) == len(set(done)) == count
        assert all(job.outcome for job in done)
        assert not pool.busy


class TestFollowUp:
    def test_it_does_not_wait_for_long_jobs(self, make_pool):
        release, called = threading.Event(), threading.Event()
        pool = make_pool(run=lambda job: release.wait(60) and finish(job))
        pool.submit(make_jobs(1)[0])
        wait_until(lambda: pool.waiting == 0)
        pool.follow_up(called.set)
        assert pool.patience is not None
        wait_until(lambda: pool.look_after() or called.is_set())
        assert not release.is_set()
        # Nothing more to look after: the owner's loop sleeps while the job runs.
        wait_until(lambda: pool.patience is None and pool.unfinished == 1)
        release.set()
        collect(pool, 1)

    def test_a_slow_one_leaves_its_owner_asleep(self, make_pool):
        release = threading.Event()
        called = []
        pool = make_pool(run=lambda job: release.wait(60) and finish(job))
        pool.submit(make_jobs(1)[0])
        wait_until(lambda: pool.waiting == 0)
        pool.follow_up(lambda: called.append(1) or release.wait(60))
        wait_until(lambda: pool.look_after() or called)
        pool.follow_up(lambda: called.append(2))
        assert pool.patience is None
        release.set()
        wait_until(lambda: pool.look_after() or called == [1, 2])
        collect(pool, 1)

    def test_one_whose_thread_is_ended_is_called_again(self, make_pool, errors):
        left = ["first", "second"]
        told = []

        def tell():
            while left:
                told.append(left.pop(0))
                if len(told) == 1:
                    raise LateError

        pool = make_pool()
        pool.follow_up(tell)
        wait_until(lambda: pool.collect() or not pool.busy)
        assert told == ["first", "second"]
        assert len(errors) == 1


def test_a_thread_that_cannot_start_leaves_the_work_to_the_others(make_pool, errors, monkeypatch):
    pool = make_pool(2)
    jobs = make_jobs(3)
    pool.submit(jobs[0])
    collect(pool, 1)

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for job in jobs[1:]:
        pool.submit(job)
    assert set(collect(pool, 2)) == set(jobs[1:])
    assert {str(error) for error in errors} <= {"can't start new thread"}
    logging.getLogger("dj_queue").debug("the pool went on")

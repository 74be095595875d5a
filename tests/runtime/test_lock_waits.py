"""What others have locked is waited for once at a time: it is no outage, no refusal, and holds up nothing else."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction

from dj_queue.config import WorkerConfig, backend_config
from dj_queue.dialects import dialect_for
from dj_queue.models import Job, Pause
from dj_queue.operations import execution, observation
from dj_queue.runtime.worker import Worker
from tests.conftest import wait_until
from tests.project import tasks
from tests.races import in_thread
from tests.runtime.test_stops import locked
from tests.working import WORKER, claim, run, states

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def begun(monkeypatch: Any) -> Iterator[list[str]]:
    """The transactions that were tried, on a connection that waits for the one writer only a moment."""
    found: list[str] = []

    def note(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("BEGIN"):
            found.append(sql)
        return execute(sql, params, many, context)

    with connection.cursor() as cursor:
        before = cursor.execute("PRAGMA busy_timeout").fetchone()[0]
        cursor.execute("PRAGMA busy_timeout = 20")
    with connection.execute_wrapper(note):
        yield found
    with connection.cursor() as cursor:
        cursor.execute(f"PRAGMA busy_timeout = {before}")


@pytest.mark.needs("one writer")
class TestOneWriter:
    def test_a_finish_waits_once(self, begun: list[str]) -> None:
        for n in range(3):
            tasks.add.enqueue(n, n)
        done = run(claim())
        done[0].refusals = 1  # it goes alone
        begun.clear()
        with locked(lambda: Pause.objects.create(queue_name="x")):
            for times in (1, 2):
                found = execution.finish_and_claim(backend_config(), done, None, worker=WORKER, waits_again=False)
                assert found == ([], [])
                assert [(job.waits, job.losses, job.settled) for job in done] == [(times, 0, False)] * 3
                assert len(begun) == times
        assert [job.refusals for job in done] == [1, 0, 0]
        assert len(execution.finish(backend_config(), done, worker=WORKER)) == 3
        assert states() == {"finished": 3}

    def test_a_worker_says_so_once(self, begun: list[str], caplog: Any) -> None:
        caplog.set_level(logging.WARNING, "dj_queue")
        worker = Worker(backend_config(), WorkerConfig(threads=2, polling_interval=0.01), "worker-1")
        worker._register()
        ids = [tasks.add.enqueue(n, n).id for n in range(2)]
        worker._claim()
        wait_until(lambda: len(worker._pool.done) == 2)
        with locked(lambda: Pause.objects.create(queue_name="x")):
            worker._record()
            worker._record()
            assert len(worker._unrecorded) == 2
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert record.getMessage().startswith("dj_queue worker-1: what others have locked keeps 2 jobs from being")
        assert ids[0] in record.getMessage()
        wait_until(lambda: worker._record() is not None and not worker._unrecorded)
        assert states() == {"finished": 2}
        worker.request_stop()
        worker.drain()
        worker.wakeup.close()


@pytest.mark.needs("row locks")
def test_a_job_whose_row_is_locked_holds_up_no_other(runtime: Callable[..., Any]) -> None:
    held = Job.objects.get(pk=tasks.add.enqueue(1, 1).id)
    with transaction.atomic():
        Job.objects.select_for_update().get(pk=held.pk)
        started = runtime()
        ids = in_thread(lambda: [tasks.add.enqueue(n, n).id for n in range(30)])
        began = time.monotonic()
        wait_until(lambda: Job.objects.filter(pk__in=ids, finished_at=None).count() == 0, what="the others")
        assert time.monotonic() - began < 9  # not one wait after the other
        ids = in_thread(lambda: [tasks.add.enqueue(n, n).id for n in range(5)])
        wait_until(lambda: Job.objects.filter(pk__in=ids, finished_at=None).count() == 0, what="and those after it")
        held.refresh_from_db()
        assert held.finished_at is None
        assert "away" not in started.output
    wait_until(lambda: Job.objects.filter(finished_at=None).count() == 0)
    held.refresh_from_db()
    assert len(held.worker_ids or ()) == 1


@pytest.mark.needs("one statement")
@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_an_observation_that_collides_is_made_again(code: str, monkeypatch: Any) -> None:
    dialect = type(dialect_for("default"))
    real, left = dialect.now, [code]

    def now(this: Any, cursor: Any) -> Any:
        if left:
            cursor.execute(f"DO $$ BEGIN RAISE EXCEPTION 'collided' USING ERRCODE = '{left.pop()}'; END $$")
        return real(this, cursor)

    monkeypatch.setattr(dialect, "now", now)
    assert observation.observe(backend_config()).queues == ()
    assert not left
    # In a transaction of the caller's it is his.
    left.append(code)
    with pytest.raises(OperationalError, match="collided"), transaction.atomic():
        observation.observe(backend_config())

"""What a database refuses of a step: one job fails with its words, the others and the runner go on."""

import json
import logging
import time
from typing import Any

import pytest
from django.db import DataError, IntegrityError, OperationalError, ProgrammingError, connection
from django.tasks import TaskResultStatus, default_task_backend
from django.utils import timezone

from dj_queue.config import DispatcherConfig, SchedulerConfig, WorkerConfig, backend_config
from dj_queue.dialects import dialect_for
from dj_queue.models import ClaimedExecution, FailedExecution, Job, ReadyExecution, ScheduledExecution, Semaphore
from dj_queue.operations import execution, jobs, maintenance, recording, retention
from dj_queue.runtime.dispatcher import Dispatcher
from dj_queue.runtime.scheduler import Scheduler
from dj_queue.runtime.worker import Worker
from tests import databases
from tests.conftest import _plain, pid_of, wait_until
from tests.project import tasks
from tests.working import WORKER, claim, run, states

pytestmark = pytest.mark.django_db(transaction=True)

LARGE = '"' + "x" * 10_000 + '"'


class Refusing:
    """Refuses to record outcomes that match, in the dialect: as a server would, after it has begun."""

    def __init__(self, monkeypatch: Any, error: Exception, matches: Any, *, passing: bool = False, away: bool = False):
        self.asked: list[int] = []
        dialect = type(dialect_for("default"))
        for name in ("finish", "finish_limited"):
            real = getattr(dialect, name)

            def refuse(this: Any, cursor: Any, outcomes: Any, *args: Any, real: Any = real, **kwargs: Any) -> Any:
                self.asked.append(len(outcomes))
                if any(matches(outcome) for outcome in outcomes):
                    raise error
                return real(this, cursor, outcomes, *args, **kwargs)

            monkeypatch.setattr(dialect, name, refuse)
        monkeypatch.setattr(dialect, "may_pass", lambda this, found: passing and found is error)
        monkeypatch.setattr(dialect, "is_away", lambda this, found: away and found is error)


def returning(text: str) -> Any:
    return lambda outcome: outcome.return_value == text


def finish(done: list[execution.Job]) -> list[execution.Job]:
    for job in done:
        job.retry_at = 0.0
    return execution.finish(backend_config(), [job for job in done if not job.settled], worker=WORKER)


class TestFinish:
    def test_a_batch_is_split(self, monkeypatch: Any) -> None:
        results = [tasks.add.enqueue(n, 0) for n in range(64)]
        done = run(claim())
        refusing = Refusing(monkeypatch, DataError("no room for 13"), returning("13"))
        assert len(finish(done)) == 64
        assert len(refusing.asked) < 20  # halves, not each
        assert states() == {"finished": 63, "failed": 1}
        failed = FailedExecution.objects.get()
        assert (failed.exception_class, failed.message) == ("django.db.utils.DataError", "no room for 13")
        found = default_task_backend.get_result(results[13].id)
        assert (found.status, found.attempts) == (TaskResultStatus.FAILED, 1)

    def test_what_may_pass_is_tried_again_before_it_fails(self, monkeypatch: Any) -> None:
        tasks.return_given.enqueue("x" * 10_000)
        tasks.add.enqueue(1, 1)
        done = run(claim())
        Refusing(monkeypatch, OperationalError("took too long"), returning(LARGE), passing=True)
        assert len(finish(done)) == 1
        assert states() == {"finished": 1, "claimed": 1}
        assert done[0].retry_at > time.monotonic()
        while not done[0].settled:
            finish(done)
        assert done[0].refusals == 3
        assert states() == {"finished": 1, "failed": 1}
        assert FailedExecution.objects.get().message == "took too long"

    def test_what_has_passed_is_recorded_as_it_was(self, monkeypatch: Any) -> None:
        tasks.return_given.enqueue("x" * 10_000)
        done = run(claim())
        with monkeypatch.context() as patch:
            Refusing(patch, OperationalError("locked"), returning(LARGE), passing=True)
            finish(done)
            finish(done)
        finish(done)
        assert Job.objects.finished().get().return_value == "x" * 10_000

    def test_a_small_outcome_waits_for_what_may_pass(self, monkeypatch: Any) -> None:
        """Its failure would take as much: a lock that is held for some time must not turn success into failure."""
        tasks.add.enqueue(1, 1)
        done = run(claim())
        with monkeypatch.context() as patch:
            Refusing(patch, OperationalError("locked"), returning("2"), passing=True)
            for _ in range(10):
                finish(done)
        finish(done)
        assert states() == {"finished": 1}

    def test_a_failure_that_is_refused_is_shortened(self, monkeypatch: Any) -> None:
        tasks.fail.enqueue("é" * 5000)
        done = run(claim())
        Refusing(monkeypatch, DataError("too large"), lambda outcome: len(outcome.error.traceback) > 4000)
        finish(done)
        failed = FailedExecution.objects.get()
        assert failed.exception_class == "builtins.ValueError"
        assert "too large" in failed.message
        assert len(failed.message) < 4000

    def test_what_is_refused_in_every_form_is_given_up(self, monkeypatch: Any) -> None:
        tasks.add.enqueue(1, 1)
        done = run(claim())
        refusing = Refusing(monkeypatch, DataError("never"), lambda outcome: True)
        while not done[0].settled:
            assert finish(done) == []
        assert done[0].given_up
        assert len(refusing.asked) < 500
        assert states() == {"claimed": 1}  # which recovery settles once the process is gone

    def test_the_next_job_of_a_key_does_not_fail_the_last(self, monkeypatch: Any) -> None:
        tasks.one_per_key.enqueue("k")
        tasks.one_per_key.enqueue("k")
        done = run(claim())
        dialect = type(dialect_for("default"))
        with monkeypatch.context() as patch:

            def refuse(*args: Any, **kwargs: Any) -> Any:
                raise DataError("the next one")

            patch.setattr(dialect, "finish_limited", refuse)
            assert len(finish(done)) == 1
        # Its slot was left behind, and found at once.
        assert states() == {"finished": 1, "ready": 1}

    def test_a_refused_claim_does_not_fail_what_is_recorded_with_it(self, monkeypatch: Any) -> None:
        for _ in range(2):
            tasks.one_per_key.enqueue("k")
        done = run(claim())

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise IntegrityError("doubled")

        monkeypatch.setattr(type(dialect_for("default")), "claim", refuse)
        claiming = execution.Claiming(backend_config(), [], 1, None)
        recorded, claimed = execution.finish_and_claim(backend_config(), done, claiming, worker=WORKER)
        assert (len(recorded), claimed) == (1, [])
        assert states() == {"finished": 1, "ready": 1}

    def test_a_connection_that_breaks_with_one_outcome(self, monkeypatch: Any) -> None:
        """As a pooler does it, which ends the connection of a query that takes too long."""
        tasks.return_given.enqueue("poison")
        tasks.add.enqueue(1, 1)
        done = run(claim())
        Refusing(monkeypatch, OperationalError("closed"), returning('"poison"'), away=True)
        for _ in range(20):
            try:
                finish(done)
            except OperationalError:
                continue
            if all(job.settled for job in done):
                break
        assert states() == {"finished": 1, "failed": 1}
        assert FailedExecution.objects.get().message == "closed"

    def test_an_outage_fails_nothing(self, monkeypatch: Any) -> None:
        tasks.add.enqueue(1, 1)
        done = run(claim())
        error = OperationalError("away")

        def away(*args: Any, **kwargs: Any) -> Any:
            raise error

        with monkeypatch.context() as patch:
            Refusing(patch, error, lambda outcome: True, away=True)
            patch.setattr(recording.transactions, "look", away)
            for _ in range(100):
                with pytest.raises(OperationalError):
                    finish(done)
        finish(done)
        assert states() == {"finished": 1}

    def test_by_hand_the_refusal_is_raised(self, monkeypatch: Any) -> None:
        job_id = tasks.add.enqueue(1, 1).id
        claim()
        Refusing(monkeypatch, OperationalError("locked"), lambda outcome: True, passing=True)
        with pytest.raises(OperationalError, match="locked"):
            jobs.execute_claimed_job(job_id)


class TestWorker:
    @pytest.mark.needs("statement timeout")
    @pytest.mark.parametrize("mode", ["fork", "async"])
    def test_a_result_that_takes_too_long_to_store(self, runtime: Any, mode: str) -> None:
        """The limit comes with the connection, as it would from a role or a pooler."""
        options = {"mode": mode, "workers": {"threads": 1, "polling_interval": 0.05}}
        limits: dict[str, tuple[int, dict[str, str]]] = {
            "postgres": (30_000_000, {"options": "-c statement_timeout=200"}),
            "mariadb": (10_000_000, {"init_command": "SET SESSION max_statement_time=0.1"}),
        }
        length, limit = limits[databases.VENDOR]
        result = tasks.return_text.enqueue(length)
        plain = _plain(connection.settings_dict)
        limited = {**plain, "OPTIONS": {**plain["OPTIONS"], **limit}}
        running = runtime(options=options, environment={"DJ_QUEUE_TEST_DATABASE": json.dumps(limited)}, rows=2)
        pid = pid_of("worker-1")
        after = [tasks.add.enqueue(n, 0) for n in range(3)]
        wait_until(lambda: Job.objects.finished().count() == 3, seconds=90)
        wait_until(FailedExecution.objects.exists, seconds=90)
        assert pid_of("worker-1") == pid
        failed = FailedExecution.objects.get()
        assert str(failed.job_id) == result.id
        assert "database is away" not in running.output
        assert default_task_backend.get_result(after[0].id).return_value == 0
        assert running.stop() == 0

    def test_goes_on_claiming_while_an_outcome_waits(self, monkeypatch: Any, caplog: Any) -> None:
        worker = Worker(backend_config(), WorkerConfig(threads=1, polling_interval=0.01), "worker-1")
        worker._register()
        tasks.return_given.enqueue("poison")
        with monkeypatch.context() as patch:
            Refusing(patch, OperationalError("locked by another"), returning('"poison"'), passing=True)
            wait_until(lambda: worker.step() is not None and worker._unrecorded)
            tasks.add.enqueue(1, 1)
            wait_until(lambda: worker.step() is not None and Job.objects.finished().exists())
            assert len(worker._unrecorded) == len(worker._held) == 1
            assert "locked by another" in caplog.text
            assert "away" not in caplog.text
        wait_until(lambda: worker.step() is not None and Job.objects.finished().count() == 2)
        assert not worker._held
        worker.request_stop()
        worker.drain()
        worker.wakeup.close()

    def test_a_job_that_is_ready_and_claimed_at_once(self, caplog: Any) -> None:
        tasks.add.enqueue(1, 1)
        claim()
        ReadyExecution.objects.create(job=Job.objects.get())
        tasks.add.enqueue(2, 2)
        (mine,) = claim()
        assert mine.claim.payload.replace(" ", "") == '{"args":[2,2],"kwargs":{}}'
        assert states() == {"claimed": 2}
        (said,) = [each.getMessage() for each in caplog.records if "ready and claimed" in each.getMessage()]
        assert str(Job.objects.order_by("pk")[0].pk) in said
        assert said.endswith("Look for what else writes into the queue's tables.")

    def test_a_claim_that_is_refused_ends_no_worker(self, monkeypatch: Any, caplog: Any) -> None:
        worker = Worker(backend_config(), WorkerConfig(threads=1, polling_interval=0.01), "worker-1")
        worker._register()
        tasks.add.enqueue(1, 1)
        (done,) = run(claim())
        worker._unrecorded.append(done)

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise ProgrammingError("permission denied")

        with monkeypatch.context() as patch:
            patch.setattr(type(dialect_for("default")), "claim", refuse)
            patch.setattr(type(dialect_for("default")), "any_ready", lambda *_: True)
            assert worker.attempt(worker.step) >= 0
            assert worker.attempt(worker.step) >= 0
        assert states() == {"finished": 1}
        assert "permission denied" in caplog.text
        assert "away" not in caplog.text
        tasks.add.enqueue(1, 1)
        wait_until(lambda: worker.attempt(worker.step) is not None and Job.objects.finished().count() == 2)
        worker.request_stop()
        worker.drain()
        worker.wakeup.close()

    def test_one_claim_that_cannot_be_given_back_holds_up_no_other(self) -> None:
        for n in range(8):
            tasks.add.enqueue(n, 0)
        held = claim()
        ReadyExecution.objects.create(job_id=held[3].claim.job_id)
        with pytest.raises(IntegrityError):
            execution.release(backend_config(), held)
        assert [job.settled for job in held].count(False) == 1
        assert not held[3].settled
        assert ReadyExecution.objects.count() == 8
        assert ClaimedExecution.objects.count() == 1


class TestDispatcher:
    def test_a_due_job_that_cannot_be_promoted(self, caplog: Any) -> None:
        at = timezone.now() + timezone.timedelta(hours=1)
        ids = [tasks.add.using(run_after=at).enqueue(n, 0).id for n in range(10)]
        past = timezone.now() - timezone.timedelta(minutes=1)
        ScheduledExecution.objects.update(scheduled_at=past)
        ReadyExecution.objects.create(job_id=ids[4])  # as another version, or SQL, may have left it
        assert jobs.promote_scheduled_jobs(batch_size=100) == 10
        assert states() == {"ready": 10}
        assert f"the scheduled job {ids[4]} of 'default' was due and could not be promoted, and goes on" in caplog.text

    def test_a_due_job_that_is_refused_fails(self, monkeypatch: Any) -> None:
        at = timezone.now() + timezone.timedelta(hours=1)
        for n in range(5):
            tasks.add.using(run_after=at, priority=-n).enqueue(n, 0)
        ScheduledExecution.objects.update(scheduled_at=timezone.now() - timezone.timedelta(minutes=1))
        dialect = type(dialect_for("default"))
        real = dialect.promote

        def refuse(this: Any, cursor: Any, **kwargs: Any) -> Any:
            if ScheduledExecution.objects.filter(priority=0).exists():
                raise DataError("not this one")
            return real(this, cursor, **kwargs)

        monkeypatch.setattr(dialect, "promote", refuse)
        assert jobs.promote_scheduled_jobs(batch_size=100) == 5
        assert states() == {"ready": 4, "failed": 1}
        assert FailedExecution.objects.get().message == "not this one"

    def test_upkeep_that_is_refused_stops_no_promotion(self, monkeypatch: Any, caplog: Any) -> None:
        tasks.one_per_key.enqueue("k")
        tasks.add.using(run_after=timezone.now() + timezone.timedelta(hours=1)).enqueue(1, 1)
        ScheduledExecution.objects.update(scheduled_at=timezone.now() - timezone.timedelta(minutes=1))
        assert Semaphore.objects.exists()

        def refuse(*args: Any) -> Any:
            raise ProgrammingError("no right to the semaphores")

        monkeypatch.setattr(maintenance, "_recount", refuse)
        dispatcher = Dispatcher(backend_config(), DispatcherConfig(), "dispatcher-1")
        # First it goes on to the other keys.
        assert [dispatcher.attempt(dispatcher.step) > 0 for _ in range(4)] == [False, True, True, True]
        assert Job.objects.ready().count() == 2
        assert caplog.text.count("dispatcher.upkeep: ProgrammingError: no right to the semaphores") == 1
        dispatcher.wakeup.close()


class TestScheduler:
    def test_one_kind_that_cannot_be_deleted_stops_no_other(self, monkeypatch: Any, settings: Any, caplog: Any) -> None:
        caplog.set_level(logging.WARNING)
        options = {
            "clear_finished_jobs_after": 0, "clear_failed_jobs_after": 0, "clear_recurring_executions_after": 0
        }  # fmt: skip
        settings.TASKS = {"default": {**settings.TASKS["default"], "OPTIONS": options}}
        deleted = []

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise IntegrityError("referred to by another table")

        monkeypatch.setattr(retention, "delete_failed", refuse)
        monkeypatch.setattr(retention, "delete_recurring", lambda *args, **kwargs: deleted.append(1) or 0)
        scheduler = Scheduler(backend_config(), SchedulerConfig(), "scheduler-1")
        assert scheduler.attempt(scheduler.step) > 0
        assert deleted
        assert "scheduler.clean: IntegrityError: referred to by another table" in caplog.text
        scheduler.wakeup.close()


def test_the_servers_own_words_for_a_wait_that_is_cut_short() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("the database has no such limit for one statement")
    dialect = dialect_for("default")
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = '50ms'")
        with pytest.raises(OperationalError) as caught:
            cursor.execute("SELECT pg_sleep(5)")
    connection.close()
    assert not dialect.is_away(caught.value)
    assert dialect.may_pass(caught.value)

"""`dj_queue.testing`: what is enqueued runs inside a test's transaction, as a worker would run it."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from unittest import mock

import freezegun
import pytest
import time_machine
from django.db import connection, transaction
from django.tasks import TaskResultStatus
from django.test import TestCase, TransactionTestCase
from django.utils import timezone

from dj_queue import identifiers
from dj_queue.api import QueueInfo, enqueue_on_commit
from dj_queue.models import ClaimedExecution, ReadyExecution
from dj_queue.testing import arun_jobs, assert_enqueued, assert_not_enqueued, enqueued_jobs, run_jobs, running
from tests.project import chained, tasks
from tests.project.models import Run
from tests.working import states

HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def clock_of_ids(monkeypatch):
    """Ids never go back in time: after a clock of 2101, those of all other tests would be of that year."""
    monkeypatch.setattr(identifiers, "_last_tick", identifiers._last_tick)


class Shared:
    def test_runs_what_is_enqueued_and_what_that_enqueues(self):
        tasks.add.enqueue(1, 2)
        chained.enqueue_another.enqueue("nested")
        results = run_jobs()
        assert [(each.task.name, each.status) for each in results] == [
            ("add", TaskResultStatus.SUCCESSFUL),
            ("enqueue_another", TaskResultStatus.SUCCESSFUL),
            ("leave_run", TaskResultStatus.SUCCESSFUL),
        ]
        assert results[0].return_value == 3
        assert results[0].worker_ids == ["dj_queue.testing"]
        assert Run.objects.get().label == "nested"
        assert states() == {"finished": 3}

    def test_keeps_priorities_selectors_and_pauses(self):
        tasks.add.using(queue_name="email").enqueue(1, 1)
        tasks.add.using(queue_name="email", priority=50).enqueue(2, 2)
        tasks.add.using(queue_name="reports").enqueue(3, 3)
        assert [each.return_value for each in run_jobs("email")] == [4, 2]
        QueueInfo("reports").pause()
        assert run_jobs(["rep*", "email"]) == []
        QueueInfo("reports").resume()
        assert [each.return_value for each in run_jobs(["rep*"])] == [6]

    def test_blocked_jobs_have_their_turn(self):
        for number in range(3):
            tasks.one_per_key.enqueue("key", number)
        assert len(run_jobs()) == 3
        assert states() == {"finished": 3}

    def test_raises_what_a_job_has_raised(self):
        failing = tasks.fail.enqueue()
        tasks.add.enqueue(1, 2)
        with pytest.raises(ValueError, match="it failed") as raised:
            run_jobs()
        assert raised.value.__notes__ == [f"raised by job {failing.id} (tests.project.tasks.fail) in run_jobs()"]
        assert states() == {"failed": 1, "ready": 1}
        (result,) = run_jobs(raise_errors=False)
        assert result.return_value == 3

    def test_or_lets_the_results_tell(self):
        tasks.fail.enqueue()
        (result,) = run_jobs(raise_errors=False)
        assert result.status == TaskResultStatus.FAILED
        assert result.errors[0].exception_class is ValueError

    def test_a_statement_that_fails_breaks_no_transaction_of_the_tests(self):
        Run.objects.create(label="before")
        chained.break_transaction.enqueue()
        run_jobs(raise_errors=False)
        assert Run.objects.filter(label="before").exists()
        assert states() == {"failed": 1}

    def test_runs_no_job_before_its_time(self):
        now = timezone.now()
        late = tasks.add.using(run_after=now + 2 * HOUR).enqueue(2, 2)
        tasks.add.using(run_after=now + HOUR).enqueue(1, 1)
        assert run_jobs() == []
        assert [each.return_value for each in run_jobs(now=now + 1.5 * HOUR)] == [2]
        assert [each.id for each in run_jobs(until=3 * HOUR)] == [late.id]

    def test_until_goes_through_the_times_in_their_order(self):
        now = timezone.now()
        for hours in (3, 1, 2):
            tasks.add.using(run_after=now + hours * HOUR, priority=hours).enqueue(hours, 0)
        assert [each.return_value for each in run_jobs(until=now + 2.5 * HOUR)] == [1, 2]
        assert len(enqueued_jobs()) == 1

    @pytest.mark.parametrize("freeze", [freezegun.freeze_time, lambda at: time_machine.travel(at, tick=False)])
    @pytest.mark.parametrize("year", [2001, 2101])
    def test_a_clock_that_is_moved_counts(self, freeze, year):
        at = datetime(year, 5, 1, 12, tzinfo=UTC)
        with freeze(at):
            tasks.add.using(run_after=at + HOUR).enqueue(1, 1)
            tasks.add.enqueue(2, 2)
            assert [each.return_value for each in run_jobs()] == [4]
            assert states()["claimed"] == 0
        with freeze(at + 2 * HOUR):
            assert [each.return_value for each in run_jobs()] == [2]

    def test_tells_of_a_job_that_enqueues_itself_for_ever(self):
        chained.enqueue_itself.enqueue()
        with mock.patch.object(running, "MOST_JOBS", 20), pytest.raises(RuntimeError, match=r"has run 20 jobs.*itself"):
            run_jobs()
        assert not ClaimedExecution.objects.exists()

    def test_callbacks_of_commits_run_before_and_after(self):
        with transaction.atomic():
            enqueue_on_commit(tasks.add, 1, 2)
        chained.enqueue_on_its_commit.enqueue("from a task")
        assert [each.task.name for each in run_jobs()] in (
            ["add", "enqueue_on_its_commit", "leave_run"],
            ["enqueue_on_its_commit", "add", "leave_run"],
        )

    def test_but_not_those_of_a_transaction_that_is_open(self):
        with transaction.atomic():
            enqueue_on_commit(tasks.add, 1, 2)
            assert run_jobs() == []

    def test_what_waits(self):
        assert enqueued_jobs() == []
        at = timezone.now() + HOUR
        first = tasks.echo.using(queue_name="email").enqueue(1, y=2)
        second = tasks.echo.using(run_after=at).enqueue(3, 4)
        assert [each.id for each in enqueued_jobs()] == [first.id, second.id]
        assert [each.id for each in enqueued_jobs("email")] == [first.id]
        assert assert_enqueued(tasks.echo).id == first.id
        assert assert_enqueued(tasks.echo, args=(1,), kwargs={"y": 2}, queue_name="email").id == first.id
        assert assert_enqueued(tasks.echo, run_after=at).args == [3, 4]
        assert_not_enqueued(tasks.fail)
        assert_not_enqueued(tasks.echo, args=[9])
        with pytest.raises(AssertionError) as raised:
            assert_enqueued(tasks.echo, args=[9])
        lines = str(raised.value).splitlines()
        assert lines[:2] == ["expected a job of tests.project.tasks.echo with args=[9]", "got 2 waiting:"]
        assert lines[2].startswith("  tests.project.tasks.echo with args=[1], kwargs={'y': 2}, queue_name='email'")
        with pytest.raises(AssertionError, match=r"expected no job of tests\.project\.tasks\.echo\ngot 2 waiting"):
            assert_not_enqueued(tasks.echo)
        run_jobs()
        assert len(enqueued_jobs()) == 1

    def test_says_that_nothing_waits(self):
        with pytest.raises(AssertionError, match="got no job at all"):
            assert_enqueued(tasks.add)


@pytest.mark.django_db
class TestInATransaction(Shared):
    def test_rolls_back_with_its_test(self):
        assert connection.in_atomic_block
        tasks.add.enqueue(1, 2)
        run_jobs()


@pytest.mark.django_db(transaction=True)
class TestInAutocommit(Shared):
    @pytest.mark.parametrize("number", [1, 2])
    def test_coroutines(self, number):
        tasks.add_async.enqueue(1, number)
        assert [each.status for each in run_jobs()] == [TaskResultStatus.SUCCESSFUL]


class TestUnittest(TestCase):
    def test_in_djangos_test_case(self):
        with transaction.atomic():
            enqueue_on_commit(tasks.leave_run, "after the commit")
        run_jobs()
        assert Run.objects.get().label == "after the commit"

    async def test_in_an_asynchronous_one(self):
        await tasks.add.aenqueue(1, 2)
        (result,) = await arun_jobs()
        assert result.return_value == 3


class TestUnittestTransactions(TransactionTestCase):
    def test_in_djangos_transaction_test_case(self):
        tasks.leave_run.enqueue("committed")
        run_jobs()
        assert Run.objects.get().label == "committed"
        assert not ReadyExecution.objects.exists()


@pytest.mark.django_db
def test_the_fixture(jobs):
    tasks.add.enqueue(1, 2)
    assert jobs.assert_enqueued(tasks.add, args=[1, 2])
    jobs.assert_not_enqueued(tasks.fail)
    assert len(jobs.enqueued()) == 1
    assert [each.return_value for each in jobs.run()] == [3]


def test_the_plugin_imports_no_more_than_itself():
    """It is imported by every run of pytest, before Django has its settings."""
    ours = "[name for name in sys.modules if name.startswith(('django', 'dj_queue'))]"
    code = f"import sys, dj_queue.pytest_plugin; print(sorted({ours}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['dj_queue', 'dj_queue.pytest_plugin']"

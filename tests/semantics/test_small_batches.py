"""A batch that the database refuses is made smaller, down to one row; what it refuses alone holds up no other."""

from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any
from uuid import UUID

import pytest
from django.core.management import call_command
from django.db import DataError, OperationalError, connection, transaction
from django.db.models.signals import pre_delete
from django.utils import timezone

from dj_queue.api import QueueInfo
from dj_queue.config import SchedulerConfig, backend_config
from dj_queue.dialects import dialect_for
from dj_queue.models import FailedExecution, Job, ReadyExecution, RecurringExecution
from dj_queue.operations import concurrency, deletion, jobs, retention, transactions
from dj_queue.operations.batches import Batches
from dj_queue.runtime.scheduler import Scheduler
from tests.project import tasks
from tests.races import in_thread
from tests.working import work

pytestmark = pytest.mark.django_db(transaction=True)

DAY = 86400
MOST = 3  # rows that the server below deletes in time


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    deletion._refused.clear()
    deletion._told.clear()


class Slow:
    """A server that cancels whatever deletes more than a few jobs or ticks at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.sizes: list[int] = []

    def __call__(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        counted = ("DELETE FROM", "dj_queue_jobs"), ("DELETE FROM", "dj_queue_recurring_executions")
        if any(verb in sql and table in sql.split("WHERE", maxsplit=1)[0] for verb, table in counted) and params:
            self.sizes.append(len(params))
            if len(params) > self.most:
                raise OperationalError("canceling statement due to statement timeout")
        return execute(sql, params, many, context)


@pytest.fixture
def slow(monkeypatch: Any) -> Iterator[Slow]:
    monkeypatch.setattr(type(dialect_for("default")), "is_away", lambda this, error: False)
    monkeypatch.setattr(type(dialect_for("default")), "may_pass", lambda this, error: "timeout" in str(error))
    server = Slow(MOST)
    with connection.execute_wrapper(server):
        yield server


def ago(seconds: float) -> Any:
    return timezone.now() - timezone.timedelta(seconds=seconds)


def finished(count: int) -> list[UUID]:
    rows = [Job(task_path="x", finished_at=ago(2 * DAY), created_at=ago(2 * DAY)) for _ in range(count)]
    return [job.pk for job in Job.objects.bulk_create(rows)]


def failed(count: int) -> list[UUID]:
    ids = [UUID(tasks.fail.enqueue("x").id) for _ in range(count)]
    work()
    FailedExecution.objects.update(created_at=ago(2 * DAY))
    return ids


def ticks(count: int) -> None:
    at = ago(2 * DAY)
    rows = [RecurringExecution(task_key="k", run_at=at - timezone.timedelta(minutes=n)) for n in range(count + 1)]
    RecurringExecution.objects.bulk_create(rows)


@pytest.fixture
def scheduler(settings: Any) -> Iterator[Scheduler]:
    options = dict.fromkeys(("clear_finished_jobs_after", "clear_failed_jobs_after"), DAY)
    options["clear_recurring_executions_after"] = DAY
    settings.TASKS = {"default": {**settings.TASKS["default"], "OPTIONS": options}}
    made = Scheduler(backend_config(), SchedulerConfig(), "scheduler-1")
    yield made
    made.wakeup.close()


class TestTooManyAtOnce:
    def test_a_scheduler_deletes_all_the_same(self, scheduler: Scheduler, slow: Slow) -> None:
        finished(20), failed(10), ticks(20)
        for _ in range(30):
            scheduler.step()
        assert not Job.objects.exists()
        assert RecurringExecution.objects.count() == 1
        # The size that goes well is kept.
        assert sum(size > MOST for size in slow.sizes) < 3 * 12

    def test_prune(self, slow: Slow) -> None:
        finished(10), failed(7), ticks(8)
        out = StringIO()
        call_command(
            "dj_queue_prune", "--older-than", "60", "--failed-older-than", "60", "--recurring-older-than", "60",
            stdout=out,
        )  # fmt: skip
        assert out.getvalue() == "deleted 10 finished jobs, 7 failed jobs, and 8 recurring executions\n"

    @pytest.mark.parametrize("discard", [jobs.discard_failed_jobs, lambda: QueueInfo("default").clear()])
    def test_discards(self, discard: Callable[[], int], slow: Slow) -> None:
        failed(10)
        for n in range(10):
            tasks.add.enqueue(n, n)
        assert discard() == 10
        assert Job.objects.count() == 10

    def test_retries(self, monkeypatch: Any) -> None:
        real = concurrency.dispatch

        def few(config: Any, dialect: Any, cursor: Any, some: Any, now: Any) -> None:
            if len(some) > MOST:
                raise OperationalError("canceling statement due to statement timeout")
            real(config, dialect, cursor, some, now)

        monkeypatch.setattr(concurrency, "dispatch", few)
        monkeypatch.setattr(type(dialect_for("default")), "is_away", lambda this, error: False)
        failed(10)
        assert jobs.retry_failed_jobs() == 10
        failed_ids = FailedExecution.objects.all()
        work()
        assert FailedExecution.retry_all(failed_ids) == 10
        assert ReadyExecution.objects.count() == 10


class TestOneRow:
    def test_a_job_that_is_never_deleted_in_time(self, scheduler: Scheduler, slow: Slow, caplog: Any) -> None:
        ids = finished(5)

        def last(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
            key = Job._meta.pk.get_db_prep_value(ids[2], connection)
            if sql.startswith("DELETE") and "dj_queue_jobs" in sql and key in (params or ()):
                raise OperationalError("canceling statement due to statement timeout")
            return execute(sql, params, many, context)

        with connection.execute_wrapper(last):
            for _ in range(20):
                scheduler.step()
        assert list(Job.objects.values_list("pk", flat=True)) == [ids[2]]
        assert caplog.text.count(f"could not be deleted: {ids[2]} by canceling statement") == 1

    def test_a_receiver_that_raises(self) -> None:
        ids = finished(6)

        def refuse(instance: Job, **kwargs: Any) -> None:
            if instance.pk == ids[1]:
                raise LookupError("not this one")

        pre_delete.connect(refuse, sender=Job)
        try:
            assert retention.delete_finished(backend_config(), older_than=60) == 5
        finally:
            pre_delete.disconnect(refuse, sender=Job)
        assert Job.objects.get().pk == ids[1]

    def test_a_retry_that_is_refused_is_raised_after_the_others(self, monkeypatch: Any) -> None:
        real = concurrency.dispatch
        ids = failed(6)

        def refuse(config: Any, dialect: Any, cursor: Any, some: Any, now: Any) -> None:
            if any(job.pk == ids[2] for job in some):
                raise DataError("not this one")
            real(config, dialect, cursor, some, now)

        monkeypatch.setattr(concurrency, "dispatch", refuse)
        with pytest.raises(DataError, match="not this one"):
            jobs.retry_failed_jobs()
        assert FailedExecution.objects.get().job_id == ids[2]

    @pytest.mark.needs("row locks")
    def test_a_job_that_others_have_locked(self) -> None:
        ids, failures = finished(4), failed(4)
        config = backend_config()

        def delete() -> None:
            for kind in (retention.delete_finished, retention.delete_failed):
                sizes = Batches("default", 2)
                # Of so small a table, MariaDB may read all rows to delete some, and meet the locked one.
                for _ in range(30):
                    with transactions.bounded("default", 1):
                        sizes.run(lambda size, kind=kind: kind(config, older_than=60, batch_size=size))

        with transaction.atomic():
            for held in (ids[1], failures[1]):
                Job.objects.select_for_update().get(pk=held)
            in_thread(delete)
        assert set(Job.objects.values_list("pk", flat=True)) == {ids[1], failures[1]}
        assert FailedExecution.objects.get().job_id == failures[1]
        assert retention.delete_finished(config, older_than=60) == 1
        assert retention.delete_failed(config, older_than=60) == 1

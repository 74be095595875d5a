"""What a server's session brings along: isolation levels, time zones, bounds, and errors by number."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import DataError, InterfaceError, OperationalError, connection, transaction
from django.tasks import TaskResultStatus, default_task_backend
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from dj_queue.api import QueueInfo
from dj_queue.config import backend_config
from dj_queue.dialects import dialect_for
from dj_queue.dialects.clock import Now
from dj_queue.models import BlockedExecution, FailedExecution, Job, Pause, Process, ScheduledExecution, Semaphore
from dj_queue.operations import jobs, processes, retention, transactions
from tests.project import tasks
from tests.working import claim, states, work

pytestmark = pytest.mark.django_db(transaction=True)


def closing(call: Any) -> Any:
    try:
        return call()
    finally:
        connection.close()


# ---- collisions -------------------------------------------------------------------------------------


@pytest.mark.needs("row locks")
def test_a_deadlock_is_run_again(caplog: Any) -> None:
    caplog.set_level(logging.INFO, "dj_queue")
    rows = [Semaphore.objects.create(key=key, value=0, limit=9, expires_at=timezone.now()).pk for key in "ab"]
    both = threading.Barrier(2)
    attempts: list[int] = []

    def cross(first: int, second: int) -> None:
        def work(*_: Any) -> None:
            attempts.append(first)
            for pk in (first, second):
                row = Semaphore.objects.select_for_update().get(pk=pk)
                Semaphore.objects.filter(pk=pk).update(value=row.value + 1)
                if len(attempts) <= 2 and pk == first:
                    both.wait(20)

        closing(lambda: transactions.run("default", work))

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(cross, *rows), pool.submit(cross, *reversed(rows))]:
            done.result()
    assert list(Semaphore.objects.values_list("value", flat=True)) == [2, 2]
    assert len(attempts) >= 3
    (told,) = [record for record in caplog.records if record.getMessage() == "transaction.retried"]
    assert told.dj_queue["attempt"] == 1
    assert "deadlock" in told.dj_queue["error"].lower()


# ---- isolation --------------------------------------------------------------------------------------


@pytest.fixture(params=["repeatable read", None])
def isolation(request: Any) -> Iterator[None]:
    """A project that asks for another isolation level than Django's default, or for the server's own."""
    options = connection.settings_dict["OPTIONS"]
    connection.close()
    connection.settings_dict["OPTIONS"] = {**options, "isolation_level": request.param}
    yield
    connection.close()
    connection.settings_dict["OPTIONS"] = options


def ask(sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def sees_what_others_commit() -> bool:
    """Whether the transaction under way reads at READ COMMITTED: the server shows its level only now and then."""
    before = Pause.objects.count()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(closing, lambda: QueueInfo(str(uuid4())).pause()).result()
    return Pause.objects.count() > before


@pytest.mark.needs("isolation levels")
class TestIsolation:
    def test_our_own_transactions_are_read_committed(self, isolation: None) -> None:
        found = []

        transactions.run("default", lambda *_: found.append(sees_what_others_commit()))
        assert found == [True]
        with transaction.atomic():
            assert not sees_what_others_commit(), "the project's own are as it wants them"

    def test_a_project_on_the_default_pays_nothing(self) -> None:
        with CaptureQueriesContext(connection) as captured:
            tasks.add.enqueue(1, 2)
        assert not [query for query in captured if "ISOLATION" in query["sql"]]

    def test_the_runtimes_sessions_are_read_committed(self, isolation: None) -> None:
        dialect_for("default").prepare_session(connection)
        with CaptureQueriesContext(connection) as captured:
            tasks.add.enqueue(1, 2)
        assert not [query for query in captured if "ISOLATION" in query["sql"]]
        with transaction.atomic():
            assert sees_what_others_commit()

    def test_an_enqueue_joins_its_caller(self, isolation: None) -> None:
        with transaction.atomic():
            tasks.add.enqueue(1, 2)
            assert not sees_what_others_commit()
        assert states() == {"ready": 1}

    def test_a_claim_in_an_old_snapshot_loses_no_job(self, isolation: None) -> None:
        tasks.add.enqueue(1, 2)
        with transaction.atomic():
            assert Job.objects.count() == 1
            with ThreadPoolExecutor(1) as pool:
                pool.submit(closing, lambda: tasks.add.enqueue(1, 2)).result()
            assert Job.objects.count() == 1, "no old snapshot"
            assert len(claim()) == 2
        assert states() == {"claimed": 2}


# ---- times ------------------------------------------------------------------------------------------


@pytest.fixture(params=["+05:30", "-08:00"])
def elsewhere(request: Any) -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("SET time_zone = %s", [request.param])
    yield
    connection.close()


@pytest.mark.needs("sessions without a time zone")
def test_a_session_in_another_time_zone(elsewhere: None) -> None:
    def recent(time: Any) -> bool:
        return abs(time - timezone.now()) < timedelta(seconds=60)

    process = Process.objects.create(kind="Worker", pid=1, name="worker-1")
    process.refresh_from_db()
    assert recent(process.created_at)
    assert recent(process.last_heartbeat_at)
    Process.objects.update(last_heartbeat_at=timezone.now() - timedelta(hours=1))
    assert processes.count_fresh(backend_config(), max_age=60) == 0
    assert processes.heartbeat(backend_config(), process.pk)
    process.refresh_from_db()
    assert recent(process.last_heartbeat_at)
    assert processes.count_fresh(backend_config(), max_age=60) == 1
    QueueInfo("q").pause()
    assert recent(Pause.objects.get().created_at)
    result = tasks.add.enqueue(1, 2)
    later = tasks.add.using(run_after=timezone.now() + timedelta(minutes=1)).enqueue(1, 2)
    (done,) = work()
    result.refresh()
    times = [result.enqueued_at, result.started_at, result.finished_at, done.claim.claimed_at]
    assert all(map(recent, times)), times
    assert jobs.promote_scheduled_jobs(batch_size=10) == 0
    ScheduledExecution.objects.update(scheduled_at=Now() - timedelta(seconds=1))
    assert jobs.promote_scheduled_jobs(batch_size=10) == 1
    assert retention.delete_finished(backend_config(), older_than=60) == 0
    assert states() == {"finished": 1, "ready": 1}
    assert Job.objects.get(pk=later.id).ready


@pytest.mark.needs("sessions without a time zone")
def test_every_time_that_the_database_fills_in_is_in_utc() -> None:
    from dj_queue import models

    for model in (getattr(models, name) for name in dir(models)):
        if isinstance(model, type) and issubclass(model, models.models.Model) and model._meta.app_label == "dj_queue":
            filled = {field.column for field in model._meta.local_fields if field.has_db_default()}
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT column_name, column_default FROM information_schema.columns"
                    " WHERE table_schema = DATABASE() AND table_name = %s",
                    [model._meta.db_table],
                )
                found = {name for name, default in cursor.fetchall() if "utc_timestamp" in str(default).lower()}
            assert found == filled, model


# ---- bounds and old versions ------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: Any) -> Any:
    """Let the dialect believe other things of its server."""
    dialect: Any = dialect_for("default")

    def believe(**facts: Any) -> None:
        from dj_queue.dialects import mysql

        monkeypatch.setattr(mysql, "_STATEMENT", 50_000)
        known = mysql._Server(**{"descending": True, "largest_packet": 2**24, **facts})
        monkeypatch.setattr(dialect, "_known_server", known)

    return believe


@pytest.mark.needs("largest statement")
class TestLargestStatement:
    def test_arguments(self, server: Any) -> None:
        server(largest_packet=300_000)
        with pytest.raises(DataError, match="max_allowed_packet"):
            tasks.return_given.enqueue("x" * 300_000)
        assert Job.objects.count() == 0
        tasks.return_given.enqueue("x" * 100_000)
        assert states() == {"ready": 1}

    def test_a_return_value_fails_its_job_alone(self, server: Any) -> None:
        default_task_backend.enqueue_all((tasks.return_given, ["x" * n], {}) for n in (10, 200_000, 20))
        server(largest_packet=200_000)
        work()
        assert states() == {"finished": 2, "failed": 1}
        assert "max_allowed_packet" in FailedExecution.objects.get().message

    def test_the_servers_own_bound_is_known(self) -> None:
        result = tasks.return_given.enqueue("x" * 100_000)
        with connection.cursor() as cursor:
            dialect: Any = dialect_for("default")
            assert dialect._server(cursor).largest_packet == ask("SELECT @@max_allowed_packet")
            assert dialect._server(cursor).descending
        work()
        result.refresh()
        assert result.status is TaskResultStatus.SUCCESSFUL

    def test_a_bulk_of_more_than_one_statement_holds(self) -> None:
        results = default_task_backend.enqueue_all((tasks.return_given, ["x" * 100_000], {}) for _ in range(30))
        assert len(results) == 30
        while work():
            pass
        assert states() == {"finished": 30}


@pytest.mark.needs("ascending indexes")
class TestWithoutDescendingIndexes:
    """MariaDB 10.6 and 10.7 take a descending index and make an ascending one."""

    def test_claims(self, server: Any) -> None:
        server(descending=False)
        for n, priority in enumerate([0, 5, -5, 5, 0, 100, -100]):
            tasks.echo.using(queue_name="ab"[n % 2], priority=priority).enqueue(n)
        with transaction.atomic():
            assert [job.claim.priority for job in claim(4)] == [100, 5, 5, 0]
            transaction.set_rollback(True)
        with transaction.atomic():
            found = [(job.claim.queue_name, job.claim.priority) for job in claim(queues=["b", "a*"])]
            assert found == [("b", 100), ("b", 5), ("b", 5), ("a", 0), ("a", 0), ("a", -5), ("a", -100)]
            transaction.set_rollback(True)
        QueueInfo("b").pause()
        assert [job.claim.priority for job in claim()] == [0, 0, -5, -100]

    def test_blocked_jobs(self, server: Any) -> None:
        server(descending=False)
        for priority in (0, 1, 9, 5):
            tasks.one_per_key.using(priority=priority).enqueue("k")
        started = []
        while done := work():
            started += [job.claim.priority for job in done]
        assert started == [0, 9, 5, 1]
        assert not BlockedExecution.objects.exists()

    def test_due_jobs(self, server: Any) -> None:
        server(descending=False)
        at = timezone.now() + timedelta(hours=1)
        for priority in (0, 9, 5):
            tasks.echo.using(run_after=at, priority=priority).enqueue(priority)
        ScheduledExecution.objects.update(scheduled_at=Now())
        assert jobs.promote_scheduled_jobs(batch_size=10) == 3
        assert [row.priority for row in Job.objects.ready().order_by("ready_execution__pk")] == [9, 5, 0]


# ---- errors -----------------------------------------------------------------------------------------


@pytest.mark.needs("error numbers")
@pytest.mark.parametrize(
    ("code", "away", "transient"),
    [
        pytest.param(1213, False, True, id="deadlock"),
        pytest.param(1205, False, True, id="lock wait timeout"),
        *[
            pytest.param(code, True, False, id=name)
            for code, name in {
                2002: "no such socket",
                2003: "cannot connect",
                2006: "gone away",
                2013: "lost during the query",
                2055: "lost at reading",
                1040: "too many connections",
                1045: "access denied",
                1053: "shutting down",
                1290: "read only",
                1792: "read-only transaction",
                1927: "killed connection",
            }.items()
        ],
        *[
            pytest.param(code, False, False, id=name)
            for code, name in {
                1153: "statement too large",
                1317: "killed query",
                1969: "statement timeout on MariaDB",
                3024: "statement timeout on MySQL",
                1114: "table full",
                2020: "packet too large for the client",
                1054: "unknown column",
                1406: "data too long",
                3140: "invalid JSON",
                3157: "JSON too deep",
            }.items()
        ],
    ],
)
def test_errors_by_number(code: int, away: bool, transient: bool) -> None:
    error = OperationalError(code, "as the server says")
    assert dialect_for("default").is_away(error) is away
    assert dialect_for("default").is_transient(error) is transient


def test_errors_without_a_number() -> None:
    for error in (OperationalError("gone"), InterfaceError(0, ""), InterfaceError("connection already closed")):
        assert dialect_for("default").is_away(error)
    assert not dialect_for("default").is_away(DataError("too long"))

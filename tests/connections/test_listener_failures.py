"""What keeps a worker from listening is told to `on_thread_error`, once an outage; it polls on."""

import logging

import pytest
from django.db import NotSupportedError, OperationalError, connection, connections

from dj_queue import checks
from dj_queue.config import backend_config
from dj_queue.dialects import dialect_for
from dj_queue.models import Job
from dj_queue.runtime.listener import Listener
from tests.conftest import wait_until
from tests.connections.conftest import task_alias
from tests.project import tasks

MODES = pytest.mark.parametrize("mode", ["fork", "async"])
HEARD = "tests.connections.test_listener_failures.hear"

heard = []


def hear(error):
    heard.append(error)


@pytest.fixture(autouse=True)
def nothing_heard():
    heard.clear()


@pytest.fixture
def listening(transactional_db):
    if not dialect_for("default").listen(connection):
        pytest.skip("the database cannot tell of new work")


@pytest.fixture
def listener(settings, listening, alias):
    started = []

    def start(**options):
        settings.TASKS = {"default": task_alias(**options)}
        started.append(Listener(backend_config(), "worker-1"))
        started[-1].connected()
        started[-1].look_after()
        return started[-1]

    yield start
    for each in started:
        each.close()


def cut(application):
    """End a worker's session; return how many there were."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND (query LIKE %s OR application_name = %s)",
            ["%dj_queue_ready_executions%", application],
        )
        return cursor.fetchone()[0]


class TestRuntime:
    @MODES
    def test_each_outage_of_the_queues_connection_is_told_once(self, listening, runtime, project, tmp_path, mode):
        code = f"""
def hear(error):
    with open({str(tmp_path / "heard")!r}, "a") as file:
        file.write(type(error).__name__ + chr(10))
"""
        options = {
            "mode": mode,
            "workers": {"threads": 1, "polling_interval": 0.2},
            "on_thread_error": "around.setup.hear",
        }
        running = runtime("--only-work", options=options, environment=project(code))
        for outages in (1, 2):
            wait_until(lambda: cut("nobody"))
            wait_until(lambda n=outages: running.output.count("worker-1: the database is back") == n)
            assert (tmp_path / "heard").read_text().split() == ["OperationalError"] * outages
        result = tasks.add.enqueue(1, 2)
        wait_until(lambda: Job.objects.get(pk=result.id).finished)
        assert running.stop() == 0
        assert "dj_queue.thread_error" not in running.output
        assert len((tmp_path / "heard").read_text().split()) == 2


class TestListener:
    def test_one_that_cannot_be_opened(self, listener, alias, monkeypatch):
        alias("nowhere", HOST="/nowhere/at-all")
        found = listener(listen_database_alias="nowhere", on_thread_error=HEARD)
        for _ in range(3):
            found._open_at = 0.0
            found.look_after()
        (error,) = heard
        assert isinstance(error, OperationalError)

    def test_without_a_callback_it_is_logged(self, listener, alias, caplog):
        alias("nowhere", HOST="/nowhere/at-all")
        listener(listen_database_alias="nowhere")
        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert (record.event, record.thread_error_context) == ("dj_queue.thread_error", "worker.notify")
        assert record.exc_info is None

    def test_one_that_breaks_is_told_again_after_it_has_listened(self, listener, alias):
        alias("direct")
        found = listener(listen_database_alias="direct", on_thread_error=HEARD)
        for outages in (1, 2):
            assert found.listening
            found.lost(OperationalError(f"cut {outages}"))
            found.lost(OperationalError("once more"))
            assert [str(error) for error in heard] == [f"cut {n}" for n in range(1, outages + 1)]
            found._open_at = 0.0
            found.look_after()

    def test_a_server_that_refuses_to_listen_is_polled(self, listener, monkeypatch, caplog):
        """As some proxies and compatible servers do: no outage, and no end of the worker."""

        def refuse(connection):
            raise NotSupportedError("LISTEN is not supported")

        monkeypatch.setattr(dialect_for("default"), "listen", refuse)
        found = listener(on_thread_error=HEARD)
        found.connected()
        assert not found.listening
        assert found.socket() is None
        assert [str(error) for error in heard] == ["LISTEN is not supported"]
        (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "'default' does not let it listen: LISTEN is not supported" in record.getMessage()

    def test_an_outage_is_not_taken_for_a_refusal(self, listener, monkeypatch):
        def break_off(connection):
            raise OperationalError("server closed the connection unexpectedly")

        monkeypatch.setattr(dialect_for("default"), "listen", break_off)
        with pytest.raises(OperationalError):
            listener(on_thread_error=HEARD)
        assert heard == []


class TestPsycopg2:
    @pytest.fixture
    def psycopg2(self, monkeypatch, listening):
        """As where it is the driver: `listen_notify` is on by default, and nothing would ever come."""
        monkeypatch.setattr("dj_queue.dialects.postgresql.is_psycopg3", False)

    def test_the_check_tells(self, psycopg2, settings):
        settings.TASKS = {"default": task_alias()}
        (warning,) = checks.check_drivers()
        assert warning.id == "dj_queue.W006"
        assert "the driver psycopg2 wakes nobody" in warning.msg
        assert 'pip install "dj-queue-core[postgres]"' in warning.hint
        settings.TASKS = {"default": task_alias(listen_notify=False)}
        assert checks.check_drivers() == []

    def test_a_worker_tells_once(self, psycopg2, listener, caplog, alias):
        found = listener()
        found.connected()
        assert not found.listening
        alias("direct")
        assert not listener(listen_database_alias="direct").listening
        assert connections["direct"].connection is None
        told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(told) == 2  # by two listeners
        assert set(told) == {
            "dj_queue worker-1 polls for new work, and does not listen: the driver psycopg2 wakes nobody."
            ' Run: pip install "dj-queue-core[postgres]" (psycopg 3), or turn listen_notify off'
        }

    def test_the_other_drivers_are_fine(self, db, settings):
        settings.TASKS = {"default": task_alias()}
        assert checks.check_drivers() == []

"""A server that falls silent without a word: it is noticed, within a bound, and what runs goes on."""

import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.db import OperationalError, connection, connections, transaction

from dj_queue.config import backend_config
from dj_queue.dialects import dialect_for
from dj_queue.dialects.postgresql import liveness
from dj_queue.models import ClaimedExecution
from dj_queue.runtime.supervisor import AsyncSupervisor
from tests.conftest import Counts, alive, lines, pid_of, wait_settled, wait_until
from tests.project import tasks
from tests.proxies import Proxy
from tests.runtime.test_outage import BUSY, runner_pids
from tests.runtime.test_recovery import ONE_THREAD, WATCHFUL, enqueue, failures, shorts

# As in life, but sooner.
SOON = """
from dj_queue.dialects.postgresql import liveness
from dj_queue.runtime import listener, worker

liveness.PATIENCE = 0.5
liveness.LONGEST = 3.0
listener._PING = 0.5
"""


@pytest.fixture
def proxy(transactional_db):
    if not dialect_for("default").listen(connection):
        pytest.skip("the database has no server that could fall silent")
    between = Proxy(connection.settings_dict)
    yield between
    between.close()


def waiting_for_a_lock():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_clear_snapshot()")  # this transaction would see the same again
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            " AND query LIKE '%dj_queue_ready_executions%'"
        )
        return cursor.fetchone()[0]


@contextmanager
def takes(seconds, statement, table):
    """Inside, each row that such a statement changes takes it so long, and no lock is waited for."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION take_long() RETURNS trigger LANGUAGE plpgsql"
            f" AS $$ BEGIN PERFORM pg_sleep({seconds}); RETURN OLD; END $$"
        )
        cursor.execute(
            f"CREATE TRIGGER takes_long BEFORE {statement} ON {table} FOR EACH ROW EXECUTE FUNCTION take_long()"
        )
        try:
            yield
        finally:
            cursor.execute(f"DROP TRIGGER takes_long ON {table}")
            cursor.execute("DROP FUNCTION take_long")


class TestRuntime:
    def test_an_idle_listener_is_pinged_and_listens_again(self, proxy, runtime, project, ran):
        # It never looks for work by itself: what it does not hear of, it does not do.
        code = SOON + "worker._FIRST_POLL = 3600\n"
        options = {"workers": {"threads": 1, "polling_interval": 3600}}
        running = runtime("--only-work", options=options, environment=project(code) | proxy.environment, rows=1)
        enqueue((tasks.append_line, str(ran), "told"))
        wait_until(lambda: lines(ran) == ["told"])
        pids = runner_pids(running)
        began = time.monotonic()
        assert proxy.freeze() >= 1
        wait_until(lambda: "worker-1: the database is back" in running.output)
        # Pinged, asked about, and given up.
        assert time.monotonic() - began < 10
        assert running.output.count("worker-1: the database is away") == 1
        began = time.monotonic()
        enqueue((tasks.append_line, str(ran), "told again"))
        wait_until(lambda: lines(ran) == ["told", "told again"])
        assert time.monotonic() - began < 5
        assert runner_pids(running) == pids
        assert running.stop() == 0

    def test_statements_under_way_are_given_up_and_nothing_is_lost(self, proxy, runtime, project, ran):
        running = runtime(options=BUSY, environment=project(SOON) | proxy.environment, rows=4)
        pids = runner_pids(running)
        frozen = jobs = 0
        for _ in range(5):
            calls = [(tasks.append_line_slowly, str(ran), f"{jobs + n}", 0.003) for n in range(300)]
            calls += [(tasks.line_in_slot, f"{n % 7}", str(ran), f"slot{jobs + n}") for n in range(50)]
            enqueue(*calls)
            jobs += len(calls)
            done = len(lines(ran))
            wait_until(lambda done=done: len(lines(ran)) > done + 20)
            frozen += proxy.freeze()
            done = len(lines(ran))
            wait_until(lambda done=done: len(lines(ran)) > done + 50, what="work goes on")
        wait_settled(seconds=60)
        counts = Counts(f"{frozen} connections frozen under load", ran, running)
        assert counts | {"given_back": 0} == {
            "jobs": jobs, "finished": jobs, "failed": 0, "given_back": 0, "doubled": 0,
        }  # fmt: skip
        assert len(lines(ran)) == jobs
        assert frozen >= 10
        assert "the server no longer answers: the connection is given up" in running.output
        assert runner_pids(running) == pids
        assert running.stop() == 0

    def test_a_statement_that_takes_long_is_left_alone_and_holds_up_no_heartbeat(self, proxy, runtime, project, ran):
        code = SOON + "liveness.LONGEST = 1.0\n"
        running = runtime(
            "--only-work", options=ONE_THREAD | WATCHFUL, environment=project(code) | proxy.environment, rows=1
        )
        # Longer than anybody would wait in vain, and than a process without a heartbeat is taken to live.
        with takes(2.5, "DELETE", "dj_queue_ready_executions"):
            began = time.monotonic()
            enqueue((tasks.append_line, str(ran), "line"))
            wait_until(lambda: lines(ran) == ["line"])
            assert time.monotonic() - began > 2.5
        assert "away" not in running.output
        assert "lost touch" not in running.output
        assert running.stop() == 0

    def test_a_heartbeat_that_is_never_answered_ends_the_lease_all_the_same(self, proxy, runtime, ran, tmp_path):
        """Nobody can be reached any more: in the meantime others take over."""
        release = tmp_path / "release"
        enqueue((tasks.wait_then_append, str(release), str(ran), "lost"))
        running = runtime(options=ONE_THREAD | WATCHFUL, environment=proxy.environment, rows=2)
        wait_until(Path(f"{release}.started").exists)
        worker = pid_of("worker-1")
        began = time.monotonic()
        proxy.deaf = True
        proxy.freeze()
        # Well before the driver and the supervisor give up on what they wait for.
        wait_until(lambda: not alive(worker), seconds=8)
        assert time.monotonic() - began > WATCHFUL["process_alive_threshold"] / 2
        release.touch()
        running.close()
        assert lines(ran) == []

    def test_a_claim_that_commits_after_its_connection_broke_is_given_back(self, proxy, runtime, ran):
        options = ONE_THREAD | {"process_heartbeat_interval": 0.5, "process_alive_threshold": 60}
        running = runtime("--only-work", options=options, environment=proxy.environment, rows=1)
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("LOCK TABLE dj_queue_ready_executions IN EXCLUSIVE MODE")
            enqueue(*shorts(ran, "job", 5))
            wait_until(waiting_for_a_lock)
            assert proxy.cut()
            # The server still waits on behalf of the old one.
            wait_until(lambda: waiting_for_a_lock() == 2)
        wait_settled()
        assert len(lines(ran)) == 5
        assert failures() == []
        assert not ClaimedExecution.objects.exists()
        assert running.stop() == 0


class TestConnection:
    """One connection, in this process."""

    @pytest.fixture
    def watched(self, proxy, monkeypatch):
        monkeypatch.setattr(liveness, "PATIENCE", 0.3)
        monkeypatch.setattr(liveness, "LONGEST", 1.0)
        other = connection.copy(alias="watched")
        other.settings_dict = proxy.settings
        connections["watched"] = other
        other.connect()
        liveness.watch(other)
        yield other
        other.close()
        del connections["watched"]

    def test_is_given_up_when_the_server_is_done_and_nothing_comes(self, proxy, watched):
        with watched.cursor() as cursor:
            cursor.execute("SELECT 1")
            proxy.freeze()
            with pytest.raises(OperationalError, match="no longer answers"):
                cursor.execute("SELECT 2")
        assert watched.connection.closed

    def test_within_a_transaction_the_rollback_waits_for_nothing(self, proxy, watched):
        proxy.freeze()
        with (
            pytest.raises(OperationalError, match="no longer answers"),
            transaction.atomic("watched"),
            watched.cursor() as cursor,
        ):
            cursor.execute("SELECT 2")
        assert not watched.in_atomic_block

    def test_is_given_up_where_nobody_can_be_asked(self, proxy, watched, monkeypatch):
        began = time.monotonic()
        monkeypatch.setattr(liveness, "_is_working", lambda connection, pid: None)
        proxy.freeze()
        with watched.cursor() as cursor, pytest.raises(OperationalError, match="no longer answers"):
            cursor.execute("SELECT 2")
        assert time.monotonic() - began >= 1

    def test_lives_on_while_the_server_works(self, watched):
        with watched.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(2)")
            cursor.execute("SELECT 3")
            assert cursor.fetchone() == (3,)

    def test_what_is_asked(self, watched):
        pid = watched.connection.pgconn.backend_pid
        assert liveness._is_working(watched, pid) is False
        assert liveness._is_working(watched, 0) is False

    def test_a_pooler_in_between_hides_the_session(self, watched, monkeypatch):
        monkeypatch.setattr(liveness, "_ASK", liveness._ASK.replace("pg_backend_pid()", "0"))
        assert liveness._is_working(watched, watched.connection.pgconn.backend_pid) is None

    def test_nobody_to_ask(self, proxy, watched, monkeypatch):
        monkeypatch.setattr(liveness, "_TO_CONNECT", 2)
        proxy.deaf = True
        assert liveness._is_working(watched, 1) is None


class TestStop:
    """Signals are heard, and times kept, whatever the server does."""

    @pytest.mark.parametrize("mode", ["fork", "async"])
    def test_a_server_that_is_silent_does_not_hold_up_a_stop(self, proxy, runtime, mode):
        options = {"shutdown_timeout": 1, "process_heartbeat_interval": 0.3, "process_alive_threshold": 60}
        running = runtime("--mode", mode, options=options, environment=proxy.environment, rows=2)
        proxy.deaf = True
        proxy.freeze()
        # The supervisor connects anew for its next beat, as each of its three runners does, and waits.
        wait_until(lambda: proxy.unanswered >= 4)
        running.signal(signal.SIGTERM)
        running.wait(10)
        assert "the database does not answer, and there is no more time to wait for it" in running.output


def test_a_start_that_waits_for_a_silent_server_is_given_up_when_asked(monkeypatch):
    supervisor = AsyncSupervisor(backend_config())
    asked, over = threading.Event(), threading.Event()

    def connect(config):
        asked.set()
        over.wait(60)

    monkeypatch.setattr("dj_queue.runtime.connect.to_database", connect)

    def stop():
        asked.wait(60)
        supervisor._asked(signal.SIGTERM, None)

    threading.Thread(target=stop, daemon=True).start()
    try:
        supervisor.start()
        assert supervisor.process_id is None
        supervisor.stop()
    finally:
        over.set()

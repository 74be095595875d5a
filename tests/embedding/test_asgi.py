"""`DjQueueLifespan` in real servers: jobs enqueued over HTTP run in the process that took them on."""

import json
import os
import signal
from pathlib import Path

import pytest
from django.core.management import call_command

from dj_queue.config import backend_config
from dj_queue.models import ClaimedExecution, Job, Process
from dj_queue.operations import recovery
from tests.conftest import Counts, alive, lines, wait_settled, wait_until
from tests.embedding.servers import (
    ASGI_SERVERS,
    SITE,
    Load,
    assert_one_after_the_other,
    supervisors,
    wait_finished,
)
from tests.embedding.site import tasks as site_tasks
from tests.project import tasks
from tests.runtime.test_recovery import PRUNED, enqueue, failures
from tests.working import states

EVERY_SERVER = pytest.mark.parametrize("kind", ASGI_SERVERS)
# Uvicorn ends by the signal that it was sent, once all is done.
ENDS_WELL = {"uvicorn": -signal.SIGTERM, "hypercorn": 0, "granian": 0}
PATIENT = {"shutdown_timeout": 60}


@EVERY_SERVER
class TestOneServer:
    def test_jobs_run_in_the_process_that_took_them_on(self, server, kind):
        running = server(kind)
        answers = [running.enqueue(site_tasks.return_pid, path=path) for path in ["/enqueue", "/aenqueue"] * 10]
        (pid,) = {answer["pid"] for answer in answers}
        assert set(wait_finished(*[job_id for answer in answers for job_id in answer["ids"]])) == {pid}
        assert supervisors() == [pid]
        row = Process.objects.get(kind="Supervisor")
        assert (row.metadata["mode"], row.metadata["standalone"]) == ("async", False)
        assert running.stop() == ENDS_WELL[kind], running.output
        assert not Process.objects.exists()
        assert "Traceback" not in running.output

    def test_sigterm_while_a_job_runs(self, server, kind, ran, release):
        """It may finish within `shutdown_timeout`, and what was not started is given back."""
        running = server(kind, options=PATIENT | {"workers": {"threads": 1}})
        running.enqueue(tasks.wait_then_append, str(release), str(ran), "running")
        wait_until(Path(f"{release}.started").exists)
        running.signal(signal.SIGTERM)
        wait_until(lambda: not Process.objects.filter(kind="Dispatcher").exists())
        assert running.process.poll() is None
        release.touch()
        assert running.wait() == ENDS_WELL[kind], running.output
        assert lines(ran) == ["running"]
        assert states() == {"finished": 1}
        assert not Process.objects.exists()

    def test_a_job_that_outlasts_the_shutdown_is_never_run_twice_at_once(self, server, runtime, kind, ran, release):
        running = server(kind, options={"shutdown_timeout": 0.3})
        running.enqueue(site_tasks.tick, str(ran), str(release))
        wait_until(lambda: lines(ran))
        # Idle, and eager: it would start the job at once.
        runtime("--mode", "async")
        running.signal(signal.SIGTERM)
        assert running.wait() == ENDS_WELL[kind], running.output
        assert "jobs were still running when the time was up" in running.output
        if ENDS_WELL[kind] == 0:
            # Given back as the last thing.
            wait_until(lambda: len({line.split()[0] for line in lines(ran)}) == 2, what="it runs again")
            release.touch()
            wait_settled()
            assert states() == {"finished": 1}
            assert_one_after_the_other(ran)
        else:
            # A signal has ended the process before its exit: the job stays its own until its heartbeat expires.
            claim = ClaimedExecution.objects.get()
            assert claim.process is not None
            Process.objects.filter(pk=claim.process_id).update(last_heartbeat_at=claim.created_at.replace(year=2000))
            recovery.prune(backend_config())
            assert [failure[1] for failure in failures()] == [PRUNED]
            assert len({line.split()[0] for line in lines(ran)}) == 1

    def test_bad_configuration_ends_the_server(self, server, kind):
        options = {"workers": {"thread": 3}, "shutdown_timeout": "soon"}
        running = server(kind, options=options, wait=False)
        code = running.wait()
        # Hypercorn tells why, ends, and says 0 all the same.
        assert code != 0 or kind == "hypercorn", running.output
        assert "shutdown_timeout" in running.output
        assert "'threads'" in running.output  # the nearest known key
        assert not Process.objects.exists()

    @pytest.mark.parametrize("max_age", [0, 60])
    def test_descriptors_and_connections_do_not_grow(self, server, kind, max_age):
        """And the queue's statements stay out of the requests' own lists."""
        running = server(
            kind,
            environment={"DJ_QUEUE_TEST_SITE": json.dumps({"DEBUG": True, "CONN_MAX_AGE": max_age})},
            options={"workers": {"threads": 2, "polling_interval": 0.02}, "process_heartbeat_interval": 0.2},
        )

        def burst():
            if max_age:
                # Not by requests: each of Django's would leave its thread's connection behind.
                ids = enqueue(*[(site_tasks.return_pid,)] * 40)
            else:
                # In one request: Hypercorn keeps a socket of each.
                ids = running.enqueue(site_tasks.return_pid, times=40)["ids"]
            return wait_finished(*ids)[0]

        pid = burst()
        burst()
        before = len(os.listdir(f"/proc/{pid}/fd"))
        burst()
        burst()
        assert len(os.listdir(f"/proc/{pid}/fd")) <= before + 5
        assert running.get("/pid")["queries"] == 1
        assert Job.objects.finished().count() == 160
        assert "Traceback" not in running.output


class TestTwoServers:
    def test_two_workers_of_one_server(self, server, ran):
        running = server("uvicorn", "--workers", "2")
        wait_until(lambda: len(supervisors()) == 2)
        load = Load(site_tasks.return_pid, ran, running)
        with load.running():
            load.wait_more(150)
        wait_settled()
        counts = Counts("two workers of one uvicorn", ran, running)
        assert (counts["finished"], counts["failed"], counts["doubled"]) == (len(load.accepted), 0, 0)
        assert sorted(lines(ran)) == sorted(load.accepted)
        workers = set(supervisors())
        assert {job.return_value for job in Job.objects.all()} <= workers
        assert running.stop() == 0, running.output
        assert not Process.objects.exists()

    @EVERY_SERVER
    def test_a_rolling_restart_under_load(self, server, ran, kind):
        servers = [server(kind), server(kind)]
        load = Load(site_tasks.return_pid, ran, *servers)
        with load.running():
            for turn in range(2):  # each of the two
                load.wait_more()
                old = load.servers[turn]
                load.servers = [load.servers[1 - turn]] * 2
                assert old.stop() == ENDS_WELL[kind], old.output
                servers.append(server(kind))
                load.servers[turn] = servers[-1]
                load.wait_more()
        wait_settled()
        counts = Counts(f"rolling restart of two {kind} under load", ran, *servers)
        print(f"  taken on {len(load.accepted)}, refused {load.refused}")
        assert (counts["failed"], counts["doubled"]) == (0, 0)
        # A request whose answer was lost may have enqueued its job all the same.
        assert set(load.accepted) <= set(lines(ran))
        assert counts["finished"] == len(lines(ran)) <= len(load.accepted) + load.refused
        for running in servers[-2:]:
            running.stop()
        assert not Process.objects.exists()


class TestNotInAServer:
    def test_the_reloaders_parent_hosts_nothing(self, server):
        running = server("uvicorn", "--reload", "--reload-dir", str(Path(__file__).parent / "site"))
        (pid,) = supervisors()
        assert pid != running.pid
        assert running.get("/pid")["pid"] == pid
        running.stop()
        wait_until(lambda: not alive(pid))
        assert not Process.objects.exists()

    def test_importing_the_application_starts_nothing(self, transactional_db):
        """As commands do that read ASGI_APPLICATION."""
        import importlib
        import threading

        before = threading.active_count()
        importlib.import_module(f"{SITE}.asgi")
        call_command("migrate", verbosity=0)
        call_command("check", verbosity=0)
        assert threading.active_count() == before
        assert not Process.objects.exists()

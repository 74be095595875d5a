"""The gunicorn hooks in a real gunicorn: one worker hosts the supervisor, whatever becomes of it another follows."""

import json
import os
import signal
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import pytest
from gunicorn.config import Config

from dj_queue.models import ClaimedExecution, Job, Process
from tests.conftest import Counts, lines, wait_settled, wait_until
from tests.embedding.servers import (
    SITE,
    Load,
    assert_one_after_the_other,
    supervisors,
    wait_finished,
    wait_supervisor,
)
from tests.embedding.site import tasks as site_tasks
from tests.project import tasks
from tests.runtime.test_recovery import EXIT, failures
from tests.working import states

# name: the worker class, and the application it serves
CLASSES = {
    "sync": ["sync", "wsgi"],
    "gthread": ["gthread", "wsgi"],
    "uvicorn": ["uvicorn.workers.UvicornWorker", "plain"],
    "asgi": ["asgi", "plain"],
}
EVERY_CLASS = pytest.mark.parametrize("kind", CLASSES)
# Those that tell of their end in different ways.
TWO_CLASSES = pytest.mark.parametrize("kind", ["gthread", "uvicorn"])
HOOKS = "from dj_queue.contrib.gunicorn import post_fork, worker_exit\n"
PATIENT = {"shutdown_timeout": 20}


@pytest.fixture
def gunicorn(server, tmp_path):
    """Start `gunicorn("sync", "--workers", "2", conf=HOOKS, options={...})`."""

    def start(kind, *arguments, conf=HOOKS, **rest):
        worker_class, module = CLASSES[kind]
        config = tmp_path / f"gunicorn-{len(list(tmp_path.iterdir()))}.conf.py"
        config.write_text(f"import warnings\nwarnings.simplefilter('ignore')\n{conf}")
        # Only newer ones have it, and then it is one for each user.
        control = [f"--control-socket={tmp_path}/{config.stem}.ctl"] if "control_socket" in Config().settings else []
        return server(
            "gunicorn",
            f"--config={config}",
            f"--worker-class={worker_class}",
            *control,
            *arguments,
            app=f"{SITE}.{module}:application",
            **rest,
        )

    return start


def first_worker(running):
    line = next(line for line in running.output.splitlines() if "Booting worker with pid: " in line)
    return int(line.rpartition(" ")[2])


class TestOneHost:
    @pytest.mark.parametrize(
        ("kind", "preload"),
        [*((kind, []) for kind in CLASSES), *((kind, ["--preload"]) for kind in ("sync", "uvicorn"))],
    )
    def test_the_first_worker_hosts_the_supervisor(self, gunicorn, kind, preload):
        running = gunicorn(kind, "--workers", "3", *preload)
        host = wait_supervisor()
        assert host == first_worker(running)
        answers = [running.enqueue(site_tasks.return_pid) for _ in range(20)]
        assert set(wait_finished(*[job_id for answer in answers for job_id in answer["ids"]])) == {host}
        assert supervisors() == [host]
        assert running.stop() == 0, running.output
        assert not Process.objects.exists()
        assert "Traceback" not in running.output

    @TWO_CLASSES
    def test_enqueued_and_run_in_the_same_process(self, gunicorn, kind):
        running = gunicorn(kind)
        answer = running.enqueue(site_tasks.return_pid)
        assert wait_finished(*answer["ids"]) == [answer["pid"]]

    @EVERY_CLASS
    def test_sigterm_while_a_job_runs(self, gunicorn, kind, ran, release):
        running = gunicorn(kind, "--workers", "2", options=PATIENT | {"workers": {"threads": 1}})
        running.enqueue(tasks.wait_then_append, str(release), str(ran), "running")
        wait_until(Path(f"{release}.started").exists)
        running.signal(signal.SIGTERM)
        # The host has been asked, and brings its work to an end.
        wait_until(lambda: Process.objects.filter(kind="Worker").count() >= 1)
        release.touch()
        assert running.wait() == 0, running.output
        assert lines(ran) == ["running"]
        assert states() == {"finished": 1}
        assert not Process.objects.exists()

    @TWO_CLASSES
    def test_a_successor_does_not_wait_for_what_its_predecessor_runs(self, gunicorn, kind, ran, release):
        running = gunicorn(kind, options=PATIENT)
        host = wait_supervisor()
        running.enqueue(tasks.wait_then_append, str(release), str(ran), "running")
        wait_until(Path(f"{release}.started").exists)
        running.signal(signal.SIGHUP)
        successor = wait_supervisor(but=host)
        assert wait_finished(*running.enqueue(site_tasks.return_pid)["ids"]) == [successor]
        assert supervisors() == [host, successor]
        release.touch()
        wait_until(lambda: supervisors() == [successor])
        assert lines(ran) == ["running"]
        assert states() == {"finished": 2}

    @EVERY_CLASS
    def test_a_job_that_outlasts_its_worker_goes_back_once_that_is_gone(self, gunicorn, kind, ran, release):
        running = gunicorn(kind, "--workers", "1", options={"shutdown_timeout": 0.3})
        running.enqueue(site_tasks.tick, str(ran), str(release))
        wait_until(lambda: lines(ran))
        running.signal(signal.SIGHUP)
        wait_until(lambda: len({line.split()[0] for line in lines(ran)}) == 2, what="it runs again")
        release.touch()
        wait_settled()
        assert states() == {"finished": 1}
        assert_one_after_the_other(ran)
        assert running.stop() == 0, running.output
        assert not Process.objects.exists()

    @EVERY_CLASS
    def test_a_host_that_is_killed_is_succeeded_at_once(self, gunicorn, kind, ran, release):
        """The process is gone for certain: nobody waits for its heartbeat to expire."""
        running = gunicorn(kind, "--workers", "2", options={"workers": {"threads": 1}})
        killed = wait_supervisor()
        running.enqueue(tasks.wait_then_append, str(release), str(ran), "interrupted")
        wait_until(Path(f"{release}.started").exists)
        os.kill(killed, signal.SIGKILL)
        successor = wait_supervisor(but=killed)
        wait_until(lambda: supervisors() == [successor])
        assert wait_finished(*running.enqueue(site_tasks.return_pid)["ids"]) == [successor]
        wait_until(lambda: failures() == [("wait_then_append", EXIT, "child process exited")])
        assert not ClaimedExecution.objects.exists()
        assert set(Process.objects.values_list("pid", flat=True)) == {successor}

    @EVERY_CLASS
    def test_hup_under_load(self, gunicorn, kind, ran):
        running = gunicorn(kind, "--workers", "2", options=PATIENT)
        load = Load(site_tasks.return_pid, ran, running)
        hosts = [wait_supervisor()]
        with load.running():
            for _ in range(2):
                load.wait_more()
                running.signal(signal.SIGHUP)
                wait_until(lambda: supervisors()[-1:] not in ([], hosts[-1:]), seconds=40)
                hosts.append(supervisors()[-1])
            load.wait_more()
        wait_settled()
        counts = Counts(f"two SIGHUPs to gunicorn's {kind} workers under load", ran, running)
        print(f"  taken on {len(load.accepted)}, refused {load.refused}")
        assert (counts["failed"], counts["doubled"]) == (0, 0)
        assert set(load.accepted) <= set(lines(ran))
        assert counts["finished"] == len(lines(ran)) <= len(load.accepted) + load.refused
        assert running.stop() == 0, running.output
        assert not Process.objects.exists()

    @TWO_CLASSES
    def test_recycled_workers_under_load(self, gunicorn, kind, ran):
        running = gunicorn(kind, "--workers", "2", "--max-requests", "40", options=PATIENT)
        load = Load(site_tasks.return_pid, ran, running)
        hosts = set()

        def three_hosts():
            hosts.update(supervisors())
            return len(hosts) >= 3

        with load.running():
            wait_until(three_hosts, seconds=60, what="three hosts one after another")
        wait_settled()
        counts = Counts(f"gunicorn's {kind} workers recycled every 40 requests", ran, running)
        print(f"  taken on {len(load.accepted)}, refused {load.refused}")
        assert (counts["failed"], counts["doubled"]) == (0, 0)
        assert set(load.accepted) <= set(lines(ran))
        assert running.stop() == 0, running.output
        assert not Process.objects.exists()

    @TWO_CLASSES
    def test_bad_configuration_ends_the_server(self, gunicorn, kind):
        options = {"workers": {"thread": 3}, "shutdown_timeout": "soon"}
        running = gunicorn(kind, options=options, wait=False)
        assert running.wait() == 3  # gunicorn's own for workers that cannot boot
        assert "shutdown_timeout" in running.output
        assert "'threads'" in running.output
        assert not Process.objects.exists()


class TestAbort:
    def test_a_host_that_is_timed_out_leaves_nothing_stuck(self, gunicorn, ran, release):
        running = gunicorn("sync", "--timeout", "2", options={"workers": {"threads": 1}, "shutdown_timeout": 30})
        lost = wait_supervisor()
        running.enqueue(tasks.wait_then_append, str(release), str(ran), "interrupted")
        wait_until(Path(f"{release}.started").exists)
        with suppress(OSError, HTTPException):  # its worker is ended
            running.get("/block/60")
        successor = wait_supervisor(but=lost, seconds=30)
        wait_until(lambda: failures() == [("wait_then_append", EXIT, "child process exited")])
        assert wait_finished(*running.enqueue(site_tasks.return_pid)["ids"]) == [successor]
        assert supervisors() == [successor]
        assert "WORKER TIMEOUT" in running.output

    def test_everyone_is_killed_in_turn(self, gunicorn, ran):
        """A host after another, while jobs run: each is finished or failed, none is stuck."""
        running = gunicorn("gthread", "--workers", "2")
        host = 0
        load = Load(site_tasks.return_pid, ran, running)
        with load.running():
            for _ in range(4):
                host = wait_supervisor(but=host)
                load.wait_more()
                os.kill(host, signal.SIGKILL)
            wait_supervisor(but=host)
            load.wait_more()
        wait_settled(seconds=60)
        counts = Counts("four hosts of a gunicorn killed under load", ran, running)
        print(f"  taken on {len(load.accepted)}, refused {load.refused}")
        assert counts["doubled"] == 0
        assert {failure[1] for failure in failures()} <= {EXIT}
        assert counts["finished"] + counts["failed"] == Job.objects.count() >= len(load.accepted)


class TestHooks:
    def test_beside_the_users_own(self, gunicorn, tmp_path):
        """As the documentation shows it."""
        running = gunicorn(
            "sync",
            conf=f"""
from pathlib import Path
from dj_queue.contrib import gunicorn as dj_queue

def note(text):
    with Path({str(tmp_path / "notes")!r}).open("a") as file:
        print(text, file=file)

def post_fork(server, worker):
    dj_queue.post_fork(server, worker)
    note("post_fork")

def post_worker_init(worker):
    note("post_worker_init")

def worker_exit(server, worker):
    note("worker_exit with a supervisor: %s" % (worker._dj_queue_supervisor is not None))
    dj_queue.worker_exit(server, worker)
""",
        )
        host = wait_supervisor()
        assert wait_finished(*running.enqueue(site_tasks.return_pid)["ids"]) == [host]
        assert running.stop() == 0
        notes = lines(tmp_path / "notes")
        assert notes[:2] == ["post_fork", "post_worker_init"]
        assert notes[2].startswith("worker_exit")
        assert not Process.objects.exists()

    def test_an_import_that_comes_too_late_is_told(self, gunicorn):
        running = gunicorn(
            "sync",
            conf="""
def post_fork(server, worker):
    from dj_queue.contrib.gunicorn import post_fork
    post_fork(server, worker)
""",
            wait=False,
        )
        assert running.wait() == 3
        assert "Import it at the top of gunicorn.conf.py" in running.output

    def test_a_database_that_is_away_ends_no_worker(self, gunicorn, tmp_path):
        """Requests that need no database are served, and the supervisor comes when it can."""
        running = gunicorn(
            "gthread",
            environment={"DJ_QUEUE_TEST_SITE": json.dumps({"missing_until": str(tmp_path / "there")})},
        )
        wait_until(lambda: "lacks the migration" in running.output)
        assert supervisors() == []
        (tmp_path / "there").touch()
        host = wait_supervisor(seconds=40)
        assert wait_finished(*running.enqueue(site_tasks.return_pid)["ids"]) == [host]

    def test_an_arbiter_may_call_worker_exit_for_a_worker_that_is_gone(self):
        from types import SimpleNamespace

        from dj_queue_gunicorn import worker_exit

        worker_exit(None, SimpleNamespace(age=1))

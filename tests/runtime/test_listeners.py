"""Receivers, subscribers, hooks and callbacks may raise anything or never return: a supervisor goes on."""

import os
import signal
import time

import pytest

from dj_queue import events, hooks
from dj_queue.config import backend_config
from dj_queue.models import Process
from dj_queue.operations import processes, recovery
from dj_queue.runtime.announcer import Announcer
from tests.conftest import alive, lines, pid_of, wait_settled, wait_until
from tests.project import tasks
from tests.runtime.test_recovery import EXIT, ONE_THREAD, WATCHFUL, claim, enqueue, failures

EXITS = [SystemExit(3), KeyboardInterrupt(), GeneratorExit()]

# What is registered in a supervisor's process: it exits, or never returns, once what it is about has happened.
LISTENING = """
import os
import time
from pathlib import Path
from django.tasks.signals import task_finished
from dj_queue import events

supervisor = os.getpid()

def act(name):
    if os.getpid() != supervisor:
        return
    with open({log!r}, "a") as file:
        file.write(name + "\\n")
    {act}

def receiver(sender, task_result, **kwargs):
    act("receiver")

task_finished.connect(receiver)
events.subscribe(lambda event, fields: act(event), "job.failed", "process.replaced", "process.pruned")

def callback(error):
    act("callback")
"""
ACTS = pytest.mark.parametrize("act", ["raise SystemExit(1)", "time.sleep(3600)"], ids=["exits", "never returns"])


class TestSupervisor:
    @ACTS
    def test_beats_settles_replaces_and_stops(self, runtime, project, tmp_path, ran, act):
        log = tmp_path / "log"
        running = runtime(
            options=ONE_THREAD | WATCHFUL | {"process_alive_threshold": 30, "shutdown_timeout": 1},
            environment=project(LISTENING.format(log=str(log), act=act)),
            rows=2,
        )
        for n in range(2):
            worker = pid_of("worker-1")
            enqueue((tasks.kill_own_process,))
            wait_until(lambda n=n: len(failures()) == n + 1)
            wait_until(lambda worker=worker: pid_of("worker-1") not in (0, worker))
        assert {error for _, error, _ in failures()} == {EXIT}
        heard = ["job.failed", "receiver", "process.replaced"]
        wait_until(lambda: lines(log)[:3] == (heard if "raise" in act else heard[:1]))
        row = Process.objects.filter(pid=running.pid)
        before = row.get().last_heartbeat_at
        wait_until(lambda: row.get().last_heartbeat_at > before, what="it beats on")
        enqueue((tasks.append_line, str(ran), "next"))
        wait_settled()
        assert lines(ran) == ["next"]
        began = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - began < 15
        assert not Process.objects.exists()
        assert ("did not return in time" in running.output) == ("sleep" in act)

    @ACTS
    def test_beats_whatever_the_error_callback_does(self, runtime, project, tmp_path, act):
        log = tmp_path / "log"
        code = LISTENING.format(log=str(log), act=act) + (
            "from django.db import OperationalError\n"
            "from dj_queue.operations import recovery\n"
            "real, seen = recovery.survey, []\n"
            "def survey(*args, **kwargs):\n"
            "    seen.append(1)\n"
            "    if len(seen) == 2:\n"
            "        raise OperationalError('away')\n"
            "    return real(*args, **kwargs)\n"
            "recovery.survey = survey\n"
        )
        options = WATCHFUL | {"on_thread_error": "around.setup.callback", "process_alive_threshold": 30}
        running = runtime(options=options | {"shutdown_timeout": 1}, environment=project(code), rows=2)
        wait_until(lambda: "callback" in lines(log))
        row = Process.objects.filter(pid=running.pid)
        before = row.get().last_heartbeat_at
        wait_until(lambda: row.get().last_heartbeat_at > before, what="it beats on")
        assert running.stop() == 0
        assert not Process.objects.exists()

    @pytest.mark.parametrize("mode", ["fork", "async"])
    @pytest.mark.parametrize("raised", ["SystemExit(0)", "GeneratorExit", "KeyboardInterrupt"])
    def test_and_its_runners_go_on_after_a_hook_that_raises(self, runtime, project, ran, mode, raised):
        code = (
            "from dj_queue.hooks import EVENTS, register_hook\n"
            f"def exits(process):\n    raise {raised}\n"
            "for event in EVENTS:\n    register_hook(event, exits)\n"
        )
        running = runtime(options={"mode": mode}, environment=project(code), rows=2)
        enqueue((tasks.append_line, str(ran), "line"))
        wait_settled()
        assert running.output.count("dj_queue.thread_error in hook:worker.start") == 1
        assert running.stop() == 0
        assert running.output.count("dj_queue.thread_error in hook:supervisor.exit") == 1
        assert not Process.objects.exists()


@pytest.mark.parametrize("raised", EXITS, ids=lambda error: type(error).__name__)
class TestAnythingRaised:
    def test_by_a_receiver_keeps_no_job_from_being_settled_and_told(self, transactional_db, caplog, raised):
        from django.tasks.signals import task_finished

        heard = []

        def receive(sender, task_result, **kwargs):
            heard.append(task_result.id)
            raise raised

        ids = enqueue((tasks.add, 1, 2), (tasks.add, 3, 4))
        process_id = processes.register(
            backend_config(), kind="Worker", name="worker-1", pid=1, hostname="here", metadata={}
        )
        claim(process_id=process_id)
        task_finished.connect(receive)
        try:
            recovery.process_ended(backend_config(), process_id)
        finally:
            task_finished.disconnect(receive)
        assert sorted(heard) == sorted(ids)
        assert type(raised).__name__ in caplog.text

    def test_by_a_subscriber_keeps_no_other_from_hearing(self, caplog, raised):
        heard = []

        def raises(event, fields):
            raise raised

        def listens(event, fields):
            heard.append((event, fields))

        for subscriber in (raises, listens):
            events.subscribe(subscriber, "job.failed")
        try:
            events.emit("job.failed", job_id="1")
        finally:
            for subscriber in (raises, listens):
                events.unsubscribe(subscriber)
        assert heard == [("job.failed", {"job_id": "1"})]

    def test_by_a_hook_keeps_no_other_from_running(self, caplog, raised):
        ran = []

        def raises(process):
            raise raised

        hooks.register_hook("worker.stop", raises)
        hooks.register_hook("worker.stop", ran.append)
        try:
            hooks.run_hooks("worker.stop", "the worker", backend_config())
        finally:
            hooks.clear_hooks("worker.stop")
        assert ran == ["the worker"]


class TestAnnouncer:
    @pytest.fixture
    def announcer(self):
        return Announcer(backend_config(), "supervisor-1")

    def test_calls_in_order_and_has_no_thread_when_there_is_nothing_to_call(self, announcer):
        assert not announcer.busy
        called = []
        for n in range(100):
            announcer.submit(lambda n=n: called.append(n))
        announcer.close(until=time.monotonic() + 20)
        assert called == list(range(100))
        wait_until(lambda: not announcer.busy)

    @pytest.mark.parametrize("raised", EXITS, ids=lambda error: type(error).__name__)
    def test_goes_on_after_whatever_a_call_raises(self, announcer, caplog, raised):
        def raises():
            raise raised

        called = []
        announcer.submit(raises)
        announcer.submit(lambda: called.append(1))
        wait_until(lambda: called)
        assert "dj_queue.thread_error in supervisor.run" in caplog.text

    def test_holds_no_more_than_so_many(self, announcer, caplog, monkeypatch):
        import threading

        monkeypatch.setattr("dj_queue.runtime.announcer._MOST_WAITING", 3)
        go, called = threading.Event(), []
        announcer.submit(lambda: go.wait(20))
        wait_until(lambda: not announcer._calls)
        for n in range(5):
            announcer.submit(lambda n=n: called.append(n))
        assert caplog.text.count("what follows is not told") == 1
        began = time.monotonic()
        announcer.close(until=began + 0.1)
        assert "did not return in time, and 3 more were not called" in caplog.text
        go.set()
        wait_until(lambda: not announcer.busy)
        assert called == [0, 1, 2]
        announcer.submit(lambda: called.append(5))
        wait_until(lambda: called[-1] == 5)


def test_a_supervisor_whose_child_was_reaped_by_another_goes_on(runtime, project, ran, tmp_path):
    """A receiver may call os.wait(): the exit code is lost, and nothing hangs on it."""
    code = """
import os
import threading
import time
from dj_queue.hooks import on_start

def reap():
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.01)

on_start(lambda supervisor: threading.Thread(target=reap, daemon=True).start())
"""
    running = runtime(options=ONE_THREAD, environment=project(code), rows=2)
    worker = pid_of("worker-1")
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not alive(worker))
    wait_until(lambda: pid_of("worker-1") not in (0, worker))
    enqueue((tasks.append_line, str(ran), "next"))
    wait_settled()
    assert running.stop() == 0
    assert not Process.objects.exists()

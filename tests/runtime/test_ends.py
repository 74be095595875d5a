"""How a runner ended is what it says itself. An exit code is any number that a task may produce."""

import os
import signal
from pathlib import Path

import pytest

from dj_queue.models import Process
from dj_queue.runtime.runner import End
from dj_queue.runtime.shared_state import SharedState
from dj_queue.runtime.supervisor.slots import Slot
from tests.conftest import lines, pid_of, wait_settled, wait_until
from tests.project import exits, tasks
from tests.runtime.test_recovery import EXIT, ONE_THREAD, enqueue, failures
from tests.working import states


class TestExitCode:
    @pytest.mark.parametrize("task", [exits.exit_at_once, exits.exit_as_c_does], ids=lambda task: task.name)
    def test_of_a_task_that_ends_the_process_is_no_verdict(self, runtime, ran, task):
        codes = [0, 3, 4, 5, 255]
        enqueue(*((task, code, str(ran)) for code in codes), (tasks.append_line, str(ran), "behind"))
        running = runtime(options=ONE_THREAD)
        wait_settled(seconds=60)
        assert failures() == [(task.name, EXIT, "child process exited")] * len(codes)
        assert lines(ran) == [*(f"exit {code}" for code in codes), "behind"]
        assert "(process " in running.output
        assert "ended: exit code 0" in running.output
        assert running.stop() == 0
        assert not Process.objects.exists()

    @pytest.mark.parametrize("code", [0, 3])
    def test_during_a_stop_is_none_either(self, runtime, ran, release, code):
        enqueue((exits.exit_once_released, code, str(release), str(ran)))
        running = runtime(options=ONE_THREAD | {"shutdown_timeout": 60})
        wait_until(Path(f"{release}.started").exists)
        running.signal(signal.SIGTERM)
        wait_until(lambda: not Process.objects.filter(kind="Dispatcher").exists(), what="it has begun to stop")
        release.touch()
        running.wait()
        assert failures() == [("exit_once_released", EXIT, "child process exited")]
        assert lines(ran) == [f"exit {code}"]

    def test_an_exit_of_its_thread_fails_the_job_alone(self, runtime):
        running = runtime(options=ONE_THREAD, rows=2)
        worker = pid_of("worker-1")
        enqueue((exits.exit_a_thread, 0), (exits.exit_a_thread, 3), (tasks.add, 1, 2))
        wait_settled()
        assert [error for _, error, _ in failures()] == ["builtins.SystemExit"] * 2
        assert pid_of("worker-1") == worker
        assert running.stop() == 0

    def test_what_a_task_forks_has_no_say(self, runtime, ran):
        enqueue((exits.say_drained_in_a_child, str(ran)))
        running = runtime(options=ONE_THREAD)
        wait_settled()
        assert Path(f"{ran}.written").exists()
        assert failures() == [("say_drained_in_a_child", EXIT, "child process exited")]
        assert lines(ran) == ["forked"]
        assert running.stop() == 0

    def test_a_thread_that_dies_of_anything_has_not_drained(self, runtime, project, ran, release):
        """Its jobs fail, and it is replaced."""
        code = f"""
from pathlib import Path
from dj_queue.hooks import on_worker_start

crash = Path({str(release) + ".crash"!r})

@on_worker_start
def sabotage(worker):
    step = worker.step
    def exiting():
        if crash.exists():
            crash.unlink()
            raise SystemExit(0)
        return step()
    worker.step = exiting
"""
        enqueue((tasks.wait_then_append, str(release), str(ran), "late"))
        options = ONE_THREAD | {"mode": "async", "shutdown_timeout": 0.2, "listen_notify": False}
        running = runtime(options=options, environment=project(code))
        wait_until(Path(f"{release}.started").exists)
        Path(f"{release}.crash").touch()
        wait_until(lambda: failures() == [("wait_then_append", EXIT, "runner thread crashed")])
        release.touch()
        enqueue((tasks.append_line, str(ran), "next"))
        wait_until(lambda: "next" in lines(ran))
        wait_until(lambda: states() == {"failed": 1, "finished": 1})
        assert running.stop() == 0


class TestSharedState:
    def test_what_is_forked_from_its_writer_writes_nothing(self):
        shared = SharedState()
        shared.process_id = 7
        shared.started(11)
        pid = os.fork()
        if pid == 0:
            try:
                shared.process_id = 8
                shared.started(12)
                shared.end = End.DRAINED
            finally:
                os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert (shared.process_id, shared.started_up_to, shared.end) == (7, 11, None)

    def test_who_takes_it_writes_for_whoever_made_it(self):
        shared = SharedState()
        pid = os.fork()
        if pid == 0:
            try:
                shared.take()
                shared.end = End.UNFINISHED
            finally:
                os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert shared.end == End.UNFINISHED

    def test_what_the_last_one_said_does_not_count_for_the_next(self):
        slot = Slot("worker", "worker-1", lambda *_: None, SharedState())
        slot.shared.end = End.DRAINED
        slot.shared.process_id = 7
        slot.shared.started(11)
        assert slot.end is End.DRAINED
        slot.begin()
        assert slot.end is End.CRASHED
        assert (slot.shared.process_id, slot.shared.started_up_to) == (None, 0)

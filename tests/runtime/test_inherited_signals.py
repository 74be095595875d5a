"""What a task or a hook forks does not inherit how the runtime handles signals."""

import json
import signal

import pytest
from django.tasks import default_task_backend

from tests.conftest import wait_settled, wait_until
from tests.project import forks
from tests.runtime.test_recovery import ONE_THREAD, enqueue, failures
from tests.runtime.test_signals import MODES

pytestmark = pytest.mark.executed

TERMINATED = -signal.SIGTERM


@MODES
class TestChildrenOfTasks:
    def test_end_when_they_are_told_to(self, runtime, mode):
        terminated, pool = enqueue((forks.terminate_children,), (forks.leave_pool,))
        running = runtime(options=ONE_THREAD | {"mode": mode})
        wait_settled()
        assert failures() == []
        assert default_task_backend.get_result(terminated).return_value == [TERMINATED] * 21
        assert default_task_backend.get_result(pool).return_value == 2
        assert running.stop() == 0

    def test_handle_signals_as_any_program_does(self, runtime, mode):
        (job_id,) = enqueue((forks.describe_child,))
        running = runtime(options=ONE_THREAD | {"mode": mode})
        wait_settled()
        default = repr(signal.SIG_DFL)
        interrupt = repr(signal.default_int_handler)
        assert default_task_backend.get_result(job_id).return_value == [default, interrupt, default, default, "[]"]
        # The runtime's own are as before.
        assert running.stop() == 0


@MODES
def test_children_of_a_supervisors_hook_end_when_they_are_told_to(runtime, project, tmp_path, mode):
    told = tmp_path / "told"
    code = f"""
import json
from pathlib import Path
from dj_queue.hooks import on_start
from tests.project.forks import end_children

on_start(lambda supervisor: Path({str(told)!r}).write_text(json.dumps(end_children())))
"""
    running = runtime(options={"mode": mode}, environment=project(code), rows=2)
    wait_until(told.exists)
    assert json.loads(told.read_text()) == [TERMINATED] * 21
    assert running.stop() == 0


def test_a_runtime_that_was_started_with_signals_blocked_hears_them(runtime, project):
    code = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])\n"
    running = runtime(options={"mode": "async"}, environment=project(code), rows=2)
    assert running.stop() == 0


def test_what_a_task_starts_under_the_autoreloader_hears_ctrl_c():
    """SIG_IGN would be inherited by every program: there is a handler instead, which does nothing."""
    from dj_queue.runtime import signals

    before = signal.getsignal(signal.SIGUSR2)
    signals.install({signal.SIGUSR2: signals.ignore})
    try:
        signal.raise_signal(signal.SIGUSR2)
        assert signal.getsignal(signal.SIGUSR2) is signals.ignore
    finally:
        signals.restore()
    assert signal.getsignal(signal.SIGUSR2) == before

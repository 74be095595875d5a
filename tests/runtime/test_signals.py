"""Real signals to real processes: what runs is brought to an end, the rest is given back."""

import os
import signal
import time
from pathlib import Path

import pytest
from django.tasks import TaskResultStatus, default_task_backend

from dj_queue.models import ClaimedExecution, Job, Process, ReadyExecution
from tests.conftest import alive, lines, pid_of, wait_settled, wait_until
from tests.project import tasks
from tests.runtime.test_recovery import EAGER, EXIT, ONE_THREAD, WATCHFUL, assert_inspectable, enqueue, failures, shorts
from tests.working import states

MODES = pytest.mark.parametrize("mode", ["fork", "async"])
# Long enough that a test which waits for it fails.
PATIENT = {"shutdown_timeout": 60}


@pytest.fixture
def busy(runtime, project, tmp_path, ran, release):
    """Start a runtime whose one thread runs a job until `release` exists; `stopping` says that it was told to."""

    def start(mode, *, task=tasks.wait_then_append, **options):
        args = (str(release), str(ran), "running") if task is tasks.wait_then_append else (str(release), 60)
        (job_id,) = enqueue((task, *args))
        running = runtime(
            options=ONE_THREAD | PATIENT | {"mode": mode} | options,
            environment=project(
                "from pathlib import Path\nfrom dj_queue.hooks import on_stop\n"
                f"on_stop(lambda supervisor: Path({str(tmp_path / 'stopping')!r}).touch())\n"
            ),
        )
        wait_until(Path(f"{release}.started").exists)
        return running, job_id

    return start


def assert_nothing_left():
    assert list(Process.objects.values()) == []
    assert not ClaimedExecution.objects.exists()


class TestDrain:
    @MODES
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
    def test_runs_to_its_end_what_was_started_and_gives_back_the_rest(
        self, runtime, project, ran, release, mode, number
    ):
        enqueue(*shorts(ran, "before", 10))
        # It sends the signal itself, at a moment when the worker has claimed what comes next.
        task = {"fork": tasks.signal_supervisor, "async": tasks.signal_own_process}[mode]
        (job_id,) = enqueue((task, int(number), str(release), str(ran), "running"))
        after = enqueue(*shorts(ran, "after", 150))
        options = ONE_THREAD | PATIENT | {"mode": mode}
        # However long the supervisor takes to pass it on: nothing is given back, and claimed again, for its age.
        code = EAGER + "from dj_queue.runtime import worker\nworker._LONGEST_WAIT = 60\n"
        running = runtime(options=options, environment=project(code), rows=None)
        wait_until(lambda: ClaimedExecution.objects.count() == 1 and ReadyExecution.objects.count() == 150)
        assert str(ClaimedExecution.objects.get().job_id) == job_id
        assert running.process.poll() is None
        release.touch()
        assert running.wait() == 0
        assert failures() == []
        assert len(lines(ran)) == 11
        assert lines(ran)[-1] == "running"
        assert states() == {"finished": 11, "ready": 150}
        assert 11 + 10 <= running.output.splitlines().count("job.claimed") <= 11 + 20
        # Each has its old place again.
        order = ReadyExecution.objects.order_by("-priority", "id").values_list("job_id", flat=True)
        assert [str(job_id) for job_id in order] == after
        assert_nothing_left()

    @MODES
    def test_an_idle_runtime_ends_at_once(self, runtime, mode):
        running = runtime(options=PATIENT | {"mode": mode, "workers": {"polling_interval": 60}}, rows=2)
        began = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - began < 5
        assert_nothing_left()

    @MODES
    def test_while_it_starts(self, runtime, mode):
        running = runtime(options={"mode": mode, "workers": {"processes": 1 if mode == "async" else 3}}, rows=None)
        wait_until(lambda: Process.objects.filter(pid=running.pid).exists())
        assert running.stop() == 0
        assert_nothing_left()

    @MODES
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
    def test_a_signal_to_the_whole_group_is_one_signal(self, busy, ran, release, tmp_path, mode, number):
        """As a terminal sends SIGINT, and systemd SIGTERM: children hear it from both sides."""
        running, _ = busy(mode)
        os.killpg(running.pid, number)
        wait_until((tmp_path / "stopping").exists)
        # The supervisor has forwarded it by the time that another child has ended.
        wait_until(lambda: not Process.objects.filter(kind="Dispatcher").exists())
        release.touch()
        assert running.wait() == 0
        assert lines(ran) == ["running"]
        assert failures() == []
        assert_nothing_left()

    def test_a_worker_that_is_told_itself_drains_and_is_replaced(self, busy, ran, release):
        running, _ = busy("fork")
        worker = pid_of("worker-1")
        os.kill(worker, signal.SIGTERM)
        enqueue(*shorts(ran, "after", 3))
        release.touch()
        wait_settled()
        assert not alive(worker)
        assert lines(ran)[0] == "running"
        assert len(lines(ran)) == 4
        assert failures() == []
        assert running.stop() == 0

    def test_a_worker_about_to_be_recycled_drains_like_any_other(self, runtime, ran, release, tmp_path):
        pids = tmp_path / "pids"
        running = runtime(options={"workers": {"threads": 2, "recycle_after_jobs": 1}} | PATIENT, rows=2)
        enqueue((tasks.wait_then_append, str(release), str(ran), "running"), (tasks.append_pid, str(pids)))
        wait_until(Path(f"{release}.started").exists)
        wait_until(lambda: Job.objects.finished().count() == 1)
        running.signal(signal.SIGTERM)
        wait_until(lambda: not Process.objects.filter(kind="Dispatcher").exists())
        release.touch()
        assert running.wait() == 0
        assert lines(ran) == ["running"]
        assert failures() == []
        assert_nothing_left()


class TestTimeUp:
    @MODES
    def test_what_still_runs_is_given_back_and_run_by_another(self, runtime, busy, ran, release, mode):
        running, job_id = busy(mode, shutdown_timeout=0.3)
        began = time.monotonic()
        running.signal(signal.SIGTERM)
        assert running.wait() == 3
        assert time.monotonic() - began < 10
        assert "given back" in running.output
        assert states() == {"ready": 1}
        assert_nothing_left()
        release.touch()
        second = runtime(options=ONE_THREAD)
        wait_settled()
        assert lines(ran) == ["running"]
        result = default_task_backend.get_result(job_id)
        assert result.status is TaskResultStatus.SUCCESSFUL
        # The attempt that was cut has left its trace.
        assert result.worker_ids == ["worker-1", "worker-1"]
        assert result.attempts == 2
        assert [error.exception_class_path for error in result.errors] == [EXIT]
        assert result.started_at < result.last_attempted_at
        assert second.stop() == 0

    @MODES
    def test_a_timeout_of_zero_waits_for_nothing(self, busy, mode):
        running, _ = busy(mode, shutdown_timeout=0)
        running.signal(signal.SIGTERM)
        assert running.wait() == 3
        assert states() == {"ready": 1}
        assert_nothing_left()

    @MODES
    def test_nobody_runs_it_before_it_has_ended_here(self, runtime, ran, release, mode):
        (job_id,) = enqueue((tasks.stamp_until, str(release), str(ran)))
        first = runtime(options=ONE_THREAD | {"mode": mode, "shutdown_timeout": 0.2})
        wait_until(lambda: lines(ran))
        # Nothing else to do: it claims the job within milliseconds.
        second = runtime(options={"workers": {"polling_interval": 0.01}}, rows=2)
        first.signal(signal.SIGTERM)
        assert first.wait() == 3
        wait_until(lambda: len({line.split()[0] for line in lines(ran)}) == 2)
        release.touch()
        wait_settled()
        stamps: dict[str, list[int]] = {}
        for line in lines(ran):
            pid, at = line.split()
            stamps.setdefault(pid, []).append(int(at))
        before, after = stamps.values()
        assert max(before) < min(after)
        assert Job.objects.get(pk=job_id).status == "finished"
        assert second.stop() == 0

    def test_a_thread_keeps_its_job_until_the_process_ends_at_once(self, runtime, project, tmp_path, ran, release):
        """Hooks come before it is given back, and nothing of the interpreter's own end after it."""
        exiting, go = tmp_path / "exiting", tmp_path / "go"
        code = f"""
import atexit
import time
from pathlib import Path
from dj_queue.hooks import on_exit

@on_exit
def exiting(supervisor):
    Path({str(exiting)!r}).touch()
    while not Path({str(go)!r}).exists():
        time.sleep(0.01)

atexit.register(time.sleep, 60)
"""
        enqueue((tasks.wait_then_append, str(release), str(ran), "running"))
        options = ONE_THREAD | {"mode": "async", "shutdown_timeout": 0.2}
        running = runtime(options=options, environment=project(code))
        wait_until(Path(f"{release}.started").exists)
        running.signal(signal.SIGTERM)
        wait_until(exiting.exists)
        assert states() == {"claimed": 1}
        go.touch()
        assert running.wait() == 3
        assert states() == {"ready": 1}
        assert_nothing_left()

    def test_what_a_thread_ends_when_its_time_is_up_is_recorded(self, runtime, project, tmp_path, ran, release):
        exiting = tmp_path / "exiting"
        code = f"""
import threading
import time
from pathlib import Path
from dj_queue.hooks import on_exit

@on_exit
def exiting(supervisor):
    Path({str(exiting)!r}).touch()
    while any(thread.name == "worker-1-1" for thread in threading.enumerate()):
        time.sleep(0.01)
"""
        (job_id,) = enqueue((tasks.wait_then_append, str(release), str(ran), "running"))
        running = runtime(options=ONE_THREAD | {"mode": "async", "shutdown_timeout": 0}, environment=project(code))
        wait_until(Path(f"{release}.started").exists)
        running.signal(signal.SIGTERM)
        wait_until(exiting.exists)
        assert states() == {"claimed": 1}
        release.touch()
        assert running.wait() == 3
        assert Job.objects.get(pk=job_id).status == "finished"
        assert lines(ran) == ["running"]
        assert_nothing_left()

    def test_a_child_that_hears_no_signal_is_killed(self, runtime, busy, release):
        running, _ = busy("fork", task=tasks.block_in_c, shutdown_timeout=0.3)
        worker = pid_of("worker-1")
        began = time.monotonic()
        running.signal(signal.SIGTERM)
        assert running.wait() == 3
        assert time.monotonic() - began < 10
        assert not alive(worker)
        assert "did not stop in time and was killed" in running.output
        assert states() == {"ready": 1}
        assert_nothing_left()


class TestSecondSignal:
    @pytest.mark.parametrize(
        ("mode", "message"),
        [("fork", "child process exited"), ("async", "runner thread crashed")],
        ids=["fork", "async"],
    )
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
    def test_hurries(self, busy, tmp_path, mode, message, number):
        running, job_id = busy(mode)
        running.signal(number)
        wait_until((tmp_path / "stopping").exists)
        began = time.monotonic()
        running.signal(number)
        assert running.wait() == 3
        assert time.monotonic() - began < 10
        assert_inspectable(job_id, EXIT, message)
        assert_nothing_left()

    def test_hurries_past_a_child_that_hears_no_signal(self, busy, tmp_path):
        running, job_id = busy("fork", task=tasks.block_in_c)
        worker = pid_of("worker-1")
        running.signal(signal.SIGTERM)
        wait_until((tmp_path / "stopping").exists)
        began = time.monotonic()
        running.signal(signal.SIGTERM)
        assert running.wait() == 3
        assert time.monotonic() - began < 10
        assert not alive(worker)
        assert_inspectable(job_id, EXIT, "child process exited")
        assert_nothing_left()

    @MODES
    def test_a_storm_of_signals_ends_it_all_the_same(self, busy, mode):
        running, _ = busy(mode)
        children = list(Process.objects.exclude(pid=running.pid).values_list("pid", flat=True))

        for _ in range(100):
            os.killpg(running.pid, signal.SIGTERM)
            os.killpg(running.pid, signal.SIGINT)
        assert running.wait() in (0, 3)
        assert not any(map(alive, children))
        assert_nothing_left()


class TestQuit:
    @MODES
    def test_ends_everything_at_once(self, runtime, busy, ran, release, mode):
        running, _ = busy(mode, **WATCHFUL)
        pids = set(Process.objects.values_list("pid", flat=True))
        began = time.monotonic()
        running.signal(signal.SIGQUIT)
        assert running.wait() == 1
        assert time.monotonic() - began < 5
        wait_until(lambda: not any(map(alive, pids)), seconds=2)
        release.touch()
        second = runtime(options=ONE_THREAD | WATCHFUL)
        wait_settled()
        assert [error for _, error, _ in failures()] == ["dj_queue.exceptions.ProcessPrunedError"]
        assert lines(ran) == []
        assert second.stop() == 0

    def test_also_a_child_that_hears_no_signal(self, busy):
        running, _ = busy("fork", task=tasks.block_in_c)
        worker = pid_of("worker-1")
        running.signal(signal.SIGQUIT)
        assert running.wait() == 1
        wait_until(lambda: not alive(worker), seconds=2)

    def test_while_it_drains(self, busy, tmp_path):
        running, _ = busy("fork")
        pids = set(Process.objects.values_list("pid", flat=True))
        running.signal(signal.SIGTERM)
        wait_until((tmp_path / "stopping").exists)
        running.signal(signal.SIGQUIT)
        assert running.wait() == 1
        wait_until(lambda: not any(map(alive, pids)), seconds=2)


class TestVanishedSupervisor:
    def test_idle_children_stop_by_themselves_and_leave_no_row(self, runtime):
        """However rarely they look for work."""
        slow = {"polling_interval": 3600}
        running = runtime(options={"workers": slow | {"processes": 2}, "dispatchers": slow, "scheduler": slow}, rows=4)
        children = list(Process.objects.exclude(pid=running.pid).values_list("pid", flat=True))
        running.signal(signal.SIGKILL)
        wait_until(lambda: not any(map(alive, children)))
        assert list(Process.objects.values_list("name", flat=True)) == [f"supervisor-{running.pid}"]

    def test_a_child_in_a_long_job_gives_it_its_time_and_no_more(self, busy, runtime, ran, release):
        running, _ = busy("fork", shutdown_timeout=0.3, **WATCHFUL)
        worker = pid_of("worker-1")
        running.signal(signal.SIGKILL)
        wait_until(lambda: not alive(worker))
        second = runtime(options=ONE_THREAD | WATCHFUL)
        wait_settled()
        assert [error for _, error, _ in failures()] == ["dj_queue.exceptions.ProcessPrunedError"]
        assert lines(ran) == []
        assert second.stop() == 0

"""A runner that answers nothing is ended, where it can be, and replaced; one that was only stopped is not."""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
from django.db.models.functions import Now

from dj_queue.config import backend_config
from dj_queue.models import Process
from dj_queue.runtime import lease as leases
from dj_queue.runtime.supervisor import ForkSupervisor
from dj_queue.runtime.supervisor.slots import Slot, slots
from tests.conftest import alive, lines, pid_of, wait_settled, wait_until
from tests.project import tasks
from tests.runtime.test_recovery import EXIT, ONE_THREAD, WATCHFUL, enqueue, failures
from tests.runtime.test_signals import MODES

# The first time that it is about to do what is named, a worker hangs: no signal, no beat and no stop reaches that.
HANGING = """
import time
from datetime import timedelta
from pathlib import Path
from dj_queue.runtime.worker import Worker

real = Worker.{name}
when, hung = Path({when!r}), Path({hung!r})

def hang(worker, *args):
    if when.exists() and not hung.exists():
        hung.touch()
        time.sleep(3600)
    return real(worker, *args)

Worker.{name} = hang
"""


def hanging(tmp_path, name, *, when):
    return HANGING.format(name=name, when=str(when), hung=str(tmp_path / "hung"))


def assert_the_next_job_runs(ran):
    enqueue((tasks.append_line, str(ran), "next"))
    wait_until(lambda: "next" in lines(ran), seconds=40)
    wait_settled()


class TestFork:
    def test_a_task_that_keeps_the_interpreter_to_itself(self, runtime, ran, tmp_path):
        enqueue((tasks.block_in_c, str(tmp_path / "blocked"), 300))
        running = runtime(options=ONE_THREAD | WATCHFUL)
        wait_until((tmp_path / "blocked.started").exists)
        worker = pid_of("worker-1")
        wait_until(lambda: not alive(worker))
        assert_the_next_job_runs(ran)
        assert failures() == [("block_in_c", EXIT, "child process exited")]
        assert f"worker-1 (process {worker}) does not answer any more: it is killed and replaced" in running.output
        assert "process.pruned" not in running.output
        assert running.stop() == 0

    @pytest.mark.parametrize("name", ["worker-1", "dispatcher-1"])
    def test_one_that_is_stopped_alone(self, runtime, name):
        running = runtime(options=ONE_THREAD | WATCHFUL, rows=2)
        child = pid_of(name)
        os.kill(child, signal.SIGSTOP)
        wait_until(lambda: not alive(child))
        wait_until(lambda: pid_of(name) not in (0, child))
        assert running.stop() == 0
        assert not Process.objects.exists()

    def test_all_that_are_stopped_together_go_on_together(self, runtime, ran, release):
        """As a machine that sleeps: whoever is first to wake up does not take the others for dead."""
        enqueue((tasks.wait_then_append, str(release), str(ran), "line"))
        running = runtime(options=ONE_THREAD | WATCHFUL, rows=2)
        wait_until(Path(f"{release}.started").exists)
        worker = pid_of("worker-1")
        os.killpg(running.pid, signal.SIGSTOP)
        try:
            expired = Process.objects.filter(last_heartbeat_at__lt=Now() - timedelta(seconds=4))
            wait_until(lambda: expired.filter(pid=worker).exists())
        finally:
            os.killpg(running.pid, signal.SIGCONT)
        wait_until(lambda: not expired.filter(pid=worker).exists(), what="it beats again")
        release.touch()
        wait_settled()
        assert failures() == []
        assert lines(ran) == ["line"]
        assert pid_of("worker-1") == worker
        assert running.stop() == 0

    def test_one_that_takes_long_to_start_is_well(self, runtime, project, ran, release):
        code = (
            "import os, time\nfrom pathlib import Path\nfrom dj_queue.hooks import on_worker_start\n"
            "@on_worker_start\ndef load(worker):\n"
            f"    while not Path({str(release)!r}).exists():\n        time.sleep(0.01)\n"
        )
        running = runtime(options=ONE_THREAD | WATCHFUL, environment=project(code), rows=2)
        row = Process.objects.get(name="worker-1")
        late = row.last_heartbeat_at + timedelta(seconds=2 * WATCHFUL["process_alive_threshold"])
        wait_until(lambda: Process.objects.get(name="worker-1").last_heartbeat_at > late)
        release.touch()
        assert_the_next_job_runs(ran)
        assert pid_of("worker-1") == row.pid
        assert running.stop() == 0


@MODES
class TestEitherMode:
    def test_one_that_never_registers(self, runtime, project, ran, tmp_path, mode):
        code = hanging(tmp_path, "_register", when=tmp_path)
        running = runtime(options=ONE_THREAD | WATCHFUL | {"mode": mode}, environment=project(code), rows=None)
        wait_until((tmp_path / "hung").exists)
        assert_the_next_job_runs(ran)
        assert "worker-1" in running.output
        assert " replaced" in running.output
        assert running.stop() == 0
        assert not Process.objects.exists()

    def test_one_whose_row_is_gone_and_whose_loop_does_not_end(self, runtime, project, ran, tmp_path, mode):
        code = hanging(tmp_path, "step", when=tmp_path / "when")
        running = runtime(options=ONE_THREAD | WATCHFUL | {"mode": mode}, environment=project(code), rows=2)
        (tmp_path / "when").touch()
        wait_until((tmp_path / "hung").exists)
        Process.objects.filter(name="worker-1").delete()
        assert_the_next_job_runs(ran)
        assert running.stop() == 0
        assert not Process.objects.exists()


class TestVerdict:
    """When a runner counts as hung, by a clock of the test's."""

    @pytest.fixture
    def clock(self, monkeypatch):
        class Clock:
            now = 10_000.0

        monkeypatch.setattr(leases, "now", lambda: Clock.now)
        return Clock

    @pytest.fixture
    def supervisor(self, clock):
        supervisor = ForkSupervisor(backend_config())  # heartbeats every 60 seconds, alive for 300
        yield supervisor
        supervisor._wakeup.close()

    @pytest.fixture
    def slot(self, supervisor) -> Slot:
        slot = slots(supervisor.config)[0]
        slot.begin(patience=300)
        return slot

    def look_until(self, clock, supervisor, moment):
        while clock.now < moment:
            clock.now += 0.5
            supervisor._notice_gap()
            supervisor._left_at = clock.now

    def test_a_start_has_its_time(self, clock, supervisor, slot):
        self.look_until(clock, supervisor, 10_300)
        assert not supervisor._hangs(slot)
        self.look_until(clock, supervisor, 10_310)
        assert supervisor._hangs(slot)

    def test_the_lease_tells_before_others_prune(self, clock, supervisor, slot):
        runner = slot.make(None, slot.shared)
        runner.lease.renew(clock.now)
        self.look_until(clock, supervisor, 10_285)  # the runner itself may try one last heartbeat until then
        assert not supervisor._hangs(slot)
        self.look_until(clock, supervisor, 10_299)
        assert supervisor._hangs(slot)
        runner.lease.renew(clock.now)
        assert not supervisor._hangs(slot)
        runner.wakeup.close()

    def test_after_a_sleep_of_the_machine_runners_have_a_beat_to_come_to_themselves(self, clock, supervisor, slot):
        clock.now += 8 * 3600
        supervisor._notice_gap()
        assert not supervisor._hangs(slot)
        supervisor._left_at = clock.now
        self.look_until(clock, supervisor, clock.now + 60 + 25)
        assert not supervisor._hangs(slot)
        self.look_until(clock, supervisor, clock.now + 10)
        assert supervisor._hangs(slot)


def test_a_runner_that_waits_for_the_database_says_so(monkeypatch):
    from dj_queue.config import WorkerConfig
    from dj_queue.runtime.worker import Worker

    worker = Worker(backend_config(), WorkerConfig(), "worker-1")
    seen = []

    def away(call):
        seen.append(worker.shared.until - leases.now())
        if len(seen) == 3:
            worker.request_stop()
        return 0.01

    monkeypatch.setattr(worker, "attempt", away)
    began = time.monotonic()
    worker._register_until_stopped()
    assert all(295 < left <= 300 for left in seen)
    assert time.monotonic() - began < 10
    worker.wakeup.close()

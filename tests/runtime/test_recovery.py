"""Processes die, stop and come back at any moment: no job is lost, stuck or recorded twice."""

import json
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

import pytest
from django.db import OperationalError
from django.db.models.functions import Now
from django.tasks import TaskResultStatus, default_task_backend
from django.utils import timezone

from dj_queue.config import backend_config
from dj_queue.models import BlockedExecution, ClaimedExecution, FailedExecution, Job, Process, Semaphore
from dj_queue.operations import execution, processes, recovery
from dj_queue.runtime.heartbeat import Heartbeat
from dj_queue.runtime.lease import Lease
from dj_queue.runtime.shared_state import SharedState
from dj_queue.runtime.supervisor import slots
from tests.conftest import Counts, alive, lines, pid_of, wait_settled, wait_until
from tests.project import tasks
from tests.working import WORKER, claim, run, states

EXIT = "dj_queue.exceptions.ProcessExitError"
PRUNED = "dj_queue.exceptions.ProcessPrunedError"
MISSING = "dj_queue.exceptions.ProcessMissingError"

# Two of these supervisors notice each other's end within seconds.
WATCHFUL = {"process_heartbeat_interval": 0.2, "process_alive_threshold": 2}
ONE_THREAD = {"workers": {"threads": 1, "polling_interval": 0.05}}

# A worker that claims twenty jobs more than it has threads, so that what is prefetched is not left to timing:
# its first claim of an idle thread is one batch of the oldest twenty-one.
EAGER = """
from dj_queue.runtime.worker import Worker

Worker._room = lambda worker: max(0, worker.options.threads + 20 - worker._pool.unfinished)
"""


def enqueue(*calls):
    """Store `(task, *args)`, all in one statement, so that a worker sees all or none."""
    return [result.id for result in default_task_backend.enqueue_all([(task, list(args), {}) for task, *args in calls])]


def shorts(ran, prefix, count=30):
    return [(tasks.append_line, str(ran), f"{prefix}{n}") for n in range(count)]


def failures():
    """What failed, as (task's name, exception class, message)."""
    rows = FailedExecution.objects.select_related("job").order_by("pk")
    return [(row.job.task_path.rpartition(".")[2], row.exception_class, row.message) for row in rows]


def finished_labels():
    return [job.payload["args"][1] for job in Job.objects.finished() if len(job.payload["args"]) > 1]


def failed_labels():
    return [job.payload["args"][1] for job in Job.objects.failed() if len(job.payload["args"]) > 1]


def assert_inspectable(job_id, error, message, *, worker="worker-1"):
    """Recovery's failures are attempts like any other, and told like any other."""
    result = default_task_backend.get_result(job_id)
    assert result.status is TaskResultStatus.FAILED
    assert result.attempts == 1
    assert result.worker_ids == [worker]
    assert result.started_at is not None
    assert result.started_at <= result.finished_at
    assert [(each.exception_class_path, each.traceback) for each in result.errors] == [(error, message)]


class TestKilledWorker:
    def test_running_jobs_fail_and_prefetched_jobs_go_on(self, runtime, project, tmp_path):
        ran = tmp_path / "ran"
        enqueue(*shorts(ran, "before", 10))
        (killer,) = enqueue((tasks.kill_own_process,))
        enqueue(*shorts(ran, "after", 290))
        # However slow this machine is: nothing is given back, and claimed again, for its age.
        code = EAGER + "from dj_queue.runtime import worker\nworker._LONGEST_WAIT = 60\n"
        running = runtime(options=ONE_THREAD, environment=project(code))
        wait_settled()
        counts = Counts("kill -9 of a worker", ran, running)
        # Jobs that had run, and were not recorded yet, fail with it: they may have done anything.
        assert failures()[-1] == ("kill_own_process", EXIT, "child process exited")
        assert {error[1:] for error in failures()} == {(EXIT, "child process exited")}
        assert_inspectable(killer, EXIT, "child process exited")
        assert (counts["jobs"], counts["doubled"]) == (301, 0)
        assert counts["finished"] + counts["failed"] == 301
        assert set(failed_labels()) <= set(lines(ran)), "a job that was not started has failed"
        assert 10 <= counts["given_back"] <= 20
        assert len(lines(ran)) == 300
        assert "killed by SIGKILL" in running.output
        assert "process.replaced" in running.output
        assert running.stop() == 0
        assert not Process.objects.exists()

    def test_jobs_of_its_other_threads_fail_too(self, runtime, tmp_path):
        ran, go = tmp_path / "ran", tmp_path / "go"
        waiting = [tmp_path / f"waiting{n}" for n in range(2)]
        stuck = enqueue(*((tasks.wait_for_file, str(path)) for path in waiting))
        enqueue((tasks.kill_own_process, str(go)), *shorts(ran, "behind", 5))
        running = runtime(options={"workers": {"threads": 3}})
        for path in waiting:
            wait_until(Path(f"{path}.started").exists)
        go.touch()
        wait_settled()
        assert Counter(failures()) == {
            ("wait_for_file", EXIT, "child process exited"): 2,
            ("kill_own_process", EXIT, "child process exited"): 1,
        }
        for job_id in stuck:
            assert_inspectable(job_id, EXIT, "child process exited")
        assert sorted(lines(ran)) == [f"behind{n}" for n in range(5)]
        assert running.stop() == 0

    def test_the_replacement_has_the_same_name_and_a_row_of_its_own(self, runtime):
        running = runtime(rows=2)
        old = pid_of("worker-1")
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: pid_of("worker-1") not in (0, old))
        assert Process.objects.filter(name="worker-1").count() == 1
        assert alive(pid_of("worker-1"))
        assert running.process.poll() is None

    def test_a_killed_dispatcher_is_replaced(self, runtime, tmp_path):
        ran = tmp_path / "ran"
        runtime(rows=2, options={"dispatchers": {"polling_interval": 0.1}})
        old = wait_until(lambda: pid_of("dispatcher-1"))
        os.kill(old, signal.SIGKILL)
        tasks.append_line.using(run_after=timezone.now() + timedelta(seconds=0.2)).enqueue(str(ran), "due")
        wait_until(lambda: lines(ran) == ["due"])
        assert pid_of("dispatcher-1") not in (0, old)

    def test_one_of_two_workers_leaves_the_other_alone(self, runtime, tmp_path):
        ran, go, release = tmp_path / "ran", tmp_path / "go", tmp_path / "release"
        enqueue((tasks.wait_then_append, str(release), str(ran), "other"), (tasks.kill_own_process, str(go)))
        running = runtime(options={"workers": {"threads": 1, "processes": 2}}, rows=2)
        wait_until(lambda: ClaimedExecution.objects.count() == 2)
        wait_until(Path(f"{release}.started").exists)
        go.touch()
        wait_until(lambda: failures() == [("kill_own_process", EXIT, "child process exited")])
        release.touch()
        wait_settled()
        assert lines(ran) == ["other"]
        assert running.stop() == 0

    def test_its_semaphore_slots_are_freed(self, runtime, tmp_path):
        ran = tmp_path / "ran"
        enqueue(
            (tasks.crash_in_slot, "k"),
            (tasks.line_in_slot, "k", str(ran), "first"),
            (tasks.line_in_slot, "k", str(ran), "second"),
        )
        assert BlockedExecution.objects.count() == 2
        running = runtime(options=ONE_THREAD)
        wait_settled()
        assert failures() == [("crash_in_slot", EXIT, "child process exited")]
        assert lines(ran) == ["first", "second"]
        semaphore = Semaphore.objects.get(key="slot:k")
        assert (semaphore.value, semaphore.limit) == (1, 1)
        assert running.stop() == 0

    def test_a_failed_job_can_be_run_again(self, runtime, tmp_path):
        from dj_queue.operations.jobs import retry_failed_job

        ran, go = tmp_path / "ran", tmp_path / "go"
        (job_id,) = enqueue((tasks.wait_then_append, str(go), str(ran), "line"))
        running = runtime(options=ONE_THREAD)
        wait_until(Path(f"{go}.started").exists)
        os.kill(pid_of("worker-1"), signal.SIGKILL)
        wait_settled()
        go.touch()
        retry_failed_job(job_id)
        wait_settled()
        assert lines(ran) == ["line"]
        result = default_task_backend.get_result(job_id)
        assert result.status is TaskResultStatus.SUCCESSFUL
        assert result.attempts == 2
        assert result.worker_ids == ["worker-1", "worker-1"]
        assert [error.exception_class_path for error in result.errors] == [EXIT]
        assert running.stop() == 0


class TestKilledSupervisor:
    def test_its_children_finish_what_they_run_and_another_does_the_rest(self, runtime, tmp_path):
        ran, release = tmp_path / "ran", tmp_path / "release"
        enqueue(*shorts(ran, "before"))
        enqueue((tasks.wait_then_append, str(release), str(ran), "running"), *shorts(ran, "after"))
        first = runtime(options=ONE_THREAD | WATCHFUL | {"shutdown_timeout": 20}, rows=2)
        wait_until(Path(f"{release}.started").exists)
        worker = pid_of("worker-1")
        others = list(Process.objects.exclude(pid__in=[worker, first.pid]).values_list("pid", flat=True))
        first.signal(signal.SIGKILL)
        wait_until(lambda: not any(map(alive, others)), what="idle children end by themselves")
        assert alive(worker)
        release.touch()
        wait_until(lambda: not alive(worker), what="the busy child ends by itself")
        assert "running" in lines(ran)
        second = runtime(options=ONE_THREAD | WATCHFUL)
        wait_settled()
        counts = Counts("kill -9 of a supervisor", ran, first, second)
        assert counts | {"given_back": 0} == {"jobs": 61, "finished": 61, "failed": 0, "given_back": 0, "doubled": 0}
        wait_until(lambda: not Process.objects.filter(pid=first.pid).exists(), what="its row is pruned")
        assert second.stop() == 0
        assert list(Process.objects.values()) == []


class TestKilledTogether:
    def test_what_was_claimed_fails_and_the_rest_is_done_by_another(self, runtime, project, tmp_path):
        ran = tmp_path / "ran"
        enqueue(*shorts(ran, "before", 10))
        (killer,) = enqueue((tasks.kill_own_group,))
        enqueue(*shorts(ran, "after", 290))
        first = runtime(options=ONE_THREAD | WATCHFUL, environment=project(EAGER), rows=None)
        first.wait()
        second = runtime(options=ONE_THREAD | WATCHFUL)
        wait_settled()
        counts = Counts("kill -9 of worker and supervisor", ran, first, second)
        # Nobody is left who knows which claims were started: all of them fail, none is run again.
        assert counts["failed"] >= 11
        assert all(error[1:] == (PRUNED, "process heartbeat expired") for error in failures())
        assert_inspectable(killer, PRUNED, "process heartbeat expired")
        assert (counts["jobs"], counts["doubled"]) == (301, 0)
        assert counts["finished"] + counts["failed"] == 301
        assert set(finished_labels()) <= set(lines(ran))
        assert "process.pruned" in second.output
        others = Process.objects.exclude(kind="Supervisor")
        wait_until(lambda: set(others.values_list("supervisor__pid", flat=True)) == {second.pid})
        assert second.stop() == 0
        assert not Process.objects.exists()

    def test_its_semaphore_slots_are_freed(self, runtime, tmp_path):
        ran, release = tmp_path / "ran", tmp_path / "release"
        enqueue(
            (tasks.wait_in_slot, "k", str(release), str(ran), "lost"),
            (tasks.line_in_slot, "k", str(ran), "next"),
        )
        first = runtime(options=ONE_THREAD | WATCHFUL)
        wait_until(Path(f"{release}.started").exists)
        first.close()
        second = runtime(options=ONE_THREAD | WATCHFUL)
        wait_settled()
        assert failures() == [("wait_in_slot", PRUNED, "process heartbeat expired")]
        assert lines(ran) == ["next"]
        assert Semaphore.objects.get(key="slot:k").value == 1
        assert second.stop() == 0


# A worker whose loop fails once, with an error that no database made, as soon as the file `crash` exists.
CRASHING = """
from pathlib import Path
from dj_queue.hooks import on_worker_start

crash = Path({crash!r})

@on_worker_start
def sabotage(worker):
    step = worker.step
    def crashing():
        if crash.exists():
            crash.unlink()
            raise RuntimeError("the loop is broken")
        return step()
    worker.step = crashing
"""


@pytest.mark.parametrize(
    ("mode", "message"), [("fork", "child process exited"), ("async", "runner thread crashed")], ids=["fork", "async"]
)
class TestCrashedLoop:
    def test_it_drains_and_is_replaced(self, runtime, project, tmp_path, mode, message):
        ran, release, crash = tmp_path / "ran", tmp_path / "release", tmp_path / "crash"
        enqueue((tasks.wait_then_append, str(release), str(ran), "running"), *shorts(ran, "after", 5))
        running = runtime(
            options=ONE_THREAD | {"mode": mode, "shutdown_timeout": 20, "listen_notify": False},
            environment=project(CRASHING.format(crash=str(crash))),
        )
        wait_until(Path(f"{release}.started").exists)
        crash.touch()
        wait_until(lambda: not crash.exists())
        release.touch()
        wait_settled()
        assert failures() == []
        assert lines(ran)[0] == "running"
        assert len(lines(ran)) == 6
        assert "dj_queue.thread_error in worker.run: RuntimeError: the loop is broken" in running.output
        assert "process.replaced" in running.output
        assert running.stop() == 0
        assert not Process.objects.exists()

    def test_what_outlives_it_fails_and_a_late_end_changes_nothing(self, runtime, project, tmp_path, mode, message):
        ran, release, crash = tmp_path / "ran", tmp_path / "release", tmp_path / "crash"
        lost, *_ = enqueue((tasks.wait_then_append, str(release), str(ran), "late"), *shorts(ran, "after", 5))
        running = runtime(
            options=ONE_THREAD | {"mode": mode, "shutdown_timeout": 0.2, "listen_notify": False},
            environment=project(CRASHING.format(crash=str(crash))),
        )
        wait_until(Path(f"{release}.started").exists)
        crash.touch()
        wait_settled()
        assert failures() == [("wait_then_append", EXIT, message)]
        assert_inspectable(lost, EXIT, message)
        release.touch()
        if mode == "async":  # a thread cannot be ended from outside
            wait_until(lambda: "late" in lines(ran))
        assert running.stop() == 0
        assert failures() == [("wait_then_append", EXIT, message)]
        assert states() == {"failed": 1, "finished": 5}
        events = [json.loads(line) for line in lines(tmp_path / "events")]
        (replaced,) = [event["extra"]["dj_queue"] for event in events if event["message"] == "process.replaced"]
        expected = {"fork": {"kind", "old_pid", "new_pid"}, "async": {"kind", "process_name"}}
        assert set(replaced) == expected[mode]


class TestStoppedProcess:
    def test_it_lets_go_when_it_comes_back_and_others_have_pruned_it(self, runtime, tmp_path):
        ran, release = tmp_path / "ran", tmp_path / "release"
        (frozen,) = enqueue((tasks.wait_then_append, str(release), str(ran), "frozen"))
        first = runtime(options=ONE_THREAD | WATCHFUL, rows=2)
        wait_until(Path(f"{release}.started").exists)
        worker = pid_of("worker-1")
        rows = list(Process.objects.values_list("pk", flat=True))
        os.killpg(first.pid, signal.SIGSTOP)
        try:
            second = runtime(options=ONE_THREAD | WATCHFUL)
            wait_until(lambda: failures() == [("wait_then_append", PRUNED, "process heartbeat expired")])
            assert_inspectable(frozen, PRUNED, "process heartbeat expired")
            enqueue(*shorts(ran, "meanwhile", 10))
            wait_settled()
            # All of them: a runner whose own row is still there when it comes back goes on under it.
            wait_until(lambda: not Process.objects.filter(pk__in=rows).exists())
        finally:
            os.killpg(first.pid, signal.SIGCONT)
        wait_until(lambda: not alive(worker), what="the worker that was pruned ends")
        release.touch()
        first.wait_ready(rows=2)
        assert "lost touch with the database, or was pruned" in first.output
        enqueue(*shorts(ran, "again", 40))
        wait_settled()
        counts = Counts("SIGSTOP past the threshold, SIGCONT", ran, first, second)
        assert counts | {"given_back": 0} == {"jobs": 51, "finished": 50, "failed": 1, "given_back": 0, "doubled": 0}
        assert "frozen" not in lines(ran)
        assert len(lines(ran)) == 50
        assert first.stop() == 0
        assert second.stop() == 0
        assert not Process.objects.exists()

    def test_a_stop_shorter_than_the_threshold_costs_nothing(self, runtime, tmp_path):
        ran, release = tmp_path / "ran", tmp_path / "release"
        enqueue((tasks.wait_then_append, str(release), str(ran), "paused"))
        first = runtime(options=ONE_THREAD | WATCHFUL | {"process_alive_threshold": 30}, rows=2)
        second = runtime(options=ONE_THREAD | WATCHFUL | {"process_alive_threshold": 30}, rows=2)
        wait_until(Path(f"{release}.started").exists)
        stopped = {row.pk: row.last_heartbeat_at for row in Process.objects.filter(pid=first.pid)}
        os.killpg(first.pid, signal.SIGSTOP)
        # The other one beats, and so looks for the dead, several times in the meantime.
        beats = set()
        wait_until(
            lambda: len(beats.add(Process.objects.get(pid=second.pid).last_heartbeat_at) or beats) > 5,
            what="heartbeats of the second supervisor",
        )
        os.killpg(first.pid, signal.SIGCONT)
        wait_until(lambda: Process.objects.get(pid=first.pid).last_heartbeat_at > max(stopped.values()))
        release.touch()
        wait_settled()
        assert failures() == []
        assert lines(ran) == ["paused"]
        assert first.stop() == 0
        assert second.stop() == 0

    def test_a_supervisor_that_was_pruned_still_settles_what_its_children_leave(self, runtime, tmp_path):
        """It registers anew, and its children are in the table under the row that is gone."""
        ran, go = tmp_path / "ran", tmp_path / "go"
        enqueue(*shorts(ran, "before", 20))
        (killer,) = enqueue((tasks.kill_own_process, str(go)))
        running = runtime(
            options=ONE_THREAD | {"process_heartbeat_interval": 0.2, "process_alive_threshold": 60}, rows=2
        )
        wait_until(lambda: len(lines(ran)) == 20)
        Process.objects.filter(pid=running.pid).delete()
        wait_until(lambda: Process.objects.filter(pid=running.pid).exists(), what="it registers anew")
        enqueue(*shorts(ran, "after", 20))
        go.touch()
        wait_settled()  # well before the threshold
        assert_inspectable(killer, EXIT, "child process exited")
        assert states() == {"failed": 1, "finished": 40}
        assert running.stop() == 0
        assert not Process.objects.exists()

    def test_a_worker_whose_row_is_gone_stops_itself_and_is_replaced(self, runtime, tmp_path):
        ran, release = tmp_path / "ran", tmp_path / "release"
        enqueue((tasks.wait_then_append, str(release), str(ran), "lost"))
        running = runtime(options=ONE_THREAD | WATCHFUL, rows=2)
        wait_until(Path(f"{release}.started").exists)
        worker = Process.objects.get(name="worker-1")
        Process.objects.filter(pk=worker.pk).delete()
        ClaimedExecution.objects.update(process=None)
        recovery.settle_missing(backend_config())
        wait_until(lambda: not alive(worker.pid))
        release.touch()
        wait_settled()
        enqueue(*shorts(ran, "next", 3))
        wait_settled()
        assert "lost" not in lines(ran)
        assert len(lines(ran)) == 3
        assert running.stop() == 0


@pytest.mark.django_db(transaction=True)
class TestPrune:
    def process(self, *, age=0.0, name="worker-1", alias="default"):
        process_id = processes.register(
            backend_config(), kind="Worker", name=name, pid=1, hostname="elsewhere", metadata={}
        )
        Process.objects.filter(pk=process_id).update(
            last_heartbeat_at=Now() - timedelta(seconds=age), backend_alias=alias
        )
        return process_id

    @pytest.mark.needs("a clock of its own")
    def test_by_the_databases_clock(self):
        fresh = self.process(age=290, name="fresh")
        self.process(age=310, name="stale")
        for skew in (timedelta(hours=-2), timedelta(hours=2)):
            skewed = datetime.now(UTC) + skew
            with mock.patch("django.utils.timezone.now", return_value=skewed):
                recovery.prune(backend_config())
                processes.heartbeat(backend_config(), fresh)
            assert list(Process.objects.values_list("pk", flat=True)) == [fresh]
            assert Process.objects.get().last_heartbeat_at < timezone.now()

    def test_fails_the_jobs_and_frees_their_slots(self):
        gone = self.process(age=301)
        (job_id,) = enqueue((tasks.one_per_key, "k"))
        (blocked,) = enqueue((tasks.one_per_key, "k"))
        assert len(claim(process_id=gone)) == 1
        assert recovery.prune(backend_config()) == 1
        assert_inspectable(job_id, PRUNED, "process heartbeat expired")
        assert Job.objects.get(pk=blocked).status == "ready"
        assert recovery.prune(backend_config()) == 0

    def test_leaves_other_aliases_and_exceptions_alone(self):
        other, own = self.process(age=301, alias="other"), self.process(age=301, name="own")
        assert recovery.prune(backend_config(), except_for=[own]) == 0
        assert set(Process.objects.values_list("pk", flat=True)) == {other, own}

    def test_a_heartbeat_finds_no_row_after_it(self):
        gone = self.process(age=301)
        assert recovery.prune(backend_config()) == 1
        assert processes.heartbeat(backend_config(), gone) is False


class TestMissing:
    def test_claims_of_no_process_fail_when_a_supervisor_starts(self, runtime, tmp_path):
        ran = tmp_path / "ran"
        nobodys, vanished = enqueue((tasks.append_line, str(ran), "a"), (tasks.append_line, str(ran), "b"))
        assert [str(job.claim.job_id) for job in claim(1)] == [nobodys]
        assert [str(job.claim.job_id) for job in claim(1, process_id=999_999)] == [vanished]
        (waiting,) = enqueue((tasks.append_line, str(ran), "c"))
        running = runtime(options=ONE_THREAD)
        wait_settled()
        message = "process no longer registered at supervisor startup"
        assert failures() == [("append_line", MISSING, message)] * 2
        assert_inspectable(nobodys, MISSING, message, worker="")
        assert_inspectable(vanished, MISSING, message, worker="")
        assert Job.objects.get(pk=waiting).status == "finished"
        assert lines(ran) == ["c"]
        assert running.stop() == 0

    @pytest.mark.django_db(transaction=True)
    def test_only_claims_of_its_own_alias(self):
        enqueue((tasks.add, 1, 2))
        (held,) = claim()
        Job.objects.update(backend_alias="other")
        recovered = recovery.settle_missing(backend_config())
        assert recovered.failed == []
        assert ClaimedExecution.objects.filter(pk=held.claim.id).exists()


@pytest.mark.django_db(transaction=True)
class TestLateFinish:
    def register(self):
        return processes.register(backend_config(), kind="Worker", name=WORKER, pid=1, hostname="here", metadata={})

    def snapshot(self):
        return list(Job.objects.values()), list(FailedExecution.objects.values()), list(Semaphore.objects.values())

    def test_after_recovery_failed_it(self):
        process_id = self.register()
        (job_id,) = enqueue((tasks.add, 1, 2))
        done = run(claim(process_id=process_id))
        recovery.process_ended(backend_config(), process_id)
        before = self.snapshot()
        with mock.patch("dj_queue.events.emit") as emit:
            assert execution.finish(backend_config(), done, worker=WORKER) == []
        assert self.snapshot() == before
        assert emit.mock_calls == [mock.call("job.claim_lost", job_id=job_id)]
        assert_inspectable(job_id, EXIT, "child process exited")

    def test_after_it_was_given_back_and_claimed_anew(self):
        process_id = self.register()
        (job_id,) = enqueue((tasks.add, 1, 2))
        done = run(claim(process_id=process_id))
        recovery.process_ended(backend_config(), process_id, give_back=True)
        (again,) = claim(process_id=self.register())
        before = self.snapshot()
        assert execution.finish(backend_config(), done, worker=WORKER) == []
        assert self.snapshot() == before
        assert ClaimedExecution.objects.get().pk == again.claim.id
        assert len(execution.finish(backend_config(), run([again]), worker=WORKER)) == 1
        assert default_task_backend.get_result(job_id).attempts == 2

    def test_frees_no_slot_a_second_time(self):
        process_id = self.register()
        enqueue(*((tasks.one_per_key, "k") for _ in range(3)))
        done = run(claim(process_id=process_id))
        recovery.process_ended(backend_config(), process_id)
        assert states() == {"failed": 1, "ready": 1, "blocked": 1}
        assert execution.finish(backend_config(), done, worker=WORKER) == []
        assert states() == {"failed": 1, "ready": 1, "blocked": 1}
        assert Semaphore.objects.get().value == 0

    def test_a_batch_keeps_what_is_still_its_own(self):
        process_id = self.register()
        first, second = enqueue((tasks.add, 1, 2), (tasks.add, 3, 4))
        done = run(claim(process_id=process_id))
        ClaimedExecution.objects.filter(job_id=first).delete()
        kept = execution.finish(backend_config(), done, worker=WORKER)
        assert [str(job.claim.job_id) for job in kept] == [second]
        assert Job.objects.get(pk=first).finished_at is None
        assert Job.objects.get(pk=second).return_value == 7

    def test_a_release_gives_back_only_what_is_still_its_own(self):
        process_id = self.register()
        enqueue((tasks.add, 1, 2), (tasks.add, 3, 4))
        held = claim(process_id=process_id)
        ClaimedExecution.objects.filter(pk=held[0].claim.id).delete()
        assert execution.release(backend_config(), held) == 1
        assert execution.release(backend_config(), held) == 0
        assert Job.objects.ready().count() == 1


@pytest.mark.django_db(transaction=True)
class TestEndedProcess:
    """What a supervisor does for a runner that it saw end."""

    def test_started_claims_fail_and_others_go_back_to_their_old_place(self):
        ids = enqueue(*((tasks.add, n, n) for n in range(4)))
        process_id = processes.register(
            backend_config(), kind="Worker", name=WORKER, pid=1, hostname="here", metadata={}
        )
        held = claim(3, process_id=process_id)
        recovered = recovery.process_ended(backend_config(), process_id, started_up_to=held[0].claim.id)
        assert recovered.failed == ids[:1]
        assert recovered.released == 2
        assert not Process.objects.exists()
        assert [str(job.claim.job_id) for job in claim()] == ids[1:]

    def test_receivers_of_task_finished_hear_of_a_lost_job(self):
        from django.tasks.signals import task_finished

        heard = []
        enqueue((tasks.add, 1, 2))
        process_id = processes.register(
            backend_config(), kind="Worker", name=WORKER, pid=1, hostname="here", metadata={}
        )
        claim(process_id=process_id)

        def receive(sender, task_result, **kwargs):
            heard.append((task_result.status, task_result.errors[-1].exception_class_path))

        task_finished.connect(receive)
        try:
            recovery.process_ended(backend_config(), process_id)
        finally:
            task_finished.disconnect(receive)
        assert heard == [(TaskResultStatus.FAILED, EXIT)]


class TestHeartbeat:
    """One heart, in this process."""

    @pytest.fixture
    def beating(self, monkeypatch):
        """Start a heart whose beats are what `answers` yields; it says in a list when it has lapsed."""
        hearts = []

        def start(*answers, threshold=60.0):
            left = iter(answers)

            def beat(config, process_id):
                answer = next(left)
                if isinstance(answer, Exception):
                    raise answer
                return answer

            monkeypatch.setattr(processes, "heartbeat", beat)
            monkeypatch.setattr("dj_queue.runtime.connect.to_database", lambda config: None)
            config = replace(backend_config(), process_heartbeat_interval=0.05, process_alive_threshold=threshold)
            lapses = []
            heart = Heartbeat(config, "worker", 1, Lease(threshold), lambda: lapses.append(True))
            hearts.append(heart)
            heart.__enter__()
            return left, lapses

        yield start
        for heart in hearts:
            heart.__exit__()

    def test_outlives_whatever_goes_wrong_with_a_beat(self, beating, caplog):
        left, lapses = beating(RuntimeError("the driver's own"), OSError("no more files"), *[True] * 100_000)
        wait_until(lambda: left.__length_hint__() < 99_990, what="it beats on")
        assert lapses == []
        assert caplog.text.count("dj_queue.thread_error in worker.heartbeat: RuntimeError: the driver's own") == 1
        assert "no more files" not in caplog.text  # said once, until a beat gets through

    def test_lapses_once_when_its_row_is_gone(self, beating):
        left, lapses = beating(True, True, False, *[True] * 100)
        wait_until(lambda: lapses)
        assert lapses == [True]
        assert left.__length_hint__() == 100

    def test_lapses_when_nothing_gets_through(self, beating):
        began = time.monotonic()
        _, lapses = beating(*[OperationalError("away")] * 100_000, threshold=1.0)
        wait_until(lambda: lapses)
        assert 0.9 <= time.monotonic() - began < 1.5
        assert lapses == [True]


class TestBackoff:
    @pytest.fixture
    def clock(self, monkeypatch):
        class Clock:
            now = 1000.0

            def monotonic(self):
                return self.now

        clock = Clock()
        monkeypatch.setattr(slots, "time", clock)
        return clock

    def waits(self, clock, lives, *, failed=True):
        slot = slots.Slot("worker", "worker-1", lambda _: None, SharedState())
        found = []
        for life in lives:
            slot.started()
            clock.now += life
            slot.ended(failed=failed)
            found.append(slot.due_at - clock.now)
            clock.now = slot.due_at
        return found

    def test_the_first_death_costs_only_the_restart(self, clock):
        assert self.waits(clock, [0.01]) == [0.0]

    def test_dying_at_once_again_and_again_waits_longer_and_longer_up_to_a_bound(self, clock):
        waits = self.waits(clock, [0.01] * 20)
        assert waits[0] == 0.0
        # Jitter: each is between half of its bound and the whole of it.
        bounds = [min(0.1 * 2**n, 10.0) for n in range(19)]
        assert all(bound / 2 <= wait <= bound for wait, bound in zip(waits[1:], bounds, strict=True))
        assert waits[-1] >= 5

    def test_a_life_that_was_long_enough_is_a_fresh_start(self, clock):
        assert self.waits(clock, [0.01, 0.01, 0.01, 31.0])[-1] == 0.0

    def test_an_orderly_end_costs_nothing_however_often(self, clock):
        assert self.waits(clock, [0.01] * 5, failed=False) == [0.0] * 5

    def test_a_runner_that_cannot_live_does_not_keep_its_supervisor_from_stopping(self, runtime, project):
        code = "import os\nfrom dj_queue.hooks import on_worker_start\non_worker_start(lambda worker: os._exit(9))\n"
        running = runtime(environment=project(code), rows=None)
        wait_until(lambda: running.output.count("exit code 9") >= 4)
        assert running.stop() == 0
        assert not Process.objects.exists()


class TestRecycling:
    def test_after_so_many_jobs(self, runtime, tmp_path):
        pids = tmp_path / "pids"
        running = runtime(options={"workers": {"threads": 1, "recycle_after_jobs": 10}}, rows=2)
        enqueue(*((tasks.append_pid, str(pids)) for _ in range(100)))
        wait_settled()
        by_process = Counter(lines(pids))
        assert sum(by_process.values()) == 100
        assert len(by_process) > 1
        # All but the last had their share.
        assert sorted(by_process.values(), reverse=True)[-2] >= 10
        assert failures() == []
        assert "process.replaced" in running.output
        assert running.stop() == 0

    def test_above_so_much_memory(self, runtime, tmp_path):
        pids = tmp_path / "pids"
        running = runtime(options={"workers": {"threads": 1, "recycle_above_mib": 300}}, rows=2)
        enqueue((tasks.append_pid, str(pids)), (tasks.eat_memory, str(pids), 300))
        wait_settled()
        old = {int(pid) for pid in lines(pids)}
        assert len(old) == 1
        wait_until(lambda: not any(map(alive, old)), what="the worker makes room")
        enqueue((tasks.append_pid, str(pids)))
        wait_settled()
        assert len(set(lines(pids))) == 2
        assert failures() == []
        assert running.stop() == 0

    def test_it_waits_for_what_runs_however_long_that_takes(self, runtime, tmp_path):
        """Only a stop has a time limit: a job must not be cut short because its worker is worn out."""
        ran, release, pids = tmp_path / "ran", tmp_path / "release", tmp_path / "pids"
        options = {"workers": {"threads": 2, "recycle_after_jobs": 5}, "shutdown_timeout": 0.1}
        running = runtime(options=options | WATCHFUL, rows=2)
        enqueue((tasks.wait_then_append, str(release), str(ran), "long"))
        wait_until(Path(f"{release}.started").exists)
        enqueue(*((tasks.append_pid, str(pids)) for _ in range(5)))
        # Not by what the tasks wrote: a worker counts what it has recorded, which it may be about to.
        wait_until(lambda: Job.objects.finished().count() == 5)
        assert len(lines(pids)) == 5
        worker = int(lines(pids)[0])
        # This worker claims no more: what comes now waits for its replacement.
        enqueue((tasks.append_pid, str(pids)))
        beats = set()
        row = Process.objects.filter(pid=worker)
        wait_until(lambda: len(beats.add(row.get().last_heartbeat_at) or beats) > 5)
        assert alive(worker)
        assert len(lines(pids)) == 5
        release.touch()
        wait_settled()
        assert lines(ran) == ["long"]
        assert states() == {"finished": 7}
        assert set(map(int, lines(pids))) >= {worker}
        wait_until(lambda: pid_of("worker-1") not in (0, worker))
        assert failures() == []
        assert running.stop() == 0

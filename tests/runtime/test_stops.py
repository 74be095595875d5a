"""What a stop leaves behind, and how long it may take."""

import signal
import threading
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import OperationalError, connections, transaction
from django.tasks import TaskResultStatus, default_task_backend
from django.utils import timezone

from dj_queue.config import backend_config
from dj_queue.models import FailedExecution, Process, ReadyExecution, Semaphore
from dj_queue.operations import processes, recovery, transactions
from dj_queue.runtime.runner import End
from dj_queue.runtime.supervisor import AsyncSupervisor
from dj_queue.runtime.supervisor.base import Ended
from tests.conftest import lines, wait_settled, wait_until
from tests.project import tasks
from tests.runtime.test_recovery import EXIT, ONE_THREAD, WATCHFUL, enqueue
from tests.working import WORKER, claim, states, work


def register(name=WORKER, **more):
    return processes.register(backend_config(), kind="Worker", name=name, pid=1, hostname="here", metadata={}, **more)


@contextmanager
def locked(call):
    """Somebody else's transaction, which has done `call` and stays open."""
    done, over = threading.Event(), threading.Event()

    def hold():
        try:
            with transaction.atomic():
                call()
                done.set()
                over.wait(60)
                transaction.set_rollback(True)
        finally:
            connections.close_all()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert done.wait(20)
        yield
    finally:
        over.set()
        thread.join(20)


@pytest.mark.django_db(transaction=True)
class TestTrace:
    def test_of_a_job_that_is_given_back_after_its_start(self):
        cut, waiting = enqueue((tasks.add, 1, 2), (tasks.add, 3, 4))
        process_id = register()
        first, _ = claim(2, process_id=process_id)
        recovered = recovery.process_ended(backend_config(), process_id, started_up_to=first.claim.id, give_back=True)
        assert recovered.released == 2
        assert recovered.failed == []
        assert states() == {"ready": 2}
        assert not FailedExecution.objects.exists()
        result = default_task_backend.get_result(cut)
        assert result.status is TaskResultStatus.READY
        assert result.worker_ids == [WORKER]
        assert result.attempts == 1
        assert result.started_at == result.last_attempted_at == first.claim.claimed_at
        (error,) = result.errors
        assert error.exception_class_path == EXIT
        assert "stopped before the task ended" in error.traceback
        untouched = default_task_backend.get_result(waiting)
        assert (untouched.worker_ids, untouched.errors, untouched.started_at) == ([], [], None)
        # At their old places.
        assert [str(job.claim.job_id) for job in work()] == [cut, waiting]
        assert default_task_backend.get_result(cut).attempts == 2

    def test_it_keeps_its_slot(self):
        enqueue((tasks.one_per_key, "k"), (tasks.one_per_key, "k"))
        process_id = register()
        claim(process_id=process_id)
        recovery.process_ended(backend_config(), process_id, give_back=True)
        assert states() == {"ready": 1, "blocked": 1}
        assert ReadyExecution.objects.get().concurrency_key == "one:k"
        assert Semaphore.objects.get().value == 0
        work()
        assert states() == {"finished": 1, "ready": 1}

    def test_each_stop_adds_one(self):
        (job_id,) = enqueue((tasks.add, 1, 2))
        for _ in range(2):
            process_id = register()
            claim(process_id=process_id)
            recovery.process_ended(backend_config(), process_id, give_back=True)
        work()
        result = default_task_backend.get_result(job_id)
        assert result.status is TaskResultStatus.SUCCESSFUL
        assert result.attempts == 3
        assert len(result.errors) == 2


class TestLocked:
    """A long transaction of somebody else's holds what the runtime waits for."""

    @pytest.mark.parametrize("mode", ["fork", "async"])
    def test_a_stop_keeps_its_time(self, runtime, ran, release, mode):
        options = ONE_THREAD | {"mode": mode, "shutdown_timeout": 0.5}
        enqueue((tasks.wait_in_slot, "k", str(release), str(ran), "ran"))
        running = runtime(options=options, rows=2)
        wait_until(Path(f"{release}.started").exists)
        with transaction.atomic():
            tasks.line_in_slot.enqueue("k", str(ran), "never")  # locks the semaphore, or all of SQLite
            release.touch()
            wait_until(lambda: lines(ran) == ["ran"])
            running.signal(signal.SIGTERM)
            running.wait(20)
            transaction.set_rollback(True)
        # Another supervisor settles what was left, once the heartbeat has expired.
        second = runtime(options=ONE_THREAD | WATCHFUL)
        wait_settled()
        assert second.stop() == 0

    def test_so_does_a_start(self, runtime):
        with locked(lambda: Process.objects.create(kind="Worker", pid=1, name="other", backend_alias="other")):
            running = runtime(rows=None)
            wait_until(lambda: "Quit with" in running.output)
            running.signal(signal.SIGTERM)
            running.wait(20)

    @pytest.mark.django_db(transaction=True)
    def test_waits_are_bounded_and_told_apart(self):
        process_id = register()
        with locked(lambda: Process.objects.filter(pk=process_id).update(hostname="there")):
            with pytest.raises(OperationalError) as caught, transactions.bounded("default", 0.1):
                transactions.run("default", lambda *_: processes.deregister(backend_config(), process_id))
            assert transactions.contended("default", caught.value)
        processes.deregister(backend_config(), process_id)
        assert not Process.objects.exists()

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.needs("row locks")
    def test_one_keeps_no_other_from_being_settled(self):
        supervisor_id = register("supervisor-1")
        workers = [register(f"worker-{n}", supervisor_id=supervisor_id) for n in range(2)]
        ids = enqueue((tasks.one_per_key, "a"), (tasks.one_per_key, "b"))
        for process_id in workers:
            claim(1, process_id=process_id)
        with locked(lambda: Semaphore.objects.filter(key="one:a").update(value=0)):
            with pytest.raises(OperationalError), transactions.bounded("default", 0.1):
                recovery.supervisor_ended(backend_config(), supervisor_id)
            assert states() == {"claimed": 1, "failed": 1}
            # Its own row is left: by that the rest is found again.
            assert set(Process.objects.values_list("pk", flat=True)) == {supervisor_id, workers[0]}
        recovery.supervisor_ended(backend_config(), supervisor_id)
        assert states() == {"failed": len(ids)}
        assert not Process.objects.exists()

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.needs("row locks")
    def test_one_keeps_no_other_from_being_pruned(self):
        workers = [register(f"worker-{n}") for n in range(2)]
        enqueue((tasks.one_per_key, "a"), (tasks.one_per_key, "b"))
        for process_id in workers:
            claim(1, process_id=process_id)
        Process.objects.update(last_heartbeat_at=timezone.now() - timedelta(seconds=1000))
        with locked(lambda: Semaphore.objects.filter(key="one:a").update(value=0)):
            with pytest.raises(OperationalError), transactions.bounded("default", 0.1):
                recovery.prune(backend_config())
            assert states() == {"claimed": 1, "failed": 1}
        assert recovery.prune(backend_config()) == 1

    @pytest.mark.django_db(transaction=True)
    def test_one_place_keeps_no_other_from_being_filled(self, monkeypatch, caplog):
        supervisor = AsyncSupervisor(backend_config(), standalone=False)
        first, second = supervisor._slots[:2]
        contended = []

        def settle(ended):
            if ended.slot is first:
                contended.append(ended)
                raise OperationalError("database is locked")

        monkeypatch.setattr(transactions, "contended", lambda *_: True)
        monkeypatch.setattr(supervisor, "_settle_one", settle)
        supervisor._unsettled = [Ended(first, End.CRASHED), Ended(second, End.CRASHED)]
        supervisor._settle()
        assert supervisor._waiting == [second]
        assert [ended.slot for ended in supervisor._unsettled] == [first]
        assert "others hold locks" in caplog.text
        supervisor._stopping = True
        supervisor._settle_last()
        assert len(contended) == 2
        assert supervisor.unfinished
        assert f"what {first.name} had claimed could not be settled in time" in caplog.text
        supervisor._announcer.close(until=0.0)
        supervisor._wakeup.close()


@pytest.mark.parametrize("mode", ["fork", "async"])
def test_a_job_that_is_cut_short_goes_back_though_it_has_broken_the_streams(runtime, tmp_path, mode):
    running = runtime("--mode", mode, options={"shutdown_timeout": 0.3}, rows=2)
    tasks.break_streams_and_wait.enqueue(str(tmp_path / "never"))
    wait_until((tmp_path / "never.started").exists)
    running.signal(signal.SIGTERM)
    running.wait()
    assert states() == {"ready": 1}
    assert not Process.objects.exists()

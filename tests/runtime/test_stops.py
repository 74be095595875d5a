"""What a stop leaves behind, and how long it may take."""

import pytest
from django.tasks import TaskResultStatus, default_task_backend

from dj_queue.config import backend_config
from dj_queue.models import FailedExecution, ReadyExecution, Semaphore
from dj_queue.operations import processes, recovery
from tests.project import tasks
from tests.runtime.test_recovery import EXIT, enqueue
from tests.working import WORKER, claim, states, work


def register():
    return processes.register(backend_config(), kind="Worker", name=WORKER, pid=1, hostname="here", metadata={})


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

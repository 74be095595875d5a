"""One row that the database refuses to move holds up no other."""

import pytest
from django.tasks import default_task_backend

from dj_queue.config import backend_config
from dj_queue.models import BlockedExecution, ClaimedExecution, FailedExecution, Job, Process, Semaphore
from dj_queue.operations import maintenance, processes, recovery
from tests.project import tasks
from tests.refusals import WORDS, refusing
from tests.working import claim, states, work

# A trigger is no part of a transaction that is rolled back on MySQL and MariaDB.
pytestmark = pytest.mark.django_db(transaction=True)

LIMITED = [(tasks.limited_to_one, ["key", n], {}) for n in range(4)]


def enqueue(*calls):
    return [result.id for result in default_task_backend.enqueue_all(list(calls))]


def adds(count):
    return [(tasks.add, [n, 1], {}) for n in range(count)]


@pytest.mark.parametrize("place", [0, 7, 15])
def test_a_job_that_cannot_be_claimed_fails_and_the_others_run(place):
    ids = enqueue(*adds(16))
    with refusing("claimed", [ids[place]]):
        while work(limit=100):
            pass
    assert states() == {"finished": 15, "failed": 1}
    failure = FailedExecution.objects.get()
    assert str(failure.job_id) == ids[place]
    assert WORDS in failure.message


def test_a_limited_job_that_cannot_be_claimed_leaves_its_slot():
    ids = enqueue(*LIMITED)
    with refusing("claimed", ids[:1]):
        while work():
            pass
    assert states() == {"finished": 3, "failed": 1}
    assert [(row.value, row.limit) for row in Semaphore.objects.all()] == [(1, 1)]


def test_what_a_selector_leaves_out_is_not_treated():
    ids = enqueue(*adds(2), (tasks.add.using(queue_name="other"), [1, 2], {}))
    with refusing("claimed", ids[:1]):
        work(queues=["other"])
        assert states() == {"finished": 1, "ready": 2}


def test_a_blocked_job_that_cannot_start_fails_at_the_finish():
    ids = enqueue(*LIMITED)
    with refusing("ready", ids[1:2]):
        while work():
            pass
    assert states() == {"finished": 3, "failed": 1}
    assert WORDS in FailedExecution.objects.get(job_id=ids[1]).message
    assert [(row.value, row.limit) for row in Semaphore.objects.all()] == [(1, 1)]


def test_upkeep_reaches_every_key_beside_one_that_is_refused():
    ids = enqueue(*LIMITED, *((tasks.limited_to_one, [f"{key}", n], {}) for key in "az" for n in range(2)))
    Semaphore.objects.update(value=0)
    first = claim(limit=100)
    ClaimedExecution.objects.all().delete()
    Job.objects.filter(pk__in=[job.claim.job_id for job in first]).delete()
    with refusing("ready", ids[1:2]):
        list(maintenance.maintain(backend_config()))
    assert states() == {"ready": 3, "blocked": 1, "failed": 1}
    assert BlockedExecution.objects.get().concurrency_key == "key"


def _process(name, supervisor_id=None):
    return processes.register(
        backend_config(),
        kind=Process.Kind.WORKER,
        name=name,
        pid=1,
        hostname="host",
        metadata={},
        supervisor_id=supervisor_id,
    )


@pytest.mark.parametrize("how", ["ended", "pruned", "missing"])
def test_a_claim_that_cannot_be_settled_holds_up_no_other(how):
    config = backend_config()
    ids = enqueue(*adds(9), *LIMITED[:2])
    process_id = _process("worker-1")
    claim(process_id=process_id)
    with refusing("failed", ids[4:5]):
        if how == "ended":
            recovery.process_ended(config, process_id)
        elif how == "pruned":
            Process.objects.update(last_heartbeat_at="2020-01-01T00:00:00Z")
            assert recovery.prune(config) == 1
        else:
            Process.objects.all().delete()
            recovery.settle_missing(config)
        assert not Process.objects.exists()
        assert states() == {"claimed": 1, "failed": 9, "ready": 1}
    # Once it is accepted, it is found.
    recovery.settle_missing(config)
    assert states() == {"failed": 10, "ready": 1}


def test_a_claim_is_settled_though_the_next_of_its_key_cannot_start():
    ids = enqueue(*LIMITED)
    process_id = _process("worker-1")
    claim(process_id=process_id)
    with refusing("ready", ids[1:2]):
        recovery.process_ended(backend_config(), process_id)
    assert states() == {"failed": 2, "ready": 1, "blocked": 1}


def test_what_a_stop_cuts_short_goes_back_though_its_trace_is_refused():
    ids = enqueue(*adds(3))
    process_id = _process("worker-1")
    claim(process_id=process_id)
    with refusing("failed", ids[1:2]):
        recovery.process_ended(backend_config(), process_id, give_back=True)
    assert states() == {"ready": 3}

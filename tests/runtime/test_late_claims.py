"""A claim may commit after its worker's death: nobody sees it when that is settled, and every beat looks for it."""

import os
import signal

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from dj_queue.config import backend_config
from dj_queue.models import ClaimedExecution, Job, Process
from dj_queue.operations import processes, recovery
from dj_queue.runtime.supervisor import AsyncSupervisor, ForkSupervisor
from tests.conftest import pid_of, wait_until
from tests.project import tasks
from tests.runtime.test_recovery import MISSING, WATCHFUL, claim, enqueue, failures
from tests.runtime.test_signals import MODES
from tests.working import states

# Jobs of another queue than the one that is worked: what becomes of their claims is left to the supervisor alone.
ELSEWHERE = WATCHFUL | {"workers": {"queues": "worked", "threads": 1}, "process_alive_threshold": 60}


def late_claim(process_id):
    enqueue((tasks.add, 1, 2))
    (held,) = claim(1, process_id=process_id)
    return held


@MODES
def test_of_no_process_or_one_that_is_gone_fails_at_a_beat(runtime, mode):
    running = runtime(options=ELSEWHERE | {"mode": mode}, rows=2)
    living = Process.objects.get(name="worker-1")
    held = late_claim(living.pk)
    late_claim(None)
    late_claim(999_999)
    wait_until(lambda: states() == {"claimed": 1, "failed": 2})
    assert {error for _, error, _ in failures()} == {MISSING}
    assert ClaimedExecution.objects.get().pk == held.claim.id
    ClaimedExecution.objects.all().delete()
    assert running.stop() == 0


def test_of_a_runner_that_has_ended_goes_back_to_ready(runtime):
    """Its supervisor knows how far it had come: a claim that nobody had heard of was not started."""
    running = runtime(options=ELSEWHERE, rows=2)
    gone = Process.objects.get(name="worker-1")
    os.kill(gone.pid, signal.SIGKILL)
    wait_until(lambda: pid_of("worker-1") not in (0, gone.pid))
    late_claim(gone.pk)
    wait_until(lambda: states() == {"ready": 1})
    assert failures() == []
    assert running.stop() == 0


@pytest.mark.django_db(transaction=True)
class TestBeat:
    @pytest.fixture(params=[ForkSupervisor, AsyncSupervisor], ids=lambda made: made.mode)
    def supervisor(self, request):
        supervisor = request.param(backend_config(), standalone=False)
        supervisor._register()
        yield supervisor
        supervisor._deregister()
        supervisor._wakeup.close()

    def test_is_two_statements(self, supervisor):
        supervisor._beat()
        with CaptureQueriesContext(connection) as captured:
            supervisor._beat()
        assert len(captured) == 2, [query["sql"] for query in captured]

    def test_leaves_what_it_sees_first_to_the_supervisor_whose_it_may_be(self, supervisor):
        late_claim(999_999)
        supervisor._beat()
        assert states() == {"claimed": 1}
        supervisor._beat()
        assert [error for _, error, _ in failures()] == [MISSING]

    def test_gives_back_at_once_what_its_own_runner_has_not_started(self, supervisor):
        started, other = late_claim(999_998), late_claim(999_998)
        supervisor._remember(999_998, started.claim.id)
        supervisor._beat()
        assert states() == {"failed": 1, "ready": 1}
        assert Job.objects.ready().get().pk == other.claim.job_id

    def test_remembers_no_more_runners_than_it_needs(self, supervisor):
        for n in range(5000):
            supervisor._remember(n, 0)
        assert len(supervisor._gone) == 1000
        assert 4999 in supervisor._gone

    def test_leaves_other_aliases_alone(self, supervisor):
        held = late_claim(999_999)
        Job.objects.update(backend_alias="other")
        for _ in range(3):
            supervisor._beat()
        assert ClaimedExecution.objects.get().pk == held.claim.id

    def test_settles_what_another_aliass_process_has_left(self, supervisor):
        process_id = processes.register(
            backend_config(), kind="Worker", name="worker-1", pid=1, hostname="here", metadata={}
        )
        Process.objects.filter(pk=process_id).update(backend_alias="other")
        late_claim(process_id)
        for _ in range(3):
            supervisor._beat()
        assert states() == {"claimed": 1}
        processes.deregister(backend_config(), process_id)
        for _ in range(2):
            supervisor._beat()
        assert [error for _, error, _ in failures()] == [MISSING]


@pytest.mark.django_db(transaction=True)
def test_a_row_that_is_removed_leaves_its_name_on_a_late_claim():
    config = backend_config()
    process_id = processes.register(config, kind="Worker", name="worker-1", pid=1, hostname="here", metadata={})
    child = processes.register(
        config, kind="Worker", name="worker-2", pid=1, hostname="here", metadata={}, supervisor_id=process_id
    )
    held = late_claim(process_id)
    processes.deregister(config, process_id)
    assert ClaimedExecution.objects.values_list("process_id", flat=True).get() == process_id
    assert Process.objects.get().pk == child
    assert recovery.survey(config).unheld == {held.claim.id: process_id}
    assert recovery.survey(config).expired == []

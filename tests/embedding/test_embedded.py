"""An embedded supervisor in this process: what its host may rely on."""

import signal
import threading
from types import SimpleNamespace

import pytest
from django.tasks import TaskResultStatus, default_task_backend
from django.tasks.signals import task_finished

from dj_queue.config import backend_config
from dj_queue.models import ClaimedExecution, Process
from dj_queue.operations import execution, recovery
from dj_queue.runtime.embedded import Embedded
from dj_queue.runtime.supervisor import AsyncSupervisor
from tests.conftest import wait_until
from tests.project import tasks
from tests.runtime.test_recovery import EXIT, enqueue, failures
from tests.working import claim, states

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def embedded(settings):
    """Start one with these options; it is stopped at the end."""
    started = []

    def start(**options):
        settings.TASKS = {
            "default": {"BACKEND": "dj_queue.backend.DjQueueBackend", "QUEUES": [], "OPTIONS": options},
        }
        host = Embedded()
        started.append(host)
        host.start()
        return host, host.started.result(20)

    yield start
    for host in started:
        host.request_stop()
        host.ended.result(20)


@pytest.fixture
def at_exit(monkeypatch):
    """What would be called at the process's exit."""
    calls = []
    monkeypatch.setattr("dj_queue.runtime.supervisor.threads.atexit", SimpleNamespace(register=calls.append))
    return calls


def names():
    return {thread.name for thread in threading.enumerate()}


def test_starts_polls_and_stops_in_a_thread_of_its_own(embedded):
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)]
    host, supervisor = embedded(supervisor_pidfile="/nonexistent/folder/pidfile")
    assert isinstance(supervisor, AsyncSupervisor)
    (job_id,) = enqueue((tasks.add, 1, 2))
    wait_until(lambda: default_task_backend.get_result(job_id).status is TaskResultStatus.SUCCESSFUL)
    assert "dj-queue-default" in names()
    host.request_stop()
    host.ended.result(20)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)]
    wait_until(lambda: "dj-queue-default" not in names())
    assert not Process.objects.exists()


def test_the_mode_of_the_settings_does_not_matter(embedded):
    with pytest.warns(UserWarning, match="counts as 1"):
        _, supervisor = embedded(mode="fork", workers={"processes": 3})
    assert Process.objects.filter(kind="Worker").count() <= 1
    assert supervisor.metadata["worker_count"] == 1


def test_a_job_that_outlasts_the_stop_is_nobody_elses_until_the_exit(embedded, at_exit, tmp_path):
    host, supervisor = embedded(shutdown_timeout=0.2, workers={"threads": 1})
    release = tmp_path / "release"
    (job_id,) = enqueue((tasks.wait_for_file, str(release)))
    wait_until((tmp_path / "release.started").exists)
    host.request_stop()
    host.ended.result(20)
    assert supervisor.unfinished
    # Its thread runs on, and neither a supervisor that starts nor one that looks for the dead takes it.
    assert recovery.settle_missing(backend_config()).failed == []
    assert recovery.prune(backend_config()) == 0
    assert claim() == []
    assert default_task_backend.get_result(job_id).status is TaskResultStatus.RUNNING
    assert {process.kind for process in Process.objects.all()} == {"Supervisor", "Worker"}
    (call,) = at_exit
    call()
    assert states() == {"ready": 1}
    assert not Process.objects.exists()
    release.touch()
    wait_until(lambda: "worker-1-1" not in names())
    assert states() == {"ready": 1}


def test_a_job_that_ends_between_the_stop_and_the_exit_is_recorded(embedded, at_exit, tmp_path):
    host, supervisor = embedded(shutdown_timeout=0, workers={"threads": 2})
    release = tmp_path / "release"
    ended, outlasting = enqueue((tasks.wait_for_file, str(release)), (tasks.wait_for_file, str(tmp_path / "later")))
    wait_until(lambda: (tmp_path / "release.started").exists() and (tmp_path / "later.started").exists())
    host.request_stop()
    host.ended.result(20)
    assert supervisor.unfinished
    release.touch()
    wait_until(lambda: len(names() & {"worker-1-1", "worker-1-2"}) == 1)
    told = []

    def tell(task_result, **kwargs):
        told.append(task_result.id)

    task_finished.connect(tell)
    (call,) = at_exit
    try:
        call()
    finally:
        task_finished.disconnect(tell)
    assert told == [ended]
    assert default_task_backend.get_result(ended).return_value == "seen"
    assert default_task_backend.get_result(outlasting).status is TaskResultStatus.READY
    assert not Process.objects.exists()
    (tmp_path / "later").touch()
    wait_until(lambda: not names() & {"worker-1-1", "worker-1-2"})
    assert states() == {"finished": 1, "ready": 1}


def test_what_cannot_be_recorded_at_the_exit_is_given_back(embedded, at_exit, tmp_path, monkeypatch, caplog):
    host, _ = embedded(shutdown_timeout=0, workers={"threads": 1})
    release = tmp_path / "release"
    enqueue((tasks.wait_for_file, str(release)))
    wait_until((tmp_path / "release.started").exists)
    host.request_stop()
    host.ended.result(20)
    release.touch()
    wait_until(lambda: "worker-1-1" not in names())

    def fails(*args, **kwargs):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(execution, "finish_and_claim", fails)
    (call,) = at_exit
    call()
    assert "of all things" in caplog.text
    assert states() == {"ready": 1}
    assert not Process.objects.exists()


def test_a_database_that_is_away_at_the_exit_is_reported(embedded, at_exit, tmp_path, monkeypatch, caplog):
    host, _ = embedded(shutdown_timeout=0, workers={"threads": 1})
    release = tmp_path / "release"
    enqueue((tasks.wait_for_file, str(release)))
    wait_until((tmp_path / "release.started").exists)
    host.request_stop()
    host.ended.result(20)

    def away(*args, **kwargs):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(recovery, "supervisor_ended", away)
    (call,) = at_exit
    call()
    assert "of all things" in caplog.text
    assert ClaimedExecution.objects.count() == 1
    release.touch()
    wait_until(lambda: "worker-1-1" not in names())


@pytest.mark.parametrize("in_order", [True, False])
def test_a_supervisor_whose_process_is_gone(in_order):
    config = backend_config()
    supervisor = Process.objects.create(
        backend_alias="default", kind="Supervisor", name="supervisor-1", pid=1, hostname="h", metadata={}
    )
    other = Process.objects.create(
        backend_alias="default", kind="Worker", name="worker-1", pid=2, hostname="h", metadata={}
    )
    worker = Process.objects.create(
        backend_alias="default", kind="Worker", name="worker-1", pid=1, hostname="h", metadata={}, supervisor=supervisor
    )
    enqueue((tasks.add, 1, 2), (tasks.add, 3, 4))
    claim(1, process_id=worker.pk)
    claim(1, process_id=other.pk)
    recovery.supervisor_ended(config, supervisor.pk, give_back=in_order)
    assert list(Process.objects.all()) == [other]
    if in_order:
        assert states() == {"ready": 1, "claimed": 1}
    else:
        assert failures() == [("add", EXIT, "child process exited")]
    recovery.supervisor_ended(config, supervisor.pk, give_back=in_order)

"""Everything works whatever the options of the connection and the time zones of the project, or is refused first."""

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection, connections, transaction
from django.http import HttpResponse
from django.tasks import default_task_backend
from django.urls import path
from django.utils import timezone

from dj_queue.api import QueueInfo, retry_failed_job
from dj_queue.config import backend_config
from dj_queue.dialects import dialect_for
from dj_queue.models import Job, Pause, Process, RecurringExecution
from dj_queue.operations import jobs, processes, recovery
from tests.conftest import lines, wait_settled, wait_until
from tests.connections.conftest import plain, task_alias
from tests.project import tasks
from tests.working import states, work

TOKYO = {"TIME_ZONE": "Asia/Tokyo"}
NEW_YORK = {"TIME_ZONE": "America/New_York"}
NAIVE = {"USE_TZ": False}

# What is unlike the suite's own settings: of the connection, and of the project.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the usual": ({}, {}),
    "CONN_MAX_AGE 0": ({"CONN_MAX_AGE": 0}, {}),
    "CONN_MAX_AGE 60": ({"CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True}, {}),
    "CONN_MAX_AGE None": ({"CONN_MAX_AGE": None}, {}),
    "ATOMIC_REQUESTS": ({"ATOMIC_REQUESTS": True}, {}),
    "server-side binding": ({"OPTIONS": {"server_side_binding": True}}, {}),
    "prepared statements": ({"OPTIONS": {"server_side_binding": True, "prepare_threshold": 0}}, {}),
    "a pool": ({"CONN_MAX_AGE": 0, "OPTIONS": {"pool": {"min_size": 1, "max_size": 2, "timeout": 5}}}, {}),
    "repeatable read": ({"OPTIONS": {"isolation_level": 3}}, {}),
    "serializable": ({"OPTIONS": {"isolation_level": 4}}, {}),
    "a time zone of the connection": ({"TIME_ZONE": "Asia/Tokyo"}, {}),
    "a project in Tokyo": ({}, TOKYO),
    "a project in New York": ({}, NEW_YORK),
    "naive times": ({}, NAIVE),
    "naive times in Tokyo": ({}, NAIVE | TOKYO),
    "naive times in New York": ({}, NAIVE | NEW_YORK),
}


def require(case: str) -> None:
    """Skip what the database under test has no such option for."""
    changes = CASES[case][0]
    driver_options = set(changes.get("OPTIONS", ()))
    if "pool" in driver_options and not hasattr(connection, "pool"):
        pytest.skip("Django has no pool for the database under test")
    if driver_options - {"pool"} and not hasattr(connection.features, "uses_server_side_binding"):
        pytest.skip("the database under test has no such option")
    if changes.get("TIME_ZONE") and not connection.features.supports_timezones:
        pytest.skip("the database under test does not store time zones")


@pytest.fixture
def optioned(alias, settings):
    """The queue's alias has the options of a case."""

    def use(case: str, **options: Any) -> None:
        require(case)
        changes, project = CASES[case]
        for name, value in project.items():
            setattr(settings, name, value)
        alias("optioned", **changes)
        settings.TASKS = {"default": task_alias(database_alias="optioned", **options)}

    return use


@pytest.mark.parametrize("case", CASES)
def test_every_step(case, optioned):
    optioned(case)
    config = backend_config()
    now = timezone.now()

    def recent(*times: Any) -> None:
        for time in times:
            assert abs((time - now).total_seconds()) < 60, (case, time, now)

    added, failed = tasks.add.enqueue(1, 2), tasks.fail.enqueue()
    assert len(work()) == 2
    added.refresh()
    failed.refresh()
    assert (added.status, added.return_value, failed.status) == ("SUCCESSFUL", 3, "FAILED")
    for result in (added, failed):
        recent(result.enqueued_at, result.started_at, result.last_attempted_at, result.finished_at)
    retry_failed_job(failed.id)
    assert len(work()) == 1
    assert len(failed.errors) == 1
    assert failed.refresh() is None
    assert len(failed.errors) == 2

    # Scheduled: what is due, and what is not.
    soon = tasks.add.using(run_after=timezone.now() + timedelta(seconds=0.5)).enqueue(1, 2)
    later = tasks.add.using(run_after=timezone.now() + timedelta(hours=1)).enqueue(1, 2)
    limited = tasks.one_per_key.using(run_after=timezone.now() + timedelta(seconds=0.5)).enqueue("k", 0)
    assert states()["scheduled"] == 3
    promoted: list[int] = []
    wait_until(lambda: promoted.append(jobs.promote(config, limit=10)) or sum(promoted) == 2)
    later.refresh()
    assert abs((later.task.run_after - now).total_seconds() - 3600) < 60
    assert Job.objects.get(pk=later.id).status == "scheduled"

    # Limited: the second waits for the first.
    tasks.one_per_key.enqueue("k", 1)
    assert states()["blocked"] == 1
    assert len(work()) == 2
    assert len(work()) == 1
    soon.refresh()
    limited.refresh()
    recent(soon.finished_at, limited.finished_at)

    # Paused time is no latency.
    queue = QueueInfo("default")
    queue.pause()
    tasks.add.enqueue(1, 2)
    assert work() == []
    assert 0 <= queue.latency < 60
    queue.resume()
    assert 0 <= queue.latency < 60
    assert len(work()) == 1

    # Processes are alive for as long as they beat.
    fresh, stale = (
        processes.register(config, kind=Process.Kind.WORKER, name=name, pid=1, hostname="", metadata={})
        for name in ("fresh", "stale")
    )
    assert processes.count_fresh(config, max_age=60) == 2
    assert processes.heartbeat(config, fresh)
    row = Process.objects.get(pk=stale)
    recent(row.last_heartbeat_at, row.created_at)
    Process.objects.filter(pk=stale).update(last_heartbeat_at=dialect_for("optioned").clock(ago=400))
    assert recovery.prune(config) == 1
    assert processes.count_fresh(config, max_age=60) == 1

    # Only what is old is deleted.
    call_command("dj_queue_prune", older_than=60, failed_older_than=60)
    assert states() == {"finished": 5, "failed": 1, "scheduled": 1}
    call_command("dj_queue_prune", older_than=0, failed_older_than=0)
    assert states() == {"scheduled": 1}


@pytest.mark.parametrize("case", CASES)
def test_many_at_once(case, optioned):
    """Each of the batch forms, as a busy queue has them."""
    optioned(case)
    later = tasks.add.using(run_after=timezone.now() + timedelta(hours=1))
    calls = [(tasks.add, [n, n], {}) for n in range(40)] + [(later, [1, 1], {})] * 5
    calls += [(tasks.one_per_key, [str(n % 3), n], {}) for n in range(9)]
    default_task_backend.enqueue_all(calls)
    assert states() == {"ready": 43, "blocked": 6, "scheduled": 5}
    while work(20, queues=["nothing*", "default", "*"]):
        pass
    assert states() == {"finished": 49, "scheduled": 5}


RUNTIMES = ["CONN_MAX_AGE None", "server-side binding", "a pool", "naive times in Tokyo", "naive times in New York"]


@pytest.mark.parametrize("mode", ["fork", "async"])
@pytest.mark.parametrize("case", RUNTIMES)
def test_a_runtime(case, mode, optioned, runtime, project, settings, tmp_path):
    optioned(
        case,
        mode=mode,
        workers={"threads": 2},
        dispatchers={"polling_interval": 0.1},
        scheduler={"polling_interval": 0.2},
        recurring={"tick": {"task_path": "tests.project.tasks.add", "schedule": "* * * * * *", "args": [1, 2]}},
        # Beats, and judges, many times: a time of the wrong zone would have everybody pruned.
        process_heartbeat_interval=0.2,
        process_alive_threshold=10,
    )
    around = "".join(f"{name} = {value!r}\n" for name, value in CASES[case][1].items())
    around += f"DATABASES['optioned'] = {plain('optioned')!r}\nTASKS = {settings.TASKS!r}\n"
    running = runtime(environment=project(settings=around), rows=3)
    ran = tmp_path / "ran"
    for n in range(30):
        tasks.append_line.enqueue(str(ran), f"{n}")
    # More tasks that use the application's database than its pool has connections, and one that fails.
    failed = tasks.fail.enqueue()
    tasks.append_line.using(run_after=timezone.now() + timedelta(seconds=0.5)).enqueue(str(ran), "scheduled")
    wait_until(lambda: len(lines(ran)) == 31, what=running.output)
    assert Counter(lines(ran)) == Counter([*(f"{n}" for n in range(30)), "scheduled"])
    wait_until(lambda: RecurringExecution.objects.count() >= 2, what=running.output)
    failed.refresh()
    assert failed.status == "FAILED"
    names = {"supervisor", "worker-1", "dispatcher-1", "scheduler-1"}
    assert {
        name.partition("supervisor-")[1][:-1] or name for name in Process.objects.values_list("name", flat=True)
    } == names
    assert running.stop() == 0
    assert "Error" not in running.output.replace("ValueError", ""), running.output
    assert not Process.objects.exists()


def test_the_runtime_takes_no_place_in_the_pool(optioned, runtime, project, settings, tmp_path):
    """A pool of one connection, for the application's tasks: everything else would wait for it in vain."""
    if not hasattr(connection, "pool"):
        pytest.skip("Django has no pool for the database under test")
    CASES["a pool of one"] = (
        {"CONN_MAX_AGE": 0, "OPTIONS": {"pool": {"min_size": 0, "max_size": 1, "timeout": 3}}},
        {},
    )
    optioned("a pool of one", workers={"threads": 1}, process_heartbeat_interval=0.2, mode="async")
    around = f"DATABASES['optioned'] = {plain('optioned')!r}\nTASKS = {settings.TASKS!r}\n"
    running = runtime(environment=project(settings=around), rows=3)
    results = [tasks.backend_pid.enqueue("optioned") for _ in range(5)]
    wait_settled()
    for result in results:
        result.refresh()
        assert result.status == "SUCCESSFUL", result.errors
    # The application's sessions are as its settings make them, whatever the runtime does to its own.
    assert {tuple(result.return_value) for result in results} == {(results[0].return_value[0], "on")}
    assert running.stop() == 0


# ---- transactions -----------------------------------------------------------------------------------


def enqueue_in_view(request: Any) -> HttpResponse:
    tasks.add.enqueue(1, 2)
    if "fail" in request.GET:
        raise RuntimeError("after the enqueue")
    return HttpResponse("done")


urlpatterns = [path("", enqueue_in_view)]


def test_with_atomic_requests_a_job_goes_with_its_request(optioned, client, settings):
    optioned("ATOMIC_REQUESTS")
    settings.ROOT_URLCONF = __name__
    settings.ALLOWED_HOSTS = ["testserver"]
    client.raise_request_exception = False
    assert client.get("/?fail").status_code == 500
    assert states() == {}
    assert client.get("/").status_code == 200
    assert states() == {"ready": 1}


class TestAutocommitOff:
    @pytest.fixture
    def off(self, alias, settings):
        alias("manual", AUTOCOMMIT=False)
        settings.TASKS = {"default": task_alias(database_alias="manual")}

    def test_an_enqueue_is_the_callers_to_commit(self, off):
        with transaction.atomic(using="manual"):
            Pause.objects.using("manual").create(queue_name="probe")
        connections["manual"].rollback()
        if Pause.objects.using("manual").exists():
            pytest.skip("on the database under test, Django commits all the same")
        try:
            tasks.add.enqueue(1, 2)
            connections["manual"].rollback()
            assert states() == {}
            tasks.add.enqueue(1, 2)
            connections["manual"].commit()
            assert states() == {"ready": 1}
        finally:
            connections["manual"].rollback()

    @pytest.mark.parametrize("command", ["dj_queue", "dj_queue_health", "dj_queue_prune"])
    def test_the_commands_refuse_it(self, off, command):
        with pytest.raises(CommandError, match=r"DATABASES\['manual'\] has AUTOCOMMIT off, so nobody would commit"):
            call_command(command)
        assert connections["manual"].connection is None

    def test_the_check_says_so(self, off):
        from dj_queue.checks import check_databases

        (error,) = check_databases()
        assert error.id == "dj_queue.E004"
        assert "AUTOCOMMIT off" in error.msg


def test_a_time_zone_that_the_columns_cannot_hold_is_refused(alias, settings):
    if connection.features.supports_timezones or not dialect_for("default").unfit({"TIME_ZONE": "Asia/Tokyo"}):
        pytest.skip("the database under test tells times of several zones apart")
    alias("local", TIME_ZONE="Asia/Tokyo")
    settings.TASKS = {"default": task_alias(database_alias="local")}
    with pytest.raises(
        CommandError, match=r"DATABASES\['local'\] has TIME_ZONE set, .* Remove that, or give the queue"
    ):
        call_command("dj_queue")


def test_the_callers_transaction_decides(optioned):
    optioned("the usual")
    with transaction.atomic(using="optioned"):
        tasks.add.enqueue(1, 2)
        transaction.set_rollback(True, using="optioned")
    assert states() == {}

"""A row of processes, recurring tasks or claims that cannot be read is left out alone."""

import logging
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.utils import timezone

from dj_queue.config import SchedulerConfig, backend_config
from dj_queue.exceptions import EnqueueError, UnreadableJobError
from dj_queue.models import ClaimedExecution, FailedExecution, Process, RecurringTask
from dj_queue.operations import jobs, observation, processes, recovery, recurring, schedulers
from tests.project import tasks
from tests.working import claim

pytestmark = pytest.mark.django_db(transaction=True)

if connection.vendor == "postgresql":
    TIME = "infinity"
elif connection.vendor == "sqlite":
    TIME = "nonsense"
else:
    TIME = "0000-00-00 00:00:00"  # what a session that is not strict stores


def poison(table: str, column: str, where: str, value: Any) -> None:
    quoted = connection.ops.quote_name(where)
    with connection.cursor() as cursor:
        if connection.vendor == "mysql":
            cursor.execute("SELECT @@SESSION.sql_mode")
            (mode,) = cursor.fetchone()
            cursor.execute("SET SESSION sql_mode = ''")
        cursor.execute(f"UPDATE {table} SET {column} = %s WHERE {quoted} = %s", [TIME, value])
        assert cursor.rowcount == 1
        if connection.vendor == "mysql":
            cursor.execute("SET SESSION sql_mode = %s", [mode])


def process(name: str, kind: str = "Worker") -> Process:
    return Process.objects.create(name=name, kind=kind, pid=1, metadata={"worker_count": 1})


@pytest.fixture
def recurring_tasks() -> None:
    for key in ("a", "b", "c"):
        recurring.schedule(key=key, task_path="tests.project.tasks.add", schedule="* * * * *", args=[1, 2])
    poison("dj_queue_recurring_tasks", "updated_at", "key", "b")


@pytest.mark.usefixtures("recurring_tasks")
class TestRecurring:
    def test_the_others_go_on_and_it_is_named(self, caplog: pytest.LogCaptureFixture) -> None:
        pk = RecurringTask.objects.values_list("pk", flat=True).get(key="b")
        config = replace(backend_config(), recurring=(), scheduler=SchedulerConfig(dynamic_tasks_enabled=True))
        with caplog.at_level(logging.ERROR, "dj_queue"):
            for _ in range(2):
                assert [task.key for task in recurring.tasks(config)] == ["a", "c"]
        assert caplog.text.count(f"the row {pk} of dj_queue_recurring_tasks cannot be read") == 1

    def test_it_can_be_scheduled_anew(self) -> None:
        recurring.schedule(key="b", task_path="tests.project.tasks.add", schedule="1 * * * *", args=[1, 2])
        assert RecurringTask.objects.get(key="b").schedule == "1 * * * *"

    def test_it_can_be_unscheduled(self) -> None:
        assert recurring.unschedule("b") == 1

    def test_it_is_named_when_it_is_to_be_enqueued(self) -> None:
        with pytest.raises(EnqueueError, match="'b' cannot be read"):
            recurring.enqueue_now("b")

    def test_an_observation_shows_the_others(self) -> None:
        found = observation.observe(backend_config()).recurring
        assert [task.key for task in found] == ["a", "c"]


def test_arguments_of_another_shape_are_named() -> None:
    recurring.schedule(key="a", task_path="tests.project.tasks.add", schedule="* * * * *", args=[1, 2])
    RecurringTask.objects.update(payload=[1, 2])
    with pytest.raises(EnqueueError, match="'a' cannot be read"):
        recurring.enqueue_now("a")


class TestProcesses:
    def test_a_heartbeat_that_cannot_be_read(self) -> None:
        bad, good = process("bad"), process("good")
        poison("dj_queue_processes", "last_heartbeat_at", "id", bad.pk)
        assert processes.count_fresh(backend_config(), max_age=60) == 1
        assert not processes.lacks_workers(backend_config())
        assert [each.name for each in observation.observe(backend_config()).processes] == [good.name]

    def test_it_is_pruned_when_it_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bad, old = process("bad"), process("old")
        Process.objects.filter(pk=old.pk).update(last_heartbeat_at=timezone.now() - timezone.timedelta(days=1))
        poison("dj_queue_processes", "last_heartbeat_at", "id", bad.pk)
        config, sightings = backend_config(), processes.Sightings()
        assert [beat.process_id for beat in recovery.survey(config, sightings=sightings).expired] == [old.pk]
        later = processes.time.monotonic() + 2 * config.process_alive_threshold
        monkeypatch.setattr(processes.time, "monotonic", lambda: later)
        expired = recovery.survey(config, sightings=sightings).expired
        monkeypatch.undo()
        assert {beat.process_id for beat in expired} == {bad.pk, old.pk}
        assert recovery.prune(config, expired=expired) == 2
        assert not Process.objects.exists()

    def test_it_is_not_pruned_if_it_beats_again(self) -> None:
        bad = process("bad")
        assert recovery.prune(backend_config(), expired=[processes.Beat(bad.pk, None, 0.0)]) == 0

    def test_a_scheduler_that_cannot_be_read_may_have_any_task(self) -> None:
        bad, _ = process("bad", "Scheduler"), process("good", "Scheduler")
        poison("dj_queue_processes", "created_at", "id", bad.pk)
        found = schedulers.living(backend_config())
        assert [each.tasks is None for each in found if each.process_id == bad.pk] == [True]

    @pytest.mark.parametrize("told", [[], None, "x", 1, {"queues": None}, {"queues": 5}, {"queues": [1, None, ["a"]]}])
    def test_metadata_of_another_shape(self, told: Any) -> None:
        Process.objects.create(name="w", kind="Worker", pid=1, metadata={})
        Process.objects.create(name="s", kind="Supervisor", pid=1, metadata={})
        Process.objects.update(metadata=told if told is not None else {})
        if told is None:
            with connection.cursor() as cursor:
                cursor.execute("UPDATE dj_queue_processes SET metadata = 'null'")
        assert len(observation.observe(backend_config()).processes) == 2
        Process.objects.filter(kind="Worker").delete()
        Process.objects.update(created_at=timezone.now() - timezone.timedelta(days=1))
        assert not processes.lacks_workers(backend_config())


class TestClaims:
    def test_a_time_of_one_claim_keeps_no_other_from_recovery(self) -> None:
        ids = [tasks.add.enqueue(n, n).id for n in range(3)]
        claim()
        poison("dj_queue_claimed_executions", "created_at", "id", ClaimedExecution.objects.values_list("pk")[1][0])
        config = backend_config()
        assert len(recovery.survey(config).unheld) == 3
        assert sorted(recovery.settle_missing(config).failed) == sorted(ids)
        assert FailedExecution.objects.count() == 3

    def test_by_hand_the_job_is_named(self) -> None:
        ids = [UUID(tasks.add.enqueue(n, n).id) for n in range(2)]
        native = connection.features.has_native_uuid_field
        poison("dj_queue_jobs", "created_at", "id", ids[0] if native else ids[0].hex)
        assert [job.pk for job in jobs.claim_ready_jobs(limit=2)] == ids
        for call in (jobs.execute_claimed_job, jobs.enqueue_job_again):
            with pytest.raises(UnreadableJobError, match=str(ids[0])):
                call(ids[0])
        assert jobs.execute_claimed_job(ids[1]).finished_at is not None

"""Rows of the application that refer to jobs: each keeps its own job at most, and that is named once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import StringIO
from typing import Any
from uuid import UUID

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connection
from django.db.models import Model
from django.utils import timezone

from dj_queue import api
from dj_queue.config import backend_config
from dj_queue.models import FailedExecution, Job
from dj_queue.operations import deletion, jobs, retention
from dj_queue.operations.schema import obstacle
from dj_queue.runtime.scheduler import Scheduler
from tests.project import tasks
from tests.working import states, work

pytestmark = pytest.mark.django_db(transaction=True)

HOLDING = ["protecting", "restricting", "bare", "nested"]
GOING = ["cascading", "emptied", "many", "loose"]


@pytest.fixture
def related(settings: Any) -> Iterator[Callable[[str, UUID], Model]]:
    """Install the application, and make a row of it that refers to a job."""
    without = settings.INSTALLED_APPS
    settings.INSTALLED_APPS = [*without, "tests.related"]
    apps.clear_cache()  # models know their relations anew
    models = list(apps.get_app_config("related").get_models())
    with connection.schema_editor() as editor:
        for model in models:
            editor.create_model(model)

    def refer(kind: str, job_id: Any) -> Model:
        if kind == "nested":
            cascading = apps.get_model("related.cascading").objects.create(job_id=job_id)
            return apps.get_model("related.nested").objects.create(cascading=cascading)
        if kind == "many":
            row = apps.get_model("related.many").objects.create()
            row.jobs.add(job_id)
            return row
        return apps.get_model(f"related.{kind}").objects.create(job_id=job_id)

    yield refer
    with connection.schema_editor() as editor:
        for model in reversed(models):
            editor.delete_model(model)
    settings.INSTALLED_APPS = without
    apps.clear_cache()


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    deletion._told.clear()
    deletion._refused.clear()


def ended(count: int, *, fails: bool = False) -> list[str]:
    task, args = (tasks.fail, ()) if fails else (tasks.add, (1, 2))
    ids = [task.enqueue(*args).id for _ in range(count)]
    work()
    then = timezone.now() - timedelta(days=3)
    Job.objects.filter(pk__in=ids).update(created_at=then)
    Job.objects.filter(pk__in=ids, finished_at__isnull=False).update(finished_at=then)
    FailedExecution.objects.filter(job_id__in=ids).update(created_at=then)
    return ids


def left() -> set[str]:
    return {str(pk) for pk in Job.objects.values_list("pk", flat=True)}


def told(caplog: Any) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("batch", [1, 3, 500])
@pytest.mark.parametrize("kind", HOLDING)
@pytest.mark.parametrize("fails", [False, True], ids=["finished", "failed"])
def test_retention_passes_over_what_is_held(fails: bool, kind: str, batch: int, related: Any, caplog: Any) -> None:
    ids = ended(7, fails=fails)
    held = {ids[0], ids[1], ids[2], ids[5]}
    for job_id in held:
        related(kind, job_id)
    delete = retention.delete_failed if fails else retention.delete_finished
    deleted = 0
    with caplog.at_level("WARNING", "dj_queue"):
        while count := delete(backend_config(), older_than=60, batch_size=batch):
            deleted += count
        delete(backend_config(), older_than=60, batch_size=batch)
    assert (left(), deleted) == (held, 3)
    assert states() == {"failed" if fails else "finished": 4}
    said = told(caplog)
    for job_id in held:
        assert sum(job_id in text for text in said) == 1
    assert "DO_NOTHING" in said[0]
    if kind != "nested":
        assert f"related.{kind.capitalize()}.job" in said[0]


@pytest.mark.parametrize("kind", GOING)
@pytest.mark.parametrize("fails", [False, True], ids=["finished", "failed"])
def test_retention_follows_the_other_keys(fails: bool, kind: str, related: Any, caplog: Any) -> None:
    ids = ended(3, fails=fails)
    row = related(kind, ids[1])
    delete = retention.delete_failed if fails else retention.delete_finished
    with caplog.at_level("WARNING", "dj_queue"):
        assert delete(backend_config(), older_than=60) == 3
    assert told(caplog) == []
    rows = type(row)._default_manager.filter(pk=row.pk)
    if kind == "cascading":
        assert not rows.exists()
    elif kind == "emptied":
        assert rows.get().job_id is None
    elif kind == "many":
        assert rows.get().jobs.count() == 0
    else:
        assert str(rows.get().job_id) == ids[1]


@pytest.mark.parametrize("kind", [*HOLDING, *GOING])
def test_a_finish_deletes_what_it_can(kind: str, related: Any, settings: Any, caplog: Any) -> None:
    options = {"preserve_finished_jobs": False}
    settings.TASKS = {"default": {"BACKEND": "dj_queue.backend.DjQueueBackend", "QUEUES": [], "OPTIONS": options}}
    ids = [tasks.add.enqueue(1, 2).id for _ in range(5)]
    related(kind, ids[2])
    with caplog.at_level("WARNING", "dj_queue"):
        done = work()
    assert [job.exception for job in done] == [None] * 5
    if kind in HOLDING:
        assert left() == {ids[2]}
        assert states() == {"finished": 1}
        assert Job.objects.get().return_value == 3
        assert ids[2] in "".join(told(caplog))
    else:
        assert left() == set()
        assert told(caplog) == []


def test_a_key_of_which_django_does_not_know(settings: Any, caplog: Any) -> None:
    """Made in SQL, or of a project that is not installed here."""
    options = {"preserve_finished_jobs": False}
    settings.TASKS = {"default": {"BACKEND": "dj_queue.backend.DjQueueBackend", "QUEUES": [], "OPTIONS": options}}
    column = Job._meta.pk.db_type(connection)
    if collation := Job._meta.pk.db_parameters(connection).get("collation"):
        column = f"{column} COLLATE {collation}"
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE strange (job_id {column} REFERENCES dj_queue_jobs (id))")
        if connection.vendor == "mysql":
            cursor.execute("ALTER TABLE strange ADD FOREIGN KEY (job_id) REFERENCES dj_queue_jobs (id)")
    try:
        ids = [tasks.add.enqueue(1, 2).id for _ in range(3)]
        with connection.cursor() as cursor:
            value = Job._meta.pk.get_db_prep_value(UUID(ids[1]), connection)
            cursor.execute("INSERT INTO strange VALUES (%s)", [value])
        with caplog.at_level("WARNING", "dj_queue"):
            done = work()
        assert [job.exception for job in done] == [None] * 3
        assert left() == {ids[1]}
        assert states() == {"finished": 1}
        assert ids[1] in "".join(told(caplog))
        Job.objects.update(created_at=timezone.now() - timedelta(9), finished_at=timezone.now() - timedelta(9))
        assert retention.delete_finished(backend_config(), older_than=60) == 0
        assert left() == {ids[1]}
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE strange")


@pytest.mark.parametrize("batch", [1, 3, 500])
@pytest.mark.parametrize("kind", HOLDING)
def test_a_discard_passes_over_what_is_held(kind: str, batch: int, related: Any, caplog: Any) -> None:
    ids = [tasks.add.enqueue(1, 2).id for _ in range(7)]
    held = {ids[0], ids[4]}
    for job_id in held:
        related(kind, job_id)
    with caplog.at_level("WARNING", "dj_queue"):
        assert jobs.discard_ready_jobs(batch_size=batch) == 5
    assert left() == held
    assert states() == {"ready": 2}  # as they were
    assert all(any(job_id in text for text in told(caplog)) for job_id in held)
    assert api.QueueInfo("default").clear() == 0
    assert len(work()) == 2


@pytest.mark.parametrize("kind", HOLDING)
def test_a_failed_job_that_is_held_is_not_discarded(kind: str, related: Any) -> None:
    ids = ended(2, fails=True)
    related(kind, ids[0])
    assert api.discard_failed_job(ids[0]) == 0
    assert api.discard_failed_jobs() == 1
    assert states() == {"failed": 1}
    FailedExecution.objects.get().retry()
    assert states() == {"ready": 1}


@pytest.mark.parametrize("kind", HOLDING)
def test_prune_says_what_it_keeps(kind: str, related: Any) -> None:
    ids = ended(4)
    related(kind, ids[0])
    out, err = StringIO(), StringIO()
    call_command("dj_queue_prune", stdout=out, stderr=err)
    assert out.getvalue() == "deleted 3 finished jobs, 0 failed jobs, and 0 recurring executions\n"
    assert err.getvalue().startswith(f"kept 1 job that could not be deleted: {ids[0]} by ")
    assert left() == {ids[0]}


def test_a_scheduler_goes_on_where_a_job_is_held(related: Any, caplog: Any) -> None:
    ids = ended(6)
    related("protecting", ids[0])
    related("nested", ids[1])
    config = backend_config()
    assert config.scheduler is not None
    runner = Scheduler(config, config.scheduler, "scheduler-1")
    try:
        with caplog.at_level("WARNING", "dj_queue"):
            for _ in range(3):
                runner._clean_at = 0
                runner.step()
    finally:
        runner.wakeup.close()
    assert left() == set(ids[:2])
    assert len(told(caplog)) == 2


def test_a_row_can_be_given_a_job_of_its_database(related: Any) -> None:
    job = Job.objects.get(pk=tasks.add.enqueue(1, 2).id)
    model = apps.get_model("related.emptied")
    row = model.objects.create(job=job)
    assert model.objects.select_related("job").get(pk=row.pk).job == job


def test_dump_and_load(related: Any, tmp_path: Any) -> None:
    ids = ended(2)
    tasks.add.using(run_after=timezone.now() + timedelta(days=1)).enqueue(1, 2)
    related("emptied", ids[0])
    api.schedule_recurring_task(key="m", task_path="tests.project.tasks.add", schedule="0 0 * * *", args=[1, 2])
    before = states()
    for flags in ([], ["--all"]):
        file = tmp_path / "dump.json"
        call_command("dumpdata", *flags, output=str(file), verbosity=0)
        assert {"dj_queue.job", "dj_queue.scheduledexecution", "related.emptied"} <= {
            row["model"] for row in json.loads(file.read_text())
        }
        apps.get_model("related.emptied").objects.all().delete()
        Job.objects.all().delete()
        call_command("loaddata", str(file), verbosity=0)
        assert states() == before
        assert obstacle("default") is None

"""The schema that 0.6.0's users rely on, name by name (contract.md, 2), and the doors of `Job`."""

import io
from typing import Any

import pytest
from django.apps import apps
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import IntegrityError, connection, models, transaction
from django.utils import timezone

from dj_queue.models import (
    BlockedExecution,
    ClaimedExecution,
    FailedExecution,
    Job,
    Pause,
    Process,
    ReadyExecution,
    RecurringExecution,
    RecurringTask,
    ScheduledExecution,
    Semaphore,
)

pytestmark = pytest.mark.django_db

EXECUTIONS = {
    "ready": ReadyExecution,
    "scheduled": ScheduledExecution,
    "claimed": ClaimedExecution,
    "blocked": BlockedExecution,
    "failed": FailedExecution,
}
STATES = [*EXECUTIONS, "finished"]

# table: the fields that are promised, with the type each has in Django
PROMISED: dict[str, dict[str, str]] = {
    "dj_queue_jobs": {
        "id": "UUIDField",
        "task_path": "TextField",
        "queue_name": "CharField 64",
        "priority": "SmallIntegerField",
        "payload": "JSONField",
        "backend_alias": "CharField 64",
        "scheduled_at": "DateTimeField null",
        "finished_at": "DateTimeField null",
        "concurrency_key": "CharField 255 null",
        "return_value": "JSONField null",
        "created_at": "DateTimeField",
        "updated_at": "DateTimeField",
    },
    "dj_queue_ready_executions": {
        "id": "BigAutoField",
        "job": "OneToOneField CASCADE ready_execution",
        "queue_name": "CharField 64",
        "priority": "SmallIntegerField",
        "created_at": "DateTimeField",
        "latency_started_at": "DateTimeField null",
    },
    "dj_queue_scheduled_executions": {
        "id": "BigAutoField",
        "job": "OneToOneField CASCADE scheduled_execution",
        "queue_name": "CharField 64",
        "priority": "SmallIntegerField",
        "scheduled_at": "DateTimeField",
        "created_at": "DateTimeField",
    },
    "dj_queue_claimed_executions": {
        "id": "BigAutoField",
        "job": "OneToOneField CASCADE claimed_execution",
        "process": "ForeignKey null SET_NULL claimed_executions",
        "created_at": "DateTimeField",
    },
    "dj_queue_blocked_executions": {
        "id": "BigAutoField",
        "job": "OneToOneField CASCADE blocked_execution",
        "queue_name": "CharField 64",
        "priority": "SmallIntegerField",
        "concurrency_key": "CharField 255",
        "expires_at": "DateTimeField",
        "created_at": "DateTimeField",
    },
    "dj_queue_failed_executions": {
        "id": "BigAutoField",
        "job": "OneToOneField CASCADE failed_execution",
        "exception_class": "CharField 255",
        "message": "TextField",
        "traceback": "TextField",
        "created_at": "DateTimeField",
    },
    "dj_queue_recurring_tasks": {
        "id": "BigAutoField",
        "backend_alias": "CharField 64",
        "key": "CharField 255",
        "task_path": "CharField 255",
        "payload": "JSONField null",
        "schedule": "CharField 255",
        "queue_name": "CharField 64",
        "priority": "SmallIntegerField",
        "description": "TextField",
        "static": "BooleanField",
        "created_at": "DateTimeField",
        "updated_at": "DateTimeField",
    },
    "dj_queue_recurring_executions": {
        "id": "BigAutoField",
        "backend_alias": "CharField 64",
        "job": "OneToOneField null CASCADE recurring_execution",
        "task_key": "CharField 255",
        "run_at": "DateTimeField",
        "created_at": "DateTimeField",
    },
    "dj_queue_semaphores": {
        "id": "BigAutoField",
        "key": "CharField 255",
        "value": "IntegerField",
        "limit": "IntegerField",
        "expires_at": "DateTimeField",
        "created_at": "DateTimeField",
        "updated_at": "DateTimeField",
    },
    "dj_queue_processes": {
        "id": "BigAutoField",
        "backend_alias": "CharField 64",
        "kind": "CharField 16",
        "pid": "PositiveIntegerField",
        "hostname": "CharField 255",
        "name": "CharField 255",
        "metadata": "JSONField",
        "supervisor": "ForeignKey null SET_NULL children",
        "last_heartbeat_at": "DateTimeField",
        "created_at": "DateTimeField",
    },
    "dj_queue_pauses": {
        "id": "BigAutoField",
        "backend_alias": "CharField 64",
        "queue_name": "CharField 64",
        "created_at": "DateTimeField",
    },
}
MODELS = {model._meta.db_table: model for model in apps.get_app_config("dj_queue").get_models()}


def make(state: str | None, **fields: Any) -> Job:
    """A job in a state, or in none."""
    now = timezone.now()
    if state == "finished":
        fields["finished_at"] = now
    job = Job.objects.create(task_path="tests.project.tasks.add", **fields)
    if state in EXECUTIONS:
        needs = {"scheduled": {"scheduled_at": now}, "blocked": {"expires_at": now, "concurrency_key": "k"}}
        EXECUTIONS[state].objects.create(job=job, **needs.get(state, {}))
    return Job.objects.get(pk=job.pk)


# ---- the schema -------------------------------------------------------------------------------------


def describe(field: Any) -> str:
    words = [field.get_internal_type()]
    if isinstance(field, models.CharField):
        words.append(str(field.max_length))
    if field.null:
        words.append("null")
    if field.is_relation:
        words += [field.remote_field.on_delete.__name__, field.remote_field.related_name]
    return " ".join(words)


@pytest.mark.parametrize("table", PROMISED)
def test_promised_fields(table: str) -> None:
    found = {name: describe(MODELS[table]._meta.get_field(name)) for name in PROMISED[table]}
    assert found == PROMISED[table]


@pytest.mark.parametrize("table", PROMISED)
def test_the_database_has_the_promised_columns(table: str) -> None:
    with connection.cursor() as cursor:
        columns = {column.name for column in connection.introspection.get_table_description(cursor, table)}
    model = MODELS[table]
    assert columns >= {model._meta.get_field(name).column for name in PROMISED[table]}


@pytest.mark.parametrize("name", sorted(model.__name__ for model in MODELS.values() if model._meta.managed))
def test_the_app_label_is_dj_queue(name: str) -> None:
    assert apps.get_model("dj_queue", name)._meta.db_table in PROMISED


def test_promised_defaults() -> None:
    job = Job.objects.get(pk=Job.objects.create(task_path="x").pk)
    assert (job.queue_name, job.priority, job.backend_alias) == ("default", 0, "default")
    assert job.payload == {"args": [], "kwargs": {}}
    assert job.id.version == 7
    assert timezone.is_aware(job.created_at)
    assert timezone.is_aware(job.updated_at)
    assert make("failed").failed_execution.message == ""
    assert RecurringTask(key="k").static is False
    assert Process.Kind.values == ["Supervisor", "Worker", "Dispatcher", "Scheduler"]


def test_default_payloads_are_not_shared() -> None:
    first, second = Job(), Job()
    first.payload["args"].append(1)
    assert second.payload == {"args": [], "kwargs": {}}


def test_model_and_migration_agree() -> None:
    output = io.StringIO()
    try:
        call_command("makemigrations", "--check", "--dry-run", stdout=output, stderr=output)
    except SystemExit:
        pytest.fail(output.getvalue())


@pytest.mark.django_db(transaction=True)
def test_the_migration_can_be_reversed() -> None:
    output = io.StringIO()
    call_command("sqlmigrate", "dj_queue", "0001", backwards=True, stdout=output)
    for table in PROMISED:
        assert f"DROP TABLE {connection.ops.quote_name(table)}" in output.getvalue()


def test_system_checks_of_the_models_pass() -> None:
    call_command("check", "dj_queue", databases=["default"], fail_level="WARNING")


# ---- constraints ------------------------------------------------------------------------------------


def constraint_names(table: str) -> dict[str, dict[str, Any]]:
    with connection.cursor() as cursor:
        return connection.introspection.get_constraints(cursor, table)


def refuses(create: Any) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        create()


def test_the_priority_is_checked_by_name() -> None:
    assert constraint_names("dj_queue_jobs")["dj_queue_jobs_priority_range"]["check"]
    for priority in (-101, 101):
        refuses(lambda: Job.objects.create(task_path="x", priority=priority))  # noqa: B023
        with pytest.raises(ValidationError, match="priority"):
            Job(task_path="x", priority=priority).full_clean()
    for priority in (-100, 100):
        Job.objects.create(task_path="x", priority=priority)


NOW = timezone.now()
TWICE: dict[str, tuple[type[models.Model], dict[str, Any], list[dict[str, Any]]]] = {
    "recurring task": (
        RecurringTask,
        {"key": "k", "task_path": "x", "schedule": "* * * * *"},
        [{"backend_alias": "other"}, {"key": "l"}],
    ),
    "tick": (
        RecurringExecution,
        {"task_key": "k", "run_at": NOW},
        [{"backend_alias": "other"}, {"task_key": "l"}, {"run_at": NOW + timezone.timedelta(seconds=1)}],
    ),
    "semaphore": (Semaphore, {"key": "k", "value": 0, "limit": 1, "expires_at": NOW}, [{"key": "l"}]),
    "pause": (Pause, {"queue_name": "q"}, [{"backend_alias": "other"}, {"queue_name": "r"}]),
}


@pytest.mark.parametrize("what", TWICE)
def test_unique_rows(what: str) -> None:
    model, fields, others = TWICE[what]
    model.objects.create(**fields)
    refuses(lambda: model.objects.create(**fields))
    for other in others:
        model.objects.create(**{**fields, **other})


def test_process_names_are_unique_below_a_supervisor() -> None:
    first, second = (Process.objects.create(kind="Supervisor", pid=n, name=f"supervisor-{n}") for n in (1, 2))
    Process.objects.create(kind="Worker", pid=3, name="worker-1", supervisor=first)
    refuses(lambda: Process.objects.create(kind="Worker", pid=4, name="worker-1", supervisor=first))
    Process.objects.create(kind="Worker", pid=4, name="worker-1", supervisor=second)


@pytest.mark.parametrize("state", EXECUTIONS)
def test_a_job_is_in_a_state_once(state: str) -> None:
    job = make(state)
    row = EXECUTIONS[state].objects.get()
    row.pk = None
    refuses(lambda: row.save(force_insert=True))
    assert getattr(job, f"{state}_execution")


@pytest.mark.parametrize("state", EXECUTIONS)
def test_a_job_takes_its_execution_with_it(state: str) -> None:
    make(state).delete()
    assert not EXECUTIONS[state].objects.exists()


def test_a_job_takes_its_tick_with_it() -> None:
    RecurringExecution.objects.create(task_key="k", run_at=NOW, job=make("finished"))
    Job.objects.all().delete()
    assert not RecurringExecution.objects.exists()


def test_a_process_leaves_its_claims_and_its_children_behind() -> None:
    supervisor = Process.objects.create(kind="Supervisor", pid=1, name="supervisor-1")
    worker = Process.objects.create(kind="Worker", pid=2, name="worker-1", supervisor=supervisor)
    make("claimed")
    ClaimedExecution.objects.update(process=worker)
    assert list(worker.claimed_executions.all()) == [ClaimedExecution.objects.get()]
    assert list(supervisor.children.all()) == [worker]
    supervisor.delete()
    assert Process.objects.get().supervisor is None
    worker.delete()
    assert ClaimedExecution.objects.get().process is None


# ---- states -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
def test_status_and_its_booleans(state: str) -> None:
    job = make(state)
    assert job.status == state
    assert [name for name in STATES if getattr(job, name)] == [state]


def test_a_job_in_no_state() -> None:
    job = make(None)
    assert job.status is None
    assert not any(getattr(job, name) for name in STATES)
    assert not any(getattr(Job.objects, name)().exists() for name in STATES)


@pytest.mark.parametrize("state", EXECUTIONS)
def test_finished_comes_first(state: str) -> None:
    job = make(state, finished_at=timezone.now())
    assert job.status == "finished"


@pytest.mark.parametrize("state", STATES)
def test_querysets(state: str) -> None:
    every = {each: make(each) for each in STATES}
    found = getattr(Job.objects, state)()
    assert list(found) == [every[state]]
    assert list(getattr(Job.objects.filter(queue_name="default"), state)()) == [every[state]]
    assert not getattr(Job.objects.filter(queue_name="other"), state)().exists()


def test_rows_say_what_they_are() -> None:
    for state, model in EXECUTIONS.items():
        job = make(state)
        assert str(job) == f"tests.project.tasks.add ({job.id})"
        assert str(model.objects.get()).startswith(state)
    assert str(Pause(queue_name="email")) == "email paused"
    assert str(Semaphore(key="k", value=1, limit=2)) == "k (1 of 2 free)"
    assert str(Process(name="worker-1")) == "worker-1"
    assert str(RecurringTask(key="k")) == "k"
    assert str(RecurringExecution(task_key="k", run_at=NOW)) == f"k at {NOW}"

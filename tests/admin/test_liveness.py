"""What the console says when processes miss heartbeats, and of jobs and recurring tasks that nobody looks after."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from dj_queue.api import QueueInfo
from dj_queue.models import Job, Process, RecurringExecution, RecurringTask, ScheduledExecution
from tests.admin.records.conftest import fail
from tests.project.tasks import add, one_per_key
from tests.working import claim

pytestmark = pytest.mark.django_db

DASHBOARD = "/admin/dj_queue/dashboard/"
INTERVAL = 60  # seconds between heartbeats, by default


def process(kind: str, *, ago: float = 0, **metadata: Any) -> Process:
    row = Process.objects.create(kind=kind, pid=1, name=f"{kind.lower()}-{Process.objects.count()}", metadata=metadata)
    beat(row, ago=ago)
    return row


def beat(*rows: Process, ago: float = 0) -> None:
    at = timezone.now() - timedelta(seconds=ago)
    Process.objects.filter(pk__in=[row.pk for row in rows]).update(last_heartbeat_at=at)


def runtime(*, ago: float = 0) -> list[Process]:
    return [
        process("Supervisor", ago=ago),
        process("Worker", ago=ago, queues=["*"], threads=3),
        process("Dispatcher", ago=ago),
        process("Scheduler", ago=ago, dynamic_tasks_enabled=True),
    ]


def recurring(key: str = "nightly", **fields: Any) -> RecurringTask:
    known = {"task_path": "tests.project.tasks.add", "schedule": "0 3 * * *", "static": True, **fields}
    task = RecurringTask.objects.create(key=key, **known)
    if "updated_at" in fields:
        RecurringTask.objects.filter(pk=task.pk).update(updated_at=fields["updated_at"])
    return task


def alerts(client: Client) -> list[tuple[str, str]]:
    return [(alert.tone, str(alert)) for alert in client.get(DASHBOARD).context["alerts"]]


def texts(client: Client) -> str:
    return "\n".join(text for _, text in alerts(client))


# ---- processes --------------------------------------------------------------------------------------


def test_nothing_works_as_soon_as_two_heartbeats_are_missed(admin_client: Client) -> None:
    rows = runtime(ago=2 * INTERVAL - 5)
    add.enqueue(1, 2)
    assert alerts(admin_client) == []
    beat(*rows, ago=2 * INTERVAL + 1)
    answer = admin_client.get(DASHBOARD)
    first = answer.context["alerts"][0]
    assert (first.tone, first.command) == ("bad", "python manage.py dj_queue")
    assert first.text == "Nothing works this backend."
    assert f"<code>{first.command}</code>" in answer.content.decode()
    assert any(tone == "warn" and text.startswith("4 processes are late") for tone, text in alerts(admin_client))
    assert answer.content.decode().count('djq-tone-warn">late<') == 4
    (queue,) = answer.context["queues"].page.object_list
    assert queue.live_worker_count == 0
    page = admin_client.get(f"{DASHBOARD}queue/default/")
    assert "no worker" in page.content.decode()


def test_the_interval_is_the_configured_one(admin_client: Client, settings: Any) -> None:
    settings.TASKS = {"default": {**settings.TASKS["default"], "OPTIONS": {"process_heartbeat_interval": 2}}}
    runtime(ago=5)
    assert alerts(admin_client)[0][1].startswith("Nothing works this backend")


def test_no_process_at_all_works_nothing_either(admin_client: Client, settings: Any) -> None:
    settings.TASKS = {**settings.TASKS, "mail": settings.TASKS["default"]}
    add.using(backend="mail").enqueue(1, 2)
    (alert,) = admin_client.get(f"{DASHBOARD}?backend=mail").context["alerts"]
    assert (alert.tone, alert.command) == ("bad", "python manage.py dj_queue --backend mail")
    assert alerts(admin_client) == []  # of default, there is nothing to work


def test_one_late_process_is_amber(admin_client: Client) -> None:
    runtime()
    late = process("Worker", ago=2 * INTERVAL + 1, queues=["mail"])
    assert [tone for tone, _ in alerts(admin_client)] == ["warn"]
    assert texts(admin_client).startswith(f"{late.name} is late")
    assert "late" in admin_client.get(f"/admin/dj_queue/process/{late.pk}/change/").content.decode()
    rows = admin_client.get("/admin/dj_queue/process/?status=late").context["cl"].result_list
    assert [row.pk for row in rows] == [late.pk]


def test_no_dispatcher_while_jobs_are_scheduled(admin_client: Client) -> None:
    process("Worker", queues=["*"])
    assert alerts(admin_client) == []
    add.using(run_after=timezone.now() + timedelta(hours=1)).enqueue(1, 2)
    assert texts(admin_client).startswith("No dispatcher is alive: 1 scheduled")


# ---- recurring tasks ---------------------------------------------------------------------------------


def test_no_next_run_is_promised_without_a_scheduler(admin_client: Client) -> None:
    rows, task = runtime(), recurring()
    assert alerts(admin_client) == []
    assert "no scheduler" not in admin_client.get(DASHBOARD).content.decode()
    scheduler = rows[-1]
    beat(scheduler, ago=2 * INTERVAL + 1)
    assert "No scheduler is alive to run the recurring task nightly. Start one: python manage.py dj_queue" in texts(
        admin_client
    )
    for address in (DASHBOARD, "/admin/dj_queue/recurringtask/", f"/admin/dj_queue/recurringtask/{task.pk}/change/"):
        assert "no scheduler" in admin_client.get(address).content.decode()


def test_a_scheduler_promises_only_its_own_tasks(admin_client: Client) -> None:
    process("Worker", queues=["*"])
    process("Scheduler", dynamic_tasks_enabled=False, static_tasks={"mine": "x"})
    for key, static in (("mine", True), ("theirs", True), ("dynamic", False)):
        recurring(key, static=static)
    assert "that has the recurring tasks dynamic, theirs." in texts(admin_client)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"task_path": "tests.project.nowhere.task"}, "Cannot run, as the task cannot be imported"),
        ({"schedule": "no schedule"}, "Cannot run, as its schedule or time zone cannot be read"),
        ({"timezone": "Nowhere/City"}, "Cannot run, as its schedule or time zone cannot be read"),
        ({"schedule": "*/5 * * * *", "updated_at": timezone.now() - timedelta(hours=1)}, "Overdue"),
    ],
)
def test_a_recurring_task_that_does_not_run_is_an_alert(
    admin_client: Client, fields: dict[str, Any], said: str
) -> None:
    runtime()
    recurring(**fields)
    assert alerts(admin_client) == [("bad", f"{said}: the recurring task nightly.")]


def test_a_task_that_is_no_minute_late_is_not_overdue(admin_client: Client) -> None:
    runtime()
    now = timezone.now()
    task = recurring(schedule="* * * * *", updated_at=now - timedelta(hours=1))
    RecurringExecution.objects.create(task_key=task.key, run_at=now - timedelta(seconds=50))
    assert alerts(admin_client) == []


def test_a_recurring_task_that_failed_last_time_is_an_alert(admin_client: Client) -> None:
    runtime()
    task, failed = recurring(), fail()
    now = timezone.now()
    RecurringExecution.objects.create(task_key=task.key, run_at=now - timedelta(hours=2), job=failed)
    assert "Failed last time: the recurring task nightly." in texts(admin_client)
    RecurringExecution.objects.create(task_key=task.key, run_at=now - timedelta(hours=1))
    assert "Failed last time" not in texts(admin_client)


# ---- why a job waits ---------------------------------------------------------------------------------


def why(client: Client, job_id: Any) -> str:
    answer = client.get(f"/admin/dj_queue/job/{job_id}/change/")
    waits = str(answer.context["waits"])
    assert waits in answer.content.decode()
    return waits


def test_why_a_ready_job_waits(admin_client: Client) -> None:
    job = add.using(queue_name="mail").enqueue(1, 2).id
    assert "Nothing works this backend" in why(admin_client, job)
    worker = process("Worker", queues=["post*"])
    assert "No worker selects its queue" in why(admin_client, job)
    Process.objects.filter(pk=worker.pk).update(metadata={"queues": ["m*"]})
    assert "1 live worker takes" in why(admin_client, job)
    QueueInfo("mail").pause()
    assert why(admin_client, job) == "Its queue is paused."


def test_why_a_scheduled_job_waits(admin_client: Client) -> None:
    job = add.using(run_after=timezone.now() + timedelta(hours=2, minutes=1)).enqueue(1, 2).id
    assert "No dispatcher is alive" in why(admin_client, job)
    process("Dispatcher")
    assert why(admin_client, job).startswith("It is scheduled, and due in 2 h")
    ScheduledExecution.objects.update(scheduled_at=timezone.now() - timedelta(seconds=1))
    assert why(admin_client, job).startswith("It is due")


def test_why_a_blocked_job_waits(admin_client: Client) -> None:
    holder, waiter = (one_per_key.enqueue("k").id for _ in range(2))
    assert f"job {holder}</a>, which is ready to run" in why(admin_client, waiter)
    claim(1)
    assert f"job {holder}</a>, which runs" in why(admin_client, waiter)
    Job.objects.get(pk=holder).delete()
    assert "No job holds its key" in why(admin_client, waiter)


def test_a_job_that_does_not_wait_gives_no_reason(admin_client: Client) -> None:
    assert why(admin_client, fail().pk) == ""

"""Rows and addresses as nobody should have made them: every page answers, and says what it can."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client, RequestFactory
from django.utils import timezone

from dj_queue import urls, views
from dj_queue.models import BlockedExecution, FailedExecution, Job, Pause, Process, RecurringTask, Semaphore
from tests.admin.records.conftest import fail
from tests.project.tasks import add, one_per_key

pytestmark = pytest.mark.django_db

DASHBOARD = "/admin/dj_queue/dashboard/"
LISTS = ("job", "failedexecution", "process", "recurringtask", "pause", "semaphore")
ENDS = (datetime(1000, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC))
ENDLESS = "QUIT\x1b[2J\N{RIGHT-TO-LEFT OVERRIDE}\N{LINE SEPARATOR}"


def pages(client: Client) -> dict[str, str]:
    """What every page says; each must answer."""
    found: dict[str, str] = {}
    states = ("ready", "scheduled", "blocked", "failed", "finished", "claimed")
    addresses = [DASHBOARD, *(f"/admin/dj_queue/{name}/" for name in LISTS)]
    addresses += [f"{DASHBOARD}queue/default/?state={state}" for state in states] if Job.objects.exists() else []
    addresses.append("/admin/dj_queue/failedexecution/groups/")
    for model in (Job, FailedExecution, Process, RecurringTask, Pause, Semaphore):
        addresses += [f"/admin/dj_queue/{model._meta.model_name}/{row.pk}/change/" for row in model.objects.all()]
    for address in addresses:
        answer = client.get(address)
        assert answer.status_code == 200, address
        found[address] = answer.content.decode()
    return found


@pytest.mark.parametrize("name", ["\0", "", "a\0b", "\N{BELL}" * 65, "x" * 65])
@pytest.mark.parametrize("post", [{}, {"action": "pause"}, {"action": "resume"}, {"action": "clear"}])
def test_a_name_that_no_queue_can_have_is_not_found(admin_client: Client, name: str, post: dict[str, str]) -> None:
    address = f"{DASHBOARD}queue/~{name.encode().hex()}/"
    answer = admin_client.post(f"{address}action/", post) if post else admin_client.get(address)
    assert answer.status_code == 404
    jobs = {"state": "failed", "action": "retry", "_selected_action": "00000000-0000-0000-0000-000000000000"}
    assert admin_client.post(f"{address}jobs/action/", jobs).status_code == 404
    assert not Pause.objects.exists()


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Chicago", "UTC"])
@pytest.mark.parametrize("at", ENDS)
def test_times_at_the_ends_of_the_calendar(admin_client: Client, settings: Any, zone: str, at: datetime) -> None:
    settings.TIME_ZONE = zone
    add.using(run_after=timezone.now() + timedelta(hours=1)).enqueue(1, 2)
    one_per_key.enqueue("k")
    one_per_key.enqueue("k")
    fail()
    task = RecurringTask.objects.create(key="odd", task_path="tests.project.tasks.add", schedule="0 3 * * *")
    Process.objects.create(kind="Worker", pid=1, name="odd", metadata={"queues": ["*"]})
    Pause.objects.create(queue_name="odd", created_at=at)
    from dj_queue.models import RecurringExecution, ScheduledExecution

    RecurringExecution.objects.create(task_key=task.key, run_at=at)
    fields = {
        Job: ("scheduled_at", "started_at", "last_attempted_at", "created_at", "updated_at"),
        ScheduledExecution: ("scheduled_at",),
        BlockedExecution: ("created_at", "expires_at"),
        FailedExecution: ("created_at",),
        Process: ("last_heartbeat_at", "created_at"),
        RecurringTask: ("updated_at",),
        Semaphore: ("expires_at", "updated_at"),
    }
    for model, names in fields.items():
        model.objects.update(**dict.fromkeys(names, at))  # type: ignore[attr-defined]
    found = pages(admin_client)
    assert str(at.year) in found["/admin/dj_queue/pause/"]
    assert views.stats(RequestFactory().get("/")).status_code == 200


def test_a_process_whose_heartbeat_is_still_to_come_is_not_alive(admin_client: Client) -> None:
    Process.objects.create(
        kind="Worker",
        pid=1,
        name="odd",
        metadata={"queues": ["*"]},
        last_heartbeat_at=timezone.now() + timedelta(days=9),
    )
    add.enqueue(1, 2)
    assert "Nothing works this backend" in admin_client.get(DASHBOARD).content.decode()
    assert views.ready(RequestFactory().get("/")).status_code == 503
    assert "stale" in pages(admin_client)["/admin/dj_queue/process/"]


def test_processes_that_supervise_each_other_are_all_shown(admin_client: Client) -> None:
    rows = [Process.objects.create(kind="Supervisor", pid=n, name=f"odd-{n}") for n in range(4)]
    for child, parent in ((0, 0), (1, 2), (2, 1), (3, 2)):
        Process.objects.filter(pk=rows[child].pk).update(supervisor=rows[parent])
    html = pages(admin_client)[DASHBOARD]
    assert all(f"odd-{n}" in html for n in range(4))


@pytest.mark.parametrize(
    "metadata",
    [[], "x", 1, {"queues": "abc"}, {"queues": 5}, {"queues": [1, None]}, {"threads": 10**30, "static_tasks": 1}],
)
@pytest.mark.parametrize("kind", ["Worker", "Scheduler", "Alien"])
def test_what_a_process_tells_may_be_anything(admin_client: Client, kind: str, metadata: Any) -> None:
    add.enqueue(1, 2)
    RecurringTask.objects.create(key="odd", task_path="tests.project.tasks.add", schedule="0 3 * * *", static=True)
    Process.objects.create(kind=kind, pid=0, name="odd", metadata=metadata)
    assert "odd" in pages(admin_client)[DASHBOARD]
    for view in (views.stats, urls.metrics):
        assert view(RequestFactory().get("/")).status_code == 200


def test_nothing_invisible_is_on_a_page(admin_client: Client) -> None:
    for model, fields in {
        Job: {"task_path": ENDLESS, "queue_name": ENDLESS, "concurrency_key": ENDLESS},
        Pause: {"queue_name": ENDLESS},
        Process: {"kind": "Worker", "pid": 1, "name": ENDLESS, "hostname": ENDLESS, "metadata": {"queues": [ENDLESS]}},
        RecurringTask: {
            "key": ENDLESS, "task_path": ENDLESS, "queue_name": ENDLESS, "schedule": ENDLESS,
            "timezone": ENDLESS, "description": ENDLESS,
        },
        Semaphore: {"key": ENDLESS, "value": 0, "limit": 1, "expires_at": timezone.now()},
    }.items():  # fmt: skip
        model.objects.create(**fields)  # type: ignore[attr-defined]
    job = fail()
    FailedExecution.objects.update(exception_class=ENDLESS, message=ENDLESS, traceback=ENDLESS)
    Job.objects.filter(pk=job.pk).update(worker_ids=[ENDLESS], errors=[[ENDLESS, ENDLESS]])
    for address, html in pages(admin_client).items():
        assert not set(ENDLESS[4:]) - set("[2J") & set(html), address
    assert r"\u001b" in pages(admin_client)[DASHBOARD]

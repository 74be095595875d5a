"""Which backend a request means: its address and what it posts are read as one."""

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.urls import resolve, reverse

from dj_queue.api import QueueInfo, schedule_recurring_task
from dj_queue.models import FailedExecution, Job, Pause, RecurringTask
from tests.admin.records.conftest import fail, two_backends
from tests.project import tasks

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("two_backends")]

__all__ = ["two_backends"]

QUEUE = "/admin/dj_queue/dashboard/queue/default/"


def _enqueue(alias: str) -> Job:
    return Job.objects.get(pk=tasks.add.using(backend=alias).enqueue(1, 2).id)


def _pause(alias: str) -> Pause:
    QueueInfo("held", backend_alias=alias).pause()
    return Pause.objects.get(backend_alias=alias)


def _recurring(alias: str) -> RecurringTask:
    return schedule_recurring_task(
        key="dynamic", task_path="tests.project.tasks.add", schedule="0 3 * * *", args=[1, 2], backend_alias=alias
    )


def _failure(alias: str) -> FailedExecution:
    return FailedExecution.objects.get(job=fail(alias=alias))


def _on_jobs(row: Any) -> tuple[str, dict[str, Any]]:
    return f"{QUEUE}jobs/action/", {"state": "ready", "action": "discard", "_selected_action": [str(row.pk)]}


def _on_row(verb: str) -> Callable[[Any], tuple[str, dict[str, Any]]]:
    return lambda row: (f"/admin/dj_queue/{row._meta.model_name}/{row.pk}/change/", {"_djq_object_action": verb})


def _on_list(action: str) -> Callable[[Any], tuple[str, dict[str, Any]]]:
    return lambda row: (
        f"/admin/dj_queue/{row._meta.model_name}/",
        {"action": action, "_selected_action": [str(row.pk)], "index": "0"},
    )


def _on_all(row: Any) -> tuple[str, dict[str, Any]]:
    return "/admin/dj_queue/job/bulk/?verb=discard&status=ready", {}


# What deletes the row that `make` makes on a backend, each in its way.
POSTS: list[Any] = [
    pytest.param(_enqueue, lambda row: (f"{QUEUE}action/", {"action": "clear"}), id="clear a queue"),
    pytest.param(_enqueue, _on_jobs, id="jobs of a queue"),
    pytest.param(_enqueue, _on_row("discard"), id="a job"),
    pytest.param(_enqueue, _on_list("discard_jobs"), id="jobs of the list"),
    pytest.param(_enqueue, _on_all, id="all jobs that match"),
    pytest.param(_failure, _on_row("discard"), id="a failure"),
    pytest.param(_failure, _on_list("discard_jobs"), id="failures of the list"),
    pytest.param(_pause, _on_row("resume"), id="a pause"),
    pytest.param(_recurring, _on_row("unschedule"), id="a recurring task"),
    pytest.param(_recurring, _on_list("unschedule_tasks"), id="recurring tasks of the list"),
]


def there(row: Any) -> bool:
    return type(row)._default_manager.filter(pk=row.pk).exists()


def joined(address: str, query: str) -> str:
    return f"{address}{'&' if '?' in address else '?'}{query}"


@pytest.mark.parametrize(("make", "post"), POSTS)
def test_the_posted_backend_is_meant(admin_client: Client, make: Any, post: Any) -> None:
    default, other = make("default"), make("other")
    address, data = post(other)
    answer = admin_client.post(address, {**data, "backend": "other"})
    assert (answer.status_code, there(default), there(other)) == (302, True, False)
    if "dashboard" in answer["Location"]:
        assert "backend=other" in answer["Location"]
    assert admin_client.get(answer["Location"]).status_code == 200


@pytest.mark.parametrize(("make", "post"), POSTS)
def test_both_may_name_the_same(admin_client: Client, make: Any, post: Any) -> None:
    default, other = make("default"), make("other")
    address, data = post(other)
    answer = admin_client.post(joined(address, "backend=other"), {**data, "backend": "other"})
    assert (answer.status_code, there(default), there(other)) == (302, True, False)


@pytest.mark.parametrize(("make", "post"), POSTS)
@pytest.mark.parametrize(("named", "posted"), [("default", "other"), ("other", "default"), ("other", ["other", "x"])])
def test_a_contradiction_changes_nothing(
    admin_client: Client, make: Any, post: Any, named: str, posted: str | list[str]
) -> None:
    rows = [make("default"), make("other")]
    for row in rows:
        address, data = post(row)
        answer = admin_client.post(joined(address, f"backend={named}"), {**data, "backend": posted})
        assert answer.status_code == 400
        assert "names more than one backend: 'other', " in answer.content.decode() or named == "default"
        assert all(map(there, rows))


@pytest.mark.parametrize(("make", "post"), POSTS)
@pytest.mark.parametrize("where", ["address", "body"])
def test_one_that_is_not_ours_is_not_found(admin_client: Client, make: Any, post: Any, where: str) -> None:
    rows = [make("default"), make("other")]
    for row in rows:
        address, data = post(row)
        if where == "address":
            answer = admin_client.post(joined(address, "backend=nowhere"), data)
        else:
            answer = admin_client.post(address, {**data, "backend": "nowhere"})
        assert answer.status_code == 404
        assert all(map(there, rows))


@pytest.mark.parametrize(("make", "post"), POSTS)
def test_an_empty_field_names_none(admin_client: Client, make: Any, post: Any) -> None:
    default, other = make("default"), make("other")
    address, data = post(default)
    answer = admin_client.post(joined(address, "backend="), {**data, "backend": ""})
    assert (answer.status_code, there(default), there(other)) == (302, False, True)


def test_the_list_stays_with_the_backend_that_was_posted(admin_client: Client) -> None:
    row = _enqueue("other")
    address, data = _on_list("discard_jobs")(row)
    answer = admin_client.post(joined(address, "status=ready"), {**data, "backend": "other"})
    assert answer["Location"] == "/admin/dj_queue/job/?status=ready&backend=other"
    asked = admin_client.post(address, {**data, "select_across": "1", "backend": "other"})
    assert "backend=other" in asked["Location"]


def test_every_page_has_its_names_of_old() -> None:
    """As code and bookmarks for 0.6 have them."""
    dashboard = "/admin/dj_queue/dashboard/"
    assert reverse("admin:dj_queue_dashboard_changelist") == dashboard
    assert reverse("admin:dj_queue_dashboard_queue", args=["q"]) == f"{dashboard}queue/q/"
    assert reverse("admin:dj_queue_dashboard_queue_action", args=["q"]) == f"{dashboard}queue/q/action/"
    assert reverse("admin:dj_queue_dashboard_job_action", args=["q"]) == f"{dashboard}queue/q/jobs/action/"
    for model in ("job", "failedexecution", "process", "recurringtask", "pause", "semaphore"):
        assert reverse(f"admin:dj_queue_{model}_changelist") == f"/admin/dj_queue/{model}/"
        assert reverse(f"admin:dj_queue_{model}_change", args=["1"]) == f"/admin/dj_queue/{model}/1/change/"
    for name in ("queue", "queue_action", "job_action", "jobs_action"):
        address = reverse(f"admin:dj_queue_dashboard_{name}", args=["a/b"])
        assert resolve(address).kwargs == {"name": "a/b"}

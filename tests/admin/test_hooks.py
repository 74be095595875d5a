"""A project's own admins and site: what they keep from a visitor is kept on every page, in every action."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from dj_queue.api import QueueInfo
from dj_queue.models import (
    Dashboard,
    FailedExecution,
    Job,
    Pause,
    Process,
    RecurringExecution,
    RecurringTask,
    Semaphore,
)
from tests.admin.records.conftest import fail, finish
from tests.admin.site import Rules
from tests.project.tasks import add, one_per_key

pytestmark = pytest.mark.django_db

ROOT = "/restricted/dj_queue/"
DASHBOARD = f"{ROOT}dashboard/"


@pytest.fixture(autouse=True)
def rules() -> Iterator[type[Rules]]:
    Rules.forget()
    Rules.visitors = {"admin"}
    yield Rules
    Rules.forget()


def mine(rules: type[Rules]) -> None:
    rules.rows = {Job: {"queue_name": "mine"}}


def text(client: Client, path: str) -> str:
    answer = client.get(f"{ROOT}{path}", follow=True)
    assert answer.status_code == 200, path
    return answer.content.decode()


# ---- get_queryset -----------------------------------------------------------------------------------


def test_jobs_that_a_queryset_leaves_out_are_on_no_page(admin_client: Client, rules: type[Rules]) -> None:
    job, failed = add.using(queue_name="theirs").enqueue(1, 2).id, fail("their-secret", queue="theirs")
    fail("my-own", queue="mine")
    done = finish("their-argument")
    mine(rules)
    for path in ("job/", "failedexecution/", "failedexecution/groups/", "job/?q=their", "job/?status=failed",
                 f"job/?q={job}", "failedexecution/?q=their", "dashboard/queue/theirs/?state=failed",
                 "dashboard/queue/theirs/?state=failed&sort=task", "dashboard/queue/theirs/?state=ready",
                 "dashboard/queue/finishing/?state=finished"):  # fmt: skip
        html = text(admin_client, path)
        ids = [f"{pk}{end}" for pk in (job, failed.pk) for end in "/<"]
        assert not [each for each in ("their-secret", "their-argument", *ids) if each in html], path
    assert "my-own" in text(admin_client, "failedexecution/")
    failure = FailedExecution.objects.get(job=failed)
    for path in (f"job/{job}/change/", f"job/{done.pk}/change/", f"failedexecution/{failure.pk}/change/"):
        assert admin_client.get(f"{ROOT}{path}").status_code == 302, path
    assert admin_client.get("/admin/dj_queue/job/").content.decode().count(str(job))  # elsewhere, they are shown


def test_jobs_that_a_queryset_leaves_out_are_left_alone(admin_client: Client, rules: type[Rules]) -> None:
    failed, waiting = fail(queue="theirs"), add.using(queue_name="theirs").enqueue(1, 2).id
    own = fail(queue="mine")
    mine(rules)
    failure = FailedExecution.objects.get(job=failed)
    queue = f"{DASHBOARD}queue/theirs/"
    ticked = {"action": "discard_jobs", "_selected_action": [str(failed.pk), str(waiting), str(failure.pk)]}
    for address, post in (
        (f"{queue}action/", {"action": "clear"}),
        (f"{queue}jobs/action/", {"state": "failed", "action": "retry", "_selected_action": str(failed.pk)}),
        (f"{queue}jobs/action/", {"state": "ready", "action": "discard", "_selected_action": str(waiting)}),
        (f"{ROOT}job/", ticked),
        (f"{ROOT}failedexecution/", ticked),
        (f"{ROOT}job/{failed.pk}/change/", {"_djq_object_action": "discard"}),
        (f"{ROOT}failedexecution/{failure.pk}/change/", {"_djq_object_action": "discard"}),
        (f"{ROOT}job/bulk/?verb=discard&status=ready", {}),
        (f"{ROOT}job/bulk/?verb=retry&queue=theirs", {}),
    ):
        assert admin_client.post(address, post).status_code in (302, 404), address
        assert Job.objects.get(pk=failed.pk).failed, address
        assert Job.objects.get(pk=waiting).ready, address
    admin_client.post(f"{ROOT}failedexecution/bulk/?verb=discard")
    assert not Job.objects.filter(pk=own.pk).exists()
    assert Job.objects.get(pk=failed.pk).failed


def test_a_queryset_of_failures_is_heeded_too(admin_client: Client, rules: type[Rules]) -> None:
    kept, other = fail("kept-failure"), fail("other-failure")
    rules.rows = {FailedExecution: {"job_id": kept.pk}}
    for path in ("failedexecution/", "failedexecution/groups/"):
        assert "other-failure" not in text(admin_client, path), path
    admin_client.post(f"{ROOT}failedexecution/bulk/?verb=discard")
    assert list(Job.objects.values_list("pk", flat=True)) == [other.pk]


def test_jobs_beside_other_rows_are_left_out(admin_client: Client, rules: type[Rules]) -> None:
    ids = [one_per_key.using(queue_name=name).enqueue("k").id for name in ("theirs", "mine", "mine")]
    task = RecurringTask.objects.create(key="nightly", task_path="x", schedule="0 3 * * *")
    RecurringExecution.objects.create(task_key=task.key, run_at=timezone.now(), job_id=ids[0])
    mine(rules)
    semaphore = Semaphore.objects.get()
    for path in (f"job/{ids[1]}/change/", f"semaphore/{semaphore.pk}/change/", f"recurringtask/{task.pk}/change/"):
        assert ids[0] not in text(admin_client, path), path
    assert ids[2] in text(admin_client, f"semaphore/{semaphore.pk}/change/")


def test_the_dashboards_tables_heed_querysets(admin_client: Client, rules: type[Rules]) -> None:
    for name in ("mine-1", "theirs-1"):
        Process.objects.create(kind="Worker", pid=1, name=name, metadata={"queues": ["*"]})
        RecurringTask.objects.create(key=f"task-{name}", task_path="nowhere", schedule="0 3 * * *")
        Semaphore.objects.create(key=f"key-{name}", value=0, limit=1, expires_at=timezone.now())
    fields = {Process: "name", RecurringTask: "key", Semaphore: "key"}
    rules.rows = {model: {f"{field}__contains": "mine"} for model, field in fields.items()}
    html = text(admin_client, "dashboard/")
    assert "theirs-1" not in html
    assert html.count("mine-1") >= 3


# ---- has_view_permission -----------------------------------------------------------------------------


def test_what_an_admin_does_not_show_is_refused(admin_client: Client, rules: type[Rules]) -> None:
    job, failed = add.enqueue(1, 2).id, fail("their-secret")
    failure = FailedExecution.objects.get(job=failed)
    rules.hidden = {Job, FailedExecution}
    queue = f"{DASHBOARD}queue/default/"
    gets = ["job/", f"job/{job}/change/", f"job/{job}/history/", "failedexecution/", "failedexecution/groups/",
            f"failedexecution/{failure.pk}/change/", "job/bulk/?verb=discard&status=ready"]  # fmt: skip
    for path in gets:
        assert admin_client.get(f"{ROOT}{path}").status_code == 403, path
    for address, post in (
        (f"{queue}action/", {"action": "clear"}),
        (f"{queue}jobs/action/", {"state": "failed", "action": "retry", "_selected_action": str(failed.pk)}),
        (f"{ROOT}job/", {"action": "discard_jobs", "_selected_action": str(job)}),
        (f"{ROOT}job/{job}/change/", {"_djq_object_action": "discard"}),
        (f"{ROOT}failedexecution/{failure.pk}/change/", {"_djq_object_action": "discard"}),
        (f"{ROOT}job/bulk/?verb=discard&status=ready", {}),
    ):
        assert admin_client.post(address, post).status_code == 403, address
    assert Job.objects.count() == 2
    html = text(admin_client, "dashboard/queue/default/?state=failed")
    assert str(failed.pk) not in html
    assert "not shown to you" in html


def test_one_row_may_be_refused(admin_client: Client, rules: type[Rules]) -> None:
    first, second = fail("first"), fail("second")
    rules.unseen = {first.pk}
    assert admin_client.get(f"{ROOT}job/{first.pk}/change/").status_code == 403
    assert admin_client.get(f"{ROOT}job/{second.pk}/change/").status_code == 200
    failure = FailedExecution.objects.get(job=first)
    assert admin_client.get(f"{ROOT}failedexecution/{failure.pk}/change/").status_code == 403
    ids = [str(first.pk), str(second.pk)]
    admin_client.post(f"{ROOT}job/", {"action": "discard_jobs", "_selected_action": ids})
    assert list(Job.objects.values_list("pk", flat=True)) == [first.pk]


@pytest.mark.parametrize("model", [Process, RecurringTask, Semaphore])
def test_the_dashboards_tables_heed_who_may_view(admin_client: Client, rules: type[Rules], model: Any) -> None:
    Process.objects.create(kind="Worker", pid=1, name="told-1", metadata={"queues": ["*"]})
    RecurringTask.objects.create(key="told-2", task_path="nowhere", schedule="0 3 * * *")
    Semaphore.objects.create(key="told-3", value=0, limit=1, expires_at=timezone.now())
    rules.hidden = {model}
    name = {Process: "told-1", RecurringTask: "told-2", Semaphore: "told-3"}[model]
    html = text(admin_client, "dashboard/")
    assert name not in html
    assert sum(each in html for each in ("told-1", "told-2", "told-3")) == 2


def test_pauses_that_are_not_shown_are_not_changed(admin_client: Client, rules: type[Rules]) -> None:
    QueueInfo("q").pause()
    rules.hidden = {Pause}
    assert admin_client.post(f"{DASHBOARD}queue/q/action/", {"action": "resume"}).status_code == 403
    assert Pause.objects.exists()


def test_a_dashboard_that_is_not_shown(admin_client: Client, rules: type[Rules]) -> None:
    job = add.enqueue(1, 2).id
    rules.hidden = {Dashboard}
    for path in ("", "queue/default/"):
        assert admin_client.get(f"{DASHBOARD}{path}").status_code == 403
    for path, post in (("action/", {"action": "clear"}), ("jobs/action/", {"state": "ready", "action": "discard"})):
        assert admin_client.post(f"{DASHBOARD}queue/default/{path}", post).status_code == 403
    assert Job.objects.filter(pk=job).exists()


# ---- has_permission of the site ----------------------------------------------------------------------


def test_the_sites_own_rule_is_the_only_one(client: Client, rules: type[Rules]) -> None:
    """Who need not be staff, and staff that is kept out."""
    rules.visitors = {"guest"}
    job = fail()
    failure = FailedExecution.objects.get(job=job)
    paths = ["", "dashboard/", "dashboard/queue/default/", "job/", f"job/{job.pk}/change/", "failedexecution/",
             "failedexecution/groups/", f"failedexecution/{failure.pk}/change/", "process/", "semaphore/"]  # fmt: skip
    client.force_login(User.objects.create_user("guest"))
    for path in paths:
        assert client.get(f"{ROOT}{path}", follow=True).status_code == 200, path
    client.force_login(User.objects.create_superuser("root"))
    for path in paths:
        answer = client.get(f"{ROOT}{path}")
        assert (answer.status_code, "login" in answer.headers.get("Location", "")) == (302, True), path
    answer = client.post(f"{ROOT}job/{job.pk}/change/", {"_djq_object_action": "discard"})
    assert "login" in answer.headers["Location"]
    assert Job.objects.filter(pk=job.pk).exists()

"""The admin's log: rows of several backends and databases are kept apart, and what cannot be noted undoes nothing."""

from typing import Any
from unittest.mock import patch

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.messages import get_messages
from django.db import DatabaseError
from django.test import Client

from dj_queue.api import schedule_recurring_task
from dj_queue.models import Job, RecurringTask
from dj_queue_admin import audit
from tests.admin.records.conftest import fail
from tests.project.tasks import add

pytestmark = pytest.mark.django_db

BACKEND = {"BACKEND": "dj_queue.backend.DjQueueBackend", "QUEUES": [], "OPTIONS": {}}


@pytest.fixture(autouse=True)
def two_backends(settings: Any) -> None:
    settings.TASKS = {"default": BACKEND, "other": BACKEND}


def recurring(key: str, alias: str = "default") -> RecurringTask:
    return schedule_recurring_task(
        key=key, task_path="tests.project.tasks.add", args=(1, 2), schedule="0 3 * * *", backend_alias=alias
    )


def run(client: Client, row: Any) -> None:
    address = f"/admin/dj_queue/{row._meta.model_name}/{row.pk}/change/?backend={row.backend_alias}"
    verb = "run" if isinstance(row, RecurringTask) else "enqueue"
    assert client.post(address, {"_djq_object_action": verb}).status_code == 302


def history(client: Client, row: Any) -> str:
    address = f"/admin/dj_queue/{row._meta.model_name}/{row.pk}/history/?backend={row.backend_alias}"
    return client.get(address).content.decode()


def test_a_row_of_the_same_number_elsewhere_has_a_history_of_its_own(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_is_usual", lambda alias: alias == "default")
    row = recurring("payroll")
    run(admin_client, row)
    assert "Ran now" in history(admin_client, row)
    RecurringTask.objects.filter(pk=row.pk).update(backend_alias="other", key="cleanup")
    row.refresh_from_db()
    assert "Ran now" not in history(admin_client, row)
    run(admin_client, row)
    assert history(admin_client, row).count("Ran now") == 1
    assert {entry.object_id for entry in LogEntry.objects.all()} == {str(row.pk), f"other:{row.pk}"}


def test_links_of_recent_actions_lead_to_the_right_backend(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = recurring("cleanup", "other")
    run(admin_client, row)
    monkeypatch.setattr(audit, "_is_usual", lambda alias: alias == "default")
    run(admin_client, row)
    for entry in LogEntry.objects.all():
        address = f"/admin/{str(entry.get_admin_url()).removeprefix('/admin/')}"
        answer = admin_client.get(address, follow=True)
        assert "cleanup" in answer.content.decode()
        assert answer.redirect_chain[-1][0] == f"/admin/dj_queue/recurringtask/{row.pk}/change/?backend=other"


def test_a_job_whose_backend_is_named_is_not_looked_for_elsewhere(admin_client: Client) -> None:
    job = add.using(backend="other").enqueue(1, 2).id
    assert admin_client.get(f"/admin/dj_queue/job/{job}/change/").headers["Location"].endswith("?backend=other")
    answer = admin_client.get(f"/admin/dj_queue/job/{job}/change/?backend=default")
    assert answer.headers["Location"] == "/admin/dj_queue/job/?backend=default"


def test_nothing_invisible_is_in_the_log_or_on_a_page(admin_client: Client) -> None:
    name = "mail\n2026-01-01 admin did it\N{RIGHT-TO-LEFT OVERRIDE}\x1b[31m"
    address = f"/admin/dj_queue/dashboard/queue/~{name.encode().hex()}/action/"
    assert admin_client.post(address, {"action": "pause"}).status_code == 302
    entry = LogEntry.objects.get()
    assert entry.object_repr == r"mail\u000a2026-01-01 admin did it\u202e\u001b[31m"
    assert "\n" not in entry.change_message
    for page in ("dashboard/", f"dashboard/queue/~{name.encode().hex()}/", "pause/", "job/", "../"):
        text = admin_client.get(f"/admin/dj_queue/{page}", follow=True).content.decode()
        assert not {"\x1b", "\N{RIGHT-TO-LEFT OVERRIDE}"} & set(text), page


def test_a_long_name_is_cut_to_what_the_log_holds(admin_client: Client) -> None:
    job = Job.objects.create(task_path="\x01" * 300)
    run(admin_client, job)
    assert len(LogEntry.objects.get().object_repr) <= 200


def test_a_deed_that_the_log_refuses_is_done_and_told(admin_client: Client, caplog: pytest.LogCaptureFixture) -> None:
    job = fail()
    with patch.object(LogEntry.objects, "bulk_create", side_effect=DatabaseError("the log is full")):
        answer = admin_client.post(f"/admin/dj_queue/job/{job.pk}/change/", {"_djq_object_action": "discard"})
    assert answer.status_code == 302
    assert not Job.objects.filter(pk=job.pk).exists()
    assert "the admin's log took no entry" in " ".join(map(str, get_messages(answer.wsgi_request)))
    assert str(job.pk) in caplog.text

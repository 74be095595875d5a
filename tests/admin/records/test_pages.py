"""Every list and every page answers, in every state, on both sites, and shows what it should."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test import Client
from django.utils import timezone

from dj_queue.api import QueueInfo, schedule_recurring_task
from dj_queue.models import FailedExecution, Job, Pause, Process, RecurringTask, Semaphore
from tests.admin.records.conftest import fail, finish
from tests.project import tasks
from tests.working import claim

pytestmark = pytest.mark.django_db

MODELS = ["job", "failedexecution", "process", "recurringtask", "pause", "semaphore"]


@pytest.fixture
def everything(db: None) -> dict[str, Any]:
    """One row of each kind, and a job in each state."""
    rows: dict[str, Any] = {"failed": fail(), "finished": finish(1, b=2)}
    supervisor = Process.objects.create(kind="Supervisor", pid=1, name="supervisor-1", metadata={"mode": "fork"})
    worker = Process.objects.create(kind="Worker", pid=2, name="worker-1", supervisor=supervisor)
    tasks.one_per_key.using(queue_name="limited").enqueue("k", 1)
    blocked = tasks.one_per_key.using(queue_name="limited").enqueue("k", 2)
    (claimed,) = claim(queues=["limited"], process_id=worker.pk)
    ready = tasks.add.using(priority=7).enqueue(1, 2)
    scheduled = tasks.add.using(run_after=timezone.now() + timedelta(hours=1)).enqueue(1, 2)
    QueueInfo("held/ö %").pause()
    schedule_recurring_task(key="nightly", task_path="tests.project.tasks.add", schedule="0 3 * * *", args=[1, 2])
    ids = {"blocked": blocked.id, "claimed": claimed.claim.job_id, "ready": ready.id, "scheduled": scheduled.id}
    rows |= {state: Job.objects.get(pk=job_id) for state, job_id in ids.items()}
    return rows


@pytest.mark.parametrize("site", ["admin", "console"])
@pytest.mark.parametrize("model", MODELS)
def test_a_list_and_each_of_its_pages(everything: dict[str, Any], admin_client: Client, site: str, model: str) -> None:
    page = admin_client.get(f"/{site}/dj_queue/{model}/")
    assert page.status_code == 200
    rows = page.context["cl"].result_list
    assert rows
    for row in rows:
        address = page.context["cl"].url_for_result(row)
        assert address.startswith(f"/{site}/dj_queue/{model}/")
        assert address in page.content.decode()
        own = admin_client.get(address)
        assert own.status_code == 200
        assert f"/{'console' if site == 'admin' else 'admin'}/dj_queue/" not in own.content.decode()


@pytest.mark.parametrize("model", MODELS)
def test_an_empty_list(admin_client: Client, model: str) -> None:
    page = admin_client.get(f"/admin/dj_queue/{model}/")
    assert page.status_code == 200
    assert "There are no" in page.content.decode()


@pytest.mark.parametrize("model", MODELS)
def test_nothing_is_added_deleted_or_changed_by_djangos_own_means(
    everything: dict[str, Any], admin_client: Client, model: str
) -> None:
    row = admin_client.get(f"/admin/dj_queue/{model}/").context["cl"].result_list[0]
    base = f"/admin/dj_queue/{model}"
    assert admin_client.get(f"{base}/add/").status_code == 403
    assert admin_client.get(f"{base}/{row.pk}/delete/").status_code == 403
    assert admin_client.post(f"{base}/{row.pk}/delete/", {"post": "yes"}).status_code == 403
    assert admin_client.post(f"{base}/{row.pk}/change/", {"priority": 3}).status_code == 400
    admin_client.post(f"{base}/", {"action": "delete_selected", "_selected_action": [row.pk], "index": 0})
    assert type(row).objects.filter(pk=row.pk).exists()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("pk", ["0", "nonsense", "9" * 40, "a_0Ab", "00000000-0000-0000-0000-000000000000", "_00"])
def test_an_unknown_row_leads_back_to_the_list_calmly(admin_client: Client, model: str, pk: str) -> None:
    for method in (admin_client.get, lambda address: admin_client.post(address, {"_djq_object_action": "retry"})):
        answer = method(f"/admin/dj_queue/{model}/{pk}/change/")
        assert answer.status_code in (302, 400)
    page = admin_client.get(f"/admin/dj_queue/{model}/{pk}/change/", follow=True)
    assert "Nothing was changed" in page.content.decode()


def test_the_short_address_leads_to_the_page(everything: dict[str, Any], admin_client: Client) -> None:
    job = everything["failed"]
    page = admin_client.get(f"/admin/dj_queue/job/{job.pk}/?backend=default", follow=True)
    assert page.redirect_chain == [(f"/admin/dj_queue/job/{job.pk}/change/?backend=default", 302)] or (
        page.status_code == 200
    )


def test_what_the_page_of_a_failed_job_tells(everything: dict[str, Any], admin_client: Client) -> None:
    job = everything["failed"]
    text = admin_client.get(f"/admin/dj_queue/job/{job.pk}/change/").content.decode()
    for expected in ("tests.project.tasks.fail", "builtins.ValueError", "Traceback (most recent call last)", "message"):
        assert expected in text
    assert 'value="retry"' in text
    assert 'value="discard"' in text
    assert 'value="enqueue"' in text


def test_what_the_pages_of_the_other_states_tell(everything: dict[str, Any], admin_client: Client) -> None:
    def page(state: str) -> str:
        return admin_client.get(f"/admin/dj_queue/job/{everything[state].pk}/change/").content.decode()

    assert "&quot;kwargs&quot;" in page("finished")
    assert 'value="discard"' not in page("finished")
    worker = Process.objects.get(name="worker-1")
    assert f"/admin/dj_queue/process/{worker.pk}/change/?backend=default" in page("claimed")
    assert 'value="discard"' not in page("claimed")
    # Who holds the key, and who waits, link to each other.
    assert str(everything["claimed"].pk) in page("blocked")
    assert str(everything["blocked"].pk) in page("claimed")
    assert re.search(r"in (5\d min|1 h)", page("scheduled"))  # as busy as the machine is
    assert "<dd>7</dd>" in page("ready")


def test_the_pages_of_the_runtime(everything: dict[str, Any], admin_client: Client) -> None:
    supervisor, worker = Process.objects.order_by("pk")
    text = admin_client.get(f"/admin/dj_queue/process/{supervisor.pk}/change/").content.decode()
    assert "worker-1" in text
    assert "&quot;mode&quot;: &quot;fork&quot;" in text
    assert (
        str(everything["claimed"].pk)
        in admin_client.get(f"/admin/dj_queue/process/{worker.pk}/change/").content.decode()
    )
    task = RecurringTask.objects.get()
    page = admin_client.get(f"/admin/dj_queue/recurringtask/{task.pk}/change/")
    assert [at.strftime("%H:%M") for at in page.context["next_runs"]] == ["03:00"] * 5
    semaphore = Semaphore.objects.get()
    page = admin_client.get(f"/admin/dj_queue/semaphore/{semaphore.pk}/change/")
    assert [job.pk for job, _ in page.context["holders"]] == [everything["claimed"].pk]
    assert [job.pk for job, _ in page.context["waiters"]] == [everything["blocked"].pk]
    assert "held/ö %" in admin_client.get(f"/admin/dj_queue/pause/{Pause.objects.get().pk}/change/").content.decode()


@pytest.mark.parametrize("model", MODELS)
def test_an_unknown_backend_or_state_is_not_found(admin_client: Client, model: str) -> None:
    assert admin_client.get(f"/admin/dj_queue/{model}/?backend=nowhere").status_code == 404
    assert admin_client.get(f"/admin/dj_queue/{model}/1/change/?backend=nowhere").status_code == 404
    if model == "job":
        assert admin_client.get("/admin/dj_queue/job/?status=lost").status_code == 404


def test_another_backends_rows_are_not_there(two_backends: None, admin_client: Client) -> None:
    job = fail(alias="other")
    failure = FailedExecution.objects.get()
    for model, row in (("job", job), ("failedexecution", failure)):
        assert admin_client.get(f"/admin/dj_queue/{model}/").context["cl"].result_list == []
        assert admin_client.get(f"/admin/dj_queue/{model}/{row.pk}/change/").status_code == 302
        assert admin_client.get(f"/admin/dj_queue/{model}/?backend=other").context["cl"].result_list == [row]
        assert admin_client.get(f"/admin/dj_queue/{model}/{row.pk}/change/?backend=other").status_code == 200


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("page", ["", "1/change/", "1/history/", "bulk/?verb=retry", "groups/"])
def test_a_database_that_is_down_gives_a_calm_page(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch, model: str, page: str
) -> None:
    def down(*args: Any, **kwargs: Any) -> Any:
        raise OperationalError("server closed the connection unexpectedly at 10.0.0.7")

    monkeypatch.setattr(connection, "cursor", down)
    for method in (admin_client.get, admin_client.post):
        answer = method(f"/admin/dj_queue/{model}/{page}")
        assert answer.status_code == 503
        assert "10.0.0.7" not in answer.content.decode()


def test_each_page_loads_the_consoles_script_once(everything: dict[str, Any], admin_client: Client) -> None:
    job = everything["failed"]
    for page in ("job/", f"job/{job.pk}/change/", "failedexecution/groups/", "failedexecution/bulk/?verb=retry"):
        assert admin_client.get(f"/admin/dj_queue/{page}").content.decode().count("console.js") == 1

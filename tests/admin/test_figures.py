"""Numbers that stand beside each other agree."""

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from dj_queue.api import QueueInfo
from dj_queue.models import Job, ReadyExecution
from dj_queue.operations import history
from dj_queue_admin.dashboard import overview
from dj_queue_admin.dashboard.charts import Chart
from tests.project.tasks import add, one_per_key
from tests.test_history import job_at, store

pytestmark = pytest.mark.django_db

DASHBOARD = "/admin/dj_queue/dashboard/"


def charts(client: Client, path: str = "") -> dict[str, Chart]:
    return {chart.key: chart for chart in client.get(f"{DASHBOARD}{path}").context["charts"]}


def backlog(count: int, *, hours: float) -> None:
    jobs = [job_at(timezone.now() - timedelta(hours=hours, seconds=n % 60)) for n in range(count)]
    store(jobs)
    ReadyExecution.objects.bulk_create(
        ReadyExecution(job=job, backend_alias="default", queue_name="default", priority=0) for job in jobs
    )


@pytest.mark.parametrize("path", ["", "queue/default/"])
@pytest.mark.parametrize("hours", [0.1, 1.5, 30])
def test_what_waits_now_is_the_backlog(admin_client: Client, path: str, hours: float) -> None:
    backlog(230, hours=hours)
    chart = charts(admin_client, path)["depth"]
    assert chart.note == "230 ready, 0 blocked now"
    assert chart.hits[-1].text == "waiting 230"
    assert chart.hits[-30].text == f"waiting {230 if hours > 1 else 0}"


def test_blocked_jobs_wait_too(admin_client: Client) -> None:
    add.enqueue(1, 2)
    for _ in range(3):
        one_per_key.enqueue("k")
    chart = charts(admin_client)["depth"]
    assert (chart.note, chart.hits[-1].text) == ("2 ready, 2 blocked now", "waiting 4")


def test_a_backlog_beyond_what_is_counted_is_at_least_that(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "CAP", 100)
    backlog(230, hours=30)
    assert charts(admin_client)["depth"].note == "at least 100 ready, 0 blocked now"
    assert int(charts(admin_client)["depth"].hits[-1].text.removeprefix("waiting ")) >= 100


def test_no_more_finished_than_are_stored(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    start = timezone.now() - timedelta(minutes=30)
    at = [start + timedelta(milliseconds=100 * n) for n in range(2000)]
    jobs = [job_at(each, started_at=each, finished_at=each if n % 600 < 90 else None) for n, each in enumerate(at)]
    store(jobs)
    ReadyExecution.objects.bulk_create(
        ReadyExecution(job=job, backend_alias="default", queue_name="default", priority=0)
        for job in jobs
        if job.finished_at is None
    )
    finished = Job.objects.finished().count()
    note = charts(admin_client)["throughput"].note
    assert note == f"{finished} finished"
    monkeypatch.setattr(history, "READ", 100)
    monkeypatch.setattr(history, "SAMPLE", 4)
    about = charts(admin_client)["throughput"].note
    assert about.startswith("about ")
    assert int(about.split()[1].replace(",", "")) <= finished


def test_a_backlog_of_paused_queues_is_said_to_be_one(admin_client: Client) -> None:
    def backlog_card() -> tuple[str, str]:
        card = next(card for card in admin_client.get(DASHBOARD).context["cards"] if card.key == "backlog")
        return card.value, card.details[-1]

    assert backlog_card() == ("0", "nothing is ready")
    add.enqueue(1, 2)
    QueueInfo("default").pause()
    assert backlog_card() == ("1", "all in paused queues")
    add.using(queue_name="other").enqueue(1, 2)
    assert backlog_card()[1].startswith("longest wait ")

"""Large jobs: their pages show a bounded part of them, and hide all the same."""

from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from dj_queue.models import ClaimedExecution, Job, Process
from dj_queue_admin.records import job_page
from dj_queue_admin.redaction import redaction
from tests.admin.records.conftest import fail
from tests.project.tasks import echo

pytestmark = pytest.mark.django_db

KWARGS: dict[str, Any] = {f"k{n}": n for n in range(5_000)}


def page(client: Client, job: Job) -> str:
    return client.get(f"/admin/dj_queue/job/{job.pk}/change/").content.decode()


@pytest.mark.parametrize(
    "payload", [{"args": list(range(5_000)), "kwargs": {}}, {"args": [], "kwargs": KWARGS}], ids=["args", "kwargs"]
)
def test_so_many_arguments_are_shown(admin_client: Client, payload: dict[str, Any]) -> None:
    html = page(admin_client, Job.objects.create(task_path="a.b", payload=payload))
    assert html.count("Value of ") == job_page.ARGUMENTS
    assert f"and {5_000 - job_page.ARGUMENTS} more" in html


def test_what_is_hidden_beyond_them_is_hidden_in_them(admin_client: Client) -> None:
    kwargs = {"note": "with hunter22", **KWARGS, "password": "hunter22"}
    assert "hunter22" not in page(
        admin_client, Job.objects.create(task_path="a.b", payload={"args": [], "kwargs": kwargs})
    )


def test_long_lists_and_mappings_are_cut() -> None:
    for value in ([1] * 100_000, {f"k{n}": n for n in range(100_000)}, [[[1] * 100] * 100] * 100):
        assert len(str(redaction().of(value))) < 1_000_000
    kept = [{"a": 1}, ["token", "x"], "text", 7]
    assert redaction().of(kept) == [{"a": 1}, ["token", "\N{BULLET}" * 6], "text", 7]


def test_so_many_attempts_are_shown(admin_client: Client) -> None:
    job = fail("the last one")
    Job.objects.filter(pk=job.pk).update(errors=[["x.E", f"traceback {n}."] for n in range(1, 101)])
    html = page(admin_client, job)
    assert "Attempt 101" in html
    assert "traceback 100." in html
    assert "traceback 81." in html
    assert "traceback 80." not in html
    assert "and 80 earlier" in html


def test_a_process_with_many_jobs_costs_as_many_statements_as_one_with_one(admin_client: Client) -> None:
    counts = []
    process = Process.objects.create(kind="Worker", pid=1, name="w", metadata={})
    for n in (1, 30):
        for _ in range(n):
            job = Job.objects.get(pk=echo.enqueue("x").id)
            ClaimedExecution.objects.create(job=job, process=process)
        with CaptureQueriesContext(connection) as ran:
            assert admin_client.get(f"/admin/dj_queue/process/{process.pk}/change/").status_code == 200
        counts.append(len(ran))
    assert counts[1] == counts[0] < 20

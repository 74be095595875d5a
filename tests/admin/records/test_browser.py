"""Lists, pages and bulk actions in a real Chromium, under the site's content policy."""

from collections.abc import Callable

import pytest
from django.contrib.admin.models import LogEntry
from playwright.sync_api import Dialog, Page, expect

from dj_queue.models import BlockedExecution, FailedExecution, Job, Process, RecurringTask, Semaphore
from tests.admin import scenery
from tests.admin.browser import CHROMIUM
from tests.admin.conftest import Visitor
from tests.admin.records.conftest import fail_many
from tests.admin.test_browser import overflow, serious
from tests.conftest import wait_until

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    pytest.mark.django_db(transaction=True),
]

type Visit = Callable[..., Visitor]

HERE = "/admin/dj_queue/"


def _pages() -> dict[str, str]:
    failed = FailedExecution.objects.order_by("-pk").values_list("pk", "job_id")[0]
    return {
        "jobs": "job/",
        "a search": "job/?q=order&status=failed&since=24h",
        "nothing": "job/?queue=none",
        "failures": "failedexecution/",
        "groups": "failedexecution/groups/",
        "asking": "failedexecution/bulk/?verb=discard",
        "a failed job": f"job/{failed[1]}/change/",
        "a failure": f"failedexecution/{failed[0]}/change/",
        "a blocked job": f"job/{BlockedExecution.objects.values_list('job_id', flat=True)[0]}/change/",
        "a finished job": f"job/{Job.objects.finished().values_list('pk', flat=True)[0]}/change/",
        "processes": "process/",
        "a supervisor": f"process/{Process.objects.filter(kind='Supervisor').values_list('pk', flat=True)[0]}/change/",
        "recurring tasks": "recurringtask/",
        "a recurring task": f"recurringtask/{RecurringTask.objects.values_list('pk', flat=True)[0]}/change/",
        "semaphores": "semaphore/",
        "a semaphore": f"semaphore/{Semaphore.objects.values_list('pk', flat=True)[0]}/change/",
        "pauses": "pause/",
    }


@pytest.mark.timeout(400)
def test_every_page_is_accessible_and_fits_a_narrow_screen(visitor: Visit) -> None:
    scenery.fill(minutes=40)
    wide, dark = visitor(), visitor(color_scheme="dark")
    narrow = visitor(viewport={"width": 360, "height": 740})
    for name, address in _pages().items():
        page = wide.visit(f"{HERE}{address}")
        assert serious(page) == [], name
        page = dark.visit(f"{HERE}{address}")
        assert serious(page, colours=True) == [], name
        page = narrow.visit(f"{HERE}{address}")
        assert overflow(page) <= 0, name


def test_a_job_is_found_read_and_retried(visitor: Visit) -> None:
    scenery.fill(minutes=40)
    job = FailedExecution.objects.order_by("-pk")[0].job
    page = visitor().visit(f"{HERE}job/")
    page.get_by_role("searchbox", name="Search").fill(str(job.pk))
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("#result_list tbody tr")).to_have_count(1)
    page.locator("#result_list").get_by_role("link", name=job.task_path).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(job.task_path)
    expect(page.get_by_label("Traceback of attempt 1")).to_contain_text("Traceback")
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_text("The job will run again.")).to_be_visible()
    expect(page.get_by_role("button", name="Retry")).to_have_count(0)
    page.get_by_role("link", name="History").click()
    expect(page.get_by_text("Retried.")).to_be_visible()
    assert not FailedExecution.objects.filter(job_id=job.pk).exists()


def test_discarding_asks_first(visitor: Visit) -> None:
    fail_many(1)
    job = Job.objects.get()
    page = visitor().visit(f"{HERE}job/{job.pk}/change/")
    asked: list[str] = []

    def answer(dialog: Dialog) -> None:
        asked.append(dialog.message)
        if len(asked) == 1:
            dialog.dismiss()
        else:
            dialog.accept()

    page.on("dialog", answer)
    page.get_by_role("button", name="Discard").click()
    wait_until(lambda: page.evaluate("1") and len(asked) == 1)
    assert Job.objects.exists()
    page.get_by_role("button", name="Discard").click()
    wait_until(lambda: page.evaluate("1") and len(asked) == 2)
    expect(page.get_by_text("Discarded tests.project.tasks.fail")).to_be_visible()
    assert not Job.objects.exists()


def test_all_that_match_are_retried_after_a_question(visitor: Visit) -> None:
    fail_many(130)
    fail_many(3, exception="a.B")
    page = visitor().visit(f"{HERE}failedexecution/?exception_class=builtins.ValueError")
    page.get_by_label("Select all objects on this page for an action").check()
    page.get_by_role("button", name="Select all 130 that match").click()
    expect(page.get_by_text("All 130 selected")).to_be_visible()
    _run(page, "Retry")
    expect(page.get_by_text("130 failed jobs of default")).to_be_visible()
    assert FailedExecution.objects.count() == 133
    page.get_by_role("button", name="Retry 130").click()
    expect(page.get_by_text("Retried 130 jobs")).to_be_visible()
    assert FailedExecution.objects.count() == 3
    assert LogEntry.objects.count() == 1


def test_a_few_are_retried_at_once(visitor: Visit) -> None:
    fail_many(3)
    page = visitor().visit(f"{HERE}failedexecution/")
    for n in (0, 2):
        page.locator("input.action-select").nth(n).check()
    _run(page, "Retry")
    expect(page.get_by_text("Retried 2 jobs.")).to_be_visible()
    assert FailedExecution.objects.count() == 1


def test_a_group_is_discarded(visitor: Visit) -> None:
    fail_many(4)
    fail_many(2, exception="a.B")
    page = visitor().visit(f"{HERE}failedexecution/groups/")
    page.get_by_role("row", name="a.B").get_by_role("link", name="Discard").click()
    expect(page.get_by_text("cannot be brought back")).to_be_visible()
    page.get_by_role("button", name="Discard 2").click()
    expect(page.get_by_text("Discarded 2 jobs")).to_be_visible()
    assert set(FailedExecution.objects.values_list("exception_class", flat=True)) == {"builtins.ValueError"}


def test_times_are_the_viewers_and_the_exact_one_is_on_hover(visitor: Visit) -> None:
    fail_many(1)
    job = Job.objects.get()
    page = visitor(timezone_id="Asia/Tokyo", locale="en-GB").visit(f"{HERE}job/{job.pk}/change/")
    time = page.locator(".djq-timeline time").first
    assert "GMT+9" in (time.get_attribute("title") or "") or "JST" in (time.get_attribute("title") or "")


def _run(page: Page, action: str) -> None:
    page.get_by_label("Action:").select_option(label=action)
    page.get_by_role("button", name="Run").click()

"""The dashboard in a real Chromium, with a content policy that allows nothing but the site's own files."""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.admin.models import LogEntry
from django.db import OperationalError
from playwright.sync_api import Page, expect

from dj_queue.api import QueueInfo
from dj_queue.models import FailedExecution, Job
from dj_queue_admin.dashboard import overview
from tests.admin import scenery
from tests.admin.browser import CHROMIUM
from tests.admin.conftest import Visitor
from tests.conftest import wait_until
from tests.project.tasks import add, fail
from tests.working import work

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    pytest.mark.django_db(transaction=True),
]

type Visit = Callable[..., Visitor]


def failed(count: int, queue: str = "q") -> list[Any]:
    results = [fail.using(queue_name=queue).enqueue() for _ in range(count)]
    work()
    assert FailedExecution.objects.filter(queue_name=queue).count() == count
    return results


def serious(page: Page, *, colours: bool = False) -> list[str]:
    """What the accessibility check finds serious or critical: of everything, or of what a colour scheme changes."""
    options = {"runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}} if colours else None
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{each['id']} ({each['impact']}): {each['help']}: {node['html'][:200]}"
        for each in found
        if each["impact"] in {"serious", "critical"}
        for node in each["nodes"]
    ]


def overflow(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


# ---- what there is to see ---------------------------------------------------------------------------


def test_overview_and_drill_down(visitor: Visit) -> None:
    scenery.fill(minutes=70)
    each = visitor()
    page = each.visit("/admin/dj_queue/")
    assert page.url.endswith("/admin/dj_queue/dashboard/")
    answer = page.reload()
    assert answer is not None
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    for title in ("Over time", "Queues", "Processes", "Recurring tasks", "Semaphores", "Configuration"):
        expect(page.get_by_role("region", name=title, exact=True).first).to_be_visible()
    expect(page.locator("svg rect.djq-ok").first).to_be_visible()
    page.get_by_role("link", name="webhooks", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("webhooks")
    page.get_by_role("navigation", name="States").get_by_role("link", name="Finished").click()
    expect(page.locator("table.djq-jobs tbody tr")).to_have_count(100)
    page.get_by_role("link", name="Next").click()
    expect(page.get_by_role("navigation", name="Pages of jobs")).to_contain_text("101")
    page.get_by_label("Search finished jobs").fill("no such thing")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_text("No finished job matches.")).to_be_visible()


def test_the_charts_answer_to_the_pointer_and_are_tables_too(visitor: Visit) -> None:
    scenery.fill(minutes=70)
    page = visitor().visit()
    chart = page.locator("#djq-chart-throughput")
    before = chart.locator("[data-djq-note]").inner_text()
    chart.locator(".djq-hit").nth(30).hover(force=True)
    expect(chart.locator("[data-djq-note]")).to_contain_text("finished ")
    expect(chart.locator("[data-djq-note]")).to_contain_text("enqueued ")
    page.get_by_role("heading", level=1).hover()
    expect(chart.locator("[data-djq-note]")).to_have_text(before)
    chart.locator("summary").click()
    assert chart.locator("tbody tr").count() >= 50


def test_times_are_the_visitors(visitor: Visit) -> None:
    add.using(queue_name="q").enqueue(1, 2)
    for zone in ("Asia/Tokyo", "America/New_York"):
        page = visitor(timezone_id=zone, locale="en-GB").visit("queue/q/?state=ready")
        time = page.locator("#djq-jobs-panel time").first
        expect(time).to_contain_text("ago")
        at = datetime.fromisoformat(time.get_attribute("datetime") or "").astimezone(ZoneInfo(zone))
        assert f"{at:%H:%M:%S}" in (time.get_attribute("title") or "")


def test_dark_and_light(visitor: Visit) -> None:
    scenery.fill(minutes=10)
    page = visitor().visit()
    background = "getComputedStyle(document.querySelector('.djq-card')).backgroundColor"
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(background)
    assert light != dark
    page.emulate_media(color_scheme="light")
    for _ in range(3):  # auto, light, dark
        page.locator("header .theme-toggle").click()
        if page.evaluate("document.documentElement.dataset.theme") == "dark":
            break
    assert page.evaluate(background) == dark


@pytest.mark.parametrize("path", ["", "queue/webhooks/?state=failed", "queue/email/?state=finished", "?range=7d"])
def test_a_narrow_window_never_scrolls_sideways(visitor: Visit, path: str) -> None:
    scenery.fill(minutes=40)
    add.using(queue_name="x" * 64).enqueue(1, 2)
    page = visitor(viewport={"width": 360, "height": 740}).visit(path)
    assert overflow(page) <= 0


def test_the_accessibility_check_finds_something(visitor: Visit) -> None:
    page = visitor().visit()
    page.evaluate("document.querySelector('h1').innerHTML = '<button></button>'")
    assert [found for found in serious(page) if found.startswith("button-name")]
    page.evaluate("h1 = document.querySelector('h1'); h1.innerText = 'pale'; h1.style.color = '#eee'")
    assert [found for found in serious(page, colours=True) if found.startswith("color-contrast")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(visitor: Visit, scheme: str) -> None:
    colours = scheme == "dark"  # the rest is the same
    each = visitor(color_scheme=scheme)
    assert serious(each.visit(), colours=colours) == []  # empty
    scenery.fill(minutes=60)
    for path in ("", "queue/webhooks/?state=failed", "queue/search-index/?state=ready", "queue/email/?q=nothing"):
        assert serious(each.visit(path), colours=colours) == [], path
    narrow = visitor(color_scheme=scheme, viewport={"width": 360, "height": 740})
    assert serious(narrow.visit(), colours=colours) == []


# ---- what there is to do ----------------------------------------------------------------------------


def test_pause_and_resume(visitor: Visit) -> None:
    add.using(queue_name="q").enqueue(1, 2)
    page = visitor().visit()
    page.get_by_role("button", name="Pause q").click()
    expect(page.get_by_text("The queue q is paused")).to_be_visible()
    assert QueueInfo("q").paused
    page.get_by_role("button", name="Resume q").click()
    expect(page.get_by_text("The queue q goes on.")).to_be_visible()
    assert not QueueInfo("q").paused
    assert [entry.user.username for entry in LogEntry.objects.all()] == ["admin", "admin"]


def test_clearing_asks_first(visitor: Visit) -> None:
    for n in range(3):
        add.using(queue_name="q").enqueue(n, n)
    page = visitor().visit()
    asked: list[str] = []

    def answer(yes: bool) -> Callable[[Any], None]:
        def reply(dialog: Any) -> None:
            asked.append(dialog.message)
            if yes:
                dialog.accept()
            else:
                dialog.dismiss()

        return reply

    page.once("dialog", answer(False))
    page.get_by_role("button", name="Clear q").click()
    assert Job.objects.count() == 3
    page.once("dialog", answer(True))
    page.get_by_role("button", name="Clear q").click()
    expect(page.get_by_text("3 ready jobs of the queue q discarded.")).to_be_visible()
    assert asked == 2 * ["Discard all 3 ready jobs of q? This cannot be undone."]
    assert Job.objects.count() == 0


def test_select_and_retry(visitor: Visit) -> None:
    failed(3)
    page = visitor().visit("queue/q/?state=failed")
    retry = page.get_by_role("button", name="Retry")
    expect(retry).to_be_disabled()
    page.get_by_role("checkbox", name="Select all on this page").check()
    expect(page.get_by_text("3 of 3 selected")).to_be_visible()
    page.locator("input[name=_selected_action]").first.uncheck()
    retry.click()
    expect(page.get_by_text("Retried 2 jobs.")).to_be_visible()
    assert (FailedExecution.objects.count(), Job.objects.ready().count()) == (1, 2)


def test_without_javascript(visitor: Visit) -> None:
    failed(2)
    page = visitor(java_script_enabled=False).visit()
    page.get_by_role("button", name="Pause q").click()
    expect(page.get_by_text("The queue q is paused")).to_be_visible()
    page.get_by_role("link", name="2 failed of q").click()
    page.locator("input[name=_selected_action]").first.check()
    page.get_by_role("button", name="Retry").click()
    expect(page.get_by_text("Retried 1 job.")).to_be_visible()


# ---- live -------------------------------------------------------------------------------------------


def test_changes_are_seen_without_reloading(visitor: Visit) -> None:
    add.using(queue_name="q").enqueue(1, 2)
    page = visitor().visit()
    page.evaluate("window.stillHere = true")
    link = page.get_by_role("link", name="q", exact=True)
    page.locator("#djq-chart-failures summary").click()
    link.focus()
    top = "document.querySelector('#djq-queues-title').getBoundingClientRect().top"
    before = page.evaluate(top)
    failed(2, "other")
    expect(page.get_by_role("link", name="2 failed of other")).to_be_visible(timeout=30_000)
    expect(page.locator("#djq-alerts")).to_contain_text("2 jobs have failed.")
    expect(page.locator("[data-djq-said]")).to_contain_text("2 jobs have failed.")
    assert page.evaluate("window.stillHere")
    assert page.evaluate("document.activeElement.textContent") == "q"
    assert page.evaluate("document.activeElement.isConnected")
    assert abs(page.evaluate(top) - before) < 2  # what the visitor looks at stays in its place
    assert page.locator("#djq-chart-failures details").get_attribute("open") is not None


def test_live_can_be_turned_off_and_stays_off(visitor: Visit) -> None:
    add.using(queue_name="q").enqueue(1, 2)
    page = visitor().visit()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.headers.get("dj-queue-live") else None)
    page.get_by_role("button", name="Live").click()
    page.reload()
    expect(page.get_by_role("button", name="Live")).to_have_attribute("aria-pressed", "false")
    page.clock.install()
    page.clock.fast_forward(60_000)
    assert asked == []
    add.using(queue_name="r").enqueue(1, 2)
    page.get_by_role("link", name="Refresh").click()
    expect(page.get_by_role("link", name="r", exact=True)).to_be_visible()
    assert len(asked) == 1


def test_a_selection_is_not_disturbed(visitor: Visit) -> None:
    failed(2)
    page = visitor().visit("queue/q/?state=failed")
    box = page.locator("input[name=_selected_action]").first
    box.check()
    failed(1, "noise")
    fail.using(queue_name="q").enqueue()
    work()
    page.clock.install()
    page.clock.fast_forward(20_000)
    expect(page.locator("table.djq-jobs tbody tr")).to_have_count(2)
    box.uncheck()
    page.get_by_role("link", name="Refresh").click()
    expect(page.locator("table.djq-jobs tbody tr")).to_have_count(3)


def test_a_database_that_is_down_and_comes_back(visitor: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = overview.context

    def down(*args: Any) -> Any:
        raise OperationalError("the server is gone")

    each = visitor()
    monkeypatch.setattr(overview, "context", down)
    page = each.visit()
    expect(page.get_by_role("heading", level=1)).to_contain_text("out of reach")
    assert serious(page) == []
    assert overflow(page) <= 0
    monkeypatch.setattr(overview, "context", usual)
    expect(page.get_by_role("heading", level=1)).to_have_text("Dashboard", timeout=30_000)
    # The browser itself notes the 503.
    wait_until(lambda: each.complaints)
    assert all("503" in complaint for complaint in each.complaints)
    each.complaints.clear()

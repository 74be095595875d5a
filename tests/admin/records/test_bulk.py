"""One verb on everything that a filter matches: asked, done in pieces, once, and written down."""

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from dj_queue.models import FailedExecution, Job, ReadyExecution
from dj_queue_admin.records import bulk, selection
from tests.admin.records.conftest import Operator, fail, fail_many, finish
from tests.admin.records.test_actions import said
from tests.project import tasks

pytestmark = pytest.mark.django_db

RETRY = "/admin/dj_queue/failedexecution/bulk/?verb=retry"
DISCARD = "/admin/dj_queue/failedexecution/bulk/?verb=discard"


def test_it_asks_with_the_count_and_then_does_it(admin_client: Client) -> None:
    fail_many(1200)
    page = admin_client.get(RETRY)
    assert "<strong>1,200</strong> failed jobs of default" in page.content.decode()
    assert "Retry 1,200" in page.content.decode()
    assert FailedExecution.objects.count() == 1200
    answer = admin_client.post(RETRY)
    assert answer["Location"] == "/admin/dj_queue/failedexecution/"
    assert said(answer) == "Retried 1,200 jobs: failed jobs of default."
    assert (FailedExecution.objects.count(), ReadyExecution.objects.count()) == (0, 1200)
    entry = LogEntry.objects.get()
    assert (entry.object_repr, entry.change_message) == (
        "failed jobs of default",
        "Retried 1,200 jobs: failed jobs of default.",
    )


def test_a_list_leads_there_when_all_that_match_are_chosen(admin_client: Client) -> None:
    fail_many(150)
    row = FailedExecution.objects.first()
    assert row is not None
    data = {"action": "retry_jobs", "_selected_action": [row.pk], "select_across": "1", "index": "0"}
    answer = admin_client.post(
        "/admin/dj_queue/failedexecution/?backend=default&task=tests.project.tasks.fail&p=1", data
    )
    assert answer["Location"].startswith(RETRY)
    assert "task=tests.project.tasks.fail" in answer["Location"]
    assert FailedExecution.objects.count() == 150
    assert "150" in admin_client.get(answer["Location"]).content.decode()


def test_only_what_matches(two_backends: None, admin_client: Client) -> None:
    fail_many(3)
    fail_many(4, exception="a.B")
    fail_many(5, alias="other", exception="a.B")
    fail_many(6, task=tasks.echo, exception="a.B")
    address = f"{RETRY}&backend=default&exception_class=a.B&task=tests.project.tasks.fail"
    assert "<strong>4</strong> failed jobs of default" in admin_client.get(address).content.decode()
    admin_client.post(address)
    assert FailedExecution.objects.count() == 14
    assert set(ReadyExecution.objects.values_list("backend_alias", flat=True)) == {"default"}
    admin_client.post(f"{DISCARD}&backend=other&q=number 3")
    assert FailedExecution.objects.filter(backend_alias="other").count() == 4
    admin_client.post(f"{DISCARD}&backend=other&queue=nowhere")
    assert FailedExecution.objects.filter(backend_alias="other").count() == 4


def test_older_ones_than_the_window_are_reached(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "WINDOW", 10)
    monkeypatch.setattr(bulk, "PIECE", 7)
    fail_many(30, exception="a.B")
    fail_many(20)
    page = admin_client.get(f"{RETRY}&exception_class=a.B").content.decode()
    assert "There are no failed jobs of default" in page
    assert "reaches the older ones, too" in page
    admin_client.post(f"{RETRY}&exception_class=a.B")
    assert set(FailedExecution.objects.values_list("exception_class", flat=True)) == {"builtins.ValueError"}
    assert ReadyExecution.objects.count() == 30


def test_a_budget_of_time_and_going_on(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "PIECE", 20)
    now = [0.0]

    def clock() -> float:
        now[0] += 2
        return now[0]

    monkeypatch.setattr(bulk.time, "monotonic", clock)
    fail_many(100)
    page, rounds, done = admin_client.post(RETRY), 1, 40
    while page.status_code == 200:
        text = page.content.decode()
        assert f"{done} retried so far." in text
        assert "Go on" in text
        assert FailedExecution.objects.count() == 100 - done
        data = {
            name: page.context[context]
            for name, context in (("after", "after"), ("last", "last"), ("done", "done_plain"))
        }
        page, rounds, done = admin_client.post(RETRY, data), rounds + 1, done + 40
    assert rounds == 3
    assert said(page) == "Retried 100 jobs: failed jobs of default."
    assert LogEntry.objects.count() == 3


def test_what_fails_again_meanwhile_is_not_retried_twice(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_many(5)
    page = admin_client.get(RETRY)
    later = fail()
    admin_client.post(RETRY, {"after": "0", "last": page.context["last"], "done": "0"})
    assert list(FailedExecution.objects.values_list("job_id", flat=True)) == [later.pk]


def test_a_second_time_finds_nothing_and_says_so(admin_client: Client) -> None:
    fail_many(3)
    for expected in ("Retried 3 jobs", "Nothing to retry"):
        assert expected in said(admin_client.post(RETRY))
    assert LogEntry.objects.count() == 1


@pytest.mark.parametrize("state", ["ready", "scheduled", "blocked", "failed"])
def test_waiting_jobs_are_discarded_by_state(admin_client: Client, state: str) -> None:
    from tests.admin.records.test_actions import _in_state

    job = fail() if state == "failed" else _in_state(state)
    done = finish(1)
    address = f"/admin/dj_queue/job/bulk/?verb=discard&status={state}"
    assert "cannot be brought back" in admin_client.get(address).content.decode()
    admin_client.post(address)
    assert not Job.objects.filter(pk=job.pk).exists()
    assert Job.objects.filter(pk=done.pk).exists()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("verb=discard", "filter by one of these states first: ready, scheduled, blocked, failed"),
        ("verb=discard&status=claimed", "filter by one of these states first"),
        ("verb=discard&status=finished", "filter by one of these states first"),
        ("verb=retry&status=ready", "filter by one of these states first: failed"),
        ("verb=retry&since=never", "correct the filter"),
        ("verb=retry&queue=a%00b", "correct the filter"),
    ],
)
def test_what_cannot_be_done_to_all_is_refused(admin_client: Client, query: str, expected: str) -> None:
    fail()
    tasks.add.enqueue(1, 2)
    for method in (admin_client.get, admin_client.post):
        answer = method(f"/admin/dj_queue/job/bulk/?{query}")
        assert answer.status_code == 302
        assert expected in said(answer)
    assert Job.objects.failed().count() == Job.objects.ready().count() == 1


def test_a_page_without_a_verb_is_not_found(admin_client: Client) -> None:
    assert admin_client.get("/admin/dj_queue/job/bulk/").status_code == 404
    assert admin_client.get("/admin/dj_queue/job/bulk/?verb=explode").status_code == 404
    assert admin_client.put("/admin/dj_queue/job/bulk/?verb=retry").status_code == 405


@pytest.mark.parametrize("progress", [{"after": "x"}, {"after": "-5"}, {"last": "9" * 40}, {"done": "many"}])
def test_a_form_that_somebody_wrote(admin_client: Client, progress: dict[str, str]) -> None:
    fail()
    assert admin_client.post(RETRY, progress).status_code == 302
    assert Job.objects.get().status == "ready"


@pytest.mark.parametrize("model", ["job", "failedexecution"])
@pytest.mark.parametrize("verb", ["retry", "discard"])
def test_its_permissions(operator: Operator, model: str, verb: str) -> None:
    fail()
    right = "change" if verb == "retry" else "delete"
    address = f"/admin/dj_queue/{model}/bulk/?verb={verb}&status=failed"
    other = "delete" if verb == "retry" else "change"
    without = operator("view_job", "view_failedexecution", f"{other}_job", f"{other}_failedexecution")
    assert without.get(address).status_code == without.post(address).status_code == 403
    assert Job.objects.get().status == "failed"
    allowed = operator(f"{right}_{model}")
    assert allowed.get(address).status_code == 200
    assert allowed.post(address).status_code == 302
    assert not FailedExecution.objects.exists()


def test_it_needs_a_csrf_token(admin_user: Any) -> None:
    fail()
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    assert client.post(RETRY).status_code == 403
    assert Job.objects.get().status == "failed"


# ---- groups ------------------------------------------------------------------------------------------


def test_failures_by_exception_and_task(two_backends: None, admin_client: Client) -> None:
    fail_many(3)
    fail_many(5, exception="a.B")
    fail_many(2, task=tasks.echo, exception="a.B")
    fail_many(9, alias="other")
    page = admin_client.get("/admin/dj_queue/failedexecution/groups/")
    assert [(group.count_text, group.exception_class, group.task_path) for group in page.context["groups"]] == [
        ("5", "a.B", "tests.project.tasks.fail"),
        ("3", "builtins.ValueError", "tests.project.tasks.fail"),
        ("2", "a.B", "tests.project.tasks.echo"),
    ]
    for group, count in zip(page.context["groups"], (5, 3, 2), strict=True):
        assert group.list_url in page.content.decode().replace("&amp;", "&")
        assert len(admin_client.get(group.list_url).context["cl"].result_list) == count
    admin_client.post(page.context["groups"][0].retry_url)
    admin_client.post(page.context["groups"][2].discard_url)
    left = admin_client.get("/admin/dj_queue/failedexecution/groups/").context["groups"]
    assert [group.count_text for group in left] == ["3"]


def test_groups_say_what_they_looked_at(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from dj_queue_admin.records import failure

    monkeypatch.setattr(failure, "GROUPED", 4)
    fail_many(6)
    page = admin_client.get("/admin/dj_queue/failedexecution/groups/")
    assert [group.count_text for group in page.context["groups"]] == ["4"]
    assert "Of the newest 4 failures" in page.content.decode()


def test_groups_offer_only_what_is_allowed(operator: Operator) -> None:
    fail("a secret of somebody")
    text = operator().get("/admin/dj_queue/failedexecution/groups/").content.decode()
    assert "builtins.ValueError" in text
    assert "a secret of somebody" not in text
    assert "bulk/" not in text
    text = operator("change_failedexecution").get("/admin/dj_queue/failedexecution/groups/").content.decode()
    assert "a secret of somebody" in text
    assert "verb=retry" in text
    assert "verb=discard" not in text


def test_no_groups(admin_client: Client) -> None:
    assert "No job is failed" in admin_client.get("/admin/dj_queue/failedexecution/groups/").content.decode()

"""What lists find: filters, search and windows, and that what is hidden is not found."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from dj_queue.api import QueueInfo, schedule_recurring_task
from dj_queue.config import backend_config
from dj_queue.models import FailedExecution, Job, Process, RecurringTask
from dj_queue.operations import recurring
from dj_queue_admin.records import selection
from tests.admin.records.conftest import Operator, fail, fail_many, finish
from tests.project import tasks
from tests.working import claim

pytestmark = pytest.mark.django_db


def listed(client: Client, model: str = "job", **query: str) -> list[Any]:
    page = client.get(f"/admin/dj_queue/{model}/", query)
    assert page.status_code == 200, page.content
    return list(page.context["cl"].result_list)


@pytest.fixture
def in_each_state() -> dict[str, Job]:
    ids = {"failed": fail().pk, "finished": finish("seen").pk}
    tasks.one_per_key.using(queue_name="claimed").enqueue("k")
    ids["blocked"] = tasks.one_per_key.enqueue("k").id
    ids["claimed"] = claim(queues=["claimed"])[0].claim.job_id
    ids["ready"] = tasks.add.enqueue(1, 2).id
    ids["scheduled"] = tasks.add.using(run_after=timezone.now() + timedelta(hours=1)).enqueue(1, 2).id
    return {state: Job.objects.get(pk=job_id) for state, job_id in ids.items()}


@pytest.mark.parametrize("name", ["status", "state"])
def test_by_state(admin_client: Client, in_each_state: dict[str, Job], name: str) -> None:
    assert set(listed(admin_client)) == set(in_each_state.values())
    for state, job in in_each_state.items():
        assert listed(admin_client, **{name: state}) == [job]
        assert listed(admin_client, **{name: state}, queue=job.queue_name, task=job.task_path) == [job]
        assert listed(admin_client, **{name: state}, since="1h", until="0m", q=str(job.pk)) == [job]
        assert listed(admin_client, **{name: state}, queue="none") == []
        assert listed(admin_client, **{name: state}, since="2099-01-01") == []


def test_the_newest_first_and_what_is_ready_in_the_order_of_claims(admin_client: Client) -> None:
    low = tasks.add.enqueue(1, 2).id
    high = tasks.add.using(priority=5).enqueue(1, 2).id
    assert [str(job.pk) for job in listed(admin_client)] == [high, low]
    assert [str(job.pk) for job in listed(admin_client, status="ready")] == [high, low]
    tasks.add.enqueue(3, 4)
    assert [job.priority for job in listed(admin_client, status="ready")] == [5, 0, 0]
    assert [job.priority for job in listed(admin_client)] == [0, 5, 0]


def test_by_queue_task_key_and_recurring_task(admin_client: Client) -> None:
    held = tasks.one_per_key.using(queue_name="a/b ü %").enqueue("k")
    other = tasks.add.enqueue(1, 2)
    task = schedule_recurring_task(key="tick", task_path="tests.project.tasks.add", schedule="* * * * *", args=[1, 2])
    ticked = recurring.enqueue_tick(backend_config(), task, timezone.now())

    def ids(**query: str) -> set[str]:
        return {str(job.pk) for job in listed(admin_client, **query)}

    assert ids(queue="a/b ü %") == ids(queue_name="a/b ü %") == {held.id}
    assert ids(task="tests.project.tasks.add") == {other.id, ticked.id}
    assert ids(concurrency_key="one:k") == {held.id}
    assert ids(recurring_task_key="tick") == {ticked.id}
    assert ids(recurring_task_key="tick", status="ready") == {ticked.id}
    assert ids(recurring_task_key="tick", status="finished") == set()
    assert ids(recurring_task_key="tick", q="project", since="1h") == {ticked.id}


def test_by_time(admin_client: Client) -> None:
    first = tasks.add.enqueue(1, 2)
    between = timezone.now() + timedelta(milliseconds=2)
    while timezone.now() < between + timedelta(milliseconds=2):
        pass
    second = tasks.add.enqueue(3, 4)
    at = between.isoformat()
    assert [str(job.pk) for job in listed(admin_client, since=at)] == [second.id]
    assert [str(job.pk) for job in listed(admin_client, until=at)] == [first.id]
    assert [str(job.pk) for job in listed(admin_client, until=at, status="ready")] == [first.id]


@pytest.mark.parametrize(
    "query",
    [
        {"since": "yesterday"},
        {"until": "2026-02-31T10:00"},
        {"since": "0001-01-01T00:00"},
        {"until": "99999999d"},
        {"since": "9999-12-31T23:59"},
        {"queue": "a\0b"},
        {"task": "\0"},
        {"q": "\0"},
    ],
)
@pytest.mark.parametrize("model", ["job", "failedexecution"])
def test_a_filter_that_means_nothing_lists_nothing_and_says_so(admin_client: Client, model: str, query: Any) -> None:
    fail()
    page = admin_client.get(f"/admin/dj_queue/{model}/", query)
    assert page.context["cl"].result_list == []
    assert "Nothing is listed: correct the filter" in page.content.decode()


@pytest.mark.parametrize("query", ["p=99", "p=x", "o=1.2", "e=1", "unknown=1", "all=", "_facets=True", "_popup=1"])
def test_djangos_own_parameters_do_no_harm(admin_client: Client, query: str) -> None:
    fail()
    for model in ("job", "failedexecution"):
        assert admin_client.get(f"/admin/dj_queue/{model}/?{query}", follow=True).status_code == 200


def test_pages(admin_client: Client) -> None:
    fail_many(250)
    for model in ("job", "failedexecution"):
        pages = [listed(admin_client, model, p=str(n)) for n in (1, 2, 3)]
        assert [len(page) for page in pages] == [100, 100, 50]
        assert len({row.pk for page in pages for row in page}) == 250
        assert "250 " in admin_client.get(f"/admin/dj_queue/{model}/").content.decode()


def test_counts_are_capped(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "COUNTED", 120)
    fail_many(130)
    for model in ("job", "failedexecution"):
        text = admin_client.get(f"/admin/dj_queue/{model}/").content.decode()
        assert "120+ " in text
        assert "Select all 120+ that match" in text


# ---- search ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["job", "failedexecution"])
def test_search_by_id_task_and_arguments(admin_client: Client, model: str) -> None:
    job = fail('with "quotes", a \\ and ümläut')
    other = fail("another")

    def found(text: str) -> set[Any]:
        return {getattr(row, "job_id", row.pk) for row in listed(admin_client, model, q=text)}

    assert found(str(job.pk)) == found(job.pk.hex) == found(f" {job.pk} ") == {job.pk}
    assert found("00000000-0000-7000-8000-000000000000") == set()
    assert found("project.tasks.fail") == {job.pk, other.pk}
    assert found('with "quotes", a \\ and') == {job.pk}
    assert found("ümläut") == {job.pk}
    assert found("WITH") == {job.pk}
    assert found("100% of_nothing") == set()
    assert found("% _") == set()


def test_failures_are_searched_by_exception_and_message(admin_client: Client) -> None:
    tasks.raise_given.enqueue("KeyError", "abc", 2)
    tasks.raise_given.enqueue("OSError", "xyz")
    from tests.working import work

    work()
    assert [row.exception_class for row in listed(admin_client, "failedexecution", q="keyerror")] == [
        "builtins.KeyError"
    ]
    assert [row.exception_class for row in listed(admin_client, "failedexecution", q="abcabc")] == ["builtins.KeyError"]
    found = listed(admin_client, "failedexecution", exception_class="builtins.OSError")
    assert [row.exception_class for row in found] == ["builtins.OSError"]


def test_a_window_is_said_and_moved_by_time(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "WINDOW", 20)
    fail_many(15)
    old = timezone.now()
    fail_many(15)
    task = "tests.project.tasks.fail"
    for model in ("job", "failedexecution"):
        # Without a filter that needs one, there is none.
        assert len(listed(admin_client, model)) == 30
        page = admin_client.get(f"/admin/dj_queue/{model}/", {"task": task})
        assert len(page.context["cl"].result_list) == 20
        assert "Searched the newest 20" in page.content.decode()
        page = admin_client.get(f"/admin/dj_queue/{model}/", {"task": task, "until": old.isoformat()})
        assert len(page.context["cl"].result_list) == 15
        assert "Searched the newest" not in page.content.decode()
        # An id is found wherever it is.
        oldest = Job.objects.order_by("pk").values_list("pk", flat=True)[0]
        assert len(listed(admin_client, model, q=str(oldest))) == 1


def test_backends_that_share_a_database(two_backends: None, admin_client: Client, monkeypatch: Any) -> None:
    monkeypatch.setattr(selection, "WINDOW", 20)
    fail_many(3)
    fail_many(25, alias="other")
    page = admin_client.get("/admin/dj_queue/job/")
    assert page.context["cl"].result_list == []
    assert "Searched the newest 20 jobs" in page.content.decode()
    assert len(listed(admin_client, queue="default")) == 3
    assert len(listed(admin_client, backend="other")) == 20


# ---- the smaller lists -------------------------------------------------------------------------------


def test_processes_by_status_kind_and_host(admin_client: Client) -> None:
    live = Process.objects.create(kind="Worker", pid=1, name="worker-1", hostname="a")
    stale = Process.objects.create(kind="Scheduler", pid=2, name="scheduler-1", hostname="b")
    Process.objects.filter(pk=stale.pk).update(last_heartbeat_at=timezone.now() - timedelta(hours=1))
    assert listed(admin_client, "process", status="live") == [live]
    assert listed(admin_client, "process", status="stale") == [stale]
    assert listed(admin_client, "process", kind="Worker") == listed(admin_client, "process", hostname="a") == [live]
    assert "stale" in admin_client.get(f"/admin/dj_queue/process/{stale.pk}/change/").content.decode()


def test_recurring_tasks_by_queue_and_origin(admin_client: Client) -> None:
    kept = schedule_recurring_task(key="b", task_path="tests.project.tasks.add", schedule="0 3 * * *", args=[1, 2])
    RecurringTask.objects.create(key="a", task_path="x", schedule="not a schedule", static=True, queue_name="q")
    assert [row.key for row in listed(admin_client, "recurringtask")] == ["a", "b"]
    assert listed(admin_client, "recurringtask", static="0") == [kept]
    assert [row.key for row in listed(admin_client, "recurringtask", static="1", queue="q")] == ["a"]
    assert listed(admin_client, "recurringtask", q="tasks.add") == [kept]
    assert listed(admin_client, "recurringtask", q="\0") == []


def test_pauses_and_semaphores(admin_client: Client) -> None:
    QueueInfo("a").pause()
    tasks.one_per_key.enqueue("x")
    assert [row.queue_name for row in listed(admin_client, "pause")] == ["a"]
    assert [row.key for row in listed(admin_client, "semaphore", q="one:")] == ["one:x"]
    assert listed(admin_client, "semaphore", q="none") == listed(admin_client, "semaphore", q="\0") == []


# ---- what is hidden ----------------------------------------------------------------------------------


def test_what_is_hidden_is_not_found(admin_client: Client, operator: Operator) -> None:
    tasks.echo.enqueue("plain-text", password="hunter2", nested={"accessToken": ["hunter3"], "kept": "visible"})
    assert listed(admin_client, q="plain-text")
    assert listed(admin_client, q="visible")
    for secret in ("hunter", "hunter2", "hunter3"):
        assert listed(admin_client, q=secret) == []
    client = operator()
    assert listed(client, q="plain-text") == []
    assert listed(client, q="tasks.echo")
    assert listed(operator("view_job"), q="plain-text")
    assert FailedExecution.objects.count() == 0

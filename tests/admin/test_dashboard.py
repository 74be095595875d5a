"""The dashboard's pages and buttons, by plain requests."""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.messages import get_messages
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from dj_queue.api import QueueInfo
from dj_queue.models import FailedExecution, Job, Pause, Process, ReadyExecution, RecurringTask, Semaphore
from dj_queue_admin.dashboard import overview
from tests.admin import scenery
from tests.project.tasks import add, fail, one_per_key
from tests.working import work

pytestmark = pytest.mark.django_db

DASHBOARD = "/admin/dj_queue/dashboard/"
NAMES = [
    "email",
    "a/b",
    "a/action",
    "a/jobs/action",
    "action",
    "/",
    "a//b",
    "..",
    "../x",
    ".",
    "with space",
    " ",
    "100%",
    "%2F",
    "\N{SNAKE}\N{ENVELOPE}",
    "?q=1&x#y",
    "~",
    "~61",
    "<script>alert(1)</script>",
    "a\\b",
    "a\nb",
    '"quotes"',
    "x" * 64,
]


def said(answer: Any) -> list[str]:
    return [str(message) for message in get_messages(answer.wsgi_request)]


def queue_page(client: Client, name: str) -> str:
    """The address of a queue's page, as the overview links to it."""
    table = client.get(DASHBOARD).context["queues"]
    assert name in [queue.name for queue in table.page.object_list]
    from django.contrib import admin

    from dj_queue_admin.links import Links

    return Links(admin.site, "default", only_alias=True).queue(name)


# ---- the overview -----------------------------------------------------------------------------------


def test_an_empty_database_shows_first_steps(admin_client: Client) -> None:
    answer = admin_client.get(DASHBOARD)
    assert answer.status_code == 200
    assert "python manage.py dj_queue" in answer.content.decode()
    assert [card.key for card in answer.context["cards"]] == [
        "queues",
        "backlog",
        "attention",
        "runtime",
        "control-plane",
    ]


def test_everything_is_on_it(admin_client: Client) -> None:
    scenery.fill(minutes=10)
    html = admin_client.get(DASHBOARD).content.decode()
    for text in ("webhooks", "search-index", "supervisor-2211", "dispatcher-1", "hourly_turnover", "account:4711"):
        assert text in html
    names = [name for name, _ in admin_client.get(DASHBOARD).context["facts"]]
    assert names == [
        "mode",
        "queue database",
        "scheduler",
        "notify",
        "skip locked",
        "heartbeat",
        "retention",
        "recurring",
        "semaphores",
    ]
    for chart in ("Throughput", "Failures", "Waiting jobs", "Time to start"):
        assert chart in html


def test_children_stand_under_their_supervisor(admin_client: Client) -> None:
    scenery.fill(minutes=1)
    groups = admin_client.get(DASHBOARD).context["processes"].page.object_list
    assert [(group.head.name, [child.name for child in group.children]) for group in groups] == [
        ("supervisor-2211", ["worker-1", "worker-2", "dispatcher-1", "scheduler-1"]),
        ("supervisor-1874", ["worker-1", "worker-2"]),
    ]


def test_the_page_of_a_backend_shows_that_backend_alone(admin_client: Client, settings: Any) -> None:
    settings.TASKS = {**settings.TASKS, "other": settings.TASKS["default"]}
    Job.objects.create(task_path="x", queue_name="mine")
    Job.objects.create(task_path="x", queue_name="theirs", backend_alias="other")
    html = admin_client.get(DASHBOARD).content.decode()
    assert "mine" in html
    assert "theirs" not in html
    html = admin_client.get(f"{DASHBOARD}?backend=other").content.decode()
    assert "theirs" in html
    assert f"{DASHBOARD}queue/theirs/?backend=other" in html
    assert admin_client.get(f"{DASHBOARD}queue/theirs/").status_code == 404
    assert admin_client.get(f"{DASHBOARD}queue/theirs/?backend=other").status_code == 200


@pytest.mark.parametrize(
    ("prefix", "size"),
    [
        ("queues_", overview.QUEUES),
        ("processes_", overview.PROCESSES),
        ("recurring_", overview.RECURRING),
        ("semaphores_", overview.SEMAPHORES),
    ],
)
def test_tables_are_paged_and_sorted(admin_client: Client, prefix: str, size: int) -> None:
    many = 2 * size + 1
    now = timezone.now()
    for n in range(many):
        Pause.objects.create(queue_name=f"q{n:03}")
        Process.objects.create(kind="Worker", pid=n, name=f"w{n:03}")
        RecurringTask.objects.create(key=f"r{n:03}", task_path="x", schedule="0 0 * * *", queue_name="q000")
        Semaphore.objects.create(key=f"s{n:03}", value=1, limit=1, expires_at=now)
    sizes = {"queues_": 18, "processes_": 10, "recurring_": 12, "semaphores_": 12}
    assert size == sizes[prefix]
    name = prefix.removesuffix("_")
    key = "key" if name in {"recurring", "semaphores"} else "name"

    def names(query: str) -> list[str]:
        rows = admin_client.get(f"{DASHBOARD}?{query}").context[name].page.object_list
        return [getattr(getattr(row, "head", row), key) for row in rows]

    first = names("")
    assert len(first) == size
    assert names(f"{prefix}page=3") == [f"{name[0]}{many - 1:03}".replace("p", "w")]
    assert names(f"{prefix}page=nonsense") == first
    assert names(f"{prefix}page=99") == names(f"{prefix}page=3")
    assert names(f"{prefix}sort=-{key}") == [f"{first[0][0]}{many - 1 - n:03}" for n in range(size)]
    assert names(f"{prefix}sort=-nonsense.{key}") == first


def test_sorting_by_several_columns(admin_client: Client) -> None:
    for name, count in (("b", 2), ("a", 2), ("c", 3)):
        for _ in range(count):
            add.using(queue_name=name).enqueue(1, 2)
    rows = admin_client.get(f"{DASHBOARD}?queues_sort=-ready.name").context["queues"].page.object_list
    assert [row.name for row in rows] == ["c", "a", "b"]


@pytest.mark.parametrize("name", ["1h", "6h", "24h", "7d"])
def test_ranges(admin_client: Client, name: str) -> None:
    scenery.fill(minutes=20)
    context = admin_client.get(f"{DASHBOARD}?range={name}").context
    assert context["history"].range.name == name
    assert sum(step.enqueued for step in context["history"].steps) > 500
    assert len(context["charts"]) == 4


def test_the_live_part_alone(admin_client: Client) -> None:
    scenery.fill(minutes=5)
    for path in ("", "queue/webhooks/"):
        html = admin_client.get(DASHBOARD + path, headers={"DJ-Queue-Live": "1"}).content.decode()
        assert "<html" not in html
        assert "csrfmiddlewaretoken" not in html  # it would differ each time
        assert 'id="djq-charts"' in html


def test_what_is_stored_cannot_break_the_page(admin_client: Client) -> None:
    nasty = "<script>alert(1)</script>\u202e\x1b[31m"
    told = {"queues": {"x": 1}, "threads": [nasty]}
    Process.objects.create(kind="Worker", pid=1, name=nasty, hostname=nasty, metadata=told)
    Process.objects.create(kind="Scheduler", pid=2, name="list", metadata=[1, 2])
    RecurringTask.objects.create(key=nasty, task_path=nasty, schedule="no schedule at all", queue_name=nasty)
    now = timezone.now()
    Semaphore.objects.create(key=nasty, value=-3, limit=0, expires_at=now)
    job = Job.objects.create(task_path=nasty * 50, queue_name="q", worker_ids={"no": "list"}, finished_at=now)
    failed = Job.objects.create(task_path=nasty, queue_name="q")
    FailedExecution.objects.create(job=failed, queue_name="q", exception_class=nasty)
    for path in ("", "queue/q/?state=finished", "queue/q/?state=failed"):
        answer = admin_client.get(DASHBOARD + path)
        assert answer.status_code == 200
        assert "<script>alert" not in answer.content.decode()
    assert str(job.pk) in admin_client.get(f"{DASHBOARD}queue/q/?state=finished").content.decode()


# ---- a queue's page ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_of_a_queue(admin_client: Client, name: str) -> None:
    add.using(queue_name=name).enqueue(1, 2)
    page = queue_page(admin_client, name)
    answer = admin_client.get(page)
    assert answer.status_code == 200
    assert answer.context["queue"].name == name
    (line,) = answer.context["jobs"].lines
    assert page in admin_client.get(DASHBOARD).content.decode().replace("&amp;", "&").replace("&#x27;", "'")
    action = f"{page}action/"
    assert admin_client.get(action).status_code == 405
    assert admin_client.get(f"{page}jobs/action/").status_code == 405
    assert admin_client.post(action, {"action": "pause"}).status_code == 302
    assert QueueInfo(name).paused
    sent = {"action": "discard", "state": "ready", "_selected_action": str(line.job.pk)}
    answer = admin_client.post(f"{page}jobs/action/", sent)
    assert (answer.status_code, answer["Location"]) == (302, page)
    assert not Job.objects.exists()


def test_a_name_of_255_characters_is_not_found(admin_client: Client) -> None:
    name = "x" * 255
    assert admin_client.get(f"{DASHBOARD}queue/{name}/").status_code == 404
    assert admin_client.post(f"{DASHBOARD}queue/{name}/action/", {"action": "pause"}).status_code == 404


@pytest.mark.parametrize("path", ["queue/none/", "queue/q/?state=none", "queue/q/?backend=none"])
def test_what_is_not_there_is_not_found(admin_client: Client, path: str) -> None:
    add.using(queue_name="q").enqueue(1, 2)
    assert admin_client.get(DASHBOARD + path).status_code == 404


def test_each_state_has_its_jobs(admin_client: Client) -> None:
    scenery.fill(minutes=20)
    seen = {queue.name: queue for queue in admin_client.get(DASHBOARD).context["queues"].page.object_list}
    for name in ("default", "email", "search-index"):
        queue = seen[name]
        for state in ("ready", "claimed", "scheduled", "blocked", "failed", "finished"):
            answer = admin_client.get(f"{DASHBOARD}queue/{name}/?state={state}")
            assert len(answer.context["jobs"].lines) == min(getattr(queue, state), 100)
    assert sum(queue.blocked for queue in seen.values()) == 5


def test_the_drill_down_is_paged_and_sorted(admin_client: Client) -> None:
    for n in range(205):
        add.using(queue_name="q", priority=n % 100).enqueue(n, 0)
    page = f"{DASHBOARD}queue/q/?state=ready"

    def priorities(query: str) -> list[int]:
        return [line.job.priority for line in admin_client.get(page + query).context["jobs"].lines]

    assert priorities("") == sorted((n % 100 for n in range(205)), reverse=True)[:100]
    assert len(priorities("&page=3")) == 5
    assert priorities("&sort=priority") == sorted(n % 100 for n in range(205))[:100]
    assert priorities("&sort=enqueued") == [n % 100 for n in range(100)]
    assert priorities("&sort=-enqueued")[:5] == [4, 3, 2, 1, 0]


def test_search(admin_client: Client, operator: Callable[..., Client]) -> None:
    results = [add.using(queue_name="q").enqueue(n, 5000 + n) for n in range(3)]
    one_per_key.using(queue_name="q").enqueue("somebody")
    page = f"{DASHBOARD}queue/q/?state=ready&q="

    def found(text: str, client: Client = admin_client) -> set[str]:
        return {str(line.job.pk) for line in client.get(page + text).context["jobs"].lines}

    assert found("5001") == {results[1].id}
    assert found(results[2].id) == {results[2].id}
    assert len(found("project.tasks.add")) == 3
    assert found("nothing like it") == set()
    assert found("%00") == set()
    assert len(found("&since=1h")) == 4
    # Who may not read arguments cannot find out what is in them.
    assert found("5001", operator(name="reader")) == set()


def test_arguments_are_for_those_who_may_read_them(admin_client: Client, operator: Callable[..., Client]) -> None:
    add.using(queue_name="q").enqueue(1, 987654)
    page = f"{DASHBOARD}queue/q/?state=ready"
    assert "987654" in admin_client.get(page).content.decode()
    assert "987654" not in operator().get(page).content.decode()
    assert "987654" in operator("view_job", name="viewer").get(page).content.decode()


# ---- buttons on queues ------------------------------------------------------------------------------


def test_pause_resume_and_clear(admin_client: Client) -> None:
    for _ in range(3):
        add.using(queue_name="q").enqueue(1, 2)
    action = f"{DASHBOARD}queue/q/action/"
    answer = admin_client.post(action, {"action": "pause"})
    assert answer["Location"] == f"{DASHBOARD}queue/q/"
    assert QueueInfo("q").paused
    assert said(admin_client.post(action, {"action": "pause"}))[-1].endswith("was paused already.")
    assert "Resume" in admin_client.get(DASHBOARD).content.decode()
    admin_client.post(action, {"action": "resume"})
    assert not QueueInfo("q").paused
    assert said(admin_client.post(action, {"action": "resume"}))[-1].endswith("was not paused any more.")
    admin_client.post(action, {"action": "clear"})
    assert not ReadyExecution.objects.exists()
    noted = [(entry.user.username, entry.change_message) for entry in LogEntry.objects.order_by("pk")]
    assert noted == [
        ("admin", "Paused the queue q of default."),
        ("admin", "Resumed the queue q of default."),
        ("admin", "Discarded 3 ready jobs of the queue q of default."),
    ]


def test_a_queue_that_is_gone_meanwhile(admin_client: Client) -> None:
    answer = admin_client.post(f"{DASHBOARD}queue/gone/action/", {"action": "clear"})
    assert answer["Location"] == DASHBOARD
    assert said(answer) == ["The queue gone had no ready jobs."]
    answer = post_jobs(admin_client, "ready", "discard", "01900000-0000-7000-8000-000000000000")
    assert answer["Location"] == DASHBOARD
    assert said(answer)[-1] == "1 job was not in this state any more, and left alone."
    answer = admin_client.post(f"{DASHBOARD}queue/ahead/action/", {"action": "pause"})
    assert answer["Location"] == f"{DASHBOARD}queue/ahead/"
    assert QueueInfo("ahead").paused


@pytest.mark.parametrize("sent", [{}, {"action": "destroy"}])
def test_an_unknown_action_is_refused(admin_client: Client, sent: dict[str, str]) -> None:
    add.using(queue_name="q").enqueue(1, 2)
    answer = admin_client.post(f"{DASHBOARD}queue/q/action/", sent)
    assert answer.status_code == 400
    assert "pause, resume, clear" in answer.content.decode()
    answer = admin_client.post(f"{DASHBOARD}queue/q/jobs/action/", {**sent, "state": "ready"})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("target", "leads"),
    [
        (f"{DASHBOARD}?queues_page=2", f"{DASHBOARD}?queues_page=2"),
        ("https://evil.example/", f"{DASHBOARD}queue/q/"),
        ("//evil.example/", f"{DASHBOARD}queue/q/"),
        ("javascript:alert(1)", f"{DASHBOARD}queue/q/"),
        ("", f"{DASHBOARD}queue/q/"),
    ],
)
def test_next_stays_on_this_host(admin_client: Client, target: str, leads: str) -> None:
    add.using(queue_name="q").enqueue(1, 2)
    answer = admin_client.post(f"{DASHBOARD}queue/q/action/", {"action": "pause", "next": target})
    assert answer["Location"] == leads


def test_a_form_without_its_token_is_refused(admin_user: Any) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    add.using(queue_name="q").enqueue(1, 2)
    assert client.post(f"{DASHBOARD}queue/q/action/", {"action": "clear"}).status_code == 403
    assert Job.objects.count() == 1


def test_who_may_what(operator: Callable[..., Client]) -> None:
    add.using(queue_name="q").enqueue(1, 2)
    action = f"{DASHBOARD}queue/q/action/"
    nobody, pauser, cleaner, operates = (
        operator(name="nobody"),
        operator("change_pause", name="pauser"),
        operator("delete_job", name="cleaner"),
        operator("operate_queue", name="operates"),
    )
    for client, buttons in ((nobody, []), (pauser, ["pause"]), (cleaner, ["clear"]), (operates, ["pause"])):
        html = client.get(DASHBOARD).content.decode()
        assert [name for name in ("pause", "resume", "clear") if f'value="{name}"' in html] == buttons
    assert nobody.post(action, {"action": "pause"}).status_code == 403
    assert pauser.post(action, {"action": "clear"}).status_code == 403
    assert cleaner.post(action, {"action": "pause"}).status_code == 403
    assert operates.post(action, {"action": "clear"}).status_code == 403
    assert operates.post(action, {"action": "pause"}).status_code == 302
    assert pauser.post(action, {"action": "resume"}).status_code == 302
    assert cleaner.post(action, {"action": "clear"}).status_code == 302


def test_visitors_who_are_not_staff_are_sent_to_the_login(client: Client, django_user_model: Any) -> None:
    for path in ("", "queue/q/", "queue/q/action/"):
        assert "/admin/login/" in client.get(DASHBOARD + path)["Location"]
    client.force_login(django_user_model.objects.create_user("customer"))
    assert "/admin/login/" in client.get(DASHBOARD)["Location"]


# ---- buttons on jobs --------------------------------------------------------------------------------


def post_jobs(client: Client, state: str, action: str, *ids: Any) -> Any:
    sent = {"state": state, "action": action, "_selected_action": [str(each) for each in ids]}
    return client.post(f"{DASHBOARD}queue/q/jobs/action/", sent)


def test_retry_and_discard_failed_jobs(admin_client: Client) -> None:
    one, two, three = (fail.using(queue_name="q").enqueue() for _ in range(3))
    work()
    assert FailedExecution.objects.count() == 3
    post_jobs(admin_client, "failed", "retry", one.id)
    assert Job.objects.get(pk=one.id).ready
    post_jobs(admin_client, "failed", "discard", two.id, three.id)
    assert list(Job.objects.values_list("pk", flat=True)) == [Job.objects.get(pk=one.id).pk]
    assert LogEntry.objects.count() == 3


def test_enqueue_a_finished_job_again(admin_client: Client) -> None:
    result = add.using(queue_name="q").enqueue(1, 2)
    work()
    post_jobs(admin_client, "finished", "enqueue", result.id)
    (copy,) = Job.objects.ready()
    assert copy.payload == Job.objects.get(pk=result.id).payload


def test_what_another_operator_did_first_is_told(admin_client: Client) -> None:
    one, two = (fail.using(queue_name="q").enqueue() for _ in range(2))
    work()
    post_jobs(admin_client, "failed", "retry", one.id)
    answer = post_jobs(admin_client, "failed", "retry", one.id, two.id)
    assert said(answer)[-2:] == ["Retried 1 job.", "1 job was not in this state any more, and left alone."]
    answer = post_jobs(admin_client, "failed", "discard", one.id)
    assert said(answer)[-1] == "1 job was not in this state any more, and left alone."
    assert Job.objects.count() == 2


def test_only_jobs_of_this_queue_backend_and_state(admin_client: Client, settings: Any) -> None:
    mine = add.using(queue_name="q").enqueue(1, 2)
    elsewhere = add.using(queue_name="other").enqueue(1, 2)
    foreign = Job.objects.create(task_path="x", queue_name="q", backend_alias="foreign")
    ReadyExecution.objects.create(job=foreign, queue_name="q", backend_alias="foreign")
    answer = post_jobs(admin_client, "ready", "discard", elsewhere.id, foreign.pk, "nonsense")
    assert Job.objects.count() == 3
    assert "left alone" in said(answer)[-1]
    post_jobs(admin_client, "ready", "discard", mine.id)
    assert Job.objects.count() == 2


@pytest.mark.parametrize("state", ["claimed", "ready", "finished"])
def test_what_a_state_does_not_allow_is_refused(admin_client: Client, state: str) -> None:
    add.using(queue_name="q").enqueue(1, 2)
    assert post_jobs(admin_client, state, "retry").status_code == 400


def test_nothing_selected(admin_client: Client) -> None:
    add.using(queue_name="q").enqueue(1, 2)
    assert said(post_jobs(admin_client, "ready", "discard"))[-1] == "No job was selected."


def test_jobs_need_their_permissions(operator: Callable[..., Client]) -> None:
    result = fail.using(queue_name="q").enqueue()
    work()
    viewer, changer = operator("view_job", name="viewer"), operator("change_job", name="changer")
    assert post_jobs(viewer, "failed", "retry", result.id).status_code == 403
    assert post_jobs(changer, "failed", "discard", result.id).status_code == 403
    html = viewer.get(f"{DASHBOARD}queue/q/?state=failed").content.decode()
    assert "_selected_action" not in html
    assert post_jobs(changer, "failed", "retry", result.id).status_code == 302
    assert Job.objects.get().ready


# ---- other sites, other days ------------------------------------------------------------------------


def test_a_custom_site_links_to_itself(admin_client: Client) -> None:
    scenery.fill(minutes=3)
    for path in ("", "queue/webhooks/"):
        html = admin_client.get(f"/console/dj_queue/dashboard/{path}").content.decode()
        assert "/admin/dj_queue" not in html
        assert "/console/dj_queue/dashboard/queue/" in html
    answer = admin_client.post("/console/dj_queue/dashboard/queue/webhooks/action/", {"action": "pause"})
    assert answer["Location"] == "/console/dj_queue/dashboard/queue/webhooks/"


@pytest.mark.parametrize("path", ["", "queue/q/", "queue/q/action/"])
def test_a_database_that_is_down_gives_a_calm_page(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    def down(*args: Any, **kwargs: Any) -> Any:
        raise OperationalError("server closed the connection unexpectedly at 10.0.0.7")

    # A transaction for each request would begin before any view could stay calm.
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    monkeypatch.setattr(connection, "cursor", down)
    answer = admin_client.post(DASHBOARD + path) if "action" in path else admin_client.get(DASHBOARD + path)
    assert answer.status_code == 503
    assert answer["Retry-After"] == "5"
    assert "no-store" in answer["Cache-Control"]
    html = answer.content.decode()
    assert "out of reach" in html
    assert "10.0.0.7" not in html


def test_without_time_zones(admin_client: Client, settings: Any) -> None:
    settings.USE_TZ = False
    add.using(queue_name="q").enqueue(1, 2)
    work()
    assert admin_client.get(DASHBOARD).status_code == 200
    answer = admin_client.get(f"{DASHBOARD}queue/q/?state=finished")
    assert answer.status_code == 200
    assert sum(step.finished for step in answer.context["history"].steps) == 1


def test_as_many_statements_with_many_queues(admin_client: Client) -> None:
    def statements(path: str = "") -> int:
        with CaptureQueriesContext(
            connection,
        ) as ran:
            assert admin_client.get(DASHBOARD + path).status_code == 200
        return len(ran)

    scenery.fill(minutes=2)
    few, few_of_one = statements(), statements("queue/email/?state=finished")
    for n in range(300):
        job = Job.objects.create(task_path="x", queue_name=f"queue-{n}")
        ReadyExecution.objects.create(job=job, queue_name=job.queue_name)
        Pause.objects.create(queue_name=f"paused-{n}")
        Process.objects.create(kind="Worker", pid=n, name=f"w{n}", metadata={"queues": [f"queue-{n}"]})
        RecurringTask.objects.create(key=f"r{n}", task_path="x", schedule="0 0 * * *")
    assert statements() == few
    assert statements("queue/email/?state=finished") == few_of_one


def test_numbers_end_at_the_cap(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "CAP", 5)
    for n in range(8):
        add.using(queue_name="q").enqueue(n, n)
    answer = admin_client.get(DASHBOARD)
    assert answer.context["cards"][1].value == "5+"
    assert 'aria-label="5+ ready of q">5+</a>' in answer.content.decode()

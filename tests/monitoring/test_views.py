"""`dj_queue.urls` as a monitor sees it."""

import io
import json
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from dj_queue import checks, glances
from dj_queue.api import QueueInfo, schedule_recurring_task
from dj_queue.models import Process, ReadyExecution
from dj_queue.operations import observation
from tests.conftest import wait_until
from tests.project.tasks import add, one_per_key

pytestmark = pytest.mark.django_db(transaction=True)

GUARDED = ["stats.json", "metrics", "health/ready"]
PATHS = [*GUARDED, "health/live"]


def get(web: Client, path: str, **headers: str) -> Any:
    return web.get(f"/dj_queue/{path}", headers=headers or None)


def alive(alias: str = "default", age: float = 0) -> None:
    row = Process.objects.create(kind="Worker", pid=1, name="worker-1", backend_alias=alias, metadata={"queues": ["*"]})
    Process.objects.filter(pk=row.pk).update(last_heartbeat_at=timezone.now() - timedelta(seconds=age))


# ---- routes and methods -----------------------------------------------------------------------------


def test_the_names_of_the_routes(web: Client) -> None:
    names = {"stats": "stats.json", "metrics": "metrics", "live": "health/live", "ready": "health/ready"}
    assert {name: reverse(f"dj_queue:{name}") for name in names} == {
        name: f"/dj_queue/{path}" for name, path in names.items()
    }


@pytest.mark.parametrize("path", PATHS)
def test_get_and_head_alone(web: Client, path: str) -> None:
    alive()
    assert get(web, path).status_code == 200
    head = web.head(f"/dj_queue/{path}")
    assert (head.status_code, head.content) == (200, b"")
    for method in ("post", "put", "patch", "delete", "options", "trace"):
        answer = getattr(Client(enforce_csrf_checks=True), method)(f"/dj_queue/{path}")
        assert (answer.status_code, answer["Allow"]) == (405, "GET, HEAD"), method


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_cached(web: Client, settings: Any, path: str) -> None:
    settings.DJ_QUEUE_OBSERVABILITY_TOKEN = "t"
    for answer in (
        get(web, path, Authorization="Bearer t"),
        get(web, path),
        web.post(f"/dj_queue/{path}"),
    ):
        assert answer["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", PATHS)
def test_a_login_for_people_and_atomic_requests_do_not_stand_in_the_way(web: Client, settings: Any, path: str) -> None:
    settings.MIDDLEWARE = ["tests.monitoring.test_views.LoginRequired"]
    connection.settings_dict["ATOMIC_REQUESTS"] = True
    try:
        alive()
        assert get(web, path).status_code == 200
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False


class LoginRequired:
    """What Django's LoginRequiredMiddleware asks of a view."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        return self.get_response(request)

    def process_view(self, request: Any, view: Any, args: Any, kwargs: Any) -> None:
        assert not view.login_required
        assert not connection.in_atomic_block


# ---- the token --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize("token", ["secret", "gehéim", "密码", "a b", "\udcff"])
def test_the_token_opens(web: Client, settings: Any, path: str, token: str) -> None:
    settings.DJ_QUEUE_OBSERVABILITY_TOKEN = token
    alive()
    # As a server hands over the bytes of a header.
    sent = token.encode("utf-8", "surrogatepass").decode("latin-1")
    assert get(web, path, Authorization=f"Bearer {sent}").status_code == 200
    assert get(web, path, Authorization=f"bearer   {sent} ").status_code == 200


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize(
    "header",
    [
        None, "", "Bearer", "Bearer ", "Bearer wrong", "Bearer secret2", "Bearer secre", "Basic secret", "secret",
        "Bearer Secret", "Bearer sécret", "Bearer \u5bc6", "Bearer \x00", "Token secret", "Bearer secret secret",
    ],
)  # fmt: skip
def test_anything_else_does_not(web: Client, settings: Any, path: str, header: str | None) -> None:
    settings.DJ_QUEUE_OBSERVABILITY_TOKEN = "secret"
    answer = get(web, path, **({} if header is None else {"Authorization": header}))
    assert (answer.status_code, answer["WWW-Authenticate"]) == (401, "Bearer")
    assert b"secret" not in answer.content


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_token_everything_is_open(web: Client, settings: Any, token: str | None) -> None:
    settings.DJ_QUEUE_OBSERVABILITY_TOKEN = token
    assert get(web, "stats.json").status_code == 200
    assert checks.check_observability_token() == []


@pytest.mark.parametrize("token", [" ", "secret ", "\tsecret", "secret\n", "\N{NO-BREAK SPACE}secret"])
def test_a_token_with_blanks_at_its_ends(web: Client, settings: Any, token: str) -> None:
    settings.DJ_QUEUE_OBSERVABILITY_TOKEN = token
    with pytest.raises(ImproperlyConfigured, match="without blanks or line breaks at its ends") as refused:
        get(web, "stats.json")
    assert "secret" not in str(refused.value)
    assert [error.id for error in checks.check_observability_token()] == ["dj_queue.E005"]


@pytest.mark.parametrize(
    ("urls", "token", "warned"),
    [
        ("tests.monitoring.urls", None, True),
        ("tests.monitoring.urls", "", True),
        ("tests.monitoring.urls", "secret", False),
        ("tests.urls", None, False),
    ],
)
def test_deploying_open_addresses_is_warned_of(settings: Any, urls: str, token: Any, warned: bool) -> None:
    settings.ROOT_URLCONF, settings.DJ_QUEUE_OBSERVABILITY_TOKEN = urls, token
    assert [warning.id for warning in checks.deployed_openly()] == ["dj_queue.W010"] * warned
    text = io.StringIO()
    call_command("check", deploy=True, stdout=text, stderr=text)
    assert ("dj_queue.W010" in text.getvalue()) is warned
    text = io.StringIO()
    call_command("check", stdout=text, stderr=text)
    assert "dj_queue.W010" not in text.getvalue()


# ---- what a look costs ------------------------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which looks were taken at the backends, each of which finds as many semaphores as there were looks."""
    taken: list[int] = []

    def observe_all(configs: Any) -> list[Any]:
        taken.append(len(configs))
        return observation.observe_all(configs)

    monkeypatch.setattr(glances, "observe_all", observe_all)
    monkeypatch.setattr(glances, "_glances", glances.Glances())
    return taken


@pytest.mark.parametrize("path", ["stats.json", "metrics"])
def test_a_long_look_is_kept_for_a_second_where_all_may_look(
    web: Client, settings: Any, looks: list[int], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(glances, "LONG", -1.0)
    monkeypatch.setattr(glances, "KEPT", 60.0)
    first = get(web, path)
    add.enqueue(1, 2)
    second = get(web, path)
    assert (len(looks), second.content) == (1, first.content)
    settings.DJ_QUEUE_OBSERVABILITY_TOKEN = "secret"
    assert get(web, path, Authorization="Bearer secret").content != first.content
    assert len(looks) == 2


def test_a_kept_look_is_of_the_same_backends(
    web: Client, settings: Any, looks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glances, "LONG", -1.0)
    get(web, "stats.json")
    settings.TASKS = {**settings.TASKS, "mail": settings.TASKS["default"]}
    assert [each["backend_alias"] for each in get(web, "stats.json").json()["backends"]] == ["default", "mail"]


def test_those_who_ask_at_the_same_time_share_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on = threading.Event(), threading.Event()
    looks: list[int] = []
    arrived: list[float] = []

    def observe_all(configs: Any) -> list[Any]:
        looks.append(len(looks))
        began.set()
        assert go_on.wait(20)
        return []

    def monotonic() -> float:
        # Who waits for a look has asked for the time; who looks does so again.
        arrived.append(real())
        return arrived[-1]

    real = time.monotonic
    monkeypatch.setattr(glances, "observe_all", observe_all)
    monkeypatch.setattr(glances, "time", SimpleNamespace(monotonic=monotonic))
    shared = glances.Glances()
    askers = [threading.Thread(target=shared.look) for _ in range(8)]
    askers[0].start()
    assert began.wait(20)
    for asker in askers[1:]:
        asker.start()
    wait_until(lambda: len(arrived) >= 9, what="all of them waiting: each has asked once, the first twice")
    go_on.set()
    for asker in askers:
        asker.join(20)
    assert len(looks) == 2  # the one that was under way began too early for the seven others


def test_a_backend_that_is_named_again_is_not_looked_at_again(web: Client) -> None:
    alive()
    with CaptureQueriesContext(connection) as once:
        assert get(web, "health/ready?backend=default&queue=a").status_code == 200
    with CaptureQueriesContext(connection) as often:
        assert get(web, "health/ready?queue=a&" + "&".join(["backend=default"] * 50)).status_code == 200
    assert len(often) == len(once)


def test_live_needs_no_token(web: Client, settings: Any) -> None:
    settings.DJ_QUEUE_OBSERVABILITY_TOKEN = "secret"
    assert get(web, "health/live").content == b"live\n"


@pytest.mark.parametrize("token", [b"secret", 42, True, ["secret"], 0, False])
def test_a_token_of_another_type(web: Client, settings: Any, token: Any) -> None:
    settings.DJ_QUEUE_OBSERVABILITY_TOKEN = token
    with pytest.raises(ImproperlyConfigured, match="DJ_QUEUE_OBSERVABILITY_TOKEN: expected a string") as refused:
        get(web, "stats.json")
    assert "secret" not in str(refused.value)
    (error,) = checks.check_observability_token()
    assert (error.id, error.msg) == ("dj_queue.E005", str(refused.value))


# ---- stats.json -------------------------------------------------------------------------------------


def test_stats(web: Client) -> None:
    add.using(queue_name="q").enqueue(1, 2)
    one_per_key.using(queue_name="q").enqueue("k")
    alive()
    alive(age=10_000)
    schedule_recurring_task(key="r", task_path="tests.project.tasks.add", args=(1, 2), schedule="0 3 * * *")
    QueueInfo("paused").pause()
    answer = get(web, "stats.json")
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/json")
    stats = json.loads(answer.content)
    assert stats.keys() == {"backends"}
    (backend,) = stats["backends"]
    assert backend["backend_alias"] == backend["queue_database_alias"] == "default"
    assert backend["process_alive_threshold"] == 300
    default, paused, q = backend["queues"]
    assert default == {
        "name": "default", "ready_count": 0, "claimed_count": 0, "scheduled_count": 0, "blocked_count": 0,
        "failed_count": 0, "finished_count": 0, "capped": [], "paused": False, "latency_seconds": None,
        "oldest_scheduled_at": None, "oldest_blocked_at": None, "live_worker_count": 1,
    }  # fmt: skip
    assert (paused["name"], paused["paused"]) == ("paused", True)
    assert (q["name"], q["ready_count"]) == ("q", 2)
    assert q["latency_seconds"] >= 0
    assert backend["runner_metrics"] == {"live": 1, "stale": 1, "by_kind": {"Worker": {"live": 1, "stale": 1}}}
    (task,) = backend["recurring"]
    assert task["next_run_at"].startswith("20")
    assert {key: task[key] for key in ("key", "task_path", "queue_name", "schedule", "static", "last_run_at")} == {
        "key": "r", "task_path": "tests.project.tasks.add", "queue_name": "default", "schedule": "0 3 * * *",
        "static": False, "last_run_at": None,
    }  # fmt: skip
    (semaphore,) = backend["semaphores"]
    assert semaphore.pop("expires_at").startswith("20")
    assert semaphore == {"key": "one:k", "available_slots": 0, "limit": 1, "blocked_waiters": 0, "capped": False}


def test_only_aliases_of_ours(web: Client, aliases: Callable[..., None], settings: Any) -> None:
    aliases(default={}, mail={})
    settings.TASKS = {**settings.TASKS, "other": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}}
    found = json.loads(get(web, "stats.json").content)["backends"]
    assert [each["backend_alias"] for each in found] == ["default", "mail"]


# ---- a database that is down ------------------------------------------------------------------------


def test_stats_while_a_database_is_down(web: Client, aliases: Callable[..., None], down: str) -> None:
    aliases(default={}, lost={"database_alias": down})
    answer = get(web, "stats.json")
    stats = json.loads(answer.content)
    assert answer.status_code == 503
    assert stats["unavailable"] == ["lost"]
    assert stats["error"] == "not available: 'lost' (database 'down'). The reason is in the log."
    assert [each["backend_alias"] for each in stats["backends"]] == ["default"]


@pytest.mark.parametrize("path", GUARDED)
def test_short_and_without_secrets(
    web: Client, aliases: Callable[..., None], down: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    aliases(lost={"database_alias": down})
    answer = get(web, path)
    assert answer.status_code == 503
    assert len(answer.content) < 250
    assert b"secret-name" not in answer.content
    assert b"Traceback" not in answer.content
    assert b"'lost'" in answer.content
    assert "dj_queue lost cannot be observed: unable to open database file" in caplog.text


def test_live_while_a_database_is_down(web: Client, aliases: Callable[..., None], down: str) -> None:
    aliases(lost={"database_alias": down})
    assert get(web, "health/live").status_code == 200


# ---- ready ------------------------------------------------------------------------------------------


def ready(web: Client, query: str = "") -> tuple[int, list[str]]:
    answer = get(web, f"health/ready{query}")
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    return answer.status_code, answer.content.decode().splitlines()


def test_ready_with_a_fresh_process(web: Client) -> None:
    nobody = "default: no process has had a heartbeat within {} seconds. Start one: manage.py dj_queue"
    assert ready(web) == (503, ["not ready", nobody.format(300)])
    alive(age=200)
    assert ready(web) == (200, ["ready"])
    assert ready(web, "?max_age=100") == (503, ["not ready", nobody.format(100)])
    assert ready(web, "?max_age=1000.5") == (200, ["ready"])


def test_ready_needs_a_worker(web: Client) -> None:
    for kind in ("Supervisor", "Dispatcher", "Scheduler"):
        Process.objects.create(name=kind, kind=kind, pid=1, hostname="here")
    nobody = "default: no worker has had a heartbeat within 300 seconds. Start one: manage.py dj_queue"
    assert ready(web) == (503, ["not ready", nobody])
    assert ready(web, "?kind=scheduler") == (200, ["ready"])
    alive()
    assert ready(web) == (200, ["ready"])


def test_ready_of_a_kind_and_a_host(web: Client) -> None:
    Process.objects.create(name="a", kind="Worker", pid=1, hostname="there")
    Process.objects.create(name="b", kind="Dispatcher", pid=1, hostname=socket.gethostname())
    assert ready(web, "?kind=Worker&host=there") == (200, ["ready"])
    assert ready(web, "?host") == ready(web, "?host=") == (200, ["ready"])
    status, lines = ready(web, "?kind=Worker&host")
    assert status == 503
    assert lines[1].startswith(f"default: no worker on host {socket.gethostname()!r} has had a heartbeat")
    assert ready(web, "?host=nowhere")[1][1].startswith("default: no process on host 'nowhere' has had")


def test_ready_within_a_latency(web: Client) -> None:
    alive()
    add.using(queue_name="slow").enqueue(1, 2)
    add.using(queue_name="quick").enqueue(1, 2)
    ReadyExecution.objects.filter(queue_name="slow").update(created_at=timezone.now() - timedelta(seconds=600))
    assert ready(web) == (200, ["ready"])
    assert ready(web, "?max_latency=3600") == (200, ["ready"])
    status, lines = ready(web, "?max_latency=60")
    assert status == 503
    assert len(lines) == 2
    assert lines[1].startswith("default, queue 'slow': a job has waited 6")
    assert ready(web, "?max_latency=60&queue=quick&queue=other") == (200, ["ready"])


def test_ready_within_a_depth(web: Client) -> None:
    alive()
    for _ in range(3):
        add.using(queue_name="deep").enqueue(1, 2)
    assert ready(web, "?max_ready=3") == (200, ["ready"])
    assert ready(web, "?max_ready=2") == (503, ["not ready", "default, queue 'deep': more than 2 jobs are ready"])
    assert ready(web, "?max_ready=0") == (503, ["not ready", "default, queue 'deep': more than 0 jobs are ready"])


def test_ready_of_one_alias(web: Client, aliases: Callable[..., None]) -> None:
    aliases(default={}, mail={})
    alive("mail")
    assert ready(web)[0] == 503
    assert ready(web, "?backend=mail") == (200, ["ready"])


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("?max_age=x", "max_age: expected one number from 0 to 3153600000, got 'x'."),
        ("?max_age=-1", "got '-1'"),
        ("?max_age=nan", "got 'nan'"),
        ("?max_age=inf", "got 'inf'"),
        ("?max_age=", "got ''"),
        ("?max_age=1&max_age=2", "got 2 of them"),
        ("?max_latency=1e99", "got '1e99'"),
        ("?max_ready=1.5", "max_ready: expected one whole number from 0 to 50000, got '1.5'."),
        ("?kind=w", "kind: expected one of Supervisor, Worker, Dispatcher, Scheduler, got 'w'."),
        ("?kind=Worker&kind=Worker", "kind: expected one of Supervisor, Worker, Dispatcher, Scheduler, got 2 of them."),
        ("?host=a&host=b", "host: expected one name, or none for this host, got 2 of them."),
        ("?max_ready=50001", "got '50001'"),
        ("?max_ready=" + "9" * 5000, "got '9999"),
        (
            "?nonsense=1",
            "unknown parameter 'nonsense'. Known: backend, queue, kind, host, max_age, max_latency, max_ready.",
        ),
        ("?backend=nobody", "backend 'nobody' is none of dj-queue's: default."),
    ],
)
def test_bad_thresholds(web: Client, query: str, said: str) -> None:
    status, (line,) = ready(web, query)
    assert status == 400
    assert line.startswith("bad request: ")
    assert said in line
    assert len(line) < 200

"""Whatever a job holds, its pages show it safely; what is to be hidden is hidden; what is unreadable says so."""

import json
from typing import Any

import pytest
from django.core.checks import Error
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.test import Client

from dj_queue.exceptions import EnqueueError
from dj_queue.models import FailedExecution, Job, Process, RecurringTask
from dj_queue_admin import options
from dj_queue_admin.records import shown
from dj_queue_admin.redaction import redaction
from dj_queue_admin.secrets import HIDDEN
from tests.admin.records.conftest import Operator, fail, finish
from tests.project import tasks

pytestmark = pytest.mark.django_db

SCRIPT = "<script>alert(1)</script>"


def page_of(client: Client, row: Any) -> str:
    answer = client.get(f"/admin/dj_queue/{row._meta.model_name}/{row.pk}/change/")
    assert answer.status_code == 200
    return answer.content.decode()


def list_of(client: Client, model: str = "job", query: str = "") -> str:
    answer = client.get(f"/admin/dj_queue/{model}/{query}")
    assert answer.status_code == 200
    return answer.content.decode()


HOSTILE: dict[str, Any] = {
    "html": SCRIPT,
    "attributes": "\"' onmouseover=alert(1) x='",
    "template": "{{ settings.SECRET_KEY }} {% load x %}",
    "control characters": "bell \x07 escape \x1b[31m backspace \x08 delete \x7f",
    "direction": "abc \u202e fed \u2066 zero\u200bwidth",
    "one long word": "x" * 300_000,
    "many": list(range(20_000)),
    "wide": {f"key {n}": n for n in range(5_000)},
    "deep": json.loads("[" * 150 + "]" * 150),
    "emoji": "👩‍👩‍👧 ok",
    "huge number": 10**300,
    "empty": {"": [None, "", {}, []]},
    "percent": "%s %(x)s %",
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_arguments_and_results(admin_client: Client, value: Any) -> None:
    try:
        job = finish(value, named=value)
    except EnqueueError:
        pytest.skip("the database cannot hold it")
    for text in (page_of(admin_client, job), list_of(admin_client), list_of(admin_client, query="?q=echo")):
        assert SCRIPT not in text
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
        assert "\u200b" not in text
        assert len(text) < 250_000
        text.encode()


@pytest.mark.parametrize("value", ["html", "control characters", "direction", "one long word", "percent"])
def test_hostile_errors(admin_client: Client, value: str) -> None:
    job = fail(HOSTILE[value])
    failure = FailedExecution.objects.get()
    FailedExecution.objects.update(exception_class=f"a.{SCRIPT}"[:255])
    groups = admin_client.get("/admin/dj_queue/failedexecution/groups/").content.decode()
    for text in (
        page_of(admin_client, job),
        page_of(admin_client, failure),
        list_of(admin_client, "failedexecution"),
        groups,
    ):
        assert SCRIPT not in text
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert len(text) < 400_000


def test_hostile_names(admin_client: Client) -> None:
    name = 'q<b>"/%s \u202e'
    job = fail(queue=name)
    Job.objects.update(task_path=f"a.{SCRIPT}", concurrency_key=SCRIPT)
    task = RecurringTask.objects.create(key=SCRIPT, task_path=SCRIPT, schedule=SCRIPT, description=SCRIPT)
    process = Process.objects.create(kind="Worker", pid=1, name=SCRIPT, hostname=SCRIPT, metadata={SCRIPT: SCRIPT})
    for row in (job, FailedExecution.objects.get(), task, process):
        assert SCRIPT not in page_of(admin_client, row)
        assert SCRIPT not in list_of(admin_client, row._meta.model_name)
    for query in (f"?queue={SCRIPT}", f"?q={SCRIPT}", f"?since={SCRIPT}", f"?concurrency_key={SCRIPT}"):
        assert SCRIPT not in list_of(admin_client, query=query)


@pytest.mark.parametrize(
    "payload",
    [
        "[" * 20_000 + "]" * 20_000,
        '{"args": 5, "kwargs": [1]}',
        '"text"',
        "null",
        "[]",
        '{"args": [[1]], "kwargs": null}',
    ],
    ids=lambda text: text[:30],
)
def test_payloads_that_no_enqueue_wrote(admin_client: Client, payload: str) -> None:
    job = finish(1)
    failed = fail()
    with connection.cursor() as cursor:
        try:
            cursor.execute("UPDATE dj_queue_jobs SET payload = %s, errors = %s", [payload, payload])
        except Exception:
            pytest.skip("the database refuses it")
    for row in (job, failed):
        page_of(admin_client, row)
    for query in ("", "?q=text", "?q=echo"):
        list_of(admin_client, query=query)
    list_of(admin_client, "failedexecution", "?q=text")
    assert admin_client.get("/admin/dj_queue/failedexecution/groups/").status_code == 200


def test_what_is_invisible_is_written_out() -> None:
    assert shown.visible("a\0b\x1b\u202e\ud800\u2028\n\tc") == "a\\u0000b\\u001b\\u202e\\ud800\\u2028\n\tc"
    assert shown.visible("a\nb", lines=False) == "a\\u000ab"
    assert shown.visible("abcdef", longest=2) == "ab\n… 4 more characters"
    assert shown.pretty({"ü": "é\u202e"}) == '{"ü": "é\\u202e"}'


# ---- who may read ------------------------------------------------------------------------------------


def test_staff_without_the_permission_to_view_see_states_and_no_contents(operator: Operator) -> None:
    job = fail("the message")
    failure = FailedExecution.objects.get()
    process = Process.objects.create(kind="Worker", pid=1, name="worker-1", metadata={"key": "the message"})
    client = operator()
    for row in (job, failure, process):
        text = page_of(client, row)
        assert "the message" not in text
        assert "the message" not in list_of(client, row._meta.model_name)
    assert "builtins.ValueError" in page_of(client, job)
    assert "Traceback" not in page_of(client, job)
    assert "ask for the permission" in page_of(client, job)
    assert "the message" in page_of(operator("view_job"), job)
    assert "the message" in list_of(operator("view_failedexecution"), "failedexecution")


# ---- redaction ---------------------------------------------------------------------------------------

SECRETS = {
    "password": "hunter-1",
    "userPassword": "hunter-2",
    "X-Api-Key": ["hunter-3", {"a": "hunter-4"}],
    "config": {"db": [{"SECRET_KEY": "hunter-5", "host": "plain-host"}]},
}


def test_secrets_are_hidden_everywhere(admin_client: Client) -> None:
    job = finish("plain", **SECRETS)
    text = page_of(admin_client, job)
    assert "plain-host" in text
    assert HIDDEN in text
    assert "hunter" not in text
    assert "hunter" not in list_of(admin_client)
    failed = fail(task=tasks.raise_with_arguments, password="hunter-6")
    for each in (
        page_of(admin_client, failed),
        page_of(admin_client, FailedExecution.objects.get()),
        list_of(admin_client, "failedexecution"),
        admin_client.get("/admin/dj_queue/failedexecution/groups/").content.decode(),
    ):
        assert "could not log in with" in each
        assert "hunter" not in each
    assert "raise_with_arguments" in list_of(admin_client, "failedexecution", "?q=could not log in")
    assert "Nothing matches" in list_of(admin_client, "failedexecution", "?q=hunter-6")


def test_positional_arguments_go_under_the_names_of_the_parameters(admin_client: Client) -> None:
    result = tasks.log_in.enqueue("somebody", "hunter-7")
    text = page_of(admin_client, Job.objects.get(pk=result.id))
    assert "somebody" in text
    assert "hunter" not in text
    assert "hunter" not in list_of(admin_client)


def test_recurring_tasks_and_processes_are_redacted_too(admin_client: Client) -> None:
    task = RecurringTask.objects.create(
        key="k", task_path="tests.project.tasks.echo", schedule="* * * * *", payload={"args": [], "kwargs": SECRETS}
    )
    process = Process.objects.create(kind="Worker", pid=1, name="worker-1", metadata=SECRETS)
    for row in (task, process):
        text = page_of(admin_client, row)
        assert "plain-host" in text
        assert "hunter" not in text


def test_the_names_are_a_setting(admin_client: Client, settings: Any) -> None:
    job = finish(iban="DE00", password="seen")
    settings.DJ_QUEUE_ADMIN = {"redact": [*options.REDACT, "iban"]}
    assert "DE00" not in page_of(admin_client, job)
    settings.DJ_QUEUE_ADMIN = {"redact": []}
    text = page_of(admin_client, job)
    assert "DE00" in text
    assert "seen" in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (5, "DJ_QUEUE_ADMIN: expected a mapping of options, got 5"),
        ({"redcat": []}, "did you mean 'redact'?"),
        ({"redact": "password"}, "expected a list of names, got 'password'"),
        ({"redact": ["ok", 5, " - "]}, 'DJ_QUEUE_ADMIN["redact"][1]: expected a name'),
    ],
)
def test_a_mistaken_setting_is_told_in_full(settings: Any, given: Any, expected: str) -> None:
    settings.DJ_QUEUE_ADMIN = given
    with pytest.raises(ImproperlyConfigured) as caught:
        redaction()
    assert expected in str(caught.value)
    (found,) = options.check()
    assert isinstance(found, Error)
    assert found.id == "dj_queue_admin.E001"


def test_no_setting_has_no_mistakes() -> None:
    assert options.check() == []
    assert redaction().hides("CSRF-Token")
    assert not redaction().hides("user_id")

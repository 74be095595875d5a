"""Actions on many jobs: bounded, continued, and noted as far as they came."""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.messages import get_messages
from django.db import OperationalError
from django.test import Client

from dj_queue.models import Job
from dj_queue.operations import jobs
from dj_queue_admin.dashboard import actions
from dj_queue_admin.records import bulk, verbs
from tests.admin.records.conftest import fail_many
from tests.project.tasks import add

pytestmark = pytest.mark.django_db

CLEAR = "/admin/dj_queue/dashboard/queue/default/action/"
DISCARD = "/admin/dj_queue/job/bulk/?verb=discard&status=failed"


def broken_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int, error: BaseException) -> None:
    """Let an operation raise when it is called for the so-manieth time."""
    whole: Callable[..., int] = getattr(jobs, name)
    calls = iter(range(1, 100))

    def breaking(**options: Any) -> int:
        if next(calls) == call:
            raise error
        return whole(**options)

    monkeypatch.setattr(jobs, name, breaking)


def notes() -> list[str]:
    return list(LogEntry.objects.values_list("change_message", flat=True))


def test_a_queue_is_cleared_in_steps(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "_CLEARED_AT_ONCE", 3)
    monkeypatch.setattr(bulk, "BUDGET", 0.0)
    for n in range(7):
        add.using(priority=n % 2).enqueue(n, n)
    answer = admin_client.post(CLEAR, {"action": "clear"})
    assert Job.objects.count() == 4
    assert answer.headers["Location"] == "/admin/dj_queue/job/bulk/?verb=discard&status=ready&queue=default"
    assert "More are left." in " ".join(map(str, get_messages(answer.wsgi_request)))
    assert notes() == ["Discarded 3 ready jobs of the queue default of default, and left others."]
    monkeypatch.setattr(bulk, "BUDGET", 5.0)
    assert b"<strong>4</strong>" in admin_client.get(answer.headers["Location"]).content
    admin_client.post(answer.headers["Location"])
    assert not Job.objects.exists()


def test_a_queue_that_is_cleared_at_once_needs_no_further_step(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "_CLEARED_AT_ONCE", 3)
    for n in range(8):
        add.using(priority=n % 3).enqueue(n, n)
    add.using(queue_name="other").enqueue(1, 1)
    answer = admin_client.post(CLEAR, {"action": "clear"})
    assert "bulk" not in answer.headers["Location"]
    assert list(Job.objects.values_list("queue_name", flat=True)) == ["other"]
    assert notes() == ["Discarded 8 ready jobs of the queue default of default."]


@pytest.mark.parametrize("error", [OperationalError("server closed the connection"), SystemExit(1), RuntimeError("x")])
@pytest.mark.parametrize("what", ["bulk", "clear"])
def test_what_breaks_off_is_noted_as_far_as_it_came(
    client: Client, admin_user: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, what: str
) -> None:
    monkeypatch.setattr(verbs, "BATCH", 2)
    monkeypatch.setattr(actions, "_CLEARED_AT_ONCE", 2, raising=False)
    client = Client(raise_request_exception=False)
    client.force_login(admin_user)
    if what == "bulk":
        fail_many(5)
        broken_at(monkeypatch, "discard_failed_jobs", 2, error)
        address, post = DISCARD, {}
    else:
        for n in range(5):
            add.enqueue(n, n)
        broken_at(monkeypatch, "discard_ready_jobs", 2, error)
        address, post = CLEAR, {"action": "clear"}
    try:
        client.post(address, post)
    except SystemExit:
        assert isinstance(error, SystemExit)
    assert Job.objects.count() == 3
    (note,) = notes()
    assert note.startswith("Discarded 2 ")
    assert "broke off" in note or "left others" in note

"""Health of a queue whose supervisor beats while none of its workers does."""

from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db.models.functions import Now

from dj_queue.models import Process

pytestmark = pytest.mark.django_db

AGES = pytest.mark.parametrize(
    ("kind", "age", "started", "workers", "healthy"),
    [
        pytest.param("Worker", 400, 900, 1, False, id="its worker hangs"),
        pytest.param(None, 0, 900, 1, False, id="none comes to start"),
        pytest.param("Dispatcher", 0, 900, 1, False, id="the dispatcher alone is well"),
        pytest.param("Worker", 100, 900, 1, True, id="its worker is well"),
        pytest.param(None, 0, 200, 1, True, id="it has only just started"),
        pytest.param(None, 0, 900, 0, True, id="it is to run none"),
    ],
)


def row(kind, *, age=0, started=0, **fields):
    made = Process.objects.create(kind=kind, name=kind, pid=1, hostname="here", **fields)
    Process.objects.filter(pk=made.pk).update(
        last_heartbeat_at=Now() - timedelta(seconds=age), created_at=Now() - timedelta(seconds=started)
    )


@AGES
def test_says_what_its_workers_do(capsys, kind, age, started, workers, healthy):
    row("Supervisor", started=started, metadata={"worker_count": workers})
    if kind:
        row(kind, age=age, started=started)
    if healthy:
        call_command("dj_queue_health")
        assert capsys.readouterr().out == "healthy\n"
    else:
        with pytest.raises(CommandError, match="none of its workers has had a heartbeat within 300 seconds"):
            call_command("dj_queue_health")


def test_a_short_age_judges_no_worker_between_two_heartbeats(capsys):
    row("Supervisor", age=1, started=900, metadata={"worker_count": 1})
    row("Worker", age=50, started=900)
    call_command("dj_queue_health", max_age=10)
    assert capsys.readouterr().out == "healthy\n"


@pytest.mark.parametrize("metadata", [{}, {"mode": "fork"}])
def test_a_row_that_says_nothing_of_workers_is_enough(capsys, metadata):
    row("Supervisor", started=900, metadata=metadata)
    call_command("dj_queue_health")
    assert capsys.readouterr().out == "healthy\n"

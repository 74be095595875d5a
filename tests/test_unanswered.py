"""What the database has no answer to for now is no row that cannot be read."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.tasks import default_task_backend

from dj_queue.config import backend_config
from dj_queue.dialects import dialect_for
from dj_queue.models import Pause
from dj_queue.operations import queues, transactions
from tests.project import tasks

pytestmark = pytest.mark.django_db(transaction=True)


def hold(lock: Any, held: Event, release: Event) -> None:
    try:
        with transaction.atomic():
            lock()
            held.set()
            assert release.wait(20)
    finally:
        connection.close()


@pytest.mark.needs("row locks")
def test_a_lock_that_others_hold_is_said_to_be_one() -> None:
    config = backend_config()
    queues.pause(config, "email")
    held, release = Event(), Event()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(hold, lambda: list(Pause.objects.select_for_update()), held, release)
        assert held.wait(20)
        with pytest.raises(OperationalError) as raised, transactions.bounded("default", 0.2):
            queues.resume(config, "email")
        release.set()
        done.result()
    assert transactions.contended("default", raised.value)
    assert Pause.objects.exists()


@pytest.mark.needs("locks on tables")
def test_a_result_that_takes_too_long_to_read_is_none_with_holes() -> None:
    result = tasks.add.enqueue(1, 2)

    def lock() -> None:
        with connection.cursor() as cursor:
            cursor.execute("LOCK TABLE dj_queue_claimed_executions IN ACCESS EXCLUSIVE MODE")

    held, release = Event(), Event()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(hold, lock, held, release)
        assert held.wait(20)
        with connection.cursor() as cursor:
            cursor.execute("SET statement_timeout = 200")
        try:
            with pytest.raises(OperationalError, match="statement timeout"):
                default_task_backend.get_result(result.id)
        finally:
            with connection.cursor() as cursor:
                cursor.execute("RESET statement_timeout")
            release.set()
        done.result()
    assert default_task_backend.get_result(result.id).args == [1, 2]


def test_a_read_that_collides_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """At SERIALIZABLE a single SELECT may be what the server gives up."""
    collision = OperationalError("it collided")
    monkeypatch.setattr(type(dialect_for("default")), "is_transient", lambda self, error: error is collision)
    monkeypatch.setattr(type(dialect_for("default")), "is_lock_timeout", lambda self, error: False)
    answers: list[Any] = [collision, collision, "read"]

    def read() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert transactions.read("default", read) == "read"
    answers = [collision, "read"]
    with transaction.atomic(), pytest.raises(OperationalError):
        transactions.read("default", read)

"""The forms of the public functions that web views want: many at once, and asynchronous."""

from __future__ import annotations

import inspect
from typing import Any
from uuid import uuid4

import pytest
from asgiref.sync import async_to_sync
from django.db import transaction

from dj_queue import api
from dj_queue.exceptions import EnqueueError
from dj_queue.models import FailedExecution, Job, Pause
from tests.project.tasks import add, fail, one_per_key
from tests.working import states, work

pytestmark = pytest.mark.django_db(transaction=True)

bulk_on_commit = pytest.mark.parametrize(
    "on_commit", [api.enqueue_all_on_commit, async_to_sync(api.aenqueue_all_on_commit)], ids=["sync", "async"]
)


def test_every_function_has_an_asynchronous_form() -> None:
    functions = {name for name in api.__all__ if inspect.isfunction(getattr(api, name))} - {"concurrency"}
    forms = {name for name in api.__all__ if name.startswith("a") and name[1:] in api.__all__}
    assert {f"a{name}" for name in functions - forms} == forms


@bulk_on_commit
def test_many_on_commit(on_commit: Any, settings: Any) -> None:
    settings.TASKS = {
        alias: {"BACKEND": backend, "QUEUES": []}
        for alias, backend in {
            "default": "dj_queue.backend.DjQueueBackend",
            "other": "dj_queue.backend.DjQueueBackend",
            "dummy": "django.tasks.backends.dummy.DummyBackend",
        }.items()
    }
    with transaction.atomic():
        calls = [(add, [1, 2], {}), (add.using(backend="other"), [], {"a": 1, "b": 2}), (one_per_key, ["k"], {})]
        on_commit([*calls, (add.using(backend="dummy"), [3, 4], {})])
        assert not Job.objects.exists()
    stored = Job.objects.order_by("pk").values_list("backend_alias", "payload")
    assert list(stored) == [
        ("default", {"args": [1, 2], "kwargs": {}}),
        ("other", {"args": [], "kwargs": {"a": 1, "b": 2}}),
        ("default", {"args": ["k"], "kwargs": {}}),
    ]
    (elsewhere,) = add.using(backend="dummy").get_backend().results
    assert elsewhere.args == [3, 4]


@bulk_on_commit
def test_many_on_commit_are_checked_now(on_commit: Any) -> None:
    with transaction.atomic():
        with pytest.raises(EnqueueError):
            on_commit([(add, [1, 2], {}), (add, [{1}, 2], {})])
        on_commit(iter([(add, [1, 2], {})]))
        transaction.set_rollback(True)
    assert not Job.objects.exists()
    on_commit([])
    on_commit(call for call in [(add, [1, 2], {})])
    assert states() == {"ready": 1}


def test_what_operators_do_to_failed_jobs() -> None:
    for _ in range(4):
        fail.enqueue()
    work()
    first, second, third, fourth = FailedExecution.objects.order_by("pk").values_list("job_id", flat=True)
    assert async_to_sync(api.aretry_failed_jobs)(job_ids=[first]) == 1
    assert async_to_sync(api.adiscard_failed_job)(second) == 1
    assert async_to_sync(api.adiscard_failed_jobs)(job_ids=[third, uuid4()]) == 1
    copy = async_to_sync(api.aenqueue_job_again)(fourth)
    assert (copy.task_path, copy.status) == ("tests.project.tasks.fail", "ready")
    assert api.enqueue_job_again(str(fourth)).pk not in (copy.pk, fourth)
    assert states() == {"ready": 3, "failed": 1}
    with pytest.raises(Job.DoesNotExist):
        async_to_sync(api.aenqueue_job_again)(third)


def test_queue_info() -> None:
    add.using(queue_name="orders").enqueue(1, 2)

    async def look() -> tuple[Any, ...]:
        (info,) = await api.QueueInfo.aall()
        await info.apause()
        await info.apause()
        seen = (info.queue_name, await info.asize(), await info.alatency() >= 0, await info.apaused())
        await info.aresume()
        return (*seen, await info.apaused(), await info.aclear(batch_size=1), await info.asize())

    assert async_to_sync(look)() == ("orders", 1, True, True, False, 1, 0)
    assert not Pause.objects.exists()

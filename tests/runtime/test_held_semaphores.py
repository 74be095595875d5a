"""A long transaction holds the semaphore of one key: what has another key, or none, goes on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from dj_queue.models import Job, Semaphore
from tests.conftest import wait_until
from tests.project import tasks
from tests.races import in_thread

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.needs("row locks")]


MORE = [(tasks.add, 1, 2), (tasks.two_per_key, "other")]


def finished(*ids: str) -> bool:
    return Job.objects.filter(pk__in=ids, finished_at__isnull=False).count() == len(ids)


def test_others_are_recorded_claimed_and_promoted_meanwhile(runtime: Callable[..., Any]) -> None:
    held = tasks.two_per_key.enqueue("held").id
    soon = timezone.now() + timedelta(seconds=1)
    waits = tasks.two_per_key.using(run_after=soon).enqueue("held").id
    others = [tasks.two_per_key.enqueue("other").id, tasks.add.enqueue(1, 1).id]
    others += [task.using(run_after=soon).enqueue(*args).id for task, *args in MORE]
    with transaction.atomic():
        Semaphore.objects.select_for_update().get(key="two:held")
        started = runtime()
        wait_until(lambda: finished(*others), seconds=40, what="the others are recorded")
        in_thread(lambda: tasks.two_per_key.enqueue("other"))
        wait_until(lambda: finished(*Job.objects.filter(concurrency_key="two:other").values_list("pk", flat=True)))
        assert not finished(held)
        assert "away" not in started.output
    wait_until(lambda: finished(held, waits), what="what waited is recorded, once")
    assert Job.objects.get(pk=held).worker_ids is not None
    assert len(Job.objects.get(pk=held).worker_ids) == 1

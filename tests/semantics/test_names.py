"""Two names are the same if they are the same text: no case, no accent and no space at the end is overlooked."""

from typing import Any

import pytest

from dj_queue import api
from dj_queue.api import QueueInfo
from dj_queue.models import Job, RecurringExecution, RecurringTask, Semaphore
from tests.project import tasks
from tests.working import claim, states, work

pytestmark = pytest.mark.django_db

NAMES = [
    "email",
    "Email",
    "EMAIL",
    "email ",
    "\u00e9mail",
    "e\u0301mail",
    "\U0001f600",
    "\U0001f601",
    "%",
    "_",
    "\\",
    "a'b\"c",
]


@pytest.fixture
def one_job_each() -> None:
    for name in NAMES:
        tasks.echo.using(queue_name=name).enqueue(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_selector_claims_from_the_queue_of_its_name(one_job_each: None, name: str) -> None:
    assert [job.claim.queue_name for job in claim(queues=[name])] == [name]


@pytest.mark.parametrize("prefix", ["e", "E", "em", "email", "\u00e9", "\U0001f600", "%", "_", "\\", "a'"])
def test_a_prefix_claims_from_the_queues_that_begin_with_it(one_job_each: None, prefix: str) -> None:
    found = {job.claim.queue_name for job in claim(queues=[f"{prefix}*"])}
    assert found == {name for name in NAMES if name.startswith(prefix)}


def test_queues_are_listed_paused_and_cleared_one_by_one(one_job_each: None) -> None:
    assert {info.queue_name for info in QueueInfo.all()} == set(NAMES)
    assert [QueueInfo(name).size for name in NAMES] == [1] * len(NAMES)
    for name in NAMES:
        QueueInfo(name).pause()
        assert [each for each in NAMES if QueueInfo(each).paused] == [name]
        assert QueueInfo(name).clear() == 1
        QueueInfo(name).resume()
        tasks.echo.using(queue_name=name).enqueue(name)
    for name in NAMES:
        QueueInfo(name).pause()
    assert claim() == []


def test_a_paused_queue_holds_up_no_other(one_job_each: None) -> None:
    QueueInfo("email").pause()
    assert {job.claim.queue_name for job in claim()} == set(NAMES) - {"email"}


def test_concurrency_keys() -> None:
    for key in NAMES:
        tasks.one_per_key.enqueue(key)
    assert states() == {"ready": len(NAMES)}
    assert Semaphore.objects.count() == len(NAMES)
    for key in NAMES:
        tasks.one_per_key.enqueue(key)
    assert states() == {"ready": len(NAMES), "blocked": len(NAMES)}
    work()
    assert states() == {"ready": len(NAMES), "finished": len(NAMES)}


def test_recurring_tasks() -> None:
    for key in NAMES:
        api.schedule_recurring_task(key=key, task_path="tests.project.tasks.add", schedule="0 0 * * *", args=[1, 2])
    assert RecurringTask.objects.count() == len(NAMES)
    for key in NAMES:
        assert api.unschedule_recurring_task(key) == 1
    at = "2026-01-01T00:00:00Z"
    RecurringExecution.objects.bulk_create(RecurringExecution(task_key=key, run_at=at) for key in NAMES)


def test_text_comes_back_as_it_was() -> None:
    value: dict[str, Any] = {name: [name, {name: name}] for name in NAMES}
    result = tasks.return_given.enqueue(value)
    assert Job.objects.get(pk=result.id).payload["args"] == [value]
    work()
    result.refresh()
    assert result.return_value == value

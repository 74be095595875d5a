"""`manage.py dj_queue_jobs`: what is stored, by its state, and what to do about what failed."""

import json
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command

from tests.project import tasks
from tests.working import states, work

pytestmark = pytest.mark.django_db(transaction=True)


def say(*arguments: Any) -> str:
    out = StringIO()
    call_command("dj_queue_jobs", *map(str, arguments), stdout=out)
    return out.getvalue()


def tell(*arguments: Any) -> Any:
    return json.loads(say(*arguments, "--format", "json"))


def test_lists_jobs_by_state_queue_and_task() -> None:
    tasks.add.enqueue(1, 2)
    work()
    ready = tasks.add.using(queue_name="email", priority=7).enqueue(3, 4)
    failed = tasks.fail.enqueue()
    work(queues=["default"])
    header, *lines = say("list").splitlines()
    assert header.split() == ["id", "state", "task", "queue", "priority", "enqueued_at"]
    assert [line.split()[1] for line in lines] == ["failed", "ready", "finished"]
    assert [each["id"] for each in tell("list", "--state", "failed")] == [failed.id]
    assert [each["id"] for each in tell("list", "--queue", "email")] == [ready.id]
    assert [each["state"] for each in tell("list", "--task", tasks.add.module_path, "--limit", 1)] == ["ready"]


def test_shows_one_as_a_whole() -> None:
    failed = tasks.fail.enqueue("for a reason")
    work()
    told = tell("show", failed.id)
    assert (told["state"], told["args"], told["worker_ids"]) == ("failed", ["for a reason"], ["worker-1"])
    assert told["errors"][0].startswith("builtins.ValueError\n")
    text = say("show", failed.id)
    assert "state: failed\n" in text
    assert "error 1 of 1: builtins.ValueError\nTraceback (most recent call last):\n" in text


def test_retries_and_discards() -> None:
    first, second, third = (tasks.fail.enqueue(str(number)) for number in range(3))
    other = tasks.raise_empty.using(queue_name="email").enqueue()
    work()
    assert states() == {"failed": 4}
    assert say("retry", first.id, second.id) == "retried 2 of 2 failed jobs\n"
    assert states() == {"failed": 2, "ready": 2}
    assert say("retry", first.id) == "retried 0 of 1 failed jobs\n"
    assert tell("discard", "--queue", "email") == {"discarded": 1}
    assert [each["id"] for each in tell("list", "--state", "failed")] == [third.id]
    assert other.id not in say("list")
    assert tell("retry", "--task", tasks.fail.module_path) == {"retried": 1}
    work()
    assert tell("discard", "--all") == {"discarded": 3}
    assert states() == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nonsense"], "expected the id of a job, a UUID, got 'nonsense'"),
        (["show", str(uuid4())], "the backend 'default' has no job"),
        (["retry"], "say what to retry: ids of jobs, or --all, --queue or --task"),
        (["discard", str(uuid4()), "--all"], "say what to discard"),
        (["list", "--limit", "0"], "--limit must be at least 1, got 0"),
        (["list", "--backend", "nobody"], "nobody"),
    ],
)
def test_says_what_is_wrong(arguments: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        say(*arguments)

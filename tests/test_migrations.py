"""What a migration adds to a database that is in use: its rows stay, and the version before goes on beside it."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from dj_queue.api import schedule_recurring_task
from dj_queue.models import RecurringTask
from dj_queue.operations import schema
from tests.project import tasks
from tests.working import states, work

pytestmark = pytest.mark.django_db(transaction=True)

FIRST, LAST = [("dj_queue", "0001_initial")], [("dj_queue", "0002_recurringtask_catch_up")]


def migrate(targets: list[tuple[str, str]]) -> Any:
    """Migrate; return the models as they are there."""
    executor = MigrationExecutor(connection)
    executor.migrate(targets)
    return MigrationExecutor(connection).loader.project_state(targets).apps


@pytest.fixture
def before() -> Iterator[Any]:
    """The models of the version before, on the tables of it."""
    try:
        yield migrate(FIRST)
    finally:
        migrate(LAST)


def test_the_last_is_the_one_that_is_tested_here() -> None:
    assert schema.unapplied_migrations("default") == []
    assert MigrationExecutor(connection).loader.graph.leaf_nodes("dj_queue") == LAST


def test_rows_stay_and_the_version_before_goes_on(before: Any) -> None:
    old = before.get_model("dj_queue", "RecurringTask")
    now = timezone.now()
    values = {
        "task_path": "tests.project.tasks.add",
        "payload": {"args": [1, 2], "kwargs": {}},
        "schedule": "* * * * *",
    }
    for key in ("a", "b"):
        old.objects.create(key=key, description=key, created_at=now, updated_at=now, **values)
    waiting = tasks.add.enqueue(1, 2)
    assert schema.unapplied_migrations("default") == ["0002_recurringtask_catch_up"]
    assert "lacks the migration 0002_recurringtask_catch_up" in (schema.obstacle("default") or "")

    migrate(LAST)
    assert schema.obstacle("default") is None
    row = RecurringTask.objects.get(key="a")
    assert (row.catch_up, row.description, row.payload) == (None, "a", values["payload"])
    assert abs((row.updated_at - now).total_seconds()) < 0.001
    # A scheduler of the version before, which still runs.
    old.objects.create(key="c", created_at=now, updated_at=now, **values)
    row = old.objects.get(key="b")
    row.schedule = "1 * * * *"
    row.save()
    assert [each.key for each in old.objects.order_by("key")] == ["a", "b", "c"]
    assert schedule_recurring_task(key="b", **_call(values), catch_up="none").catch_up == "none"
    old.objects.filter(key="b").update(schedule="2 * * * *")
    assert RecurringTask.objects.get(key="b").catch_up == "none"
    work()
    assert states() == {"finished": 1}
    assert waiting.id


def _call(values: dict[str, Any]) -> dict[str, Any]:
    return {"task_path": values["task_path"], "schedule": values["schedule"], **values["payload"]}


def test_a_row_says_whether_it_catches_up() -> None:
    call = {"key": "a", "task_path": "tests.project.tasks.add", "schedule": "* * * * *", "args": [1, 2]}
    assert schedule_recurring_task(**call, catch_up="latest").catch_up == "latest"
    assert schedule_recurring_task(**call).catch_up is None
    with pytest.raises(Exception, match="catch_up: expected one of 'latest', 'none', got 'all'"):
        schedule_recurring_task(**call, catch_up="all")

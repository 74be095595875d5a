"""A runtime's own session prepares what it does for every job, and no application's does."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection

from dj_queue.dialects import dialect_for
from tests.project import tasks
from tests.working import states, work

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.needs("prepared statements")]


def rows(sql: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def prepared() -> list[Any]:
    return rows(
        "SELECT name, statement, parameter_types::text[], generic_plans, custom_plans FROM pg_prepared_statements"
    )


@pytest.fixture
def session() -> Iterator[None]:
    connection.close()
    connection.ensure_connection()
    dialect_for("default").prepare_session(connection)
    yield
    connection.close()


def work_off(count: int) -> None:
    for number in range(count):
        tasks.add.enqueue(number, 1)
        assert len(work()) == 1


def test_a_claim_and_a_finish_are_planned_once(session: None) -> None:
    work_off(8)
    used = {statement.split()[1]: (generic, custom) for _, statement, _, generic, custom in prepared()}
    # The second claim of each look finds nothing.
    assert used == {"RECURSIVE": (8, 0), "done": (8, 0)}


def test_their_plans_find_every_row_by_index(session: None) -> None:
    work_off(1)
    for name, statement, types, *_ in prepared():
        values = ", ".join(f"NULL::{kind}" for kind in types)
        plan = "\n".join(line for (line,) in rows(f"EXPLAIN EXECUTE {name} ({values})"))
        assert "dj_queue_jobs" in plan, statement
        assert not re.search("Seq Scan|Hash Join|Merge Join|Bitmap", plan), plan
        # While a queue is paused, a claim merges those of the others, a batch of each.
        assert plan.count("Sort  (") == ("names" in statement), plan


def test_a_session_that_was_exchanged_goes_on_without(session: None) -> None:
    work_off(2)
    # As behind a pooler that hides: the driver does not hear of it.
    with connection.cursor() as cursor:
        cursor.execute("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")
    assert prepared() == []
    work_off(2)
    assert states() == {"finished": 4}
    assert prepared() == []


def test_an_applications_session_prepares_nothing() -> None:
    connection.close()
    work_off(6)
    assert prepared() == []

"""What docs/postgresql.md says of PostgreSQL is true of it, and each of its queries runs."""

import re
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from dj_queue.api import QueueInfo
from tests.conftest import wait_until
from tests.project.tasks import add
from tests.working import work

pytestmark = pytest.mark.needs("vacuum")

PAGE = (Path(__file__).parent.parent / "docs" / "postgresql.md").read_text()
STATEMENTS = re.findall(r"^```sql\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
DEAD, HOLDERS, SIZES, HEAP_ONLY, WAITS, RUNNING, PARAMETERS, OLDEST = (s for s in STATEMENTS if s.startswith("SELECT"))


def rows(statement: str) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(statement)
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


@pytest.mark.parametrize("number", range(len(STATEMENTS)))
@pytest.mark.django_db
def test_every_statement_runs(number: int) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(STATEMENTS[number])
        transaction.set_rollback(True)


@pytest.mark.django_db
def test_what_the_migration_sets_is_what_the_page_says() -> None:
    said, before = {}, ""
    for table, parameters in re.findall(r"^\| `(dj_queue_\w+)` \| (`\w+=.*|the same) \|$", PAGE, re.MULTILINE):
        before = before if parameters == "the same" else parameters
        said[table] = sorted(re.findall(r"`(\w+=[\d.]+)`", before))
    assert len(said) == 7
    assert {row["relname"]: sorted(row["reloptions"]) for row in rows(PARAMETERS) if row["reloptions"]} == said


@pytest.mark.django_db(transaction=True)
def test_what_a_job_writes() -> None:
    """Three dead rows a job, as the page says, and none in an index of its jobs."""
    tables = ("ready_executions", "claimed_executions", "jobs")

    def counted() -> dict[str, tuple[int, int, int]]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_stat_force_next_flush()")
            cursor.execute("SELECT pg_stat_clear_snapshot()")
            cursor.execute("SELECT relname, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables")
            return {name.removeprefix("dj_queue_"): tuple(row) for name, *row in cursor.fetchall()}

    before = counted()
    add.get_backend().enqueue_all([(add, [n, n], {}) for n in range(20)])
    assert len(work(20)) == 20
    after = counted()
    written = {table: tuple(b - a for a, b in zip(before[table], after[table], strict=True)) for table in tables}
    assert written == {"ready_executions": (20, 0, 20), "claimed_executions": (20, 0, 20), "jobs": (20, 20, 0)}
    (jobs,) = (row for row in rows(HEAP_ONLY) if row["relname"] == "dj_queue_jobs")
    assert jobs["percent"] is not None


@pytest.fixture
def reader() -> Iterator[Any]:
    """A session whose transaction has begun and stays open, on the database of that name."""
    opened: list[BaseDatabaseWrapper] = []

    def begin(name: str) -> int:
        session = connection.copy()
        session.settings_dict = {**connection.settings_dict, "NAME": name}
        opened.append(session)
        session.set_autocommit(False)
        with session.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT pg_backend_pid()")
            return int(cursor.fetchone()[0])

    yield begin
    for session in opened:
        session.close()


def dead_after_vacuum() -> int:
    """Enqueue and clear a hundred jobs, vacuum, and ask how many dead rows are left."""
    with connection.cursor() as cursor:
        cursor.execute("VACUUM dj_queue_ready_executions")
    add.get_backend().enqueue_all([(add, [n, n], {}) for n in range(100)])
    QueueInfo("default").clear()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute("VACUUM dj_queue_ready_executions")
    (ready,) = (row for row in rows(DEAD) if row["relname"] == "dj_queue_ready_executions")
    return int(ready["n_dead_tup"])


@pytest.mark.django_db(transaction=True)
def test_a_long_transaction_holds_dead_rows_and_is_found(reader: Any) -> None:
    pid = reader(connection.settings_dict["NAME"])
    assert dead_after_vacuum() >= 100
    (found,) = (row for row in rows(HOLDERS) if row["name"] == str(pid))
    assert (found["kind"], found["state"]) == ("session", "idle in transaction")


@pytest.mark.django_db(transaction=True)
def test_one_on_another_database_of_the_server_does_not(reader: Any) -> None:
    pid = reader("postgres")
    assert dead_after_vacuum() == 0
    assert str(pid) not in [row["name"] for row in rows(HOLDERS)]


@pytest.mark.django_db(transaction=True)
def test_who_waits_for_whom() -> None:
    lock = "LOCK TABLE dj_queue_pauses"
    held = threading.Event()

    def wait() -> None:
        held.wait(20)
        session = connection.copy()
        session.set_autocommit(False)
        with closing(session), session.cursor() as cursor:
            cursor.execute("SET lock_timeout = '60s'")
            cursor.execute(lock.replace("LOCK", "/* the one that waits */ LOCK"))
            session.rollback()

    waiting = threading.Thread(target=wait)
    waiting.start()
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
        cursor.execute(lock)
        held.set()
        (found,) = wait_until(lambda: rows(WAITS))
        assert (found["blocked_by"], found["query"][:23]) == (pid, "/* the one that waits *")
        assert rows(RUNNING) == []
    waiting.join(20)


@pytest.mark.django_db(transaction=True)
def test_sizes_and_the_oldest_ready_job() -> None:
    add.using(queue_name="email").enqueue(1, 2)
    assert {row["relname"] for row in rows(SIZES)} >= {"dj_queue_jobs", "dj_queue_ready_executions"}
    (oldest,) = rows(OLDEST)
    assert (oldest["backend_alias"], oldest["queue_name"], oldest["ready"]) == ("default", "email", 1)
    assert oldest["oldest"].total_seconds() >= 0

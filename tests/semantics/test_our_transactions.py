"""How the queue's own transactions begin, whatever the project's do."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.utils import timezone

from dj_queue.dialects import dialect_for
from dj_queue.models import Pause, Semaphore
from dj_queue.operations import transactions
from tests.races import in_thread

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def options(settings: Any) -> Iterator[Callable[..., None]]:
    """Change the options of the database's connections."""
    before = connection.settings_dict["OPTIONS"]

    def change(**changes: Any) -> None:
        connection.close()
        connection.settings_dict["OPTIONS"] = {**before, **changes}

    yield change
    connection.close()
    connection.settings_dict["OPTIONS"] = before


@pytest.mark.needs("a mode of transactions")
@pytest.mark.parametrize("mode", [None, "DEFERRED"])
def test_what_reads_before_it_writes_holds_the_write_lock(mode: str | None, options: Callable[..., None]) -> None:
    options(transaction_mode=mode)
    found: list[str] = []

    def write_at_once() -> None:
        with connections["default"].cursor() as cursor:
            cursor.execute("PRAGMA busy_timeout = 0")
        Pause.objects.create(queue_name=str(len(found)))

    def work(*_: Any) -> None:
        assert Semaphore.objects.count() == 0
        try:
            in_thread(write_at_once)
            found.append("another wrote")
        except OperationalError as error:
            found.append(str(error))
        Semaphore.objects.create(key="a", value=0, limit=1, expires_at=timezone.now())

    transactions.run("default", work)
    assert found == ["database is locked"]
    with transaction.atomic():
        assert Semaphore.objects.count() == 1
        in_thread(write_at_once)  # the project's own are as it wants them


STRICT: dict[str, dict[str, Any]] = {
    "of the server": {"options": "-c default_transaction_isolation=serializable"},
    "of Django": {"isolation_level": 4},
}
LEVEL = "SELECT current_setting('transaction_isolation')"


def level(cursor: Any) -> str:
    cursor.execute(LEVEL)
    found: str = cursor.fetchone()[0]
    return found


@pytest.mark.needs("one statement")
class TestStrictIsolation:
    @pytest.fixture(params=STRICT.values(), ids=STRICT, autouse=True)
    def strict(self, request: Any, options: Callable[..., None]) -> None:
        options(**request.param)

    @pytest.mark.parametrize("bound", [False, True], ids=["", "bounded"])
    @pytest.mark.parametrize("one_statement", [True, False], ids=["one statement", "several"])
    def test_what_collided_is_run_again_at_read_committed(self, one_statement: bool, bound: bool) -> None:
        levels: list[str] = []

        def work(_: Any, cursor: Any) -> None:
            levels.append("")
            if len(levels) == 1:
                cursor.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")
            levels.append(level(cursor))

        def run() -> None:
            transactions.run("default", work, one_statement=one_statement)

        if bound:
            with transactions.bounded("default", 5):
                run()
        else:
            run()
        assert levels == ["", "", "read committed"]
        with transaction.atomic(), connection.cursor() as cursor:
            assert level(cursor) == "serializable", "the project's own are as it wants them"

    def test_what_would_always_collide_is_done(self) -> None:
        row = Semaphore.objects.create(key="a", value=0, limit=9, expires_at=timezone.now())
        attempts: list[int] = []

        def work(*_: Any) -> None:
            attempts.append(Semaphore.objects.get(pk=row.pk).value)
            in_thread(lambda: Semaphore.objects.filter(pk=row.pk).update(limit=len(attempts)))
            Semaphore.objects.filter(pk=row.pk).update(value=1)

        transactions.run("default", work)
        assert attempts == [0, 0]
        row.refresh_from_db()
        assert (row.value, row.limit) == (1, 2)

    def test_the_runtimes_sessions_are_read_committed(self) -> None:
        connection.ensure_connection()
        dialect_for("default").prepare_session(connection)
        with connection.cursor() as cursor:
            assert level(cursor) == "read committed"
            with transaction.atomic():
                assert level(cursor) == "read committed"

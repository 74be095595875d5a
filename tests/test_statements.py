"""How many statements each step of the hot path costs, and how its updates are written."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection
from django.tasks import default_task_backend
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from dj_queue.config import backend_config
from dj_queue.dialects import Selector, dialect_for
from dj_queue.models import Job, Pause, ScheduledExecution
from dj_queue.operations import execution, jobs
from tests.conftest import wait_until
from tests.project.tasks import add, fail, one_per_key
from tests.working import WORKER, claim, run, states

# In autocommit, as enqueuers and workers are: a transaction around the test would hide BEGIN and COMMIT.
pytestmark = pytest.mark.django_db(transaction=True)

one_statement = pytest.mark.needs("one statement")
BATCHES = [1, 10, 500]
SELECTORS = [["*"], ["a"], ["a", "b"], ["a*", "b"], ["a", "*"], ["a*", "b*", "c", "*"]]


def statements(step: Callable[[], Any]) -> list[str]:
    """Every statement that a step runs, BEGIN and COMMIT included."""
    with CaptureQueriesContext(connection) as captured:
        step()
    return [query["sql"] for query in captured]


def fill(count: int, queue: str = "default") -> None:
    task = add.using(queue_name=queue)
    default_task_backend.enqueue_all((task, [i, i], {}) for i in range(count))


def finish(done: list[execution.Job]) -> list[execution.Job]:
    return execution.finish(backend_config(), done, worker=WORKER)


def release(claimed: list[execution.Job]) -> int:
    return execution.release(backend_config(), claimed)


# ---- one statement ----------------------------------------------------------------------------------


@one_statement
def test_enqueue_is_one_statement() -> None:
    assert len(statements(lambda: add.enqueue(1, 2))) == 1
    later = add.using(run_after=timezone.now() + timezone.timedelta(hours=1))
    assert len(statements(lambda: later.enqueue(1, 2))) == 1
    assert states() == {"ready": 1, "scheduled": 1}


@one_statement
def test_enqueue_is_one_transaction() -> None:
    add.enqueue(1, 2)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT job.xmin::text, ready.xmin::text FROM dj_queue_jobs job"
            " JOIN dj_queue_ready_executions ready ON ready.job_id = job.id"
        )
        ((job, ready),) = cursor.fetchall()
    assert job == ready


@one_statement
def test_enqueue_all_of_1000_jobs_is_one_statement() -> None:
    later = add.using(run_after=timezone.now() + timezone.timedelta(hours=1))
    calls = [(later if i % 2 else add, [i, i], {}) for i in range(1000)]
    assert len(statements(lambda: default_task_backend.enqueue_all(calls))) == 1
    assert states() == {"ready": 500, "scheduled": 500}


@one_statement
@pytest.mark.parametrize("paused", [False, True], ids=["nothing paused", "a queue paused"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("queues", SELECTORS, ids=",".join)
def test_a_claim_is_one_statement(queues: list[str], batch: int, paused: bool) -> None:
    for queue in ("a", "a2", "b", "c"):
        fill(batch, queue)
    if paused:
        Pause.objects.create(queue_name="c")
    claimed: list[execution.Job] = []
    assert len(statements(lambda: claimed.extend(claim(batch, queues=queues)))) == 1
    assert len(claimed) == batch


@one_statement
@pytest.mark.parametrize("queues", SELECTORS, ids=",".join)
def test_a_claim_of_nothing_is_one_statement(queues: list[str]) -> None:
    assert len(statements(lambda: claim(queues=queues))) == 1


@one_statement
@pytest.mark.parametrize("preserve", [True, False], ids=["preserved", "deleted"])
@pytest.mark.parametrize("batch", BATCHES)
def test_a_finish_is_one_statement(batch: int, preserve: bool, settings: Any) -> None:
    settings.TASKS = {"default": {**settings.TASKS["default"], "OPTIONS": {"preserve_finished_jobs": preserve}}}
    fill(batch)
    default_task_backend.enqueue_all((fail, [], {}) for _ in range(batch))
    done = run(claim(2 * batch))
    assert len(done) == 2 * batch
    assert len(statements(lambda: finish(done))) == 1
    assert Job.objects.failed().count() == batch
    assert Job.objects.finished().count() == (batch if preserve else 0)
    assert Job.objects.count() == (2 * batch if preserve else batch)


@one_statement
@pytest.mark.parametrize("batch", BATCHES)
def test_a_release_is_one_statement(batch: int) -> None:
    fill(batch)
    claimed = claim(batch)
    assert len(statements(lambda: release(claimed))) == 1
    assert Job.objects.ready().count() == batch


@one_statement
@pytest.mark.parametrize("batch", BATCHES)
def test_a_promotion_is_one_statement_in_a_transaction(batch: int) -> None:
    """The transaction is for jobs with a concurrency key, which may be among them."""
    later = add.using(run_after=timezone.now() + timezone.timedelta(hours=1))
    default_task_backend.enqueue_all((later, [i, i], {}) for i in range(batch))
    with connection.cursor() as cursor:
        cursor.execute("UPDATE dj_queue_scheduled_executions SET scheduled_at = statement_timestamp()")
    assert len(statements(lambda: jobs.promote(backend_config(), limit=batch))) == 3
    assert Job.objects.ready().count() == batch


# ---- what the server saw ----------------------------------------------------------------------------


@pytest.fixture
def server_calls() -> Iterator[Callable[[Callable[[], Any]], int]]:
    """Count the statements that reach the server, whoever sends them."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_stat_statements'")
        cursor.execute("SELECT current_setting('shared_preload_libraries') LIKE '%pg_stat_statements%'")
        if not cursor.fetchone()[0]:
            pytest.skip("the server does not keep statistics of statements")
        cursor.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        cursor.execute("SELECT oid FROM pg_database WHERE datname = current_database()")
        database = cursor.fetchone()[0]

    def count(step: Callable[[], Any]) -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_stat_statements_reset(0, %s, 0)", [database])
            step()
            cursor.execute(
                "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements"
                " WHERE dbid = %s AND query NOT LIKE '%%pg_stat_statements%%'",
                [database],
            )
            return int(cursor.fetchone()[0])

    yield count
    with connection.cursor() as cursor:
        cursor.execute("DROP EXTENSION pg_stat_statements")


@one_statement
def test_the_server_sees_no_more_statements(server_calls: Callable[..., int]) -> None:
    done: list[execution.Job] = []
    assert server_calls(lambda: add.enqueue(1, 2)) == 1
    assert server_calls(lambda: fill(1000)) == 1
    assert server_calls(lambda: done.extend(run(claim(100)))) == 1
    assert server_calls(lambda: finish(done)) == 1
    assert server_calls(lambda: release(done)) == 1


# ---- concurrency limits, and databases that need several statements ---------------------------------


@one_statement
@pytest.mark.parametrize("count", [1, 100])
@pytest.mark.parametrize("keys", [1, 100])
def test_jobs_with_a_concurrency_key_cost_one_statement(count: int, keys: int) -> None:
    """Enqueue: one, however many jobs and keys; three where a key is new: tried, its semaphore made, tried again.
    Finish: one round trip, with the unblocking of the next.
    """
    calls = [(one_per_key, [str(i % keys), i], {}) for i in range(count)]
    assert len(statements(lambda: default_task_backend.enqueue_all(calls))) == 3
    assert len(statements(lambda: default_task_backend.enqueue_all(calls))) == 1
    held = min(keys, count)
    assert states() == {"ready": held, "blocked": 2 * count - held}
    done = run(claim(count))
    assert len(done) == held
    ran = statements(lambda: finish(done))
    assert len(ran) == 1, ran
    assert states() == {"finished": held, "ready": held, **({"blocked": 2 * (count - held)} if count > held else {})}


@one_statement
def test_jobs_with_and_without_a_key_in_one_batch() -> None:
    """BEGIN, the semaphores, the jobs with a key, the jobs without one, COMMIT."""
    calls = [(one_per_key, ["k"], {}), (add, [1, 2], {})] * 2
    assert len(statements(lambda: default_task_backend.enqueue_all(calls))) == 5
    assert states() == {"ready": 3, "blocked": 1}


@one_statement
def test_a_driver_that_takes_one_statement_at_a_time(monkeypatch: Any) -> None:
    """BEGIN, the outcomes, the unblocking, COMMIT."""
    monkeypatch.setattr(type(dialect_for("default")), "finishes_at_once", lambda *_: False)
    default_task_backend.enqueue_all([(one_per_key, ["k"], {})] * 3)
    done = run(claim(3))
    assert len(statements(lambda: finish(done))) == 4
    assert states() == {"finished": 1, "ready": 1, "blocked": 1}


@pytest.mark.needs("several statements")
class TestSeveralStatements:
    """Where a step is a transaction: how many statements it has, BEGIN and COMMIT included."""

    def test_enqueue(self) -> None:
        """The clock, the jobs, the ready or the scheduled rows."""
        later = add.using(run_after=timezone.now() + timezone.timedelta(hours=1))
        assert len(statements(lambda: add.enqueue(1, 2))) == 5
        assert len(statements(lambda: later.enqueue(1, 2))) == 5
        calls = [(later if i % 2 else add, [i, i], {}) for i in range(1000)]
        assert len(statements(lambda: default_task_backend.enqueue_all(calls))) == 6
        assert states() == {"ready": 501, "scheduled": 501}

    @pytest.mark.parametrize("batch", BATCHES)
    def test_claim(self, batch: int) -> None:
        """Is there any, outside the transaction; the pick where nothing is paused, its end, the claims, the jobs."""
        fill(batch, "a")
        claim(1)
        fill(1, "a")
        claimed: list[execution.Job] = []
        assert len(statements(lambda: claimed.extend(claim(batch)))) == 7
        assert len(claimed) == batch

    @pytest.mark.parametrize("queues", SELECTORS, ids=",".join)
    def test_claim_by_selectors(self, queues: list[str]) -> None:
        """One more statement for the names of queues, asked for at once when none of them is new, and a pick each."""
        for queue in ("a", "a2", "b", "c"):
            fill(2, queue)
        claim(1, queues=queues)
        claimed: list[execution.Job] = []
        ran = statements(lambda: claimed.extend(claim(10, queues=queues)))
        assert len(ran) <= 8 + len(queues), ran
        assert claimed

    def test_claim_of_nothing(self) -> None:
        assert len(statements(claim)) == 1

    @pytest.mark.parametrize("batch", BATCHES)
    def test_finish(self, batch: int, settings: Any) -> None:
        """The claims' locks, the jobs, the failures, the claims' end."""
        fill(batch)
        done = run(claim(batch))
        assert len(statements(lambda: finish(done))) == 5
        fill(batch)
        default_task_backend.enqueue_all((fail, [], {}) for _ in range(batch))
        done = run(claim(2 * batch))
        assert len(statements(lambda: finish(done))) == 6
        settings.TASKS = {"default": {**settings.TASKS["default"], "OPTIONS": {"preserve_finished_jobs": False}}}
        fill(batch)
        done = run(claim(batch))
        # Instead of the jobs' update: their ticks', and their own end.
        assert len(statements(lambda: finish(done))) == 6
        assert states() == {"finished": 2 * batch, "failed": batch}

    @pytest.mark.parametrize("batch", BATCHES)
    def test_release(self, batch: int) -> None:
        """The claims' locks, the ready rows, the claims' end."""
        fill(batch)
        claimed = claim(batch)
        assert len(statements(lambda: release(claimed))) == 5
        assert Job.objects.ready().count() == batch

    @pytest.mark.parametrize("batch", BATCHES)
    def test_promotion(self, batch: int) -> None:
        """Is any due, outside the transaction; how many are, which, with what keys, their end, the ready rows."""
        later = add.using(run_after=timezone.now() + timezone.timedelta(hours=1))
        default_task_backend.enqueue_all((later, [i, i], {}) for i in range(batch))
        ScheduledExecution.objects.update(scheduled_at=timezone.now())
        assert len(statements(lambda: jobs.promote(backend_config(), limit=batch))) == 8
        assert Job.objects.ready().count() == batch
        assert len(statements(lambda: jobs.promote(backend_config(), limit=batch))) == 1

    @pytest.mark.parametrize("count", [1, 100])
    @pytest.mark.parametrize("keys", [1, 100])
    def test_jobs_with_a_concurrency_key(self, count: int, keys: int) -> None:
        """Enqueue: the clock, the semaphores' locks and their change, the jobs, the ready and the blocked rows; where
        keys are new, their semaphores made and locked. Finish: beside its own, the locks of the semaphores and of the
        next blocked jobs, the ready rows, the semaphores' change; what is blocked no more is deleted with the claims.
        """
        calls = [(one_per_key, [str(i % keys), i], {}) for i in range(count)]
        some_blocked = count > keys
        ran = statements(lambda: default_task_backend.enqueue_all(calls))
        assert len(ran) == 9 + some_blocked, ran
        ran = statements(lambda: default_task_backend.enqueue_all(calls))
        assert len(ran) == 7, ran
        held = min(keys, count)
        assert states() == {"ready": held, "blocked": 2 * count - held}
        done = run(claim(count))
        assert len(done) == held
        ran = statements(lambda: finish(done))
        assert len(ran) == 8, ran
        left = 2 * (count - held)
        assert states() == {"finished": held, "ready": held, **({"blocked": left} if left else {})}

    @pytest.mark.parametrize("count", [1, 100])
    def test_the_next_job_of_a_key_is_claimed_in_the_same_transaction(self, count: int) -> None:
        """Beside the finish: the pick, its end, the claims, the jobs. One commit a job, not two."""
        calls = [(one_per_key, [str(i), i], {}) for i in range(count)]
        default_task_backend.enqueue_all(calls * 2)
        done = run(claim(count))
        claiming = execution.Claiming(backend_config(), [Selector("", prefix=True)], count, None)
        found: list[list[execution.Job]] = []
        ran = statements(
            lambda: found.extend(execution.finish_and_claim(backend_config(), done, claiming, worker=WORKER))
        )
        assert len(ran) == 12, ran
        assert [len(jobs) for jobs in found] == [count, count]
        assert states() == {"finished": count, "claimed": count}
        # Nobody waits any more: nothing is claimed, and the finish costs what it did.
        ran = statements(lambda: execution.finish_and_claim(backend_config(), run(found[1]), claiming, worker=WORKER))
        assert len(ran) == 7, ran


STEPS: dict[str, tuple[Callable[[int], Any], Callable[[Any], Any]]] = {
    "enqueue": (lambda batch: batch, fill),
    "claim": (lambda batch: (fill(batch), batch)[1], claim),
    "finish": (lambda batch: (fill(batch), run(claim(batch)))[1], finish),
    "finish of failures": (
        lambda batch: (
            default_task_backend.enqueue_all((fail, [], {}) for _ in range(batch)),
            run(claim(batch)),
        )[1],
        finish,
    ),
    "release": (lambda batch: (fill(batch), claim(batch))[1], release),
}


@pytest.mark.parametrize("step", STEPS)
def test_statements_do_not_grow_with_the_batch(step: str) -> None:
    prepare, take = STEPS[step]
    counts = []
    for batch in BATCHES:
        Job.objects.all().delete()
        prepared = prepare(batch)
        counts.append(len(statements(lambda: take(prepared))))  # noqa: B023
    assert len(set(counts)) == 1, counts
    assert counts[0] <= 8


# ---- how updates are written ------------------------------------------------------------------------


@one_statement
def test_finishing_touches_no_index() -> None:
    """Nearly every update of a job is heap-only: its page has room, and no indexed column changes."""

    def updates() -> tuple[int, int]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_stat_force_next_flush()")
            cursor.execute("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'dj_queue_jobs'")
            return cursor.fetchone()

    fill(450)
    default_task_backend.enqueue_all((fail, [], {}) for _ in range(50))
    before, hot_before = updates()
    while done := run(claim(50)):
        finish(done)
    assert Job.objects.exclude(started_at=None).count() == 500
    wait_until(lambda: updates()[0] - before >= 500, what="the statistics of 500 updates")
    after, hot_after = updates()
    assert after - before == 500
    assert hot_after - hot_before >= 0.8 * 500


def test_a_job_is_written_once_by_its_claim_and_finish() -> None:
    """The claim leaves the job's own row alone: one update a job, by its finish."""
    fill(3)
    ran = [sql for sql in statements(lambda: claim(3)) if "UPDATE dj_queue_jobs" in sql]
    assert ran == []

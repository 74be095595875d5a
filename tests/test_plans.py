"""Each statement of the hot path has one right plan, by index: with ten jobs, with a million, and with
statistics that know nothing of them.

What is explained is the text that the code runs, with its parameters, on a connection that is prepared
as the runtime's are, and the rows are those that were looked at: a branch that a plan has and never takes
costs nothing.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from django.db import connection, transaction

from dj_queue.config import backend_config
from dj_queue.dialects import dialect_for
from dj_queue.dialects.clock import Now
from dj_queue.models import BlockedExecution, Job, Pause, Process, ScheduledExecution, Semaphore
from dj_queue.operations import execution, jobs, processes
from tests.plans import QUEUES, reader
from tests.project.tasks import add, one_per_key
from tests.working import WORKER, claim, run

pytestmark = [pytest.mark.django_db, pytest.mark.timeout(300), pytest.mark.needs("plans")]

SCHEDULED = 20_000
BATCH = 50


@pytest.fixture(scope="module")
def emptied(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """What follows finds the tables as they were, and a connection like any other."""
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        reader().keep_statistics(cursor, True)
    yield
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        reader().keep_statistics(cursor, False)
        reader().empty(cursor)
        reader().analyze(cursor)
        connection.close()


TEN, STALE, ANALYZED = "ten jobs", "a million, analyzed when empty", "a million, analyzed"


@pytest.fixture(scope="module", params=[TEN, STALE, ANALYZED])
def filled(request: Any, emptied: None, django_db_blocker: Any) -> None:
    if reason := reader().unknown:
        pytest.skip(reason)
    with django_db_blocker.unblock():
        connection.close()
        connection.ensure_connection()
        dialect_for("default").prepare_session(connection)
        with connection.cursor() as cursor:
            last, scheduled = (10, 10) if request.param == TEN else (reader().many, SCHEDULED)
            if Job.objects.count() != last + scheduled:
                reader().empty(cursor)
                reader().analyze(cursor)
                reader().fill(cursor, last, scheduled)
            if request.param != STALE:
                reader().analyze(cursor)


def check(step: Callable[[], Any], *, rows: int, sorts: bool = False) -> None:
    """No table is read whole, no more rows are looked at than these, and sorted only where allowed.

    While all jobs are on a page or two, walking their index costs as much as looking up ten of them, and
    dead rows decide which it is. So there, each scan may walk them all once.
    """
    jobs = Job.objects.count()
    tiny = jobs if jobs < 100 else 0
    for plan in reader().plans(step):
        assert plan.sequential == [], plan
        assert plan.rows_read <= rows * reader().overhead + tiny * plan.scans, plan
        if not sorts:
            assert plan.sorts == [], plan


# ---- the steps --------------------------------------------------------------------------------------

# For each row that a claim picks: the row itself, again to delete it, and its job.
CLAIMED = 4 * BATCH
# A prefix or "*" among others, or a paused queue, asks every queue for its first rows.
MERGED = (len(QUEUES) + 4) * BATCH + 4 * len(QUEUES)


@pytest.mark.parametrize("queues", [["*"], ["a"], ["a", "b"], ["b", "no such queue", "a1"]], ids=",".join)
def test_claim_in_index_order(filled: None, queues: list[str]) -> None:
    check(lambda: claim(BATCH, queues=queues), rows=CLAIMED + 10)


@pytest.mark.parametrize("queues", [["a*"], ["a*", "b"], ["a", "*"], ["z*", "a*", "*"]], ids=",".join)
def test_claim_of_prefixes(filled: None, queues: list[str]) -> None:
    check(lambda: claim(BATCH, queues=queues), rows=len(queues) * MERGED, sorts=True)


@pytest.mark.parametrize("queues", [["*"], ["a"], ["a", "b"], ["a*", "b"], ["a", "*"]], ids=",".join)
def test_claim_while_a_queue_is_paused(filled: None, queues: list[str]) -> None:
    Pause.objects.create(queue_name="a")
    check(lambda: claim(BATCH, queues=queues), rows=len(queues) * MERGED, sorts=True)


def test_claim_with_many_pauses(filled: None) -> None:
    """The table of pauses may be analyzed when it is empty, too."""
    Pause.objects.bulk_create(Pause(queue_name=f"paused-{n}") for n in range(1000))
    check(lambda: claim(BATCH, queues=["a", "b"]), rows=CLAIMED + 10)
    check(lambda: claim(BATCH, queues=["*"]), rows=MERGED, sorts=True)


@pytest.mark.parametrize("queues", [["*"], ["a"], ["a", "b"], ["a*", "b"], ["b", "*"]], ids=",".join)
def test_claim_leaves_paused_queues_alone(filled: None, queues: list[str]) -> None:
    """An idle worker that asks ten times a second locks no row of a paused queue."""
    Pause.objects.bulk_create(Pause(queue_name=name) for name in QUEUES)
    assert claim(BATCH, queues=queues) == []
    check(lambda: claim(BATCH, queues=queues), rows=10 * len(QUEUES))


def test_claim_without_skip_locked(filled: None, settings: Any) -> None:
    settings.TASKS = {"default": {**settings.TASKS["default"], "OPTIONS": {"use_skip_locked": False}}}
    check(lambda: claim(BATCH), rows=CLAIMED + 10)


@pytest.mark.parametrize("preserve", [True, False], ids=["preserved", "deleted"])
@pytest.mark.parametrize("fails", [False, True], ids=["successes", "a failure"])
def test_finish(filled: None, settings: Any, preserve: bool, fails: bool) -> None:
    settings.TASKS = {"default": {**settings.TASKS["default"], "OPTIONS": {"preserve_finished_jobs": preserve}}}
    done = run(claim(BATCH))
    assert done
    if fails:
        (failed,) = run(_claim_one_that_fails())
        done.append(failed)
    check(lambda: execution.finish(backend_config(), done, worker=WORKER), rows=3 * len(done))


def test_finish_among_dead_rows(filled: None, settings: Any) -> None:
    """They make a small table look larger or smaller than it is."""
    settings.TASKS = {"default": {**settings.TASKS["default"], "OPTIONS": {"preserve_finished_jobs": False}}}
    for _ in range(12):
        with transaction.atomic():
            for _ in range(3):
                add.enqueue(1, 2)
            transaction.set_rollback(True)
        with transaction.atomic():
            done = run([*claim(BATCH), *_claim_one_that_fails()])
            check(partial(execution.finish, backend_config(), done, worker=WORKER), rows=3 * len(done))
            transaction.set_rollback(True)


def _claim_one_that_fails() -> list[execution.Job]:
    result = add.using(queue_name="failing").enqueue("text", 1)
    claimed = claim(1, queues=["failing"])
    assert [str(job.claim.job_id) for job in claimed] == [result.id]
    return claimed


def test_finish_of_limited_jobs(filled: None) -> None:
    """Semaphores and blocked jobs are found by index too, few as they are."""
    for n in range(20):
        one_per_key.using(queue_name="limited").enqueue(str(n % 4))
    assert (Semaphore.objects.count(), BlockedExecution.objects.count()) == (4, 16)
    done = run(claim(BATCH, queues=["limited"]))
    assert len(done) == 4
    check(lambda: execution.finish(backend_config(), done, worker=WORKER), rows=60, sorts=True)


def test_release(filled: None) -> None:
    claimed = claim(BATCH)
    assert claimed
    check(lambda: execution.release(backend_config(), claimed), rows=3 * len(claimed))


def test_promote(filled: None) -> None:
    assert ScheduledExecution.objects.filter(scheduled_at__lt=Now()).exists()
    check(lambda: jobs.promote(backend_config(), limit=BATCH), rows=4 * BATCH)


def test_enqueue(filled: None) -> None:
    check(lambda: add.enqueue(1, 2), rows=0)


def test_heartbeat(filled: None) -> None:
    process = Process.objects.create(kind="Worker", pid=1, name="worker-1")
    check(lambda: processes.heartbeat(backend_config(), process.pk), rows=1)

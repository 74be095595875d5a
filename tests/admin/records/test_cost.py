"""What lists and pages cost: so many statements however many jobs there are, none of which reads a table whole."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from dj_queue.models import ClaimedExecution, FailedExecution, Job
from tests.plans import Plan, reader

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.timeout(600),
    pytest.mark.needs("executed plans"),
]

MILLION = 1_000_000
# What one request may look at: a window, a count up to its cap, a search's matches, and their joins.
LOOKED_AT = 130_000

_ID = "('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid"
_QUEUE = "'queue-' || n %% 50"
_TASK = "'shop.tasks.task_' || n %% 20"
# A tenth each waits, is scheduled, failed and blocked; a thousand run; the others are finished.
_FILL = f"""
INSERT INTO dj_queue_jobs (id, task_path, queue_name, priority, payload, backend_alias, finished_at, concurrency_key)
SELECT {_ID}, {_TASK}, {_QUEUE}, 0,
  jsonb_build_object('args', jsonb_build_array(n), 'kwargs', jsonb_build_object('name', 'text ' || n)),
  'default', CASE WHEN n %% 10 > 4 THEN now() END, CASE WHEN n %% 10 IN (0, 3) THEN 'key-' || n %% 1000 END
FROM generate_series(1, %(jobs)s) n;
INSERT INTO dj_queue_ready_executions (job_id, backend_alias, queue_name, priority, concurrency_key)
SELECT {_ID}, 'default', {_QUEUE}, 0, CASE WHEN n < 10000 THEN 'key-' || n %% 1000 END
FROM generate_series(10, %(jobs)s, 10) n;
INSERT INTO dj_queue_scheduled_executions (job_id, backend_alias, queue_name, priority, scheduled_at)
SELECT {_ID}, 'default', {_QUEUE}, 0, now() + make_interval(secs => n) FROM generate_series(1, %(jobs)s, 10) n;
INSERT INTO dj_queue_failed_executions
  (job_id, backend_alias, queue_name, exception_class, message, traceback, created_at)
SELECT {_ID}, 'default', {_QUEUE}, 'shop.errors.Error' || n %% 7, 'message ' || n, repeat('trace ', 100),
  now() - make_interval(secs => %(jobs)s - n)
FROM generate_series(2, %(jobs)s, 10) n;
INSERT INTO dj_queue_blocked_executions (job_id, backend_alias, queue_name, priority, concurrency_key, expires_at)
SELECT {_ID}, 'default', {_QUEUE}, 0, 'key-' || n %% 1000, now() FROM generate_series(3, %(jobs)s, 10) n;
INSERT INTO dj_queue_claimed_executions (job_id) SELECT {_ID} FROM generate_series(4, LEAST(%(jobs)s, 10000), 10) n;
INSERT INTO dj_queue_recurring_executions (backend_alias, job_id, task_key, run_at)
SELECT 'default', {_ID}, 'tick-' || n %% 10, now() - make_interval(mins => n) FROM generate_series(5, %(jobs)s, 10) n;
INSERT INTO dj_queue_semaphores (key, value, "limit", expires_at)
SELECT 'key-' || n, 0, 1, now() FROM generate_series(0, 999) n"""
_TABLES = [
    f"dj_queue_{name}"
    for name in ("jobs", "ready_executions", "scheduled_executions", "failed_executions", "blocked_executions",
                 "claimed_executions", "recurring_executions", "semaphores", "recurring_tasks")
]  # fmt: skip
_EMPTY = f"TRUNCATE {', '.join(_TABLES)} CASCADE"


@pytest.fixture(scope="module")
def filled(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    with django_db_blocker.unblock():
        _fill(MILLION)
        yield
        with connection.cursor() as cursor:
            cursor.execute(_EMPTY)
            cursor.execute("ANALYZE")
        connection.close()


def _fill(jobs: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_EMPTY)
        cursor.execute(_FILL, {"jobs": jobs})
        cursor.execute("ANALYZE")


def _client() -> Client:
    user, _ = User.objects.get_or_create(username="ada", is_staff=True, is_superuser=True)
    client = Client()
    client.force_login(user)
    return client


LISTS = {
    "all": "job/",
    "the last page": "job/?p=100",
    **{state: f"job/?status={state}" for state in ("ready", "scheduled", "claimed", "blocked", "failed", "finished")},
    "a queue": "job/?queue=queue-7",
    "a queue's ready": "job/?queue=queue-0&status=ready",
    "a queue's scheduled": "job/?queue=queue-1&status=scheduled",
    "a queue's failed": "job/?queue=queue-2&status=failed",
    "a queue's finished": "job/?queue=queue-7&status=finished",
    "a queue that there is not": "job/?queue=none&status=ready",
    "a task": "job/?task=shop.tasks.task_7",
    "a task that there is not": "job/?task=none",
    "a failed task": "job/?task=shop.tasks.task_2&status=failed",
    "a key": "job/?concurrency_key=key-3",
    "a blocked key": "job/?concurrency_key=key-3&status=blocked",
    "a recurring task": "job/?recurring_task_key=tick-5",
    "a recurring task's finished": "job/?recurring_task_key=tick-5&status=finished",
    "a recurring task that there is not": "job/?recurring_task_key=none",
    "a time": "job/?since=2024-06-10&until=2024-06-20",
    "a time of failed": "job/?status=failed&since=7d",
    "a time of ready": "job/?status=ready&since=2024-06-10&until=2024-06-20",
    "a text": "job/?q=text 99999",
    "a text that there is not": "job/?q=nowhere to be found",
    "a text of failed": "job/?q=text 99&status=failed",
    "an id": "job/?q=01900000-0000-7000-8000-00000000000a",
    "failures": "failedexecution/",
    "failures of a queue": "failedexecution/?queue=queue-2",
    "failures of an exception": "failedexecution/?exception_class=shop.errors.Error3",
    "failures of an exception that there is not": "failedexecution/?exception_class=none",
    "failures of a time": "failedexecution/?since=7d&until=5d",
    "failures with a text": "failedexecution/?q=message 9",
    "groups": "failedexecution/groups/",
    "asking to retry": "failedexecution/bulk/?verb=retry&exception_class=shop.errors.Error3",
    "semaphores": "semaphore/",
    "semaphores with a text": "semaphore/?q=key-7",
}


def test_a_million_jobs_cost_so_many_statements_and_no_whole_table(filled: None, record_property: Any) -> None:
    client = _client()
    counts, slowest = {}, []
    pages = {**LISTS, **_pages()}
    wrong = []
    for name, address in pages.items():
        counts[name], took = _cost(client, address)
        slowest.append((took, name))
        found = reader().plans(lambda address=address: client.get(f"/admin/dj_queue/{address}"))  # type: ignore[misc]
        wrong += [f"{name}: {plan.rows_read:.0f} rows: {plan}" for plan in found if not _is_bounded(name, plan)]
    assert wrong == [], "\n\n".join(wrong)
    slowest.sort(reverse=True)
    shown = ", ".join(f"{name} {took * 1000:.0f} ms" for took, name in slowest[:5])
    print(f"a million jobs: {max(counts.values())} statements at most; the slowest: {shown}")
    _fill(10)
    for name, address in {**LISTS, **_pages(), "the last page": "job/"}.items():
        few, _ = _cost(client, address)
        assert counts[name] <= few + _MORE.get(name, 2), name
    assert max(counts.values()) <= 16


def _is_bounded(name: str, plan: Plan) -> bool:
    # Of the failures, a tenth is looked at: the planner may read them all, and would not if there were more.
    small = {*_SMALL, "dj_queue_failed_executions"} if name == "groups" else _SMALL
    return set(plan.sequential) <= small and plan.rows_read <= LOOKED_AT


# Tables that hold only what runs, what is limited, and who logs in.
_SMALL = {"dj_queue_claimed_executions", "dj_queue_semaphores", "dj_queue_processes", "dj_queue_recurring_tasks"}
# A search loads its matches in five pieces, and a sixth that tells whether there are more; a list without rows asks
# neither for them nor for their jobs.
_MORE = {"a text": 7, "a text of failed": 7, "failures with a text": 7}


def _pages() -> dict[str, str]:
    failed = FailedExecution.objects.order_by("-pk").values_list("pk", "job_id").first()
    assert failed is not None
    blocked = Job.objects.blocked().order_by("-pk").values_list("pk", flat=True)[0]
    claimed = ClaimedExecution.objects.values_list("job_id", flat=True)[0]
    return {
        "the page of a failed job": f"job/{failed[1]}/change/",
        "the page of a failure": f"failedexecution/{failed[0]}/change/",
        "the page of a blocked job": f"job/{blocked}/change/",
        "the page of a running job": f"job/{claimed}/change/",
    }


def _cost(client: Client, address: str) -> tuple[int, float]:
    started = time.perf_counter()
    with CaptureQueriesContext(connection) as queries:
        page = client.get(f"/admin/dj_queue/{address}")
        assert page.status_code == 200, address
    return len(queries), time.perf_counter() - started

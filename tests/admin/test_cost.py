"""What the dashboard costs on PostgreSQL: with ten jobs, and with a million in seven queues."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from dj_queue.config import backend_config
from dj_queue.models import Job
from dj_queue.operations import history
from dj_queue.operations.history import RANGES
from tests.plans import reader

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.timeout(600),
    pytest.mark.needs("executed plans"),
]

MILLION = 1_000_000
TABLES = ["jobs", "ready_executions", "failed_executions", "scheduled_executions"]
EMPTY = "TRUNCATE dj_queue_jobs, dj_queue_ready_executions, dj_queue_claimed_executions CASCADE"

# Job n of N was enqueued n/N of a day ago; its id says so as well. Of twenty jobs, one waits, one is
# scheduled and one has failed; the others have finished.
FILL = """
INSERT INTO dj_queue_jobs (id, task_path, queue_name, priority, payload, backend_alias, scheduled_at,
  created_at, updated_at, started_at, last_attempted_at, finished_at, worker_ids)
SELECT
  (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7000' || '8' ||
    substr(md5(n::text), 1, 15))::uuid,
  'tests.project.tasks.add', 'queue-' || n %% 7, 0, '{"args": [1, 2], "kwargs": {}}', 'default',
  CASE WHEN n %% 20 = 1 THEN now() + interval '1 hour' END,
  at, at, CASE WHEN n %% 20 > 1 THEN at + interval '2 s' END, CASE WHEN n %% 20 > 1 THEN at + interval '2 s' END,
  CASE WHEN n %% 20 > 2 THEN at + interval '5 s' END, '["worker-1"]'
FROM (SELECT n, now() - interval '1 day' * n / %(count)s AS at FROM generate_series(1, %(count)s) n) AS moments;
INSERT INTO dj_queue_ready_executions (job_id, backend_alias, queue_name, priority, created_at)
SELECT id, 'default', queue_name, 0, created_at FROM dj_queue_jobs WHERE started_at IS NULL AND scheduled_at IS NULL;
INSERT INTO dj_queue_scheduled_executions (job_id, backend_alias, queue_name, priority, scheduled_at, created_at)
SELECT id, 'default', queue_name, 0, scheduled_at, created_at FROM dj_queue_jobs WHERE scheduled_at IS NOT NULL;
INSERT INTO dj_queue_failed_executions
  (job_id, backend_alias, queue_name, exception_class, message, traceback, created_at)
SELECT id, 'default', queue_name, 'builtins.ValueError', '', '', created_at + interval '5 s' FROM dj_queue_jobs
WHERE finished_at IS NULL AND started_at IS NOT NULL"""


@pytest.fixture(scope="module", params=[10, MILLION])
def filled(request: Any, django_db_setup: None, django_db_blocker: Any) -> Iterator[int]:
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(EMPTY)
        cursor.execute(FILL, {"count": request.param})
        cursor.execute("ANALYZE")
    yield request.param
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(EMPTY)
        cursor.execute("ANALYZE")
        connection.close()


PAGES = {
    "overview": "",
    "overview, a day": "?range=24h",
    "overview, live": "",
    "ready": "queue/queue-3/?state=ready",
    "failed": "queue/queue-3/?state=failed",
    "finished, page 5": "queue/queue-3/?state=finished&page=5",
    "scheduled, a day": "queue/queue-3/?state=scheduled&range=24h",
    "search": "queue/queue-3/?state=finished&q=nothing",
}
# The visitor's session, user and rights; what is observed; the charts; the lists.
MOST = 30
counted: dict[str, dict[int, int]] = {}


@pytest.mark.parametrize("name", PAGES)
def test_statements(filled: int, name: str) -> None:
    client = Client()
    client.force_login(User.objects.create_superuser("admin"))
    headers = {"DJ-Queue-Live": "1"} if "live" in name else {}
    address = f"/admin/dj_queue/dashboard/{PAGES[name]}"
    client.get(address, headers=headers)  # content types are cached
    slowest: list[tuple[float, str]] = []

    def clock(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        began = time.perf_counter()
        try:
            return execute(sql, params, many, context)
        finally:
            slowest.append((time.perf_counter() - began, sql))

    began = time.perf_counter()
    with CaptureQueriesContext(connection) as ran, connection.execute_wrapper(clock):
        assert client.get(address, headers=headers).status_code == 200
    whole = time.perf_counter() - began
    counted.setdefault(name, {})[filled] = len(ran)
    seconds, sql = max(slowest)
    print(
        f"{name} with {filled:,} jobs: {len(ran)} statements, {whole * 1000:.0f} ms in all;"
        f" the slowest {seconds * 1000:.1f} ms: {sql[:60]}"
    )
    assert len(ran) <= MOST
    # Charts count on where few spans are full, and lists look for where to stop.
    assert max(counted[name].values()) - min(counted[name].values()) <= 3
    assert whole < 5


@pytest.mark.parametrize("queue", [None, "queue-3"])
@pytest.mark.parametrize("within", RANGES, ids=[each.name for each in RANGES])
def test_charts_read_a_bounded_number_of_rows_by_index(filled: int, within: Any, queue: str | None) -> None:
    spans = within.steps + 12
    for plan in reader().plans(lambda: history.history_of(backend_config(), within, queue_name=queue)):
        if filled == MILLION:
            # Claims are only what runs now: a page of rows.
            assert set(plan.sequential) <= {"dj_queue_claimed_executions"}, plan
        assert plan.rows_read <= spans * 5 * history.CAP + 10, plan.sql[:200]


def test_the_charts_are_about_right(filled: int) -> None:
    if filled < MILLION:
        pytest.skip("ten jobs are exact")
    found = history.history_of(backend_config(), next(each for each in RANGES if each.name == "24h"))
    total = sum(step.enqueued for step in found.steps)
    print(f"about {total:,} of {Job.objects.count():,} jobs")
    assert total == pytest.approx(MILLION, rel=0.1)
    assert sum(step.finished for step in found.steps) == pytest.approx(0.85 * MILLION, rel=0.15)

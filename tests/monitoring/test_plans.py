"""An observation finds its rows by index and reads no more than its caps, with ten jobs and with a million.

Also how long `stats.json` and `metrics` take at a million jobs: printed, and far below any monitor's patience.
"""

import time
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from dj_queue.config import backend_config
from dj_queue.dialects.postgresql import _PINS
from dj_queue.models import Job
from dj_queue.operations import observation
from dj_queue.operations.observation import observe
from tests.plans import QUEUES, Plan, reader
from tests.test_plans import emptied, filled  # noqa: F401

pytestmark = [pytest.mark.django_db, pytest.mark.timeout(300), pytest.mark.needs("one statement")]

CAP = 1_000
STATES = ("ready", "scheduled", "blocked", "failed")


def _as_any_connection() -> None:
    """Undo what prepares the runtime's connections: monitors come over the application's."""
    with connection.cursor() as cursor:
        for name in _PINS:
            cursor.execute(f"RESET {name}")


def total(found: list[Plan]) -> float:
    return sum(plan.rows_read for plan in found)


@pytest.mark.parametrize("cap", [CAP, observation.CAP], ids=["capped", "counted"])
def test_an_observation_reads_by_index_and_within_its_cap(filled: None, cap: int) -> None:  # noqa: F811
    _as_any_connection()
    found = reader().explained(lambda: observe(backend_config(), cap=cap))
    assert len(found) >= 5
    for plan in found:
        # Small tables without an index of their own for this: processes, recurring tasks.
        assert set(plan.sequential) <= {"dj_queue_processes", "dj_queue_recurring_tasks"}, plan
    # Each state and all jobs up to the cap; then the names, the longest waits in five priorities, and the
    # oldest jobs of queues that exceed the cap.
    each_queue = (len(STATES) + 1) * (cap + 1) + 5 * 3 * observation._WAITING_LOOK + observation._FINISHED_LOOK
    assert total(found) <= len(QUEUES) * (each_queue + 100) + cap, found


@pytest.mark.parametrize("path", ["stats.json", "metrics"])
def test_a_scrape_at_a_million_jobs(filled: None, settings: Any, path: str) -> None:  # noqa: F811
    settings.ROOT_URLCONF = "tests.monitoring.urls"
    _as_any_connection()
    with connection.cursor() as cursor:
        cursor.execute("SELECT reltuples FROM pg_class WHERE relname = 'dj_queue_jobs'")
        (estimate,) = cursor.fetchone()
    client = Client()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        answer = client.get(f"/dj_queue/{path}")
        times.append(time.perf_counter() - began)
    assert answer.status_code == 200
    jobs = Job.objects.count()
    print(f"\n{path} with {jobs} jobs (the planner believes {estimate:.0f}):"
          f" {', '.join(f'{each * 1000:.0f} ms' for each in times)}")  # fmt: skip
    assert min(times) < 20  # on a machine that does much else meanwhile

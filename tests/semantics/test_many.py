"""Several runtimes at once, with dense schedules: every tick and every due job once, and none missed.

DJ_QUEUE_TEST_LONG=1 goes on for a minute instead of twelve seconds. What was counted is printed: pytest -rP
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.tasks import default_task_backend
from django.utils import timezone

from dj_queue.models import Job, RecurringExecution
from tests import databases
from tests.conftest import lines, wait_until
from tests.project import tasks
from tests.working import states

SECONDS = 60 if os.environ.get("DJ_QUEUE_TEST_LONG") == "1" else 12
SECOND = timedelta(seconds=1)

EVERY_SECOND = [f"second-{n}" for n in range(8)]
EVERY_OTHER = [f"other-{n}" for n in range(8)]
MINUTELY = [f"minute-{n}" for n in range(4)]
STEPS = {**dict.fromkeys(EVERY_SECOND, 1), **dict.fromkeys(EVERY_OTHER, 2), **dict.fromkeys(MINUTELY, 60)}
SCHEDULED = 100 * SECONDS

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.timeout(SECONDS + 90),
    pytest.mark.needs("skipped locks"),
]


def recurring(path: Path) -> dict[str, Any]:
    def each(schedule: str, key: str) -> dict[str, Any]:
        return {"task_path": "tests.project.tasks.append_line", "schedule": schedule, "args": [str(path), key]}

    return {
        **{key: each("* * * * * *", key) for key in EVERY_SECOND},
        **{key: each("* * * * * */2", key) for key in EVERY_OTHER},
        **{key: each("* * * * *", key) for key in MINUTELY},
    }


@pytest.mark.parametrize("count", [2, 4])
def test_every_tick_once_and_none_missed(count: int, runtime: Callable[..., Any], tmp_path: Path) -> None:
    """One of them dies in the middle of it."""
    ran, ran_scheduled = tmp_path / "ran", tmp_path / "scheduled"
    options = {
        "recurring": recurring(ran),
        "dispatchers": {"polling_interval": 0.1, "batch_size": 7, "concurrency_maintenance_interval": 1},
        "scheduler": {"polling_interval": 1},
        "workers": [],
    }
    working = {**options, "workers": {"threads": 4, "polling_interval": 0.05}}
    started = [runtime("--mode", "async", options=working if n == 0 else options, rows=None) for n in range(count)]
    for n, each in enumerate(started):
        each.wait_ready(rows=3 if n == 0 else 2)

    began = time.monotonic()
    first = timezone.now() + 2 * SECOND
    calls = []
    for n in range(SCHEDULED):
        due = first + n * SECOND * (SECONDS - 4) / SCHEDULED
        calls.append((tasks.append_line.using(run_after=due), [str(ran_scheduled), str(n)], {}))
    default_task_backend.enqueue_all(calls)

    def passed(seconds: float) -> Callable[[], bool]:
        return lambda: time.monotonic() - began > seconds

    wait_until(passed(SECONDS / 2), seconds=SECONDS, what="half the time")
    started[-1].signal(signal.SIGKILL)
    wait_until(passed(SECONDS), seconds=SECONDS, what="the time")
    wait_until(lambda: len(lines(ran_scheduled)) >= SCHEDULED, seconds=20, what="every scheduled job")
    for each in started[:-1]:
        assert each.stop() == 0

    # Every tick from the first to the last.
    fired: dict[str, list[datetime]] = defaultdict(list)
    for key, run_at in RecurringExecution.objects.order_by("run_at").values_list("task_key", "run_at"):
        fired[key].append(run_at)
    # Twelve seconds may hold no full minute.
    assert {*EVERY_SECOND, *EVERY_OTHER} <= set(fired) <= set(STEPS)
    missed = doubled = 0
    for key, found in fired.items():
        step = SECOND * STEPS[key]
        expected = {found[0] + n * step for n in range((found[-1] - found[0]) // step + 1)}
        missed += len(expected - set(found))
        doubled += len(found) - len(set(found))
        # A busy machine starts late.
        least = SECONDS / 2 * SECOND if key not in MINUTELY else 0 * SECOND
        assert found[-1] - found[0] >= least, f"{key} fired from {found[0]} to {found[-1]}"
    if set(fired) & set(MINUTELY) or SECONDS >= 60:
        assert {len(fired[key]) for key in MINUTELY} <= {1, 2}

    # Each with its job, and each job run once.
    finished = Counter(
        Job.objects.finished()
        .filter(recurring_execution__isnull=False)
        .values_list("recurring_execution__task_key", flat=True)
    )
    assert not RecurringExecution.objects.filter(job=None).exists()
    assert Job.objects.count() == SCHEDULED + sum(map(len, fired.values()))
    doubled += sum((Counter(lines(ran)) - finished).values())
    doubled += sum((Counter(lines(ran_scheduled)) - Counter(map(str, range(SCHEDULED)))).values())
    assert Counter(lines(ran)) == finished
    late = max(
        job.started_at - job.scheduled_at for job in Job.objects.filter(scheduled_at__isnull=False)
    ).total_seconds()
    slowest = max(row.created_at - row.run_at for row in RecurringExecution.objects.all()).total_seconds()
    print(
        f"[{databases.VENDOR}] {count} schedulers and dispatchers, {SECONDS} s: {sum(map(len, fired.values()))} ticks,"
        f" {SCHEDULED} due jobs; {missed} missed, {doubled} doubled; latest tick {slowest:.2f} s after its time,"
        f" latest job begun {late:.2f} s after it was due"
    )
    assert (missed, doubled) == (0, 0)
    assert set(states()) <= {"finished", "ready"}
    assert late < 5

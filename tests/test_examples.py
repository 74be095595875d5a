"""Every example is run as its reader would run it, and must print what it shows.

What they call is tested on every database; so are the examples themselves that take a database at its word.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.db import connection

EVERYWHERE = [
    "ex05_basic_bulk",
    "ex08_basic_recurring",
    "ex11_basic_failed_jobs",
    "ex16_advanced_singletons",
    "ex20_advanced_concurrency",
    "ex21_advanced_queue_control",
    "ex24_advanced_multi_db",
]
ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("ex*.py"))

PRINTS = {
    "ex01_basic_enqueue": ["enqueued add: READY", "SUCCESSFUL: 10"],
    "ex02_basic_results": [
        "SUCCESSFUL after 1 attempt by worker-1: 42",
        "times are in order: True",
        "unknown ids raise TaskResultDoesNotExist",
    ],
    "ex03_basic_scheduled": ["before it is due: READY", "the daily digest was sent; it began after it was due: True"],
    "ex04_basic_priorities_and_queues": ["email, priority 10", "email, priority -5", "reports, priority 100"],
    "ex05_basic_bulk": ["100 jobs, sum of their results: 9900"],
    "ex06_basic_async": ["fetched https://example.org/", "this is attempt 1"],
    "ex07_basic_enqueue_on_commit": [
        "inside the transaction: 0 jobs",
        "after the commit: 1 job",
        "after a rollback: still 1 job",
        "order 1 was placed",
    ],
    "ex08_basic_recurring": [
        "static and dynamic tasks: every_second, report_42",
        "unscheduled the dynamic one: 1",
        "unscheduled the static one: 0",
        "each tick was enqueued once: True",
    ],
    "ex09_basic_failures": [
        "refused: tasks.charge cannot be enqueued: in its arguments [1] is a set, which is not a JSON type"
        " (Unsupported type: <class 'set'>)."
        " Pass plain JSON values: an id instead of an object, text instead of a date.",
        "FAILED: builtins.ValueError",
        "ValueError: order 1: -5 is no amount",
        "after a retry: 2 attempts, 2 errors",
        "discarded: 1",
    ],
    "ex10_basic_enqueue_errors": [
        "a date: ArgumentsError",
        "a set: ArgumentsError",
        "a float: ArgumentsError",
        "no action: refused",
        "one of two: refused, and 0 stored",
        "InvalidTask: priority must be a whole number between -100 and 100.",
    ],
    "ex11_basic_failed_jobs": [
        "2 x builtins.ConnectionError: the other side is away",
        "1 x builtins.ValueError: order 1: -5 is no amount",
        "1 x builtins.ValueError: order 2: -7 is no amount",
        "retried 2; failed now: 2",
        "retried all: 2",
        "the copy has an id of its own: True",
        "discarded 3; failed now: 0",
    ],
    "ex12_basic_attempts": [
        "FAILED after 1 attempt: builtins.ConnectionError",
        "SUCCESSFUL: attempt 2 got through",
        "2 attempts, 1 error",
        "the last one began after the first: True",
        "first try: SUCCESSFUL",
        "second try: SUCCESSFUL",
        "third try: FAILED",
    ],
    "ex13_basic_dynamic_recurring": [
        "report_41: 0 6 * * *, in Asia/Tokyo",
        "report_42: * * * * * *, in the TIME_ZONE of the project",
        "refused, and still 2 tasks",
        "unscheduled: 1 and then 0",
        "ran: the report of customer 42",
        "left: report_41",
    ],
    "ex14_basic_transactions": [
        "after a rollback: 0 jobs",
        "after a savepoint's rollback and a commit: 1 job",
        "order 2 was placed; order 3 was placed",
    ],
    "ex15_basic_testing": [
        "passed: 1_a_task_is_a_function",
        "passed: 2_what_was_enqueued",
        "passed: 3_run_at_once",
        "passed: 4_stored_claimed_and_run_as_in_production",
        "passed: 5_run_to_the_end_with_a_clock_of_its_own",
        "jobs left in the database: 0",
    ],
    "ex16_advanced_singletons": [
        "at once: READY SUCCESSFUL SUCCESSFUL READY",
        "1 attempts: 10 rows of Monday",
        "0 attempts: None",
        "0 attempts: None",
        "1 attempts: 40 rows of Tuesday",
        "1 attempts: 50 rows of Monday",
    ],
    "ex17_advanced_hooks": [
        "supervisor: start, 1 workers",
        "supervisor: stop",
        "supervisor: exit",
        "worker: start, 3 threads",
        "worker: stop",
        "worker: exit",
    ],
    "ex18_advanced_runtime_errors": [
        "on_thread_error heard: RuntimeError: the metrics server is away",
        "the jobs: SUCCESSFUL, FAILED",
    ],
    "ex19_advanced_retention": [
        "would delete 2 finished jobs, 1 failed jobs, and 0 recurring executions",
        "deleted 1 finished jobs, 0 failed jobs, and 0 recurring executions",
        "left: tasks.charge tasks.note",
        "after the scheduler: 0 jobs",
        "a job that is not preserved leaves no result",
    ],
    "ex20_advanced_concurrency": [
        "ready: 3, blocked: 2",
        "in order: first, second, third",
        "never two at once: True",
        "reports: ['sales was built', None, None]",
    ],
    "ex21_advanced_queue_control": [
        "paused: True, size: 1",
        "while paused: READY",
        "after resuming: SUCCESSFUL",
        "queues: ['orders']",
        "cleared: 1, size: 0",
    ],
    "ex22_advanced_backends": [
        "inline: SUCCESSFUL",
        "ready: default 1 mail 1",
        "mail: SUCCESSFUL, default: READY",
        "default does not know the letter",
        "TASKS[\"inline\"] has the BACKEND 'django.tasks.backends.immediate.ImmediateBackend'",
    ],
    "ex23_advanced_yaml": [
        "dispatcher-1",
        "scheduler-1",
        "worker-1 ['email', 'reports*'] 2",
        "worker-2 ['*'] 1",
        "worker-1 ['*'] 5 in mode async",
        "/dj_queue.yml: workers.threds: expected a known option, got 4; did you mean 'threads'?",
    ],
    "ex24_advanced_multi_db": [
        "on the queue's database, dj-queue's tables alone: True",
        "after a rollback on the queue's database: 0 jobs",
        "after a rollback on the application's database: 1 job",
        "with enqueue_on_commit, after a rollback and a commit: 2 jobs",
        "SUCCESSFUL: stored at once",
    ],
    "ex25_advanced_asgi": [
        "a request enqueued a job: SUCCESSFUL",
        "the server's own process ran it: True",
        "its supervisor is async and standalone: False",
        "after the server's end: 0 processes",
        "and a job waits for the next one: READY",
    ],
    "ex26_advanced_gunicorn": [
        "supervisors in two workers: 1",
        "the host was killed, and another worker followed: True",
        "what the host had registered is settled at once",
        "after the server's end: 0 processes",
    ],
    "ex27_advanced_monitoring": [
        "email: 1 ready, 0 workers",
        "reports is paused: True",
        "ready: 503 live: 200",
        "email: 0 ready, 1 workers",
        "ready: 200",
        'dj_queue_queue_jobs{backend="default",queue="email",state="finished"} 1.0',
    ],
}


def test_every_example_is_here_and_in_the_index() -> None:
    index = (ROOT / "examples" / "README.md").read_text()
    assert sorted(PRINTS) == EXAMPLES
    assert [int(name[2:4]) for name in EXAMPLES] == list(range(1, len(EXAMPLES) + 1))
    assert re.findall(r"^\| \[(\w+)\]", index, re.MULTILINE) == EXAMPLES


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in EVERYWHERE else pytest.mark.once) for name in EXAMPLES]
)
def test_prints_what_it_shows(name: str, transactional_db: None) -> None:
    database = {key: value for key, value in connection.settings_dict.items() if key != "TEST"}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py"],
        env={**_environment(), "DJ_QUEUE_EXAMPLES_DATABASE": json.dumps(database), "DJ_QUEUE_EXAMPLES_MIGRATED": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == PRINTS[name]


@pytest.mark.once
def test_an_example_alone_makes_its_own_database() -> None:
    script = ROOT / "examples" / "ex01_basic_enqueue.py"
    done = subprocess.run(
        [sys.executable, script], env=_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.splitlines()) == (0, PRINTS["ex01_basic_enqueue"]), done.stderr


@pytest.mark.once  # it has a database of its own
def test_the_demo() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demo", "--jobs", "60"],
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "59 finished   1 failed     0 scheduled" in done.stdout
    assert "ZeroDivisionError: division by zero" in done.stdout
    assert "It exited with 0; claims and processes left: 0" in done.stdout


def _environment() -> dict[str, str]:
    """What a newcomer's shell would have: nothing of the test run."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("DJ_QUEUE_", "DJANGO_", "PYTEST_"))}

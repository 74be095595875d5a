"""Runs the demo: `python -m demo [--jobs N]`. Exits with 1 if anything is not as it should be."""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

_SCHEDULED_AHEAD = 2.0  # seconds
_DEADLINE = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description="dj-queue, shown at work.")
    parser.add_argument("--jobs", type=int, default=1000, help="how many jobs (default: %(default)s, at least 20)")
    jobs = max(20, parser.parse_args().jobs)
    with tempfile.TemporaryDirectory(prefix="dj-queue-demo-") as folder:
        os.environ["DJ_QUEUE_DEMO_DATABASE"] = str(Path(folder) / "demo.sqlite3")
        os.environ["DJANGO_SETTINGS_MODULE"] = "demo.settings"
        _migrate()
        runtime = subprocess.Popen([sys.executable, "-m", "django", "dj_queue"], start_new_session=True)
        try:
            return _show(jobs, runtime)
        except KeyboardInterrupt:
            return 130
        finally:
            if runtime.poll() is None:
                runtime.send_signal(signal.SIGTERM)
                runtime.wait(15)


def _migrate() -> None:
    import django
    from django.core.management import call_command

    django.setup()
    _say("A fresh SQLite database: manage.py migrate")
    call_command("migrate", verbosity=0)


def _show(jobs: int, runtime: "subprocess.Popen[bytes]") -> int:
    from dj_queue.models import ClaimedExecution, Process

    _say("The runtime, a process of its own: manage.py dj_queue")
    _wait(lambda: Process.objects.filter(kind="Worker").exists(), runtime)
    began = time.monotonic()
    results = _enqueue(jobs)
    enqueued = time.monotonic()
    _say(f"Enqueued {jobs:,} jobs in {enqueued - began:.2f} s")
    _watch(jobs, runtime)
    seconds = time.monotonic() - began
    for result in results.values():
        result.refresh()
    _print_results(results)
    count, span = _unscheduled()
    _say(
        f"{jobs:,} jobs in {seconds:.1f} s, most of it the wait for the scheduled ones. The {count:,} others took"
        f" {span:.2f} s from the first enqueue to the last finish: {count / span:,.0f} a second"
    )
    _say("Stopping the runtime: SIGTERM")
    runtime.send_signal(signal.SIGTERM)
    code = runtime.wait(15)
    left = ClaimedExecution.objects.count() + Process.objects.count()
    _say(f"It exited with {code}; claims and processes left: {left}")
    return 0 if code == 0 and left == 0 and _as_expected(results, jobs) else 1


def _unscheduled() -> tuple[int, float]:
    """How many jobs were not scheduled, and the seconds from the first's enqueue to the last's finish."""
    from django.db.models import Count, Max, Min

    from dj_queue.models import Job

    row = Job.objects.finished().filter(scheduled_at=None).aggregate(Count("pk"), Min("created_at"), Max("finished_at"))
    return row["pk__count"], (row["finished_at__max"] - row["created_at__min"]).total_seconds()


def _enqueue(jobs: int) -> dict[str, Any]:
    from django.utils import timezone

    from demo.tasks import deliver, divide, fetch, introduce, multiply

    later = timezone.now() + timedelta(seconds=_SCHEDULED_AHEAD)
    several = jobs // 20
    backend = multiply.get_backend()
    bulk = backend.enqueue_all([(multiply, [n, n], {}) for n in range(jobs - 4 * several - 1)])  # type: ignore[attr-defined]
    scheduled = [multiply.using(run_after=later).enqueue(n, 1000) for n in range(several)]
    urgent = [deliver.enqueue(f"user{n}@example.org") for n in range(several)]
    fetched = [fetch.enqueue(n) for n in range(several)]
    introduced = [introduce.enqueue(f"job {n}") for n in range(several)]
    return {
        "one of a bulk": bulk[-1],
        "scheduled": scheduled[-1],
        "prioritised, on the queue email": urgent[-1],
        "asynchronous": fetched[-1],
        "with its context": introduced[-1],
        "one that raises": divide.enqueue(1, 0),
    }


def _watch(jobs: int, runtime: "subprocess.Popen[bytes]") -> None:
    from dj_queue.models import Job

    shown = ""

    def over() -> bool:
        nonlocal shown
        finished, failed = Job.objects.finished().count(), Job.objects.failed().count()
        scheduled = Job.objects.scheduled().count()
        line = f"  {finished:>6,} finished   {failed} failed   {scheduled:>3} scheduled"
        if line != shown:
            _progress(line)
            shown = line
        return finished + failed == jobs

    _wait(over, runtime, pause=0.2)
    if sys.stdout.isatty():
        print()


def _progress(line: str) -> None:
    print(f"\r{line}" if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n", flush=True)


def _print_results(results: dict[str, Any]) -> None:
    _say("Results, read back through Django's task API")
    for kind, result in results.items():
        if result.status == "SUCCESSFUL":
            waited = (result.started_at - result.enqueued_at).total_seconds()
            print(f"  {kind:<32} {result.return_value!r}   (waited {waited:.2f} s, by {result.worker_ids[-1]})")
    failed = next(result for result in results.values() if result.status == "FAILED")
    error = failed.errors[0]
    _say(f"The failed job keeps its error: {error.exception_class_path}")
    print("\n".join(f"  {line}" for line in error.traceback.rstrip().splitlines()))


def _as_expected(results: dict[str, Any], jobs: int) -> bool:
    from dj_queue.models import Job

    raising = results["one that raises"]
    others = [result for result in results.values() if result is not raising]
    return (
        raising.status == "FAILED"
        and all(result.status == "SUCCESSFUL" for result in others)
        and Job.objects.finished().count() == jobs - 1
    )


def _wait(condition: Any, runtime: "subprocess.Popen[bytes]", pause: float = 0.05) -> None:
    deadline = time.monotonic() + _DEADLINE
    while not condition():
        if runtime.poll() is not None:
            raise SystemExit(f"the runtime ended with {runtime.returncode}")
        if time.monotonic() > deadline:
            raise SystemExit(f"not done within {_DEADLINE:g} seconds")
        time.sleep(pause)


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

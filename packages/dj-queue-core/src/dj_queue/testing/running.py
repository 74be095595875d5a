"""Run what is enqueued, in the test's own thread and transaction."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import Context
from datetime import datetime, timedelta

from asgiref.sync import sync_to_async
from django.conf import settings
from django.utils import timezone

from dj_queue.config import BackendConfig, backend_config
from dj_queue.dialects import Selector
from dj_queue.models import ScheduledExecution
from dj_queue.operations import execution, jobs, transactions
from dj_queue.testing import commits
from dj_queue.types import AnyTaskResult

# What runs more than this in one call enqueues itself again and again.
MOST_JOBS = 10_000

_WORKER = "dj_queue.testing"


def run_jobs(
    queues: Sequence[str] | str | None = None,
    until: datetime | timedelta | None = None,
    now: datetime | None = None,
    raise_errors: bool = True,
    *,
    backend_alias: str = "default",
) -> list[AnyTaskResult]:
    """Run every job that is due, and what these jobs enqueue; return their results, in the order in which they ran.

    Jobs are claimed, run and recorded as by a worker, with priorities, limits, signals and events, on the caller's
    connection. `queues` are a worker's selectors: all queues without them. Due is what is scheduled up to `now`,
    which is `django.utils.timezone.now()` unless it is given: a clock that freezegun or time-machine has moved
    counts, the database's does not. With `until`, a time or how long after `now`, what is scheduled up to then
    runs as well, in the order of its times.

    Callbacks of `transaction.on_commit` run before and between the jobs, if no `atomic()` block is open but those
    of the test case. Raises what the first job that failed has raised, once that is recorded; with
    `raise_errors=False` its result tells. Raises `RuntimeError` after 10,000 jobs.
    """
    config = backend_config(backend_alias)
    selectors = [Selector.parse(text) for text in ([queues] if isinstance(queues, str) else queues) or ("*",)]
    clock = _in_project_time(now if now is not None else timezone.now())
    end = clock + until if isinstance(until, timedelta) else max(clock, _in_project_time(until or clock))
    return _Run(config, selectors, raise_errors).up_to(clock, end)


async def arun_jobs(
    queues: Sequence[str] | str | None = None,
    until: datetime | timedelta | None = None,
    now: datetime | None = None,
    raise_errors: bool = True,
    *,
    backend_alias: str = "default",
) -> list[AnyTaskResult]:
    """`run_jobs`, for asynchronous tests."""
    run = sync_to_async(run_jobs)
    return await run(queues, until, now, raise_errors, backend_alias=backend_alias)


def _in_project_time(moment: datetime) -> datetime:
    """As the project's times are, with a time zone or without one."""
    if settings.USE_TZ:
        return moment if timezone.is_aware(moment) else timezone.make_aware(moment)
    return timezone.make_naive(moment) if timezone.is_aware(moment) else moment


class _Run:
    def __init__(self, config: BackendConfig, selectors: Sequence[Selector], raise_errors: bool) -> None:
        self._config, self._selectors, self._raise_errors = config, selectors, raise_errors
        # Claimed, and by the test's clock not due: the database, whose clock goes on, has made them ready.
        self._early: list[execution.Job] = []
        self._results: list[AnyTaskResult] = []

    def up_to(self, clock: datetime, end: datetime) -> list[AnyTaskResult]:
        try:
            commits.run_pending()
            while True:
                jobs.promote_scheduled_jobs(batch_size=MOST_JOBS, backend_alias=self._config.alias, until=clock)
                while job := self._next(clock):
                    self._perform(job)
                upcoming = self._upcoming()
                if upcoming is None or not clock < upcoming <= end:
                    return self._results
                clock = upcoming
        finally:
            execution.release(self._config, self._early)

    def _next(self, clock: datetime) -> execution.Job | None:
        """The next job that is due."""
        due = [job for job in self._early if (job.claim.scheduled_at or clock) <= clock]
        if due:
            self._early.remove(due[0])
            return due[0]
        while found := execution.claim(self._config, self._selectors, 1, process_id=None):
            at = found[0].claim.scheduled_at
            if at is None or at <= clock:
                return found[0]
            self._early.append(found[0])
            self._early.sort(key=lambda job: job.claim.scheduled_at or clock)
        return None

    def _upcoming(self) -> datetime | None:
        """When the next job is due, by the test's clock."""
        times = [job.claim.scheduled_at for job in self._early if job.claim.scheduled_at is not None]
        rows = ScheduledExecution.objects.using(self._config.database_alias).filter(backend_alias=self._config.alias)
        for row in rows.order_by("scheduled_at"):
            if any(selector.matches(row.queue_name) for selector in self._selectors):
                times.append(row.scheduled_at)
                break
        return min(times, default=None)

    def _perform(self, job: execution.Job) -> None:
        if len(self._results) >= MOST_JOBS:
            self._early.append(job)  # to be given back
            raise RuntimeError(
                f"run_jobs() has run {MOST_JOBS:,} jobs, and there are more. The latest is a {job.claim.task_path}."
                " Does it enqueue itself? Then give `queues`, or an earlier `until`."
            )
        before = transactions.left_open()
        savepoints = commits.Savepoints()
        # What the task sets for itself is not for the test.
        Context().run(execution.run, job, self._config, worker=_WORKER)
        transactions.abandon(before)
        savepoints.end(failed=job.exception is not None)
        recorded = execution.finish(self._config, [job], worker=_WORKER)
        Context().run(execution.announce, recorded)
        commits.run_pending()
        if job.refusal is not None and not job.settled:
            raise job.refusal
        if job.result is not None:
            self._results.append(job.result)
        if job.exception is not None and self._raise_errors:
            job.exception.add_note(f"raised by job {job.claim.job_id} ({job.claim.task_path}) in run_jobs()")
            raise job.exception

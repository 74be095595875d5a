"""What becomes of claims whose process is gone.

A job that was started may have done anything: it fails, so that somebody looks at it. A job that
was not started has done nothing: it goes back to ready. So does a job that an orderly stop has cut
short, and that attempt is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from django.db import connections
from django.db.backends.utils import CursorWrapper
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.tasks.exceptions import TaskResultDoesNotExist
from django.tasks.signals import task_finished

from dj_queue import events
from dj_queue.config import BackendConfig
from dj_queue.dialects import Dialect, Outcome, dialect_for
from dj_queue.exceptions import DjQueueError, ProcessExitError, ProcessMissingError, ProcessPrunedError
from dj_queue.models import ClaimedExecution, FailedExecution, Job, Process, ReadyExecution
from dj_queue.operations import concurrency, results, transactions
from dj_queue.serialization import ErrorRecord


def _record(kind: type[DjQueueError], message: str) -> ErrorRecord:
    return ErrorRecord(f"{kind.__module__}.{kind.__qualname__}", message, traceback=message)


_EXIT = _record(ProcessExitError, "child process exited")
_CRASH = _record(ProcessExitError, "runner thread crashed")
_CUT = _record(ProcessExitError, "the worker was stopped before the task ended: the job was given back")
_PRUNED = _record(ProcessPrunedError, "process heartbeat expired")
_MISSING = _record(ProcessMissingError, "process no longer registered at supervisor startup")


@dataclass(slots=True)
class Recovered:
    """What became of the claims."""

    failed: list[str] = field(default_factory=list)  # job ids
    released: int = 0
    unblocked: list[tuple[str, str]] = field(default_factory=list)  # (job id, concurrency key)


def process_ended(
    config: BackendConfig,
    process_id: int,
    *,
    started_up_to: int | None = None,
    give_back: bool = False,
    crashed_thread: bool = False,
) -> Recovered:
    """Settle the claims of a runner that has ended for certain, and remove its row.

    Claims are started in the order of their ids: those above `started_up_to` were not. With
    `give_back` (an orderly end whose time was up) those that were started go back to ready as well, each
    with one attempt and one error more.
    """
    error = _CUT if give_back else _CRASH if crashed_thread else _EXIT

    def started(claim: ClaimedExecution) -> bool:
        return started_up_to is None or claim.pk <= started_up_to

    def settle(dialect: Dialect, cursor: CursorWrapper) -> Recovered:
        mine = Q(process_id=process_id)
        recovered = _settle(config, dialect, cursor, mine, started, error, give_back=give_back)
        Process.objects.using(config.database_alias).filter(pk=process_id).delete()
        return recovered

    return _tell(config, transactions.run(config.database_alias, settle), error)


def supervisor_ended(config: BackendConfig, supervisor_id: int, *, give_back: bool = False) -> None:
    """Settle the claims of all runners of a supervisor whose process has ended for certain, and remove its rows.

    Nobody is left who knows which were started: all count as that, but for an orderly end (`give_back`).
    """
    rows = Process.objects.using(config.database_alias)
    for runner_id in [*rows.filter(supervisor_id=supervisor_id).values_list("pk", flat=True), supervisor_id]:
        process_ended(config, runner_id, give_back=give_back)


def prune(config: BackendConfig, *, except_for: Sequence[int] = ()) -> int:
    """Remove the processes of this alias whose heartbeat expired, by the database's clock; fail their jobs.

    Returns how many processes. Several supervisors may prune at once: each process is pruned once.
    """
    stale = Process.objects.using(config.database_alias).filter(
        backend_alias=config.alias,
        last_heartbeat_at__lt=dialect_for(config.database_alias).clock(ago=config.process_alive_threshold),
    )
    pruned = 0
    for process in stale.exclude(pk__in=except_for):
        recovered = transactions.run(config.database_alias, partial(_prune, config, stale, process))
        if recovered is not None:
            pruned += 1
            events.emit("process.pruned", process_name=process.name, pid=process.pid)
            _tell(config, recovered, _PRUNED)
    return pruned


def settle_missing(config: BackendConfig) -> Recovered:
    """Fail the jobs of this alias that are claimed by no registered process."""
    orphaned = ~Q(Exists(Process.objects.filter(pk=OuterRef("process_id"))))
    recovered = transactions.run(
        config.database_alias,
        lambda dialect, cursor: _settle(config, dialect, cursor, orphaned, lambda _: True, _MISSING),
    )
    return _tell(config, recovered, _MISSING)


def _prune(
    config: BackendConfig, stale: QuerySet[Process], process: Process, dialect: Dialect, cursor: CursorWrapper
) -> Recovered | None:
    # Locked until all is done: a heartbeat that comes now waits, and then finds no row to beat for.
    skip_locked = connections[config.database_alias].features.has_select_for_update_skip_locked
    if not stale.filter(pk=process.pk).select_for_update(skip_locked=skip_locked).exists():
        return None
    recovered = _settle(config, dialect, cursor, Q(process_id=process.pk), lambda _: True, _PRUNED)
    process.delete()
    return recovered


def _settle(
    config: BackendConfig,
    dialect: Dialect,
    cursor: CursorWrapper,
    condition: Q,
    started: Callable[[ClaimedExecution], bool],
    error: ErrorRecord,
    *,
    give_back: bool = False,
) -> Recovered:
    """Fail or give back claims; each is fenced by its row, like any other finish."""
    claims = (
        ClaimedExecution.objects.using(config.database_alias)
        .filter(condition, job__backend_alias=config.alias)
        .select_related("job", "process")
        .order_by("pk")
    )
    recovered = Recovered()
    found = list(claims)
    back = [claim.pk for claim in found if not started(claim)]
    if back:
        recovered.released = dialect.release(cursor, back, alias=config.alias, notify=config.listen_notify)
    lost = [claim for claim in found if started(claim)]
    keys: list[str | None] = []
    for worker in sorted({_worker(claim) for claim in lost}):
        mine = {claim.pk: claim for claim in lost if _worker(claim) == worker}
        outcomes = [Outcome(pk, claim.job.id, claim.created_at, None, error) for pk, claim in mine.items()]
        _, kept = dialect.finish(cursor, outcomes, worker=worker, preserve=True)
        if give_back:
            recovered.released += _put_back(config, dialect, cursor, [mine[claim_id] for claim_id in sorted(kept)])
            continue
        keys += [mine[claim_id].job.concurrency_key for claim_id in kept]
        recovered.failed += [str(mine[claim_id].job.id) for claim_id in kept]
    # All at once: semaphores are locked in the order of their keys.
    recovered.unblocked = concurrency.release(config, dialect, cursor, keys)
    return recovered


def _put_back(config: BackendConfig, dialect: Dialect, cursor: CursorWrapper, cut: Sequence[ClaimedExecution]) -> int:
    """Make jobs ready that were just recorded as failed: each at its old place, with the slot that it has."""
    using = config.database_alias
    rows = FailedExecution.objects.using(using).filter(job_id__in=[claim.job_id for claim in cut])
    failed = {row.job_id: row for row in rows}
    cut = [claim for claim in cut if claim.job_id in failed]  # a job may have been deleted meanwhile
    for claim in cut:
        row = failed[claim.job_id]
        claim.job.errors = [*(claim.job.errors or []), [row.exception_class, row.traceback]]
    rows.delete()
    Job.objects.using(using).bulk_update([claim.job for claim in cut], ["errors"])
    ReadyExecution.objects.using(using).bulk_create(
        ReadyExecution(
            id=claim.position,
            job=claim.job,
            backend_alias=claim.job.backend_alias,
            queue_name=claim.job.queue_name,
            priority=claim.job.priority,
            concurrency_key=claim.job.concurrency_key,
            created_at=claim.created_at,
        )
        for claim in cut
    )
    if cut and config.listen_notify:
        dialect.notify(cursor, config.alias)
    return len(cut)


def _worker(claim: ClaimedExecution) -> str:
    return claim.process.name if claim.process else ""


def _tell(config: BackendConfig, recovered: Recovered, error: ErrorRecord) -> Recovered:
    for job_id in recovered.failed:
        events.emit("job.failed", job_id=job_id, exception_class=error.exception_class, message=error.message)
        with suppress(TaskResultDoesNotExist):  # deleted meanwhile
            task_finished.send_robust(results.signal_sender(), task_result=results.get(config, job_id))
    for job_id, key in recovered.unblocked:
        events.emit("job.unblocked", job_id=job_id, concurrency_key=key)
    return recovered

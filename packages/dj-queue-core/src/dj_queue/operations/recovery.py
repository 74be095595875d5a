"""What becomes of claims whose process is gone.

A job that was started may have done anything: it fails, so that somebody looks at it. A job that
was not started has done nothing: it goes back to ready. So does a job that an orderly stop has cut
short, and that attempt is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from django.db import DatabaseError, OperationalError, connections
from django.db.backends.utils import CursorWrapper
from django.db.models import Exists, OuterRef, Q, Value
from django.tasks.exceptions import TaskResultDoesNotExist

from dj_queue import events
from dj_queue.config import BackendConfig
from dj_queue.dialects import Dialect, Outcome, dialect_for, elapsed
from dj_queue.events import Elsewhere
from dj_queue.exceptions import DjQueueError, ProcessExitError, ProcessMissingError, ProcessPrunedError
from dj_queue.models import ClaimedExecution, FailedExecution, Job, Process, ReadyExecution
from dj_queue.operations import attempts, concurrency, processes, readable, results, transactions
from dj_queue.serialization import ErrorRecord
from dj_queue.thread_errors import report


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
    elsewhere: Elsewhere | None = None,
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
        processes.remove(config, process_id)
        return recovered

    return _tell(config, transactions.run(config.database_alias, settle), error, elsewhere)


def supervisor_ended(config: BackendConfig, supervisor_id: int, *, give_back: bool = False) -> None:
    """Settle the claims of all runners of a supervisor whose process has ended for certain, and remove its rows.

    Nobody is left who knows which were started: all count as that, but for an orderly end (`give_back`).
    """
    rows = Process.objects.using(config.database_alias)
    blocked: Exception | None = None
    for runner_id in rows.filter(supervisor_id=supervisor_id).values_list("pk", flat=True):
        try:
            process_ended(config, runner_id, give_back=give_back)
        except OperationalError as error:  # what others have locked of one keeps no other
            if not transactions.contended(config.database_alias, error):
                raise
            blocked = error
    if blocked is not None:
        raise blocked  # and its own row stays: by that the rest is found again
    process_ended(config, supervisor_id, give_back=give_back)


class Survey(NamedTuple):
    """What is to be settled, by the ids of the rows."""

    expired: list[processes.Beat]  # of processes of the alias that have had no other one for too long
    unheld: dict[int, int | None]  # claims, of whatever alias, without a registered process: which one they name


def survey(
    config: BackendConfig, *, except_for: Sequence[int] = (), sightings: processes.Sightings | None = None
) -> Survey:
    """Look for what the dead have left, in one statement: a beat asks it, and nearly always there is nothing.

    Who looks for the first time goes by the database's clock; who has `sightings` of earlier looks, by how long a
    heartbeat has stood unchanged, and is not misled when that clock is put forward or back.
    No job is looked at: claims and processes are as many as run now.
    """
    now = processes.clock(config)
    rows = processes.of_alias(config).exclude(pk__in=except_for)
    unheld = ClaimedExecution.objects.using(config.database_alias).filter(_UNHELD)
    beats: list[processes.Beat] = []
    found = Survey([], {})
    both = rows.values_list("pk", "pk", Value(1), "last_heartbeat_at", now).union(
        unheld.values_list("pk", "process_id", Value(0), "created_at", now), all=True
    )
    try:
        for row, process, is_process, at, read_at in list(both):
            if is_process:
                beats.append(processes.Beat(row, at, elapsed(at, read_at)))
            else:
                found.unheld[row] = process
    except Exception as error:  # a time of one row keeps no other from being looked at
        if readable.is_away(config.database_alias, error):
            raise
        beats = processes.last_beats(config, rows)
        found.unheld.clear()
        found.unheld.update(unheld.values_list("pk", "process_id"))
    unchanged = (sightings or processes.Sightings()).unchanged(beats)
    found.expired.extend(beat for beat in beats if unchanged[beat.process_id] >= config.process_alive_threshold)
    return found


def prune(
    config: BackendConfig,
    *,
    except_for: Sequence[int] = (),
    expired: Sequence[processes.Beat] | None = None,
    elsewhere: Elsewhere | None = None,
) -> int:
    """Remove the processes of this alias whose heartbeat expired; fail their jobs.

    Of those that a survey found `expired`, if given. Returns how many processes. Several supervisors may prune at
    once: each process is pruned once. One whose jobs the database refuses to fail, or others have locked, does not
    keep the others.
    """
    if expired is None:
        expired = survey(config, except_for=except_for).expired
    pruned = 0
    blocked: DatabaseError | None = None
    for beat in expired:
        try:
            found = transactions.run(config.database_alias, partial(_prune, config, beat))
        except DatabaseError as error:
            if transactions.contended(config.database_alias, error):
                blocked = error
                continue
            if dialect_for(config.database_alias).is_away(error):
                raise
            report(config, error, "supervisor.run")
            continue
        if found is not None:
            (name, pid), recovered = found
            pruned += 1
            events.emit_elsewhere(elsewhere, "process.pruned", process_name=name, pid=pid)
            _tell(config, recovered, _PRUNED, elsewhere)
    if blocked is not None:
        raise blocked
    return pruned


def settle_missing(
    config: BackendConfig,
    *,
    claims: Collection[int] | None = None,
    started_up_to: Mapping[int, int] | None = None,
    elsewhere: Elsewhere | None = None,
) -> Recovered:
    """Fail the jobs of this alias that are claimed by no registered process.

    Of `claims` alone, if given. A claim may commit after its process has ended, and nobody has seen it then: it
    goes back to ready where `started_up_to` says of that process that it has started none so late.
    """
    known = started_up_to or {}
    unheld = _UNHELD if claims is None else _UNHELD & Q(pk__in=claims)

    def started(claim: ClaimedExecution) -> bool:
        process_id = claim.serializable_value("process_id")  # the row may be gone
        return process_id is None or process_id not in known or claim.pk <= known[process_id]

    recovered = transactions.run(
        config.database_alias,
        lambda dialect, cursor: _settle(config, dialect, cursor, unheld, started, _MISSING),
    )
    return _tell(config, recovered, _MISSING, elsewhere)


_UNHELD = ~Q(Exists(Process.objects.filter(pk=OuterRef("process_id"))))


def _prune(
    config: BackendConfig, beat: processes.Beat, dialect: Dialect, cursor: CursorWrapper
) -> tuple[tuple[str, int], Recovered] | None:
    process_id = beat.process_id
    # Locked until all is done: a heartbeat that comes now waits, and then finds no row to beat for.
    skip_locked = connections[config.database_alias].features.has_select_for_update_skip_locked
    rows = processes.of_alias(config).filter(pk=process_id)
    if beat.at is not None:
        rows = rows.filter(last_heartbeat_at=beat.at)
    process = rows.select_for_update(skip_locked=skip_locked).values_list("name", "pid").first()
    if process is None:
        return None
    if beat.at is None and processes.last_beats(config, rows)[0].at is not None:
        return None  # it has come since
    recovered = _settle(config, dialect, cursor, Q(process_id=process_id), lambda _: True, _PRUNED)
    processes.remove(config, process_id)
    return process, recovered


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
        .only("created_at", "position", "process__name", *(f"job__{name}" for name in concurrency.DECIDING))
        .order_by("pk")
    )
    recovered = Recovered()
    found, lost_rows = readable.read(claims)
    if lost_rows:
        # Only the time of the claim is no part of what is settled by it.
        now = dialect.now(cursor)
        timeless = claims.filter(pk__in=lost_rows)
        timeless = timeless.only("position", "process__name", *(f"job__{name}" for name in concurrency.DECIDING))
        for claim in readable.read(timeless).rows:
            claim.created_at = now
            found.append(claim)
        found.sort(key=lambda claim: claim.pk)
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
    rows = FailedExecution.objects.using(using).filter(job_id__in=[claim.job.id for claim in cut])
    failed = {job_id: error for job_id, *error in rows.values_list("job_id", "exception_class", "traceback")}
    cut = [claim for claim in cut if claim.job.id in failed]  # a job may have been deleted meanwhile
    past = attempts.past(config, [claim.job.id for claim in cut])
    for claim in cut:
        earlier = past.get(claim.job.id) or attempts.Past([], [])
        claim.job.errors = attempts.with_error(earlier.errors, *failed[claim.job.id])
        claim.job.worker_ids = attempts.bounded_workers(earlier.worker_ids)
    rows.delete()
    Job.objects.using(using).bulk_update([claim.job for claim in cut], ["errors", "worker_ids"])
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


def _tell(
    config: BackendConfig, recovered: Recovered, error: ErrorRecord, elsewhere: Elsewhere | None = None
) -> Recovered:
    """Tell of it. Whoever hears it may do what he likes: with `elsewhere`, not in the thread that settles."""
    for job_id in recovered.failed:
        fields = {"job_id": job_id, "exception_class": error.exception_class, "message": error.message}
        events.emit_elsewhere(elsewhere, "job.failed", **fields)
        announcement = partial(_announce, config, job_id)
        if elsewhere is None:
            announcement()
        else:
            elsewhere(announcement)
    for job_id, key in recovered.unblocked:
        events.emit_elsewhere(elsewhere, "job.unblocked", job_id=job_id, concurrency_key=key)
    return recovered


def _announce(config: BackendConfig, job_id: str) -> None:
    try:
        with suppress(TaskResultDoesNotExist):  # deleted meanwhile
            results.send("task_finished", results.get(config, job_id))
    except BaseException as error:  # a receiver that exits ends neither a supervisor nor what settles the next job
        report(config, error, "supervisor.run")

"""What becomes of claims whose process is gone.

A job that was started may have done anything: it fails, so that somebody looks at it. A job that
was not started has done nothing: it goes back to ready. So does a job that an orderly stop has cut
short, and that attempt is recorded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from django.db import DatabaseError, OperationalError, connections
from django.db.backends.utils import CursorWrapper
from django.db.models import Exists, OuterRef, Q, Value
from django.tasks.exceptions import TaskResultDoesNotExist

from dj_queue import events
from dj_queue.config import BackendConfig
from dj_queue.dialects import Dialect, dialect_for, elapsed
from dj_queue.error_reporting import report
from dj_queue.events import Elsewhere
from dj_queue.exceptions import DjQueueError, ProcessExitError, ProcessMissingError, ProcessPrunedError
from dj_queue.models import ClaimedExecution, Process
from dj_queue.operations import processes, results, transactions
from dj_queue.operations.settlement import Recovered, Settlement, of_some
from dj_queue.serialization import ErrorRecord


def _record(kind: type[DjQueueError], message: str) -> ErrorRecord:
    return ErrorRecord(f"{kind.__module__}.{kind.__qualname__}", message, traceback=message)


_EXIT = _record(ProcessExitError, "child process exited")
_CRASH = _record(ProcessExitError, "runner thread crashed")
_CUT = _record(ProcessExitError, "the worker was stopped before the task ended: the job was given back")
_PRUNED = _record(ProcessPrunedError, "process heartbeat expired")
_MISSING = _record(ProcessMissingError, "process no longer registered at supervisor startup")


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

    settlement = Settlement(config, Q(process_id=process_id), started, error, give_back=give_back)

    def settle(dialect: Dialect, cursor: CursorWrapper) -> Recovered:
        recovered = settlement.settle(dialect, cursor)
        processes.remove(config, process_id)
        return recovered

    try:
        recovered = transactions.run(config.database_alias, settle)
    except DatabaseError as refusal:
        if not of_some(config, refusal):
            raise
        recovered = Recovered()
        try:
            settlement.settle_apart(recovered)
            # What could not be settled is then found as claimed by nobody, and the place of this runner is free.
            transactions.run(config.database_alias, lambda *_: processes.remove(config, process_id))
        finally:
            _tell(config, recovered, error, elsewhere)
        return recovered
    return _tell(config, recovered, error, elsewhere)


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
        if dialect_for(config.database_alias).is_unanswered(error):
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
            found = _pruned(config, beat)
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

    settlement = Settlement(config, unheld, started, _MISSING)
    try:
        recovered = transactions.run(config.database_alias, settlement.settle)
    except DatabaseError as refusal:
        if not of_some(config, refusal):
            raise
        recovered = Recovered()
        try:
            settlement.settle_apart(recovered)
        finally:
            _tell(config, recovered, _MISSING, elsewhere)
        return recovered
    return _tell(config, recovered, _MISSING, elsewhere)


_UNHELD = ~Q(Exists(Process.objects.filter(pk=OuterRef("process_id"))))


def _pruned(config: BackendConfig, beat: processes.Beat) -> tuple[tuple[str, int], Recovered] | None:
    """Settle what an expired process has claimed, and remove its row; None if another has, or it has beaten since."""
    using = config.database_alias
    settlement = Settlement(config, Q(process_id=beat.process_id), lambda _: True, _PRUNED)

    def prune(dialect: Dialect, cursor: CursorWrapper) -> tuple[tuple[str, int], Recovered] | None:
        process = _lock_expired(config, beat)
        if process is None:
            return None
        recovered = settlement.settle(dialect, cursor)
        processes.remove(config, beat.process_id)
        return process, recovered

    def remove(*_: object) -> tuple[str, int] | None:
        process = _lock_expired(config, beat)
        if process is not None:
            processes.remove(config, beat.process_id)
        return process

    try:
        return transactions.run(using, prune)
    except DatabaseError as refusal:
        if not of_some(config, refusal):
            raise
    recovered = Recovered()
    try:
        settlement.settle_apart(recovered, fence=lambda: _lock_expired(config, beat) is not None)
        process = transactions.run(using, remove)
    except BaseException:
        _tell(config, recovered, _PRUNED)
        raise
    if process is None:
        _tell(config, recovered, _PRUNED)
        return None
    return process, recovered


def _lock_expired(config: BackendConfig, beat: processes.Beat) -> tuple[str, int] | None:
    """Name and pid of the process if it has not beaten since; it cannot until the transaction ends."""
    # Locked until all is done: a heartbeat that comes now waits, and then finds no row to beat for.
    skip_locked = connections[config.database_alias].features.has_select_for_update_skip_locked
    rows = processes.of_alias(config).filter(pk=beat.process_id)
    if beat.at is not None:
        rows = rows.filter(last_heartbeat_at=beat.at)
    process: tuple[str, int] | None = rows.select_for_update(skip_locked=skip_locked).values_list("name", "pid").first()
    if process is not None and beat.at is None and processes.last_beats(config, rows)[0].at is not None:
        return None  # it has come since
    return process


def _tell(
    config: BackendConfig, recovered: Recovered, error: ErrorRecord, elsewhere: Elsewhere | None = None
) -> Recovered:
    """Tell of it. A subscriber may do what it likes: with `elsewhere`, not in the thread that settles."""
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

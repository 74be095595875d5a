"""The hot path: claim, run, finish, release.

A claim is a row, and its id is the fence: an outcome counts only if that row still stands when it is
recorded. The one that deletes the row first, worker or recovery, decides what becomes of the job.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from contextvars import copy_context
from datetime import datetime, timedelta
from functools import lru_cache, partial
from inspect import iscoroutinefunction

from asgiref.sync import async_to_sync
from django.db import DatabaseError, Error, IntegrityError
from django.db.backends.utils import CursorWrapper
from django.tasks import Task, TaskContext
from django.tasks.base import TaskError

from dj_queue import callouts, events
from dj_queue.config import BackendConfig
from dj_queue.dialects import Claim, Dialect, Outcome, Selector, dialect_for
from dj_queue.exceptions import NotJSONError, NotUTF8Error, UnreadableJobError
from dj_queue.models import ClaimedExecution
from dj_queue.operations import attempts, concurrency, deletion, obstacles, recording, results, retention, transactions
from dj_queue.operations.recording import Claiming, Job, Recorded
from dj_queue.serialization import ErrorRecord, describe, dump, normalize
from dj_queue.types import AnyTaskResult

logger = logging.getLogger("dj_queue")

__all__ = [
    "Claiming",
    "Job",
    "announce",
    "claim",
    "fail_unread",
    "finish",
    "finish_and_claim",
    "reclaimed",
    "release",
    "release_strays",
    "run",
]


# So often a claim is tried again without what the database has refused of it, and of so few jobs one is sought.
_MOST_TREATMENTS, _FEW = 8, 8


def claim(config: BackendConfig, selectors: Sequence[Selector], limit: int, *, process_id: int | None) -> list[Job]:
    """Claim up to `limit` ready jobs, in the order in which they should start."""
    if not transactions.look(config.database_alias, lambda dialect, cursor: dialect.any_ready(cursor, config.alias)):
        return []
    for treatments in range(_MOST_TREATMENTS + 1):
        write = Claiming(config, selectors, limit, process_id).write
        try:
            claims = transactions.run(config.database_alias, write, one_statement=True)
            break
        except DatabaseError as refusal:
            if treatments == _MOST_TREATMENTS or not obstacles.can_be_treated(config, refusal):
                raise
            if isinstance(refusal, IntegrityError) and obstacles.drop_ready_doubles(config):
                continue
            if limit > _FEW:
                # Whatever is refused may not be among the first.
                limit = max(_FEW, limit // 4)
            elif not obstacles.set_ready_aside(config, selectors):
                raise
    return _claimed(config, claims)


def reclaimed(row: ClaimedExecution) -> Job:
    """A job claimed by somebody else's call, to be run here."""
    job = row.job
    claim = Claim(
        id=row.pk,
        job_id=job.id,
        task_path=job.task_path,
        queue_name=job.queue_name,
        priority=job.priority,
        payload=dump(job.payload),
        scheduled_at=job.scheduled_at,
        created_at=job.created_at,
        started_at=job.started_at,
        concurrency_key=job.concurrency_key,
        claimed_at=row.created_at,
    )
    past = attempts.Past(attempts.workers(job.worker_ids), attempts.pairs(job.errors))
    return Job(claim, time.monotonic(), past=past)


def run(job: Job, config: BackendConfig, *, worker: str) -> None:
    """Run the task of a claimed job, whatever it does, and note what became of it.

    Call it in a context of its own: what the task sets there is not for the next job.
    """
    began = time.monotonic()
    # The claim's own time: what another process reads of a running job is what the task itself is told.
    started_at = job.claim.claimed_at
    job.began = began
    value: str | None = None
    error: ErrorRecord | None = None
    job.started_at = started_at
    try:
        value = _call(job, config, started_at, worker)
    except BaseException as exception:
        # Also SystemExit and KeyboardInterrupt: a task that asks its worker to end has failed, no more.
        job.exception = exception
        error = describe(exception, skip_frames=3)
    job.outcome = Outcome(job.claim.id, job.claim.job_id, started_at, value, error)
    job.seconds = time.monotonic() - began


def abandon(job: Job, error: BaseException) -> None:
    """Note as failed a job whose thread was ended by `error` before it could note anything."""
    job.exception = error
    started_at = job.started_at or job.claim.claimed_at
    job.outcome = Outcome(job.claim.id, job.claim.job_id, started_at, None, describe(error))


def finish(
    config: BackendConfig, jobs: Sequence[Job], *, worker: str, on_unblocked: Callable[[], None] = lambda: None
) -> list[Job]:
    """Record what became of these jobs, and return those that were still ours.

    `on_unblocked` is called if that made blocked jobs ready. Jobs that the database refused to record for now
    are not `settled`. Raises the database's error when that is away: nothing was recorded, call again.
    """
    return finish_and_claim(config, jobs, None, worker=worker, on_unblocked=on_unblocked)[0]


def finish_and_claim(
    config: BackendConfig,
    jobs: Sequence[Job],
    claiming: Claiming | None,
    *,
    worker: str,
    on_unblocked: Callable[[], None] = lambda: None,
    waits_again: bool | None = True,
    on_strays: Callable[[], None] = lambda: None,
    last: bool = False,
) -> tuple[list[Job], list[Job]]:
    """`finish`, and where that takes a transaction and makes blocked jobs ready, claim in the same one.

    A commit may cost more than all statements before it, and a job that others wait for has two otherwise.
    Return the jobs that were still ours, and those that were claimed. Without `waits_again`, a lock that was waited
    for in vain is the caller's to think about: `held_keys` says whose, and with None, those that it concerns are found
    by halves. Jobs that are not `settled` afterwards were
    refused, and are to be tried again from their `retry_at` on; with `last`, as little as possible is left so.
    `on_strays` is called if what was claimed could not be read in full: those claims are to be given back.
    """
    ours: list[Job] = []
    claimed: list[Job] = []
    for recorded in recording.record(config, jobs, claiming, worker=worker, waits_again=waits_again, last=last):
        mine = [job for job in recorded.jobs if job.claim.id in recorded.kept]
        for job in mine:
            _settle(job, recorded.finished_at)
        _drop(config, mine)
        failed = any(job.outcome is not None and job.outcome.error for job in mine)
        if failed or events.heard("job.executed", "job.failed", "job.claim_lost", "job.unblocked"):
            _tell(config, recorded)
        if recorded.unblocked:
            on_unblocked()
        ours += mine
        try:
            claimed += _claimed(config, recorded.claims)
        except Error:  # all this is committed: what was recorded is to be told of, and what was claimed given back
            on_strays()
    return ours, claimed


def announce(jobs: Sequence[Job]) -> None:
    """Send Django's `task_finished` for recorded jobs, each in a context of its own. What receivers raise is logged."""
    for job in jobs:
        if job.result is not None:
            copy_context().run(_announce, job.result, job.exception)


def release(config: BackendConfig, jobs: Sequence[Job]) -> int:
    """Give back claims that were not started; return how many were still ours.

    One that the database refuses holds up no other: what is given back is `settled`, and then the refusal is raised.
    """
    by_id = {job.claim.id: job for job in jobs}
    refused: dict[int, Exception] = {}
    try:
        return _give_back(config, list(by_id), refused, lambda claim_id: setattr(by_id[claim_id], "settled", True))
    finally:
        for claim_id, refusal in refused.items():
            by_id[claim_id].refusals += 1
            by_id[claim_id].refusal = refusal


def release_strays(config: BackendConfig, process_id: int, *, known: Container[int]) -> int:
    """Give back what this process has claimed without knowing it; return how many."""
    rows = ClaimedExecution.objects.using(config.database_alias).filter(process_id=process_id)
    strays = [claim_id for claim_id in rows.values_list("pk", flat=True) if claim_id not in known]
    return _give_back(config, strays, {}, lambda _: None)


def fail_unread(
    config: BackendConfig, selectors: Sequence[Selector], process_id: int, error: Exception, *, known: Container[int]
) -> bool:
    """Fail the job that a claim of one could not read, and by no value of it; return whether it was found."""
    rows = ClaimedExecution.objects.using(config.database_alias).filter(process_id=process_id)
    unread = [claim_id for claim_id in rows.values_list("pk", flat=True) if claim_id not in known]
    flaw = UnreadableJobError(
        f"the stored job cannot be read: {type(error).__name__}: {error}. Correct its row and retry it, or discard it."
    )
    if not unread:  # where the claim is rolled back by that
        return bool(obstacles.fail_first_ready(config, selectors, flaw))

    def fail(dialect: Dialect, cursor: CursorWrapper) -> None:
        for claim_id in unread:
            dialect.fail_row(cursor, _CLAIMED_JOBS, claim_id, describe(flaw))
            cursor.execute("DELETE FROM dj_queue_claimed_executions WHERE id = %s", [claim_id])

    transactions.run(config.database_alias, fail)
    # A limited one's slot is found free by the next upkeep: its key may be what cannot be read.
    logger.error("dj_queue: a claimed job cannot be read, and has failed: %s", error)
    return True


_CLAIMED_JOBS = """(SELECT claim.id, job.id AS job_id, job.backend_alias, job.queue_name
  FROM dj_queue_claimed_executions claim JOIN dj_queue_jobs job ON job.id = claim.job_id) held"""


# ---- run --------------------------------------------------------------------------------------------


def _call(job: Job, config: BackendConfig, started_at: datetime, worker: str) -> str | None:
    result, flaw = results.claimed(job.claim, config.alias, job.past)
    job.result = result
    results.start(result, started_at, worker)
    if flaw:
        raise UnreadableJobError(f"the stored job cannot be read: {flaw}. Correct its row and retry it, or discard it.")
    task = result.task
    results.send("task_started", result)
    args = (TaskContext(task_result=result), *result.args) if task.takes_context else result.args
    if type(task).call is not Task.call:
        value = callouts.call(task.call, *args, **result.kwargs)
    elif _is_coroutine(task.func):
        # Bound beforehand: what asgiref calls in between has names of its own, such as `self`.
        value = async_to_sync(partial(callouts.call_async, task.func, *args, **result.kwargs))()
    else:
        value = callouts.call(task.func, *args, **result.kwargs)
    if value is None:
        return None
    try:
        job.value = normalize(value, dialect_for(config.database_alias).json_limits)
        return None if job.value is None else dump(job.value)
    except NotJSONError as error:
        # Exactly the classes that Django's own backends fail with.
        kind = ValueError if isinstance(error, NotUTF8Error) else TypeError
        raise kind(f"The task returned what cannot be stored: {error}. Return plain JSON values.") from None


# Takes longer than all else around a call.
_is_coroutine = lru_cache(maxsize=1024)(iscoroutinefunction)


def _announce(result: AnyTaskResult, exception: BaseException | None) -> None:
    if exception is None:
        results.send("task_finished", result)
        return
    trace = exception.__traceback__
    try:
        raise exception
    except BaseException:
        # Receivers, Django's own among them, look for the exception in sys.exc_info().
        results.send("task_finished", result)
    finally:
        exception.__traceback__ = trace


# ---- claim ------------------------------------------------------------------------------------------


def _claimed(config: BackendConfig, claims: Sequence[Claim]) -> list[Job]:
    received = time.monotonic()
    if claims and events.heard("job.claimed"):
        for each in claims:
            events.emit("job.claimed", job_id=str(each.job_id), queue_name=each.queue_name, priority=each.priority)
    # Of those that were tried before, and only of them.
    past = attempts.past(config, [each.job_id for each in claims if each.started_at is not None])
    return [Job(each, received, past=past.get(each.job_id)) for each in claims]


# ---- finish -----------------------------------------------------------------------------------------


def held_keys(config: BackendConfig, jobs: Sequence[Job]) -> set[str]:
    """The keys of those jobs that cannot be recorded before another transaction ends; all keys if it is not said."""
    keys = {job.claim.concurrency_key for job in jobs if job.claim.concurrency_key}
    if not keys:
        return keys
    # Where no semaphore is held, it is perhaps a job that is blocked on one.
    return transactions.run(config.database_alias, partial(concurrency.find_held, config, keys)) or keys


def _drop(config: BackendConfig, jobs: Sequence[Job]) -> None:
    """Delete finished jobs that could not go in the statement that recorded them, as other rows may depend on them.

    They are recorded: what fails here is left to the scheduler.
    """
    if config.preserve_finished_jobs or deletion.deletes_when_finished(config):
        return
    succeeded = [job.claim.job_id for job in jobs if job.outcome is not None and job.outcome.error is None]
    with suppress(Error):
        retention.delete_recorded(config, succeeded)


def _settle(job: Job, finished_at: datetime) -> None:
    if job.result is None or job.outcome is None:
        return
    if job.outcome.error is None:
        results.succeed(job.result, finished_at, job.value)
    else:
        error = job.outcome.error
        results.fail(
            job.result,
            finished_at,
            TaskError(exception_class_path=error.exception_class, traceback=error.traceback),
        )


def _tell(config: BackendConfig, recorded: Recorded) -> None:
    for job in recorded.jobs:
        job_id = str(job.claim.job_id)
        if job.claim.id not in recorded.kept or job.outcome is None:
            events.emit("job.claim_lost", job_id=job_id)
            continue
        ran = {
            "backend_alias": config.alias,
            "queue_name": job.claim.queue_name,
            "task_path": job.claim.task_path,
            "seconds": job.seconds,
            "waited_seconds": _waited(job),
        }
        error = job.outcome.error
        if error:
            fields = {"exception_class": error.exception_class, "message": error.message}
            events.emit("job.failed", job_id=job_id, **fields, **ran)
        else:
            events.emit("job.executed", job_id=job_id, status="success", **ran)
    for job_id, key in recorded.unblocked:
        events.emit("job.unblocked", job_id=job_id, concurrency_key=key)


def _waited(job: Job) -> float | None:
    """Seconds from when the job was due to its start; None for what was tried before, whose wait began later."""
    claim = job.claim
    if claim.started_at is not None or job.began is None:
        return None
    started_at = claim.claimed_at + timedelta(seconds=job.began - job.received)
    due = max(claim.created_at, claim.scheduled_at) if claim.scheduled_at else claim.created_at
    return max(0.0, (started_at - due).total_seconds())


# ---- release ----------------------------------------------------------------------------------------


def _give_back(
    config: BackendConfig, claim_ids: Sequence[int], refused: dict[int, Exception], on_settled: Callable[[int], None]
) -> int:
    """Give back all that the database accepts; then raise what it refused, if anything."""
    count = 0
    batches = [claim_ids] if claim_ids else []
    while batches:
        some = batches.pop(0)
        try:
            count += transactions.run(
                config.database_alias,
                lambda dialect, cursor, some=some: dialect.release(  # type: ignore[misc]
                    cursor, some, alias=config.alias, notify=config.listen_notify
                ),
                one_statement=True,
            )
        except Exception as refusal:
            if recording.is_away(config, refusal):
                raise
            if len(some) > 1:
                batches += [some[: len(some) // 2], some[len(some) // 2 :]]
            else:
                refused[some[0]] = refusal
            continue
        for claim_id in some:
            on_settled(claim_id)
    for first in refused.values():
        raise first
    return count

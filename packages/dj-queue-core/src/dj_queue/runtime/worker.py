"""Claim, run, finish: one loop owns the queue connection, and threads run the tasks.

The loop claims a batch, hands it to the threads, collects what they have done and records it as one
batch. While a batch commits, the next gathers: a busy worker writes large batches, an idle one writes
each job at once, and no timer delays anything.
"""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

from django.db import Error, OperationalError

from dj_queue.config import BackendConfig, WorkerConfig
from dj_queue.dialects import Selector
from dj_queue.error_reporting import report
from dj_queue.models import Process
from dj_queue.operations import concurrency, execution
from dj_queue.runtime.listener import Listener
from dj_queue.runtime.part import UNREADABLE, Part
from dj_queue.runtime.pool import PATIENCE, Pool
from dj_queue.runtime.runner import DATABASE_AWAY, End, Runner
from dj_queue.runtime.shared_state import SharedState

logger = logging.getLogger("dj_queue")

# The largest batch, whatever the durations say: it bounds a statement's size and its locks.
_MOST_AHEAD = 500
# Claimed jobs that wait longer than this behind running ones go back to ready, for other workers.
_LONGEST_WAIT = 0.1
# After work, the first look comes soon (an enqueuer need not notify twice in that time) ...
_FIRST_POLL = 0.01
# ... and while a healthy listener stands by, polling backs off to this many polling intervals.
_LISTENING_BACKOFF = 10
# While the lease is over, seconds between two looks whether a heartbeat has renewed it.
_LEASE_LOOK = 0.1
# Seconds that a process lives at least whose bare size is above `recycle_above_mib`.
_SHORTEST_LIFE = 60.0
# Where the database refuses to record this number of jobs, no more are claimed.
_MOST_UNRECORDED = 1000
# A claim that is refused when it is given back so often is left for its process's end.
_MOST_RETURNS = 40
# How much the latest job counts in the running average of durations.
_WEIGHT = 0.05


class Worker(Runner):
    kind = Process.Kind.WORKER

    def __init__(
        self,
        config: BackendConfig,
        options: WorkerConfig,
        name: str,
        supervisor_id: int | None = None,
        shared: SharedState | None = None,
    ) -> None:
        super().__init__(config, name, supervisor_id, shared)
        self.options = options
        self._selectors = [Selector.parse(text) for text in options.queues]
        self._pool = Pool(
            options.threads,
            run=self._run_job,
            may_start=self._may_start,
            on_done=self.wakeup.set,
            on_error=lambda error: report(config, error, "worker.execute"),
            name=name,
        )
        # Every claim from the moment it is known until it is recorded or given back.
        self._held: set[int] = set()
        self._look_for_strays_at = math.inf  # on the monotonic clock
        self._unrecorded: list[execution.Job] = []
        self._held_keys = concurrency.HeldKeys(config)
        self._returning: list[execution.Job] = []
        self._singly = 0  # how many more claims are of one job
        self._recorded = 0
        self._first_step_at: float | None = None
        self._oversized = False
        self._claims = Part(config, "worker.claim")
        self._returns = Part(config, "worker.release")
        self._listener = Listener(config, name)
        self._next_claim = 0.0  # on the monotonic clock
        self._idle_poll = _FIRST_POLL
        self._round_trip = 0.002
        self._seconds: float | None = None  # a job takes, on average; unknown at first
        self._submitted_at = 0.0

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            "queues": list(self.options.queues),
            "threads": self.options.threads,
            "polling_interval": self.options.polling_interval,
        }

    def connected(self) -> None:
        self._listener.connected()
        self._next_claim = 0.0
        # The last connection may have broken between a claim's commit and our hearing of it.
        if self.process_id is not None:
            self._look_for_strays_at = 0.0

    def away(self, error: Error) -> float:
        if self._listener.listening and not self._listener.apart:
            # Of one outage, the first failure alone. Without a callback, the line that follows says it.
            self._listener.lost(error, tell=not self._failures and self.config.on_thread_error is not None)
        return super().away(error)

    def step(self) -> float:
        if self._first_step_at is None:
            self._begin()
        self._listener.look_after()
        self._record(claiming=True)
        self._returns(self._release_strays, None)
        if self._worn_out():
            return self._retire()
        self._claims(self._claim, None)
        self._returns(self._give_back_stale, None)
        return self._pause()

    def sleep(self, seconds: float) -> None:
        socket = self._listener.socket()
        if socket is None:
            self.wakeup.wait(seconds)
            return
        try:
            self._listener.ping()
            # What came in with the reply to a statement does not make the socket readable any more.
            if not self._hear() and self.wakeup.wait(seconds, socket):
                self._hear()
        except Exception as error:  # the driver's own errors: these calls do not go through Django
            if self._listener.apart:
                self._listener.lost(error)
                self._look_at_once()
            else:
                self._listener.lost(_lost(error), tell=not self._failures)
                self.away(_lost(error))
            # Nobody is told of anything until there is a connection again.
            self.wakeup.set()

    def drain(self) -> None:
        """Give back what was not started, wait for what runs, and record it; then give up the rest."""
        deadline = time.monotonic() + self.config.shutdown_timeout
        self._returning += self._pool.take_back()  # whatever the database says
        self.attempt(self._give_back)
        while (self._pool.busy or self._unrecorded) and time.monotonic() < deadline and not self.hurried:
            wait = self.attempt(self._record)
            self.wakeup.wait(min(max(wait, 0.01), deadline - time.monotonic()))
        self.attempt(partial(self._record, last=True))
        self._suspect_strays()
        self.attempt(self._give_back)
        self._pool.close()
        self._listener.close()
        if self._pool.unfinished or self._unrecorded or self._returning:
            # The supervisor settles these claims once nothing of this runner can touch them any more.
            self.end = self.end or (End.HURRIED if self.hurried else End.UNFINISHED)

    def catch_up(self) -> None:
        # Not by a follow-up: the threads end after what they are doing.
        execution.announce(self._finish(last=True))

    # ---- run ----

    def _may_start(self, job: execution.Job) -> bool:
        """Asked by each thread before it starts a job, one thread at a time."""
        if not self.lease.valid:
            return False
        self.shared.started(job.claim.id)
        return True

    def _run_job(self, job: execution.Job) -> None:
        execution.run(job, self.config, worker=self.name)

    # ---- claim ----

    def _claim(self) -> None:
        now = time.monotonic()
        room = self._room()
        if room <= 0 or now < self._next_claim or not self.lease.valid:
            return
        if self._singly:
            room = 1
        try:
            jobs = execution.claim(self.config, self._selectors, room, process_id=self.process_id)
        except Exception as error:
            self._suspect_strays()  # it may have been committed, and only the reading of it was refused
            if isinstance(error, UNREADABLE):
                self._claimed_unread(error, room)
            raise
        self._singly = max(0, self._singly - 1)
        self._measure_round_trip(time.monotonic() - now)
        self._start(jobs, room)

    def _claimed_unread(self, error: Exception, room: int) -> None:
        """What is claimed cannot be read. One by one, the others run, and the one that it is fails."""
        if not self._singly or self.process_id is None:
            self._singly = room
        elif execution.fail_unread(self.config, self._selectors, self.process_id, error, known=self._held):
            self._look_at_once()

    def _start(self, jobs: list[execution.Job], room: int) -> None:
        self._held.update(job.claim.id for job in jobs)
        for job in jobs:
            self._pool.submit(job)
        if jobs:
            self._submitted_at = time.monotonic()
            self._idle_poll = _FIRST_POLL
        if len(jobs) < room:
            # Nothing is left for now. What is notified in the meantime ends the wait.
            self._next_claim = time.monotonic() + self._idle_poll
            self._idle_poll = min(self._idle_poll * 2, self._longest_poll())
        else:
            self._next_claim = 0.0

    def _room(self) -> int:
        """How many jobs to claim: idle threads, and what all threads will begin within two round trips."""
        if len(self._unrecorded) >= _MOST_UNRECORDED:
            return 0
        ahead = 0
        if self._seconds is not None:
            begun = self.options.threads * self._round_trip / max(self._seconds, 1e-6)
            ahead = min(math.floor(2 * begun), _MOST_AHEAD)
        room = self.options.threads + ahead - self._pool.unfinished
        # In halves: a claim of one job costs as much as a claim of a hundred.
        return room if 2 * room > ahead or self._pool.unfinished < self.options.threads else 0

    def _longest_poll(self) -> float:
        return self.options.polling_interval * (_LISTENING_BACKOFF if self._listener.listening else 1)

    def _hear(self) -> bool:
        """Take what was notified; return whether there may be work."""
        heard = self._listener.heard()
        if heard:
            self._look_at_once()
        return heard

    def _look_at_once(self) -> None:
        self._next_claim = 0.0
        self._idle_poll = _FIRST_POLL

    # ---- finish ----

    def _record(self, *, claiming: bool = False, last: bool = False) -> float:
        """Write what the threads have done, in one batch, and tell of it; return when to try what was refused."""
        recorded = self._finish(claiming=claiming, last=last)
        if recorded:
            self._pool.follow_up(partial(_announce, deque(recorded)))
        self._pool.look_after()
        return self._until_retry() or 0.0

    def _finish(self, *, claiming: bool = False, last: bool = False) -> list[execution.Job]:
        recorded: list[execution.Job] = []
        done = self._pool.collect()
        for job in done:
            self._measure(job.seconds)
        # Kept until they are recorded: while the database is away, nothing that was done is forgotten.
        self._unrecorded += done
        # What another transaction holds the semaphore of waits its turn, and holds up nothing else.
        but = self._held_keys.now() if self._unrecorded and not last else set()
        began = time.monotonic()
        due = [
            job for job in self._unrecorded if last or (job.retry_at <= began and job.claim.concurrency_key not in but)
        ]
        if due:
            room = self._room() if claiming and self.lease.valid and not self._worn_out() else 0
            finish = partial(
                execution.finish_and_claim,
                self.config,
                due,
                execution.Claiming(self.config, self._selectors, room, self.process_id) if room > 0 else None,
                worker=self.name,
                on_unblocked=self._look_at_once,
                on_strays=self._suspect_strays,
                last=last,
            )
            try:
                recorded, claimed = finish(waits_again=last)
            except OperationalError as error:
                if not self.dialect.is_lock_timeout(error):
                    raise
                held = execution.held_keys(self.config, due)
                if held:
                    # Nothing was recorded: the next time, which is now, without these.
                    self._held_keys.add(held)
                    return self._finish(claiming=claiming)
                recorded, claimed = finish(waits_again=None)
            self._forget(due)
            self._measure_round_trip(time.monotonic() - began)
            if claimed:
                self._start(claimed, room)
        return recorded

    def _forget(self, jobs: list[execution.Job]) -> None:
        """Take off the books what is settled, and tell of what the database has refused."""
        settled = [job for job in jobs if job.settled]
        self._recorded += len(settled)
        # The claim of a job that was given up still stands: it is not to be taken for a stray one, and run again.
        self._held.difference_update(job.claim.id for job in settled if not job.given_up)
        self._unrecorded = [job for job in self._unrecorded if not job.settled]
        for job in jobs:
            if job.refusal is not None and (job.given_up or (job.refusals == 1 and not job.settled)):
                what = "is given up, and fails once this process has ended" if job.given_up else "is tried again"
                logger.error(
                    "dj_queue %s: the database refused to record job %s (%s), which %s: %s",
                    self.name, job.claim.job_id, job.claim.task_path, what, job.refusal,
                )  # fmt: skip
                report(self.config, job.refusal, "worker.record")

        waiting = [job for job in jobs if job.waits == 1 and not job.refusals and not job.settled]
        if waiting:
            first = waiting[0]
            logger.warning(
                "dj_queue %s: what others have locked keeps %s from being recorded, first job %s (%s): %s. It is tried"
                " again for as long as it takes. Look for transactions that are open for long.",
                self.name,
                "1 job" if len(waiting) == 1 else f"{len(waiting)} jobs",
                first.claim.job_id,
                first.claim.task_path,
                first.refusal,
            )

    def _until_retry(self) -> float | None:
        """Seconds until what was refused is to be recorded; None if there is nothing."""
        if not self._unrecorded:
            return None
        return max(0.0, min(job.retry_at for job in self._unrecorded) - time.monotonic())

    # ---- give back ----

    def _give_back_stale(self) -> None:
        """Never hoard: what still waits behind long jobs belongs to an idle worker."""
        waits = self._pool.waiting and time.monotonic() - self._submitted_at > _LONGEST_WAIT
        if waits or self._returning:
            self._give_back()
            self._seconds = None

    def _give_back(self) -> float:
        # Kept until it is done, as with what is unrecorded.
        self._returning += self._pool.take_back()
        self._release_strays()
        try:
            execution.release(self.config, self._returning)
        finally:  # what was refused alone is left
            self._held.difference_update(job.claim.id for job in self._returning if job.settled)
            self._returning = [job for job in self._returning if not job.settled and job.refusals < _MOST_RETURNS]
        return 0.0

    def _suspect_strays(self) -> None:
        self._look_for_strays_at = min(self._look_for_strays_at, time.monotonic())

    def _release_strays(self) -> None:
        if self.process_id is None or time.monotonic() < self._look_for_strays_at:
            return
        execution.release_strays(self.config, self.process_id, known=self._held)
        # And again: a server may go on with a claim, and commit it, long after its connection broke.
        self._look_for_strays_at = time.monotonic() + self.config.process_heartbeat_interval

    # ---- recycle ----

    def _worn_out(self) -> bool:
        """Whether this process is to make room for a fresh one. Threads have nothing to gain from it."""
        if self.parent is None:
            return False
        jobs, mib = self.options.recycle_after_jobs, self.options.recycle_above_mib
        if jobs and self._recorded >= jobs:
            return True
        # Never before it has done anything: its replacement would be of the same size.
        if not mib or not self._recorded or _resident_mib() <= mib:
            return False
        return not self._oversized or time.monotonic() - (self._first_step_at or 0.0) > _SHORTEST_LIFE

    def _begin(self) -> None:
        self._first_step_at = time.monotonic()
        mib = self.options.recycle_above_mib
        if self.parent is None or not mib:
            return
        bare = _resident_mib()
        self._oversized = bare > mib
        if self._oversized:
            logger.warning(
                "dj_queue %s: recycle_above_mib is %s, and this process takes %.0f MiB before it has run any job."
                " It is replaced once a minute at most. Raise recycle_above_mib well above %.0f.",
                self.name,
                mib,
                bare,
                bare,
            )

    def _retire(self) -> float:
        """Claim no more, and end once what runs has ended, however long that takes: no deploy waits for it."""
        self._returns(self._give_back, 0.0)
        if not self._pool.busy:
            self.request_stop()
        return self._longest_poll() if self._pool.patience is None else PATIENCE

    # ---- measure ----

    def _pause(self) -> float:
        if self._pool.done:
            return 0.0
        pauses = [self._until_next()]
        if self._pool.patience is not None:
            pauses.append(self._pool.patience)
        if (retry := self._until_retry()) is not None:  # also what waits for a semaphore that others hold
            pauses.append(max(retry, _LONGEST_WAIT))
        return min(pauses)

    def _until_next(self) -> float:
        if not self.lease.valid:
            return _LEASE_LOOK
        if self._pool.waiting:
            return _LONGEST_WAIT / 2
        if self._pool.unfinished >= self.options.threads or len(self._unrecorded) >= _MOST_UNRECORDED:
            return self._longest_poll()
        return max(self._next_claim - time.monotonic(), self._claims.wait)

    def _measure(self, seconds: float) -> None:
        if self._seconds is None:
            self._seconds = seconds
        else:
            self._seconds += (seconds - self._seconds) * _WEIGHT

    def _measure_round_trip(self, seconds: float) -> None:
        self._round_trip += (min(seconds, _LONGEST_WAIT) - self._round_trip) * _WEIGHT


def _announce(recorded: deque[execution.Job]) -> None:
    """May be called again for those that are left."""
    while recorded:
        execution.announce([recorded.popleft()])


def _resident_mib() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # no /proc here: the most there ever was, which is never less
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
    return pages * resource.getpagesize() / (1024 * 1024)


def _lost(error: Exception) -> Any:
    if isinstance(error, DATABASE_AWAY):
        return error
    lost = OperationalError(str(error))
    lost.__cause__ = error
    return lost

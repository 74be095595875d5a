"""A fixed number of threads that run jobs, and say when one is done.

The queue in front of them holds only what a worker has claimed ahead: what is not started can be
taken back at any time. The threads never touch the queue's tables; their database connections are
the application's alone.

The books are kept by the owner, which calls every public method. A library may raise an exception in
a thread at any moment (that is how some of them end a call), and so end it: what a thread has in its
hands is noted before it leaves the queue, and `collect()` finds what a dead one has left.
"""

import gc
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from queue import SimpleQueue

from django.core.cache import caches
from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from dj_queue import forks
from dj_queue.operations import execution, transactions
from dj_queue.operations.execution import Job

type FollowUp = Callable[[], None]

# Seconds that a follow-up waits for one of the threads. Then it has a thread of its own.
PATIENCE = 0.05


class Pool:
    def __init__(
        self,
        size: int,
        run: Callable[[Job], None],
        may_start: Callable[[Job], bool],
        on_done: Callable[[], None],
        on_error: Callable[[BaseException], None],
        name: str,
    ) -> None:
        self.size = size
        self.done: deque[Job] = deque()
        self._run = run
        self._may_start = may_start
        self._on_done = on_done
        self._on_error = on_error
        self._name = name
        # A thread waits for a ticket and then takes what there is, if anything: a job that may not start yet stays.
        self._tickets: SimpleQueue[bool] = SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._calls: deque[FollowUp] = deque()
        self._lock = threading.Lock()  # to take from the two
        self._forks = forks.Ends()
        self._threads: list[_Thread] = []
        self._spare: _Thread | None = None
        self._open: set[Job] = set()  # submitted and not collected
        self._put_back: set[Job] = set()  # because their threads ended before they could start them
        self._following: set[FollowUp] = set()  # threads leave it, by one atomic call
        self._called_at = 0.0  # the oldest that waits; on the monotonic clock
        self._started = 0
        self._closed = False

    @property
    def unfinished(self) -> int:
        """Jobs submitted and not yet collected."""
        return len(self._open)

    @property
    def waiting(self) -> int:
        """Jobs that no thread has started."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        return bool(self._open or self._following)

    @property
    def patience(self) -> float | None:
        """Seconds until `look_after()` has something to do, or None."""
        if not self._calls or self._closed or (self._spare is not None and not self._spare.idle):
            return None
        return max(0.0, self._called_at + PATIENCE - time.monotonic())

    def submit(self, job: Job) -> None:
        self._open.add(job)
        self._waiting.append(job)
        self._tickets.put(True)
        self._grow()

    def follow_up(self, call: FollowUp) -> None:
        """Run `call` on one of the threads: what is to happen after a job is recorded.

        It comes before the jobs that wait. It is called again if its thread is ended under it.
        """
        if not self._calls:
            self._called_at = time.monotonic()
        self._following.add(call)
        self._calls.append(call)
        self._tickets.put(True)
        self._grow()

    def collect(self) -> list[Job]:
        """Take the jobs that are done, also those whose threads have ended under them."""
        # First, who has ended: what those have in their hands is then final.
        ended = [thread for thread in (*self._threads, self._spare) if thread is not None and thread.ended]
        jobs = []
        while self.done:
            job = self.done.popleft()
            if job in self._open:
                self._open.remove(job)
                self._put_back.discard(job)
                jobs.append(job)
        for thread in ended:
            lost = self._bury(thread)
            if lost is not None:
                jobs.append(lost)
        if ended and not self._closed:
            # What is in `jobs` is on no books but the caller's: `look_after()` tells if there is no other thread.
            with suppress(RuntimeError):
                self._grow()
        return jobs

    def take_back(self) -> list[Job]:
        """Take the jobs that were not started."""
        with self._lock:
            jobs = list(self._waiting)
            self._waiting.clear()
        self._open.difference_update(jobs)
        self._put_back.difference_update(jobs)
        return jobs

    def look_after(self) -> None:
        """Wake idle threads for what waits, and find a thread for what has waited for one too long."""
        if self._closed:
            return
        self._grow()
        if self._waiting and self._tickets.empty() and any(thread.idle for thread in self._threads):
            for _ in range(min(len(self._waiting), self.size)):
                self._tickets.put(True)
        if self.patience == 0.0:
            self._called_at = time.monotonic()
            if self._spare is None:
                tickets: SimpleQueue[bool] = SimpleQueue()
                self._spare = self._start(tickets, jobs=False)
            if self._spare is not None:
                self._spare.tickets.put(True)

    def close(self) -> None:
        """Let the threads end after what they are doing; does not wait."""
        self._closed = True
        for thread in (*self._threads, self._spare):
            if thread is not None:
                thread.tickets.put(False)

    def _grow(self) -> None:
        # Started when there is something to do: an idle worker has no threads.
        while len(self._threads) < self.size and len(self._threads) < len(self._open) + len(self._following):
            thread = self._start(self._tickets, jobs=True)
            if thread is None:
                return
            self._threads.append(thread)

    def _start(self, tickets: SimpleQueue[bool], *, jobs: bool) -> "_Thread | None":
        self._started += 1
        name = f"{self._name}-{self._started}" if jobs else f"{self._name}-signals"
        thread = _Thread(self._work, tickets, name, jobs=jobs)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no more of them
            if not self._threads:
                raise
            self._on_error(error)
            return None
        return thread

    def _bury(self, thread: "_Thread") -> Job | None:
        """Put back what a dead thread has left, and return its job if that was started."""
        if thread is self._spare:
            self._spare = None
        else:
            self._threads.remove(thread)
        lost = None
        with self._lock:
            call, job = thread.call, thread.job
            # Noted in both places for a moment: it ended within that.
            if call is not None and call in self._following and call not in self._calls:
                self._calls.appendleft(call)
            if job is None or job not in self._open or job in self._waiting:
                job = None
            elif job.started_at is None and job not in self._put_back:
                self._put_back.add(job)
                self._waiting.appendleft(job)
            else:
                self._open.remove(job)
                self._put_back.discard(job)
                lost = job
        if self._closed and thread.error is None and job is None and call is None:
            return None
        error = thread.error or RuntimeError("the thread has ended")
        if lost is not None and lost.outcome is None:
            execution.abandon(lost, error)
        with suppress(Exception):
            what = f"Job {lost.claim.job_id} ({lost.claim.task_path}) was in its hands" if lost else "It ran no job"
            error.add_note(f"raised in the thread {thread.name}, from outside; it is replaced. {what}.")
        self._on_error(error)
        if not self._closed:
            for _ in range(len(self._waiting) + len(self._calls)):
                self._tickets.put(True)  # what the dead one had taken of them is lost
        return lost

    # ---- in the threads ----

    def _work(self, thread: "_Thread") -> None:
        try:
            # Those are kept for a thread's life, and a job's context lasts no longer than it. What cannot be made
            # fails where it is used.
            with suppress(Exception):
                thread.context.run(caches.all)
            thread.context.run(self._forks.listen, id(thread))
            while thread.tickets.get():
                self._serve(thread)
        except BaseException as error:
            thread.error = error
        finally:
            try:
                connections.close_all()
            finally:
                thread.over = True
                self._on_done()

    def _serve(self, thread: "_Thread") -> None:
        with self._lock:
            # Each is noted before it leaves the queue.
            if self._calls:
                thread.call = self._calls[0]
                self._calls.popleft()
            elif thread.jobs and self._waiting and self._may_start(self._waiting[0]):
                thread.job = self._waiting[0]
                self._waiting.popleft()
        if thread.call is not None:
            self._follow(thread, thread.call)
        elif thread.job is not None:
            self._perform(thread, thread.job)

    def _perform(self, thread: "_Thread", job: Job) -> None:
        self._refresh_connections(thread)
        thread.context.copy().run(self._run, job)
        self._tidy_connections(thread, job)
        if forks.made:
            self._let_go_of_forks(thread)
        self.done.append(job)
        thread.job = None
        self._on_done()

    def _let_go_of_forks(self, thread: "_Thread") -> None:
        with self._lock:
            self._forks.collect(id(thread))

    def _follow(self, thread: "_Thread", call: FollowUp) -> None:
        self._refresh_connections(thread)
        try:
            thread.context.copy().run(call)
        except Exception as error:  # the jobs it is about are recorded, and the next ones wait
            self._on_error(error)
        self._tidy_connections(thread, None)
        if forks.made:
            self._let_go_of_forks(thread)
        self._following.discard(call)
        thread.call = None
        self._on_done()

    def _tidy_connections(self, thread: "_Thread", job: Job | None) -> None:
        """Let no transaction that was left open reach the next job."""
        # Asked for once a job, as it takes longer than all the rest where there is none.
        thread.connections = connections.all(initialized_only=True)
        if not thread.connections:
            return
        try:
            if any(transactions.is_open(connection) for connection in thread.connections):
                self._close_left_open(job)
                thread.connections = connections.all(initialized_only=True)
        except Exception as error:
            self._on_error(error)
        self._refresh_connections(thread)
        transactions.roll_back_unseen()

    def _close_left_open(self, job: Job | None) -> None:
        aliases = transactions.left_open()
        # The blocks of generators end when those are collected: now, and not in the middle of another job's block.
        exception, seen = (job.exception if job is not None else None), set[int]()
        while exception is not None and id(exception) not in seen:
            seen.add(id(exception))
            traceback.clear_frames(exception.__traceback__)
            exception = exception.__cause__ or exception.__context__
        gc.collect()
        transactions.abandon()
        what = f"Job {job.claim.job_id} ({job.claim.task_path})" if job is not None else "A receiver of task_finished"
        transactions.tell_left_open(what, aliases)

    def _refresh_connections(self, thread: "_Thread") -> None:
        """What Django does around a request: drop connections that are broken or too old."""
        for connection in thread.connections:
            try:
                with suppress(Error):
                    connection.close_if_unusable_or_obsolete()
                connection.queries_log.clear()
            except Exception as error:  # a driver's, a pool's: the thread, and the job in its hands, must go on
                self._on_error(error)


class _Thread(threading.Thread):
    """One of the threads, and what it has in its hands."""

    def __init__(self, work: Callable[["_Thread"], None], tickets: SimpleQueue[bool], name: str, *, jobs: bool) -> None:
        # Daemons: a task that never returns must not keep the process from ending.
        super().__init__(target=work, args=(self,), name=name, daemon=True)
        self.tickets = tickets
        self.jobs = jobs
        self.context = Context()
        self.job: Job | None = None
        self.call: FollowUp | None = None
        self.connections: Sequence[BaseDatabaseWrapper] = []  # after the last job
        self.error: BaseException | None = None
        self.over = False

    @property
    def idle(self) -> bool:
        return self.job is None and self.call is None

    @property
    def ended(self) -> bool:
        return self.over or not self.is_alive()

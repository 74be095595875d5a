"""A fixed number of threads that run jobs, and say when one is done.

The queue in front of them holds only what a worker has claimed ahead: what is not started can be
taken back at any time. The threads never touch the queue's tables; their database connections are
the application's alone.
"""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from django.conf import settings
from django.db import Error, close_old_connections, connections, reset_queries

from dj_queue.operations.execution import Job


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
        self._jobs: SimpleQueue[Job | Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._unfinished = 0  # submitted and not collected; only the owner's thread counts
        self._follow_ups = 0
        self._lock = threading.Lock()

    @property
    def unfinished(self) -> int:
        """Jobs submitted and not yet collected."""
        return self._unfinished

    @property
    def waiting(self) -> int:
        """Jobs that no thread has started."""
        return self._jobs.qsize()

    @property
    def busy(self) -> bool:
        return self._unfinished > 0 or self._follow_ups > 0

    def submit(self, job: Job) -> None:
        self._unfinished += 1
        self._jobs.put(job)
        self._grow()

    def follow_up(self, call: Callable[[], None]) -> None:
        """Run `call` on one of the threads: what is to happen after a job is recorded."""
        with self._lock:
            self._follow_ups += 1
        self._jobs.put(call)
        self._grow()

    def collect(self) -> list[Job]:
        """Take the jobs that are done."""
        jobs = []
        while self.done:
            jobs.append(self.done.popleft())
        self._unfinished -= len(jobs)
        return jobs

    def take_back(self) -> list[Job]:
        """Take the jobs that were not started."""
        jobs = []
        calls = []
        while True:
            try:
                item = self._jobs.get_nowait()
            except Empty:
                break
            if isinstance(item, Job):
                jobs.append(item)
            else:
                calls.append(item)
        for call in calls:
            self._jobs.put(call)
        self._unfinished -= len(jobs)
        return jobs

    def close(self) -> None:
        """Let the threads end after what they are doing; does not wait."""
        for _ in self._threads:
            self._jobs.put(None)

    def _grow(self) -> None:
        # Started when there is something to do: an idle worker has no threads.
        if len(self._threads) < self.size and len(self._threads) < self._unfinished + self._follow_ups:
            name = f"{self._name}-{len(self._threads) + 1}"
            # Daemons: a task that never returns must not keep the process from ending.
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        try:
            while (item := self._jobs.get()) is not None:
                if isinstance(item, Job):
                    self._perform(item)
                else:
                    self._follow(item)
        finally:
            connections.close_all()

    def _perform(self, job: Job) -> None:
        with self._lock:
            if not self._may_start(job):
                return
        self._refresh_connections()
        try:
            self._run(job)
        finally:
            self._refresh_connections()
            self.done.append(job)
            self._on_done()

    def _follow(self, call: Callable[[], None]) -> None:
        self._refresh_connections()
        try:
            call()
        except Exception as error:  # the jobs it is about are recorded, and the next ones wait
            self._on_error(error)
        finally:
            self._refresh_connections()
            with self._lock:
                self._follow_ups -= 1
            self._on_done()

    def _refresh_connections(self) -> None:
        """What Django does around a request: drop connections that are broken or too old."""
        try:
            with suppress(Error):
                close_old_connections()
            if settings.DEBUG:
                reset_queries()
        except Exception as error:  # a driver's, a pool's: the thread, and the job in its hands, must go on
            self._on_error(error)

"""Calls what the application has registered, in a thread that nothing of the runtime waits for.

A supervisor must beat, settle and stop whatever a receiver, a subscriber or an error callback does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from django.db import connections

from dj_queue.config import BackendConfig
from dj_queue.error_reporting import report

logger = logging.getLogger("dj_queue")

# So much may wait for a receiver that does not return; what comes then is dropped, and that is said.
_MOST_WAITING = 10_000


class Announcer:
    """One call after the other, in the order of `submit()`; there is a thread only while there are any."""

    def __init__(self, config: BackendConfig, name: str) -> None:
        self._config = config
        self._name = name
        self._calls: deque[Callable[[], object]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._dropping = False

    @property
    def busy(self) -> bool:
        return self._thread is not None

    def submit(self, call: Callable[[], object]) -> None:
        """Call it soon. Returns at once and raises nothing."""
        with self._lock:
            if len(self._calls) >= _MOST_WAITING:
                if not self._dropping:
                    logger.error(
                        "dj_queue %s: a receiver does not return, and what follows is not told. Let receivers of"
                        " task_finished, subscribers and on_thread_error return.",
                        self._name,
                    )
                self._dropping = True
                return
            self._dropping = False
            self._calls.append(call)
            if self._thread is not None:
                return
            # A daemon: a receiver that never returns must not keep the process from ending.
            thread = threading.Thread(target=self._run, name=f"{self._name}-announcer", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # there can be no more threads: with the next call, perhaps
                logger.error(
                    "dj_queue %s: receivers hear nothing until a thread can start: %s. Raise the limit of threads"
                    " or memory.",
                    self._name,
                    error,
                )
            else:
                self._thread = thread

    def close(self, *, until: float) -> None:
        """Wait for what was submitted, at most until then on the monotonic clock."""
        thread = self._thread
        if thread is not None:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                logger.error(
                    "dj_queue %s: a receiver or callback did not return in time, and %s more were not called. Let them"
                    " return within shutdown_timeout.",
                    self._name,
                    len(self._calls),
                )

    def _run(self) -> None:
        while True:
            with self._lock:
                # The connections are closed before anybody may take the thread for ended.
                if not self._calls:
                    self._thread = None
                    return
                call = self._calls.popleft()
            try:
                call()
            except BaseException as error:  # also SystemExit and CancelledError
                report(self._config, error, "supervisor.run")
            if not self._calls:
                self._close_connections()

    def _close_connections(self) -> None:
        try:
            connections.close_all()
        except Exception as error:
            report(self._config, error, "supervisor.run")

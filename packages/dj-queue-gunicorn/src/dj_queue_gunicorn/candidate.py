"""A worker's part in hosting the server's one supervisor."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any

from django.db import Error, connections

from dj_queue.exceptions import DjQueueError
from dj_queue_gunicorn.seat import Seat

if TYPE_CHECKING:  # models: they may be imported only once Django is set up
    from dj_queue.runtime.embedded import Embedded
    from dj_queue.runtime.supervisor import AsyncSupervisor

logger = logging.getLogger("dj_queue")

# Seconds between two looks at the seat, and at those who died.
_LOOK = 0.25
# Seconds that the others leave to the first worker, in which it must only have come into being.
_FIRST = 5.0
# Seconds to wait for a lock, when settling what the dead have left.
_LONGEST_LOCK = 0.5


class Candidate:
    """Waits in a daemon thread for the seat, and hosts the supervisor for as long as the worker serves."""

    def __init__(self, worker: Any, seat: Seat, backend_alias: str = "default") -> None:
        self._worker = worker
        self._seat = seat
        self._backend_alias = backend_alias
        self._asked = threading.Event()
        self._failures = 0
        # A daemon: a worker that is aborted must not wait for it.
        self._thread = threading.Thread(target=self._run, name="dj-queue-candidate", daemon=True)

    def start(self) -> None:
        """Take part from now on. Raises `ImproperlyConfigured`: a worker that cannot host is to fail its boot.

        Where threads are none it takes no part, and says so: the site is served all the same.
        """
        from dj_queue.runtime import host

        reason = host.green()
        if reason is not None:
            logger.error("%s", reason)
            return
        from dj_queue.runtime.embedded import embedded_config

        self._config = embedded_config(self._backend_alias)
        self._thread.start()

    def stop(self) -> None:
        """Bring what the supervisor runs to an end; return when it has stopped."""
        self._asked.set()
        if self._thread.is_alive():
            self._thread.join()

    # ---- steps, all in the thread ----

    @property
    def _over(self) -> bool:
        # Gunicorn's own workers say so at once when they are to end; others only by `worker_exit`.
        return self._asked.is_set() or not self._worker.alive

    def _run(self) -> None:
        since = time.monotonic()
        while not self._over:
            pause = _LOOK
            turn = self._worker.age == 1 or self._seat.used or time.monotonic() - since > _FIRST
            if turn and self._seat.take():
                try:
                    self._host()
                except Exception as error:
                    pause = self._failed(error)
                self._seat.leave()
            self._asked.wait(pause)

    def _host(self) -> None:
        from dj_queue.runtime.embedded import Embedded

        embedded = Embedded(self._backend_alias)
        embedded.start()
        entered: list[int] = []
        supervisor = None
        try:
            supervisor = self._started(embedded)
            self._worker._dj_queue_supervisor = supervisor
            while not self._over and supervisor is not None and not embedded.ended.done():
                self._failures = 0
                if supervisor.process_id is not None and supervisor.process_id not in entered:
                    self._seat.enter(supervisor.process_id)
                    entered.append(supervisor.process_id)
                self._settle_dead()
                self._asked.wait(_LOOK)
        finally:
            embedded.request_stop()
            # The next candidate may start now: we claim nothing more, and bring what runs to an end.
            self._seat.leave()
            wait([embedded.ended])
            self._worker._dj_queue_supervisor = None
            for supervisor_id in entered:
                if supervisor is not None and supervisor.unfinished:
                    self._seat.bequeath(supervisor_id)
                else:
                    self._seat.strike(supervisor_id)
        embedded.ended.result()

    def _started(self, embedded: Embedded) -> AsyncSupervisor | None:
        while not self._over:
            if wait([embedded.started], _LOOK).done:
                return embedded.started.result()
        return None

    def _settle_dead(self) -> None:
        """Settle at once what those have left who hosted before and are gone, and not when their heartbeats expire."""
        from dj_queue.operations import recovery, transactions

        try:
            for supervisor_id, in_order in self._seat.dead().items():
                if not in_order:
                    logger.warning("dj_queue: the worker that hosted the supervisor was killed, settling its jobs")
                # Whatever others have locked: this worker may be told to end meanwhile.
                with transactions.bounded(self._config.database_alias, _LONGEST_LOCK):
                    recovery.supervisor_ended(self._config, supervisor_id, give_back=in_order)
                self._seat.strike(supervisor_id)
        except Error as error:
            logger.warning("dj_queue: the database is away, trying again: %s", error)
        finally:
            connections[self._config.database_alias].close()

    def _failed(self, error: Exception) -> float:
        """Say why there is no supervisor; return when to try again, here or elsewhere."""
        from dj_queue.runtime.part import backoff

        expected = isinstance(error, (DjQueueError, Error))
        logger.error("dj_queue: the supervisor failed: %s", error, exc_info=None if expected else error)
        self._failures += 1
        return backoff(self._failures)

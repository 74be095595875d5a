"""Beats in a thread and on a connection of its own, so that no task and no statement can hold it up.

A second thread looks after the lease: a beat may itself wait for a server that never answers.
Where no new connection can be opened, the runner's loop is asked to beat on the one that it has.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from django.db import connections

from dj_queue.config import BackendConfig
from dj_queue.error_reporting import report
from dj_queue.operations import processes
from dj_queue.runtime import connect
from dj_queue.runtime import lease as leases
from dj_queue.runtime.lease import Lease

logger = logging.getLogger("dj_queue")

# Beats that fail are tried again this number of times within one interval.
_RETRIES = 10
# Seconds for a beat to arrive before the loop is asked for one.
_PATIENCE = 10.0


class Heartbeat:
    """Renews a lease for as long as the process row is there, and calls `on_lapse` once it cannot."""

    def __init__(
        self,
        config: BackendConfig,
        name: str,
        process_id: int,
        lease: Lease,
        on_lapse: Callable[[], None],
        ask: Callable[[], None] = lambda: None,
    ):
        """`ask` is to make the loop call `stand_in()` soon, should it be able to."""
        self._config = config
        self._name = name
        self._process_id = process_id
        self._lease = lease
        self._on_lapse = on_lapse
        self._ask = ask
        self._asked = False
        self._began: float | None = None  # a beat that is under way
        self._over = threading.Event()
        self._due = threading.Event()
        self._failing = False
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=target, name=f"{name}-{purpose}", daemon=True)
            for target, purpose in ((self._run, "heartbeat"), (self._guard, "lease"))
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *exc: object) -> None:
        self._end()

    def stand_in(self) -> None:
        """Beat on the calling thread's connection, if that was asked for. Raises what the database does."""
        if not self._asked or self._over.is_set():
            return
        self._asked = False
        sent_at = leases.now()
        if processes.heartbeat(self._config, self._process_id):
            self._lease.renew(sent_at)
        else:
            self._lapse()

    def _run(self) -> None:
        interval = self._config.process_heartbeat_interval
        wait = interval
        while True:
            self._due.wait(wait)
            self._due.clear()
            if self._over.is_set():
                return
            if self._beat():
                wait = interval
            else:
                wait = interval / _RETRIES
                self._ask_loop()

    def _ask_loop(self) -> None:
        self._asked = True
        self._ask()

    def _beat(self) -> bool:
        sent_at = self._began = leases.now()
        try:
            connect.to_database(self._config)
            if processes.heartbeat(self._config, self._process_id):
                self._lease.renew(sent_at)
                self._failing = self._asked = False
                return True
            self._lapse()  # pruned: the jobs are no longer ours
        except Exception as error:  # whatever it is: the next beat may get through
            if not self._failing:
                report(self._config, error, f"{self._name}.heartbeat")
            self._failing = True
        finally:
            # A beat a minute needs no connection in between.
            with suppress(Exception):
                connections[self._config.database_alias].close()
            self._began = None
        return False

    def _guard(self) -> None:
        # In steps: the lease also runs while the machine sleeps, and a wait does not.
        while not self._over.wait(min(self._lease.remaining, self._config.process_heartbeat_interval)):
            began, patience = self._began, min(_PATIENCE, self._config.process_heartbeat_interval)
            if began is not None and leases.now() - began >= patience:
                self._ask_loop()
            if self._lease.valid:
                continue
            self._due.set()  # perhaps this process only slept
            if not self._over.wait(self._lease.grace) and not self._lease.valid:
                self._lapse()

    def _lapse(self) -> None:
        self._lease.end()
        if self._end():
            self._on_lapse()

    def _end(self) -> bool:
        """Return whether it was not over before."""
        with self._lock:
            first = not self._over.is_set()
            self._over.set()
        self._due.set()
        return first

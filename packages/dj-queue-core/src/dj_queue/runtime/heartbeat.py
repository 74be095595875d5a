"""Beats in a thread and on a connection of its own, so that no task and no statement can hold it up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from django.db import Error, connections

from dj_queue.config import BackendConfig
from dj_queue.operations import processes, transactions
from dj_queue.runtime import lease as leases
from dj_queue.runtime.lease import Lease
from dj_queue.thread_errors import report

logger = logging.getLogger("dj_queue")

# Beats that fail are tried again so many times within one interval.
_RETRIES = 10


class Heartbeat:
    """Renews a lease for as long as the process row is there, and calls `on_lapse` once it cannot."""

    def __init__(self, config: BackendConfig, name: str, process_id: int, lease: Lease, on_lapse: Callable[[], None]):
        self._config = config
        self._name = name
        self._process_id = process_id
        self._lease = lease
        self._on_lapse = on_lapse
        self._over = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name=f"{name}-heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._over.set()

    def _run(self) -> None:
        transactions.dedicate(self._config.database_alias)
        if self._config.silence_polling:
            transactions.silence(self._config.database_alias)
        interval = self._config.process_heartbeat_interval
        wait = interval
        while not self._over.wait(wait):
            beaten = self._beat()
            if self._over.is_set():
                return
            if not self._lease.valid:
                self._on_lapse()
                return
            wait = interval if beaten else interval / _RETRIES

    def _beat(self) -> bool:
        sent_at = leases.now()
        try:
            if processes.heartbeat(self._config, self._process_id):
                self._lease.renew(sent_at)
                self._failing = False
                return True
            self._lease.end()  # pruned: the jobs are no longer ours
        except Error as error:
            if not self._failing:
                report(self._config, error, f"{self._name}.heartbeat")
            self._failing = True
        finally:
            # A beat a minute needs no connection in between.
            connections[self._config.database_alias].close()
        return False

"""The life that every runner shares: register, heartbeat, step and sleep until stopped, deregister."""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from django.db import Error, InterfaceError, OperationalError, connections

from dj_queue.config import BackendConfig
from dj_queue.dialects import Dialect, dialect_for
from dj_queue.models import Process
from dj_queue.operations import processes
from dj_queue.runtime.wakeup import Wakeup

logger = logging.getLogger("dj_queue")

# Seconds between attempts while the database is away: doubled each time, with jitter.
_FIRST_RETRY = 0.1
_LONGEST_RETRY = 10.0

DATABASE_AWAY = (OperationalError, InterfaceError)


class Runner(ABC):
    """A worker, a dispatcher or a scheduler: one loop in one thread that owns one queue connection."""

    kind: ClassVar[Process.Kind]

    def __init__(self, config: BackendConfig, name: str, supervisor_id: int | None = None) -> None:
        self.config = config
        self.name = name
        self.supervisor_id = supervisor_id
        self.pid = os.getpid()
        self.hostname = socket.gethostname()
        self.process_id: int | None = None
        self.parent: int | None = None  # the supervisor's pid, where this runner is its child
        self.wakeup = Wakeup()
        self._stopping = threading.Event()
        self._failures = 0

    @property
    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """What the process row says of this runner."""

    @abstractmethod
    def step(self) -> float:
        """Do what there is to do now; return how many seconds may pass before the next step."""

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def request_stop(self) -> None:
        """Ask the loop to end. Returns at once; safe in a signal handler and in any thread."""
        self._stopping.set()
        self.wakeup.set()

    def run(self) -> None:
        """Run until stopped. The calling thread owns the queue connection until this returns."""
        self.pid = os.getpid()
        try:
            self._attempt_until_stopped(self._register)
            with _Heartbeat(self):
                while not self.stopping and not self._orphaned():
                    self.sleep(self._attempt(self.step))
                self.drain()
            if self.process_id is not None:
                self._attempt(lambda: processes.deregister(self.config, self.process_id or 0) or 0.0)
        finally:
            connections[self.config.database_alias].close()
            self.wakeup.close()

    def drain(self) -> None:  # noqa: B027
        """Bring what is under way to an end. Called once, after the last step."""

    def sleep(self, seconds: float) -> None:
        self.wakeup.wait(seconds)

    @property
    def dialect(self) -> Dialect:
        return dialect_for(self.config.database_alias)

    def connect(self) -> None:
        """Make sure that this thread's queue connection is open and prepared."""
        connection = connections[self.config.database_alias]
        if connection.connection is None:
            connection.ensure_connection()
            self.dialect.prepare_session(connection)
            self.connected()

    def connected(self) -> None:  # noqa: B027
        """Called whenever the queue connection was opened anew."""

    def _orphaned(self) -> bool:
        return self.parent is not None and os.getppid() != self.parent

    def _register(self) -> float:
        self.connect()
        self.process_id = processes.register(
            self.config,
            kind=self.kind,
            name=self.name,
            pid=self.pid,
            hostname=self.hostname,
            metadata=self.metadata,
            supervisor_id=self.supervisor_id,
        )
        return 0.0

    def _attempt_until_stopped(self, call: Any) -> None:
        while not self.stopping:
            wait = self._attempt(call)
            if not self._failures:
                return
            self.sleep(wait)

    def _attempt(self, call: Any) -> float:
        """Do one piece of work on the database; if it is away, say so once and return when to try again."""
        try:
            self.connect()
            wait = float(call())
        except DATABASE_AWAY as error:
            return self._away(error)
        if self._failures:
            logger.warning("dj_queue %s: the database is back", self.name)
            self._failures = 0
        return wait

    def _away(self, error: Error) -> float:
        if not self._failures:
            logger.warning("dj_queue %s: the database is away, trying again: %s", self.name, error)
        self._failures += 1
        connections[self.config.database_alias].close()
        longest = min(_LONGEST_RETRY, _FIRST_RETRY * 2 ** min(self._failures - 1, 10))
        return random.uniform(longest / 2, longest)


class _Heartbeat:
    """Beats in a thread of its own, so that no task and no statement can hold it up."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"{runner.name}-heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._over.set()

    def _beat(self) -> None:
        config = self._runner.config
        while not self._over.wait(config.process_heartbeat_interval):
            try:
                if self._runner.process_id and not processes.heartbeat(config, self._runner.process_id):
                    logger.warning("dj_queue %s: its process row is gone, stopping", self._runner.name)
                    self._runner.request_stop()
            except Error as error:
                logger.warning("dj_queue %s: heartbeat failed: %s", self._runner.name, error)
            finally:
                # A beat a minute does not need a connection of its own in between.
                connections[config.database_alias].close()

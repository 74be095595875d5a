"""The life that every runner shares: register, heartbeat, step and sleep until stopped, deregister."""

from __future__ import annotations

import logging
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

from django.db import Error, InterfaceError, OperationalError, connections

from dj_queue import hooks
from dj_queue.config import BackendConfig
from dj_queue.dialects import Dialect, dialect_for
from dj_queue.models import Process
from dj_queue.operations import processes
from dj_queue.runtime import connect
from dj_queue.runtime import lease as leases
from dj_queue.runtime.farewell import Farewell
from dj_queue.runtime.heartbeat import Heartbeat
from dj_queue.runtime.lease import Lease
from dj_queue.runtime.part import Part, backoff
from dj_queue.runtime.shared_state import SharedState
from dj_queue.runtime.wakeup import Wakeup

logger = logging.getLogger("dj_queue")

DATABASE_AWAY = (OperationalError, InterfaceError)

# Seconds within which a child notices that its supervisor is gone, however rarely it looks for work.
_LOOK_AFTER_PARENT = 2.0


class End(IntEnum):
    """How a runner ended, as it says itself on its shared; also the exit code of one that is a process.

    Nothing follows from an exit code alone: a task, or a library that it calls, may end the process with any.
    """

    DRAINED = 0
    CRASHED = 1
    UNFINISHED = 3  # its time was up: what it ran is to be given back
    HURRIED = 4  # told to stop waiting: what it ran counts as lost
    LAPSED = 5  # out of reach of the database for too long, or pruned


@dataclass(frozen=True, slots=True, eq=False)
class SupervisorSeen:
    """A supervisor as its runners know it, for hooks. It equals the id of its process row."""

    id: int
    name: str
    pid: int
    hostname: str
    backend_alias: str
    kind: ClassVar[Process.Kind] = Process.Kind.SUPERVISOR

    @property
    def pk(self) -> int:
        return self.id

    process_id = pk

    def __eq__(self, other: object) -> bool:
        return self.id == (other if isinstance(other, int) else getattr(other, "pk", None))

    def __hash__(self) -> int:
        return hash(self.id)

    def __int__(self) -> int:
        return self.id

    __index__ = __int__

    def __str__(self) -> str:
        return self.name


class Runner(ABC):
    """A worker, a dispatcher or a scheduler: one loop in one thread that owns one queue connection."""

    kind: ClassVar[Process.Kind]

    def __init__(
        self, config: BackendConfig, name: str, supervisor_id: int | None = None, shared: SharedState | None = None
    ) -> None:
        self.config = config
        self.name = name
        self.backend_alias = config.alias
        self.supervisor_id = supervisor_id
        self.shared = shared or SharedState()
        self.pid = os.getpid()
        self.hostname = socket.gethostname()
        self.process_id: int | None = None
        self._unanswered = False  # whether a registration was tried of which we do not know what became
        self.parent: int | None = None  # the supervisor's pid, where this runner is a child process
        self.end = End.DRAINED
        self.lease = self._new_lease()
        self.wakeup = Wakeup()
        # Plain flags: a signal handler must not wait for a lock that the interrupted code may hold.
        self._stopping = False
        self._hurried = False
        self._failures = 0
        self._heart: Heartbeat | None = None
        self._context = f"{self.kind.lower()}.run"
        self._whole, self._ending = Part(config, self._context), Part(config, self._context)

    @property
    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """What the process row says of this runner."""

    @abstractmethod
    def step(self) -> float:
        """Do what there is to do now; return how many seconds may pass before the next step."""

    @property
    def supervisor(self) -> SupervisorSeen | None:
        """The supervisor of this runner; None for one that runs without."""
        if self.supervisor_id is None:
            return None
        pid = self.pid if self.parent is None else self.parent
        return SupervisorSeen(self.supervisor_id, f"supervisor-{pid}", pid, self.hostname, self.backend_alias)

    @property
    def stopping(self) -> bool:
        return self._stopping

    @property
    def hurried(self) -> bool:
        return self._hurried

    def request_stop(self, *, hurry: bool = False) -> None:
        """Ask the loop to end, with `hurry` to wait for nothing. Returns at once; safe in a signal handler."""
        self._hurried = self._hurried or hurry
        self._stopping = True
        self.wakeup.set()

    def run(self) -> End:
        """Run until stopped. The calling thread owns the queue connection until this returns."""
        self.pid = os.getpid()
        self.shared.take()
        kind = self.kind.lower()
        try:
            self._register_until_stopped()
            if self.process_id is None:
                if self._unanswered:
                    self.attempt(self._deregister_unanswered)
                return self.end
            self._heart = Heartbeat(self.config, kind, self.process_id, self.lease, self.lapse, self.wakeup.set)
            with self._heart:
                try:
                    # A model that takes minutes to load is no reason to be pruned.
                    hooks.run_hooks(f"{kind}.start", self, self.config)
                    while not self.stopping and not self._orphaned():
                        self._rest(self.attempt(self.step))
                finally:
                    # Also after a crash: what was claimed and not started is given back.
                    self._stopping = True
                    until = time.monotonic() + self.config.shutdown_timeout
                    farewell = Farewell(f"{kind}.stop", self, self.config)
                    farewell.wait(lambda: self.hurried)
                    self.drain()
                    farewell.close(until, lambda: self.hurried)
            self._expect()
            if self.end is End.DRAINED:
                self.attempt(self._deregister)
                if self._failures:  # perhaps only the connection was stale, after a long sleep
                    self.attempt(self._deregister)
            hooks.run_hooks(f"{kind}.exit", self, self.config)
            return self.end
        finally:
            with suppress(Error):
                connections[self.config.database_alias].close()
            self.wakeup.close()

    def drain(self) -> None:  # noqa: B027
        """Bring what is under way to an end, or say in `end` that it has none. Called once."""

    def catch_up(self) -> None:  # noqa: B027
        """Record what came to an end after `drain()`. Called where `run()` has returned, by any thread."""

    def lapse(self) -> None:
        """Let go: the lease is over, and others will settle what this runner has claimed."""
        logger.error(
            "dj_queue %s lost touch with the database, or was pruned: it lets go of its jobs. Look for what kept"
            " it from a heartbeat for %g seconds (process_alive_threshold): the database, the host, or a task that"
            " lets no other thread run.",
            self.name,
            self.config.process_alive_threshold,
        )
        if self.parent is not None:
            # What its threads run can be ended only with the process.
            self.shared.end = End.LAPSED
            os._exit(End.LAPSED)
        self.end = End.LAPSED
        self.request_stop(hurry=True)

    def sleep(self, seconds: float) -> None:
        self.wakeup.wait(seconds)

    @property
    def dialect(self) -> Dialect:
        return dialect_for(self.config.database_alias)

    def attempt(self, call: Callable[[], float]) -> float:
        """Do one piece of work on the database; return when to go on.

        If the database is away, that is said once; what it refuses is told of as an error of the runner's.
        """
        try:
            self._connect()
            if self._heart is not None:
                self._heart.stand_in()
            # What is done at the end has no later time.
            whole = self._ending if self.stopping else self._whole
            done = whole(call, None, at_once=self.stopping)
            wait = whole.wait if done is None else done
        except Error as error:
            return self.away(error)
        if self._failures:
            logger.warning("dj_queue %s: the database is back", self.name)
            self._failures = 0
        return wait

    def away(self, error: Error) -> float:
        if not self._failures:
            logger.warning("dj_queue %s: the database is away, trying again: %s", self.name, error)
        self._failures += 1
        with suppress(Error):
            connections[self.config.database_alias].close()
        return backoff(self._failures)

    def connected(self) -> None:  # noqa: B027
        """Called whenever the queue connection was opened anew."""

    def _connect(self) -> None:
        connection = connect.to_database(self.config)
        if connection is not None:
            self.dialect.prepare_session(connection)
            self.connected()

    def _register_until_stopped(self) -> None:
        while not self.stopping and not self._orphaned() and self.process_id is None:
            self._expect()
            wait = self.attempt(self._register)
            if self.process_id is None:
                self._expect(wait)
                self.sleep(wait)

    def _register(self) -> float:
        if self._unanswered:
            self._deregister_unanswered()
        sent_at = leases.now()
        self._unanswered = True
        self.process_id = processes.register(
            self.config,
            kind=self.kind,
            name=self.name,
            pid=self.pid,
            hostname=self.hostname,
            metadata=self.metadata,
            supervisor_id=self.supervisor_id,
        )
        self._unanswered = False
        self.shared.process_id = self.process_id
        self.lease = self._new_lease()
        self.lease.renew(sent_at)
        return 0.0

    def _new_lease(self) -> Lease:
        def hold(until: float) -> None:
            self.shared.until = until

        return Lease(self.config.process_alive_threshold, hold)

    def _expect(self, seconds: float = 0.0) -> None:
        """Say when the supervisor may expect to hear again, where there is no lease that does."""
        self.shared.until = leases.now() + seconds + leases.patience(self.config.process_alive_threshold)

    def _deregister(self) -> float:
        assert self.process_id is not None
        processes.deregister(self.config, self.process_id)
        self.shared.process_id = None
        return 0.0

    def _deregister_unanswered(self) -> float:
        """The row of a registration whose answer never came stands in the way of the next one, and of nobody's use."""
        processes.deregister_unanswered(self.config, name=self.name, supervisor_id=self.supervisor_id)
        return 0.0

    def _rest(self, seconds: float) -> None:
        """Sleep, and look now and then whether the supervisor is still there."""
        end = time.monotonic() + seconds
        while True:
            look = min(end, time.monotonic() + _LOOK_AFTER_PARENT)
            self.sleep(look - time.monotonic())
            # Before its time it was woken.
            if look == end or time.monotonic() < look or self._orphaned():
                return

    def _orphaned(self) -> bool:
        return self.parent is not None and os.getppid() != self.parent

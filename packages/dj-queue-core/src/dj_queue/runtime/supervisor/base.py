"""Starts the runners of one backend alias, watches them, settles what they leave, and stops them.

Whatever they are: how a runner is started, found to have ended and stopped is `forked`'s and `threaded`'s.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, NamedTuple, NoReturn, Self

from django.db import Error, connections

from dj_queue import hooks
from dj_queue.config import BackendConfig, Overrides, load_config
from dj_queue.error_reporting import report
from dj_queue.models import Process
from dj_queue.operations import draining, processes, recovery, transactions
from dj_queue.runtime import connect, host, signals
from dj_queue.runtime import lease as leases
from dj_queue.runtime.announcer import Announcer
from dj_queue.runtime.errand import Errand
from dj_queue.runtime.farewell import Farewell
from dj_queue.runtime.part import backoff
from dj_queue.runtime.pidfile import pidfile
from dj_queue.runtime.runner import End, Runner
from dj_queue.runtime.supervisor.child import title
from dj_queue.runtime.supervisor.slots import Slot, slots
from dj_queue.runtime.wakeup import Wakeup

logger = logging.getLogger("dj_queue")

# Beyond `shutdown_timeout`, for a runner to give back and deregister before it is ended.
GRACE = 2.0

# Seconds between two looks at the runners, at least, after which this process was stopped itself.
_GAP = 1.0
# Seconds beyond its lease, at least, in which a runner that runs at all has ended by itself.
_SLACK = 1.0

# Seconds between two looks whether anything is left to do.
_DRAIN_LOOK = 0.25

# How many ended runners are remembered, for claims of theirs that commit late.
_REMEMBERED = 1000

# Seconds for which a database that does not answer is waited for once the runtime is to stop, at least.
_LAST_WORDS = 1.0

# Seconds for which a supervisor waits for a lock; and, in such steps, at its start.
LONGEST_LOCK = 0.5
LONGEST_START = 30.0

# Ends at which work was still under way, in an orderly stop.
CUT_SHORT = (End.UNFINISHED, End.HURRIED)


class Ended(NamedTuple):
    """A runner that has ended, and how its claims are to be settled."""

    slot: Slot
    end: End
    runner: Runner | None = None  # whose loop has ended while its threads may run on


class StopAskedError(BaseException):
    """What a hook of a start sees where the supervisor is told to stop meanwhile."""


class Supervisor(ABC):
    kind = Process.Kind.SUPERVISOR
    mode: str
    polling_interval = 0.1

    def __init__(self, config: BackendConfig, *, standalone: bool = True) -> None:
        host.require()
        self.config = config
        self.backend_alias = config.alias
        self.standalone = standalone
        self.supervisor = None
        self.hostname = socket.gethostname()
        self.process_id: int | None = None
        self.say: Callable[[str], object] = lambda line: None  # also says that it has started, and stopped
        self._started = False
        self.until_drained = False  # `run()` then ends by itself once there is nothing to do
        self.unfinished = False  # whether a stop left work to give back
        self._slots = slots(config)
        self._waiting: list[Slot] = []  # for their start
        self._unsettled: list[Ended] = []
        self._wakeup = Wakeup()
        self._announcer = Announcer(config, self.name)
        self._errand = Errand(f"{self.name}-database")
        self._sightings = processes.Sightings()
        self._gone: dict[int, int] = {}  # by process row: the last claim that a runner of ours, now ended, has started
        self._left_at = leases.now()  # the last look at the runners, on the clock of leases
        self._fair_at = 0.0  # when they have had their chance, after a time in which neither they nor this ran
        self._unheld: set[int] = set()  # claims without a process, at the last beat
        # Plain values: a signal handler must not wait for a lock that the interrupted code may hold.
        self._stopping = False
        self._asked_at = math.inf  # to stop; on the monotonic clock, as the next one
        self._stop_by = math.inf
        self._hurried = False
        self._in_hooks = False
        self._failures = 0
        self._next_beat = 0.0
        self._next_look = 0.0  # whether all is drained
        self._next_settlement = 0.0
        self._settle_by = math.inf

    @classmethod
    def from_backend_config(
        cls,
        *,
        backend_alias: str = "default",
        tasks_settings: Mapping[str, Any] | None = None,
        cli_overrides: Overrides | Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        standalone: bool = True,
    ) -> Self:
        """Read the configuration of an alias. Raises `ImproperlyConfigured` with all its mistakes.

        `cli_overrides` beats every other source: values of options by their names, and the command's flags
        `config`, `only_work`, `only_dispatch` and `skip_recurring`.
        """
        config = load_config(backend_alias, tasks=tasks_settings, overrides=cli_overrides, env=env)
        return cls(config, standalone=standalone)

    @property
    def pid(self) -> int:
        return os.getpid()

    @property
    def name(self) -> str:
        return f"supervisor-{self.pid}"

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "standalone": self.standalone,
            "worker_count": sum(worker.processes for worker in self.config.workers),
            "dispatcher_count": len(self.config.dispatchers),
            "has_scheduler": self.config.scheduler_needed,
        }

    # ---- the four verbs ----

    def start(self) -> None:
        """Register, settle what others left, and start every runner."""
        if self.standalone:
            title(self.name)
        self._register_patiently()
        if self.process_id is None:
            return  # told to stop meanwhile
        self._on_database(self._settle_missing)
        self._next_beat = time.monotonic()
        self._run_start_hooks()
        if self._stopping:
            return
        self._waiting = list(self._slots)
        self._start_waiting()
        self._left_at = leases.now()
        self._started = True
        runners = ", ".join(slot.name for slot in self._slots)
        self._say(
            f"dj_queue {self.name} has started {runners} of backend {self.config.alias!r} on database"
            f" {self.config.database_alias!r}, mode {self.mode}."
        )

    def poll_once(self) -> None:
        """Look after the runners and heartbeat; to be called every `polling_interval` seconds."""
        self._notice_gap()
        self._unsettled += self._ended()
        self._end_hung()
        self._settle()
        self._start_waiting()
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + self.config.process_heartbeat_interval
            self._on_database(self._beat)
        self._left_at = leases.now()

    def stop(self) -> None:
        """Stop every runner, wait for what they bring to an end, settle the rest, deregister.

        What others have locked for too long stays as it is: another supervisor settles it, once the heartbeat
        of the runner that left it has expired.
        """
        self._stopping = True
        self._asked_at = min(self._asked_at, time.monotonic())
        farewell = Farewell("supervisor.stop", self, self.config)
        farewell.wait(lambda: self._hurried)
        self._stop_runners()
        self._settle_last()
        if self.process_id is not None:
            self._on_database(self._deregister)
        farewell.close(self._stop_by, lambda: self._hurried)
        self._announcer.close(until=self._stop_by)
        farewell = Farewell("supervisor.exit", self, self.config)
        farewell.wait(lambda: self._hurried)
        farewell.close(self._stop_by, lambda: self._hurried)
        self._wakeup.close()
        if self._started:
            ended = "not all that ran could be brought to an end" if self.unfinished else "nothing is left running"
            self._say(f"dj_queue {self.name} of backend {self.config.alias!r} has stopped: {ended}.")

    def run(self, *, heed_interrupts: bool = True) -> End:
        """Run until SIGTERM or SIGINT, or `until_drained`; return whether all work was ended. `leave()` comes next.

        Without `heed_interrupts`, SIGINT is ignored: somebody else hears it, too, and passes it on.
        Raises `RuntimeError` if the pidfile names a living process.
        """
        with pidfile(self.config.supervisor_pidfile if self.standalone else None):
            interrupted = self._asked if heed_interrupts else signals.ignore
            handlers: dict[int, signals.Handler] = {
                signal.SIGTERM: self._asked,
                signal.SIGINT: interrupted,
                signal.SIGQUIT: self._quit,
            }
            if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
                # Inherited from the process that started this; and nobody can wait for children that are ignored.
                handlers[signal.SIGCHLD] = signal.SIG_DFL
            try:
                signals.install(handlers)
                self.start()
                while not self._stopping:
                    self.poll_once()
                    if self.until_drained and self._is_drained():
                        break
                    self._wakeup.wait(self.polling_interval)
            finally:
                self.stop()
                signals.restore()
        return End.UNFINISHED if self.unfinished else End.DRAINED

    def leave(self, end: End) -> NoReturn:
        """End the process, as `run()` ended."""
        raise SystemExit(int(end))

    def _is_drained(self) -> bool:
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + _DRAIN_LOOK
        found: list[bool] = []
        self._on_database(lambda: found.append(draining.is_drained(self.config)))
        return found == [True]

    def _say(self, line: str) -> None:
        logger.info(line)
        # To streams that a task, in this process, or their reader, may have closed.
        with suppress(Exception):
            self.say(line)

    def _run_start_hooks(self) -> None:
        """In this thread, as they may install something there; a signal to stop ends the one that runs."""
        self._in_hooks = True
        try:
            hooks.run_hooks("supervisor.start", self, self.config, until=lambda: self._stopping)
        except StopAskedError:  # between two of them
            pass
        finally:
            self._in_hooks = False

    # ---- what fork and async do each in their way ----

    @abstractmethod
    def _start_runner(self, slot: Slot) -> None:
        """Fill the slot's place."""

    @abstractmethod
    def _ended(self) -> list[Ended]:
        """Take the runners that have ended since the last call."""

    @abstractmethod
    def _end_hung(self) -> None:
        """See to it that runners that answer nothing end, and are replaced."""

    @abstractmethod
    def _stop_runners(self) -> None:
        """Ask every runner to stop; return when all have ended, and leave them in `_unsettled`."""

    @abstractmethod
    def _hurry(self) -> None:
        """Ask every runner to wait no longer."""

    @abstractmethod
    def _quit(self, number: int, frame: FrameType | None) -> None:
        """End everything at once."""

    # ---- steps ----

    def _register(self) -> None:
        self.process_id = processes.register(
            self.config,
            kind=self.kind,
            name=self.name,
            pid=self.pid,
            hostname=self.hostname,
            metadata=self.metadata,
        )

    def _notice_gap(self) -> None:
        """Let runners come to themselves where they were stopped together with this process, as in a machine's sleep.

        They may be hours late then, and are well: the next heartbeat, or the last one that a lease allows, tells.
        """
        now = leases.now()
        grace = self.config.process_alive_threshold * leases.GRACE
        if now - self._left_at > max(_GAP, grace):
            self._fair_at = now + self.config.process_heartbeat_interval + 2 * grace

    def _hangs(self, slot: Slot) -> bool:
        """Whether the runner has not ended although it must have, by its own last word: its lease is over.

        It is seen without the database: while that is away, a runner that is well ends by itself.
        """
        slack = max(_SLACK, self.config.process_alive_threshold * leases.GRACE / 2)
        return leases.now() > max(slot.shared.until + slack, self._fair_at)

    def _register_patiently(self) -> None:
        """Wait for a lock on the table, or on all of SQLite, in steps that let a signal through."""
        deadline = time.monotonic() + LONGEST_START
        while not self._stopping:
            try:
                self._aside(self._register_once)
            except Error as error:
                if not transactions.contended(self.config.database_alias, error) or time.monotonic() > deadline:
                    raise
            else:
                return

    def _register_once(self) -> None:
        try:
            if self.standalone:
                connect.to_database(self.config)
            with transactions.bounded(self.config.database_alias, LONGEST_LOCK):
                self._register()
        finally:
            if self.standalone:
                connections[self.config.database_alias].close()

    def _settle_missing(self) -> None:
        recovery.settle_missing(self.config, elsewhere=self._announcer.submit)

    def _start_waiting(self) -> None:
        now = time.monotonic()
        due = [slot for slot in self._waiting if slot.due_at <= now]
        self._waiting = [slot for slot in self._waiting if slot.due_at > now]
        for slot in due:
            slot.begin(patience=leases.patience(self.config.process_alive_threshold))
            try:
                self._start_runner(slot)
            except (OSError, RuntimeError) as error:  # no process, no thread, no memory is available just now
                self._report(error)
                slot.ended(failed=True)
                self._waiting.append(slot)
            else:
                slot.started()

    def _settle(self) -> None:
        """Settle the claims of runners that have ended, and let their places be filled again."""
        if not self._unsettled or time.monotonic() < self._next_settlement:
            return
        for ended in list(self._unsettled):
            if not self._on_database(partial(self._settle_one, ended)):
                self._next_settlement = time.monotonic() + backoff(self._failures)
                # What the database takes at once is settled, however late it is: it is waiting that has its time.
                if time.monotonic() > self._settle_by:
                    return
                # Where the database refuses the claims of one runner, the others need not wait for it.
                continue
            self._unsettled.remove(ended)
            if not self._stopping:
                ended.slot.ended(failed=ended.end is not End.DRAINED)
                self._waiting.append(ended.slot)

    def _settle_last(self) -> None:
        """Settle what can be settled in a moment, and say what could not."""
        # First what has come to its end by itself: that waits for nothing. The rest is tried once.
        self._unsettled.sort(key=lambda ended: ended.end is not End.DRAINED)
        self._settle_by = time.monotonic() + (0.0 if self._hurried else GRACE)
        self._next_settlement = 0.0
        self._settle()
        for ended in self._unsettled:
            self.unfinished = True
            logger.error(
                "dj_queue %s: what %s had claimed could not be settled in time. Another supervisor does that %g seconds"
                " after the last heartbeat of %s; start one if none runs.",
                self.name,
                ended.slot.name,
                self.config.process_alive_threshold,
                ended.slot.name,
            )
        self._unsettled = []

    def _settle_one(self, ended: Ended) -> None:
        if self._stopping and ended.end in CUT_SHORT:
            self.unfinished = True
        process_id = ended.slot.shared.process_id
        if process_id is None and self.process_id is not None and ended.end is not End.DRAINED:
            process_id = processes.find(self.config, name=ended.slot.name, supervisor_id=self.process_id)
        if process_id is not None:
            self._remember(process_id, ended.slot.shared.started_up_to)
            recovery.process_ended(
                self.config,
                process_id,
                started_up_to=ended.slot.shared.started_up_to,
                give_back=ended.end in (End.DRAINED, End.UNFINISHED),
                crashed_thread=self.mode == "async",
                elsewhere=self._announcer.submit,
            )

    def _remember(self, process_id: int, started_up_to: int) -> None:
        self._gone[process_id] = started_up_to
        while len(self._gone) > _REMEMBERED:
            self._gone.pop(next(iter(self._gone)))

    def _beat(self) -> None:
        if self.process_id is None or not processes.heartbeat(self.config, self.process_id):
            logger.warning(
                "dj_queue %s: its process row was gone, registering again. If nobody has deleted it, another"
                " supervisor has pruned it: look for what kept it from a heartbeat for %g seconds"
                " (process_alive_threshold).",
                self.name,
                self.config.process_alive_threshold,
            )
            self._register()
        # Its own runners are looked after without their rows, and only once they have ended for certain.
        own = (self.process_id, *(slot.shared.process_id for slot in self._slots))
        except_for = [each for each in own if each is not None]
        found = recovery.survey(self.config, except_for=except_for, sightings=self._sightings)
        self._settle_unheld(found.unheld)
        if leases.now() > self._fair_at:  # a host that slept has other supervisors, too
            recovery.prune(self.config, expired=found.expired, elsewhere=self._announcer.submit)

    def _settle_unheld(self, unheld: Mapping[int, int | None]) -> None:
        """Settle claims without a process, which may commit at any time after its end.

        What one of our own runners left is known never to have been started. Anything else is left for a beat to
        the supervisor whose it is, as that one knows.
        """
        due = [claim for claim, process in unheld.items() if process in self._gone or claim in self._unheld]
        if due:
            submit = self._announcer.submit
            recovery.settle_missing(self.config, claims=due, started_up_to=self._gone, elsewhere=submit)
        self._unheld = set(unheld)

    def _deregister(self) -> None:
        if self.process_id is not None:
            processes.deregister(self.config, self.process_id)
            self.process_id = None

    def _aside[T](self, work: Callable[[], T]) -> T | None:
        """Do what may wait for the database, for as long as it takes; None if a stop has no more time for it.

        A server that does not answer, or takes no connection, must not keep this thread from its signals. An embedded
        supervisor's thread has none to hear.
        """
        if not self.standalone:
            return work()
        began = time.monotonic()

        def give_up() -> bool:
            if not self._stopping:
                return False
            last = max(began, self._asked_at) + _LAST_WORDS
            return time.monotonic() > (last if self._hurried or self._stop_by == math.inf else max(last, self._stop_by))

        return self._errand.run(work, give_up=give_up)

    def _on_database(self, call: Callable[[], None]) -> bool:
        """Do something on the database; if it is away, say so once and return False."""
        done = self._aside(partial(self._try_on_database, call))
        if done is None:
            self._failures += 1
            logger.error(
                "dj_queue %s: the database does not answer, and there is no more time to wait for it. What is not"
                " recorded there is settled by another supervisor, once heartbeats have expired.",
                self.name,
            )
        return bool(done)

    def _try_on_database(self, call: Callable[[], None]) -> bool:
        try:
            if self.standalone:
                connect.to_database(self.config)
            # Whatever others have locked, this thread has signals and children to look after.
            with transactions.bounded(self.config.database_alias, LONGEST_LOCK):
                call()
        except Error as error:
            if self._failures == 0 and transactions.contended(self.config.database_alias, error):
                logger.warning(
                    "dj_queue %s: others hold locks on the queue's rows for more than %g s. It goes on and tries again."
                    " Look for transactions that are open for long.",
                    self.name,
                    LONGEST_LOCK,
                )
            elif self._failures == 0:
                self._report(error)
            self._failures += 1
            with suppress(Error):
                connections[self.config.database_alias].close_if_unusable_or_obsolete()
            return False
        finally:
            # Nothing is left open between two beats. An embedded supervisor's thread is not its own.
            if self.standalone:
                connections[self.config.database_alias].close()
        self._failures = 0
        return True

    def _report(self, error: BaseException) -> None:
        """Say it; a callback of the application's is called elsewhere."""
        call = partial(report, self.config, error, "supervisor.run")
        if self.config.on_thread_error is None:
            call()
        else:
            self._announcer.submit(call)

    def _set_stop_by(self) -> None:
        """From now on, runners have their time and no more; hurried ones the grace."""
        patience = 0.0 if self._hurried else self.config.shutdown_timeout
        self._stop_by = time.monotonic() + patience + GRACE

    @property
    def _cut_short(self) -> End:
        """How a runner counts that did not end by itself."""
        return End.HURRIED if self._hurried else End.UNFINISHED

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:
            self._hurried = True
            self._stop_by = min(self._stop_by, time.monotonic() + GRACE)
            self._settle_by = min(self._settle_by, time.monotonic())
            self._hurry()
        self._stopping = True
        self._asked_at = min(self._asked_at, time.monotonic())
        self._wakeup.set()
        if self._in_hooks:
            raise StopAskedError(f"told to stop by {signal.Signals(number).name} before the hook had returned")

"""Starts the runners of one backend alias, watches them, settles what they leave, and stops them.

`ForkSupervisor` runs each in a process of its own, `AsyncSupervisor` each in a thread of this one.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType
from typing import Any, NamedTuple, NoReturn, Self

from django.db import Error, connections

from dj_queue import events, hooks
from dj_queue.config import BackendConfig, Overrides, load_config
from dj_queue.models import Process
from dj_queue.operations import processes, recovery
from dj_queue.runtime import session
from dj_queue.runtime.child import HURRY, close_connections, fork, title
from dj_queue.runtime.pidfile import pidfile
from dj_queue.runtime.plan import Plan, plans
from dj_queue.runtime.process import End, Runner, backoff
from dj_queue.runtime.wakeup import Wakeup
from dj_queue.thread_errors import report

logger = logging.getLogger("dj_queue")

# Beyond `shutdown_timeout`, for a runner to give back and deregister before it is ended.
GRACE = 2.0

_CUT_SHORT = (End.UNFINISHED, End.HURRIED)


class Ended(NamedTuple):
    """A runner that has ended, and how its claims are to be settled."""

    plan: Plan
    end: End
    pid: int | None = None


class Supervisor(ABC):
    kind = Process.Kind.SUPERVISOR
    mode: str
    polling_interval = 0.1

    def __init__(self, config: BackendConfig, *, standalone: bool = True) -> None:
        self.config = config
        self.backend_alias = config.alias
        self.standalone = standalone
        self.supervisor = None
        self.hostname = socket.gethostname()
        self.process_id: int | None = None
        self.unfinished = False  # whether a stop left work to give back
        self._plans = plans(config)
        self._waiting: list[Plan] = []  # for their start
        self._unsettled: list[Ended] = []
        self._wakeup = Wakeup()
        # Plain values: a signal handler must not wait for a lock that the interrupted code may hold.
        self._stopping = False
        self._stop_by = math.inf  # on the monotonic clock
        self._hurried = False
        self._failures = 0
        self._next_beat = 0.0
        self._next_settlement = 0.0

    @classmethod
    def from_backend_config(
        cls,
        *,
        backend_alias: str = "default",
        tasks_settings: Mapping[str, Any] | None = None,
        cli_overrides: Overrides | None = None,
        env: Mapping[str, str] | None = None,
        standalone: bool = True,
    ) -> Self:
        """Read the configuration of an alias. Raises `ImproperlyConfigured` with all its mistakes."""
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
            session.connect(self.config)
        self._register()
        recovery.settle_missing(self.config)
        self._next_beat = time.monotonic()
        hooks.run_hooks("supervisor.start", self, self.config)
        self._waiting = list(self._plans)
        self._start_waiting()

    def poll_once(self) -> None:
        """Look after the runners and heartbeat; to be called every `polling_interval` seconds."""
        self._unsettled += self._ended()
        self._settle()
        self._start_waiting()
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + self.config.process_heartbeat_interval
            self._on_database(self._beat)

    def stop(self) -> None:
        """Stop every runner, wait for what they bring to an end, settle the rest, deregister."""
        self._stopping = True
        hooks.run_hooks("supervisor.stop", self, self.config)
        self._stop_runners()
        self._next_settlement = 0.0
        self._settle()
        self._on_database(self._deregister)
        hooks.run_hooks("supervisor.exit", self, self.config)
        self._wakeup.close()

    def run(self, *, heed_interrupts: bool = True) -> End:
        """Run until SIGTERM or SIGINT; return whether all work was brought to an end. `leave()` comes next.

        Without `heed_interrupts`, SIGINT is ignored: somebody else hears it, too, and passes it on.
        Raises `RuntimeError` if the pidfile names a living process.
        """
        with pidfile(self.config.supervisor_pidfile if self.standalone else None):
            interrupted = self._asked if heed_interrupts else signal.SIG_IGN
            handlers: dict[int, Any] = {
                signal.SIGTERM: self._asked,
                signal.SIGINT: interrupted,
                signal.SIGQUIT: self._quit,
            }
            if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
                # Inherited from whoever started this; and nobody can wait for children that are ignored.
                handlers[signal.SIGCHLD] = signal.SIG_DFL
            before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
            try:
                self.start()
                while not self._stopping:
                    self.poll_once()
                    self._wakeup.wait(self.polling_interval)
            finally:
                self.stop()
                for number, handler in before.items():
                    signal.signal(number, handler)
        return End.UNFINISHED if self.unfinished else End.DRAINED

    def leave(self, end: End) -> NoReturn:
        """End the process, as `run()` ended."""
        raise SystemExit(int(end))

    # ---- what fork and async do each in their way ----

    @abstractmethod
    def _start_runner(self, plan: Plan) -> None:
        """Fill the plan's place."""

    @abstractmethod
    def _ended(self) -> list[Ended]:
        """Take the runners that have ended since the last call."""

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

    def _start_waiting(self) -> None:
        now = time.monotonic()
        due = [plan for plan in self._waiting if plan.due_at <= now]
        self._waiting = [plan for plan in self._waiting if plan.due_at > now]
        for plan in due:
            plan.board.clear()
            self._start_runner(plan)
            plan.started()

    def _settle(self) -> None:
        """Settle the claims of runners that have ended, and let their places be filled again."""
        if not self._unsettled or time.monotonic() < self._next_settlement:
            return
        while self._unsettled:
            ended = self._unsettled[0]
            if not self._on_database(lambda ended=ended: self._settle_one(ended)):  # type: ignore[misc]
                self._next_settlement = time.monotonic() + backoff(self._failures)
                return
            self._unsettled.pop(0)
            if not self._stopping:
                ended.plan.ended(failed=ended.end is not End.DRAINED)
                self._waiting.append(ended.plan)

    def _settle_one(self, ended: Ended) -> None:
        if self._stopping and ended.end in _CUT_SHORT:
            self.unfinished = True
        if ended.end is End.DRAINED:
            return
        process_id = ended.plan.board.process_id
        if process_id is None and self.process_id is not None:
            process_id = processes.find(self.config, name=ended.plan.name, supervisor_id=self.process_id)
        if process_id is not None:
            recovery.process_ended(
                self.config,
                process_id,
                started_up_to=ended.plan.board.started_up_to,
                give_back=ended.end is End.UNFINISHED,
                crashed_thread=self.mode == "async",
            )

    def _beat(self) -> None:
        if self.process_id is None or not processes.heartbeat(self.config, self.process_id):
            logger.warning("dj_queue %s: its process row was gone, registering again", self.name)
            self._register()
        recovery.prune(self.config, except_for=[self.process_id] if self.process_id else [])

    def _deregister(self) -> None:
        if self.process_id is not None:
            processes.deregister(self.config, self.process_id)
            self.process_id = None

    def _on_database(self, call: Callable[[], None]) -> bool:
        """Do something on the database; if it is away, say so once and return False."""
        try:
            if self.standalone:
                session.connect(self.config)
            call()
        except Error as error:
            if not self._failures:
                report(self.config, error, "supervisor.run")
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
            self._hurry()
        self._stopping = True
        self._wakeup.set()


class ForkSupervisor(Supervisor):
    """Each runner is a child process."""

    mode = "fork"

    def __init__(self, config: BackendConfig, *, standalone: bool = True) -> None:
        super().__init__(config, standalone=standalone)
        self._children: dict[int, Plan] = {}
        self._replaced: dict[str, int] = {}  # the pid that each name had last

    def start(self) -> None:
        # The application may have opened a pool, whose threads no child could use.
        close_connections()
        super().start()

    def _start_runner(self, plan: Plan) -> None:
        pid = fork(plan, self.process_id)
        self._children[pid] = plan
        if plan.name in self._replaced:
            events.emit("process.replaced", kind=plan.kind, old_pid=self._replaced[plan.name], new_pid=pid)
        self._replaced[plan.name] = pid

    def _ended(self) -> list[Ended]:
        ended = []
        for pid in list(self._children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                plan = self._children.pop(pid)
                end = _end(status)
                if end is not End.DRAINED and not self._stopping:
                    logger.error("dj_queue %s (process %s) ended: %s", plan.name, pid, _describe(status))
                ended.append(Ended(plan, end, pid))
        return ended

    def _stop_runners(self) -> None:
        self._signal_children(signal.SIGTERM)
        self._set_stop_by()
        while self._children and time.monotonic() < self._stop_by:
            self._unsettled += self._ended()
            self._wakeup.wait(0.02)
        self._signal_children(signal.SIGKILL)
        for pid, plan in self._children.items():
            _, status = os.waitpid(pid, 0)
            if os.WIFEXITED(status):  # just in time
                self._unsettled.append(Ended(plan, _end(status), pid))
                continue
            logger.error("dj_queue %s (process %s) did not stop in time and was killed", plan.name, pid)
            self._unsettled.append(Ended(plan, self._cut_short, pid))
        self._children = {}

    def _hurry(self) -> None:
        self._signal_children(HURRY)

    def _quit(self, number: int, frame: FrameType | None) -> None:
        self._signal_children(signal.SIGKILL)
        os._exit(1)

    def _signal_children(self, number: int) -> None:
        for pid in list(self._children):
            with suppress(ProcessLookupError):  # reaped, and a handler came in between
                os.kill(pid, number)


class AsyncSupervisor(Supervisor):
    """Each runner is a thread of this process."""

    mode = "async"

    def __init__(self, config: BackendConfig, *, standalone: bool = True) -> None:
        super().__init__(config, standalone=standalone)
        self._threads: dict[Plan, tuple[Runner, threading.Thread]] = {}
        self._running_on: list[Ended] = []

    def _start_runner(self, plan: Plan) -> None:
        runner = plan.make(self.process_id)
        thread = threading.Thread(target=self._run, args=(runner, plan.kind), name=plan.name, daemon=True)
        if plan.failures:
            events.emit("process.replaced", kind=plan.kind, process_name=plan.name)
        self._threads[plan] = (runner, thread)
        thread.start()

    def _ended(self) -> list[Ended]:
        over = [plan for plan, (_, thread) in self._threads.items() if not thread.is_alive()]
        return [Ended(plan, self._threads.pop(plan)[0].end) for plan in over]

    def _stop_runners(self) -> None:
        for runner, _ in self._threads.values():
            runner.request_stop()
        self._set_stop_by()
        for plan, (_, thread) in self._threads.items():
            while thread.is_alive() and time.monotonic() < self._stop_by:
                thread.join(0.02)
            if thread.is_alive():
                logger.error("dj_queue %s did not stop in time", plan.name)
                self._unsettled.append(Ended(plan, self._cut_short))
        self._unsettled += self._ended()
        if self.standalone:
            self._running_on = [ended for ended in self._unsettled if ended.end in _CUT_SHORT]
            self._unsettled = [ended for ended in self._unsettled if ended.end not in _CUT_SHORT]
            self.unfinished = bool(self._running_on)

    def leave(self, end: End) -> NoReturn:
        """End the process, as `run()` ended.

        A thread ends with its process alone: what still runs is given back as the last thing that is done
        here, so that nobody runs it a second time meanwhile.
        """
        if self._running_on:
            logging.shutdown()
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            self._unsettled += self._running_on
            self._next_settlement = 0.0
            self._settle()
            os._exit(int(end))
        super().leave(end)

    def _settle_one(self, ended: Ended) -> None:
        if not self.standalone and self._stopping and ended.end in (End.UNFINISHED, End.HURRIED):
            # Its threads may run on for as long as the host's process does, and nobody else may run what
            # they run. Should this process not reach its exit, the heartbeat's end settles it.
            if not self.unfinished:
                atexit.register(self._give_back_at_exit)
            self.unfinished = True
            return
        super()._settle_one(ended)

    def _deregister(self) -> None:
        # What was left to the process's exit is to be found by its supervisor until then.
        if self.standalone or not self.unfinished:
            super()._deregister()

    def _give_back_at_exit(self) -> None:
        try:
            if self.process_id is not None:
                recovery.supervisor_ended(self.config, self.process_id, give_back=True)
        except Exception as error:
            report(self.config, error, "supervisor.run")
        finally:
            connections[self.config.database_alias].close()

    def _hurry(self) -> None:
        for runner, _ in self._threads.values():
            runner.request_stop(hurry=True)

    def _quit(self, number: int, frame: FrameType | None) -> None:
        os._exit(1)

    def _run(self, runner: Runner, kind: str) -> None:
        try:
            runner.run()
        except Exception as error:
            runner.end = End.CRASHED
            report(self.config, error, f"{kind}.run")


def _end(status: int) -> End:
    try:
        return End(os.waitstatus_to_exitcode(status))
    except ValueError:  # a signal, or an exit that is not ours
        return End.CRASHED


def _describe(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

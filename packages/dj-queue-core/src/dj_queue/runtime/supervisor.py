"""Starts the runners of one backend alias, watches them, and stops them.

`ForkSupervisor` runs each in a process of its own, `AsyncSupervisor` each in a thread of this one.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NamedTuple, Self

from django.db import Error, connections

from dj_queue.config import BackendConfig, Overrides, load_config
from dj_queue.models import Process
from dj_queue.operations import processes
from dj_queue.runtime.dispatcher import Dispatcher
from dj_queue.runtime.process import Runner
from dj_queue.runtime.wakeup import Wakeup
from dj_queue.runtime.worker import Worker

logger = logging.getLogger("dj_queue")

# Beyond `shutdown_timeout`, for a child to give back and deregister before it is ended.
_GRACE = 2.0


class Plan(NamedTuple):
    """A runner to be: its name, and how to make it."""

    name: str
    make: Callable[[int | None], Runner]


def plans(config: BackendConfig) -> list[Plan]:
    """The runners that a configuration asks for."""

    def worker(options: Any, name: str) -> Plan:
        return Plan(name, lambda supervisor_id: Worker(config, options, name, supervisor_id))

    def dispatcher(options: Any, name: str) -> Plan:
        return Plan(name, lambda supervisor_id: Dispatcher(config, options, name, supervisor_id))

    planned = []
    for n, options in enumerate(config.workers, 1):
        for m in range(1, options.processes + 1):
            planned.append(worker(options, f"worker-{n}-{m}" if options.processes > 1 else f"worker-{n}"))
    for n, dispatching in enumerate(config.dispatchers, 1):
        planned.append(dispatcher(dispatching, f"dispatcher-{n}"))
    return planned


class Supervisor(ABC):
    mode: str
    polling_interval = 0.1

    def __init__(self, config: BackendConfig, *, standalone: bool = True) -> None:
        self.config = config
        self.standalone = standalone
        self.process_id: int | None = None
        self._plans = plans(config)
        self._wakeup = Wakeup()
        self._stopping = threading.Event()
        self._beaten_at = 0.0

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
    def name(self) -> str:
        return f"supervisor-{os.getpid()}"

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "standalone": self.standalone,
            "worker_count": sum(worker.processes for worker in self.config.workers),
            "dispatcher_count": len(self.config.dispatchers),
            "has_scheduler": False,
        }

    def start(self) -> None:
        """Register, and start every runner."""
        self.process_id = processes.register(
            self.config,
            kind=Process.Kind.SUPERVISOR,
            name=self.name,
            pid=os.getpid(),
            hostname=socket.gethostname(),
            metadata=self.metadata,
        )
        self._beaten_at = time.monotonic()
        self._start_runners()

    def poll_once(self) -> None:
        """Look after the runners and heartbeat; called every `polling_interval` seconds."""
        self._watch()
        if time.monotonic() - self._beaten_at >= self.config.process_heartbeat_interval:
            self._beaten_at = time.monotonic()
            self._heartbeat()

    def stop(self) -> None:
        """Stop every runner, wait for what they have to bring to an end, deregister."""
        self._stop_runners()
        if self.process_id is not None:
            try:
                processes.deregister(self.config, self.process_id)
            except Error as error:
                logger.warning("dj_queue %s: could not remove its process row: %s", self.name, error)
            self.process_id = None
        if self.standalone:
            connections[self.config.database_alias].close()

    def run(self) -> None:
        """Run until SIGTERM or SIGINT."""
        before = {number: signal.signal(number, self._asked) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self.start()
            while not self._stopping.is_set():
                self.poll_once()
                self._wakeup.wait(self.polling_interval)
        finally:
            self.stop()
            for number, handler in before.items():
                signal.signal(number, handler)

    def request_stop(self) -> None:
        self._stopping.set()
        self._wakeup.set()

    @abstractmethod
    def _start_runners(self) -> None: ...

    @abstractmethod
    def _watch(self) -> None: ...

    @abstractmethod
    def _stop_runners(self) -> None: ...

    def _asked(self, number: int, frame: FrameType | None) -> None:
        self.request_stop()

    def _heartbeat(self) -> None:
        try:
            if self.process_id is not None:
                processes.heartbeat(self.config, self.process_id)
        except Error as error:
            logger.warning("dj_queue %s: heartbeat failed: %s", self.name, error)
        finally:
            if self.standalone:
                connections[self.config.database_alias].close()


class ForkSupervisor(Supervisor):
    """Each runner is a child process."""

    mode = "fork"

    def __init__(self, config: BackendConfig, *, standalone: bool = True) -> None:
        super().__init__(config, standalone=standalone)
        self._children: dict[int, Plan] = {}

    def _start_runners(self) -> None:
        # What is loaded now is shared with the children for as long as nobody writes to it, and the
        # collector writes to whatever it visits.
        gc.collect()
        gc.freeze()
        for plan in self._plans:
            self._fork(plan)

    def _watch(self) -> None:
        for pid in self._reap():
            plan = self._children.pop(pid)
            if not self._stopping.is_set():
                logger.error("dj_queue %s (process %s) ended unexpectedly, starting it again", plan.name, pid)
                self._fork(plan)

    def _stop_runners(self) -> None:
        self._signal_children(signal.SIGTERM)
        deadline = time.monotonic() + self.config.shutdown_timeout + _GRACE
        while self._children and time.monotonic() < deadline:
            for pid in self._reap():
                del self._children[pid]
            if self._children:
                self._wakeup.wait(0.02)
        self._signal_children(signal.SIGKILL)
        for pid in list(self._children):
            os.waitpid(pid, 0)
            logger.error("dj_queue %s (process %s) had to be killed", self._children.pop(pid).name, pid)

    def _fork(self, plan: Plan) -> None:
        # A connection must not be shared by two processes, so none is open while there is one to copy it.
        connections.close_all()
        supervisor = os.getpid()
        pid = os.fork()
        if pid:
            self._children[pid] = plan
            return
        code = 1
        try:
            _run_child(plan.make(self.process_id), supervisor)
            code = 0
        except BaseException:
            logger.exception("dj_queue %s crashed", plan.name)
        finally:
            # Not sys.exit(): what the parent registered to happen at its exit is the parent's alone.
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> list[int]:
        ended = []
        for pid in self._children:
            done, _ = os.waitpid(pid, os.WNOHANG)
            if done:
                ended.append(pid)
        return ended

    def _signal_children(self, number: int) -> None:
        for pid in self._children:
            os.kill(pid, number)


def _run_child(runner: Runner, supervisor: int) -> None:
    def asked(number: int, frame: FrameType | None) -> None:
        runner.request_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, asked)
    runner.parent = supervisor
    if os.getppid() == supervisor:
        runner.run()


class AsyncSupervisor(Supervisor):
    """Each runner is a thread of this process."""

    mode = "async"

    def __init__(self, config: BackendConfig, *, standalone: bool = True) -> None:
        super().__init__(config, standalone=standalone)
        self._runners: dict[str, tuple[Runner, threading.Thread, Plan]] = {}

    def _start_runners(self) -> None:
        for plan in self._plans:
            self._start_thread(plan)

    def _watch(self) -> None:
        for runner, thread, plan in list(self._runners.values()):
            if not thread.is_alive() and not self._stopping.is_set() and not runner.stopping:
                logger.error("dj_queue %s ended unexpectedly, starting it again", plan.name)
                self._start_thread(plan)

    def _stop_runners(self) -> None:
        for runner, _, _ in self._runners.values():
            runner.request_stop()
        deadline = time.monotonic() + self.config.shutdown_timeout + _GRACE
        for _, thread, plan in self._runners.values():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                logger.error("dj_queue %s did not stop in time", plan.name)
        self._runners = {}

    def _start_thread(self, plan: Plan) -> None:
        runner = plan.make(self.process_id)
        thread = threading.Thread(target=_run_thread, args=(runner,), name=plan.name, daemon=True)
        self._runners[plan.name] = (runner, thread, plan)
        thread.start()


def _run_thread(runner: Runner) -> None:
    try:
        runner.run()
    except Exception:
        logger.exception("dj_queue %s crashed", runner.name)

"""Each runner in a process of its own."""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import suppress
from types import FrameType

from dj_queue import events
from dj_queue.config import BackendConfig
from dj_queue.runtime.child import HURRY, close_connections, fork
from dj_queue.runtime.plan import Plan
from dj_queue.runtime.process import End
from dj_queue.runtime.supervision import Ended, Supervisor

logger = logging.getLogger("dj_queue")


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
            how = _reap(pid)
            if how:
                plan = self._children.pop(pid)
                if plan.end is not End.DRAINED and not self._stopping:
                    logger.error("dj_queue %s (process %s) ended: %s", plan.name, pid, how)
                ended.append(Ended(plan, plan.end))
        return ended

    def _stop_runners(self) -> None:
        self._signal_children(signal.SIGTERM)
        self._set_stop_by()
        while self._children and time.monotonic() < self._stop_by:
            self._unsettled += self._ended()
            self._wakeup.wait(0.02)
        self._unsettled += self._ended()
        self._signal_children(signal.SIGKILL)
        for pid, plan in self._children.items():
            _reap(pid, wait=True)
            if plan.board.end is not None:  # just in time
                self._unsettled.append(Ended(plan, plan.end))
                continue
            logger.error("dj_queue %s (process %s) did not stop in time and was killed", plan.name, pid)
            self._unsettled.append(Ended(plan, self._cut_short))
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


def _reap(pid: int, *, wait: bool = False) -> str | None:
    """How a child has ended, for the log; None while it runs. What became of its jobs is on its board."""
    try:
        done, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
    except ChildProcessError:  # a hook's or a receiver's os.wait() came first
        return "exit code unknown"
    if not done:
        return None
    code = os.waitstatus_to_exitcode(status)
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

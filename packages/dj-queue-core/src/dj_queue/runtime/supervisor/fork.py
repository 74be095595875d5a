"""Each runner in a process of its own."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from contextlib import suppress
from types import FrameType

from dj_queue import events
from dj_queue.config import BackendConfig
from dj_queue.runtime.runner import End
from dj_queue.runtime.supervisor.base import Ended, Supervisor
from dj_queue.runtime.supervisor.child import HURRY, close_connections, fork
from dj_queue.runtime.supervisor.slots import Slot

logger = logging.getLogger("dj_queue")

# Seconds for which a start waits for receivers of what was settled.
_RECEIVERS_TIME = 2.0


class ForkSupervisor(Supervisor):
    """Each runner is a child process."""

    mode = "fork"

    def __init__(self, config: BackendConfig, *, standalone: bool = True) -> None:
        super().__init__(config, standalone=standalone)
        self._children: dict[int, Slot] = {}
        self._killed: set[int] = set()
        self._receivers_since = math.inf  # on the monotonic clock
        self._replaced: dict[str, int] = {}  # the pid that each name had last

    def start(self) -> None:
        # The application may have opened a pool, whose threads no child could use.
        close_connections()
        super().start()

    def _start_waiting(self) -> None:
        # A child inherits whatever lock a thread of its parent's holds just then: so not while receivers run, if
        # they come to an end.
        if not self._announcer.busy:
            self._receivers_since = math.inf
        elif time.monotonic() - (since := min(self._receivers_since, time.monotonic())) < _RECEIVERS_TIME:
            self._receivers_since = since
            return
        super()._start_waiting()

    def _start_runner(self, slot: Slot) -> None:
        pid = fork(slot, self.process_id)
        self._children[pid] = slot
        if slot.name in self._replaced:
            old_pid = self._replaced[slot.name]
            submit = self._announcer.submit
            events.emit_elsewhere(submit, "process.replaced", kind=slot.kind, old_pid=old_pid, new_pid=pid)
        self._replaced[slot.name] = pid

    def _ended(self) -> list[Ended]:
        ended = []
        for pid in list(self._children):
            how = _reap(pid)
            if how:
                self._killed.discard(pid)
                slot = self._children.pop(pid)
                if slot.end is not End.DRAINED and not self._stopping:
                    logger.error(
                        "dj_queue %s (process %s) ended: %s. It is replaced; jobs that it had started, if it was a"
                        " worker, fail with ProcessExitError: look at what they do.",
                        slot.name,
                        pid,
                        how,
                    )
                ended.append(Ended(slot, slot.end))
        return ended

    def _end_hung(self) -> None:
        for pid, slot in self._children.items():
            if pid not in self._killed and self._hangs(slot):
                self._killed.add(pid)
                state = "has not registered in time" if slot.shared.process_id is None else "does not answer any more"
                logger.error(
                    "dj_queue %s (process %s) %s: it is killed and replaced. Look at what it did: a call that lets"
                    " no other thread run, or a process that was stopped.",
                    slot.name,
                    pid,
                    state,
                )
                self._signal(pid, signal.SIGKILL)

    def _stop_runners(self) -> None:
        self._signal_children(signal.SIGTERM)
        self._set_stop_by()
        while self._children and time.monotonic() < self._stop_by:
            self._unsettled += self._ended()
            self._wakeup.wait(0.02)
        self._unsettled += self._ended()
        self._signal_children(signal.SIGKILL)
        for pid, slot in self._children.items():
            _reap(pid, wait=True)
            if slot.shared.end is not None:  # just in time
                self._unsettled.append(Ended(slot, slot.end))
                continue
            logger.error(
                "dj_queue %s (process %s) did not stop in time and was killed. Raise shutdown_timeout (%g s) if what it"
                " runs is to finish.",
                slot.name,
                pid,
                self.config.shutdown_timeout,
            )
            self._unsettled.append(Ended(slot, self._cut_short))
        self._children = {}

    def _hurry(self) -> None:
        self._signal_children(HURRY)

    def _quit(self, number: int, frame: FrameType | None) -> None:
        self._signal_children(signal.SIGKILL)
        os._exit(1)

    def _signal_children(self, number: int) -> None:
        for pid in list(self._children):
            self._signal(pid, number)

    def _signal(self, pid: int, number: int) -> None:
        with suppress(ProcessLookupError):  # reaped, and a handler came in between
            os.kill(pid, number)


def _reap(pid: int, *, wait: bool = False) -> str | None:
    """How a child has ended, for the log; None while it runs. What became of its jobs is on its shared."""
    try:
        done, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
    except ChildProcessError:  # a hook's or a receiver's os.wait() came first
        return "exit code unknown"
    if not done:
        return None
    code = os.waitstatus_to_exitcode(status)
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

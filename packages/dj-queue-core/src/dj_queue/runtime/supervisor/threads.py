"""Each runner in a thread of this process."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from types import FrameType
from typing import NoReturn

from django.db import connections

from dj_queue import events
from dj_queue.config import BackendConfig
from dj_queue.error_reporting import report
from dj_queue.operations import recovery, transactions
from dj_queue.runtime.runner import End, Runner
from dj_queue.runtime.supervisor.base import CUT_SHORT, LONGEST_LOCK, Ended, Supervisor
from dj_queue.runtime.supervisor.child import flush
from dj_queue.runtime.supervisor.slots import Slot

logger = logging.getLogger("dj_queue")


class AsyncSupervisor(Supervisor):
    """Each runner is a thread of this process."""

    mode = "async"

    def __init__(self, config: BackendConfig, *, standalone: bool = True) -> None:
        super().__init__(config, standalone=standalone)
        self._threads: dict[Slot, tuple[Runner, threading.Thread]] = {}
        self._running_on: list[Ended] = []

    def _start_runner(self, slot: Slot) -> None:
        runner = slot.make(self.process_id, slot.shared)
        thread = threading.Thread(target=self._run, args=(runner, slot.kind), name=slot.name, daemon=True)
        if slot.failures:
            submit = self._announcer.submit
            events.emit_elsewhere(submit, "process.replaced", kind=slot.kind, process_name=slot.name)
        self._threads[slot] = (runner, thread)
        thread.start()

    def _ended(self) -> list[Ended]:
        over = [slot for slot, (_, thread) in self._threads.items() if not thread.is_alive()]
        runners = [(slot, self._threads.pop(slot)[0]) for slot in over]
        return [Ended(slot, slot.end, runner) for slot, runner in runners]

    def _end_hung(self) -> None:
        """A thread cannot be ended: it is given up, with what it claimed, and another takes its place."""
        for slot, (runner, _) in list(self._threads.items()):
            if self._hangs(slot):
                logger.error(
                    "dj_queue %s does not answer any more: it is given up and replaced, and the jobs that it had"
                    " started fail. Look at what they do in its thread.",
                    slot.name,
                )
                runner.lease.end()
                runner.request_stop(hurry=True)
                del self._threads[slot]
                self._unsettled.append(Ended(slot, End.CRASHED, runner))

    def _stop_runners(self) -> None:
        for runner, _ in self._threads.values():
            runner.request_stop()
        self._set_stop_by()
        for slot, (_, thread) in self._threads.items():
            while thread.is_alive() and time.monotonic() < self._stop_by:
                thread.join(0.02)
            if thread.is_alive():
                logger.error(
                    "dj_queue %s did not stop in time. Raise shutdown_timeout (%g s) if what it runs is to finish.",
                    slot.name,
                    self.config.shutdown_timeout,
                )
                self._unsettled.append(Ended(slot, self._cut_short))
        self._unsettled += self._ended()
        if self.standalone:
            self._running_on = [ended for ended in self._unsettled if ended.end in CUT_SHORT]
            self._unsettled = [ended for ended in self._unsettled if ended.end not in CUT_SHORT]
            self.unfinished = bool(self._running_on)

    def leave(self, end: End) -> NoReturn:
        """End the process, as `run()` ended.

        A thread ends with its process alone: what still runs is given back as the last thing that is done
        here, so that nobody runs it a second time meanwhile.
        """
        if self._running_on:
            self._on_database(self._catch_up)
            flush()
            self._unsettled += self._running_on
            self._settle_last()
            os._exit(int(end))
        super().leave(end)

    def _settle_one(self, ended: Ended) -> None:
        if not self.standalone and self._stopping and ended.end in CUT_SHORT:
            # Its threads may run on for as long as the host's process does, and nobody else may run what
            # they run. Should this process not reach its exit, the heartbeat's end settles it.
            if not self.unfinished:
                atexit.register(self._give_back_at_exit)
            self.unfinished = True
            self._running_on.append(ended)
            return
        super()._settle_one(ended)

    def _deregister(self) -> None:
        # What was left to the process's exit is to be found by its supervisor until then.
        if self.standalone or not self.unfinished:
            super()._deregister()

    def _give_back_at_exit(self) -> None:
        try:
            # The host's process is to end, whatever others have locked.
            with transactions.bounded(self.config.database_alias, LONGEST_LOCK):
                self._catch_up()
                if self.process_id is not None:
                    recovery.supervisor_ended(self.config, self.process_id, give_back=True)
        except Exception as error:
            report(self.config, error, "supervisor.run")
        finally:
            connections[self.config.database_alias].close()

    def _catch_up(self) -> None:
        """Record what has ended since the time was up: it is not to be given back, and run again."""
        for ended in self._running_on:
            try:
                if ended.runner is not None:
                    ended.runner.catch_up()
            except Exception as error:  # then it is given back with the rest
                report(self.config, error, "supervisor.run")
                connections[self.config.database_alias].close()

    def _hurry(self) -> None:
        for runner, _ in self._threads.values():
            runner.request_stop(hurry=True)

    def _quit(self, number: int, frame: FrameType | None) -> None:
        os._exit(1)

    def _run(self, runner: Runner, kind: str) -> None:
        try:
            runner.shared.end = runner.run()
        except BaseException as error:
            runner.end = End.CRASHED
            report(self.config, error, f"{kind}.run")

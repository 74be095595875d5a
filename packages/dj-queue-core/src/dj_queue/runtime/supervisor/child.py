"""A runner in a process of its own, forked from its supervisor."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import NoReturn

from django.db import connections

from dj_queue.error_reporting import report
from dj_queue.runtime import signals
from dj_queue.runtime.runner import End
from dj_queue.runtime.supervisor.slots import Slot

# A supervisor's word to a child that it is to wait for nothing. Not a second SIGTERM: where the whole
# process group is told to stop, as systemd does, a child hears that from its supervisor as well.
HURRY = signal.SIGUSR1

_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, HURRY)


def fork(slot: Slot, supervisor_id: int | None) -> int:
    """Start the slot's runner in a new process; return its pid. Returns in the parent alone."""
    # Two processes must not share a connection, so none is open while there is one to copy it.
    close_connections()
    # What is loaded by now stays shared for as long as nobody writes to it, and the collector writes
    # to whatever it visits.
    gc.collect()
    gc.freeze()
    supervisor = os.getpid()
    # A signal that arrives before the child has handlers of its own must wait for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    try:
        with signals.own_fork():
            pid = os.fork()
            if pid == 0:
                _run(slot, supervisor_id, supervisor)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
    return pid


def _run(slot: Slot, supervisor_id: int | None, supervisor: int) -> None:
    end = None
    try:
        slot.shared.take()
        runner = slot.make(supervisor_id, slot.shared)
        runner.parent = supervisor
        title(slot.name)

        def asked(number: int, frame: FrameType | None) -> None:
            runner.request_stop(hurry=number == HURRY)

        # Ctrl-C reaches the whole process group; the supervisor passes it on, once.
        signals.install(
            {signal.SIGTERM: asked, HURRY: asked, signal.SIGINT: signals.ignore, signal.SIGQUIT: signal.SIG_DFL}
        )
        try:
            end = runner.run()
        except Exception as error:
            report(runner.config, error, f"{slot.kind}.run")
    except BaseException:
        logging.getLogger("dj_queue").exception("dj_queue %s crashed", slot.name)
    finally:
        _leave(slot, end)


def _leave(slot: Slot, end: End | None) -> NoReturn:
    try:
        flush()
        # The last thing of all: until then its threads run on, and what they do to this process is not its word.
        if end is not None:
            slot.shared.end = end
    finally:
        # Not sys.exit(): what the parent registered to happen at its exit is the parent's alone.
        os._exit(End.CRASHED if end is None else end)


def flush() -> None:
    """Let out what was logged and printed. A handler or stream that a task has broken is no reason to end otherwise."""
    with suppress(BaseException):
        logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BaseException):
            stream.flush()


def title(name: str) -> None:
    """Name the process for `ps`: in full where the package setproctitle is installed, else its command's name."""
    try:
        import_module("setproctitle").setproctitle(f"dj_queue {name}")
    except ImportError:
        with suppress(OSError):  # Linux alone has it; it keeps 15 characters
            Path(f"/proc/{os.getpid()}/comm").write_text(name)


def close_connections() -> None:
    """Leave nothing open that a child could inherit, pools and their threads included."""
    for connection in connections.all(initialized_only=True):
        connection.close()
        close_pool = getattr(connection, "close_pool", None)
        if close_pool is not None:
            close_pool()

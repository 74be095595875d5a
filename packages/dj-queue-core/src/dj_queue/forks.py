"""Whether this process is a fork of the one that asked before, and what becomes of such forks.

To be asked around each job: a system call, as `os.getpid()` is one, takes longer than all the rest of that.
"""

import os
import struct
from contextlib import suppress
from contextvars import ContextVar
from weakref import finalize

# How many forks lie between this process and the one that imported this; how many it has made itself.
depth = 0
made = 0

# Where a fork says that it ends, and what it says there of whose job made it.
_parent: ContextVar[tuple[int, int] | None] = ContextVar("parent", default=None)
_LAST_WORD = struct.Struct("@qq")


def _in_child() -> None:
    global depth, made
    depth += 1
    made = 0


def _in_parent() -> None:
    global made
    made += 1


if hasattr(os, "register_at_fork"):  # where nothing can fork, as on Windows, jobs can still be enqueued
    os.register_at_fork(after_in_child=_in_child, after_in_parent=_in_parent)


class Ends:
    """The forks of tasks that have ended: nobody else waits for them, and a process that is not waited for stays."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        finalize(self, _close, self._reader, self._writer).atexit = False
        self._ended: dict[int, set[int]] = {}

    def listen(self, key: int) -> None:
        """In this context, forks that end are told of under this key."""
        _parent.set((self._writer, key))

    def collect(self, key: int) -> None:
        """Let go of what was told of under this key. Not while the job runs that has made it: that may wait for it."""
        with suppress(BlockingIOError):
            while told := os.read(self._reader, 256 * _LAST_WORD.size):
                for whose, pid in _LAST_WORD.iter_unpack(told):
                    self._ended.setdefault(whose, set()).add(pid)
        for pid in tuple(self._ended.get(key, ())):
            try:
                gone, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # the task has waited for it after all
                gone = pid
            if gone:
                self._ended[key].discard(pid)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def say_end() -> None:
    """Tell the process that has made this one that it ends."""
    parent = _parent.get()
    if parent is not None:
        with suppress(OSError):
            os.write(parent[0], _LAST_WORD.pack(parent[1], os.getpid()))

"""Signal handlers of this process alone: what a task, hook or receiver forks is not told to stop in our way.

A child that inherited them would note the signal for a loop that it does not have, and go on: neither
`multiprocessing.Process.terminate()` nor `Pool` could end it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

type Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers

# What each signal that is handled here had before.
_outside: dict[int, Any] = {}
# By the thread that forks: its mask before it, and whether the child installs handlers of its own.
_masks: dict[int, set[int | signal.Signals]] = {}
_own: set[int] = set()
_registered = False


def install(handlers: Mapping[int, Handler]) -> None:
    """Handle these signals from now on, in this process. For the main thread."""
    global _registered
    if not _registered:
        _registered = True
        os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
    for number, handler in handlers.items():
        before = signal.signal(number, handler)
        # None: not set by Python, which could not set it again.
        _outside.setdefault(number, signal.SIG_DFL if before is None else before)
    # The process that started this one may have blocked what it is to hear.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)


def restore() -> None:
    """Handle signals as before the first `install()`."""
    for number, handler in _outside.items():
        signal.signal(number, handler)
    _outside.clear()


def ignore(number: int, frame: FrameType | None) -> None:
    """A handler that does nothing. SIG_IGN would stay with whatever program a task starts."""


@contextmanager
def own_fork() -> Iterator[None]:
    """What this thread forks inside is ours: it keeps the handlers until it installs its own."""
    thread = threading.get_ident()
    _own.add(thread)
    try:
        yield
    finally:
        _own.discard(thread)


def _before() -> None:
    # A signal that comes at once to the child waits until it has the handlers that it is to have.
    if _outside:
        _masks[threading.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, _outside)


def _after_in_parent() -> None:
    mask = _masks.pop(threading.get_ident(), None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_in_child() -> None:
    thread = threading.get_ident()
    mask = _masks.get(thread)
    if thread not in _own:
        restore()  # by now this thread is the main one
    _own.clear()
    _masks.clear()
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

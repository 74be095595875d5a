"""Keeps a second supervisor from starting on the same host."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dj_queue.exceptions import DjQueueError


class SupervisorRunningError(DjQueueError, RuntimeError):
    """The pidfile belongs to a living process."""


@contextmanager
def pidfile(name: str | None) -> Iterator[None]:
    """Hold the file for as long as the block runs; a file of a process that is gone is taken over.

    Raises `SupervisorRunningError` if the process in the file is alive, and `OSError` if it cannot be written.
    """
    if name is None:
        yield
        return
    path = Path(name)
    _take(path)
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            if int(path.read_text()) == os.getpid():
                path.unlink()


def _take(path: Path) -> None:
    with _alone_in(path.parent):
        pid = _living(path)
        if pid is not None:
            raise SupervisorRunningError(f"a dj_queue supervisor is already running (pid={pid})")
        # Not written over: it may belong to somebody else, in a folder that is ours.
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w") as file:
            file.write(f"{os.getpid()}\n")


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two that start at the same time must not both take over what a third has left."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _living(path: Path) -> int | None:
    try:
        pid = int(path.read_text())
    except (OSError, ValueError):
        return None
    try:
        os.kill(pid, 0)
    except PermissionError:
        return pid  # somebody else's, and alive
    except (OSError, OverflowError):
        return None
    # Our own: whoever wrote it is gone, and left us its pid. In a container that is what always happens.
    return pid if pid > 0 and pid != os.getpid() else None

"""Keeps a second supervisor from starting on the same host.

What counts is a lock that the kernel holds on the file for as long as the supervisor lives, and not the pid in
it: that one may belong to something else by now.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dj_queue.exceptions import DjQueueError

# Where there are no locks, as on some network file systems.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
# All that a pidfile may hold: a number, or what a crash of the machine has left of one.
_PID = re.compile(rb"[\0\s]*[+-]?[0-9]*[\0\s]*")
_LONGEST = 64
# How often another one may come first while we open the file.
_ATTEMPTS = 100

_held: set[int] = set()
_registered = False


class SupervisorRunningError(DjQueueError, RuntimeError):
    """The pidfile is held by a living supervisor."""


class PidfileError(DjQueueError, OSError):
    """There can be no pidfile at that place; the message ends with what to do."""


@contextmanager
def pidfile(name: str | None) -> Iterator[None]:
    """Hold the file for as long as the block runs; one that is held by nothing is taken over.

    Raises `SupervisorRunningError` if another supervisor holds it, `PidfileError` if it is no place for one.
    Returns at once in any case, and touches no file that is not a pidfile.
    """
    if name is None:
        yield
        return
    descriptor = _take(name)
    try:
        yield
    finally:
        if descriptor in _held:  # not in what was forked meanwhile
            # While it is locked: from then on the name may be somebody else's.
            if _is_there(name, descriptor):
                with suppress(OSError):
                    os.unlink(name)
            _held.discard(descriptor)
            os.close(descriptor)


def _take(name: str) -> int:
    for _ in range(_ATTEMPTS):
        descriptor = _open(name)
        try:
            _lock(name, descriptor)
            # Another one may have removed the file, in its order, between our opening and locking it.
            if not _is_there(name, descriptor):
                os.close(descriptor)
                continue
            _write(name, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        _hold(descriptor)
        return descriptor
    raise PidfileError(f"supervisor_pidfile {name!r} is removed again and again. Let only one supervisor use it.")


def _open(name: str) -> int:
    with suppress(OSError):
        # Looked at first: to open a device may do something.
        if not stat.S_ISREG(os.lstat(name).st_mode):
            raise _no_file(name)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _no_file(name) from error
        raise PidfileError(
            f"supervisor_pidfile {name!r} cannot be written: {error.strerror}. Create its folder, or name another."
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_file(name)
    return descriptor


def _no_file(name: str) -> PidfileError:
    return PidfileError(
        f"supervisor_pidfile {name!r} is no regular file, and no link is followed."
        " Remove what is there, or name another."
    )


def _lock(name: str, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _running(name, _pid(descriptor)) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise PidfileError(
                f"supervisor_pidfile {name!r} cannot be locked: {error.strerror}. Name one on a local file system."
            ) from error
        # The pid is all there is to go by.
        pid = _pid(descriptor)
        if pid is not None and _lives(pid):
            raise _running(name, pid) from error


def _running(name: str, pid: int | None) -> SupervisorRunningError:
    return SupervisorRunningError(
        f"a dj_queue supervisor is already running (pid={'unknown' if pid is None else pid}): it holds"
        f" supervisor_pidfile {name!r}"
    )


def _write(name: str, descriptor: int) -> None:
    content = os.pread(descriptor, _LONGEST + 1, 0)
    if len(content) > _LONGEST or not _PID.fullmatch(content):
        raise PidfileError(
            f"supervisor_pidfile {name!r} is a file that holds no pid, and is left alone. Remove it, or name another."
        )
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def _pid(descriptor: int) -> int | None:
    with suppress(OSError, ValueError):
        return int(os.pread(descriptor, _LONGEST, 0))
    return None


def _lives(pid: int) -> bool:
    # Our own: the process that wrote it is gone, and left us its pid. In a container that is what always happens.
    if pid <= 0 or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # somebody else's
    except (OSError, OverflowError):
        return False
    return True


def _is_there(name: str, descriptor: int) -> bool:
    try:
        found, ours = os.lstat(name), os.fstat(descriptor)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)


def _hold(descriptor: int) -> None:
    """Keep the lock in this process alone: a child that outlives it, or what a task forks, must not hold it too."""
    global _registered
    if not _registered:
        _registered = True
        os.register_at_fork(after_in_child=_let_go)
    _held.add(descriptor)


def _let_go() -> None:
    while _held:
        with suppress(OSError):
            os.close(_held.pop())

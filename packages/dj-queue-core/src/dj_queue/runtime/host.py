"""What the runtime needs of the system and the interpreter that it runs on; enqueueing needs none of it."""

import os
import select
import signal
import sys
from importlib import import_module

from dj_queue.exceptions import DjQueueError

_MODULES = ("fcntl", "resource")
_FUNCTIONS = ((os, "fork"), (os, "register_at_fork"), (signal, "pthread_sigmask"), (select, "poll"))


class UnsupportedHostError(DjQueueError, RuntimeError):
    """The runtime cannot run here; the message says what is missing, and what to do."""


def require() -> None:
    """Raise `UnsupportedHostError` where neither workers nor any other part of the runtime can run."""
    reason = green() or _missing()
    if reason is not None:
        raise UnsupportedHostError(reason)


def green() -> str | None:
    """Why threads are none here, and what to do; None where they are."""
    for library, patched in (("gevent", _patched_by_gevent), ("eventlet", _patched_by_eventlet)):
        if patched():
            return (
                f"dj-queue cannot run jobs in this process: {library} has replaced its threads, so one task or one"
                " statement would hold up all others. Enqueueing works here; run the jobs with manage.py dj_queue in a"
                " process of its own, or use another worker class, such as gthread."
            )
    return None


def _missing() -> str | None:
    missing = [name for name in _MODULES if not _has(name)]
    missing += [f"{module.__name__}.{name}" for module, name in _FUNCTIONS if not hasattr(module, name)]
    if not missing:
        return None
    return (
        f"dj-queue runs jobs on Linux, macOS and other Unix systems only, and this one lacks {', '.join(missing)}."
        " Enqueueing works here; run manage.py dj_queue on such a system, in a container or in WSL."
    )


def _has(name: str) -> bool:
    try:
        import_module(name)
    except ImportError:
        return False
    return True


def _patched_by_gevent() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def _patched_by_eventlet() -> bool:
    patcher = sys.modules.get("eventlet.patcher")
    return patcher is not None and bool(patcher.is_monkey_patched("thread"))

"""The two hooks that gunicorn calls in its workers, once gunicorn.conf.py has imported them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from dj_queue_gunicorn.candidate import Candidate
from dj_queue_gunicorn.seat import Seat
from dj_queue_gunicorn.uvicorn import BeforeShutdown, is_uvicorn

# Opened where gunicorn reads its configuration, in the arbiter, so that every worker inherits the same.
_seat = Seat()
_opened_by = os.getpid()


def post_fork(server: Any, worker: Any) -> None:
    """Let this worker take part: the first hosts the supervisor, the others stand by to succeed it."""
    if os.getpid() == _opened_by:
        raise RuntimeError(
            "dj_queue.contrib.gunicorn was imported by a worker, so this worker knows nothing of the others."
            " Import it at the top of gunicorn.conf.py, not within a hook."
        )
    worker._dj_queue_supervisor = None
    worker._dj_queue_candidate = Candidate(worker, _seat)
    if worker.age == 1:
        _seat.take()
    # The application is not loaded yet, and Django not set up, unless gunicorn preloads it.
    _call_after(worker.cfg, "post_worker_init", _start)


def worker_exit(server: Any, worker: Any) -> None:
    """Stop this worker's supervisor, if it has one: what runs may finish within `shutdown_timeout`."""
    # Gunicorn may call this in the arbiter too, for a worker that is gone already.
    candidate = getattr(worker, "_dj_queue_candidate", None)
    if candidate is not None:
        candidate.stop()


def _start(worker: Any) -> None:
    candidate = worker._dj_queue_candidate
    candidate.start()
    if is_uvicorn(worker):
        worker.wsgi = BeforeShutdown(worker.wsgi, candidate.stop)


def _call_after(cfg: Any, hook: str, call: Callable[[Any], None]) -> None:
    """Let this process's copy of the configuration do `call` after whatever the user has for `hook`."""
    theirs = getattr(cfg, hook)

    def both(worker: Any) -> None:
        theirs(worker)
        call(worker)

    cfg.set(hook, both)

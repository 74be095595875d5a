"""Development: run the command in a child process, and start it again when code changes.

Three processes: the one that was started passes signals on, Django's autoreloader watches the code, and
the command does the work. A terminal's Ctrl-C reaches all of them; the first alone heeds it, so that the
last hears of it once.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from django.utils import autoreload

# The code with which the autoreloader ends in order to be started again.
_CHANGED = 3


def run(flag: str, *, instead: str) -> None:
    """Run this command, with `instead` for its argument `flag`, under Django's autoreloader.

    Returns once it is to end, and has.
    """
    # Django knows how this process was started, be it manage.py, django-admin or `python -m django`.
    arguments = autoreload.get_child_arguments()
    if os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) == "true":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        child = _Child()
        atexit.register(child.stop)
        autoreload.run_with_reloader(child.run, [instead if given == flag else given for given in arguments])
    else:
        _start_again_and_again(arguments)


def _start_again_and_again(arguments: Sequence[str]) -> None:
    """Run the autoreloader, as Django does; but a process that is told to end tells its child, and waits for it."""
    stopping = False
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        if child is not None:
            child.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    code = _CHANGED
    while code == _CHANGED and not stopping:
        child = subprocess.Popen(arguments, env={**os.environ, autoreload.DJANGO_AUTORELOAD_ENV: "true"})
        if stopping:  # before there was a child to tell
            child.terminate()
        code = child.wait()
    if code > 0 and not stopping:
        sys.exit(code)


class _Child:
    """The command itself, as the autoreloader's process knows it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._over = False

    def run(self, arguments: Sequence[str]) -> None:
        with self._lock:
            if self._over:
                return
            self._process = subprocess.Popen(arguments)
        self._process.wait()

    def stop(self) -> None:
        """Let it finish what it runs, before this process ends or is started again."""
        with self._lock:
            self._over = True
        process = self._process
        if process is not None and process.poll() is None:
            # Told once more, it hurries.
            signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
            process.terminate()
            process.wait()

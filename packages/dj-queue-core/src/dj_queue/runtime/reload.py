"""Development: run the command in a child process, and start it again when code changes."""

import atexit
import subprocess
from collections.abc import Sequence

from django.utils import autoreload


def run(*, without: str) -> None:
    """Run this command, `without` one argument, in a process of its own under Django's autoreloader.

    Does not return.
    """
    # Django knows how this process was started, be it manage.py, django-admin or `python -m django`.
    arguments = [argument for argument in autoreload.get_child_arguments() if argument != without]
    autoreload.run_with_reloader(_run, arguments)


def _run(arguments: Sequence[str]) -> None:
    child = subprocess.Popen(arguments)
    # The reloader ends this process in order to start it again; the child is to finish what it runs.
    atexit.register(_stop, child)
    child.wait()


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        child.wait()

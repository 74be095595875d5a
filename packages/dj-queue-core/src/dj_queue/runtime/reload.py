"""Development: run the command in a child process, and start it again when code changes."""

import atexit
import subprocess
import sys
from collections.abc import Sequence

from django.utils import autoreload


def run(arguments: Sequence[str]) -> None:
    """Run `arguments` as a process of its own under Django's autoreloader; does not return."""
    autoreload.run_with_reloader(_run, arguments)


def _run(arguments: Sequence[str]) -> None:
    child = subprocess.Popen([sys.executable, *arguments])
    # The reloader ends this process in order to start it again; the child is to finish what it runs.
    atexit.register(_stop, child)
    child.wait()


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        child.wait()

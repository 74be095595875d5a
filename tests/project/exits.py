"""Tasks that end the process in which they run."""

import os
import sys
from pathlib import Path

from django.tasks import task

from tests.project.tasks import append_line, wait_for_file


@task
def exit_at_once(code: int, ran: str) -> None:
    append_line.func(ran, f"exit {code}")
    os._exit(code)


@task
def exit_as_c_does(code: int, ran: str) -> None:
    """As a library does that thinks that it is a program of its own."""
    import ctypes

    append_line.func(ran, f"exit {code}")
    ctypes.CDLL(None).exit(code)


@task
def exit_once_released(code: int, release: str, ran: str) -> None:
    wait_for_file.func(release)
    exit_at_once.func(code, ran)


@task
def exit_a_thread(code: int) -> None:
    sys.exit(code)


@task
def say_drained_in_a_child(ran: str) -> None:
    """A child that writes whatever it can reach of the runner's, before the process ends with the same code."""
    import gc

    from dj_queue.runtime.shared_state import SharedState

    append_line.func(ran, "forked")
    pid = os.fork()
    if pid == 0:
        try:
            for shared in [each for each in gc.get_objects() if isinstance(each, SharedState)]:
                shared.end = 0
                shared.process_id = None
                shared.started(2**40)
            Path(f"{ran}.written").touch()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os._exit(0)

"""Tasks that fork, as those do that give a piece of work its own process and a time limit."""

import multiprocessing
import os
import signal
import time
from typing import Any

from django.tasks import task

NUMBERS = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1]


def end_children() -> list[Any]:
    """Exit codes of children that are told to end: one that has settled, and many that have only just begun."""
    fork = multiprocessing.get_context("fork")
    codes = []
    for pause in [0.3, *[0.0] * 20]:
        child = fork.Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(pause)
        child.terminate()
        child.join(10)
        codes.append(child.exitcode)
        child.kill()
    return codes


@task
def terminate_children() -> list[Any]:
    return end_children()


@task
def leave_pool() -> Any:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.apply_async(time.sleep, (60,))  # as when one result of many was enough
        return pool.apply(abs, [-2])


@task
def describe_child() -> list[str]:
    """How a child of this task handles signals, and which it blocks."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            handlers = [repr(signal.getsignal(number)).split(" at ")[0] for number in NUMBERS]
            blocked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))
            os.write(writer, "\n".join([*handlers, repr(blocked)]).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        return stream.read().splitlines()

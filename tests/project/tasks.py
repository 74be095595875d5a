"""Tasks of every kind."""

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from django.db import connections
from django.tasks import TaskContext, task

from dj_queue.api import concurrency
from tests.project.models import Run


@task
def add(a: int, b: int) -> int:
    return a + b


@task
def echo(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"args": list(args), "kwargs": kwargs}


@task
def echo_names(**kwargs: Any) -> list[str]:
    return sorted(kwargs)


@task
async def echo_names_async(**kwargs: Any) -> list[str]:
    return sorted(kwargs)


@task(takes_context=True)
def echo_names_with_context(context: TaskContext, /, **kwargs: Any) -> list[str]:
    return sorted(kwargs)


@task
def leave_run(label: str) -> None:
    """Leave a row, so that lost and doubled executions can be counted."""
    Run.objects.create(label=label)


@task
def append_line(path: str, line: str) -> None:
    """Leave a line in a file: cheaper than a row, and counted the same."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


@task
def wait_for_file(path: str, seconds: float = 30) -> str:
    """Run until a test creates the file."""
    deadline = time.monotonic() + seconds
    Path(f"{path}.started").touch()
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.01)
    return "seen"


@task
def break_streams_and_wait(path: str) -> None:
    """As a library does that detaches itself, or sets up logging in its own way."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            pass

        def close(self) -> None:
            raise SystemExit("broken")

    kept.append(Broken())
    sys.stdout.close()
    wait_for_file.func(path)


kept: list[logging.Handler] = []


@task
def close_descriptors() -> None:
    """As a library does that makes a daemon of its process."""
    os.closerange(3, 4096)


@task
async def add_async(a: int, b: int) -> int:
    return a + b


@task(takes_context=True)
def describe_context(context: TaskContext, label: str) -> dict[str, Any]:
    return {"label": label, "attempt": context.attempt, "id": context.task_result.id}


@task
def fail(message: str = "it failed") -> None:
    raise ValueError(message)


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


@task
def raise_unprintable() -> None:
    raise UnprintableError


@task
def raise_empty() -> None:
    raise ValueError


@task
def raise_system_exit() -> None:
    raise SystemExit(3)


@task
def raise_keyboard_interrupt() -> None:
    raise KeyboardInterrupt


@task
def raise_with_nul() -> None:
    raise ValueError("before\0after \udc80")


@task
def return_set() -> set[int]:
    return {1}


@task
def return_nan() -> float:
    return float("nan")


@task
def return_nul() -> str:
    return "before\0after"


@task
def return_text(length: int) -> str:
    return "x" * length


@task
def return_given(value: Any) -> Any:
    return value


def not_a_task() -> None:
    """A plain function."""


class ExitingError(Exception):
    """Its text ends whoever asks for it."""

    def __str__(self) -> str:
        raise SystemExit(4)


@task
def raise_given(kind: str, message: str = "", times: int = 1) -> None:
    """Raise an exception of this module or a built-in one, its message repeated so many times."""
    import builtins

    raise (globals().get(kind) or getattr(builtins, kind))(*[message * times] * bool(message))


@task
def raise_from_cause() -> None:
    try:
        raise KeyError("the cause")
    except KeyError as error:
        raise ValueError("the effect") from error


@task
def return_nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


@task
def return_huge_int() -> int:
    return 10**5000


# What `task` returns goes under another name than the function: no worker can find it by its path.
renamed = task(not_a_task)


@task
def twice() -> str:
    return "first"


first_of_two = twice


@task
def twice() -> str:
    return "second"


@task
def one_per_key(key: str, value: int = 0) -> str:
    return key


one_per_key.func.concurrency_key = "one:{key}"
one_per_key.func.concurrency_limit = 1


@task
def one_or_none(key: str) -> str:
    return key


one_or_none.func.concurrency_key = "none:{key}"
one_or_none.func.concurrency_limit = 1
one_or_none.func.on_conflict = "discard"


# ---- for tests of the runtime -----------------------------------------------------------------------


@task
def append_line_slowly(path: str, line: str, seconds: float) -> None:
    """Work for some time, then leave a line."""
    time.sleep(seconds)
    append_line.func(path, line)


@task
def append_pid(path: str) -> None:
    append_line.func(path, str(os.getpid()))


@task
def wait_then_append(release: str, path: str, line: str) -> None:
    """Run until a test creates the file `release`, then leave a line."""
    wait_for_file.func(release)
    append_line.func(path, line)


@task
def stamp_until(release: str, path: str) -> None:
    """Say again and again, until a test creates the file `release`, which process runs this, and when."""
    Path(f"{release}.started").touch()
    while not Path(release).exists():
        append_line.func(path, f"{os.getpid()} {time.monotonic_ns()}")
        time.sleep(0.001)


@task
def kill_own_process(path: str = "") -> None:
    """End the worker's process as the kernel does when memory is short, once `path` exists."""
    while path and not Path(path).exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


@task
def kill_own_group() -> None:
    """End the worker and its supervisor at once, as a machine does that loses its power."""
    os.killpg(os.getpgid(0), signal.SIGKILL)


@task
def signal_supervisor(number: int, release: str, path: str, line: str) -> None:
    """Send a signal to the supervisor, run until a test creates the file `release`, then leave a line."""
    os.kill(os.getppid(), number)
    wait_then_append.func(release, path, line)


@task
def signal_own_process(number: int, release: str, path: str, line: str) -> None:
    """The same where the supervisor is this process."""
    os.kill(os.getpid(), number)
    wait_then_append.func(release, path, line)


@task
def block_in_c(path: str, seconds: int = 30) -> None:
    """Keep the interpreter's lock: no Python code runs in this process meanwhile, no signal handler either."""
    import ctypes

    Path(f"{path}.started").touch()
    ctypes.PyDLL(None).sleep(seconds)


_eaten: list[bytes] = []


@task
def eat_memory(path: str, mib: int) -> None:
    """Take memory and keep it."""
    _eaten.append(os.urandom(1024) * 1024 * mib)
    append_pid.func(path)


@task
def crash_in_slot(key: str) -> None:
    kill_own_process.func()


@task
def line_in_slot(key: str, path: str, line: str) -> None:
    append_line.func(path, line)


@task
def wait_in_slot(key: str, release: str, path: str, line: str) -> None:
    wait_then_append.func(release, path, line)


for _slotted in (crash_in_slot, line_in_slot, wait_in_slot):
    _slotted.func.concurrency_key = "slot:{key}"
    _slotted.func.concurrency_limit = 1


# ---- for tests of the work semantics ----------------------------------------------------------------

TWO_PER_KEY = {"key": "two:{key}", "limit": 2}


@concurrency(**TWO_PER_KEY)
@task
def two_per_key(key: str) -> str:
    return key


@task
@concurrency(**TWO_PER_KEY, on_conflict="discard")
def two_or_none(key: str) -> str:
    """Shares its semaphores with `two_per_key`."""
    return key


@concurrency(key="three:{key}", limit=3)
@task
def three_per_key(key: str) -> str:
    return key


@concurrency(key="{key}", limit=1)
@task
def limited_to_one(key: str, n: int) -> int:
    return n


@concurrency(key="record:{key}", limit=2)
@task
def record_overlap(key: str, path: str, seconds: float) -> None:
    """Leave a line when it begins and one when it ends."""
    append_line.func(path, f"+ {time.monotonic_ns()}")
    time.sleep(seconds)
    append_line.func(path, f"- {time.monotonic_ns()}")


@concurrency(key="hot", limit=1)
@task
def hot(path: str, line: str) -> None:
    append_line.func(path, line)


@task
def report_time() -> float:
    return time.time()


# ---- for tests of the admin -------------------------------------------------------------------------


@task
def log_in(user: str, password: str) -> str:
    return user


@task
def raise_with_arguments(message: str, password: str) -> None:
    raise ValueError(f"could not log in with {password}: {message}")


# ---- for tests of connections -----------------------------------------------------------------------


@task
def backend_pid(alias: str) -> list[Any]:
    """Which session of the server the task's own connection has, and whether its plans are pinned."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid(), current_setting('enable_seqscan')")
        return list(cursor.fetchone())

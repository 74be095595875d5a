import os
import time
from pathlib import Path

from django.tasks import task

from tests.project.tasks import append_line


@task
def return_pid(path: str = "", line: str = "") -> int:
    if path:
        append_line.func(path, line)
    return os.getpid()


@task
def tick(path: str, release: str) -> None:
    """Leave a line every few milliseconds until a test creates the file `release`; one more at the end."""
    name = f"{os.getpid()} {time.monotonic_ns()}"
    while not Path(release).exists():
        append_line.func(path, f"{name} {time.monotonic_ns()}")
        time.sleep(0.01)
    append_line.func(path, f"{name} end")

"""Tasks that leave a line with their number and the time: microseconds, the same for every system."""

import os
import time

from django.tasks import task


def _record(index):
    line = b"%d %d\n" % (index, time.time_ns())
    descriptor = os.open(os.environ["BENCH_RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line)
    os.close(descriptor)


@task
def noop(index):
    _record(index)


@task
def hot(index):
    _record(index)


# As attributes: the form that every version promises.
hot.func.concurrency_key = "hot"
hot.func.concurrency_limit = int(os.environ.get("BENCH_LIMIT", "1"))
hot.func.concurrency_duration = 3600
hot.func.on_conflict = "block"

"""What a loop sleeps on."""

import os
import time

import pytest

from dj_queue.runtime.wakeup import Wakeup
from tests.conftest import wait_settled, wait_until
from tests.project import tasks
from tests.working import states


def descriptors(wakeup):
    return [wakeup._reader.fileno(), wakeup._writer.fileno()]


def test_it_is_mended_and_leaves_alone_what_has_its_numbers(tmp_path):
    wakeup = Wakeup()
    numbers = descriptors(wakeup)
    for number in numbers:
        os.close(number)
    # As a connection to a database that is opened next.
    others = [os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT) for _ in numbers]
    assert others == sorted(numbers)
    os.write(others[0], b"another's")
    wakeup.set()
    assert wakeup.wait(60) is False
    wakeup.set()
    assert wakeup.wait(60) is False
    began = time.monotonic()
    wakeup.wait(0.05)
    assert time.monotonic() - began >= 0.04  # it sleeps again
    wakeup.close()
    assert (tmp_path / "file").read_bytes() == b"another's"
    for number in others:
        os.close(number)


# SQLite takes its own closed files for locked ones.
@pytest.mark.needs("sessions")
@pytest.mark.parametrize("mode", ["fork", "async"])
def test_a_task_that_closes_every_descriptor_stops_no_work(runtime, mode):
    options = {"workers": {"threads": 2, "polling_interval": 0.1}}
    running = runtime("--mode", mode, "--only-work", options=options, rows=1)
    tasks.close_descriptors.enqueue()
    wait_settled()
    for n in range(20):
        tasks.add.enqueue(n, 1)
    wait_until(lambda: states() == {"finished": 21})
    assert running.stop() == 0

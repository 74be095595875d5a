"""The seat among gunicorn's workers: the kernel says who sits there, and who has died."""

import os
import signal
from contextlib import suppress

import pytest

from dj_queue_gunicorn.seat import Seat
from tests.conftest import wait_until


@pytest.fixture
def fork():
    """Run a function in a forked process that then waits; `fork(call)` returns its pid once it was called."""
    pids = []

    def start(call):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(writer, b"1" if call() else b"0")
                signal.pause()
            finally:
                os._exit(1)
        pids.append(pid)
        answer = os.read(reader, 1)
        os.close(reader)
        os.close(writer)
        return pid, answer == b"1"

    yield start
    for pid in pids:
        end(pid)


def end(pid):
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_one_sits(fork):
    seat = Seat()
    first, sits = fork(seat.take)
    assert sits
    assert not fork(seat.take)[1]
    assert not seat.take()
    end(first)
    assert seat.take()
    assert seat.take()  # it is us
    assert not fork(seat.take)[1]
    seat.leave()
    assert fork(seat.take)[1]


def test_a_process_that_a_worker_forks_does_not_keep_the_seat(fork):
    seat = Seat()

    def take_and_fork():
        sits = seat.take()
        if os.fork() == 0:
            signal.alarm(20)  # it outlives its parent, and holds the file open
            signal.pause()
            os._exit(0)
        return sits

    first, sits = fork(take_and_fork)
    assert sits
    end(first)
    wait_until(seat.take, seconds=5)


def test_the_dead_are_known(fork):
    seat = Seat()

    def sit(*ids):
        def call():
            seat.take()
            for supervisor_id in ids:
                seat.enter(supervisor_id)
            seat.leave()
            return True

        return call

    lives, _ = fork(sit(7))
    dies, _ = fork(sit(8, 9))
    assert seat.dead() == {}
    end(dies)
    assert seat.dead() == {8: False, 9: False}
    seat.strike(8)
    assert seat.dead() == {9: False}
    seat.strike(9)
    assert seat.dead() == {}
    end(lives)
    assert seat.dead() == {7: False}


def test_the_dead_who_stopped_in_order_are_known_as_that(fork):
    seat = Seat()

    def stop():
        seat.enter(7)
        seat.bequeath(7)
        return True

    pid, _ = fork(stop)
    assert seat.dead() == {}
    end(pid)
    assert seat.dead() == {7: True}
    seat.strike(7)
    assert seat.dead() == {}


def test_ones_own_is_not_dead_and_places_are_used_again():
    seat = Seat()
    assert seat.take()
    for supervisor_id in range(1, 200):
        seat.enter(supervisor_id)
        assert seat.dead() == {}
        seat.strike(supervisor_id)
    assert len(seat._entries()) == 1

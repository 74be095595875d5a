"""Job ids are UUIDv7: in order, unique, and not to be guessed."""

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import RFC_4122, UUID

import pytest

from dj_queue import identifiers
from dj_queue.identifiers import earliest_at, uuid7
from tests.conftest import wait_until

pytestmark = pytest.mark.pure  # no database has a part in it


@pytest.fixture(autouse=True)
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier ids, perhaps of a moved clock, set no floor."""
    monkeypatch.setattr(identifiers, "_last_tick", 0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The wall clock's nanoseconds, to be set."""
    now = [1_700_000_000_123_456_789]

    class Clock:
        @staticmethod
        def time_ns() -> int:
            return now[0]

    monkeypatch.setattr(identifiers, "time", Clock)
    return now


def milliseconds(value: UUID) -> int:
    return value.int >> 80


def test_version_and_variant() -> None:
    for value in (uuid7() for _ in range(1000)):
        assert (value.version, value.variant) == (7, RFC_4122)


def test_the_first_48_bits_are_the_time_in_milliseconds() -> None:
    before = time.time_ns() // 1_000_000
    value = uuid7()
    assert before <= milliseconds(value) <= time.time_ns() // 1_000_000


def test_the_next_12_bits_are_the_fraction_of_the_millisecond(clock: list[int]) -> None:
    value = uuid7()
    assert milliseconds(value) == 1_700_000_000_123
    assert value.int >> 64 & 0xFFF == 456_789 * 4096 // 1_000_000


def test_each_is_greater_than_the_last() -> None:
    values = [uuid7() for _ in range(20_000)]
    assert all(first < second for first, second in itertools.pairwise(values))
    assert [str(value) for value in values] == sorted(str(value) for value in values)


@pytest.mark.parametrize("moves", [[0] * 5000, [-(10**9)] * 10, [-(10**15), 1, 0, 10**6], [1] * 100])
def test_order_outlives_a_clock_that_stands_still_or_goes_back(clock: list[int], moves: list[int]) -> None:
    values = [uuid7()]
    for move in moves:
        clock[0] += move
        values.append(uuid7())
    assert all(first < second for first, second in itertools.pairwise(values))
    assert {value.version for value in values} == {7}


def test_threads_get_different_ids_each_in_order() -> None:
    found: list[list[UUID]] = []
    start = threading.Barrier(4)

    def make() -> None:
        start.wait()
        found.append([uuid7() for _ in range(5000)])

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({value for values in found for value in values}) == 20_000
    for values in found:
        assert values == sorted(values)


def test_62_bits_are_random(clock: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """At one moment, in processes that know nothing of each other, none is like another."""

    def first_of_a_process() -> int:
        monkeypatch.setattr(identifiers, "_last_tick", 0)
        return uuid7().int

    values = [first_of_a_process() for _ in range(2000)]
    assert len(set(values)) == 2000
    assert len({value >> 64 for value in values}) == 1
    for bit in range(62):
        ones = sum(value >> bit & 1 for value in values)
        assert 800 < ones < 1200, f"bit {bit} is set {ones} times in 2000"


def test_random_bits_differ_after_a_fork() -> None:
    """Python's own generator would go on alike in parent and child."""
    script = (
        "import os, sys\n"
        "from dj_queue import identifiers\n"
        "identifiers.uuid7()\n"
        "child = os.fork() == 0\n"
        "sys.stdout.write(f'{identifiers.uuid7().int & (1 << 62) - 1}\\n'); sys.stdout.flush()\n"
        "child or os.wait()\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert len(set(run.stdout.split())) == 2


def test_the_earliest_of_a_moment_divides_the_ids_by_time() -> None:
    before = [uuid7() for _ in range(10)]
    moment = datetime.now(UTC) + timedelta(milliseconds=5)
    assert max(before) < earliest_at(moment)
    wait_until(lambda: datetime.now(UTC) > moment)
    assert earliest_at(moment) < uuid7()
    assert earliest_at(datetime(1900, 1, 1, tzinfo=UTC)) < before[0]
    assert earliest_at(moment).version == 7

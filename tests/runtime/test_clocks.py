"""A clock that is put forward or back ends no process that lives, and hides none that is dead."""

from datetime import datetime, timedelta
from unittest import mock

import pytest

from dj_queue.config import backend_config
from dj_queue.dialects import dialect_for, elapsed
from dj_queue.models import Process
from dj_queue.operations import processes, recovery

HOUR = 3600.0


def prune(sightings):
    """What a supervisor does at each beat."""
    config = backend_config()
    return recovery.prune(config, expired=recovery.survey(config, sightings=sightings).expired)


class TestElapsed:
    """Times as they are stored without USE_TZ: on 29 March 2026 two o'clock is three, on 25 October three is two."""

    @pytest.fixture(autouse=True)
    def local(self, settings):
        settings.USE_TZ = False
        settings.TIME_ZONE = "Europe/Berlin"

    @pytest.mark.parametrize(
        ("since", "now", "seconds"),
        [
            (datetime(2026, 3, 29, 1, 59, 50), datetime(2026, 3, 29, 3, 0, 10), 20),
            (datetime(2026, 3, 29, 1, 0, 0), datetime(2026, 3, 29, 3, 0, 0), HOUR),
            (datetime(2026, 10, 25, 2, 59, 50), datetime(2026, 10, 25, 2, 0, 10), 20),
            (datetime(2026, 10, 25, 2, 10, 0), datetime(2026, 10, 25, 2, 10, 30), 30),
            (datetime(2026, 7, 1, 12, 0, 0), datetime(2026, 7, 1, 13, 0, 0), HOUR),
            (datetime(2026, 7, 1, 12, 0, 1), datetime(2026, 7, 1, 12, 0, 0), 0),
        ],
    )
    def test_across_a_change(self, since, now, seconds):
        assert elapsed(since, now) == seconds

    def test_what_is_away_from_a_change_is_the_difference(self):
        now = datetime(2026, 11, 25, 12, 0, 0)
        assert elapsed(now - timedelta(seconds=301), now) == 301


@pytest.mark.django_db(transaction=True)
class TestPrune:
    @pytest.fixture
    def step(self, monkeypatch):
        """Put the database's clock forward, or back."""

        def by(seconds):
            kind = type(dialect_for("default"))
            clock = kind.clock
            monkeypatch.setattr(kind, "clock", lambda self, **ago: clock(self, **ago) + timedelta(seconds=seconds))

        return by

    @pytest.fixture
    def monotonic(self):
        with mock.patch("dj_queue.operations.processes.time.monotonic", return_value=1000.0) as clock:
            yield clock

    def process(self, name):
        return processes.register(backend_config(), kind="Worker", name=name, pid=1, hostname="elsewhere", metadata={})

    def left(self):
        return sorted(Process.objects.values_list("name", flat=True))

    def test_a_step_forward_ends_only_what_beats_no_more(self, step, monotonic):
        living, _ = self.process("living"), self.process("dead")
        sightings = processes.Sightings()
        assert prune(sightings) == 0
        step(HOUR)
        monotonic.return_value += 60
        assert prune(sightings) == 0
        assert processes.heartbeat(backend_config(), living)
        monotonic.return_value += 230
        assert prune(sightings) == 0
        monotonic.return_value += 20
        assert prune(sightings) == 1
        assert self.left() == ["living"]

    def test_a_beat_just_before_the_step_counts_since_the_last_look(self, step, monotonic):
        living = self.process("living")
        sightings = processes.Sightings()
        prune(sightings)
        processes.heartbeat(backend_config(), living)
        step(HOUR)
        monotonic.return_value += 60
        assert prune(sightings) == 0
        assert self.left() == ["living"]

    def test_a_step_back_hides_nothing_that_is_dead(self, step, monotonic):
        living, _ = self.process("living"), self.process("dead")
        sightings = processes.Sightings()
        prune(sightings)
        step(-HOUR)
        for _ in range(5):
            monotonic.return_value += 60
            processes.heartbeat(backend_config(), living)
            prune(sightings)
        assert self.left() == ["living"]

    def test_what_died_before_the_first_look_goes_by_the_databases_clock(self, step, monotonic):
        self.process("dead")
        step(301)
        assert prune(processes.Sightings()) == 1

    def test_a_beat_between_look_and_lock_keeps_the_process(self, step):
        living = self.process("living")
        step(301)
        found = recovery.survey(backend_config())
        processes.heartbeat(backend_config(), living)
        assert [beat.process_id for beat in found.expired] == [living]
        assert recovery.prune(backend_config(), expired=found.expired) == 0
        assert self.left() == ["living"]

    def test_it_looks_once_however_many_processes_there_are(self, django_assert_num_queries):
        for n in range(5):
            self.process(f"worker-{n}")
        with django_assert_num_queries(1):
            prune(processes.Sightings())

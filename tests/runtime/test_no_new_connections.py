"""A server that takes no new connections costs no running job: the runner's own connection still works."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import OperationalError, connection
from django.db.models.functions import Now

from dj_queue.config import backend_config
from dj_queue.dialects import dialect_for
from dj_queue.models import Process
from dj_queue.operations import processes
from dj_queue.runtime import connect
from dj_queue.runtime.heartbeat import Heartbeat
from dj_queue.runtime.lease import Lease
from tests.conftest import lines, pid_of, wait_settled, wait_until
from tests.project import tasks
from tests.proxies import Proxy
from tests.runtime.test_recovery import ONE_THREAD, enqueue, failures

BEATING = {"process_heartbeat_interval": 0.3, "process_alive_threshold": 3}


@pytest.fixture
def proxy(transactional_db):
    if not dialect_for("default").listen(connection):
        pytest.skip("the proxy speaks to PostgreSQL alone")
    between = Proxy(connection.settings_dict)
    yield between
    between.close()


@pytest.mark.parametrize("answer", ["none", "refusal"])
@pytest.mark.parametrize("mode", ["fork", "async"])
def test_the_loop_beats_for_the_heart(proxy, runtime, ran, release, mode, answer):
    enqueue((tasks.wait_then_append, str(release), str(ran), "ran"))
    running = runtime(options=ONE_THREAD | BEATING | {"mode": mode}, environment=proxy.environment, rows=2)
    wait_until(Path(f"{release}.started").exists)
    worker = pid_of("worker-1")
    began = Process.objects.get(name="worker-1").last_heartbeat_at
    if answer == "none":
        proxy.deaf = True
    else:
        proxy.refuse()
    # Longer than the lease, and than any other supervisor would wait.
    longest = timedelta(seconds=2 * BEATING["process_alive_threshold"])
    wait_until(lambda: Process.objects.filter(name="worker-1", last_heartbeat_at__gt=began + longest).exists())
    release.touch()
    wait_settled()
    assert lines(ran) == ["ran"]
    assert failures() == []
    assert pid_of("worker-1") == worker
    assert "lost touch" not in running.output


class TestHeart:
    @pytest.fixture
    def asked(self):
        return []

    @pytest.fixture
    def heart(self, asked, monkeypatch):
        def refuse(config):
            raise OperationalError("too many connections")

        monkeypatch.setattr(connect, "to_database", refuse)
        config = replace(backend_config(), process_heartbeat_interval=0.05, process_alive_threshold=60.0)
        row = processes.register(config, kind="Worker", name="worker-1", pid=1, hostname="here", metadata={})
        lapses = []
        with (
            heart := Heartbeat(config, "worker", row, Lease(60.0), lambda: lapses.append(1), lambda: asked.append(1))
        ):
            heart.lapses = lapses
            yield heart

    @pytest.mark.django_db(transaction=True)
    def test_asks_and_is_answered(self, heart, asked, django_assert_num_queries):
        wait_until(lambda: asked)
        Process.objects.update(last_heartbeat_at=Now() - timedelta(seconds=100))
        with django_assert_num_queries(1):
            heart.stand_in()
        assert processes.count_fresh(backend_config(), max_age=50) == 1
        assert heart.lapses == []

    @pytest.mark.django_db(transaction=True)
    def test_a_row_that_is_gone_ends_the_lease(self, heart, asked):
        wait_until(lambda: asked)
        Process.objects.all().delete()
        heart.stand_in()
        assert heart.lapses == [1]

    @pytest.mark.django_db(transaction=True)
    def test_unasked_it_costs_nothing(self, django_assert_num_queries):
        heart = Heartbeat(backend_config(), "worker", 1, Lease(60.0), lambda: None)
        with django_assert_num_queries(0):
            heart.stand_in()
